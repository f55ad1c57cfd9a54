/// Quantization: a float model becomes one that computes in 8-bit integers, with operators that ship with LibTorch.
///
///     StaticOptions options;                                     // histogram ranges, weights per channel
///     auto plan = coppice::quantize::plan_static(model, example, calibration, options);
///     auto simulated = coppice::quantize::fake_quantized(plan, inputs);   // the same rounding, computed in float
///     auto int8 = coppice::quantize::convert(plan);              // loads with torch::jit::load, without Coppice
///
/// Activations: unsigned 8 bit, affine, one scale per tensor: real = scale * (q - zero_point). Weights: signed 8 bit,
/// symmetric, one scale per output channel. Accumulators are 32 bit, biases stay float32. Scheme: Jacob et al., arXiv
/// 1712.05877; defaults as Wu et al., arXiv 2004.09602.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <coppice/data.h>
#include <coppice/graph.h>
#include <coppice/model.h>
#include <coppice/registry.h>
#include <coppice/stage.h>

namespace coppice::quantize {

// ---------------------------------------------------------------------------------------------------------- observers

/// The real numbers that an activation's integers have to cover.
struct Range {
    double low = 0, high = 0;
};

/// Watches the values of one activation over calibration batches and proposes a range. Memory does not grow with the
/// number of values seen. One range per tensor: LibTorch's int8 operators know activations with one scale and zero
/// point, not one per channel (weights have one scale per channel, without zero point).
class Observer {
public:
    virtual ~Observer() = default;
    /// A new observer of the same kind and settings that has seen nothing.
    virtual std::unique_ptr<Observer> fresh() const = 0;
    /// @param values  any shape and any real type, taken as float32; an empty tensor changes nothing.
    /// @throws UnsupportedModel on NaN or infinity, and on complex or quantized tensors
    virtual void observe(const at::Tensor& values) = 0;
    /// The range to use when it is cut into `levels` integers; {0, 0} when nothing was seen.
    virtual Range range(int64_t levels) const = 0;
    /// What it has seen, for checkpoints: float64 [n], n the same before and after it has seen anything.
    virtual at::Tensor state() const = 0;
    /// Goes on where an observer of the same kind and settings was. @param state  its state()
    /// @throws InvalidArgument when `state` has another size
    virtual void set_state(const at::Tensor& state) = 0;
};

/// Smallest and largest value seen.
std::unique_ptr<Observer> minmax();

/// Exponential moving average of each batch's smallest and largest value; starts with the first batch's.
/// @param momentum  weight of the newest batch, in (0, 1]
std::unique_ptr<Observer> moving_average(double momentum = 0.1);

/// A histogram of fixed size whose range grows by merging bins, and the range with the least squared error of rounding
/// and clipping found over it: each bin's mass is rounded to the integer grid of the candidate range. Candidates shrink
/// either end on a grid of 128 steps, alternately, until none is better.
/// @param bins  at least 128
std::unique_ptr<Observer> histogram(int64_t bins = 2048);

/// The range that leaves `share` of the values out, half of that at each end; values at an end that is zero (behind a
/// ReLU) are not cut. Counted on a growing histogram, so exact to one of its bins. @param share in [0, 0.5)
std::unique_ptr<Observer> percentile(double share = 1e-4, int64_t bins = 2048);

/// The clipping whose rounded histogram has the least Kullback-Leibler divergence from what was seen (TensorRT's
/// calibration, Migacz 2017, on affine grids). @param bins even, at least 512
std::unique_ptr<Observer> entropy(int64_t bins = 2048);

/// Rows: entropy, histogram, minmax, moving_average, percentile.
const std::vector<Entry<Observer>>& observers();

// ---------------------------------------------------------------------------------------------------------- rounding

/// Affine parameters of an activation: q = clamp(round(x / scale) + zero_point, 0, 255), ties to even.
struct Affine {
    double scale = 1;
    int64_t zero_point = 0;
};

/// Parameters by which `range`, widened to hold zero, covers the integers 0 ... levels - 1. Zero is always exact. A
/// range of width zero gets scale 1. @throws InvalidArgument when `range` is not finite
Affine affine(Range range, int64_t levels = 256);

/// The values that the integers stand for, as float: what fake quantization does to an activation.
at::Tensor fake_quantize(const at::Tensor& values, const Affine& parameters);

/// Symmetric int8 weights: q = round(w / scale) in [-127, 127], scale = max |w| / 127 over a channel (or everything).
/// A channel of zeros gets scale 1. @param weight float32; channels in dimension 0
at::Tensor quantize_weight(const at::Tensor& weight, bool per_channel = true);

/// Second moments of the rows that a layer multiplies, over calibration data: what roundings weigh errors by. A
/// convolution's row is one window of its input.
struct InputMoments {
    at::Tensor second;     ///< E[x x^T], float64 [n, n]
    at::Tensor mean;       ///< E[x], float64 [n]
    at::Tensor magnitude;  ///< E[|x|], float64 [n]
    int64_t rows = 0;
};

/// The integers and what they stand for: w[r, c] = scale[r, g] * integers[r, c] + offset[r, g] with g = c / group.
struct RoundedWeight {
    at::Tensor integers;  ///< int64 [rows, n], within [lowest, highest]
    at::Tensor scale;     ///< float32 [rows, n / group], positive
    at::Tensor offset;    ///< float32 [rows, n / group]; zeros when symmetric
    int64_t lowest = 0, highest = 0, group = 0;
    at::Tensor input_factor;  ///< float32 [n] that inputs must be multiplied by (AWQ); undefined: none
    /// float32 [rows, n], input_factor included: what the layer multiplies by in effect.
    at::Tensor values() const;
};

/// The grid that weights are rounded to.
struct GridOptions {
    int64_t bits = 8;        ///< in [2, 8]
    int64_t group = 0;       ///< columns that share a scale; 0: the whole row
    bool symmetric = true;   ///< integers in +-(2^(bits-1) - 1) without offset, else 0 ... 2^bits - 1 with one
    bool half = false;       ///< scale and offset are float16 numbers, as LibTorch's 4-bit rows hold them
    bool one_scale = false;  ///< one scale for all rows
    /// Scales with the least squared error of the weights, of 80 that cover 1 to 1/5 of the range; symmetric integers
    /// then reach down to -2^(bits-1). Else scales cover the range exactly.
    bool least_error = false;
};

/// Settings of brecq().
struct BlockOptions {
    int64_t steps = 1000;     ///< of Adam for each block
    int64_t batch_size = 32;  ///< calibration examples in each step
    /// fisher: an error counts by how much it moves the model's output; mse: all errors of a block's output alike.
    std::string loss = "fisher";
};

/// Turns real weights into integers of a grid. Errors are judged by the layer's output where moments are given:
/// sum over rows of (w - w')^T E[x x^T] (w - w').
class Rounding {
public:
    virtual ~Rounding() = default;
    virtual bool needs_moments() const { return false; }
    /// True when results have an input_factor: for linear layers with float input alone.
    virtual bool scales_inputs() const { return false; }
    /// True when it moves the offsets of affine grids: for weights with float input alone.
    virtual bool moves_offsets() const { return false; }
    /// Not null: layers of a block are rounded together after round(), for quantize.static alone.
    virtual const BlockOptions* blocks() const { return nullptr; }
    /// @param weight  float32 [rows, n]; n is a multiple of the group
    /// @param moments of n-vectors; null unless needs_moments()
    virtual RoundedWeight round(const at::Tensor& weight, const GridOptions& grid,
                                const InputMoments* moments) const = 0;
};

/// Every weight to the nearest integer; the range of each group is covered exactly.
std::unique_ptr<Rounding> nearest();

/// Learns for every weight whether to round up or down (Nagel et al., arXiv 2004.10568), on the second moments instead
/// of samples: the loss is the same, quadratic, and its gradient exact. A row that did not get better than its nearest
/// rounding keeps that. Symmetric and affine grids. @param steps of Adam, at least 1
std::unique_ptr<Rounding> adaround(int64_t steps = 500);

/// Rounds column by column and lets the columns not yet rounded make up for the error (Frantar et al., arXiv
/// 2210.17323). @param damping is added to the moments' diagonal, as a share of its mean
std::unique_ptr<Rounding> gptq(double damping = 0.01);

/// Finds offsets under a norm that forgives outliers, by half-quadratic splitting without data (Badri and Shaji 2023,
/// "Half-Quadratic Quantization"). Affine grids only. @param steps at least 1
std::unique_ptr<Rounding> hqq(int64_t steps = 20);

/// Scales input channels by E[|x|]^a before rounding, so that channels that matter get finer steps; a in [0, 1] with
/// the least output error (Lin et al., arXiv 2306.00978). The layer's input is multiplied by the inverse. @param
/// candidates for a, at least 2
std::unique_ptr<Rounding> awq(int64_t candidates = 20);

/// AdaRound of all layers of a block together, by the block's output (Li et al., arXiv 2102.05426): residual blocks and
/// whatever else lies between two values that everything has to pass. Blocks take their turn from first to last; each
/// sees the rounded ones before it and is judged by the float model's output. round() is adaround(), and a block that
/// did not get better than that keeps it. Symmetric grids. @throws InvalidArgument for steps, batch_size or loss
std::unique_ptr<Rounding> brecq(BlockOptions options = {});

/// Rows: adaround, awq, brecq, gptq, hqq, nearest.
const std::vector<Entry<Rounding>>& roundings();

/// How far a long task is, as Log::progress() takes it.
using Progress = std::function<void(const std::string& task, double done, double total, const std::string& detail)>;

/// Batches of a model's inputs, the same ones in every pass.
class Calibration {
public:
    /// Batches in memory.
    Calibration(std::vector<Inputs> batches);
    /// At most `batches` batches of `batch_size` examples drawn from `data` by `seed`: read in every pass anew, so that
    /// one at a time is in memory. @throws InvalidArgument without data, or for a batch_size below 1
    Calibration(std::shared_ptr<const Dataset> data, int64_t batches, int64_t batch_size, uint64_t seed);
    int64_t size() const { return size_; }
    /// Calls `see` with the first `most` batches in order.
    void each(const std::function<void(const Inputs& batch)>& see, int64_t most = INT64_MAX) const;
    /// All of them at once.
    std::vector<Inputs> read() const;

private:
    std::vector<Inputs> batches_;
    std::shared_ptr<const Dataset> data_;
    int64_t size_ = 0, batch_size_ = 0;
    uint64_t seed_ = 0;
};

struct EqualizeOptions {
    /// Pairs of layers with a ReLU6 (a clamp from zero to any bound) between them.
    /// keep: are left, and the float function stays exactly. relu: the clamp becomes a ReLU, as in the paper; the
    /// function changes where values exceed the bound. calibrated: the clamp stays, and channels are scaled only so far
    /// that it cuts no calibration data that it did not cut; on other data the function may change.
    std::string relu6 = "keep";
    Progress progress;
};

/// Cross-layer equalisation (Nagel et al., arXiv 1906.04721): output channels of a layer and input channels of the
/// next, linear or through relu, are scaled to equal ranges. The float function stays, but for options.relu6.
/// @return pairs of layers treated
/// @throws InvalidArgument when options.relu6 is none of the above, or needs calibration data and there are none
int equalize(Model& model, const Inputs& example, std::vector<LayerChange>* changes = nullptr);
int equalize(Model& model, const Inputs& example, const Calibration& calibration, const EqualizeOptions& options,
             std::vector<LayerChange>* changes = nullptr);

struct SmoothOptions {
    double alpha = 0.5;  ///< (0, 1]: how much of the range moves into the weights
    /// gain: norms behind which rounding noise falls, measured on rows of the calibration data; by at least 1 dB where
    /// something else reads the norm too, which costs a multiplication. free: all that only linear layers read. all.
    std::string norms = "gain";
    // How noise is measured: as quantize.static rounds, weights to the nearest.
    std::shared_ptr<const Observer> observer;  ///< of inputs; null: histogram()
    int64_t weight_bits = 8;
    bool per_channel = true, fit_weights = false;
    Progress progress;
};

/// SmoothQuant (Xiao et al., arXiv 2211.10438): moves outliers from the input of linear layers into their weights, by
/// factors max|x|^alpha / max|w|^(1-alpha) per channel that go into the layer norm before them. What else reads the
/// norm (the residual sum of post-norm transformers) gets its output times these factors (as arXiv 2209.13325 moves a
/// norm's weight behind it). The float function stays.
/// @return layer norms treated
/// @throws InvalidArgument when alpha or norms is none of the above, or there is no calibration data
int smooth(Model& model, const Inputs& example, const Calibration& calibration, const SmoothOptions& options = {},
           std::vector<LayerChange>* changes = nullptr);
int smooth(Model& model, const Inputs& example, const std::vector<Inputs>& calibration,
           const SmoothOptions& options = {}, std::vector<LayerChange>* changes = nullptr);

// --------------------------------------------------------------------------------------------------------------- plan

/// Accuracy-aware fallback: layers go back to float, first those that alone put the most noise on the model's output,
/// until the metric holds.
struct Fallback {
    double max_drop = -1;  ///< points of the recipe's metric that may be lost, at least 0; -1: no fallback
    double seconds = 600;  ///< of searching, positive: no try begins that would end later; the best so far is kept
    bool on() const { return max_drop >= 0; }
};

/// How inputs are made where there are no data.
struct SyntheticOptions {
    int64_t examples = 64;
    int64_t steps = 100;  ///< of Adam
    double lr = 0.1;      ///< in deviations of the input
};

/// Inputs that a model's batch norms take for data, and how far they are from it.
struct SyntheticInputs {
    std::vector<Inputs> batches;
    int64_t examples = 0, batch_norms = 0;
    /// Mean over batch norms and channels of the squared difference of the mean, in deviations, and of the ratio of
    /// deviations from 1; of noise, and of the inputs.
    double distance_before = 0, distance_after = 0;
};

/// Inputs without data: learned so that what enters each batch norm has its running statistics (ZeroQ, Cai et al.,
/// arXiv 2001.00281). Floating-point inputs are learned, others are the example's.
/// @throws UnsupportedModel when the model has no batch norm with running statistics that its inputs reach
SyntheticInputs synthetic_inputs(const Model& model, const Inputs& example, const SyntheticOptions& options = {},
                                 uint64_t seed = 0, Log& log = null_log(),
                                 const std::function<bool()>& interrupted = {});

struct StaticOptions {
    std::shared_ptr<const Observer> observer;  ///< null: histogram()
    bool per_channel = true;                   ///< one scale per output channel of a weight; else one for all
    /// Activations of both signs have their zero in the middle, at 128, as hardware without zero points wants it;
    /// false: ranges as they are. Those of one sign start at zero either way.
    bool symmetric = false;
    int64_t batches = 8;  ///< calibration batches, at most
    int64_t batch_size = 64;
    std::vector<std::string> ignore;  ///< regular expressions; layers whose whole name matches stay float
    bool first_last = true;           ///< false: the first and the last convolution or linear layer stay float
    double min_sqnr_db = 10;          ///< layers whose own signal-to-noise ratio is below stay float
    /// x86, onednn, fbgemm, qnnpack, or auto: the fastest of those this CPU supports, by measuring. A saved model runs
    /// on the engine of the program that loads it (x86 unless it says otherwise): see the fact `engine`.
    std::string engine = "x86";
    /// Linear layers that only float operators read. packed: LibTorch's quantized:: operators. fused: oneDNN's, which
    /// apply ReLU, GELU, SiLU, hard-swish or tanh before they round, hand integers on to the next such layer, and pack
    /// their weights whenever the file is loaded, on any engine; of an empty input they give [0, out]. auto: the stage
    /// takes what is faster on the example, by the clock, where an activation can go inside; convert() takes packed.
    std::string linear = "auto";
    /// Two-dimensional convolutions in front of SiLU or hard-swish, or of a residual addition, and depthwise ones of
    /// more than 100 channels. packed: quantized::conv2d and operators of their own behind it. fused:
    /// onednn::qconv2d_pointwise with the activation, or the addition and its ReLU, inside, before the result is
    /// rounded; as `linear: fused` it runs on any engine. A call of it costs 16 to 40 us more: fused_large takes it
    /// where the example's tensors are large enough to save what it costs on this machine. auto: packed or fused_large,
    /// as there.
    std::string conv = "auto";
    /// Weights of 7 bits, so that no sum of two products leaves 16 bits, in which CPUs without VNNI keep it: 2 * 255 *
    /// 64 < 2^15. auto: where exact_int8_products() is false; on: always, for files that run on other CPUs; off. (7-bit
    /// activations would not do: what lies beyond the calibrated range still becomes 255.) Unless it is off, depthwise
    /// convolutions of more than 100 channels have 7 bits on every CPU: FBGEMM's kernel for them has such sums anyway.
    std::string reduce_range = "auto";
    std::shared_ptr<const Rounding> rounding;  ///< null: nearest()
    int64_t weight_bits = 8;   ///< [2, 8]; fewer than 8 still run in int8, in a file that deflates better
    bool fit_weights = false;  ///< GridOptions::least_error
    /// Layers are rounded again from first to last, each on what the int8 layers before it give, towards what the float
    /// model makes of its own values (arXiv 2004.10568, section 3.3, without the activation function in the loss; for
    /// GPTQ arXiv 2504.02692). false: every layer on the float model's values. brecq does it by itself.
    bool in_turn = false;
    /// The mean error of rounded weights goes into the bias (arXiv 1906.04721); products without one get one.
    bool bias_correction = false;
    bool equalize = false;                ///< equalize() before
    std::string equalize_relu6 = "keep";  ///< EqualizeOptions::relu6
    double smooth = 0;                    ///< alpha of smooth() before; 0: off
    std::string smooth_norms = "gain";    ///< SmoothOptions::norms
    SyntheticOptions synthetic;           ///< for the stage, where there are no data
    /// Called again and again while the model runs on calibration batches and while blocks are reconstructed, which
    /// takes minutes; what it throws ends the planning.
    Progress progress;
    Fallback fallback;  ///< for the stage: a plan has nothing to judge by
};

/// What quantization does with one layer, and why.
struct LayerPlan {
    std::string layer, op;  ///< as in LayerNames; "aten::conv2d"
    bool int8 = false;      ///< or simulated in few bits
    /// "int8"; "int8 (7-bit weights)" where sums would saturate otherwise; "float32, simulated W4A4": weights and input
    /// rounded to 4 bits
    std::string precision = "float32";
    std::string reason;        ///< why it stays in float; empty for int8
    double sqnr_db = 0;        ///< of its output when input and weight are rounded; 0 when not measured
    int64_t parameters = 0;    ///< elements of its weight
    Range range;               ///< that its input's integers cover
    double clipped_ratio = 0;  ///< share of its input outside of that
};

/// Decisions for one model: which operators run in int8, with which parameters. Copies share.
class StaticPlan {
public:
    struct Impl;
    StaticPlan() = default;
    explicit StaticPlan(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
    /// Convolutions, linear layers and what else holds weights or costs time, in the order of the graph.
    const std::vector<LayerPlan>& layers() const;
    /// The float model that is quantized: batch norms folded. Facts and nodes of the plan belong to it.
    const Model& model() const;
    /// Parameters of a value of model()'s graph that is an int8 tensor in the result; null for float.
    const Affine* parameters(const torch::jit::Value* value) const;
    const Impl& impl() const { return *impl_; }

private:
    std::shared_ptr<const Impl> impl_;
};

/// Folds batch norms, chooses what runs in int8 and observes ranges over `calibration`, a list of forward's arguments.
/// @throws UnsupportedModel with the reasons when nothing can run in int8
/// @throws InvalidArgument when `calibration` is empty, an option is out of its range, or an `ignore` is no regular
///         expression or matches no layer
StaticPlan plan_static(const Model& model, const Inputs& example, const Calibration& calibration,
                       const StaticOptions& options = {});
StaticPlan plan_static(const Model& model, const Inputs& example, const std::vector<Inputs>& calibration,
                       const StaticOptions& options = {});

/// The int8 model of the plan.
Model convert(const StaticPlan& plan);

/// Runs the plan's model in float with inputs, weights and outputs of int8 layers rounded as convert()'s model rounds
/// them: the reference that int8 kernels are checked against, up to one quantum per layer where a sum lies between two
/// integers. `linear: fused` does not round the output of a linear layer that only float operators read.
c10::IValue fake_quantized(const StaticPlan& plan, const Inputs& inputs);

/// Per layer: can it run in int8, or why not. Needs no data. For `coppice inspect`.
std::vector<LayerPlan> explain(const Model& model, const Inputs& example);

// ------------------------------------------------------------------------------------------------------------- engines

/// Names of the engines of int8 kernels that this LibTorch has on this CPU: "fbgemm", "onednn", "qnnpack", "x86".
std::vector<std::string> engines();

/// The engine in force, and choosing one for the whole process. @throws InvalidArgument for one that engines() lacks
std::string engine();
void set_engine(const std::string& name);

/// True when int8 products are summed without an intermediate 16-bit result that can saturate: with AVX512-VNNI on x86
/// (AVX-VNNI alone does not help: engine x86 takes fbgemm there, which has no kernels for it), always elsewhere.
bool exact_int8_products();

/// Names layers of a file whose weights have 8 bits where sums of products saturate: for want of VNNI, or on every CPU
/// in FBGEMM's kernel for depthwise convolutions, which the engine in force takes. Empty where all is well. Every
/// command of `coppice` that loads a model asks this and warns; Model::load() does not, which knows no int8: ask behind
/// it for files of other machines and tools. @param exact_products  of the CPU that is to run it
std::vector<std::string> int8_warnings(const Model& model, bool exact_products = exact_int8_products());

// -------------------------------------------------------------------------------------------------------------- stages

/// Stage quantize.static: plan_static and convert on the calibration data, or without data on synthetic_inputs(), which
/// the log warns of and facts["synthetic_inputs"] tells.
std::unique_ptr<Stage> static_int8(StaticOptions options = {});

struct DynamicOptions {
    std::vector<std::string> ignore;       ///< regular expressions; layers whose whole name matches stay float
    bool linear = true;                    ///< linear layers and products with a parameter
    bool recurrent = true;                 ///< LSTM and GRU
    std::string embedding = "int8";        ///< float, int8, int4: rows of 8 or 4 bits
    double min_sqnr_db = 10;               ///< layers whose own signal-to-noise ratio is below stay float
    int64_t batches = 4, batch_size = 16;  ///< on which layers are measured
    Fallback fallback;
};

/// Stage quantize.dynamic: weights int8 per channel, activations rounded to int8 by their range in each call. Needs no
/// data; layers are measured on calibration data where there is some, else on the example.
/// @throws UnsupportedModel with the reasons when no layer can be treated
std::unique_ptr<Stage> dynamic_int8(DynamicOptions options = {});

struct WeightOnlyOptions {
    std::string type = "int8";  ///< int8, int4, bf16, fp16
    int64_t group = 0;          ///< weights that share a scale: 32, 64, 128; 0: 64 for int4, the whole row for int8
    bool symmetric = false;     ///< no offsets; int8 with packed kernels has to be, and recipes make it so
    /// unpacked: weights are expanded in every call by one operator of LibTorch, arithmetic in float32, any CPU.
    /// packed: LibTorch's kernels on packed weights (_weight_int4pack_mm_for_cpu, _weight_int8pack_mm), arithmetic in
    /// bfloat16; fast for few rows on CPUs with AVX512, and 4-bit files hold the layout of this CPU's instruction set.
    /// auto: packed for linear layers where the example multiplies at most 4 rows. bf16 and fp16 have one kernel.
    std::string kernel = "unpacked";
    std::shared_ptr<const Rounding> rounding;  ///< null: nearest()
    bool convolutions = true, embeddings = true;
    std::vector<std::string> ignore;
    double min_sqnr_db = 10;
    int64_t batches = 4, batch_size = 16;  ///< for moments and measuring
    Fallback fallback;
};

/// Stage quantize.weight_only: activations stay float32. Needs calibration data where the rounding does.
/// @throws InvalidArgument for options that would do nothing: group, symmetric, kernel and rounding of bf16 and fp16,
/// packed int8 with groups or offsets
std::unique_ptr<Stage> weight_only(WeightOnlyOptions options = {});

/// Seconds of one call of forward.
using Timer = std::function<double(const Model& model, const Inputs& inputs)>;

struct AutoOptions {
    double min_sqnr_db = 20;   ///< a form with more noise in a layer's output is not taken
    double least_gain = 0.05;  ///< share of a layer's time that a form has to save
    std::vector<std::string> forms = {"bf16", "dynamic", "static", "int8", "int4"};  ///< tried
    std::vector<std::string> ignore;
    int64_t batches = 4, batch_size = 16;
    Fallback fallback;
    Timer timer;  ///< null: the fastest of several calls by the wall clock
};

/// Stage quantize.auto: every layer is timed by itself in every form on the example, and gets the fastest form whose
/// noise is allowed; what is not faster than float stays float and says so. Attention (scaled_dot_product_attention) is
/// such a layer, whose form is bf16. In the end the whole model, static int8 with either kind of linear layers and
/// convolutions, and float are timed, and the fastest is kept; with a fallback only what holds the metric is timed, and
/// where nothing is faster than float the result is a copy of the model. Choices follow the clock: the same model may
/// get other forms in another run.
std::unique_ptr<Stage> auto_precision(AutoOptions options = {});

// ----------------------------------------------------------------------------------------------------- mixed precision

/// Every layer of a model in every precision that it can have: made by quantize.mixed, private to the module.
class PrecisionTable;

/// How much worse a model gets when one of its layers gets a precision.
class Sensitivity {
public:
    virtual ~Sensitivity() = default;
    virtual Needs needs() const { return {}; }
    /// What the figures are, for the report.
    virtual std::string unit() const = 0;
    /// loss[layer][precision], at least 0, 0 for float. Losses of layers are taken to add up.
    virtual std::vector<std::vector<double>> measure(const PrecisionTable& table, Context& context) const = 0;
};

/// What the model's output suffers from this layer alone: mean KL divergence of the softmax from float's, in nats, for
/// classifiers; power of the error over that of the output for other tasks. One run of the model per layer and
/// precision.
std::unique_ptr<Sensitivity> output_divergence();
/// Mean squared error of the layer's own output, its input being exact.
std::unique_ptr<Sensitivity> output_mse();
/// Power of the error over power of the layer's own output: 10^(-SQNR / 10).
std::unique_ptr<Sensitivity> output_sqnr();
/// |Tr(H) / n| |W' - W|^2 with the Hessian H of the task's loss in the layer's n weights, its trace by Hutchinson's
/// estimate (HAWQ-V2, Dong et al., arXiv 1911.03852). Sees weights only, not activations. Needs labels.
/// @param samples  random vectors, at least 1
/// @throws UnsupportedModel when an operator has no second derivative
std::unique_ptr<Sensitivity> hessian_trace(int64_t samples = 16);

/// Rows: hessian, kl, mse, sqnr.
const std::vector<Entry<Sensitivity>>& sensitivities();

/// What one precision of one layer costs and loses.
struct PrecisionOption {
    double cost = 0, loss = 0;
};

/// Chooses one option per layer: the sum of losses low, the sum of costs within a budget.
class PrecisionAllocation {
public:
    virtual ~PrecisionAllocation() = default;
    /// @return index of the option per layer
    /// @throws InvalidArgument when even the cheapest options exceed the budget
    virtual std::vector<size_t> choose(const std::vector<std::vector<PrecisionOption>>& layers,
                                       double budget) const = 0;
};

/// The least sum of losses: integer programming by dynamic programming with bounds of the linear relaxation.
/// @param states  undominated sums kept at most. @throws UnsupportedModel when it takes more
std::unique_ptr<PrecisionAllocation> exact_allocation(int64_t states = 5'000'000);
/// From the cheapest options on, always the step that saves the most loss per cost.
std::unique_ptr<PrecisionAllocation> greedy_allocation();

/// Rows: exact, greedy.
const std::vector<Entry<PrecisionAllocation>>& precision_allocations();

struct MixedOptions {
    /// Beside float: bf16, dynamic, fp16, int4, int8 (both weights only), static.
    std::vector<std::string> precisions = {"static", "dynamic", "int8", "int4"};
    std::shared_ptr<const Sensitivity> sensitivity;         ///< null: output_divergence()
    std::shared_ptr<const PrecisionAllocation> allocation;  ///< null: exact_allocation()
    std::shared_ptr<const Rounding> rounding;               ///< of int8, int4 and static weights; null: nearest()
    /// size: bytes of weights with scales and biases; bops: multiply-adds times bits of both operands; latency: seconds
    /// on the example, layers timed alone, the whole model in the end.
    std::string budget = "size";
    double ratio = 0.3;  ///< of what float costs; 0: the cheapest there is
    std::vector<std::string> ignore;
    double min_sqnr_db = 10;               ///< precisions with more noise in the layer's output are not offered
    int64_t batches = 8, batch_size = 64;  ///< for ranges and moments
    int64_t examples = 64;                 ///< on which errors are measured
    /// Layers go on to more exact precisions, the step that saves most loss per cost first, until the metric holds; it
    /// goes before the budget.
    Fallback fallback;
    Timer timer;  ///< null: the fastest of several calls by the wall clock
};

/// Stage quantize.mixed: the precision of every layer by its sensitivity, under a budget. Products keep the bits that
/// LibTorch's operators compute with: weights expanded to float count as 32 bits in bops.
std::unique_ptr<Stage> mixed_precision(MixedOptions options = {});

// ----------------------------------------------------------------------------------------------------------- codebooks

/// Where k-means starts.
class CentroidInit {
public:
    virtual ~CentroidInit() = default;
    /// @param sorted  weights in ascending order, at least `count`
    /// @return `count` centroids in ascending order
    virtual std::vector<double> centroids(const std::vector<double>& sorted, int64_t count, uint64_t seed) const = 0;
};

/// Quantiles of the weights.
std::unique_ptr<CentroidInit> density_init();
/// Equal steps from the smallest to the largest weight: what the paper found best.
std::unique_ptr<CentroidInit> linear_init();
/// Weights drawn far from those drawn before (k-means++).
std::unique_ptr<CentroidInit> plus_plus_init();
/// Weights drawn at random.
std::unique_ptr<CentroidInit> random_init();

/// Rows: density, kmeans++, linear, random.
const std::vector<Entry<CentroidInit>>& centroid_inits();

/// Weights that share few values.
struct Codebook {
    at::Tensor values;           ///< float [entries], ascending
    at::Tensor indices;          ///< uint8, the weight's shape
    at::Tensor weights() const;  ///< values[indices]
};

/// 1-D k-means of a weight by Lloyd's algorithm. Weights that are exactly zero keep a zero of their own where they are
/// at least 1 / count of all. A weight with no more than `count` distinct values is kept exactly.
/// @param count  entries, 2 to 256
Codebook cluster(const at::Tensor& weight, int64_t count, const CentroidInit& init, int64_t iterations = 100,
                 uint64_t seed = 0);

struct CodebookOptions {
    int64_t bits = 4;                          ///< of an index, 2 to 8
    std::shared_ptr<const CentroidInit> init;  ///< null: linear_init()
    int64_t iterations = 100;                  ///< of Lloyd's algorithm, at most
    /// weights: float32 with repetitions that deflate finds, no change at run time. indices: bytes and a table, smaller
    /// in the file and in memory, expanded in every call.
    std::string storage = "weights";
    std::vector<std::string> ignore;
    double min_sqnr_db = 10;               ///< layers whose own signal-to-noise ratio is below stay float
    int64_t batches = 4, batch_size = 16;  ///< on which layers are measured
    Fallback fallback;
};

/// Stage quantize.codebook: weight sharing per layer (Deep Compression, Han et al., arXiv 1510.00149).
/// @throws UnsupportedModel with the reasons when no layer can be treated
std::unique_ptr<Stage> codebook_sharing(CodebookOptions options = {});

/// Rows of this module, by recipe name: quantize.auto, quantize.codebook, quantize.dynamic, quantize.mixed,
/// quantize.static, quantize.weight_only.
const std::vector<Entry<Stage>>& stages();

}  // namespace coppice::quantize
