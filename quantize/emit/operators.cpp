// One row per operator of the float graph that has an int8 form in stock LibTorch.
//
// Times are ns per element of the larger of input and output, measured on 2 threads of an AVX512-VNNI machine with 0.2
// to 1.6 M elements, in two dimensions channels last, as int8 convolutions give them, plus 2 us a call (see costs
// below); they only decide where float and int8 meet.
//
// No rows: quantized::matmul, of two computed tensors, rounds as it should and takes longer than the float product
// (LibTorch 2.15; attention of 64 to 256 tokens, heads of 32 and 64); elu, gelu, layer norm, softmax and tanh: see
// why_no_unit() in plan.cpp.
#include "emit/operators.h"

#include <coppice/run_operator.h>
#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include <coppice/error.h>

namespace coppice::quantize {

using namespace torch::jit;

Value* Site::argument(const std::string& name) const {
    const auto* schema = node->maybeSchema();
    if (!schema) return nullptr;
    const auto index = schema->argumentIndexWithName(name);
    return index && static_cast<size_t>(*index) < node->inputs().size() ? node->inputs()[static_cast<size_t>(*index)]
                                                                        : nullptr;
}

std::optional<c10::IValue> Site::constant(const std::string& name) const {
    const auto* value = argument(name);
    if (!value) return std::nullopt;
    return constant_of(value);
}

namespace {

constexpr const char* kComputedWeight = "its weight is computed while running";
constexpr const char* kEmptyWeight = "its weight has no elements";

std::string anything(const Site&) {
    return {};
}

std::string refuse_conv(const Site& site) {
    const auto view = as_conv(site.node);
    if (!view) return "its geometry is computed while running";
    const auto weight = parameter_of(site.model, view->weight);
    if (!weight) return kComputedWeight;
    if (view->has_bias && !parameter_of(site.model, view->bias)) return "its bias is computed while running";
    if (weight->scalar_type() != at::kFloat) return "its weight is not float32";
    if (weight->numel() == 0) return kEmptyWeight;
    if (static_cast<int64_t>(site.shape(view->input)->size()) != view->dims + 2)
        return "its input has no batch dimension";
    if (view->transposed) {
        const bool dense = std::all_of(view->dilation.begin(), view->dilation.end(), [](int64_t d) { return d == 1; });
        return dense ? "it is a transposed convolution" : "it is a transposed convolution with dilation";
    }
    if (!geometry_of(*view, weight->sizes().vec())) return "its padding differs between the two sides";
    return {};
}

std::string refuse_linear(const Site& site) {
    const auto view = as_linear(site.node);
    if (!view) return "it multiplies two computed tensors";
    const auto weight = parameter_of(site.model, view->weight);
    if (!weight) return kComputedWeight;
    if (weight->scalar_type() != at::kFloat || weight->dim() != 2) return "its weight is no float32 matrix";
    if (weight->numel() == 0) return kEmptyWeight;
    if (view->has_bias) {
        const auto bias = parameter_of(site.model, view->bias);
        if (!bias) return "its bias is computed while running";
        const int64_t features = view->weight_transposed ? weight->size(1) : weight->size(0);
        if (bias->numel() != features) return "its bias is not one number per output";
    }
    if (site.shape(view->input)->size() < 2) return "its input has no batch dimension";
    return {};
}

/// For operators of two computed tensors.
std::string refuse_binary(const Site& site) {
    for (size_t i = 0; i < 2; ++i) {
        const auto* input = site.node->input(i);
        if (!input->type()->isSubtypeOf(*c10::TensorType::get()) || !site.is_float(input))
            return "one operand is no float32 tensor";
        if (attribute_name(input) || toIValue(input)) return "one operand is a parameter";
        if (site.shape(input)->empty()) return "one operand is a single number";
    }
    // LibTorch makes the result as large as the first operand, and grows it with a warning in each call.
    const auto* result = site.shape(site.node->output());
    if (result && *site.shape(site.node->input(0)) != *result && *site.shape(site.node->input(1)) != *result)
        return "neither operand has the shape of the result";
    if (site.argument("alpha")) {
        const auto alpha = site.constant("alpha");
        if (!alpha || !alpha->isScalar() || alpha->toScalar().toDouble() != 1) return "the second operand is scaled";
    }
    return {};
}

std::string refuse_cat(const Site& site) {
    const auto* list = site.node->input(0)->node();
    if (list->kind() != prim::ListConstruct || list->output()->uses().size() != 1)
        return "its list is used elsewhere too";
    const auto dim = site.constant("dim");
    if (!dim || !dim->isInt()) return "its dimension is computed while running";
    for (const auto* part : list->inputs()) {
        if (!site.is_float(part)) return "a part is no float32 tensor";
        if (attribute_name(part) || toIValue(part)) return "a part is a parameter";
        if (site.shape(part)->size() != site.shape(site.node->output())->size()) return "a part has no dimensions";
    }
    return {};
}

std::string refuse_pool(const Site& site) {
    for (const char* name : {"kernel_size", "stride", "padding", "dilation"})
        if (site.argument(name) && !site.constant(name)) return "its geometry is computed while running";
    if (site.argument("divisor_override")) {
        const auto divisor = site.constant("divisor_override");
        if (!divisor || !divisor->isNone()) return "it divides by another number than the window's size";
    }
    return {};
}

std::string refuse_batched_pool(const Site& site) {
    const std::string op = site.node->kind().toUnqualString();
    const size_t rank = static_cast<size_t>(op[op.size() - 2] - '0') + 2;  // "max_pool2d": 4
    if (site.shape(site.node->input(0))->size() != rank) return "its input has no batch dimension";
    return refuse_pool(site);
}

std::string refuse_pad(const Site& site) {
    if (site.argument("mode")) {
        const auto mode = site.constant("mode");
        if (!mode || !mode->isString() || mode->toStringRef() != "constant") return "it pads with values of the tensor";
    }
    const auto value = site.constant("value");
    if (!value || !(value->isNone() || (value->isScalar() && value->toScalar().toDouble() == 0)))
        return "it pads with another number than zero";
    return {};
}

std::string refuse_mean(const Site& site) {
    const auto dims = site.constant("dim");
    if (!dims || !dims->isIntList() || dims->toIntVector().empty()) return "it averages over everything";
    const auto dtype = site.constant("dtype");
    if (!dtype || !dtype->isNone()) return "it changes the dtype";
    return {};
}

std::string refuse_clamp(const Site& site) {
    return clamp_of(site.node) ? std::string() : "its bounds are computed, or do not hold zero";
}

std::string refuse_split(const Site& site) {
    const auto* list = site.node->output();
    if (list->uses().size() != 1 || list->uses()[0].user->kind() != prim::ListUnpack) return "its parts stay in a list";
    return {};
}

std::string refuse_contiguous(const Site& site) {
    const auto format = site.constant("memory_format");
    return format ? std::string() : "its layout is computed while running";
}

std::string refuse_leaky(const Site& site) {
    return site.constant("negative_slope") ? std::string() : "its slope is computed while running";
}

std::string refuse_group_norm(const Site& site) {
    if (!site.constant("num_groups") || !site.constant("eps")) return "its groups are computed while running";
    for (const char* name : {"weight", "bias"}) {
        const auto* value = site.argument(name);
        const auto none = site.constant(name);
        if (!(none && none->isNone()) && !parameter_of(site.model, value))
            return "its weights are computed while running";
    }
    return {};
}

/// Those behind no convolution that could take them in.
std::string refuse_batch_norm(const Site& site) {
    const auto rank = site.shape(site.node->input(0))->size();
    if (rank != 4 && rank != 5) return "LibTorch has int8 batch norms for images and volumes only";
    const auto training = site.constant("training");
    if (!training || !training->isBool() || training->toBool()) return "it takes the statistics of the batch";
    if (!site.constant("eps")) return "its settings are computed while running";
    for (const char* name : {"weight", "bias", "running_mean", "running_var"})
        if (!parameter_of(site.model, site.argument(name)))
            return "its parameters are computed while running, or missing";
    return {};
}

std::string refuse_upsample(const Site& site) {
    return site.shape(site.node->input(0))->size() == 4 ? std::string() : "its input is not [N, C, H, W]";
}

}  // namespace

const std::vector<OperatorRow>& operator_rows() {
    using K = UnitKind;
    using S = OutputScale;
    static const std::vector<OperatorRow> rows = {
        {"aten::_convolution", K::kConv, S::kOwn, true, refuse_conv, 0, 0},
        {"aten::adaptive_avg_pool1d", K::kSame, S::kInput, false, anything, 0.05, 0.04},
        {"aten::adaptive_avg_pool2d", K::kSame, S::kInput, false, anything, 0.08, 0.045},
        {"aten::adaptive_avg_pool3d", K::kSame, S::kInput, false, anything, 0.05, 0.04},
        {"aten::add", K::kAdd, S::kOwn, true, refuse_binary, 0.15, 0.085},
        {"aten::addmm", K::kLinear, S::kOwn, true, refuse_linear, 0, 0},
        {"aten::avg_pool1d", K::kSame, S::kInput, false, refuse_pool, 0.3, 0.3},
        {"aten::avg_pool2d", K::kSame, S::kInput, false, refuse_pool, 0.075, 0.07},
        {"aten::avg_pool3d", K::kSame, S::kInput, false, refuse_pool, 0.3, 0.3},
        {"aten::batch_norm", K::kPointwise, S::kOwn, true, refuse_batch_norm, 0.093, 0.137},
        {"aten::cat", K::kCat, S::kOwn, false, refuse_cat, 0.09, 0.07},
        {"aten::chunk", K::kSplit, S::kInput, false, refuse_split, 0, 0},
        {"aten::clamp", K::kSame, S::kInput, false, refuse_clamp, 0.013, 0.05},
        {"aten::constant_pad_nd", K::kSame, S::kInput, false, refuse_pad, 0.8, 0.085},
        {"aten::contiguous", K::kSame, S::kInput, false, refuse_contiguous, 0.05, 0.05},
        {"aten::conv1d", K::kConv, S::kOwn, true, refuse_conv, 0, 0},
        {"aten::conv2d", K::kConv, S::kOwn, true, refuse_conv, 0, 0},
        {"aten::conv3d", K::kConv, S::kOwn, true, refuse_conv, 0, 0},
        {"aten::conv_transpose1d", K::kConv, S::kOwn, false, refuse_conv, 0, 0},
        {"aten::conv_transpose2d", K::kConv, S::kOwn, false, refuse_conv, 0, 0},
        {"aten::conv_transpose3d", K::kConv, S::kOwn, false, refuse_conv, 0, 0},
        {"aten::flatten", K::kSame, S::kInput, false, anything, 0, 0},
        {"aten::group_norm", K::kPointwise, S::kOwn, false, refuse_group_norm, 0.175, 0.16},
        {"aten::hardswish", K::kPointwise, S::kOwn, false, anything, 0.155, 0.075},
        {"aten::hardtanh", K::kSame, S::kInput, false, refuse_clamp, 0.013, 0.05},
        {"aten::leaky_relu", K::kPointwise, S::kOwn, false, refuse_leaky, 0.1, 0.057},
        {"aten::linear", K::kLinear, S::kOwn, true, refuse_linear, 0, 0},
        {"aten::matmul", K::kLinear, S::kOwn, true, refuse_linear, 0, 0},
        {"aten::max_pool1d", K::kSame, S::kInput, false, refuse_batched_pool, 0.5, 0.33},
        {"aten::max_pool2d", K::kSame, S::kInput, false, refuse_batched_pool, 0.08, 0.28},
        {"aten::max_pool3d", K::kSame, S::kInput, false, refuse_batched_pool, 0.06, 0.3},
        {"aten::mean", K::kSame, S::kInput, false, refuse_mean, 0.6, 0.045},
        {"aten::mm", K::kLinear, S::kOwn, true, refuse_linear, 0, 0},
        {"aten::mul", K::kMul, S::kOwn, true, refuse_binary, 0.145, 0.085},
        {"aten::pad", K::kSame, S::kInput, false, refuse_pad, 0.8, 0.085},
        {"aten::permute", K::kSame, S::kInput, false, anything, 0, 0},
        {"aten::relu", K::kSame, S::kInput, false, anything, 0.013, 0.05},
        {"aten::relu6", K::kSame, S::kInput, false, anything, 0.013, 0.05},
        {"aten::reshape", K::kSame, S::kInput, false, anything, 0, 0},
        {"aten::select", K::kSame, S::kInput, false, anything, 0, 0},
        {"aten::sigmoid", K::kPointwise, S::kOwn, false, anything, 0.5, 0.215},
        {"aten::silu", K::kPointwise, S::kOwn, false, anything, 0.6, 0.23},
        {"aten::slice", K::kSame, S::kInput, false, anything, 0, 0},
        {"aten::split", K::kSplit, S::kInput, false, refuse_split, 0, 0},
        {"aten::split_with_sizes", K::kSplit, S::kInput, false, refuse_split, 0, 0},
        {"aten::squeeze", K::kSame, S::kInput, false, anything, 0, 0},
        {"aten::transpose", K::kSame, S::kInput, false, anything, 0, 0},
        {"aten::unflatten", K::kSame, S::kInput, false, anything, 0, 0},
        {"aten::unsqueeze", K::kSame, S::kInput, false, anything, 0, 0},
        {"aten::upsample_bilinear2d", K::kSame, S::kInput, false, refuse_upsample, 1.1, 0.15},
        {"aten::upsample_nearest2d", K::kSame, S::kInput, false, refuse_upsample, 0.05, 0.09},
        {"aten::view", K::kSame, S::kInput, false, anything, 0, 0},
        {"prim::ConstantChunk", K::kSplit, S::kInput, false, anything, 0, 0},
    };
    return rows;
}

const OperatorRow* find_row(const Node* node) {
    static const auto* index = [] {
        auto* map = new std::unordered_map<std::string, const OperatorRow*>();
        for (const auto& row : operator_rows()) (*map)[row.op] = &row;
        return map;
    }();
    const auto found = index->find(node->kind().toQualString());
    return found == index->end() ? nullptr : found->second;
}

std::optional<Range> clamp_of(const Node* node) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    const std::string op = node->kind().toQualString();
    if (op == "aten::relu") return Range{0, kInfinity};
    if (op == "aten::relu6") return Range{0, 6};
    if (op != "aten::hardtanh" && op != "aten::clamp") return std::nullopt;
    Range range{-kInfinity, kInfinity};
    const auto low = constant_of(node->input(1)), high = constant_of(node->input(2));
    if (!low || !high) return std::nullopt;
    if (low->isScalar()) range.low = low->toScalar().toDouble();
    if (high->isScalar()) range.high = high->toScalar().toDouble();
    if (!(low->isScalar() || low->isNone()) || !(high->isScalar() || high->isNone())) return std::nullopt;
    if (!(range.low <= 0 && range.high >= 0)) return std::nullopt;
    return range;
}

std::optional<ConvGeometry> geometry_of(const ConvView& view, const std::vector<int64_t>& weight_shape) {
    ConvGeometry geometry{view.stride, view.padding, view.dilation, view.groups};
    if (view.padding_mode == "same") {
        for (size_t i = 0; i < geometry.padding.size(); ++i) {
            const int64_t total = view.dilation[i] * (weight_shape[i + 2] - 1);
            if (total % 2 != 0) return std::nullopt;
            geometry.padding[i] = total / 2;
        }
    } else if (view.padding_mode == "valid") {
        geometry.padding.assign(geometry.padding.size(), 0);
    }
    return geometry;
}

bool fbgemm_depthwise(at::IntArrayRef weight_shape, int64_t groups, const std::string& engine) {
    constexpr int64_t kOnednnGroups = 100;
    const bool pointwise = c10::multiply_integers(weight_shape) == weight_shape[0];
    if (weight_shape.size() <= 3 || weight_shape[1] != 1 || groups <= 1 || pointwise) return false;
    return groups > kOnednnGroups || (engine != "x86" && engine != "onednn");
}

c10::IValue call_operator(const char* name, std::vector<c10::IValue> arguments, const char* overload) {
    return run_operator(name, std::move(arguments), overload).at(0);
}

namespace {

c10::IValue optional_tensor(const at::Tensor& tensor) {
    return tensor.defined() ? c10::IValue(tensor.detach().to(at::kFloat).contiguous()) : c10::IValue();
}

}  // namespace

c10::IValue pack_conv(const at::Tensor& weight, const at::Tensor& bias, const ConvGeometry& geometry) {
    const auto dims = geometry.stride.size();
    const char* name = dims == 1 ? "quantized::conv1d_prepack"
                                 : (dims == 2 ? "quantized::conv2d_prepack" : "quantized::conv3d_prepack");
    const auto list = [](const std::vector<int64_t>& values) { return c10::List<int64_t>(values); };
    return call_operator(name, {weight, optional_tensor(bias), list(geometry.stride), list(geometry.padding),
                                list(geometry.dilation), geometry.groups});
}

c10::IValue pack_linear(const at::Tensor& weight, const at::Tensor& bias) {
    return call_operator("quantized::linear_prepack", {weight, optional_tensor(bias)});
}

Value* Emitter::call(const char* name, at::ArrayRef<NamedValue> arguments) {
    return graph_.insert(Symbol::fromQualString(name), arguments);
}

Value* Emitter::quantize(Value* value, const Affine& p) {
    return call("aten::quantize_per_tensor", {value, p.scale, p.zero_point, static_cast<int64_t>(at::kQUInt8)});
}

Value* Emitter::channels_last(Value* value) {
    const auto format = static_cast<int64_t>(at::MemoryFormat::ChannelsLast);
    return graph_.insert(aten::contiguous, {value}, {NamedValue("memory_format", format)});
}

Value* Emitter::dequantize(Value* value) {
    return call("aten::dequantize", {value});
}

Value* Emitter::conv(int64_t dims, Value* input, Value* packed, const Affine& p, bool relu) {
    static constexpr const char* kNames[3][2] = {{"quantized::conv1d", "quantized::conv1d_relu"},
                                                 {"quantized::conv2d", "quantized::conv2d_relu"},
                                                 {"quantized::conv3d", "quantized::conv3d_relu"}};
    return call(kNames[dims - 1][relu ? 1 : 0], {input, packed, p.scale, p.zero_point});
}

Value* Emitter::linear(Value* input, Value* packed, const Affine& p, bool relu) {
    return call(relu ? "quantized::linear_relu" : "quantized::linear", {input, packed, p.scale, p.zero_point});
}

Value* Emitter::linear_float(Value* input, Value* packed, const Affine& p, bool relu) {
    return call(relu ? "quantized::linear_with_input_q_dq_qweight_dq_relu_output_fp32"
                     : "quantized::linear_with_input_q_dq_qweight_dq_output_fp32",
                {input, p.scale, p.zero_point, packed});
}

std::optional<FusedActivation> fused_activation(const Node* node) {
    const std::string op = node->kind().toQualString();
    if (op == "aten::relu") return FusedActivation{"relu"};
    if (op == "aten::silu") return FusedActivation{"swish"};
    if (op == "aten::hardswish") return FusedActivation{"hardswish"};
    if (op == "aten::tanh") return FusedActivation{"tanh"};
    if (op == "aten::gelu") {
        const auto approximate = constant_of(node->input(1));
        if (approximate && approximate->isString()) return FusedActivation{"gelu", approximate->toStringRef()};
    }
    return std::nullopt;
}

Value* Emitter::over_memory_of(Value* tensor, Value* empty) {
    const std::vector<int64_t> none{0}, one{1};
    // Only its storage and where it begins count, and the operator below wants that to be contiguous.
    Value* start = call("aten::as_strided", {tensor, none, one});
    return call("aten::set_", {empty, start, int64_t{0}, call("aten::size", {tensor}), call("aten::stride", {tensor})});
}

Value* Emitter::integers(Value* int8) {
    Value* empty =
        graph_.insert(aten::empty, {std::vector<int64_t>{0}}, {NamedValue("dtype", static_cast<int64_t>(at::kByte))});
    return over_memory_of(int8, empty);
}

Value* Emitter::from_integers(Value* integers, const Affine& p) {
    Value* empty = graph_.insert(aten::_empty_affine_quantized, {std::vector<int64_t>{0}},
                                 {NamedValue("dtype", static_cast<int64_t>(at::kQUInt8)), NamedValue("scale", p.scale),
                                  NamedValue("zero_point", p.zero_point)});
    return over_memory_of(integers, empty);
}

namespace {

/// Arguments of an activation: none that is used takes any.
Value* no_arguments(Graph& graph) {
    return graph.insertNode(graph.createList(c10::OptionalType::create(c10::NumberType::get()), {}))->output();
}

}  // namespace

Value* Emitter::conv_fused(Value* integers, const Affine& input, const FusedWeights& weights,
                           const ConvGeometry& geometry, const FusedActivation& activation, const Residual* residual,
                           const std::optional<Affine>& output) {
    Value* bias = weights.bias ? weights.bias : graph_.insertConstant(c10::IValue());
    const Affine rounded = output.value_or(Affine{1, 0});
    std::vector<NamedValue> arguments{integers,       input.scale,    input.zero_point,
                                      weights.packed, weights.scales, weights.zero_points};
    const auto append = [&](std::initializer_list<NamedValue> more) {
        arguments.insert(arguments.end(), more.begin(), more.end());
    };
    if (residual) append({residual->integers});
    append({bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups, rounded.scale,
            rounded.zero_point, static_cast<int64_t>(output ? at::kByte : at::kFloat)});
    if (residual) append({residual->parameters.scale, residual->parameters.zero_point, "sum", 1.0});
    append({activation.name, no_arguments(graph_), activation.algorithm});
    return call("onednn::qconv2d_pointwise", arguments);
}

Value* Emitter::linear_fused(Value* integers, const Affine& input, const FusedWeights& weights,
                             const FusedActivation& activation, const std::optional<Affine>& output) {
    Value* bias = weights.bias ? weights.bias : graph_.insertConstant(c10::IValue());
    const Affine rounded = output.value_or(Affine{1, 0});
    return call("onednn::qlinear_pointwise",
                {integers, input.scale, input.zero_point, weights.packed, weights.scales, weights.zero_points, bias,
                 rounded.scale, rounded.zero_point, static_cast<int64_t>(output ? at::kByte : at::kFloat),
                 activation.name, no_arguments(graph_), activation.algorithm});
}

Value* Emitter::add(Value* left, Value* right, const Affine& p, bool relu) {
    return call(relu ? "quantized::add_relu" : "quantized::add", {left, right, p.scale, p.zero_point});
}

Value* Emitter::mul(Value* left, Value* right, const Affine& p, bool relu) {
    return call(relu ? "quantized::mul_relu" : "quantized::mul", {left, right, p.scale, p.zero_point});
}

Value* Emitter::pointwise(const Site& site, int64_t dims, Value* input, const Affine& p, bool relu) {
    const std::string op = site.node->kind().toUnqualString();
    const auto own = [&](const char* name) { return site.argument(name); };
    if (op == "hardswish") return call("quantized::hardswish", {input, p.scale, p.zero_point});
    if (op == "leaky_relu")
        return call("quantized::leaky_relu", {input, own("negative_slope"), false, p.scale, p.zero_point});
    if (op == "sigmoid") return call("quantized::sigmoid", {input, p.scale, p.zero_point});
    if (op == "silu") {
        // LibTorch has no int8 SiLU; a sigmoid lies between 0 and 1.
        Value* gate = call("quantized::sigmoid", {input, 1.0 / 256, int64_t{0}});
        return mul(input, gate, p, false);
    }
    if (op == "group_norm")
        return call("quantized::group_norm",
                    {input, own("num_groups"), own("weight"), own("bias"), own("eps"), p.scale, p.zero_point});
    if (op == "batch_norm") {
        static constexpr const char* kNames[2][2] = {{"quantized::batch_norm2d", "quantized::batch_norm2d_relu"},
                                                     {"quantized::batch_norm3d", "quantized::batch_norm3d_relu"}};
        return call(kNames[dims == 5 ? 1 : 0][relu ? 1 : 0], {input, own("weight"), own("bias"), own("running_mean"),
                                                              own("running_var"), own("eps"), p.scale, p.zero_point});
    }
    throw InternalError("quantize.convert", "aten::" + op + " has a row and no int8 operator", "");
}

namespace {

Value* tensor_list(Graph& graph, const std::vector<Value*>& parts) {
    return graph.insertNode(graph.createList(c10::TensorType::get(), parts))->output();
}

}  // namespace

Value* Emitter::cat(const std::vector<Value*>& parts, int64_t dim, const Affine& p) {
    return call("quantized::cat", {tensor_list(graph_, parts), dim, p.scale, p.zero_point});
}

Value* Emitter::cat_same(const std::vector<Value*>& parts, int64_t dim) {
    return call("aten::cat", {tensor_list(graph_, parts), dim});
}

Value* Emitter::clamp(Value* value, Range bounds) {
    if (bounds.low == 0 && std::isinf(bounds.high)) return call("aten::relu", {value});
    return call("aten::hardtanh", {value, bounds.low, bounds.high});
}

std::vector<Value*> Emitter::same(const Site& site, const std::function<Value*(Value*)>& input_of) {
    Node* node = site.node;
    const std::string op = node->kind().toQualString();
    if (op == "aten::view") return {call("aten::reshape", {input_of(node->input(0)), node->input(1)})};
    if (const auto bounds = clamp_of(node)) {
        if (std::isfinite(bounds->low) && std::isfinite(bounds->high))
            return {call("aten::hardtanh", {input_of(node->input(0)), bounds->low, bounds->high})};
        if (bounds->low == 0) return {call("aten::relu", {input_of(node->input(0))})};
    }
    Node* copy = graph_.createClone(node, [&](Value* value) { return input_of(value); });
    graph_.insertNode(copy);
    if (op.rfind("aten::max_pool", 0) == 0 || op.rfind("aten::avg_pool", 0) == 0) {
        const auto dims = static_cast<size_t>(op[op.size() - 2] - '0');
        std::vector<int64_t> kernel;
        for (const char* name : {"kernel_size", "stride", "padding", "dilation"}) {
            if (!site.argument(name)) continue;
            auto list = site.constant(name)->toIntVector();
            if (list.empty()) list = kernel;  // no stride given: windows side by side
            if (list.size() == 1) list.resize(dims, list[0]);
            if (kernel.empty()) kernel = list;
            const auto index = node->schema().argumentIndexWithName(name);
            WithInsertPoint guard(copy);
            copy->replaceInput(static_cast<size_t>(*index), graph_.insertConstant(list));
        }
    }
    std::vector<Value*> outputs;
    for (Value* output : copy->outputs()) {
        if (output->type()->kind() == c10::TypeKind::TensorType) output->setType(c10::TensorType::get());
        outputs.push_back(output);
    }
    return outputs;
}

}  // namespace coppice::quantize
