/// Private to qat/: batch norms that train beside the rounded weight of their layer.
#pragma once

#include <coppice/qat.h>

#include "plan/plan.h"

namespace coppice::quantize {

struct LiveNorms;

/// One batch norm behind one layer (Krishnamoorthi, arXiv 1806.08342, section 3.2.2). With s = gamma / sqrt(running
/// variance + eps) the layer multiplies by Q(w s), which is what the int8 layer will multiply by, and
///
///     by batch statistics    y = batch_norm(conv(x, Q(w s)) / s)              running statistics follow
///     by running statistics  y = conv(x, Q(w s)) + beta + (b - running mean) s     the layer as it will be converted
///
/// The paper takes the batch's statistics from a second convolution in float; here they are of the rounded one, which
/// saves it and is what runs in the end.
class LiveNorm {
public:
    /// What scale s is multiplied into, [out, in, ...].
    at::Tensor scaled_weight() const;
    /// Bias of the layer by running statistics.
    at::Tensor bias() const;
    /// By batch statistics. @param output  of the layer on scaled_weight() without bias, channels in dimension 1
    at::Tensor normalise(const at::Tensor& output);
    /// True when a layer of this weight and bias is what scaled_weight() and bias() make: nothing else is in it.
    bool is_all_of(const at::Tensor& weight, const at::Tensor& bias) const;

    const torch::jit::Node* anchor = nullptr;                             ///< the plan's
    std::vector<std::pair<std::string, at::Tensor>> parameters, buffers;  ///< under their names in the given model
    std::string folded_weight, folded_bias;                               ///< where the folded layer has them

private:
    friend LiveNorms live_norms(const Model& model, const StaticPlan& plan);
    at::Tensor scale() const;

    at::Tensor weight_, own_bias_, gamma_, beta_;  ///< own_bias_: undefined without one
    at::Tensor mean_, variance_;
    double eps_ = 0, momentum_ = 0;
};

struct LiveNorms {
    std::vector<std::shared_ptr<LiveNorm>> norms;
    std::vector<LayerChange> changes;  ///< of each folded batch norm: "trained", or "folded" and why
};

/// Those of `model`'s batch norms that the plan folded into anchors of its own, in order, where nothing else went into
/// the same layer: that would be lost with the folded tensors, which live norms replace.
LiveNorms live_norms(const Model& model, const StaticPlan& plan);

}  // namespace coppice::quantize
