// LSQ, arXiv 1902.08153.
#include "qat/lsq.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "qat/rows.h"

namespace coppice::quantize {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

struct Sums {
    double by_scale = 0;  ///< of g y - (g inside) x
    double outside = 0;   ///< of g where x is outside
};

/// through = g where x lies in [low, high], else 0. In one pass over memory; tensor operators would make eight, which
/// is more than the convolutions of a small network cost.
Sums pass_row(const float* g, const float* x, const float* y, float* through, int64_t count, float low, float high) {
    constexpr int64_t kLanes = 16, kBlock = 2048;  // floats add at most 128 terms each, doubles the rest
    Sums sums;
    const auto one = [&](int64_t i, float& by_scale, float& outside) {
        const float value = x[i], gradient = g[i];
        const bool covered = (value >= low) & (value <= high);  // && would branch, which vector registers cannot
        const float inside = covered ? gradient : 0.0f;
        through[i] = inside;
        by_scale += gradient * y[i] - inside * value;
        outside += gradient - inside;
    };
    for (int64_t block = 0; block < count; block += kBlock) {
        std::array<float, kLanes> by_scale{}, outside{};
        const int64_t end = std::min(count, block + kBlock);
        int64_t i = block;
        for (; i + kLanes <= end; i += kLanes)
            for (int64_t lane = 0; lane < kLanes; ++lane)
                one(i + lane, by_scale[static_cast<size_t>(lane)], outside[static_cast<size_t>(lane)]);
        for (; i < end; ++i) one(i, by_scale[0], outside[0]);
        for (size_t lane = 0; lane < kLanes; ++lane) {
            sums.by_scale += by_scale[lane];
            sums.outside += outside[lane];
        }
    }
    return sums;
}

struct Backward {
    at::Tensor through;            ///< like the values
    at::Tensor by_scale, outside;  ///< float64 [channels or 1]: Sums of each scale
};

/// @param low, high  float32 [channels or 1], the ends of each range
Backward pass(const at::Tensor& gradient, const at::Tensor& values, const at::Tensor& rounded, const at::Tensor& low,
              const at::Tensor& high, int64_t channel) {
    const auto x = in_rows(values, channel);
    const auto in_order = [&](const at::Tensor& tensor) {
        return tensor.strides() == x.strides() ? tensor : at::empty_like(x).copy_(tensor);
    };
    const auto g = in_order(gradient), y = in_order(rounded);
    Backward result{at::empty_like(x), at::zeros(low.sizes(), at::kDouble), at::zeros(low.sizes(), at::kDouble)};
    const Rows rows(x, channel, low.numel());
    std::vector<Sums> sums(static_cast<size_t>(rows.count));
    rows.each([&](int64_t row, int64_t index, int64_t first, int64_t count) {
        sums[static_cast<size_t>(row)] =
            pass_row(g.const_data_ptr<float>() + first, x.const_data_ptr<float>() + first,
                     y.const_data_ptr<float>() + first, result.through.mutable_data_ptr<float>() + first, count,
                     low.const_data_ptr<float>()[index], high.const_data_ptr<float>()[index]);
    });
    for (int64_t row = 0; row < rows.count; ++row) {
        const auto index = row % rows.channels;
        result.by_scale.mutable_data_ptr<double>()[index] += sums[static_cast<size_t>(row)].by_scale;
        result.outside.mutable_data_ptr<double>()[index] += sums[static_cast<size_t>(row)].outside;
    }
    return result;
}

class Step : public torch::autograd::Function<Step> {
public:
    static at::Tensor forward(AutogradContext* context, const at::Tensor& values, const at::Tensor& learned,
                              const at::Tensor& offset, const QuantizerState* state) {
        const auto scale = kept_positive(*state, learned);
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
        const auto low = scale * (state.lowest - zero), high = scale * (state.highest - zero);
        const auto sums = pass(gradients[0], values, rounded, low, high, state.channel);
        // x' = (q - lowest) s + b: what s multiplies, less x / s where x moves along.
        auto by_scale = sums.by_scale;
        at::Tensor by_offset;
        if (state.affine) {
            by_offset = sums.outside;
            by_scale = by_scale - sums.outside * low;
        }
        const double count =
            static_cast<double>(values.numel()) / static_cast<double>(state.channel >= 0              ? scale.numel()
                                                                      : state.weight || !values.dim() ? 1
                                                                                                      : values.size(0));
        const double factor = 1 / std::sqrt(std::max(1.0, count) * static_cast<double>(state.highest));
        if (by_offset.defined()) by_offset = (by_offset * factor).to(at::kFloat);
        return {sums.through, (by_scale / scale * factor).to(at::kFloat), by_offset, at::Tensor()};
    }
};

class Lsq final : public Quantizer {
public:
    bool learns() const override { return true; }

    /// Not at the paper's 2 E|x| / sqrt(Q): behind a ReLU it is several times too small, because E|x| counts the zeros,
    /// and at 8 bits several times too large, and short trainings do not get out of that.
    void start(QuantizerState& state, const at::Tensor& values) const override { cover_best(state, values); }

    at::Tensor scale(const QuantizerState& state) const override { return kept_positive(state, state.learned); }

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
