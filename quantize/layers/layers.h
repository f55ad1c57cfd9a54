// What the stages that treat one layer at a time share: dynamic, weight_only, auto.
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <coppice/quantize.h>
#include <coppice/stage.h>

#include "plan/units.h"

namespace coppice::quantize {

/// What a form needs to know besides the graph.
struct LayerFacts {
    std::string name;
    int64_t rows = 0;                   ///< rows that the example multiplies: elements of its input / in_features
    std::vector<InputMoments> moments;  ///< one per group of a convolution; empty when no form asked
};

/// A way to compute one layer with operators that ship with LibTorch.
class Form {
public:
    virtual ~Form() = default;
    /// Of LayerChange: "int8 dynamic".
    virtual std::string name() const = 0;
    virtual bool needs_moments() const { return false; }
    /// True when it rounds a layer's input by the range that it has in each call: nothing of it is clipped.
    virtual bool rounds_by_each_call() const { return false; }
    /// False when it refuses every convolution.
    virtual bool takes_convolutions() const { return true; }
    /// Why `site.node` cannot have this form; empty when it can.
    virtual std::string refuse(const Site& site) const = 0;
    /// Puts the form in place of `node`, which is destroyed. Returns what a report says of the result.
    virtual std::string emit(Model& model, torch::jit::Node* node, const LayerFacts& layer) const = 0;
    /// Bits of the numbers that are multiplied: 8, 16 or 32.
    virtual int64_t product_bits(const Site& site) const = 0;
    /// What the layer multiplies by in this form: one tensor per weight_values(), like the parameter.
    virtual std::vector<at::Tensor> weights(const Model& model, torch::jit::Node* node,
                                            const LayerFacts& layer) const = 0;
};

/// linear_dynamic, quantized LSTM and GRU, byte embeddings and bags of them. @param reduce_range 7-bit activations, for
/// CPUs without VNNI
std::unique_ptr<Form> dynamic_form(const DynamicOptions& options);
/// Weights in 8 or 4 bit groups, or in half precision.
std::unique_ptr<Form> weight_form(const WeightOnlyOptions& options);
/// Multiplies in bfloat16 or float16, float32 around it. @param convolutions  false: they stay float32
std::unique_ptr<Form> half_form(const std::string& type, bool convolutions = true);

/// A layer with weights, or attention.
struct Layer {
    torch::jit::Node* node = nullptr;
    LayerFacts facts;
    std::string op;
    int64_t parameters = 0;
    const Form* form = nullptr;  ///< null: stays float
    std::string reason;          ///< why it stays float
    double sqnr_db = 0;          ///< of its output by itself
    Range range;                 ///< of its input on the data it was measured on
};

/// Parameters that an operator writes into while the model runs, as embeddings with max_norm do to their rows. A
/// rounded copy would not see it.
class WrittenParameters {
public:
    explicit WrittenParameters(const Model& model);
    /// Whether a weight or bias of the layer is one of them.
    bool reach(torch::jit::Node* layer) const;

private:
    const Model& model_;
    std::set<const c10::StorageImpl*> written_;
};
constexpr const char* kWeightIsWritten =
    "another operator writes into its weight while the model runs, which a rounded copy would not see (an embedding "
    "with max_norm does so)";

/// Convolutions, linear, recurrent layers and embeddings of the graph in order.
/// @param attention  scaled_dot_product_attention too, which has no weights but a half-precision form
std::vector<Layer> layers_of(const Model& model, const Facts& facts, bool attention = false);

/// aten::embedding, or aten::embedding_bag.
std::optional<EmbeddingView> as_lookup(torch::jit::Node* node);

/// The values that hold a layer's matrices: one, or two per recurrent cell and direction.
std::vector<torch::jit::Value*> weight_values(torch::jit::Node* node);

/// A model of one layer: its weights, and its other inputs fixed to `inputs` as attributes. forward takes nothing.
Model isolated(const Model& model, const torch::jit::Node* node, const std::vector<c10::IValue>& inputs);
/// The same in `form`.
Model isolated(const Model& model, const torch::jit::Node* node, const std::vector<c10::IValue>& inputs,
               const Form& form, const LayerFacts& layer);
/// The layer's operator in an isolated model.
torch::jit::Node* layer_node(const Model& isolated);
/// Its output; the sequence of a recurrent layer.
at::Tensor run_isolated(const Model& isolated);

/// Bytes of what a file stores of an isolated layer besides its inputs, before deflating: weights, scales, biases.
int64_t stored_bytes(const Model& isolated);
/// The same of any value: tensors, packed weights, lists of them.
int64_t stored_bytes(const c10::IValue& value);

/// 10 log10(signal / noise) of sums of squares; 200 where there is no noise, -200 where it is no number.
double sqnr_db(double signal, double noise);
double sqnr_db(const at::Tensor& exact, const at::Tensor& rounded);
/// The sum of squares, in float64.
double power(const at::Tensor& values);

/// A figure in a message. @param format  printf's, for one double
std::string formatted(const char* format, double value);

/// Whether two values hold the same numbers: tensors, packed weights, lists of them.
bool same_content(const c10::IValue& a, const c10::IValue& b);

/// Stores `content` beside attribute `beside` and reads it before `before`. What is there already is taken again.
torch::jit::Value* store(Model& model, const c10::IValue& content, const std::string& beside, const std::string& name,
                         torch::jit::Node* before, Role role = Role::kAttribute);

/// Rows that a convolution or linear layer multiplies, one tensor [rows, n] per group.
std::vector<at::Tensor> rows_of(const Model& model, const torch::jit::Node* node, const at::Tensor& input);

/// Moments of the rows that each anchor multiplies, over `batches`, for nodes that `wanted` accepts.
std::unordered_map<const torch::jit::Node*, std::vector<InputMoments>> collect_moments(
    const Model& model, const Calibration& batches, const std::function<bool(const torch::jit::Node*)>& wanted,
    const Progress& progress);

/// Refuses what no stage can treat: a model with other methods, a layer whose weights or biases are NaN or infinite.
void refuse_unusable(const Model& model, const std::string& where);

/// Before any work: the same, and a `max_drop` without labelled data to judge by.
void check_layers(const Model& model, const Context& context, const Fallback& fallback, const std::string& where);

/// What a message adds where no layer can be treated, "" if there is nothing to add, and what to do about it.
std::pair<std::string, std::string> why_no_layer(const Model& model);

/// Calibration batches of the context; empty when it has no data.
std::vector<Inputs> batches_of(const Context& context, int64_t batches, int64_t batch_size, const char* where);

/// A regular expression that matches this name alone.
std::string exactly(const std::string& name);

/// Marks layers whose whole name matches a pattern.
/// @throws InvalidArgument for a pattern without a match, unless `all_match` is false
void apply_ignore(std::vector<Layer>& layers, const std::vector<std::string>& patterns, const char* where,
                  bool all_match = true);

/// Measures, decides, emits and records: the body of the stages dynamic and weight_only.
struct LayerStageOptions {
    const char* where;
    std::vector<std::string> ignore;
    double min_sqnr_db;
    int64_t batches, batch_size;
    Fallback fallback;
};
Model apply_form(const Model& model, Context& context, const Form& form, const LayerStageOptions& options);

/// Puts the chosen form of every layer in place of it in a copy of `prepared`, whose nodes `layers` hold.
Model emit_forms(const Model& prepared, const std::vector<Layer>& layers, std::vector<std::string>* details = nullptr);

/// A transposed convolution that keeps no form is to stay one, and no convolution with interleaved outputs: `prepared`,
/// made anew without those, to which the nodes of `layers` then belong. `prepared` itself where there are none.
Model restore_transposed(const Model& model, const Inputs& example, const Model& prepared, std::vector<Layer>& layers);

/// Seconds of one call of `model`: the fastest of a few rounds by the wall clock.
double fastest_seconds(const Model& model, const Inputs& inputs);

/// Smallest and largest value of a layer's input; {0, 0} where that is no floating-point tensor.
Range input_range(const torch::jit::Node* node, const std::vector<c10::IValue>& stack);
/// The range that covers both.
Range union_of(const Range& a, const Range& b);

/// Records one change per layer, and facts[layers] with figures.
void record_layers(Context& context, const std::vector<Layer>& layers, const std::vector<std::string>& details);

/// Adds seconds_before and seconds_after to the rows of facts[layers]: wall clock on the example, operator by operator,
/// of the layer and of what runs after it until the next one; the median of five runs. Rows stay without them whose
/// layer has no operator of that name in both models.
/// @param before  the float model with its batch norms folded
void add_layer_seconds(Context& context, const Model& before, const Model& after);

/// Makes outputs of `after` contiguous that are so in `before`: a caller may read memory in order.
void keep_outputs_contiguous(Model& after, const Model& before, const Inputs& example);

/// facts["output_sqnr_db"], and a line in the log: signal-to-noise ratio of `after`'s outputs against `before`'s, the
/// least of them, on some calibration data or the example. Warns below 10 dB. Says nothing where shapes depend on
/// values.
void tell_output_noise(Context& context, const Model& before, const Model& after, const char* where);

/// @throws InvalidArgument for a max_drop below 0 other than -1, and seconds that are not positive
void check_fallback(const Fallback& fallback, const std::string& where);

/// Accuracy-aware fallback: builds with more and more layers in float until `context.evaluate` lost no more than
/// `fallback.max_drop` against `baseline`. The best model so far is kept; a metric that is no number is worse than any.
/// No try begins that, by the longest so far, would end after `fallback.seconds`. facts["fallback"]["stopped_by"]:
/// "max_drop" where the metric holds and no try is left that could hold with fewer, "seconds", or "candidates".
/// @param most    how many candidates there are
/// @param build   the model with so many of the candidates, the most to blame first, in float
/// @param counted what they are, in facts
/// @return the model, and how many candidates are float in it
/// @throws MeasurementError when the metric of `baseline` is no number
std::pair<Model, size_t> fall_back(const Model& baseline, size_t most, const std::function<Model(size_t floats)>& build,
                                   const Fallback& fallback, Context& context, const char* where,
                                   const char* counted = "float_layers");

/// emit_forms() of `layers`, of which those of `order` go back to float that the output suffers from most (by_blame),
/// as many as fall_back() asks for, and not all. `layers` becomes what was emitted.
/// @param order  the layers with a form, the noisiest first
Model emit_within(const Model& baseline, const Model& prepared, std::vector<Layer>& layers, std::vector<size_t> order,
                  const Fallback& fallback, Context& context, const char* where, std::vector<std::string>& details);

}  // namespace coppice::quantize
