/// What the criteria and patterns of single weights share. Private to prune.
#pragma once

#include <coppice/error.h>
#include <coppice/prune.h>

#include <map>

namespace coppice::prune {

/// A weight that layers read, and how it becomes a WeightMatrix.
struct WeightLayer {
    std::string name;       // of the first operator that reads it, as in LayerNames
    std::string attribute;  // "conv1.weight"
    at::Tensor weight;      // shares the model's storage
    int64_t groups = 1;
    bool transposed = false;  // [in, out, k...], not [out, in, k...]
    bool embedding = false;
    std::string reason;  // why it is kept; empty: it can be pruned
};

/// One entry per convolution, linear layer, embedding and recurrent layer; a weight that several operators read comes
/// once.
std::vector<WeightLayer> find_weight_layers(const Model& model);

/// [groups, rows, columns], float64. The columns of a convolution are ordered [k..., in_channels / groups], so that
/// neighbours are channels at one tap.
at::Tensor to_matrix(const WeightLayer& layer);
/// The inverse, in the dtype and memory order of the layer's weight.
at::Tensor from_matrix(const WeightLayer& layer, const at::Tensor& matrix);

/// Sums over the inputs that meet each column of a layer.
struct InputSums {
    at::Tensor squares;  // float64 [groups, columns]: sum of x_j^2
    at::Tensor gram;     // float64 [groups, columns, columns]: sum of x_j x_k
    int64_t positions = 0;
};

/// Runs the calibration data through `model` and adds up, for each layer whose attribute is in `attributes`, what
/// `statistic` asks for; in float64, because a Gram matrix squares the condition number.
std::map<std::string, InputSums> sum_inputs(const Model& model, const std::set<std::string>& attributes,
                                            InputStatistic statistic, int64_t samples, int64_t batch_size,
                                            Context& context);

/// True for the `count` lowest of each row of `scores` [B, n]; among equals the first ones.
at::Tensor lowest_mask(const at::Tensor& scores, int64_t count);

/// All layers, with a reason for each that keeps its weights.
/// @param where  the stage, for messages
/// @param inputs  what the criterion wants to know of the inputs
/// @throws InvalidArgument for an `ignore` that matches no layer, UnsupportedModel when no layer is left
std::vector<WeightLayer> choose_layers(const char* where, const Model& model, const WeightPruningOptions& options,
                                       const WeightPattern& pattern, InputStatistic inputs);

/// For each of `scores`, of any shape, the share of it that is among the lowest `sparsity` of them all.
std::vector<double> shares_of_lowest(const std::vector<at::Tensor>& scores, double sparsity);

/// Number of zeros in a tensor.
int64_t zeros_in(const at::Tensor& tensor);

struct ZeroCount {
    int64_t before, after;
};
/// Changes per layer, facts and a line in the log.
/// @param zeros  by index into `layers`, of those that were treated
void report_zeros(const char* where, const std::vector<WeightLayer>& layers, const std::map<size_t, ZeroCount>& zeros,
                  const WeightPattern& pattern, Context& context);

/// Reads pattern, sparsity, scope, ignore, min_size and embeddings.
std::unique_ptr<WeightPattern> read_weights(Options& options, WeightPruningOptions& read);

/// Reads the options of stage prune.csr.
std::unique_ptr<Stage> make_sparse_rows(Options& options);
/// Reads the options of stage prune.weight.
std::unique_ptr<Stage> make_weight_pruning(Options& options);

}  // namespace coppice::prune
