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
//
// Scripted modules hold both: the fused operator where grad mode, autocast, dtypes and devices allow it, and the same
// written out, which runs in all other cases, training among them. There the written-out one is enough.
//
// before  if ...: y = aten::_native_multi_head_attention(x, x, x, ...) else: y = ...
// after   y = ..., without the condition
// fires   where the condition asks for grad mode, and all weights of the fused operator are read in the other branch;
//         not in graphs that make nested tensors, which only the fused operators can read
#include <coppice/error.h>

#include <torch/csrc/jit/passes/common_subexpression_elimination.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/lower_tuples.h>

#include "groups/relations.h"
#include "groups/unfuse.h"

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

bool is_fused(const Node* node) {
    const std::string name = node->kind().toQualString();
    return name == kAttention || name == kEncoderLayer;
}

/// True for what LibTorch keeps since the answer may change, though asking changes nothing.
bool asks_for_mode(const Node* node) {
    const std::string name = node->kind().toQualString();
    return name == "aten::is_grad_enabled" || name == "aten::is_autocast_enabled";
}

void collect_nodes(const Block* block, std::vector<Node*>& nodes) {
    for (Node* node : const_cast<Block*>(block)->nodes()) {
        nodes.push_back(node);
        for (const Block* inner : node->blocks()) collect_nodes(inner, nodes);
    }
}

std::vector<Node*> nodes_in(const Node* node) {
    std::vector<Node*> nodes;
    for (const Block* block : const_cast<Node*>(node)->blocks()) collect_nodes(block, nodes);
    return nodes;
}

/// The operators that a value may come from, whatever branch is taken; an uninitialized one is never read.
void collect_sources(const Value* value, std::unordered_set<const Node*>& sources) {
    Node* node = const_cast<Node*>(value->node());
    if (node->kind() == prim::If)
        for (const Block* block : node->blocks()) collect_sources(block->outputs()[value->offset()], sources);
    else if (node->kind() == prim::TupleConstruct)
        for (const Value* input : node->inputs()) collect_sources(input, sources);
    else if (node->kind() != prim::Uninitialized)
        sources.insert(node);
}

/// True when nothing but the outputs of `attempt` tells that it ran.
bool has_no_effects(const Node* attempt) {
    const auto nodes = nodes_in(attempt);
    const std::unordered_set<const Node*> inside(nodes.begin(), nodes.end());
    for (const Node* node : nodes) {
        if (node->hasSideEffects() && !asks_for_mode(node) && node->blocks().empty()) return false;
        const auto* schema = node->maybeSchema();
        if (!schema) continue;
        for (size_t i = 0; i < node->inputs().size(); ++i) {
            const auto* alias = i < schema->arguments().size() ? schema->arguments()[i].alias_info() : nullptr;
            if (alias && alias->isWrite() && !inside.count(node->inputs()[i]->node())) return false;
        }
    }
    return true;
}

/// The branches that try the fused operator, where `choice` takes what they gave or else computes the same; or null.
Node* attempt_of(const Node* choice) {
    if (choice->kind() != prim::If || choice->outputs().empty()) return nullptr;
    Node* attempt = const_cast<Node*>(choice)->input()->node();
    if (attempt->kind() != prim::If) return nullptr;
    Block *taken = const_cast<Node*>(choice)->blocks()[0], *rest = const_cast<Node*>(choice)->blocks()[1];
    if (taken->nodes().begin() != taken->nodes().end()) return nullptr;
    std::unordered_set<const Node*> sources;
    for (const Value* value : taken->outputs()) {
        if (value->node() != attempt) return nullptr;
        collect_sources(value, sources);
    }
    if (sources.size() != 1 || !is_fused(*sources.begin())) return nullptr;
    const Node* fused = *sources.begin();
    const bool of_itself = fused->input(0) == fused->input(1) && fused->input(1) == fused->input(2);
    if (std::string(fused->kind().toQualString()) == kAttention && !of_itself) return nullptr;
    const auto tries = nodes_in(attempt);
    if (std::none_of(tries.begin(), tries.end(), [](const Node* node) {
            return std::string(node->kind().toQualString()) == "aten::is_grad_enabled";
        }))
        return nullptr;
    std::vector<Node*> computes;
    collect_nodes(rest, computes);
    std::unordered_set<std::string> read;
    for (const Node* node : computes)
        for (const Value* value : node->inputs())
            if (const auto name = attribute_name(value)) read.insert(*name);
    for (const Value* value : fused->inputs())
        if (const auto name = attribute_name(value); name && !read.count(*name)) return nullptr;
    for (const Value* output : attempt->outputs())
        for (const auto& use : output->uses())
            if (use.user != choice && use.user != taken->return_node()) return nullptr;
    return has_no_effects(attempt) ? attempt : nullptr;
}

bool makes_nested_tensors(const Graph& graph) {
    const auto nodes = all_nodes(graph);
    return std::any_of(nodes.begin(), nodes.end(), [](const Node* node) {
        return std::string(node->kind().toQualString()) == "aten::_nested_tensor_from_mask";
    });
}

/// Keeps the written-out branch in the place of the next such choice; false when there is none.
bool write_out_next(Graph& graph) {
    for (Node* choice : all_nodes(graph)) {
        Node* attempt = attempt_of(choice);
        if (!attempt) continue;
        Block* rest = choice->blocks()[1];
        while (rest->nodes().begin() != rest->nodes().end()) rest->nodes().begin()->moveBefore(choice);
        for (size_t i = 0; i < choice->outputs().size(); ++i)
            choice->outputs()[i]->replaceAllUsesWith(rest->outputs()[i]);
        choice->destroy();
        attempt->destroy();
        return true;
    }
    return false;
}

/// What was asked to choose the fused operator goes with it.
void remove_unused_questions(const std::shared_ptr<Graph>& graph) {
    for (bool removed = true; removed;) {
        removed = false;
        EliminateDeadCode(graph);
        for (Node* node : all_nodes(*graph))
            if (asks_for_mode(node) && !node->hasUses()) {
                node->destroy();
                removed = true;
            }
    }
}

}  // namespace

Model unfuse_attention(const Model& model) {
    const bool nested = makes_nested_tensors(*model.graph());
    bool found = false;
    for (const Node* node : all_nodes(*model.graph()))
        found |= rewrite_of(node) != nullptr || (!nested && attempt_of(node));
    if (!found) return model;
    Model copy = model.clone();
    const auto graph = copy.graph();
    bool written_out = false;
    while (!nested && write_out_next(*graph)) written_out = true;
    if (written_out) {
        LowerSimpleTuples(graph);
        EliminateCommonSubexpression(graph);
        remove_unused_questions(graph);
    }
    for (Node* node : all_nodes(*graph))
        if (const auto rewrite = rewrite_of(node)) {
            rewrite(node);
            node->destroy();
        }
    copy.refresh();
    return copy;
}

Model unfused(const Model& model, Context& context) {
    const auto apart = unfuse_attention(model);
    if (apart.graph() != model.graph()) {
        const char* note =
            "attention in one fused operator (the fast path of LibTorch's modules) is written out, so that what is "
            "inside can go; with a mask, a query that may read no key gives 0 instead of NaN";
        context.facts["note"] = note;
        context.log->info(note);
    }
    return apart;
}

void share_tensors(Model& apart, const Model& model) {
    for (const auto& named : named_tensors(model)) {
        const auto dot = named.name.rfind('.');
        const bool root = dot == std::string::npos;
        Module owner = root ? apart.module() : Module(get_attribute(apart, named.name.substr(0, dot)).toObject());
        owner.setattr(root ? named.name : named.name.substr(dot + 1), named.tensor);
    }
}

}  // namespace coppice::prune
