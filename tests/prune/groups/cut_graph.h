/// Random graphs with random channels cut: for the property test and the fuzz target.
#pragma once

#include "prune/masking.h"
#include "support/random_graph.h"

namespace coppice::testing {

/// Cuts random channels of the graph's model and compares with masking. Throws what the cut throws.
inline CutCheck check_cut_of(const RandomGraph& graph, uint64_t seed) {
    return check_cut(graph.model(), {sine({2, 3, 8, 8}).add(0.1)}, 0.4, seed);
}

constexpr double kGraphTolerance = 1e-4;  ///< float32 sums in another order

}  // namespace coppice::testing
