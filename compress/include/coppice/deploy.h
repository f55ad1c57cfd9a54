/// Rewrites that keep the function of a model and make stock LibTorch run it faster.
#pragma once

#include <string>
#include <vector>

#include <coppice/model.h>
#include <coppice/stage.h>

namespace coppice {

/// Folds batch norms into the convolution (1-3d, transposed too) or linear layer before them:
///
///     before  y = batch_norm(conv(x, w, b)), in eval mode
///     after   y = conv(x, w * s, (b - mean) * s + beta)    with s = gamma / sqrt(var + eps) per output channel
///
/// It fires where the layer's output feeds nothing but the batch norm, and weight, bias and statistics are attributes
/// that no other operator reads. The factor is computed in float64. The batch norm is gone: what is left computes the
/// same in eval mode, but does not train as before.
/// @param example  arguments of forward for one run, which tells the shapes
/// @param changes  one entry per batch norm: "folded", or "kept" with the reason
/// @return the number of batch norms folded
/// @throws UnsupportedModel when there is one to fold and another method than forward reads parameters
int fold_batch_norm(Model& model, const Inputs& example, std::vector<LayerChange>* changes = nullptr);

}  // namespace coppice
