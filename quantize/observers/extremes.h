#pragma once

#include <coppice/error.h>
#include <coppice/quantize.h>

#include <array>
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

/// Checkpoints of observers: whether anything was seen, and its ends.
inline constexpr int64_t kRangeState = 3;

inline std::array<double, kRangeState> range_state(const std::optional<Range>& range) {
    return range ? std::array<double, kRangeState>{1, range->low, range->high} : std::array<double, kRangeState>{};
}

inline std::optional<Range> range_from(const double* state) {
    return state[0] != 0 ? std::optional<Range>(Range{state[1], state[2]}) : std::nullopt;
}

/// `state` as float64 in order. @throws InvalidArgument unless it holds `size` numbers
inline at::Tensor checked_state(const at::Tensor& state, int64_t size) {
    if (state.numel() != size)
        throw InvalidArgument(
            "quantize.observer",
            "a state of " + std::to_string(state.numel()) + " numbers, must be " + std::to_string(size),
            "Give the state of an observer of the same kind and settings.");
    return state.detach().to(at::kCPU, at::kDouble).contiguous();
}

}  // namespace coppice::quantize
