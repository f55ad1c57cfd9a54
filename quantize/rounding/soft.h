// What AdaRound and BRECQ learn for every weight: h(V) = clamp(1.2 sigmoid(V) - 0.1, 0, 1), between rounding down (0)
// and up (1). A regulariser drives it to either end:
//
//     sum (1 - |2 h - 1|^beta),      beta from 20 to 2 after a fifth of the steps without
#pragma once

#include <torch/types.h>

#include <optional>

namespace coppice::quantize {

inline constexpr double kStretchLow = -0.1, kStretchHigh = 1.1;  // AdaRound's zeta and gamma
inline constexpr double kSoftRate = 0.01;                        // of Adam

/// h(V).
at::Tensor soft_rounding(const at::Tensor& v);

/// V where h(V) is the fraction that the exact weight has: w / s - floor(w / s).
at::Tensor soft_start(const at::Tensor& fraction);

/// beta in step `step` of `steps`; nullopt while the regulariser is off.
std::optional<double> sharpness(int64_t step, int64_t steps);

}  // namespace coppice::quantize
