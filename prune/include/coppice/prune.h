/// Structured pruning: which channels of a model must vanish together, which of them matter least, and the model
/// without them. Unlike masking, a cut makes the tensors smaller: stock LibTorch runs the result faster.
///
///     const auto facts = coppice::Facts::observe(model, example);
///     const auto groups = coppice::prune::find_groups(model, facts);
///     const auto scores = coppice::prune::magnitude()->scores(model, groups, context);
///     auto removal = coppice::prune::uniform()->allocate(groups, scores, cost, target);
///     const auto smaller = coppice::prune::cut(model, facts, groups, removal);
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <coppice/graph.h>
#include <coppice/model.h>
#include <coppice/registry.h>
#include <coppice/stage.h>
#include <coppice/train.h>

namespace coppice::prune {

// ------------------------------------------------------------------------------------------------------------- groups

/// The part of one parameter or buffer that vanishes with the channels of a group.
struct Slice {
    std::string name;   ///< attribute, "layer1.0.conv1.weight"
    at::Tensor tensor;  ///< shares the model's storage
    int64_t dim = 0;    ///< dimension that gets narrower
    std::vector<int64_t>
        channel_of;         ///< [tensor.size(dim)]: the channel that an index belongs to, -1 for none of this group
    bool parameter = true;  ///< false: a buffer, such as a running mean
    bool produces = false;  ///< the dimension is the output of `layer` (else it reads the channel, or scales it)
    std::string layer;      ///< the operator that reads it, as in LayerNames
};

/// Channels that touch the same slices, each of them removable on its own: DepGraph's group (Fang et al., arXiv
/// 2301.12900), except that channels which padding or concatenation sends different ways form groups of their own.
struct ChannelGroup {
    std::string name;  ///< of the first layer that produces it
    int64_t channels = 0;
    std::vector<Slice> slices;
    std::vector<std::string> layers;  ///< that produce it
    /// False where removing a channel also changes a statistic over the others (a layer norm over the channels): the
    /// cut model then differs from the masked one by that statistic.
    bool exact = true;
    /// How many indices of the widest producing slice one channel stands for: 1, but the group count of a grouped
    /// convolution, or heads x ... of a packed projection.
    int64_t multiplicity = 1;
};

/// Channels to remove, per group in the order of Groups::all(); each list sorted, without duplicates.
using Removal = std::vector<std::vector<int64_t>>;

/// Why a layer's outputs can or cannot be pruned; one per convolution, linear layer and embedding.
struct PrunableInfo {
    std::string layer;
    std::string op;        ///< "aten::conv2d"
    int64_t channels = 0;  ///< output channels
    int64_t prunable = 0;  ///< of those, how many belong to a group
    std::string group;     ///< name of the (first) group
    std::string reason;    ///< why the others do not; empty when all do
};

class Relations;
struct GroupOptions;

/// The groups of one model, with what cut() needs to know about its graph. Copies share.
class Groups {
public:
    Groups() = default;
    /// Groups by hand, for criteria and allocation without a graph; cannot be cut.
    explicit Groups(std::vector<ChannelGroup> groups) : groups_(std::move(groups)) {}

    const std::vector<ChannelGroup>& all() const { return groups_; }
    const std::vector<PrunableInfo>& layers() const { return layers_; }

    /// A channel that lives at an index of a value.
    struct Place {
        int64_t group = -1, channel = -1;  ///< -1: no group, never removed
    };
    /// For each index along `dim` of a value of the graph: where it belongs. Empty when the value was not reached.
    std::vector<Place> places(const torch::jit::Value* value, int64_t dim) const;
    /// True when an operator that reads `value` computes a statistic over several channels of `dim` (layer norm).
    bool has_statistic(const torch::jit::Node* node) const;
    /// Operators without a rule that froze something, each once: "aten::fft_fft at encoder.mix".
    const std::vector<std::string>& unknown_operators() const { return unknown_; }
    /// Relations between elements; for cut() and cost.
    const std::shared_ptr<const Relations>& relations() const { return relations_; }

private:
    friend Groups find_groups(const Model&, const Facts&, const GroupOptions&);
    std::vector<ChannelGroup> groups_;
    std::vector<PrunableInfo> layers_;
    std::vector<std::string> unknown_;
    std::shared_ptr<const Relations> relations_;
};

/// What find_groups() may choose.
struct GroupOptions {
    /// Attention splits features into heads x width, of which one can shrink: whole heads (Michel et al., arXiv
    /// 1905.10650), or with true the width of all heads of a layer alike.
    bool head_width = false;
    std::vector<std::string> ignore;  ///< regular expressions on layer names: their outputs are in no group
};

/// Finds all groups of channels that can vanish. An operator without a rule freezes whatever touches it; the names and
/// reasons are in Groups::layers(). @throws InvalidArgument when an entry of `ignore` matches no layer
Groups find_groups(const Model& model, const Facts& facts, const GroupOptions& options = {});

/// The model with attention that is one fused operator (nn.MultiheadAttention's and nn.TransformerEncoderLayer's fast
/// path) taken apart into projections and scaled_dot_product_attention, or written out as a scripted module has it in
/// its other branch. Heads and widths can shrink there. The same up to rounding, but 0 for NaN where a mask leaves a
/// query no key. The same handle when there is none, or none that can be taken apart (cross-attention, nested tensors).
Model unfuse_attention(const Model& model);

/// The model without the channels of `removal`: narrower parameters and buffers, and rewritten constants (view widths,
/// split sizes, padding, group counts). Equals the model whose removed channels are set to zero wherever an operator
/// reads them, for groups that are exact. Parameters keep requires_grad and the order of the channels left.
/// @param facts   observed on `model`; `groups` found on it
/// @throws InvalidArgument when a list is out of range, unsorted or takes all channels of a group
/// @throws UnsupportedModel naming operator and layer when a width cannot be rewritten
Model cut(const Model& model, const Facts& facts, const Groups& groups, const Removal& removal);

/// Per layer: prunable channels or the reason why not. For `coppice inspect`.
std::vector<PrunableInfo> explain(const Model& model, const Inputs& example);

// ----------------------------------------------------------------------------------------------------------- criteria

/// Says how much each channel matters.
class Criterion {
public:
    virtual ~Criterion() = default;
    virtual Needs needs() const { return {}; }
    /// One float64 tensor [channels] per group, higher for what matters more, finite. Does not change the model.
    /// @throws UnsupportedModel when a weight is NaN or infinite
    virtual std::vector<at::Tensor> scores(const Model& model, const Groups& groups, Context& context) const = 0;
};

/// How the norms of the parts of a group become one score (DepGraph's group reductions).
enum class Reduce {
    kSum,      ///< powers are added before the root: the norm of everything that vanishes
    kMean,     ///< the same, divided by the number of parts
    kMax,      ///< the part with the largest norm
    kProduct,  ///< product of the parts' norms
    kFirst,    ///< the first layer that produces the channel alone
};
/// Lp norm of all parameters that vanish with a channel. p = 1 on one layer is Li et al., arXiv 1608.08710; the sum
/// over coupled layers is Fang et al., arXiv 2301.12900. Needs no data. @param p order of the norm, at least 1.
std::unique_ptr<Criterion> magnitude(double p = 2.0, Reduce reduce = Reduce::kSum);

/// Uniformly random scores: the baseline any criterion has to beat.
std::unique_ptr<Criterion> random_scores(uint64_t seed = 0);

/// Absolute scale of the batch norms behind a channel, averaged where there are several (network slimming, Liu et al.,
/// arXiv 1708.06519). Needs no data.
/// @param magnitude_elsewhere  groups that no batch norm scales: false: UnsupportedModel by name; true: magnitude()
std::unique_ptr<Criterion> bn_scale(bool magnitude_elsewhere = false);

/// Layer-adaptive magnitude (Lee et al., arXiv 2010.07611) on channels: the squared norm of a channel's parameters,
/// divided by the sum of those of its group that are not smaller. Made for a global ranking without normaliser.
std::unique_ptr<Criterion> lamp();

/// Distance to the geometric median (He et al., arXiv 1811.00250): the sum of the Euclidean distances of the filters
/// that make a channel to those of the other channels. Needs no data.
std::unique_ptr<Criterion> fpgm();

enum class TaylorForm {
    kSquared,      ///< (sum of w * dL/dw)^2
    kAbsolute,     ///< |sum of w * dL/dw|
    kElementwise,  ///< sum of |w * dL/dw|
};
enum class TaylorAt {
    kParameters,  ///< w over the parameters of the group that produce or scale the channel; squared per batch
    kGates,       ///< w = 1 that multiplies the channel wherever it is read; squared per example
};
struct TaylorOptions {
    int64_t batches = 8;  ///< at most; fewer when the calibration data ends
    int64_t batch_size = 64;
    TaylorForm form = TaylorForm::kSquared;
    TaylorAt at = TaylorAt::kParameters;
};
/// First-order Taylor importance (Molchanov et al., arXiv 1906.10771): the squared change of the loss that setting a
/// channel's parameters to zero would make to first order, (sum of w * dL/dw)^2, averaged over batches. The sum runs
/// over the parameters of the group that produce or scale the channel; or w is a gate behind them, which counts a
/// convolution followed by a batch norm once instead of twice. Needs labelled calibration data.
std::unique_ptr<Criterion> taylor(TaylorOptions options = {});

struct FisherOptions {
    int64_t batches = 256;   ///< at most; fewer when the calibration data ends
    int64_t batch_size = 1;  ///< 1: gradients of single examples; more is faster and only an approximation
};
/// Optimal brain damage for channels: sum over the parameters that produce or scale a channel of 1/2 w^2 E[(dL/dw)^2],
/// the diagonal of the empirical Fisher matrix in the place of the Hessian. Needs labelled calibration data.
std::unique_ptr<Criterion> fisher(FisherOptions options = {});

/// How much calibration data a criterion runs through the model.
struct ObserveOptions {
    int64_t batches = 8;  ///< at most; fewer when the calibration data ends
    int64_t batch_size = 64;
};
/// The five below look at the values that the next layers read (after norm and activation), or, of a group that no
/// layer reads, at those that its own layers write; the mean over them where there are several. They need calibration
/// data without labels.

/// Share of the activations that are not zero: 1 - APoZ (Hu et al., arXiv 1607.03250).
std::unique_ptr<Criterion> apoz(ObserveOptions options = {});

/// Mean absolute activation (Molchanov et al., arXiv 1611.06440).
std::unique_ptr<Criterion> mean_activation(ObserveOptions options = {});

/// Mean rank of the feature maps (Lin et al., arXiv 2002.10179).
std::unique_ptr<Criterion> hrank(ObserveOptions options = {});

/// Channel independence (Sui et al., arXiv 2110.13981): the change of the nuclear norm of all feature maps of a layer
/// when the channel's map is left out, averaged over examples. Eigenvalues of one matrix per channel and example: slow
/// on wide layers, hence one batch.
std::unique_ptr<Criterion> chip(ObserveOptions options = {1, 64});

enum class WandaWeights { kRead, kMade, kBoth };  ///< those that read a channel, those that make it
struct WandaOptions {
    ObserveOptions observe;
    WandaWeights weights = WandaWeights::kRead;
};
/// |weight| x norm of its input (Sun et al., arXiv 2306.11695), summed over the weights of convolutions, linear and
/// recurrent layers that read the channel. A channel that none reads is scored by the weights that make it. Needs
/// calibration data without labels.
std::unique_ptr<Criterion> wanda(WandaOptions options = {});

struct ReconstructionOptions {
    ObserveOptions observe;
    int64_t positions = 16;  ///< of a feature map or sequence, drawn per example
    bool refit = false;      ///< the error after the other weights are fitted anew, as refit() does
    double ridge = 0.01;     ///< for refit: added to the moments, as a share of their mean diagonal
};
/// Greedy choice of the channels that the next layers miss least (ThiNet, Luo et al., arXiv 1707.06342). The score is
/// the relative squared error of what those layers compute when the channel goes, after all that score less: comparable
/// between layers without a normaliser. A group that no layer reads reconstructs its own values. Needs calibration data
/// without labels.
std::unique_ptr<Criterion> reconstruction(ReconstructionOptions options = {});

struct RefitOptions {
    ObserveOptions observe;
    int64_t positions = 16;  ///< of a feature map or sequence, drawn per example
    double ridge = 1e-3;     ///< pull towards the weights as they were, as a share of the inputs' mean square
};
/// Least-squares re-fit after a cut (He et al., arXiv 1707.06168; ThiNet, arXiv 1707.06342): the weights and bias of
/// every layer that lost inputs become those whose outputs are closest, in the mean square over the calibration data,
/// to what the layer of `original` puts out. Layers in the order of the graph, each on what the re-fitted ones before
/// it give. Depthwise, grouped and transposed convolutions and shared weights stay as they are. Changes `smaller` in
/// place and adds context.facts["refit"]: per layer the relative squared error before and after.
/// @param smaller  cut(original, ..., groups, removal)
/// @throws InvalidArgument without calibration data
void refit(Model& smaller, const Model& original, const Groups& groups, const Removal& removal,
           const RefitOptions& options, Context& context);

// --------------------------------------------------------------------------------------------------------- allocation

/// How scores of different groups are made comparable for a global ranking (arXiv 2301.12900, section 3.3).
enum class Normaliser { kNone, kMean, kMax, kSum, kL2, kStandard };

/// One operator as it would run at other widths: what a Stopwatch times.
struct OperatorRun {
    const torch::jit::Node* node = nullptr;  ///< whose operator runs
    /// Per input of the node. Tensors are on the meta device: shape, dtype and memory format without data.
    std::vector<c10::IValue> arguments;
    std::vector<bool> weight;  ///< per input: a parameter, read from memory; else the operator before has just made it
    std::string key;           ///< equal for runs that do the same

    std::string op() const;                            ///< "aten::conv2d"
    std::vector<std::vector<int64_t>> shapes() const;  ///< of the tensors among the arguments, lists flattened
};

/// Time of one model as a share of another's.
struct TimeRatio {
    double median = 1, low = 1, high = 1;  ///< of the pairs, with the 95 % interval of the median
    double before_ms = 0, after_ms = 0;    ///< medians
    int64_t pairs = 0;
};

/// Takes times, for targets that are measured. Tests bring one that computes them.
class Stopwatch {
public:
    virtual ~Stopwatch() = default;
    /// Seconds of each run; NaN for one that fails, because a number in its arguments does not fit its widths.
    /// @param weight_bytes  of the model that the runs are part of: what fits in a cache stays there between two runs
    virtual std::vector<double> seconds(const std::vector<OperatorRun>& runs, int64_t weight_bytes) const = 0;
    /// Both models in the form that deploy makes (folded, fused, channels-last), in interleaved pairs.
    virtual TimeRatio ratio(const Model& before, const Model& after, const Inputs& example) const = 0;
};

/// This machine's clock, with LibTorch's current number of threads. Operators are run in rounds in random order, and
/// the fastest of their runs counts, because other programs only add time. Each distinct run is timed once per process.
/// @param interrupted  polled; true ends measuring with Interrupted
std::shared_ptr<const Stopwatch> wall_clock(std::function<bool()> interrupted = {});
/// The same in CPU seconds of all threads, which stand for energy where there is no counter.
std::shared_ptr<const Stopwatch> cpu_clock(std::function<bool()> interrupted = {});

/// Size of a tensor dimension as a function of the channels kept: fixed + sum over groups of kept[group] * per_channel.
struct Width {
    double fixed = 0, original = 1;
    std::vector<std::pair<size_t, double>> terms;
    double at(const std::vector<int64_t>& kept) const;
    double ratio(const std::vector<int64_t>& kept) const { return at(kept) / original; }
};

struct Target;

/// Seconds of the model as a function of the channels kept: the sum over its operators, each timed by itself at a grid
/// of widths and interpolated between them (the tables of NetAdapt, arXiv 1804.03230). Operators are taken as deploy
/// leaves them: batch norms behind a convolution or linear layer are part of it, activations work in place, images are
/// channels-last. What only views its input costs nothing. Copies share.
class LatencyModel {
public:
    LatencyModel(const Model& model, const Inputs& example, const Groups& groups,
                 std::shared_ptr<const Stopwatch> stopwatch);

    /// Times the grid behind seconds(): per operator and width up to five widths between those that `target` allows.
    void tabulate(const Target& target);
    /// @param kept  channels kept per group. @throws InternalError before tabulate()
    double seconds(const std::vector<int64_t>& kept) const;

    /// A group, and the channels kept of every group.
    struct Question {
        size_t group = 0;
        std::vector<int64_t> kept;
    };
    /// Seconds of the operators that the group's channels pass through, timed at exactly these widths.
    std::vector<double> measure(const std::vector<Question>& questions) const;

    size_t operators() const;
    /// Layers that could not be run by themselves and count as nothing.
    const std::vector<std::string>& not_timed() const;

private:
    struct State;
    std::shared_ptr<State> state_;
};

/// Multiply-adds, parameters and bytes of the model as a function of the channels kept, without cutting.
class CostModel {
public:
    /// No layers: all are counted as one per channel of each group, for allocation without a graph.
    explicit CostModel(const Groups& groups);
    CostModel(const Model& model, const Inputs& example, const Groups& groups);

    double baseline_macs() const { return baseline_macs_; }
    double baseline_parameters() const { return baseline_parameters_; }
    /// @param kept  channels kept per group
    double macs(const std::vector<int64_t>& kept) const;
    double parameters(const std::vector<int64_t>& kept) const;
    double bytes(const std::vector<int64_t>& kept) const;  ///< of parameters and buffers

    /// What seconds() asks; needs tabulate() first.
    void set_latency(LatencyModel latency) { latency_ = std::move(latency); }
    /// @throws InvalidArgument without set_latency()
    double seconds(const std::vector<int64_t>& kept) const;

private:
    /// amount x product of the ratios of its widths.
    struct Term {
        double amount = 0;
        std::vector<size_t> widths;
    };
    double total(const std::vector<Term>& terms, const std::vector<int64_t>& kept) const;
    std::vector<Width> widths_;
    std::vector<Term> mac_terms_, parameter_terms_, byte_terms_;
    double baseline_macs_ = 0, baseline_parameters_ = 0;
    std::optional<LatencyModel> latency_;
};

/// Quality of the model with a share of one group's channels cut, and nothing else.
struct SensitivityPoint {
    size_t group = 0;
    double ratio = 0;    ///< share of the group's channels that went; 0: the whole model
    double quality = 0;  ///< higher is better
};

/// Cuts one group after the other at each of `ratios`, the lowest scores first, and evaluates: the curves of Li et al.
/// (arXiv 1608.08710, figure 2) for groups. Each group's first point is the uncut model. Groups that `target` ignores
/// or fixes are left out, and widths are rounded as it says.
/// @param evaluate  higher is better
std::vector<SensitivityPoint> sensitivity_curves(const Model& model, const Facts& facts, const Groups& groups,
                                                 const std::vector<at::Tensor>& scores, const Target& target,
                                                 const std::vector<double>& ratios, Context& context);

/// What to reach, and within which bounds.
struct Target {
    double ratio = 0.5;  ///< share of the prunable channels to remove, [0, 1)
    /// Share to keep of the multiply-adds, the parameters, the bytes of parameters and buffers, the time or the CPU
    /// seconds, each (0, 1]. At most one may be given; it overrides ratio.
    std::optional<double> macs_ratio, params_ratio, size_ratio, latency_ratio, energy_ratio;
    int64_t round_to = 8;       ///< widths kept are multiples of this where the original width is; 1: any
    int64_t min_channels = 1;   ///< least width kept of a group
    double max_ratio = 0.9;     ///< largest share removed of any one group, (0, 1)
    std::vector<bool> ignored;  ///< per group; empty: none
    /// Per group: the share removed whatever the target asks of the others, [0, 1); beats max_ratio. Empty: none.
    std::vector<std::optional<double>> fixed;
    std::vector<int64_t> steps;                 ///< per group: takes the place of round_to, in channels; empty: none
    std::vector<SensitivityPoint> sensitivity;  ///< what sensitivity() allocates by
};

/// Decides which channels go.
class Allocation {
public:
    virtual ~Allocation() = default;
    /// @param scores  as Criterion::scores gives them
    /// @throws InvalidArgument when the target cannot be reached within its bounds, naming what can
    virtual Removal allocate(const Groups& groups, const std::vector<at::Tensor>& scores, const CostModel& cost,
                             const Target& target) const = 0;
    /// Shares of a group at which the allocation must know the quality, for Target::sensitivity; empty: at none.
    virtual std::vector<double> sensitivity_ratios() const { return {}; }
};

/// The same share of every group, the lowest scores first.
std::unique_ptr<Allocation> uniform();
/// One ranking over all groups, scores made comparable by `normaliser`.
std::unique_ptr<Allocation> global(Normaliser normaliser = Normaliser::kMean);
/// Fang et al., arXiv 2407.04616: one ranking, with the same share removed, per class of groups whose sub-structures
/// are isomorphic: as many slices of the same operators, read, produced or scaled the same way, whatever their sizes.
/// Scores within a class are of one kind, so by default they are compared as they are.
std::unique_ptr<Allocation> isomorphic(Normaliser normaliser = Normaliser::kNone);
/// Takes the channels that lose the least score per unit of the target that they save (millisecond, multiply-add,
/// byte, or channel for `ratio`), step by step, looking several widths ahead where the next one saves nothing. The
/// greedy form of a knapsack of channels, as HALP (arXiv 2110.10811) has it for time.
std::unique_ptr<Allocation> greedy(Normaliser normaliser = Normaliser::kMean);
/// Keeps the sum of the drops in quality low: the least drop per unit of the target saved goes first. Drops are those
/// of Target::sensitivity, linear between the measured shares and, beyond the last, along its slope.
/// @param ratios  at which to measure, rising, in (0, 1)
std::unique_ptr<Allocation> sensitivity(std::vector<double> ratios = {0.25, 0.5, 0.75});

// -------------------------------------------------------------------------------------------------------------- stage

/// The share of its channels that a layer loses, whatever the target asks of the others; 0 keeps it whole.
struct LayerRatio {
    std::string pattern;  ///< regular expression on layer names
    double ratio = 0;     ///< [0, 1)
};

class Schedule;

struct ChannelPruningOptions {
    Target target;
    GroupOptions groups;
    std::vector<std::string> ignore;  ///< regular expressions on layer names: their outputs keep all channels
    /// A layer takes the ratio of the last pattern that matches it, and a group of coupled layers the smallest one of
    /// its layers; layers without a ratio have no say. `ignore` is stronger.
    std::vector<LayerRatio> layers;
    /// Widths are multiples of what this machine's kernels step by, 4, 8, 16 or 32 per group, found by measuring.
    bool round_to_measured = false;
    /// A cut that does not make the operators around it at least 1.05 times faster, measured, is not made.
    bool only_faster = false;
    std::shared_ptr<const Stopwatch> stopwatch;  ///< null: cpu_clock() with an energy_ratio, else wall_clock()
    /// Re-fit of the layers that read what was removed; none: the weights that stay keep their values.
    std::optional<RefitOptions> refit;
    int64_t bn_batches = 0;  ///< batches of calibration data to estimate batch-norm statistics anew; 0: keep
    int64_t bn_batch_size = 128;
    std::shared_ptr<const Schedule> schedule;  ///< null: one_shot()
    /// The channels are scored anew after each step. After each, too, batch norm is estimated where bn_batches says so.
    int64_t steps = 1;
    /// A TorchScript file of the same model, earlier in its training: what is left gets its values. See rewind().
    std::string rewind_to;
};

/// Stage prune.channel: finds groups, scores, allocates, cuts, and records one change per layer. With a latency_ratio
/// or energy_ratio the cut model is timed against the model before it, both as deploy would leave them, and when it
/// misses the target by over 2 % the allocation is repeated for a corrected one, three times at most.
std::unique_ptr<Stage> channel_pruning(std::unique_ptr<Criterion> criterion, std::unique_ptr<Allocation> allocation,
                                       ChannelPruningOptions options = {});

/// Estimates the running mean and variance of every batch norm anew as the average over `batches` batches of `data`.
/// The model is changed in place. @throws InvalidArgument when `data` is empty
void reestimate_batch_norm(Model& model, const Dataset& data, int64_t batches, int64_t batch_size, uint64_t seed);

// ------------------------------------------------------------------------------------------------------------- tables

const std::vector<Entry<Criterion>>& criteria();
const std::vector<Entry<Allocation>>& allocations();
/// Stages of this module by recipe name; those that train are in training_stages().
const std::vector<Entry<Stage>>& stages();

// ----------------------------------------------------------------------------------------------------- single weights

/// What a criterion wants to know about the inputs of a layer, from the calibration data.
enum class InputStatistic { kNone, kSquares, kGram };

/// A layer's weight as matrices: a row is an output, a column what the output is a sum over. The columns of a
/// convolution are ordered [k..., in_channels / groups].
struct WeightMatrix {
    std::string layer;
    at::Tensor weight;   ///< float64 [groups, rows, columns]
    at::Tensor squares;  ///< float64 [groups, columns], sum of x_j^2; undefined unless asked for
    at::Tensor gram;     ///< float64 [groups, columns, columns], sum of x_j x_k; undefined unless asked for
};

/// Which weights may go together.
class WeightPattern {
public:
    virtual ~WeightPattern() = default;
    virtual std::string name() const = 0;  ///< "2:4"
    /// A unit of decision is rows() x columns() weights; both divide a layer's, or it is kept as it is.
    virtual int64_t rows() const { return 1; }
    virtual int64_t columns() const { return 1; }
    /// The share of zeros where the pattern fixes it.
    virtual std::optional<double> sparsity() const { return std::nullopt; }
    /// Scores per unit, [groups, rows / rows(), columns / columns()], higher for what matters more.
    virtual at::Tensor units(const at::Tensor& scores) const;
    /// From a mask over units to one over weights of the shape of `scores`.
    virtual at::Tensor expand(const at::Tensor& units, const at::Tensor& scores) const;
    /// Bool like `scores`: false for the share `sparsity` of the units with the lowest scores, rounded to whole units;
    /// among equals the first go. @param per_row  the same number from every row
    virtual at::Tensor keep(const at::Tensor& scores, double sparsity, bool per_row) const;
};

/// Each weight on its own.
std::unique_ptr<WeightPattern> unstructured();
/// At most n of m neighbouring inputs of an output stay (arXiv 2104.08378).
std::unique_ptr<WeightPattern> n_of_m(int64_t n, int64_t m);
/// Blocks of `rows` outputs x `columns` inputs.
std::unique_ptr<WeightPattern> block(int64_t rows, int64_t columns);

/// Says how much each weight matters; may adjust the weights that stay.
class WeightCriterion {
public:
    virtual ~WeightCriterion() = default;
    virtual Needs needs() const { return {}; }
    virtual InputStatistic inputs() const { return InputStatistic::kNone; }
    /// float64 [groups, rows, columns], not negative, higher for what matters more.
    virtual at::Tensor scores(const WeightMatrix& matrix) const = 0;
    /// The weight with the share `sparsity` set to zero. By default those with the lowest scores, the others unchanged.
    virtual at::Tensor prune(const WeightMatrix& matrix, const WeightPattern& pattern, double sparsity,
                             bool per_row) const;
};

/// |w|. Needs no data.
std::unique_ptr<WeightCriterion> weight_magnitude();
/// |w| times the norm of its input (Sun et al., arXiv 2306.11695); the paper compares within a row.
std::unique_ptr<WeightCriterion> weight_wanda();

struct SparseGptOptions {
    double damping = 0.01;        ///< share of the mean diagonal that is added to the diagonal of X X^T, (0, 1]
    int64_t block_columns = 128;  ///< columns whose mask is chosen at once
};
/// Removes weights column by column and moves each one's error on to the columns behind it (Frantar and Alistarh, arXiv
/// 2301.00774), so that the outputs on the calibration data change least. float64 throughout.
/// @throws UnsupportedModel for a layer of more than 16384 columns
std::unique_ptr<WeightCriterion> sparsegpt(SparseGptOptions options = {});

struct WeightPruningOptions {
    double sparsity = 0.5;            ///< share of the weights to set to zero, [0, 1); not for patterns that fix it
    std::string scope = "layer";      ///< layer: the same share of each; row: of each output; global: one ranking
    std::vector<std::string> ignore;  ///< regular expressions on layer names
    int64_t min_size = 0;             ///< layers with fewer weights are kept
    bool embeddings = false;          ///< also those; criteria that need inputs keep them
    int64_t samples = 128;            ///< calibration examples, at most
    int64_t batch_size = 32;
    bool sequential = true;  ///< a layer's inputs come from a model whose earlier layers are pruned
};

/// Stage prune.weight: zeros in the weights of convolutions, linear layers and embeddings. Shapes stay: the file
/// shrinks because it is deflated, but stock dense kernels run no faster, which the result says (context.facts "note").
/// Later training keeps the zeros with `keep_zeros` of train.finetune.
std::unique_ptr<Stage> weight_pruning(std::unique_ptr<WeightCriterion> criterion,
                                      std::unique_ptr<WeightPattern> pattern, WeightPruningOptions options = {});

// --------------------------------------------------------------------------------------------------------- schedules

/// How much is removed at a time, from nothing to the target.
class Schedule {
public:
    virtual ~Schedule() = default;
    /// Share removed at `time`, 0 before the first step and 1 at the last, when `target` is the share removed in the
    /// end: never falling, `target` at 1. The share is one of channels, multiply-adds, ..., whatever the target counts.
    virtual double removed(double time, double target) const = 0;
    /// All at once: a second step would change nothing.
    virtual bool at_once() const { return false; }
};

/// The whole target from the beginning.
std::unique_ptr<Schedule> one_shot();
/// Equal steps: target t.
std::unique_ptr<Schedule> linear();
/// Zhu and Gupta, arXiv 1710.01878: s_f + (s_i - s_f) (1 - t)^3, fast at first, while there is much to spare.
/// @param initial  s_i as a share of the target s_f, in [0, 1]
std::unique_ptr<Schedule> cubic(double initial = 0);
/// The same share of what is left in every step, as in the lottery ticket's iterative pruning (arXiv 1803.03635):
/// 1 - (1 - target)^t.
std::unique_ptr<Schedule> exponential();

/// `target` as it is at `time` of `schedule`: its ratio, budget and fixed ratios.
Target at_time(const Target& target, const Schedule& schedule, double time);

/// Scores of all channels after `steps` - 1 of `steps` equally long steps: after each the channels chosen so far are
/// cut, `prepare` (batch norm, say; may be null) is run on the smaller model and its channels are scored anew. Channels
/// that went rank below those that stay, the last to go highest: one comes back only where a later, rounded target has
/// room for it again. The caller allocates the final target by what is returned.
/// @param grouping  what `groups` were found with
/// @throws InvalidArgument when there are several steps and the schedule is one_shot, or the other way round
std::vector<at::Tensor> scores_in_steps(const Model& model, const Facts& facts, const Groups& groups,
                                        const Criterion& criterion, const Allocation& allocation, const CostModel& cost,
                                        Target target, const Schedule& schedule, int64_t steps,
                                        const std::function<void(Model&)>& prepare, Context& context,
                                        const GroupOptions& grouping = {});

// ----------------------------------------------------------------------------------------------------------- training

/// Masks for training loops: channels that are to go are zero in a model of full width, until cut() removes them.
///
///     prune::Masker masker(model, example);
///     const auto module = trainable(model);
///     Target target;
///     for (const double ratio : {0.25, 0.5}) {
///         target.ratio = ratio;
///         masker.grow(*magnitude(), *uniform(), target, context);
///         Trainer(options).fit(*module, data, *cross_entropy(), {}, masker.callbacks());
///     }
///     const Model smaller = masker.cut();
///
/// Attention in one fused operator is masked inside, too (see unfuse_attention()): the model keeps it, and cut() gives
/// the model with it taken apart.
///
/// A loop of its own calls mask_gradients() before the optimizer's step and apply() after it. Every parameter of a
/// masked channel is zero, also those that read it: for groups that are exact the masked model equals the cut one, in
/// training and in eval mode, unless an operator without parameters mixes channels after an activation that is not zero
/// at zero (a sum over sigmoids). The values from before come back when a channel is unmasked. Copies share.
class Masker {
public:
    /// @param soft  soft filter pruning (He et al., arXiv 1808.06866): masks are applied once, by mask() and grow(), to
    ///              the weights and biases of the layers that produce the channels; training may let them grow back
    Masker(const Model& model, const Inputs& example, bool soft = false, const GroupOptions& grouping = {});

    const Groups& groups() const;
    const CostModel& cost() const;
    const Removal& removal() const;  ///< what is masked
    /// Masks these channels, and no others, from now on. @throws InvalidArgument as cut() does
    void mask(const Removal& removal);
    /// Scores the channels of the model as it would be cut now, and masks what `allocation` chooses for `target`. See
    /// scores_in_steps() for how channels already masked rank; soft masks are all scored anew, in the full model.
    void grow(const Criterion& criterion, const Allocation& allocation, const Target& target, Context& context);
    /// Sets masked parameters to zero; nothing when soft.
    void apply();
    /// Sets the gradients of masked parameters to zero; nothing when soft.
    void mask_gradients();
    /// on_gradients and after_step that keep masked parameters at zero, behind those of `others`.
    TrainCallbacks callbacks(TrainCallbacks others = {}) const;

    /// Masks, scores and stored values: what a checkpoint needs besides the model. After the tensors were overwritten,
    /// restore() makes the masks those that they say.
    std::vector<std::pair<std::string, at::Tensor>> state() const;
    void restore();

    /// The model without the masked channels; the masked one is left as it is.
    Model cut() const;

private:
    struct State;
    std::shared_ptr<State> state_;
};

/// A penalty on the parameters of one model that draws whole channels towards zero while it trains.
class Penalty {
public:
    virtual ~Penalty() = default;
    /// Adds its gradient to those of the parameters: TrainCallbacks::on_gradients, once a step.
    virtual void add_gradients() = 0;
    /// Its value now. Strengths that are chosen by the parameters count as constants, as in the gradient.
    virtual double value() const = 0;
    /// What changes from step to step besides the parameters, for checkpoints; may be overwritten in place.
    virtual std::vector<std::pair<std::string, at::Tensor>> state() const { return {}; }
};

/// Makes penalties.
class Regulariser {
public:
    virtual ~Regulariser() = default;
    virtual Needs needs() const { return {}; }
    /// @param groups  found on `model`, whose parameters the penalty speaks of
    /// @throws UnsupportedModel when it has nothing to act on
    virtual std::unique_ptr<Penalty> bind(const Model& model, const Groups& groups, Context& context) const = 0;
};

/// strength x the sum over batch-norm scales of channels that can go of |scale| (Liu et al., arXiv 1708.06519).
/// @throws UnsupportedModel when no channel is scaled by a batch norm
std::unique_ptr<Regulariser> bn_slimming(double strength = 1e-4);
/// strength x the sum over channels of the L2 norm of all parameters that vanish with the channel (Wen et al., arXiv
/// 1608.03665, over coupled layers as in 2301.12900).
std::unique_ptr<Regulariser> group_lasso(double strength = 1e-4);
/// The sparse training of DepGraph (Fang et al., arXiv 2301.12900, section 3.3): strength / 2 x the sum over channels
/// of 2^(alpha (I_max - I_c) / (I_max - I_min)) I_c, where I_c is the sum of squares of all parameters that vanish with
/// channel c, and extremes are those of its group, in each step anew. The weakest channel of a group is drawn to zero
/// 2^alpha times as hard as the strongest. @param alpha  at least 0
std::unique_ptr<Regulariser> group_norm(double strength = 5e-4, double alpha = 4);

struct GregOptions {
    Target target;
    double increment = 1e-4;   ///< what the penalty grows by
    int64_t every_steps = 10;  ///< steps between two increments
    double ceiling = 1;        ///< where it stops growing
};
/// GReg-1 (Wang et al., arXiv 2012.09243): the channels to go are chosen at the beginning, then lambda / 2 x the sum of
/// squares of all parameters that vanish with them is added, where lambda grows with the steps up to a ceiling. The
/// paper penalises the filters of one layer; this is the whole group, so that a batch norm cannot undo it.
std::unique_ptr<Regulariser> greg(std::unique_ptr<Criterion> criterion, std::unique_ptr<Allocation> allocation,
                                  GregOptions options = {});

/// Lottery-ticket rewinding (Frankle and Carbin, arXiv 1803.03635, by channels): `early`, an earlier state of `model`,
/// without the channels of `removal`, which were chosen for `model`: every weight that is left has its early value.
/// @throws InvalidArgument naming the first parameter or buffer that differs in name, shape or type
Model rewind(const Model& model, const Model& early, const Inputs& example, const Removal& removal,
             const GroupOptions& grouping = {});

const std::vector<Entry<Schedule>>& schedules();
const std::vector<Entry<Regulariser>>& regularisers();
/// Stages prune.gradual, prune.movement and prune.sparse_learning (in C++: prune_training.h). @param losses  what
/// `loss:` may name
std::vector<Entry<Stage>> training_stages(std::vector<Entry<Loss>> losses);

struct CsrOptions {
    double least_sparsity = 0.7;                 ///< share of zeros from which a layer is measured, [0, 1]
    std::vector<std::string> ignore;             ///< regular expressions on layer names
    std::shared_ptr<const Stopwatch> stopwatch;  ///< null: wall_clock()
};

/// Stage prune.csr: float32 weights of linear layers as compressed sparse rows, which stock LibTorch saves, loads and
/// multiplies with (by MKL, on x86 CPUs). Each layer is replaced only where that is measured faster on the example's
/// input: the interval of the ratio of times lies below 0.95. The result is for inference; put the stage behind the
/// last training. context.facts gets "layers_sparse", "layers_measured", "threads".
std::unique_ptr<Stage> sparse_rows(CsrOptions options = {});

const std::vector<Entry<WeightCriterion>>& weight_criteria();
const std::vector<Entry<WeightPattern>>& weight_patterns();

// -------------------------------------------------------------------------------------------------------------- depth

/// y = x + f(x) in a model's graph: what can go as a whole.
struct ResidualBlock {
    std::string name;  ///< of the module that its parameters lie in, with a number where two share it
    torch::jit::Node* add = nullptr;
    torch::jit::Value* input = nullptr;    ///< x
    std::vector<torch::jit::Node*> nodes;  ///< of f, in order
    std::vector<std::string> parameters;   ///< that f reads, buffers included
};

/// All residual blocks, in order; one may lie inside another. f reads x and computes nothing that others read; a branch
/// without parameters is none.
std::vector<ResidualBlock> find_residual_blocks(const Model& model, const Facts& facts);

/// The model with x in the place of x + f(x): equals the original with f(x) multiplied by zero.
/// @throws InvalidArgument when there is no block of this name
Model remove_block(const Model& model, const Inputs& example, const std::string& name);

/// Says how much each residual block matters.
class BlockCriterion {
public:
    virtual ~BlockCriterion() = default;
    virtual Needs needs() const { return {}; }
    /// One number per block, higher for what matters more.
    virtual std::vector<double> scores(const Model& model, const std::vector<ResidualBlock>& blocks,
                                       Context& context) const = 0;
};

/// 1 - cosine similarity of a block's input and output, a vector over channels per position, averaged over the
/// calibration data (block influence of ShortGPT, Men et al., arXiv 2403.03853).
std::unique_ptr<BlockCriterion> block_similarity(int64_t samples = 128, int64_t batch_size = 32);
/// The drop of the recipe's metric when the block alone is removed. Needs context.evaluate.
std::unique_ptr<BlockCriterion> block_evaluation();
/// Uniformly random: the baseline.
std::unique_ptr<BlockCriterion> random_blocks(uint64_t seed = 0);

struct DepthPruningOptions {
    int64_t blocks = 1;                ///< to remove
    std::optional<double> macs_ratio;  ///< share of the multiply-adds to keep, (0, 1]; instead of `blocks`
    std::vector<std::string> ignore;   ///< regular expressions on block names
};

/// Stage prune.depth: removes the residual block that matters least, scores what is left again, and so on. Encoder
/// layers in one fused operator are taken apart first, see unfuse_attention().
std::unique_ptr<Stage> depth_pruning(std::unique_ptr<BlockCriterion> criterion, DepthPruningOptions options = {});

const std::vector<Entry<BlockCriterion>>& block_criteria();

}  // namespace coppice::prune
