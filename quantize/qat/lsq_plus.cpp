// LSQ+, arXiv 2004.09576.
#include "qat/lsq.h"

namespace coppice::quantize {
namespace {

class LsqPlus final : public Quantizer {
public:
    bool learns() const override { return true; }
    bool offsets() const override { return true; }

    void start(QuantizerState& state, const at::Tensor& values) const override {
        if (!state.weight) {
            cover_best(state, values);
            return;
        }
        const auto rows = state.channel < 0
                              ? values.detach().reshape({1, -1})
                              : values.detach().transpose(0, state.channel).reshape({values.size(state.channel), -1});
        const auto mean = rows.mean(1), three = 3 * rows.std(1, /*unbiased=*/false);
        const auto [low, high] = ends(values, state.channel);
        if (state.affine)
            cover(state, at::maximum(low, mean - three).clamp_max(0), at::minimum(high, mean + three).clamp_min(0));
        else
            cover(state, at::zeros_like(mean), at::maximum((mean - three).abs(), (mean + three).abs()));
    }

    at::Tensor scale(const QuantizerState& state) const override { return kept_positive(state, state.learned); }

    at::Tensor apply(const QuantizerState& state, const at::Tensor& values) const override {
        return step_with_gradients(state, values, state.offset);
    }
};

}  // namespace

std::unique_ptr<Quantizer> lsq_plus() {
    return std::make_unique<LsqPlus>();
}

}  // namespace coppice::quantize
