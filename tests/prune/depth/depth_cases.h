/// What the tests of residual blocks share.
#pragma once

#include <coppice/prune.h>

#include "support/support.h"

namespace coppice::testing {

inline std::vector<prune::ResidualBlock> blocks_of(const Model& model, const Inputs& example) {
    return prune::find_residual_blocks(model, Facts::observe(model, example));
}

/// The original, run node by node, with the branch's output multiplied by zero where it is added.
inline at::Tensor without_branch(const Model& model, const Inputs& example, const std::string& name) {
    torch::NoGradGuard no_grad;
    const auto blocks = blocks_of(model, example);
    NodeHooks hooks;
    hooks.before = [&](const torch::jit::Node* node, std::vector<c10::IValue>& inputs) {
        for (const auto& block : blocks) {
            if (block.add != node || block.name != name) continue;
            const size_t branch = node->input(0) == block.input ? 1 : 0;
            inputs[branch] = inputs[branch].toTensor() * 0;
        }
    };
    Inputs copies;
    for (const auto& input : example) copies.emplace_back(input.toTensor().clone());
    return first_tensor(run_nodes(model, copies, hooks));
}

inline void expect_removal_is_a_zero_branch(const Model& model, const Inputs& example, const std::string& name) {
    torch::NoGradGuard no_grad;
    const auto expected = without_branch(model, example, name);
    const auto shallower = prune::remove_block(model, example, name);
    Inputs copies;
    for (const auto& input : example) copies.emplace_back(input.toTensor().clone());
    const auto actual = first_tensor(shallower.forward(copies));
    // Relative 1e-5: adding zero is exact, but the executor fuses other neighbours than the walk over the graph.
    EXPECT_LE(max_difference(actual, expected), 1e-5 * expected.abs().max().item<double>() + 1e-12) << name;
    EXPECT_LT(cost(shallower, example).parameters, cost(model, example).parameters) << name;
    EXPECT_LT(blocks_of(shallower, example).size(), blocks_of(model, example).size()) << name;
}

}  // namespace coppice::testing
