#include "qat/rounding.h"

#include <limits>

namespace coppice::quantize {

at::Tensor beside(const at::Tensor& per_channel, const at::Tensor& values, int64_t channel) {
    if (channel < 0) return per_channel;
    std::vector<int64_t> shape(static_cast<size_t>(values.dim()), 1);
    shape[static_cast<size_t>(channel)] = per_channel.numel();
    return per_channel.reshape(shape);
}

at::Tensor sum_per_scale(const at::Tensor& values, int64_t channel) {
    if (channel < 0) return values.sum().reshape({1});
    return values.transpose(0, channel).reshape({values.size(channel), -1}).sum(1);
}

at::Tensor zero_point(const QuantizerState& state, const at::Tensor& scale) {
    if (!state.affine) return at::zeros(scale.sizes(), at::kInt);
    return (state.lowest - state.offset.detach() / scale).round().clamp(state.lowest, state.highest).to(at::kInt);
}

at::Tensor rounded_values(const QuantizerState& state, const at::Tensor& scale, const at::Tensor& zero_point,
                          const at::Tensor& values) {
    if (state.channel < 0)
        return at::fake_quantize_per_tensor_affine(values, scale.item<double>(), zero_point.item<int64_t>(),
                                                   state.lowest, state.highest);
    return at::fake_quantize_per_channel_affine(values, scale, zero_point, state.channel, state.lowest, state.highest);
}

at::Tensor inside(const QuantizerState& state, const at::Tensor& scale, const at::Tensor& zero_point,
                  const at::Tensor& values) {
    // Compared as real numbers: one pass less over the values than by their integers.
    const auto low = scale * (state.lowest - zero_point), high = scale * (state.highest - zero_point);
    return (values >= beside(low, values, state.channel)).logical_and_(values <= beside(high, values, state.channel));
}

std::pair<at::Tensor, at::Tensor> ends(const at::Tensor& values, int64_t channel) {
    const auto rows = channel < 0 ? values.detach().reshape({1, -1})
                                  : values.detach().transpose(0, channel).reshape({values.size(channel), -1});
    return {rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0)};
}

void cover(QuantizerState& state, const at::Tensor& low, const at::Tensor& high) {
    const auto width = state.affine       ? (high - low) / (state.highest - state.lowest)
                       : state.lowest < 0 ? at::maximum(high, -low) / state.highest
                                          : high / state.highest;
    const auto scale = at::where(width > kLeastScale, width, at::ones_like(width));
    state.learned.copy_(scale);
    state.offset.copy_(state.affine ? low : scale * state.lowest);
}

void cover_best(QuantizerState& state, const at::Tensor& values) {
    constexpr int kCandidates = 40;
    const auto [low, high] = ends(values, state.channel);
    at::Tensor best, best_factor;
    for (int i = kCandidates; i >= 1; --i) {
        const double factor = static_cast<double>(i) / kCandidates;
        cover(state, low * factor, high * factor);
        const auto rounded = rounded_values(state, state.learned, zero_point(state, state.learned), values.detach());
        const auto error = sum_per_scale((rounded - values.detach()).square(), state.channel);
        if (!best.defined()) {
            best = error;
            best_factor = at::ones_like(error);
            continue;
        }
        best_factor = at::where(error < best, at::full_like(error, factor), best_factor);
        best = at::minimum(best, error);
    }
    cover(state, low * best_factor, high * best_factor);
}

}  // namespace coppice::quantize
