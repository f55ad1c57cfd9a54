/// The graph layer: running a canonical model node by node, facts about its values, typed views of its operators, edits
/// of its attributes, and what it costs.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <functional>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include <coppice/model.h>

namespace coppice {

// ---------------------------------------------------------------------------------------------- running node by node

/// Called around every operator that run_nodes() executes, in order of execution, also inside blocks of If and Loop.
struct NodeHooks {
    /// Before: may edit the inputs in place (fake quantization of a weight, say).
    std::function<void(const torch::jit::Node*, std::vector<c10::IValue>& inputs)> before;
    /// After: may replace outputs in place (masking a channel, fake quantization).
    std::function<void(const torch::jit::Node*, std::vector<c10::IValue>& outputs)> after;
};

/// Runs `forward` by a plain walk over the graph: same operators, same order as LibTorch's interpreter, memory freed
/// after the last use. Autograd works as usual; callers that do not train hold a torch::NoGradGuard. This is the one
/// tap for shape facts, per-operator time, observers, masks and feature distillation.
c10::IValue run_nodes(const Model& model, const Inputs& inputs, const NodeHooks& hooks = {});

// ------------------------------------------------------------------------------------------------------------- facts

/// What one value held in the last run over the example input.
struct ValueFact {
    bool is_tensor = false;
    std::vector<int64_t> shape;                        ///< tensors
    at::ScalarType dtype = at::ScalarType::Undefined;  ///< tensors
    std::optional<c10::IValue> constant;               ///< ints, floats, bools, lists of those: as observed
};

/// Shapes and dtypes of every value that the example input reaches. Keys are values of the model's current graph; facts
/// are stale after an edit. Values in branches not taken have none.
class Facts {
public:
    /// @throws UnsupportedModel with the operator and scope at which the example input failed
    static Facts observe(const Model& model, const Inputs& example);

    const ValueFact* find(const torch::jit::Value* value) const;
    bool has_shape(const torch::jit::Value* value) const;
    /// @throws InternalError when the value was not reached or is no tensor
    const std::vector<int64_t>& shape(const torch::jit::Value* value) const;
    /// Number of times the node ran; 0 in branches not taken.
    int64_t runs(const torch::jit::Node* node) const;

private:
    std::unordered_map<const torch::jit::Value*, ValueFact> values_;
    std::unordered_map<const torch::jit::Node*, int64_t> runs_;
};

// -------------------------------------------------------------------------------------------------- typed node views

/// conv1d/2d/3d, conv_transpose1d/2d/3d and _convolution.
struct ConvView {
    torch::jit::Node* node;
    torch::jit::Value *input, *weight,
        *bias;  ///< weight [C_out, C_in/groups, k...]; transposed: [C_in, C_out/groups, k...]
    bool has_bias, transposed;
    int64_t dims, groups;  ///< dims: 1, 2 or 3
    std::vector<int64_t> stride, padding, dilation, output_padding;
    std::string padding_mode;  ///< "" when numeric, else "same" or "valid"
};

/// aten::linear; addmm and matmul/mm with a (transposed) 2-d parameter.
struct LinearView {
    torch::jit::Node* node;
    torch::jit::Value *input, *weight, *bias;
    bool has_bias;
    bool weight_transposed;  ///< true: the parameter is [in, out] and enters as it is; false: [out, in]
};

/// aten::batch_norm.
struct BatchNormView {
    torch::jit::Node* node;
    torch::jit::Value *input, *weight, *bias, *running_mean, *running_var, *training;
    bool affine, tracks_statistics;
    double eps, momentum;
};

/// layer_norm, group_norm, instance_norm, rms_norm.
struct NormView {
    enum class Kind { kLayer, kGroup, kInstance, kRms };
    torch::jit::Node* node;
    Kind kind;
    torch::jit::Value *input, *weight, *bias;
    bool has_weight, has_bias;
    std::vector<int64_t> normalized_shape;  ///< layer, rms
    int64_t groups = 1;                     ///< group norm
    double eps;
};

/// aten::embedding.
struct EmbeddingView {
    torch::jit::Node* node;
    torch::jit::Value *weight, *indices;  ///< weight [entries, width]
};

/// aten::scaled_dot_product_attention; q, k, v [..., heads, tokens, width].
struct AttentionView {
    torch::jit::Node* node;
    torch::jit::Value *query, *key, *value;
};

/// aten::lstm, gru, rnn_tanh, rnn_relu on padded input.
struct RecurrentView {
    torch::jit::Node* node;
    std::string cell;  ///< "lstm", "gru", "rnn_tanh", "rnn_relu"
    torch::jit::Value* input;
    std::vector<torch::jit::Value*> weights;  ///< per layer and direction: w_ih, w_hh[, b_ih, b_hh][, w_hr]
    bool has_biases, bidirectional, batch_first;
    int64_t layers;
};

/// matmul, mm, bmm, baddbmm, einsum of two computed tensors.
struct MatMulView {
    torch::jit::Node* node;
    torch::jit::Value *left, *right;
};

std::optional<ConvView> as_conv(torch::jit::Node* node);
std::optional<LinearView> as_linear(torch::jit::Node* node);
std::optional<BatchNormView> as_batch_norm(torch::jit::Node* node);
std::optional<NormView> as_norm(torch::jit::Node* node);
std::optional<EmbeddingView> as_embedding(torch::jit::Node* node);
std::optional<AttentionView> as_attention(torch::jit::Node* node);
std::optional<RecurrentView> as_recurrent(torch::jit::Node* node);
std::optional<MatMulView> as_matmul(torch::jit::Node* node);

/// All nodes of the graph in order, those inside blocks included.
std::vector<torch::jit::Node*> all_nodes(const torch::jit::Graph& graph);

/// Constant of a value made by prim::Constant or a list of constants; nullopt otherwise.
std::optional<c10::IValue> constant_of(const torch::jit::Value* value);

/// The name that reports use for a node: the module that owns its weight ("layer1.0.conv1"), else the module it was
/// inlined from with the operator ("layer1.0.relu"), else the operator and a running number ("add_3"). Unique within
/// the model.
class LayerNames {
public:
    explicit LayerNames(const Model& model);
    const std::string& of(const torch::jit::Node* node) const;
    torch::jit::Node* find(const std::string& name) const;  ///< null if there is none
    std::vector<std::string> all() const;

private:
    std::unordered_map<const torch::jit::Node*, std::string> names_;
    std::vector<std::pair<std::string, torch::jit::Node*>> order_;
};

// ---------------------------------------------------------------------------------------------------------- attributes

/// Dotted name when the value is a chain of prim::GetAttr from self ("layer1.0.conv1.weight"), else nullopt.
std::optional<std::string> attribute_name(const torch::jit::Value* value);

/// Value of attribute `name`. @throws InternalError when there is none
c10::IValue get_attribute(const Model& model, const std::string& name);
bool has_attribute(const Model& model, const std::string& name);

/// The tensor that the value reads from an attribute or tensor constant; nullopt when it is computed.
std::optional<at::Tensor> parameter_of(const Model& model, const torch::jit::Value* value);

/// Replaces the tensor of an attribute, whatever its shape, in every place that shares it; keeps its role (parameter or
/// buffer) and requires_grad.
void set_tensor(Model& model, const std::string& name, const at::Tensor& tensor);

enum class Role { kParameter, kBuffer, kAttribute };

/// Adds an attribute to the module that `name` names the member of ("layer1.0.conv1.weight_v": the modules must exist);
/// a taken name gets a number behind it. Returns the full name.
std::string add_attribute(Model& model, const std::string& name, const c10::IValue& value, Role role,
                          const c10::TypePtr& type = nullptr);

/// Inserts the GetAttr chain that reads attribute `name` before `before` and returns its value.
torch::jit::Value* read_attribute(Model& model, const std::string& name, torch::jit::Node* before);

/// Names of all attributes that hold tensors, in module order: name, tensor, role.
struct NamedTensor {
    std::string name;
    at::Tensor tensor;
    Role role;
};
std::vector<NamedTensor> named_tensors(const Model& model);

/// Drops attributes and modules that no method reads.
void remove_unused_attributes(Model& model);

/// After an edit: lints the graph, runs the example, compares the shapes of the outputs with `expected_shapes` when
/// given.
/// @throws InternalError naming `who`
void verify(const Model& model, const Inputs& example, const std::string& who,
            const std::vector<std::vector<int64_t>>& expected_shapes = {});

/// Throws UnsupportedModel when a method besides forward reads a parameter: `who` would change it under that method.
void refuse_other_methods(const Model& model, const std::string& who);

// ---------------------------------------------------------------------------------------------------------- cost model

/// What one operator costs on the example input.
struct LayerCost {
    std::string name;  ///< see LayerNames
    std::string op;    ///< "aten::conv2d"
    std::vector<int64_t> input_shape, output_shape;
    int64_t parameters = 0;  ///< elements of parameters first read here
    int64_t parameter_bytes = 0;
    int64_t activation_bytes = 0;  ///< bytes of its outputs
    double macs = 0;               ///< multiply-adds, all runs together; 0 for what has none
    double flops = 0;              ///< 2 x macs, plus one per element for elementwise and normalising operators
    bool known = true;             ///< false: no rule for this operator, flops not counted
    const torch::jit::Node* node = nullptr;
};

struct Cost {
    std::vector<LayerCost> layers;
    double macs = 0, flops = 0;
    int64_t parameters = 0, nonzero_parameters = 0, parameter_bytes = 0, buffer_bytes = 0, activation_bytes = 0;
    std::vector<std::string> unknown_operators;
};

/// Counted from observed shapes; a convolution is C_out x H_out x W_out x C_in/groups x kH x kW multiply-adds per
/// image.
Cost cost(const Model& model, const Inputs& example);

/// One execution of an operator in a walk over the graph.
struct OperatorSpan {
    const torch::jit::Node* node = nullptr;
    double start_s = 0;  ///< since the walk began
    double seconds = 0;  ///< wall clock
    double cpu_s = 0;    ///< CPU time of the process meanwhile, all threads
};
/// Every execution of an operator in one run on the example, in order, after `warm_up` runs that are not looked at.
std::vector<OperatorSpan> operator_timeline(const Model& model, const Inputs& example, int warm_up = 1);

}  // namespace coppice
