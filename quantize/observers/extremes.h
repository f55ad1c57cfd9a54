#pragma once

#include <coppice/error.h>
#include <coppice/quantize.h>

#include <cmath>
#include <optional>

namespace coppice::quantize {

/// Smallest and largest of `values`; nullopt when there are none. @throws UnsupportedModel on NaN or infinity
inline std::optional<Range> extremes(const at::Tensor& values) {
    if (values.numel() == 0) return std::nullopt;
    const auto [low, high] = at::aminmax(values);  // both NaN when any value is
    const Range range{low.item<double>(), high.item<double>()};
    if (!std::isfinite(range.low) || !std::isfinite(range.high))
        throw UnsupportedModel("quantize", "an activation is NaN or infinite on the calibration data",
                               "Check the calibration data and the model's weights.");
    return range;
}

}  // namespace coppice::quantize
