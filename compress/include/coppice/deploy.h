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

/// 4-d float inputs and the weights of 2-d convolutions in channels-last order, which is what the CPU's convolutions
/// compute in:
///
///     before  y = conv2d(x, w)
///     after   y = conv2d(contiguous(x, channels_last), w)    with w stored channels-last
///
/// `view` becomes `reshape`, because views of a channels-last tensor need not exist, and 4-d outputs are made
/// contiguous again. Values stay the same up to rounding. It fires where a 4-d float input and a 2-d convolution are
/// found.
/// @return the number of convolutions whose weight is now channels-last, 0 when nothing was changed
int to_channels_last(Model& model, const Inputs& example);

/// Fewer passes over memory, by stock operators that save and load:
///
///     relu(add(a, b))         ->  _add_relu(a, b), in place where a or b is a fresh result that nobody else reads
///     add(a, b), relu(a) ...  ->  add_(a, b), relu_(a), in place of a fresh result that nobody else reads
///
/// Also hardtanh, hardswish, silu, sigmoid, tanh, elu and leaky_relu. Values stay the same. The result does not train.
/// @return the number of operators replaced
int fuse_elementwise(Model& model, const Inputs& example);

/// Attention written out becomes LibTorch's fused operator, which never holds the scores of all pairs:
///
///     before  matmul(softmax(matmul(q, k^T) * c + mask, -1), v)
///     after   scaled_dot_product_attention(q, k, v, mask, scale=c)
///
/// It fires for float tensors of 4 dimensions, or 3 (nn.MultiheadAttention where it does not take its fast path), where
/// nothing else reads what lies between. Products may be matmul, bmm or baddbmm; the factor (or divisor) c is a number;
/// masks are added, or filled in by masked_fill or where with a constant of at most -1e4. Values stay the same up to
/// rounding, in rows that hide everything too, with one exception: where -inf hides a whole row, the result was NaN
/// and is 0.
/// @return the number of attentions replaced
int fuse_attention(Model& model, const Inputs& example);

/// Linear layers that read one value become one layer, as the query, key and value of attention or gate and up of a
/// gated feed-forward:
///
///     before  linear(x, W1, b1), linear(x, W2, b2), ...
///     after   split(linear(x, [W1; W2; ...], [b1; b2; ...]), [out1, out2, ...])
///
/// Values stay the same up to rounding, those of the int8 layers of quantize.dynamic (quantized::linear_dynamic) bit
/// for bit. The parts are views of one tensor, and `view` of them becomes `reshape`; where a part is handed out,
/// written into, or asked for its strides, a copy takes its place. What follows, quantizing for one, sees one layer,
/// named after the first. A weight that is read twice and an input that is changed in place are left alone.
/// @return the number of layers that were merged
int merge_linear(Model& model, const Inputs& example);

/// float32 parameters, buffers and inputs in bfloat16, float outputs back in float32. 8 bits of precision remain.
/// @return the number of tensors converted
int to_bfloat16(Model& model, const Inputs& example);

/// Sets weights smaller than the smallest normal number of their type to zero (float32, float64, bfloat16; the values
/// of sparse rows, too): arithmetic on sub-normals is up to 100 times slower, and training with weight decay makes them
/// (issue EfficientNet-PyTorch#39). Those of float16 stay: they are computed in float32, where they are normal.
/// @return the number of weights set to zero
int64_t zero_subnormals(Model& model);

/// Settings of deploy().
struct DeployOptions {
    /// "auto" measures and takes the fastest. A name applies that form without measuring (then the same model gives the
    /// same bits, which a choice by the clock cannot promise): as_is, folded (batch norm), fused (folded +
    /// fuse_elementwise), attention (fused + fuse_attention), merged (attention + merge_linear), channels_last (folded
    /// + to_channels_last), fused_channels_last, bf16 (fused_channels_last + to_bfloat16).
    std::string form = "auto";
    bool bf16 = false;                  ///< let "auto" try bf16
    double tolerance = 1e-4;            ///< largest difference of an output, relative to its largest magnitude
    double bf16_tolerance = 0.05;       ///< the same for bf16
    double seconds = 10;                ///< budget of measuring; six rounds are always done
    std::vector<int64_t> batch = {32};  ///< batch sizes measured beside the example's
};

/// Stage deploy: the same function in the form that stock LibTorch runs fastest on this machine, the last stage of a
/// recipe.
///
/// Every form is saved, loaded by LibTorch, compared with the model before, and timed in interleaved rounds in random
/// order, at the example's batch size and those of `batch`, with LibTorch's current number of threads. A form replaces
/// a simpler one only when the 95 % interval of the median paired ratio of their times lies below 0.99. Outputs must
/// agree within the tolerance on the calibration data, or the example where there is none. A form that cannot be made,
/// or does not run, is left out with the reason. context.facts gets "form",
/// "forms" (each with times, ratio, interval or why it was not kept), "threads", "rounds", "subnormal_weights";
/// context.changes what was folded.
///
/// A model with nothing to rewrite (most int8 ones) passes through: "already in its fastest known form". The result is
/// for inference: folded batch norms and operators in place do not train.
/// @throws InvalidArgument without an example; UnsupportedModel when a form asked for by name does not agree
std::unique_ptr<Stage> deploy(DeployOptions options = {});

/// Rows: deploy.
const std::vector<Entry<Stage>>& deploy_stages();

}  // namespace coppice
