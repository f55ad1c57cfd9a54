// Blocks of a model, and rounding their layers together.
#pragma once

#include "plan/plan.h"

namespace coppice::quantize {

/// Operators between two values that everything computed from the model's input has to pass: a residual block with its
/// shortcut, all branches of a mixed block, or a layer of a chain with its activation.
struct Block {
    std::vector<torch::jit::Node*> nodes;  ///< in order; what depends on the input alone
    const torch::jit::Value *input = nullptr, *output = nullptr;
};

/// The blocks of the outermost block of the graph in order; each begins where the one before ends. A unit is never cut.
/// What lies in front of the first such value and behind the last is in none.
std::vector<Block> find_blocks(const Model& model, const Facts& facts, const std::vector<Unit>& units);

/// Rounds the int8 layers of each block together, in place of plan.weights: see brecq().
void reconstruct_blocks(StaticPlan::Impl& plan, const std::vector<Inputs>& calibration, const BlockOptions& options);

}  // namespace coppice::quantize
