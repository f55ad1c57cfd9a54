// PACT, arXiv 1805.06085. QuantizerState::learned holds the clipping value.
#include <coppice/error.h>

#include "qat/rounding.h"

namespace coppice::quantize {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

class Clip : public torch::autograd::Function<Clip> {
public:
    static at::Tensor forward(AutogradContext* context, const at::Tensor& values, const at::Tensor& learned,
                              const at::Tensor& scale, const QuantizerState* state) {
        const auto zero = zero_point(*state, scale);
        context->save_for_backward({values, scale * state->highest});
        context->saved_data["lowest"] = static_cast<double>(state->lowest) / static_cast<double>(state->highest);
        context->saved_data["channel"] = state->channel;
        (void)learned;
        return rounded_values(*state, scale, zero, values.detach());
    }

    static tensor_list backward(AutogradContext* context, tensor_list gradients) {
        const auto saved = context->get_saved_variables();
        const auto& values = saved[0];
        const auto channel = context->saved_data["channel"].toInt();
        const auto end = beside(saved[1], values, channel);
        const auto above = values >= end;
        const double lowest = context->saved_data["lowest"].toDouble();  // in units of the clipping value
        const auto below = lowest < 0 ? values <= end * lowest : values < 0;
        auto by_end = gradients[0] * above;
        if (lowest < 0) by_end = by_end + gradients[0] * below * lowest;
        return {gradients[0].masked_fill(above.logical_or(below), 0), sum_per_scale(by_end, channel), at::Tensor(),
                at::Tensor()};
    }
};

class Pact final : public Quantizer {
public:
    bool learns() const override { return true; }
    bool for_weights() const override { return false; }
    bool mirrors() const override { return true; }

    void start(QuantizerState& state, const at::Tensor& values) const override {
        if (state.affine)
            throw InvalidArgument("quantize.pact", "a clipping value knows no offset", "Use symmetric: true.");
        cover_best(state, values);
        state.learned.mul_(state.highest);
    }

    void start_at(QuantizerState& state, Range range) const override {
        Quantizer::start_at(state, range);
        state.learned.mul_(state.highest);
    }

    at::Tensor scale(const QuantizerState& state) const override {
        return kept_positive(state, state.learned / state.highest);
    }

    at::Tensor apply(const QuantizerState& state, const at::Tensor& values) const override {
        return Clip::apply(values, state.learned, scale(state), &state);
    }
};

}  // namespace

std::unique_ptr<Quantizer> pact() {
    return std::make_unique<Pact>();
}

}  // namespace coppice::quantize
