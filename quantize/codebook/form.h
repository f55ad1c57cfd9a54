#pragma once

#include <coppice/quantize.h>

#include "layers/layers.h"

namespace coppice::quantize {

/// Weights shared through a codebook per layer. @param options with an init; @param seed of random inits
std::unique_ptr<Form> codebook_form(const CodebookOptions& options, uint64_t seed);

}  // namespace coppice::quantize
