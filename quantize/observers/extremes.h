#pragma once

#include <coppice/error.h>
#include <coppice/quantize.h>

#include <cmath>
#include <optional>

namespace coppice::quantize {

/// `values` as float32. @throws UnsupportedModel for complex and quantized tensors
inline at::Tensor real_values(const at::Tensor& values) {
    if (values.is_complex() || values.is_quantized())
        throw UnsupportedModel("quantize",
                               std::string("an activation is of type ") + c10::toString(values.scalar_type()) +
                                   ", ranges are of real numbers",
                               "Observe a float tensor.");
    return values.detach().to(at::kFloat);
}

/// Smallest and largest of `values`, float32; nullopt when there are none. @throws UnsupportedModel on NaN or infinity
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
