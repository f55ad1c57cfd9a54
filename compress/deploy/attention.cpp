// Attention written out, in the ways that it is, becomes LibTorch's fused operator.
#include <coppice/dataflow.h>
#include <coppice/deploy.h>
#include <coppice/graph.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>

#include <limits>

namespace coppice {
namespace {

using namespace torch::jit;

// A constant as low as this hides what it is put on: exp(-1e4 - s) is zero for every s above -9e3.
const double kHiding = -1e4;

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

bool is_product(const Node* node) {
    return node->kind() == aten::matmul || node->kind() == aten::bmm;
}

/// What one softmax attention is made of.
struct Chain {
    Value *query = nullptr, *key_transposed = nullptr, *value = nullptr;
    Value* mask = nullptr;  // float, added to the scores
    struct Hidden {
        Value* where;   // bool
        bool inverted;  // it says what is seen
    };
    std::vector<Hidden> hidden;  // scores that a constant takes the place of
    bool infinite = false;       // that constant
    double scale = 1;
    Value* factor = nullptr;  // a number computed while running, by which scores are multiplied or divided
    bool divides = false;
    size_t dims = 0;
    std::vector<Node*> nodes;  // from the last product back to the first
};

class Matcher {
public:
    Matcher(const Model& model, const Facts& facts) : model_(model), facts_(facts) {}

    std::optional<Chain> match(Node* product) const {
        Chain chain;
        if (!is_product(product)) return std::nullopt;
        chain.nodes.push_back(product);
        chain.value = product->input(1);
        Node* softmax = made_by(product->input(0), chain);
        if (!softmax || softmax->kind() != aten::softmax || !is_last(softmax->input(1), softmax->input(0)) ||
            !keeps_type(softmax))
            return std::nullopt;
        chain.nodes.push_back(softmax);
        Value* scores = softmax->input(0);
        for (;;) {
            const Chain before = chain;
            Node* node = made_by(scores, chain);
            if (!node) return std::nullopt;
            Value* under = hide(node, chain);
            if (!under) {
                chain = before;
                break;
            }
            chain.nodes.push_back(node);
            scores = under;
        }
        const Chain before_scores = chain;
        Node* sum = made_by(scores, chain);
        if (!sum) return std::nullopt;
        if (sum->kind() == aten::add || sum->kind() == aten::add_) {
            if (sum->inputs().size() != 3 || number_of(sum->input(2)) != 1.0) return std::nullopt;
            chain.nodes.push_back(sum);
            const Chain before = chain;
            for (const size_t side : {0, 1}) {
                chain = before;
                chain.mask = sum->input(1 - side);
                if (is_scores(sum->input(side), chain)) return complete(chain);
            }
            return std::nullopt;
        }
        chain = before_scores;
        return is_scores(scores, chain) ? complete(chain) : std::nullopt;
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
            if (train) return train->isBool() && !train->toBool();
            const auto name = attribute_name(node->input(2));
            return name && get_attribute(model_, *name).isBool() && !get_attribute(model_, *name).toBool();
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

    bool keeps_type(const Node* softmax) const {
        if (softmax->input(2)->mustBeNone()) return true;
        const auto type = constant_of(softmax->input(2));
        return type && (type->isNone() || (type->isInt() && type->toInt() == static_cast<int64_t>(at::kFloat)));
    }

    /// masked_fill(scores, mask, low) or where(mask, scores, low): the scores, or null.
    Value* hide(Node* node, Chain& chain) const {
        const std::string op = node->kind().toQualString();
        const bool fills = op == "aten::masked_fill" || op == "aten::masked_fill_";
        if ((!fills && node->kind() != aten::where) || node->inputs().size() != 3) return nullptr;
        const auto low = number_of(node->input(2));
        Value* where = node->input(fills ? 1 : 0);
        const auto* fact = facts_.find(where);
        if (!low || !(*low <= kHiding) || !fact || !fact->is_tensor || fact->dtype != at::kBool) return nullptr;
        // A row that is hidden by both kinds would weigh them apart.
        if (!chain.hidden.empty() && chain.infinite != std::isinf(*low)) return nullptr;
        chain.infinite = std::isinf(*low);
        chain.hidden.push_back({where, !fills});
        return node->input(fills ? 0 : 1);
    }

    /// [scale *] matmul(query, key_transposed), or baddbmm(mask, query, key_transposed)
    bool is_scores(const Value* value, Chain& chain) const {
        Node* node = made_by(value, chain);
        if (!node) return false;
        const bool multiplies = node->kind() == aten::mul || node->kind() == aten::mul_,
                   divides = node->kind() == aten::div || node->kind() == aten::div_;
        if (multiplies || divides) {
            if (node->inputs().size() != 2) return false;
            if (const auto factor = factor_of(node->input(1))) {
                if (*factor == 0) return false;
                chain.scale = multiplies ? *factor : 1 / *factor;
            } else {
                if (!node->input(1)->type()->isSubtypeOf(*c10::NumberType::get())) return false;
                chain.factor = node->input(1);
                chain.divides = divides;
            }
            chain.nodes.push_back(node);
            node = made_by(node->input(0), chain);
        }
        if (!node) return false;
        size_t first = 0;
        if (node->kind() == aten::baddbmm) {
            const auto beta = number_of(node->input(3)), alpha = number_of(node->input(4));
            if (beta != 1.0 || !alpha || multiplies || divides || chain.mask) return false;
            chain.mask = node->input(0);
            chain.scale = *alpha;
            first = 1;
        } else if (!is_product(node)) {
            return false;
        }
        chain.nodes.push_back(node);
        chain.query = node->input(first);
        chain.key_transposed = node->input(first + 1);
        return true;
    }

    /// A constant of the graph or a number that the model holds.
    std::optional<double> factor_of(const Value* value) const {
        if (const auto number = number_of(value)) return number;
        const auto name = attribute_name(value);
        return name ? number_in(get_attribute(model_, *name)) : std::nullopt;
    }

    /// Three or four dimensions, those before the matrices equal: what the fused kernel takes.
    std::optional<Chain> complete(Chain chain) const {
        const auto *q = matrix(chain.query), *k = matrix(chain.key_transposed), *v = matrix(chain.value);
        if (!q || !k || !v || q->shape.size() != k->shape.size() || q->shape.size() != v->shape.size())
            return std::nullopt;
        chain.dims = q->shape.size();
        std::vector<int64_t> scores = q->shape;
        scores.back() = k->shape.back();
        for (size_t dim = 0; dim + 2 < chain.dims; ++dim)
            if (q->shape[dim] != k->shape[dim] || q->shape[dim] != v->shape[dim]) return std::nullopt;
        if (chain.mask && !is_mask(chain.mask, at::kFloat, scores)) return std::nullopt;
        for (const auto& hidden : chain.hidden)
            if (!is_mask(hidden.where, at::kBool, scores)) return std::nullopt;
        // Inputs are read later than before: nothing else may be written in between.
        for (const Node* node = chain.nodes.back(); node != chain.nodes.front(); node = node->next()) {
            const bool own = std::find(chain.nodes.begin(), chain.nodes.end(), node) != chain.nodes.end();
            const auto* schema = node->maybeSchema();
            if (!own && ((schema && schema->is_mutable()) || !node->blocks().empty() || node->kind() == prim::SetAttr))
                return std::nullopt;
        }
        return chain;
    }

    const ValueFact* matrix(const Value* value) const {
        const auto* fact = facts_.find(value);
        return fact && fact->is_tensor && fact->dtype == at::kFloat &&
                       (fact->shape.size() == 3 || fact->shape.size() == 4)
                   ? fact
                   : nullptr;
    }

    /// Of that type, and no larger than the scores that it is laid over.
    bool is_mask(const Value* value, at::ScalarType type, const std::vector<int64_t>& scores) const {
        const auto* fact = facts_.find(value);
        if (!fact || !fact->is_tensor || fact->dtype != type || fact->shape.size() > scores.size()) return false;
        for (size_t i = 1; i <= fact->shape.size(); ++i) {
            const int64_t size = fact->shape[fact->shape.size() - i];
            if (size != 1 && size != scores[scores.size() - i]) return false;
        }
        return true;
    }

    const Model& model_;
    const Facts& facts_;
};

/// Which entries of a tuple are read, through the branches that pass it on.
void mark_read(const Value* tuple, std::vector<bool>& read) {
    for (const auto& use : tuple->uses()) {
        const auto kind = use.user->kind();
        if (kind == prim::TupleIndex) {
            const auto index = number_of(use.user->input(1));
            const auto count = static_cast<double>(read.size());
            if (index && *index >= -count && *index < count) {
                read[static_cast<size_t>(*index < 0 ? *index + count : *index)] = true;
                continue;
            }
        } else if (kind == prim::TupleUnpack) {
            for (size_t i = 0; i < read.size(); ++i)
                if (use.user->output(i)->hasUses()) read[i] = true;
            continue;
        } else if (kind == prim::Return) {
            const Node* owner = use.user->owningBlock()->owningNode();
            if (owner && owner->kind() == prim::If) {
                mark_read(owner->output(use.offset), read);
                continue;
            }
        }
        read.assign(read.size(), true);
    }
}

/// before  attention returns its result and the weights that nobody asks for, in a tuple (nn.MultiheadAttention)
/// after   the weights are not computed
bool drop_unread_entries(const std::shared_ptr<Graph>& graph) {
    bool dropped = false;
    for (Node* node : all_nodes(*graph)) {
        if (node->kind() != prim::TupleConstruct || !node->output()->hasUses()) continue;
        std::vector<bool> read(node->inputs().size(), false);
        mark_read(node->output(), read);
        for (size_t i = 0; i < read.size(); ++i) {
            const auto kind = node->input(i)->node()->kind();
            if (read[i] || kind == prim::Uninitialized || kind == prim::Constant) continue;
            const WithInsertPoint guard(node);
            node->replaceInput(i, graph->insertNode(graph->createUninitialized(node->input(i)->type()))->output());
            dropped = true;
        }
    }
    if (dropped) EliminateDeadCode(graph);
    return dropped;
}

/// Whether one operator reads the result to whom its strides mean nothing: the product gave contiguous memory, the
/// fused operator gives [N, L, H, E] as [N, H, L, E].
bool takes_any_strides(const Value* result, size_t dims) {
    // Heads and tokens back to where they came from.
    const int64_t heads = static_cast<int64_t>(dims) - 3;
    const auto swaps = [&](const Node* node) {
        std::set<int64_t> swapped;
        for (const size_t i : {1, 2})
            if (const auto dim = number_of(node->input(i)))
                swapped.insert(static_cast<int64_t>(*dim) + (*dim < 0 ? static_cast<int64_t>(dims) : 0));
        return swapped == std::set<int64_t>{heads, heads + 1};
    };
    static const std::set<std::string> kAny = {"aten::bmm",    "aten::contiguous", "aten::flatten",
                                               "aten::linear", "aten::matmul",     "aten::reshape"};
    int readers = 0;
    for (const auto& use : result->uses()) {
        const std::string op = use.user->kind().toQualString();
        if (op == "aten::size" || op == "aten::dim") continue;
        ++readers;
        if (op == "aten::transpose" && swaps(use.user)) continue;
        if (op == "aten::permute") {
            const auto order = constant_of(use.user->input(1));
            if (order && order->isIntList() && order->toIntVector() == std::vector<int64_t>{0, 2, 1, 3}) continue;
        }
        if (!kAny.count(op)) return false;
    }
    return readers <= 1;
}

class Emitter {
public:
    Emitter(Graph& graph, const Facts& facts) : graph_(graph), facts_(facts) {}

    Value* emit(const Chain& chain) {
        // The kernel for blocks of tokens takes four dimensions.
        const auto four = [&](Value* value) {
            return chain.dims == 3 ? graph_.insert(aten::unsqueeze, {now(value), 0}) : now(value);
        };
        Value* key = graph_.insert(aten::transpose, {four(chain.key_transposed), -2, -1});
        Value* mask = mask_of(chain);
        const auto argument = mask ? NamedValue(mask) : NamedValue(c10::IValue());
        const auto scale = chain.factor ? NamedValue("scale", factor_of(chain)) : NamedValue("scale", chain.scale);
        Value* result = graph_.insert(Symbol::fromQualString("aten::scaled_dot_product_attention"),
                                      {four(chain.query), key, four(chain.value), argument, 0.0, false}, {scale});
        Node* product = chain.nodes.front();
        result->node()->setScope(product->scope());
        result->node()->setSourceRange(product->sourceRange());
        if (chain.dims == 3) result = graph_.insert(aten::squeeze, {result, 0});
        if (!takes_any_strides(product->output(), chain.dims)) result = insert_contiguous(graph_, result);
        result->setType(product->output()->type());
        product->output()->replaceAllUsesWith(result);
        made_[product->output()] = result;
        return result;
    }

private:
    /// The value that took the place of one that a chain remembers.
    Value* now(Value* value) const {
        const auto found = made_.find(value);
        return found == made_.end() ? value : found->second;
    }

    Value* factor_of(const Chain& chain) const {
        Value* factor = chain.factor;
        if (factor->type()->kind() != c10::TypeKind::FloatType) factor = graph_.insert(aten::Float, {factor});
        return chain.divides ? graph_.insert(aten::div, {1.0, factor}) : factor;
    }

    /// What is hidden gets the least number: a row that hides everything weighs all alike, as it did before.
    Value* mask_of(const Chain& chain) const {
        Value* mask = chain.mask ? now(chain.mask) : nullptr;
        size_t dims = chain.mask ? facts_.shape(chain.mask).size() : 0;
        Value* hidden = nullptr;
        for (const auto& one : chain.hidden) {
            Value* where = one.inverted ? graph_.insert(aten::logical_not, {one.where}) : one.where;
            hidden = hidden ? graph_.insert(aten::logical_or, {hidden, where}) : where;
            dims = std::max(dims, facts_.shape(one.where).size());
        }
        if (hidden) {
            const double least = chain.infinite ? -std::numeric_limits<double>::infinity()
                                                : double(std::numeric_limits<float>::lowest());
            mask = graph_.insert(aten::where, {hidden, least, mask ? NamedValue(mask) : NamedValue(0.0)});
        }
        // The kernel takes masks of two or four dimensions.
        for (; mask && dims != 2 && dims < 4; ++dims) mask = graph_.insert(aten::unsqueeze, {mask, 0});
        return mask;
    }

    Graph& graph_;
    const Facts& facts_;
    std::unordered_map<const Value*, Value*> made_;
};

}  // namespace

int fuse_attention(Model& model, const Inputs& example) {
    if (drop_unread_entries(model.graph())) model.refresh();
    const auto facts = Facts::observe(model, example);
    auto& graph = *model.graph();
    const Matcher matcher(model, facts);
    std::vector<Chain> chains;
    std::set<const Node*> taken;
    for (Node* node : all_nodes(graph)) {
        const auto chain = matcher.match(node);
        if (!chain) continue;
        const auto& nodes = chain->nodes;
        if (std::any_of(nodes.begin(), nodes.end(), [&](const Node* one) { return taken.count(one) > 0; })) continue;
        taken.insert(nodes.begin(), nodes.end());
        chains.push_back(*chain);
    }
    Emitter emitter(graph, facts);
    for (const auto& chain : chains) {
        const WithInsertPoint guard(chain.nodes.front());
        emitter.emit(chain);
    }
    // Only now, so that no new value can have the address of one that the facts tell of.
    for (const auto& chain : chains)
        for (Node* old : chain.nodes) old->destroy();
    if (!chains.empty()) model.refresh();
    return static_cast<int>(chains.size());
}

}  // namespace coppice
