/// Private to qat/: batch norms that train beside the rounded weight of their layer.
#pragma once

#include <coppice/qat.h>

#include "plan/plan.h"

namespace coppice::quantize {

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

    const torch::jit::Node* anchor = nullptr;                             ///< the plan's
    std::vector<std::pair<std::string, at::Tensor>> parameters, buffers;  ///< under their names in the given model
    std::string folded_weight, folded_bias;                               ///< where the folded layer has them

private:
    friend std::vector<std::shared_ptr<LiveNorm>> live_norms(const Model& model, const StaticPlan& plan);
    at::Tensor scale() const;

    at::Tensor weight_, own_bias_, gamma_, beta_;  ///< own_bias_: undefined without one
    at::Tensor mean_, variance_;
    double eps_ = 0, momentum_ = 0;
};

/// Those of `model`'s batch norms that the plan folded into anchors of its own, in order.
std::vector<std::shared_ptr<LiveNorm>> live_norms(const Model& model, const StaticPlan& plan);

}  // namespace coppice::quantize
