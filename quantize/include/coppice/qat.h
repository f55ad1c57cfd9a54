/// Quantization-aware training: fake quantization with gradients, for C++ training loops and for the stage
/// quantize.qat.
///
///     struct Net : torch::nn::Module {                          // in a torch::nn model
///         FakeQuantize weights{FakeQuantize(weights_of(8))}, values{FakeQuantize(FakeQuantizeOptions())};
///         ...  x = torch::conv2d(values(x), weights(conv->weight));
///     };
///
///     auto training = coppice::quantize::prepare(model, example, calibration, options);   // a TorchScript model
///     auto training = coppice::quantize::prepare(net, forward, example, calibration, options);    // or torch::nn
///     Trainer(settings).fit(*training.trainable(), data, loss);       // or a loop of your own over its forward()
///     auto result = coppice::quantize::convert(training);       // int8, or simulated below 8 bits
#pragma once

#include <optional>

#include <coppice/quantize.h>
#include <coppice/trace.h>
#include <coppice/train.h>

namespace coppice::quantize {

// --------------------------------------------------------------------------------------------------------- quantizers

/// What one fake quantization knows: x' = scale * (clamp(round(x / scale) + zero_point, lowest, highest) - zero_point).
struct QuantizerState {
    int64_t lowest = 0, highest = 255;
    int64_t channel = -1;  ///< dimension with a scale per index; -1: one scale
    bool weight = false;   ///< values are a parameter: statistics are over all of it, not per example
    bool affine = false;   ///< the zero point follows `offset`; else it is 0
    at::Tensor least;      ///< float32 [channels or 1] that a learned scale does not go below; undefined or 0: none
    at::Tensor learned;    ///< float32 [channels or 1]: the scale, or what the quantizer derives it from
    at::Tensor offset;     ///< float32 [channels or 1]: affine: the real number that `lowest` stands for
};

/// How scales are found and what their gradients are. Gradients of values pass where they lie inside the range and are
/// zero outside (the straight-through estimator, Bengio et al., arXiv 1308.3432).
class Quantizer {
public:
    virtual ~Quantizer() = default;
    /// True when scales follow the loss; else they follow the values.
    virtual bool learns() const = 0;
    /// False: weights take minmax() instead.
    virtual bool for_weights() const { return true; }
    /// True when its activations have a zero point of their own.
    virtual bool offsets() const { return false; }
    /// True when activations of both signs end as far below zero as above, at -highest; else at -highest - 1. With 8
    /// bits all do that, as int8 kernels.
    virtual bool mirrors() const { return false; }
    /// Sets state.learned and state.offset from the first values. A channel of zeros gets scale 1.
    virtual void start(QuantizerState& state, const at::Tensor& values) const = 0;
    /// Called until frozen with every training batch, and unless learns() with weights whenever they are used.
    virtual void watch(QuantizerState& state, const at::Tensor& values) const { (void)state, (void)values; }
    /// Sets them so that the integers cover `range`, as an observer found it; width zero gets scale 1.
    virtual void start_at(QuantizerState& state, Range range) const;
    /// float32 [channels or 1], positive.
    virtual at::Tensor scale(const QuantizerState& state) const = 0;
    /// The rounded values, with gradients for them and, if learns(), for state.learned and state.offset.
    virtual at::Tensor apply(const QuantizerState& state, const at::Tensor& values) const = 0;
};

/// Learned step size (Esser et al., arXiv 1902.08153): dx'/ds = round(x/s) - x/s inside, the end's integer outside;
/// the gradient is scaled by 1 / sqrt(N Q), N values of a channel of a weight or of one example of an activation, Q the
/// highest integer. Starts at the shrunken range with the least squared error, not at the paper's 2 E|x| / sqrt(Q),
/// from which only long trainings recover, and stays above 1/16 of that. Affine: the offset is not learned, it stays
/// where it started.
std::unique_ptr<Quantizer> lsq();

/// LSQ with a learned offset (Bhalgat et al., arXiv 2004.09576): affine activations learn the real number b that the
/// lowest integer stands for, db = 1 outside the range and 0 inside. Weights start at max |mean +- 3 deviations| / Q,
/// activations at the shrunken min-max range with the least squared error. The offset is rounded to a multiple of the
/// scale, so that zero stays exact: padding needs it, and int8 kernels know no other.
std::unique_ptr<Quantizer> lsq_plus();

/// Learned clipping value a (Choi et al., arXiv 1805.06085) of activations: [0, a] behind a rectifier, else [-a, a]
/// (in 8 bits from -128/127 a on, int8's least integer); da = 1 where x >= a, -1 (-128/127) where x is at the lower
/// end. The paper's L2 penalty on a is the trainer's weight decay with decay_vectors. Weights take minmax(). Starts at
/// the largest |x|, shrunken to the least squared error.
std::unique_ptr<Quantizer> pact();

/// Ranges from the values themselves: a weight's largest |w| now; for activations a moving average of each training
/// batch's ends (Jacob et al., arXiv 1712.05877); a batch of zeros has ends at zero. @param momentum  weight of the
/// newest batch, in (0, 1]
std::unique_ptr<Quantizer> minmax_range(double momentum = 0.01);

/// Rows: lsq, lsq_plus, minmax, pact.
const std::vector<Entry<Quantizer>>& quantizers();

// ------------------------------------------------------------------------------------------------------ FakeQuantize

struct FakeQuantizeOptions {
    int64_t bits = 8;                            ///< [2, 8]
    bool symmetric = true;                       ///< zero point 0: +-(2^(bits-1) - 1) for weights, for activations
                                                 ///< 0 ... 2^bits - 1 if the first values are not negative, else
                                                 ///< -2^(bits-1) ... 2^(bits-1) - 1; affine: 0 ... 2^bits - 1
    bool weight = false;                         ///< the values are a parameter
    std::optional<bool> negative;                ///< symmetric activations have negative values; unset: see the first
    int64_t channel = -1;                        ///< dimension with a scale per index; -1: one scale
    int64_t channels = 1;                        ///< its size
    std::shared_ptr<const Quantizer> quantizer;  ///< null: lsq()
    int64_t watch_batches = 0;                   ///< training batches that ranges follow, then frozen; 0: all. Only
                                                 ///< of quantizers that do not learn
    /// Activations with one scale: a fresh one of these, histogram() say, sees the values. Its range is where a
    /// quantizer that learns starts; one that does not, minmax_range() say, takes it from here until frozen. null: each
    /// quantizer's own way. What it has seen goes into checkpoints as buffer `observed`.
    std::shared_ptr<const Observer> observer;
};

/// Symmetric weights of `bits` bits, one scale per output channel when `channels` > 0.
FakeQuantizeOptions weights_of(int64_t bits, int64_t channels = 0);

/// Fake quantization as a module. Starts with the first values that it sees, or by start(). Parameters: `learned` and
/// `offset` where the quantizer learns them; they go into checkpoints with everything else, frozen state included.
class FakeQuantizeImpl : public torch::nn::Module {
public:
    /// @throws InvalidArgument naming the option out of its range
    explicit FakeQuantizeImpl(FakeQuantizeOptions options = {});
    /// @param values  float32; an empty tensor is given back and changes nothing
    /// @throws InvalidArgument when dimension `channel` is not of size `channels`
    at::Tensor forward(const at::Tensor& values);
    /// @throws InvalidArgument for an empty tensor, NaN or infinity, and as forward()
    void start(const at::Tensor& values);
    /// Activations: starts at the range that an observer found.
    /// @throws InvalidArgument for weights, and when `range` is not finite
    void start(Range range);
    bool started() const;
    /// Ranges do not follow the values any more.
    void freeze();
    /// float32 [channels or 1]. @throws InvalidArgument, as the next three do, before started()
    at::Tensor scale() const;
    /// Of the unsigned integers 0 ... levels() - 1; one scale only.
    Affine affine() const;
    int64_t levels() const;
    /// int8: what convert() packs. @throws InvalidArgument for other than symmetric weights
    at::Tensor integers(const at::Tensor& values) const;
    const FakeQuantizeOptions& options() const { return options_; }

private:
    QuantizerState state() const;
    void require_start() const;
    Range observe(const at::Tensor& values);
    void set_integers(bool below_zero);
    void keep_from_vanishing(const at::Tensor& has_width);
    FakeQuantizeOptions options_;
    at::Tensor learned_, offset_, least_, counts_;  ///< counts: lowest, highest, batches watched, frozen
    at::Tensor observed_;                           ///< state of the observer; undefined without one
};
TORCH_MODULE(FakeQuantize);

// ---------------------------------------------------------------------------------------------- prepare and convert

struct QatOptions {
    int64_t weight_bits = 8, activation_bits = 8;  ///< [2, 8]
    int64_t first_last_bits = 8;                   ///< of the first and last layer's weights and inputs
    std::shared_ptr<const Quantizer> quantizer;    ///< null: lsq()
    bool per_channel = true;                       ///< one scale per output channel of a weight
    /// Finds the ranges at which scales of activations start, on all of the calibration data, for as many integers as
    /// each has. null: each quantizer's own start, on the first batch.
    std::shared_ptr<const Observer> observer;
    int64_t watch_batches =
        0;  ///< training batches that ranges follow; 0: all. Only where the quantizer does not learn
    /// Batch norms of int8 layers train: each batch is normalised by its own statistics, which the running ones follow,
    /// while the weight is rounded as folded by the running ones (arXiv 1806.08342). Those that cannot,
    /// QatModel::norms() says why, are folded from the beginning, as all are with false.
    bool train_norms = false;
    int64_t norm_batches = 0;         ///< training batches normalised so, later ones by the running statistics; 0: all
    std::vector<std::string> ignore;  ///< as in StaticOptions
    Progress progress;                ///< as in StaticOptions, and while layers() measures
};

/// A model in training whose tensors are rounded at exactly the borders that plan_static() chooses. Copies share.
class QatModel {
public:
    struct Impl;
    explicit QatModel(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
    /// For the Trainer: the model's parameters and the quantizers', named quantizer.LAYER.weight and the like.
    std::unique_ptr<Trainable> trainable() const;
    c10::IValue forward(const Inputs& inputs) const;
    /// The float model under training (batch norms folded, with train_norms as of the last conversion), shared.
    Model model() const;
    /// Layers and reasons as plan_static() found them.
    const StaticPlan& plan() const;
    /// With train_norms: the batch norms that were folded, by name: action "trained", or "folded" with the reason why
    /// it does not train (behind a transposed convolution, say).
    std::vector<LayerChange> norms() const;
    /// True when activations have fewer than 8 bits: convert() gives the simulated model.
    bool simulated() const;
    /// Fake quantizations by name.
    std::vector<std::pair<std::string, FakeQuantize>> quantizers() const;
    /// The plan with the trained weights, scales and zero points. @throws InvalidArgument when simulated()
    StaticPlan trained_plan() const;
    /// Layers with the noise, ranges and clipping of the trained weights and scales, each layer by itself.
    /// @param batches  what they are measured on: the first two
    std::vector<LayerPlan> layers(const std::vector<Inputs>& batches) const;
    const Impl& impl() const { return *impl_; }

private:
    std::shared_ptr<Impl> impl_;
};

/// Folds batch norms, plans as plan_static() does and starts all scales (see QatOptions::observer). With
/// options.train_norms the folding is undone while training and made real by convert(). Dropout is off, as the int8
/// model has it.
/// @throws as plan_static()
QatModel prepare(const Model& model, const Inputs& example, const std::vector<Inputs>& calibration,
                 const QatOptions& options = {});

/// The same for a torch::nn model, which trace() makes TorchScript of: what trains runs `forward` as traced, under the
/// parameters' own names, and starts as a copy. copy_back(*training.trainable(), *module) brings the trained tensors
/// back into `module`, with options.train_norms (where norms() has all of them trained) or where no batch norm was
/// folded.
/// @throws as trace() and plan_static()
QatModel prepare(const std::shared_ptr<torch::nn::Module>& module,
                 const std::function<c10::IValue(const Inputs&)>& forward, const Inputs& example,
                 const std::vector<Inputs>& calibration, const QatOptions& options = {},
                 const TraceOptions& tracing = {});
/// Of one tensor, a torch::nn::Sequential for example.
template <typename Contained>
QatModel prepare(const torch::nn::ModuleHolder<Contained>& module, const Inputs& example,
                 const std::vector<Inputs>& calibration, const QatOptions& options = {},
                 const TraceOptions& tracing = {}) {
    return prepare(trace(module, example, tracing), example, calibration, options);
}

/// 8-bit activations: the int8 model, within a rounding of the fake-quantized one. Fewer: a float model with rounded
/// weights and stock fake-quantization operators, which is neither smaller nor faster than the float model.
/// @throws Error naming the tensor when training diverged: one is not finite, or a scale is 1e10 or more, which
/// LibTorch writes to a file that it does not read
Model convert(const QatModel& model);

/// Stage quantize.qat. @param losses  what `loss:` may name
std::vector<Entry<Stage>> training_stages(std::vector<Entry<Loss>> losses);

}  // namespace coppice::quantize
