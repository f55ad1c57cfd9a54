// Which layers can be factorised: the analysis behind explain() and the stage.
#pragma once

#include <coppice/lowrank.h>

namespace coppice::lowrank {

// One operator with weights.
struct Layer {
    std::string name, op;
    torch::jit::Node* node = nullptr;
    std::optional<ConvView> conv;  // exactly one of these for what can be factorised
    std::optional<LinearView> linear;
    std::string weight_name;  // attribute of the weight
    at::Tensor weight;        // [out, in] or [C_out, C_in, k...] as factorised: transposed linear weights turned
    double positions = 0;     // places the kernel is applied at, all runs together: rows, or N x output pixels
    double middle_positions =
        0;               // those of the spatial form's first layer: N x rows of the input x columns of the output
    std::string reason;  // why not; empty if it can be

    bool transposed_weight() const { return linear && linear->weight_transposed; }
    bool has_form(Form form) const;
    double macs() const { return positions * static_cast<double>(weight.numel()); }
    double macs_per_rank(Form form) const;
    double parameters_per_rank(Form form) const;
};

// All operators with weights in order of execution; those that share a weight have tensors that are the same.
std::vector<Layer> find_layers(const Model& model, const Inputs& example);

// Indices of layers that can be factorised, one group per weight, in order of execution.
std::vector<std::vector<size_t>> groups_by_weight(const std::vector<Layer>& layers, const Model& model);

}  // namespace coppice::lowrank
