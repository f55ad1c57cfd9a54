/// Which layers the model's output suffers from: what accuracy-aware fallback returns to float first.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <coppice/graph.h>
#include <coppice/stage.h>

namespace coppice::quantize {

/// A layer's own noise says little about what it does to the output: layers behind may shrink it, or blow it up.
struct Suspects {
    size_t count = 0;
    /// Hooks by which run_nodes() on the float model computes the one layer rounded and all others exactly.
    std::function<NodeHooks(size_t suspect)> alone;
    std::function<double(size_t suspect)> sqnr_db;  ///< of its own output: decides where outputs do not
};

/// The suspects in order, those first from which the model's output, alone, gets the most noise (power of the error
/// over that of the output, summed over its floating-point tensors). One run of the model per suspect, on 8 examples of
/// the context's calibration data.
/// @param otherwise  inputs where the context has no data
/// @param most_seconds  where all runs would take longer, the order is that of sqnr_db
/// @param by_output  set to whether outputs decided
/// @throws Interrupted
std::vector<size_t> by_blame(const Model& model, const Suspects& suspects, const Inputs& otherwise, double most_seconds,
                             Context& context, const std::string& where, bool* by_output = nullptr);

}  // namespace coppice::quantize
