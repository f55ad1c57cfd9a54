/// Private to qat/: what the quantizers share.
#pragma once

#include <coppice/qat.h>

#include <limits>

namespace coppice::quantize {

/// Least scale, float32's least normal number: below, the quotient by which values are rounded overflows. Ranges that
/// need less have width zero.
inline constexpr double kLeastScale = std::numeric_limits<float>::min();

/// [channels] beside values: broadcast along state.channel.
at::Tensor beside(const at::Tensor& per_channel, const at::Tensor& values, int64_t channel);

/// Sum of `values` for each scale: [channels or 1].
at::Tensor sum_per_scale(const at::Tensor& values, int64_t channel);

/// int32 [channels or 1]: 0, or the integer next to lowest - offset / scale.
at::Tensor zero_point(const QuantizerState& state, const at::Tensor& scale);

/// The rounded values, to the bits of LibTorch's operators, so that training computes what convert()'s models compute.
at::Tensor rounded_values(const QuantizerState& state, const at::Tensor& scale, const at::Tensor& zero_point,
                          const at::Tensor& values);

/// Smallest and largest of each channel, widened to hold zero: float32 [channels or 1].
std::pair<at::Tensor, at::Tensor> ends(const at::Tensor& values, int64_t channel);

/// The scale by which the integers cover [low, high] exactly; 0 for width zero.
at::Tensor covering_scale(const QuantizerState& state, const at::Tensor& low, const at::Tensor& high);

/// A learned scale where training has not driven it below state.least.
at::Tensor kept_positive(const QuantizerState& state, const at::Tensor& scale);

/// Sets learned (as a scale) and offset so that they cover [low, high] exactly; width zero gets scale 1.
void cover(QuantizerState& state, const at::Tensor& low, const at::Tensor& high);

/// Covers the ends of `values` times the factor in (0, 1] with the least squared error, of 40.
void cover_best(QuantizerState& state, const at::Tensor& values);

}  // namespace coppice::quantize
