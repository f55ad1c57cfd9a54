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
/// It fires where the layer's output feeds nothing but the batch norm, weight and statistics are the layer's own
/// parameters or constants, and neither is used by another operator. The factor is computed in float64. The result
/// does not train as before: the batch norm is gone.
/// @param changes  one entry per batch norm: "folded", or "kept" with the reason
/// @return the number of batch norms folded
int fold_batch_norm(Model& model, std::vector<LayerChange>* changes = nullptr);

}  // namespace coppice
