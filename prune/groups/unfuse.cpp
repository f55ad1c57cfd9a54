// Attention in one fused operator hides the widths inside of it: LibTorch's fast path takes the number of heads and the
// width of the model as constants and insists that they agree. Taken apart, heads and feed-forward channels can go.
//
// before  y, _ = aten::_native_multi_head_attention(x, x, x, E, H, w_qkv, b_qkv, w_out, b_out, None, False, ...)
// after   q, k, v = linear(x, w_qkv, b_qkv) as [3, N, H, L, E / H]
//         y = linear(scaled_dot_product_attention(q, k, v) as [N, L, E], w_out, b_out)
// fires   for self-attention without mask whose weights are not asked for, and E and H that are known
//
// before  aten::_transformer_encoder_layer_fwd(x, E, H, ...), without mask
// after   the same with layer norms, residual sums and the two layers of the feed-forward part around it
#include <coppice/error.h>

#include "groups/relations.h"

namespace coppice::prune {

using namespace torch::jit;

namespace {

constexpr const char* kAttention = "aten::_native_multi_head_attention";
constexpr const char* kEncoderLayer = "aten::_transformer_encoder_layer_fwd";

std::optional<int64_t> integer(const Node* node, const char* name) {
    const Value* value = argument(node, name);
    const auto constant = value ? constant_of(value) : std::nullopt;
    return constant && constant->isInt() ? std::optional<int64_t>(constant->toInt()) : std::nullopt;
}

std::optional<bool> boolean(const Node* node, const char* name) {
    const Value* value = argument(node, name);
    const auto constant = value ? constant_of(value) : std::nullopt;
    return constant && constant->isBool() ? std::optional<bool>(constant->toBool()) : std::nullopt;
}

bool absent(const Node* node, const char* name) {
    const Value* value = argument(node, name);
    return !value || value->mustBeNone();
}

/// Both operators name the projections alike.
bool can_take_apart(const Node* node) {
    const auto width = integer(node, "embed_dim");
    const auto heads = integer(node, "num_heads") ? integer(node, "num_heads") : integer(node, "num_head");
    return width && heads && *heads > 0 && *width % *heads == 0 && absent(node, "mask");
}

Value* named(Node* node, const char* name) {
    return const_cast<Value*>(argument(node, name));
}

/// Self-attention of `x` [N, L, E].
Value* attention(Graph& graph, Node* node, Value* x) {
    const int64_t width = *integer(node, "embed_dim");
    const int64_t heads = integer(node, "num_heads") ? *integer(node, "num_heads") : *integer(node, "num_head");
    Value* batch = graph.insert(aten::size, {x, 0});
    Value* length = graph.insert(aten::size, {x, 1});
    Value* qkv = graph.insert(aten::linear, {x, named(node, "qkv_weight"), named(node, "qkv_bias")});
    const auto sizes = [&](std::vector<Value*> items) {
        return graph.insertNode(graph.createList(c10::IntType::get(), items))->output();
    };
    const auto number = [&](int64_t value) { return graph.insertConstant(value); };
    Value* split =
        graph.insert(aten::reshape, {qkv, sizes({batch, length, number(3), number(heads), number(width / heads)})});
    Value* parts = graph.insert(aten::permute, {split, std::vector<int64_t>{2, 0, 3, 1, 4}});  // [3, N, H, L, E / H]
    std::vector<Value*> qkv_parts;
    for (const int64_t i : {0, 1, 2}) qkv_parts.push_back(graph.insert(aten::select, {parts, 0, i}));
    Value* y = graph.insert(Symbol::fromQualString("aten::scaled_dot_product_attention"),
                            {qkv_parts[0], qkv_parts[1], qkv_parts[2]});  // [N, H, L, E / H]
    y = graph.insert(aten::reshape, {graph.insert(aten::transpose, {y, 1, 2}), sizes({batch, length, number(width)})});
    return graph.insert(aten::linear, {y, named(node, "proj_weight"), named(node, "proj_bias")});
}

void take_apart_attention(Node* node) {
    auto& graph = *node->owningGraph();
    WithInsertPoint guard(node);
    Value* y = attention(graph, node, node->input(0));
    y->setType(node->output(0)->type());
    node->output(0)->replaceAllUsesWith(y);
    // The weights that nobody asked for are no tensor either way; only a tuple passes them on.
    if (node->output(1)->hasUses())
        node->output(1)->replaceAllUsesWith(
            graph.insertNode(graph.createUninitialized(node->output(1)->type()))->output());
}

void take_apart_encoder_layer(Node* node) {
    auto& graph = *node->owningGraph();
    WithInsertPoint guard(node);
    const bool norm_first = *boolean(node, "norm_first");
    Value* width = graph.insertNode(graph.createList(c10::IntType::get(), {named(node, "embed_dim")}))->output();
    const auto norm = [&](Value* x, const char* weight, const char* bias) {
        return graph.insert(aten::layer_norm, {x, width, named(node, weight), named(node, bias), named(node, "eps")});
    };
    Value* x = node->input(0);
    Value* y = attention(graph, node, norm_first ? norm(x, "norm_weight_1", "norm_bias_1") : x);
    y = graph.insert(aten::add, {y, x});
    if (!norm_first) y = norm(y, "norm_weight_1", "norm_bias_1");
    Value* inner = norm_first ? norm(y, "norm_weight_2", "norm_bias_2") : y;
    inner = graph.insert(aten::linear, {inner, named(node, "ffn_weight_1"), named(node, "ffn_bias_1")});
    inner = graph.insert(*boolean(node, "use_gelu") ? aten::gelu : aten::relu, {inner});
    inner = graph.insert(aten::linear, {inner, named(node, "ffn_weight_2"), named(node, "ffn_bias_2")});
    y = graph.insert(aten::add, {inner, y});
    if (!norm_first) y = norm(y, "norm_weight_2", "norm_bias_2");
    y->setType(node->output()->type());
    node->output()->replaceAllUsesWith(y);
}

/// The operator that take_apart() handles, or null.
void (*rewrite_of(const Node* node))(Node*) {
    const std::string name = node->kind().toQualString();
    if (name == kAttention && can_take_apart(node)) {
        const bool of_itself = node->input(0) == node->input(1) && node->input(1) == node->input(2);
        const auto weights = boolean(node, "need_weights");
        bool unused = weights && !*weights;
        for (const auto& use : node->output(1)->uses()) unused &= use.user->kind() == prim::TupleConstruct;
        return of_itself && unused ? take_apart_attention : nullptr;
    }
    if (name == kEncoderLayer && can_take_apart(node) && boolean(node, "norm_first") && boolean(node, "use_gelu"))
        return take_apart_encoder_layer;
    return nullptr;
}

}  // namespace

Model unfuse_attention(const Model& model) {
    bool found = false;
    for (const Node* node : all_nodes(*model.graph())) found |= rewrite_of(node) != nullptr;
    if (!found) return model;
    Model copy = model.clone();
    for (Node* node : all_nodes(*copy.graph()))
        if (const auto rewrite = rewrite_of(node)) {
            rewrite(node);
            node->destroy();
        }
    copy.refresh();
    return copy;
}

}  // namespace coppice::prune
