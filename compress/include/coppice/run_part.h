/// Running some operators of a model's graph by themselves.
#pragma once

#include <coppice/graph.h>

namespace coppice {

/// What values of a graph hold.
using Values = std::unordered_map<const torch::jit::Value*, c10::IValue>;

/// Runs `nodes`, some of the graph's outermost block in its order, as run_nodes() does. `values` holds what they read
/// from outside, `self` (the graph's first input) included, and gets all that they make.
void run_part(const Model& model, const std::vector<torch::jit::Node*>& nodes, Values& values,
              const NodeHooks& hooks = {});

}  // namespace coppice
