#include "rounding/soft.h"

#include <cmath>

namespace coppice::quantize {
namespace {

constexpr double kWarmUp = 0.2, kFirstBeta = 20, kLastBeta = 2;

}  // namespace

at::Tensor soft_rounding(const at::Tensor& v) {
    return (v.sigmoid() * (kStretchHigh - kStretchLow) + kStretchLow).clamp(0, 1);
}

at::Tensor soft_start(const at::Tensor& fraction) {
    return ((fraction.clamp(1e-3, 1 - 1e-3) - kStretchLow) / (kStretchHigh - kStretchLow)).logit();
}

std::optional<double> sharpness(int64_t step, int64_t steps) {
    const auto warm_up = static_cast<int64_t>(kWarmUp * static_cast<double>(steps));
    if (step < warm_up) return std::nullopt;
    const double done = static_cast<double>(step - warm_up) / static_cast<double>(steps - warm_up);
    return kLastBeta + 0.5 * (kFirstBeta - kLastBeta) * (1 + std::cos(M_PI * done));
}

}  // namespace coppice::quantize
