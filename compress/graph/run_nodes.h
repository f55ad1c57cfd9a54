// Private: the walk of run_nodes() with other operators in the place of some.
#pragma once

#include <coppice/graph.h>

namespace coppice {

/// Turns the inputs of a node into its outputs and says true, or leaves the stack alone and says false: the node runs
/// as ever. Not asked for constants, attributes, branches and loops.
using Instead = std::function<bool(torch::jit::Node*, std::vector<c10::IValue>& stack)>;

c10::IValue run_nodes(const Model& model, const Inputs& inputs, const NodeHooks& hooks, const Instead& instead);

/// Runs the operator of a node that is none of the interpreter's own instructions.
void execute_operator(torch::jit::Node* node, std::vector<c10::IValue>& stack);

}  // namespace coppice
