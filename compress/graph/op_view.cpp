#include <torch/csrc/jit/ir/scope.h>

#include <coppice/error.h>
#include <coppice/graph.h>

namespace coppice {

using namespace torch::jit;

namespace {

bool is(const Node* node, const char* name) {
    return std::strcmp(node->kind().toQualString(), name) == 0;
}

bool is_none(const Value* value) {
    const auto constant = toIValue(value);
    return value->mustBeNone() || (constant && constant->isNone());
}

Value* named(Node* node, const std::string& argument) {
    const auto* schema = node->maybeSchema();
    if (!schema) return nullptr;
    const auto index = schema->argumentIndexWithName(argument);
    return index && static_cast<size_t>(*index) < node->inputs().size() ? node->inputs()[*index] : nullptr;
}

/// Constant integers of an argument; a single one is repeated to `count`.
std::optional<std::vector<int64_t>> integers(Node* node, const std::string& argument, size_t count) {
    Value* value = named(node, argument);
    if (!value) return std::nullopt;
    const auto constant = constant_of(value);
    if (!constant) return std::nullopt;
    std::vector<int64_t> list;
    if (constant->isIntList())
        list = constant->toIntVector();
    else if (constant->isInt())
        list = {constant->toInt()};
    else
        return std::nullopt;
    if (list.size() == 1) list.resize(count, list[0]);
    return list;
}

template <typename T>
std::optional<T> scalar(Node* node, const std::string& argument) {
    Value* value = named(node, argument);
    if (!value) return std::nullopt;
    const auto constant = constant_of(value);
    if (!constant || constant->isNone()) return std::nullopt;
    if constexpr (std::is_same_v<T, bool>)
        return constant->isBool() ? std::optional<T>(constant->toBool()) : std::nullopt;
    else if constexpr (std::is_same_v<T, int64_t>)
        return constant->isInt() ? std::optional<T>(constant->toInt()) : std::nullopt;
    else
        return constant->isDouble() || constant->isInt() ? std::optional<T>(constant->toScalar().toDouble())
                                                         : std::nullopt;
}

/// The attribute or constant behind a weight, through one aten::t; tells whether it was transposed.
std::pair<Value*, bool> parameter_behind(Value* value) {
    bool transposed = false;
    Node* node = value->node();
    if (node->kind() == aten::t) {
        transposed = true;
        value = node->input(0);
    } else if (node->kind() == aten::transpose) {
        const auto first = constant_of(node->input(1)), second = constant_of(node->input(2));
        const auto swaps = [&](int64_t a, int64_t b) { return first->toInt() == a && second->toInt() == b; };
        if (first && second && (swaps(0, 1) || swaps(1, 0) || swaps(-1, -2) || swaps(-2, -1))) {
            transposed = true;
            value = node->input(0);
        }
    }
    return {attribute_name(value) ? value : nullptr, transposed};
}

}  // namespace

std::vector<Node*> all_nodes(const Graph& graph) {
    std::vector<Node*> nodes;
    const std::function<void(const Block*)> collect = [&](const Block* block) {
        for (Node* node : const_cast<Block*>(block)->nodes()) {
            nodes.push_back(node);
            for (const Block* inner : node->blocks()) collect(inner);
        }
    };
    collect(graph.block());
    return nodes;
}

std::optional<c10::IValue> constant_of(const Value* value) {
    if (auto constant = toIValue(value)) return constant;
    const Node* node = value->node();
    if (node->kind() != prim::ListConstruct) return std::nullopt;
    const auto element = node->output()->type()->expect<c10::ListType>()->getElementType();
    c10::List<int64_t> integers_list;
    c10::List<double> doubles;
    c10::List<bool> booleans;
    for (const Value* item : node->inputs()) {
        const auto constant = toIValue(item);
        if (!constant) return std::nullopt;
        if (element->kind() == c10::TypeKind::IntType && constant->isInt())
            integers_list.push_back(constant->toInt());
        else if (element->kind() == c10::TypeKind::FloatType && constant->isDouble())
            doubles.push_back(constant->toDouble());
        else if (element->kind() == c10::TypeKind::BoolType && constant->isBool())
            booleans.push_back(constant->toBool());
        else
            return std::nullopt;
    }
    if (element->kind() == c10::TypeKind::IntType) return c10::IValue(integers_list);
    if (element->kind() == c10::TypeKind::FloatType) return c10::IValue(doubles);
    if (element->kind() == c10::TypeKind::BoolType) return c10::IValue(booleans);
    return std::nullopt;
}

std::optional<ConvView> as_conv(Node* node) {
    ConvView view{};
    view.node = node;
    bool general = false;
    if (is(node, "aten::conv1d"))
        view.dims = 1;
    else if (is(node, "aten::conv2d"))
        view.dims = 2;
    else if (is(node, "aten::conv3d"))
        view.dims = 3;
    else if (is(node, "aten::conv_transpose1d"))
        view.dims = 1, view.transposed = true;
    else if (is(node, "aten::conv_transpose2d"))
        view.dims = 2, view.transposed = true;
    else if (is(node, "aten::conv_transpose3d"))
        view.dims = 3, view.transposed = true;
    else if (is(node, "aten::_convolution") || is(node, "aten::convolution"))
        general = true;
    else
        return std::nullopt;
    view.input = node->input(0);
    view.weight = named(node, "weight");
    view.bias = named(node, "bias");
    if (!view.weight || !view.bias) return std::nullopt;
    view.has_bias = !is_none(view.bias);
    if (general) {
        const auto stride = integers(node, "stride", 1);
        const auto transposed = scalar<bool>(node, "transposed");
        if (!stride || !transposed) return std::nullopt;
        view.dims = static_cast<int64_t>(stride->size());
        view.transposed = *transposed;
    }
    const auto count = static_cast<size_t>(view.dims);
    const auto stride = integers(node, "stride", count), dilation = integers(node, "dilation", count);
    const auto groups = scalar<int64_t>(node, "groups");
    if (!stride || !dilation || !groups) return std::nullopt;
    view.stride = *stride;
    view.dilation = *dilation;
    view.groups = *groups;
    view.output_padding = integers(node, "output_padding", count).value_or(std::vector<int64_t>(count, 0));
    if (const auto padding = integers(node, "padding", count)) {
        view.padding = *padding;
    } else {
        const auto mode = constant_of(named(node, "padding"));
        if (!mode || !mode->isString()) return std::nullopt;
        view.padding_mode = mode->toStringRef();
        view.padding.assign(count, 0);
    }
    return view;
}

std::optional<LinearView> as_linear(Node* node) {
    LinearView view{};
    view.node = node;
    if (is(node, "aten::linear")) {
        view.input = node->input(0);
        view.weight = node->input(1);
        view.bias = node->input(2);
        view.has_bias = !is_none(view.bias);
        return view;
    }
    Value* right = nullptr;
    if (is(node, "aten::addmm")) {
        const auto beta = scalar<double>(node, "beta"), alpha = scalar<double>(node, "alpha");
        if (!beta || !alpha || *beta != 1 || *alpha != 1 || !attribute_name(node->input(0))) return std::nullopt;
        view.bias = node->input(0);
        view.has_bias = true;
        view.input = node->input(1);
        right = node->input(2);
    } else if (is(node, "aten::mm") || is(node, "aten::matmul")) {
        view.input = node->input(0);
        right = node->input(1);
    } else {
        return std::nullopt;
    }
    const auto [parameter, transposed] = parameter_behind(right);
    if (!parameter) return std::nullopt;
    // A bare parameter may have any number of dimensions in matmul; mm and addmm take two.
    if (!transposed && is(node, "aten::matmul")) return std::nullopt;
    view.weight = parameter;
    view.weight_transposed = !transposed;
    return view;
}

std::optional<BatchNormView> as_batch_norm(Node* node) {
    if (!is(node, "aten::batch_norm")) return std::nullopt;
    BatchNormView view{};
    view.node = node;
    view.input = node->input(0);
    view.weight = node->input(1);
    view.bias = node->input(2);
    view.running_mean = node->input(3);
    view.running_var = node->input(4);
    view.training = node->input(5);
    view.affine = !is_none(view.weight);
    view.tracks_statistics = !is_none(view.running_mean);
    const auto momentum = scalar<double>(node, "momentum"), eps = scalar<double>(node, "eps");
    if (!momentum || !eps) return std::nullopt;
    view.momentum = *momentum;
    view.eps = *eps;
    return view;
}

std::optional<NormView> as_norm(Node* node) {
    NormView view{};
    view.node = node;
    if (is(node, "aten::layer_norm"))
        view.kind = NormView::Kind::kLayer;
    else if (is(node, "aten::group_norm"))
        view.kind = NormView::Kind::kGroup;
    else if (is(node, "aten::instance_norm"))
        view.kind = NormView::Kind::kInstance;
    else if (is(node, "aten::rms_norm"))
        view.kind = NormView::Kind::kRms;
    else
        return std::nullopt;
    view.input = node->input(0);
    view.weight = named(node, "weight");
    view.bias = named(node, "bias");
    view.has_weight = view.weight && !is_none(view.weight);
    view.has_bias = view.bias && !is_none(view.bias);
    view.eps = scalar<double>(node, "eps").value_or(1e-5);
    if (view.kind == NormView::Kind::kLayer || view.kind == NormView::Kind::kRms) {
        const auto shape = integers(node, "normalized_shape", 1);
        if (!shape) return std::nullopt;
        view.normalized_shape = *shape;
    }
    if (view.kind == NormView::Kind::kGroup) {
        const auto groups = scalar<int64_t>(node, "num_groups");
        if (!groups) return std::nullopt;
        view.groups = *groups;
    }
    return view;
}

std::optional<EmbeddingView> as_embedding(Node* node) {
    if (!is(node, "aten::embedding")) return std::nullopt;
    return EmbeddingView{node, node->input(0), node->input(1)};
}

std::optional<AttentionView> as_attention(Node* node) {
    if (!is(node, "aten::scaled_dot_product_attention")) return std::nullopt;
    return AttentionView{node, node->input(0), node->input(1), node->input(2)};
}

std::optional<RecurrentView> as_recurrent(Node* node) {
    RecurrentView view{};
    view.node = node;
    for (const char* cell : {"lstm", "gru", "rnn_tanh", "rnn_relu"})
        if (is(node, (std::string("aten::") + cell).c_str())) view.cell = cell;
    if (view.cell.empty()) return std::nullopt;
    const auto biases = scalar<bool>(node, "has_biases"), bidirectional = scalar<bool>(node, "bidirectional"),
               batch_first = scalar<bool>(node, "batch_first");
    const auto layers = scalar<int64_t>(node, "num_layers");
    Value* weights = named(node, "params");
    if (!biases || !bidirectional || !batch_first || !layers || !weights) return std::nullopt;
    if (weights->node()->kind() != prim::ListConstruct) return std::nullopt;
    view.input = node->input(0);
    view.weights = weights->node()->inputs().vec();
    view.has_biases = *biases;
    view.bidirectional = *bidirectional;
    view.batch_first = *batch_first;
    view.layers = *layers;
    return view;
}

std::optional<MatMulView> as_matmul(Node* node) {
    if (as_linear(node)) return std::nullopt;
    if (is(node, "aten::matmul") || is(node, "aten::mm") || is(node, "aten::bmm"))
        return MatMulView{node, node->input(0), node->input(1)};
    if (is(node, "aten::baddbmm") || is(node, "aten::addmm")) return MatMulView{node, node->input(1), node->input(2)};
    if (is(node, "aten::einsum")) {
        Node* list = node->input(1)->node();
        if (list->kind() == prim::ListConstruct && list->inputs().size() == 2)
            return MatMulView{node, list->input(0), list->input(1)};
    }
    return std::nullopt;
}

namespace {

/// The first attribute among the inputs, also inside lists and behind transposes.
std::optional<std::string> first_parameter(const Node* node) {
    for (const Value* input : node->inputs()) {
        if (auto name = attribute_name(input)) {
            // Weights, also packed ones, name a layer; switches such as `training` and submodules do not.
            const auto type = input->type()->cast<c10::ClassType>();
            if (!input->type()->isSubtypeOf(*c10::TensorType::get()) && (!type || type->is_module())) continue;
            // A submodule that only holds packed weights is part of the layer.
            const auto owner = input->node()->kind() == prim::GetAttr
                                   ? input->node()->input()->type()->cast<c10::ClassType>()
                                   : nullptr;
            if (!owner || !owner->findMethod("__setstate__")) return name;
            const auto holder = attribute_name(input->node()->input());
            return holder && !holder->empty() ? holder : name;
        }
        const Node* source = input->node();
        const auto kind = source->kind();
        if (kind == prim::ListConstruct || kind == aten::t || kind == aten::transpose)
            if (auto name = first_parameter(source)) return name;
    }
    return std::nullopt;
}

std::string scope_of(const Node* node) {
    std::string path;
    if (const auto stack = node->callstack()) {
        for (const auto& entry : (*stack)->vec()) {
            const auto& instance = std::get<kModuleInstanceInfo>(entry);
            if (!instance) continue;
            const auto name = instance->instance_name();
            if (name.empty() || name == "self" || name == "SELF" || name == "INSTANCE_NAME_UNKNOWN") continue;
            path += (path.empty() ? "" : ".") + name;
        }
    }
    return path;
}

}  // namespace

LayerNames::LayerNames(const Model& model) {
    std::unordered_map<std::string, int> taken;
    for (Node* node : all_nodes(*model.graph())) {
        const auto kind = node->kind();
        if (kind == prim::Constant || kind == prim::GetAttr || kind == prim::ListConstruct ||
            kind == prim::TupleConstruct || kind == aten::t)
            continue;
        std::string op = node->kind().toUnqualString();
        std::string base;
        if (const auto parameter = first_parameter(node)) {
            const auto dot = parameter->rfind('.');
            // A bare parameter of the root ("pos_embedding" added to x) has no module: its own name says it best.
            base = dot == std::string::npos ? *parameter : parameter->substr(0, dot);
        } else if (const auto scope = scope_of(node); !scope.empty()) {
            base = scope + "." + op;
        } else {
            base = op + "_1";
        }
        std::string name = base;
        const bool counted = base == op + "_1";
        for (int number = ++taken[base]; number > 1; ++number) {
            name = counted ? op + "_" + std::to_string(number) : base + "#" + std::to_string(number);
            if (!taken.count(name)) break;
        }
        if (name != base) ++taken[name];
        names_[node] = name;
        order_.emplace_back(name, node);
    }
}

const std::string& LayerNames::of(const Node* node) const {
    static const std::string kUnnamed = "?";
    const auto found = names_.find(node);
    return found == names_.end() ? kUnnamed : found->second;
}

Node* LayerNames::find(const std::string& name) const {
    for (const auto& [known, node] : order_)
        if (known == name) return node;
    return nullptr;
}

std::vector<std::string> LayerNames::all() const {
    std::vector<std::string> names;
    for (const auto& [name, node] : order_) names.push_back(name);
    return names;
}

}  // namespace coppice
