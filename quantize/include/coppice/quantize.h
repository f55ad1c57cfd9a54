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

#include <memory>
#include <string>
#include <vector>

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
/// number of values seen.
class Observer {
public:
    virtual ~Observer() = default;
    /// A new observer of the same kind and settings that has seen nothing.
    virtual std::unique_ptr<Observer> fresh() const = 0;
    /// @param values  float32, any shape; an empty tensor changes nothing. @throws UnsupportedModel on NaN or infinity
    virtual void observe(const at::Tensor& values) = 0;
    /// The range to use when it is cut into `levels` integers; {0, 0} when nothing was seen.
    virtual Range range(int64_t levels) const = 0;
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

/// Rows: histogram, minmax, moving_average.
const std::vector<Entry<Observer>>& observers();

// ---------------------------------------------------------------------------------------------------------- rounding

/// Affine parameters of an activation: q = clamp(round(x / scale) + zero_point, 0, 255), ties to even.
struct Affine {
    double scale = 1;
    int64_t zero_point = 0;
};

/// Parameters by which `range`, widened to hold zero, covers the integers 0 ... levels - 1. Zero is always exact. A
/// range of width zero gets scale 1.
Affine affine(Range range, int64_t levels = 256);

/// The values that the integers stand for, as float: what fake quantization does to an activation.
at::Tensor fake_quantize(const at::Tensor& values, const Affine& parameters);

/// Symmetric int8 weights: q = round(w / scale) in [-127, 127], scale = max |w| / 127 over a channel (or everything).
/// A channel of zeros gets scale 1. @param weight float32; channels in dimension 0
at::Tensor quantize_weight(const at::Tensor& weight, bool per_channel = true);

// --------------------------------------------------------------------------------------------------------------- plan

struct StaticOptions {
    std::shared_ptr<const Observer> observer;  ///< null: histogram()
    bool per_channel = true;                   ///< one scale per output channel of a weight; else one for all
    int64_t batches = 8;                       ///< calibration batches, at most
    int64_t batch_size = 64;
    std::vector<std::string> ignore;  ///< regular expressions; layers whose whole name matches stay float
    bool first_last = true;           ///< false: the first and the last convolution or linear layer stay float
    double min_sqnr_db = 10;          ///< layers whose own signal-to-noise ratio is below stay float
    /// x86, onednn, fbgemm, qnnpack, or auto: the fastest of those this CPU supports, by measuring. A saved model runs
    /// on the engine of the program that loads it (x86 unless it says otherwise): see the fact `engine`.
    std::string engine = "x86";
    int64_t activation_levels = 0;  ///< 256, or 128 where the CPU lacks VNNI and sums could saturate; 0: by CPU
};

/// What quantization does with one layer, and why.
struct LayerPlan {
    std::string layer, op;  ///< as in LayerNames; "aten::conv2d"
    bool int8 = false;
    std::string reason;      ///< why it stays in float; empty for int8
    double sqnr_db = 0;      ///< of its output when input and weight are rounded; 0 when not measured
    int64_t parameters = 0;  ///< elements of its weight
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
/// @throws InvalidArgument when `calibration` is empty, or an `ignore` is no regular expression or matches no layer
StaticPlan plan_static(const Model& model, const Inputs& example, const std::vector<Inputs>& calibration,
                       const StaticOptions& options = {});

/// The int8 model of the plan.
Model convert(const StaticPlan& plan);

/// Runs the plan's model in float with inputs, weights and outputs of int8 layers rounded as convert()'s model rounds
/// them: the reference that int8 kernels are checked against, up to one quantum per layer where a sum lies between two
/// integers.
c10::IValue fake_quantized(const StaticPlan& plan, const Inputs& inputs);

/// Per layer: can it run in int8, or why not. Needs no data. For `coppice inspect`.
std::vector<LayerPlan> explain(const Model& model, const Inputs& example);

// ------------------------------------------------------------------------------------------------------------- engines

/// Names of the engines of int8 kernels that this LibTorch has on this CPU: "fbgemm", "onednn", "qnnpack", "x86".
std::vector<std::string> engines();

/// The engine in force, and choosing one for the whole process. @throws InvalidArgument for one that engines() lacks
std::string engine();
void set_engine(const std::string& name);

/// True when int8 products are summed without an intermediate 16-bit result that can saturate (AVX512-VNNI).
bool exact_int8_products();

// -------------------------------------------------------------------------------------------------------------- stages

/// Stage quantize.static: plan_static and convert on the calibration data.
std::unique_ptr<Stage> static_int8(StaticOptions options = {});

/// Rows of this module, by recipe name: quantize.static.
const std::vector<Entry<Stage>>& stages();

}  // namespace coppice::quantize
