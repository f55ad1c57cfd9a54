// The grid that weights are rounded to, shared by all roundings.
#pragma once

#include <coppice/quantize.h>

namespace coppice::quantize {

/// Scales and offsets that cover each group of `weight` exactly or, with least_error, best; integers are left
/// undefined. A group of zeros gets scale 1. @throws InvalidArgument when bits or group do not fit
RoundedWeight grid_for(const at::Tensor& weight, const GridOptions& options);

/// Lowest and highest integer of a symmetric grid.
std::pair<int64_t, int64_t> symmetric_ends(int64_t bits, bool least_error);

/// Values per element: scale or offset [rows, groups] -> [rows, n].
at::Tensor expand_groups(const at::Tensor& per_group, int64_t group);

/// Fills the integers: (weight - offset) / scale to the nearest, ties to even, within the grid.
void round_to_nearest(RoundedWeight& rounded, const at::Tensor& weight);

/// sum over columns of (w - w')^T M (w - w') per row, float64 [rows].
at::Tensor output_error(const at::Tensor& weight, const at::Tensor& values, const InputMoments& moments);

/// @throws InvalidArgument when `moments` is null or of another width
const InputMoments& required(const InputMoments* moments, const at::Tensor& weight, const char* where);

}  // namespace coppice::quantize
