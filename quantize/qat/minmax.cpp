// Ranges that follow the values, arXiv 1712.05877.
#include <coppice/error.h>

#include "qat/rounding.h"

namespace coppice::quantize {
namespace {

class MinMaxRange final : public Quantizer {
public:
    explicit MinMaxRange(double momentum) : momentum_(momentum) {}

    bool learns() const override { return false; }
    bool offsets() const override { return true; }

    void start(QuantizerState& state, const at::Tensor& values) const override {
        const auto [low, high] = ends(values, state.channel);
        cover_from(state, low, high);
    }

    void start_at(QuantizerState& state, Range range) const override {
        const auto end = [&](double value) { return at::full_like(state.learned, value); };
        cover_from(state, end(std::min(range.low, 0.0)), end(std::max(range.high, 0.0)));
    }

    void watch(QuantizerState& state, const at::Tensor& values) const override {
        const auto scale = state.learned.clone(), offset = state.offset.clone();
        start(state, values);
        if (state.weight) return;
        // Both ends are linear in scale and offset, so averaging these averages the ends. Where zeros were all that was
        // seen there is nothing to average with.
        const auto seen = scale > 0;
        state.learned.copy_(at::where(seen, scale.lerp(state.learned, momentum_), state.learned));
        state.offset.copy_(at::where(seen, offset.lerp(state.offset, momentum_), state.offset));
    }

    at::Tensor scale(const QuantizerState& state) const override {
        const auto scale = state.learned.detach();
        return at::where(scale > kLeastScale, scale, at::ones_like(scale));
    }

    at::Tensor apply(const QuantizerState& state, const at::Tensor& values) const override {
        const auto factor = scale(state);
        return rounded_values(state, factor, zero_point(state, factor), values);  // straight-through by LibTorch
    }

private:
    /// Unlike cover(): width zero stays 0 in state.learned, an end as good as others to average.
    static void cover_from(QuantizerState& state, const at::Tensor& low, const at::Tensor& high) {
        const auto scale = covering_scale(state, low, high);
        state.learned.copy_(scale);
        state.offset.copy_(state.affine ? low : scale * state.lowest);
    }

    const double momentum_;
};

}  // namespace

std::unique_ptr<Quantizer> minmax_range(double momentum) {
    if (!(momentum > 0 && momentum <= 1))
        throw InvalidArgument("quantize.qat", "momentum is " + std::to_string(momentum) + ", must be in (0, 1]", "");
    return std::make_unique<MinMaxRange>(momentum);
}

}  // namespace coppice::quantize
