/// Distillation: losses that let a student learn from a teacher's output, for any training stage.
///
/// All of them compare the student's output with the teacher's for the same inputs. Logits are [N, C] or [N, C, ...]
/// (classes in dimension 1, as cross entropy has it); `batch.rows` picks rows of both. Targets are class indices, or
/// class probabilities where a loss says so. The teacher's output gets no gradient. bfloat16 and half outputs are
/// compared in float32. A loss throws InvalidArgument when the teacher's output is missing or has another shape than
/// the student's.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <coppice/registry.h>
#include <coppice/stage.h>

namespace coppice::distill {

/// Settings of kd(). Defaults are those of the comparison in arXiv 1910.10699 (CIFAR-100): 0.1 CE + 0.9 KD at T = 4.
struct KdOptions {
    double temperature = 4;      ///< T > 0, softens both distributions
    double alpha = 0.9;          ///< share of the teacher's term in [0, 1]; 1 needs no labels
    double label_smoothing = 0;  ///< of the cross entropy, in [0, 1)
};

/// Hinton, Vinyals, Dean, arXiv 1503.02531: (1 - alpha) CE(s, y) + alpha T^2 KL(softmax(t/T) || softmax(s/T)), the mean
/// over examples. T^2 keeps the size of the gradient when T changes. Targets: class indices or probabilities.
std::unique_ptr<Loss> kd(KdOptions options = {});

/// Settings of dkd(). Defaults are those of the paper for CIFAR-100 (8 is its value for resnet32x4 pairs; 2 to 8 are
/// used).
struct DkdOptions {
    double temperature = 4;
    double alpha = 1;      ///< weight of the target-class part
    double beta = 8;       ///< weight of the part among the other classes
    double ce_weight = 1;  ///< weight of the cross entropy with the labels
    double label_smoothing = 0;
};

/// Decoupled knowledge distillation, Zhao et al., arXiv 2203.08679: CE + T^2 (alpha TCKD + beta NCKD). TCKD is the KL
/// divergence of (p_target, 1 - p_target), NCKD that of the softmax over the other classes alone. Targets: class
/// indices. The authors' program also raises the weight over the first 20 epochs; a loss does not know the epoch: use
/// the trainer's warm-up.
std::unique_ptr<Loss> dkd(DkdOptions options = {});

/// Settings of dist(). Weights are the paper's; temperature 1 is its ImageNet setting, 4 its CIFAR-100 setting.
struct DistOptions {
    double temperature = 1;
    double beta = 2;   ///< weight of the relation between classes (per example)
    double gamma = 2;  ///< weight of the relation between examples (per class)
    double ce_weight = 1;
    double label_smoothing = 0;
};

/// DIST, Huang et al., arXiv 2205.10536: CE + T^2 (beta (1 - mean correlation of rows) + gamma (1 - mean correlation of
/// columns)) of the softmax outputs, with Pearson's correlation, which asks for the same order and proportions rather
/// than the same values. A row or column without variance on either side counts as uncorrelated. Targets: class indices
/// or probabilities.
std::unique_ptr<Loss> dist(DistOptions options = {});

/// Settings of kd_zscore(). Defaults are those of the paper for CIFAR-100.
struct KdZscoreOptions {
    double temperature = 2;
    double kd_weight = 9;
    double ce_weight = 0.1;
    double label_smoothing = 0;
};

/// KD on standardised logits, Sun et al., arXiv 2403.01427: ce_weight CE + kd_weight T^2 KL(softmax(z(t)/T) ||
/// softmax(z(s)/T)) where z subtracts an example's mean and divides by its population standard deviation over the
/// classes (plus 1e-7), so that the student need not match the size of the teacher's logits. Targets: class indices or
/// probabilities.
std::unique_ptr<Loss> kd_zscore(KdZscoreOptions options = {});

/// Settings of mse().
struct MseOptions {
    double alpha = 1;  ///< share of the teacher's term in [0, 1]; 1 needs no labels
};

/// For outputs that are values or embeddings rather than logits, of any shape: the teacher's output as target (arXiv
/// 1312.6184 did so with logits): alpha mean((s - t)^2) + (1 - alpha) L(s, target). L is the foundation's
/// pair_similarity for pairs, cross_entropy for class indices and mean_squared_error else. All rows are compared with
/// the teacher's, labelled or not.
std::unique_ptr<Loss> mse(MseOptions options = {});

/// Settings of attention() and hints().
struct FeatureOptions {
    std::vector<std::string> layers;  ///< regular expressions on layer names; empty: the sums of residual networks
    double weight = 1;                ///< of the term of the features
};

/// Attention transfer, Zagoruyko & Komodakis, arXiv 1612.03928: `loss` + weight x mean over layers and examples of
/// |q(s) - q(t)|^2, where q sums the squares over dimension 1 (channels), flattens the rest and divides by its
/// Euclidean norm. Widths may differ, as after pruning; the other dimensions must not. Tensors of [N, T, C] are summed
/// over C, which is the last dimension of three. The paper's beta / 2 = 500 multiplies the mean over positions as well:
/// `weight` is that over the number of positions.
/// @param loss  on the outputs, for example kd()
std::unique_ptr<Loss> attention(std::shared_ptr<const Loss> loss, FeatureOptions options = {});

/// FitNets' hints, Romero et al., arXiv 1412.6550, without their regressor, for students that kept the width of these
/// layers: `loss` + weight x mean over layers of |s - t|^2 / |t|^2 (squared norms over the batch).
/// @throws InvalidArgument naming the layer when a student's is narrower
std::unique_ptr<Loss> hints(std::shared_ptr<const Loss> loss, FeatureOptions options = {});

/// Rows: distill.attention, distill.dist, distill.dkd, distill.hints, distill.kd, distill.kd_zscore, distill.logits (kd
/// by its recipe name), distill.mse.
const std::vector<Entry<Loss>>& losses();

/// Stage distill.logits: train.finetune of the foundation with `loss: distill.logits` where the recipe names none.
/// @param losses  what `loss:` may name: builtin_losses() and losses() together
std::vector<Entry<Stage>> stages(std::vector<Entry<Loss>> losses);

}  // namespace coppice::distill
