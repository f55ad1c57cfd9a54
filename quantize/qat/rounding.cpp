#include "qat/rounding.h"

#include "qat/rows.h"

namespace coppice::quantize {

void Quantizer::start_at(QuantizerState& state, Range range) const {
    const auto end = [&](double value) { return at::full_like(state.learned, value); };
    cover(state, end(std::min(range.low, 0.0)), end(std::max(range.high, 0.0)));
}

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

Rows::Rows(const at::Tensor& values, int64_t channel, int64_t channels_of_scale)
    : length(channel < 0 ? kPiece : std::max<int64_t>(1, c10::multiply_integers(values.sizes().slice(channel + 1)))),
      count((values.numel() + length - 1) / length),
      total(values.numel()),
      channels(channels_of_scale) {}

at::Tensor in_rows(const at::Tensor& values, int64_t channel) {
    return channel < 0 && values.is_non_overlapping_and_dense() ? values : values.contiguous();
}

namespace {

/// low, high: integers relative to zero. Clamped first, which rounding to integers allows. Adding 1.5 * 2^23, above
/// which floats have no fraction, and taking it away rounds to the nearest even integer as nearbyint() does, but in
/// vector registers: LibTorch's operator takes ten times as long, as much as a convolution forwards and backwards.
void round_row(const float* values, float* rounded, int64_t count, float scale, float low, float high) {
    constexpr float kNoFraction = 12582912.0f;
    const float inverse = 1.0f / scale;
    for (int64_t i = 0; i < count; ++i) {
        float step = values[i] * inverse;
        step = step < low ? low : step;  // NaN stays
        step = step > high ? high : step;
        const float moved = step + kNoFraction;
        rounded[i] = (moved - kNoFraction) * scale;
    }
}

}  // namespace

at::Tensor rounded_values(const QuantizerState& state, const at::Tensor& scale, const at::Tensor& zero_point,
                          const at::Tensor& values) {
    if (values.requires_grad()) {  // straight-through gradients by LibTorch
        if (state.channel < 0)
            return at::fake_quantize_per_tensor_affine(values, scale.item<double>(), zero_point.item<int64_t>(),
                                                       state.lowest, state.highest);
        return at::fake_quantize_per_channel_affine(values, scale, zero_point, state.channel, state.lowest,
                                                    state.highest);
    }
    const auto x = in_rows(values, state.channel);
    auto rounded = at::empty_like(x);
    const auto* zeros = zero_point.const_data_ptr<int>();
    Rows(x, state.channel, scale.numel()).each([&](int64_t, int64_t channel, int64_t first, int64_t count) {
        round_row(x.const_data_ptr<float>() + first, rounded.mutable_data_ptr<float>() + first, count,
                  scale.const_data_ptr<float>()[channel], static_cast<float>(state.lowest - zeros[channel]),
                  static_cast<float>(state.highest - zeros[channel]));
    });
    return rounded;
}

std::pair<at::Tensor, at::Tensor> ends(const at::Tensor& values, int64_t channel) {
    const auto rows = channel < 0 ? values.detach().reshape({1, -1})
                                  : values.detach().transpose(0, channel).reshape({values.size(channel), -1});
    return {rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0)};
}

at::Tensor covering_scale(const QuantizerState& state, const at::Tensor& low, const at::Tensor& high) {
    const auto scale = state.affine       ? (high - low) / (state.highest - state.lowest)
                       : state.lowest < 0 ? at::maximum(high, -low) / state.highest
                                          : high / state.highest;
    return at::where(scale > kLeastScale, scale, at::zeros_like(scale));
}

at::Tensor kept_positive(const QuantizerState& state, const at::Tensor& scale) {
    const auto positive = scale.detach().clamp_min(kLeastScale);
    return state.least.defined() ? at::maximum(positive, state.least) : positive;
}

void cover(QuantizerState& state, const at::Tensor& low, const at::Tensor& high) {
    const auto width = covering_scale(state, low, high);
    const auto scale = at::where(width > 0, width, at::ones_like(width));
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
