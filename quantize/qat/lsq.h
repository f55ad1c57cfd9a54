/// Private to qat/: LSQ's gradients, which LSQ+ shares.
#pragma once

#include "qat/rounding.h"

namespace coppice::quantize {

/// Rounded values with gradients for them, state.learned and `offset`.
at::Tensor step_with_gradients(const QuantizerState& state, const at::Tensor& values, const at::Tensor& offset);

}  // namespace coppice::quantize
