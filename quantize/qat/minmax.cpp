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
        cover(state, low, high);
    }

    void watch(QuantizerState& state, const at::Tensor& values) const override {
        const auto scale = state.learned.clone(), offset = state.offset.clone();
        start(state, values);
        if (state.weight) return;
        // Both ends are linear in scale and offset, so averaging these averages the ends.
        state.learned.copy_(scale.lerp(state.learned, momentum_));
        state.offset.copy_(offset.lerp(state.offset, momentum_));
    }

    at::Tensor scale(const QuantizerState& state) const override {
        return state.learned.detach().clamp_min(kLeastScale);
    }

    at::Tensor apply(const QuantizerState& state, const at::Tensor& values) const override {
        const auto factor = scale(state);
        return rounded_values(state, factor, zero_point(state, factor), values);  // straight-through by LibTorch
    }

private:
    const double momentum_;
};

}  // namespace

std::unique_ptr<Quantizer> minmax_range(double momentum) {
    if (!(momentum > 0 && momentum <= 1))
        throw InvalidArgument("quantize.qat", "momentum is " + std::to_string(momentum) + ", must be in (0, 1]", "");
    return std::make_unique<MinMaxRange>(momentum);
}

}  // namespace coppice::quantize
