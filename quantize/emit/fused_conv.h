// Which convolutions oneDNN's operator with plain integers takes: onednn::qconv2d_pointwise, which applies an
// activation or adds a residual before it rounds. Other int8 operators of LibTorch read quantized tensors; going from
// one to the other is a copy, so that convolutions between them follow.
#pragma once

#include "emit/operators.h"
#include "plan/plan.h"

namespace coppice::quantize {

struct FusedConv {
    const Unit* unit = nullptr;
    const torch::jit::Node* last = nullptr;  ///< whose output comes out
    FusedActivation activation;
    const Unit* add = nullptr;  ///< residual addition inside
    const torch::jit::Value* added = nullptr;
    /// Whether it does more than the packed operator.
    bool saves() const { return add || (activation.name != "none" && activation.name != "relu"); }
};

/// By convolution; empty where none saves anything.
std::unordered_map<const torch::jit::Node*, FusedConv> fused_convolutions(const StaticPlan::Impl& plan);

}  // namespace coppice::quantize
