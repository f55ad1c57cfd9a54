/// What criteria share. Private to prune.
#pragma once

#include <coppice/error.h>
#include <coppice/prune.h>

namespace coppice::prune {

/// Adds up `per_index` [slice.tensor.size(slice.dim)] by channel: [channels], float64.
at::Tensor per_channel(const at::Tensor& per_index, const Slice& slice, int64_t channels);

}  // namespace coppice::prune
