#include <coppice/deploy.h>
#include <coppice/graph.h>

namespace coppice {
namespace {

using namespace torch::jit;

std::optional<double> number_in(const c10::IValue& value) {
    if (value.isDouble()) return value.toDouble();
    if (value.isInt()) return static_cast<double>(value.toInt());
    return std::nullopt;
}

std::optional<double> number_of(const Value* value) {
    const auto constant = constant_of(value);
    if (!constant) return std::nullopt;
    if (constant->isTensor() && constant->toTensor().numel() == 1 && constant->toTensor().dim() == 0)
        return constant->toTensor().item<double>();
    return number_in(*constant);
}

/// What one softmax attention is made of.
struct Chain {
    Value *query = nullptr, *key_transposed = nullptr, *value = nullptr, *mask = nullptr;
    double scale = 1;
    std::vector<Node*> nodes;  // from the last product back to the first
};

class Matcher {
public:
    Matcher(const Model& model, const Facts& facts) : model_(model), facts_(facts) {}

    std::optional<Chain> match(Node* product) const {
        Chain chain;
        if (product->kind() != aten::matmul) return std::nullopt;
        chain.nodes.push_back(product);
        chain.value = product->input(1);
        Node* softmax = made_by(product->input(0), chain);
        if (!softmax || softmax->kind() != aten::softmax || !is_last(softmax->input(1), softmax->input(0)))
            return std::nullopt;
        chain.nodes.push_back(softmax);
        const Chain before_scores = chain;
        Node* scores = made_by(softmax->input(0), chain);
        if (!scores) return std::nullopt;
        if (scores->kind() == aten::add || scores->kind() == aten::add_) {
            if (scores->inputs().size() != 3 || number_of(scores->input(2)) != 1.0) return std::nullopt;
            chain.nodes.push_back(scores);
            const Chain before = chain;
            for (const size_t side : {0, 1}) {
                chain = before;
                chain.mask = scores->input(1 - side);
                if (is_product(scores->input(side), chain)) return complete(chain);
            }
            return std::nullopt;
        }
        chain = before_scores;
        return is_product(softmax->input(0), chain) ? complete(chain) : std::nullopt;
    }

private:
    /// The node that made `value` for this reader alone, past operators that do nothing here; they join the chain.
    Node* made_by(const Value* value, Chain& chain) const {
        for (;;) {
            Node* node = const_cast<Value*>(value)->node();
            if (value->uses().size() != 1 || node->owningBlock() != chain.nodes[0]->owningBlock()) return nullptr;
            if (!does_nothing(node)) return node;
            chain.nodes.push_back(node);
            value = node->input(0);
        }
    }

    bool does_nothing(Node* node) const {
        if (node->kind() == aten::dropout) {
            const auto train = constant_of(node->input(2));
            return train && train->isBool() && !train->toBool();
        }
        if (node->kind() != aten::to && node->kind() != aten::type_as) return false;
        const auto *in = facts_.find(node->input(0)), *out = facts_.find(node->output());
        return in && out && in->is_tensor && out->is_tensor && in->dtype == out->dtype;
    }

    bool is_last(const Value* dim, const Value* tensor) const {
        const auto number = number_of(dim);
        const auto* fact = facts_.find(tensor);
        return number && fact && (*number == -1 || *number == static_cast<double>(fact->shape.size()) - 1);
    }

    /// [scale *] matmul(query, key_transposed)
    bool is_product(const Value* value, Chain& chain) const {
        Node* node = made_by(value, chain);
        if (!node) return false;
        const bool multiplies = node->kind() == aten::mul || node->kind() == aten::mul_,
                   divides = node->kind() == aten::div || node->kind() == aten::div_;
        if (multiplies || divides) {
            const auto factor = factor_of(node->input(1));
            if (node->inputs().size() != 2 || !factor || *factor == 0) return false;
            chain.scale = multiplies ? *factor : 1 / *factor;
            chain.nodes.push_back(node);
            node = made_by(node->input(0), chain);
        }
        if (!node || node->kind() != aten::matmul) return false;
        chain.nodes.push_back(node);
        chain.query = node->input(0);
        chain.key_transposed = node->input(1);
        return true;
    }

    /// A constant of the graph or a number that the model holds.
    std::optional<double> factor_of(const Value* value) const {
        if (const auto number = number_of(value)) return number;
        const auto name = attribute_name(value);
        return name ? number_in(get_attribute(model_, *name)) : std::nullopt;
    }

    /// Four dimensions with equal batch and heads: what the fused kernel takes.
    std::optional<Chain> complete(const Chain& chain) const {
        const auto *q = matrix(chain.query), *k = matrix(chain.key_transposed), *v = matrix(chain.value);
        if (!q || !k || !v) return std::nullopt;
        for (const size_t dim : {0, 1})
            if (q->shape[dim] != k->shape[dim] || q->shape[dim] != v->shape[dim]) return std::nullopt;
        if (chain.mask) {
            const auto* mask = facts_.find(chain.mask);
            if (!mask || !mask->is_tensor || mask->dtype != at::kFloat ||
                (mask->shape.size() != 2 && mask->shape.size() != 4))
                return std::nullopt;
        }
        // Inputs are read later than before: nothing else may be written in between.
        for (const Node* node = chain.nodes.back(); node != chain.nodes.front(); node = node->next()) {
            const std::string op = node->kind().toUnqualString();
            const bool own = std::find(chain.nodes.begin(), chain.nodes.end(), node) != chain.nodes.end();
            if (!own && (op.back() == '_' || !node->blocks().empty() || node->kind() == prim::SetAttr))
                return std::nullopt;
        }
        return chain;
    }

    const ValueFact* matrix(const Value* value) const {
        const auto* fact = facts_.find(value);
        return fact && fact->is_tensor && fact->dtype == at::kFloat && fact->shape.size() == 4 ? fact : nullptr;
    }

    const Model& model_;
    const Facts& facts_;
};

}  // namespace

int fuse_attention(Model& model, const Inputs& example) {
    auto& graph = *model.graph();
    const auto facts = Facts::observe(model, example);
    const Matcher matcher(model, facts);
    int replaced = 0;
    for (Node* node : all_nodes(graph)) {
        const auto chain = matcher.match(node);
        if (!chain) continue;
        WithInsertPoint guard(node);
        Value* key = graph.insert(aten::transpose, {chain->key_transposed, -2, -1});
        // Without a mask the argument is None.
        const NamedValue mask = chain->mask ? NamedValue(chain->mask) : NamedValue(c10::IValue());
        Value* result =
            graph.insert(Symbol::fromQualString("aten::scaled_dot_product_attention"),
                         {chain->query, key, chain->value, mask, 0.0, false}, {NamedValue("scale", chain->scale)});
        result->setType(node->output()->type());
        result->node()->setScope(node->scope());
        result->node()->setSourceRange(node->sourceRange());
        node->output()->replaceAllUsesWith(result);
        // Only the products may be met again: each node of a chain has one reader, the next.
        for (Node* old : chain->nodes) old->destroy();
        ++replaced;
    }
    if (replaced) model.refresh();
    return replaced;
}

}  // namespace coppice
