// Which convolutions oneDNN's operator with plain integers takes: onednn::qconv2d_pointwise, which applies an
// activation or adds a residual before it rounds, and has the better kernel where quantized::conv2d has FBGEMM's for
// depthwise convolutions. Other int8 operators of LibTorch read quantized tensors, over the same memory (Emitter).
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
};

/// By convolution: those that save something, whatever a call costs more (`conv: fused`), or those whose tensors are so
/// large on the example that more is saved than that.
std::unordered_map<const torch::jit::Node*, FusedConv> fused_convolutions(const StaticPlan::Impl& plan);

}  // namespace coppice::quantize
