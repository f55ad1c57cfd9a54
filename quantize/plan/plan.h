#pragma once

#include <coppice/stage.h>

#include "equalize/pairs.h"
#include "plan/units.h"

namespace coppice::quantize {

struct StaticPlan::Impl {
    StaticOptions options;
    Model model;              ///< batch norms folded, in-place operators made pure
    int64_t weight_bits = 8;  ///< those of options, or 7 where options.reduce_range says so
    Facts facts;
    std::vector<Unit> units;
    std::vector<std::string> unit_names;
    std::unordered_map<const torch::jit::Value*, Affine> parameters;
    std::unordered_map<const torch::jit::Value*, const torch::jit::Value*>
        roots;                                                        ///< whose range gives a value's parameters
    std::unordered_map<const torch::jit::Node*, at::Tensor> weights;  ///< qint8 [out, in, ...] of int8 anchors
    std::unordered_map<const torch::jit::Node*, at::Tensor> biases;   ///< corrected ones, float32 [out]
    std::set<const torch::jit::Node*> cats_with_one_scale;
    /// Operands of additions and products, as (operator, 0 or 1), that are repeated to the size of the other one on a
    /// calibration batch, or that no input of the model reaches, so that they do not grow with its batch.
    std::set<std::pair<const torch::jit::Node*, size_t>> smaller_operands;
    std::vector<LayerPlan> layers;
    std::vector<torch::jit::Use> contiguous_outputs;  ///< places of output_places() that the float model fills so
    std::vector<LayerChange> folded;
    Equalized equalized;
    Smoothed smoothed;
};

/// Where the tensor and the weight of a convolution or linear layer enter its operator.
struct AnchorInputs {
    size_t tensor, weight;
    bool weight_transposed;      ///< the operator reads [in, out]
    std::optional<size_t> bias;  ///< nullopt for operators without one
};
AnchorInputs anchor_inputs(const torch::jit::Node* node);

/// The parameter of an anchor as int8 operators take it: [out, in, ...].
at::Tensor anchor_weight(const Model& model, torch::jit::Node* node);

/// The int8 weight of an anchor as its operator reads it, back in float.
at::Tensor rounded_weight(const Unit& unit, const at::Tensor& weight);

/// Rounds input, weight and bias of an int8 anchor on the stack of its float operator.
void round_anchor(const StaticPlan::Impl& plan, const Unit& unit, std::vector<c10::IValue>& stack);

/// The corrected bias of an int8 anchor whose float operator has no place for one (mm, matmul): to be added to its
/// output. Undefined for all other nodes.
at::Tensor bias_behind(const StaticPlan::Impl& plan, const torch::jit::Node* node);

/// Adds `correction`, [out], to the anchor's own bias, if any, in plan.biases.
void set_bias(StaticPlan::Impl& plan, const torch::jit::Node* node, const at::Tensor& correction);

/// How a layer is rounded.
struct AnchorRounding {
    /// Rounds input, weight and bias on the stack of the float operator.
    std::function<void(const Unit& unit, std::vector<c10::IValue>& stack)> round;
    /// To be added to the rounded output; undefined: nothing. May be empty.
    std::function<at::Tensor(const Unit& unit)> bias_behind;
    /// Of the input: parameters and number of integers.
    std::function<std::pair<Affine, int64_t>(const Unit& unit)> input;
};

/// Bits of the widest weights whose products cannot saturate.
/// @param reduce_range  of StaticOptions @throws InvalidArgument when it is none of auto, off, on
int64_t widest_weight(const std::string& reduce_range, bool exact_products = exact_int8_products());

/// Whether the int8 kernel that `engine` takes for a convolution adds two products in 16 bits whatever the CPU, see
/// fbgemm_depthwise().
bool sums_in_16_bits(const Model& model, torch::jit::Node* node, const std::string& engine);

/// Bits of an anchor's weights in a plan: those of all, or 7 where sums_in_16_bits() and options.reduce_range is not
/// off.
int64_t weight_bits_of(const StaticPlan::Impl& plan, torch::jit::Node* node);

/// What a layer is called in reports. @param weight_bits  asked for: fewer than 8 are simulated, stored and multiplied
/// as int8 @param used_bits  weight_bits_of(): fewer where sums would saturate otherwise
std::string int8_precision(int64_t weight_bits, int64_t used_bits = 8);

/// Sets sqnr_db (200 where there is no noise) and clipped_ratio of convolutions and linear layers: each by itself, its
/// float output against that with input and weight rounded. Runs the float model on the first batches.
void measure_noise(const Model& model, const std::vector<Unit*>& anchors, const Calibration& batches,
                   const AnchorRounding& rounding, const Progress& progress = {});

constexpr int64_t kActivationLevels = 256;  ///< of static int8

/// What integers 0 to levels - 1 stand for.
Range ends_of(const Affine& parameters, int64_t levels);

/// Says of a layer by its name.
using LayerFilter = std::function<bool(const std::string& name)>;

/// A copy of `model` ready to be planned: batch norms folded, in-place operators replaced where that is safe.
/// @param split  which transposed convolutions become convolutions, see there; empty: all
Model prepare(const Model& model, const Inputs& example, std::vector<LayerChange>* folded,
              const LayerFilter& split = {});

/// Gives readers of dictionaries of tensors the tensors themselves, where keys are constants.
void settle_dictionaries(Model& model);

/// Gives each reader of a list of tensors that grows a list of its own.
void settle_lists(Model& model);

/// Puts hard sigmoids behind convolutions and linear layers into their weights and a clamp.
void fold_hard_sigmoid(Model& model);

/// Makes transposed convolutions (float32, no dilation) convolutions with interleaved outputs.
/// @param wanted  which; empty: all
void split_transposed_convolutions(Model& model, const Inputs& example, const LayerFilter& wanted = {});

/// @throws InvalidArgument naming an option out of its range, or roundings that int8 kernels cannot follow
void check_options(const StaticOptions& options);

/// What runs a plan: engine, linear and conv of StaticOptions.
struct Kernels {
    std::string engine, linear, conv;
    std::string name() const { return engine + suffix(); }
    std::string suffix() const {
        return std::string(linear == "packed" ? "" : ", linear " + linear) + (conv == "packed" ? "" : ", conv " + conv);
    }
    bool fused() const { return linear != "packed" || conv != "packed"; }
};
/// Those that can run the plan, of what its options leave open.
std::vector<Kernels> kernels_for(const StaticPlan& plan);
StaticPlan with_kernels(const StaticPlan& plan, const Kernels& kernels);
/// The fastest of the candidates, or an earlier one that takes hardly longer: the least time of a few rounds in which
/// each has its turn, so that what else the machine does meets all of them. One that cannot be built or run is left
/// out with a warning; the last failure is thrown where none can. @param build  a model of them @param seconds  gets
/// those of each, by name; stays empty where there is no choice
Kernels fastest_kernels(const std::vector<Kernels>& candidates, const std::function<Model(const Kernels&)>& build,
                        const Inputs& inputs, Json& seconds, Log& log);

/// The plan, or with options.fallback that with the noisiest layers in float which the metric asks for, in
/// context.facts["fallback"]. Each try plans anew: borders move when a layer leaves.
StaticPlan plan_within(const Model& model, Context& context, const Calibration& calibration,
                       const StaticOptions& options, const char* where);

/// The figures of every layer with weights, as rows of facts[layers].
Json layer_rows(const std::vector<LayerPlan>& layers);

/// @param input_range  that the integers of a rounded layer's input cover; empty before they are known
std::vector<LayerPlan> layer_plans(const Model& model, const Facts& facts, const std::vector<Unit>& units,
                                   const std::function<Range(const Unit& unit)>& input_range = {});

}  // namespace coppice::quantize
