/// Where channels are read and written: what data-driven criteria and the re-fit look at. Private to prune.
#pragma once

#include "criteria/criteria.h"
#include "groups/relations.h"

namespace coppice::prune {

/// A layer that mixes the channels of its input: y = W x (+ b), at every position for a convolution. Convolutions with
/// groups are none: a depthwise one passes each channel on by itself. A recurrent layer of two directions is two.
struct Reader {
    const Node* node = nullptr;
    size_t input = 0;        ///< index of x among the node's inputs
    std::string weight;      ///< attribute
    std::string bias;        ///< attribute; empty: none, or not of this layer alone
    int64_t weight_in = 1;   ///< dimension of the weight that reads x
    int64_t weight_out = 0;  ///< and the one that makes y
    std::optional<ConvView> conv;
    std::vector<int64_t> kernel;  ///< sizes, of a convolution
    int64_t inputs = 0;           ///< channels of x

    const Value* value() const { return node->inputs()[input]; }
    /// Dimension of x, of rank `rank`, that holds the channels.
    int64_t channel_dim(int64_t rank) const { return conv ? rank - 1 - conv->dims : rank - 1; }
    /// False for a transposed convolution, whose output no one patch of x makes.
    bool has_patches() const { return !conv || !conv->transposed; }
    /// W as [out, in, positions of the kernel].
    at::Tensor matrix(const at::Tensor& weight_tensor) const;
    /// What W is multiplied by: rows of [in * positions of the kernel], in the order of matrix(). A convolution has one
    /// row per output position and example, a linear layer one per token; more than `positions` of an example are
    /// drawn by `seed`.
    at::Tensor rows(const at::Tensor& x, int64_t positions, uint64_t seed) const;
};

/// In the order of the graph.
std::vector<Reader> readers(const Model& model);

/// Where the channels of one group can be observed: along `dim` of `value`. These are the values that Readers read; for
/// a group without any (queries and keys of attention, say), the values that its own layers write.
struct Tap {
    size_t group = 0;
    const Value* value = nullptr;
    int64_t dim = 0;
    at::Tensor indices;  ///< [channels, m]: the m indices along `dim` of each channel
    const Node* node = nullptr;
    size_t port = 0;       ///< index among the node's inputs or outputs
    bool written = false;  ///< true: seen as the node's output, else as its input

    /// The channels' values as [examples, channels, m, other dimensions ...].
    at::Tensor maps(const at::Tensor& x) const;
};

/// Those of one reader, whatever else reads its value.
std::vector<Tap> taps_of_reader(const Groups& groups, const Reader& reader);

/// Every group has at least one. @throws UnsupportedModel from `where` naming a group that cannot be observed
std::vector<Tap> find_taps(const Model& model, const Groups& groups, const char* where);

/// @throws InvalidArgument from `where` unless both figures are positive
void check_observation(const char* where, const ObserveOptions& options);

/// Eval mode as long as it lives.
class EvalMode {
public:
    explicit EvalMode(const Model& model);
    ~EvalMode();
    EvalMode(const EvalMode&) = delete;
    EvalMode& operator=(const EvalMode&) = delete;

private:
    std::vector<torch::jit::Module> training_;
};

/// How much calibration data a criterion looks at.
struct Observation {
    const char* where;
    int64_t batches, batch_size;
};
/// Runs the calibration data through the model in eval mode and calls `visit` with what each tap sees.
/// @throws InvalidArgument without calibration data, UnsupportedModel when a value is NaN or infinite
void observe(const Model& model, const Observation& how, Context& context, const std::vector<Tap>& taps,
             const std::function<void(const Tap&, const at::Tensor& x)>& visit);
/// The same for what readers read.
void observe(const Model& model, const Observation& how, Context& context, const std::vector<Reader>& readers,
             const std::function<void(const Reader&, const at::Tensor& x)>& visit);

/// One figure per channel from each tap's maps [examples, channels, m, ...], averaged over batches (weighted by their
/// examples) and over the taps of a group: what apoz, mean_activation, hrank and chip share.
std::vector<at::Tensor> mean_over_maps(const Model& model, const Groups& groups, const Observation& how,
                                       Context& context,
                                       const std::function<at::Tensor(const at::Tensor& maps)>& figure);

}  // namespace coppice::prune
