// LSQ, arXiv 1902.08153.
#include "qat/lsq.h"

#include <cmath>

namespace coppice::quantize {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

class Step : public torch::autograd::Function<Step> {
public:
    static at::Tensor forward(AutogradContext* context, const at::Tensor& values, const at::Tensor& learned,
                              const at::Tensor& offset, const QuantizerState* state) {
        const auto scale = learned.detach().clamp_min(kLeastScale);
        const auto zero = zero_point(*state, scale);
        const auto rounded = rounded_values(*state, scale, zero, values.detach());
        context->save_for_backward({values, rounded, scale, zero});
        context->saved_data["lowest"] = state->lowest;
        context->saved_data["highest"] = state->highest;
        context->saved_data["channel"] = state->channel;
        context->saved_data["weight"] = state->weight;
        context->saved_data["affine"] = state->affine;
        return rounded;
    }

    static tensor_list backward(AutogradContext* context, tensor_list gradients) {
        const auto saved = context->get_saved_variables();
        const auto &values = saved[0], &rounded = saved[1], &scale = saved[2], &zero = saved[3];
        QuantizerState state;
        state.lowest = context->saved_data["lowest"].toInt();
        state.highest = context->saved_data["highest"].toInt();
        state.channel = context->saved_data["channel"].toInt();
        state.weight = context->saved_data["weight"].toBool();
        state.affine = context->saved_data["affine"].toBool();
        const auto mask = inside(state, scale, zero, values);
        const auto through = gradients[0] * mask;
        // x' = (q - lowest) s + b: what s multiplies, less x / s where x moves along.
        auto by_scale = gradients[0] * rounded - through * values;
        at::Tensor by_offset;
        if (state.affine) {
            const auto outside = gradients[0] - through;
            by_offset = sum_per_scale(outside, state.channel);
            by_scale = by_scale - outside * beside((state.lowest - zero) * scale, values, state.channel);
        }
        const double count =
            static_cast<double>(values.numel()) / static_cast<double>(state.channel >= 0              ? scale.numel()
                                                                      : state.weight || !values.dim() ? 1
                                                                                                      : values.size(0));
        const double factor = 1 / std::sqrt(std::max(count, 1.0) * static_cast<double>(state.highest));
        if (by_offset.defined()) by_offset = by_offset * factor;
        return {through, sum_per_scale(by_scale, state.channel) / scale * factor, by_offset, at::Tensor()};
    }
};

class Lsq final : public Quantizer {
public:
    bool learns() const override { return true; }

    void start(QuantizerState& state, const at::Tensor& values) const override {
        const auto [low, high] = ends(values, state.channel);
        cover(state, low, high);
        if (state.affine) return;
        const auto count = static_cast<double>(values.numel()) / static_cast<double>(state.learned.numel());
        const auto mean = sum_per_scale(values.detach().abs(), state.channel) / count;
        const auto scale = 2 * mean / std::sqrt(static_cast<double>(state.highest));
        state.learned.copy_(at::where(scale > kLeastScale, scale, at::ones_like(scale)));
    }

    at::Tensor scale(const QuantizerState& state) const override {
        return state.learned.detach().clamp_min(kLeastScale);
    }

    at::Tensor apply(const QuantizerState& state, const at::Tensor& values) const override {
        return step_with_gradients(state, values, state.offset.detach());
    }
};

}  // namespace

at::Tensor step_with_gradients(const QuantizerState& state, const at::Tensor& values, const at::Tensor& offset) {
    return Step::apply(values, state.learned, offset, &state);
}

std::unique_ptr<Quantizer> lsq() {
    return std::make_unique<Lsq>();
}

}  // namespace coppice::quantize
