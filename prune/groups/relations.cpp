#include "groups/relations.h"

#include <torch/csrc/jit/runtime/interpreter.h>

namespace coppice::prune {

using namespace torch::jit;

namespace {

bool holds_tensor(const c10::TypePtr& type) {
    if (type->isSubtypeOf(*c10::TensorType::get())) return true;
    for (const auto& inner : type->containedTypes())
        if (holds_tensor(inner)) return true;
    return false;
}

}  // namespace

Relations::Relations(const Model& model, const Facts& facts, const GroupOptions& options)
    : model_(model), facts_(facts), options_(options), written_(written_in(*model_.graph())), names_(model) {}

// ----------------------------------------------------------------------------------------------------------- elements

int32_t Relations::root(int32_t element) const {
    while (parent_[element] != element) {
        parent_[element] = parent_[parent_[element]];
        element = parent_[element];
    }
    return element;
}

void Relations::unite(int32_t a, int32_t b) {
    a = root(a);
    b = root(b);
    if (a == b) return;
    if (b < a) std::swap(a, b);  // the older element leads: deterministic, and cheap enough with path halving
    parent_[b] = a;
    // The older reason stays: it is the one nearer to the cause.
    if (reason_[a] < 0 || (reason_[b] >= 0 && reason_[b] < reason_[a])) reason_[a] = reason_[b];
    inexact_[a] |= inexact_[b];
    independent_[a] |= independent_[b];
    repeated_[a] |= repeated_[b];
    has_parameter_[a] |= has_parameter_[b];
}

void Relations::freeze_element(int32_t element, int32_t reason) {
    const auto r = root(element);
    if (reason_[r] < 0) reason_[r] = reason;
}

int32_t Relations::intern(const std::string& reason) {
    const auto [found, added] = reason_ids_.emplace(reason, static_cast<int32_t>(reasons_.size()));
    if (added) reasons_.push_back(reason);
    return found->second;
}

TensorId Relations::make_tensor(const std::vector<int64_t>& shape) {
    Tracked tracked;
    tracked.shape = shape;
    for (const int64_t size : shape) {
        const auto first = static_cast<int32_t>(parent_.size());
        tracked.first.push_back(first);
        const size_t count = parent_.size() + static_cast<size_t>(size);
        if (count > 1'000'000'000)
            throw UnsupportedModel("prune", "the model has too many tensor elements to analyse",
                                   "Use a smaller example input.");
        parent_.resize(count);
        for (size_t i = static_cast<size_t>(first); i < count; ++i) parent_[i] = static_cast<int32_t>(i);
        reason_.resize(count, -1);
        inexact_.resize(count, 0);
        independent_.resize(count, 0);
        repeated_.resize(count, 0);
        has_parameter_.resize(count, 0);
    }
    tensors_.push_back(std::move(tracked));
    return static_cast<TensorId>(tensors_.size()) - 1;
}

// ------------------------------------------------------------------------------------------------------------ tensors

TensorId Relations::tensor(const Value* value) {
    if (const auto known = of_value_.find(value); known != of_value_.end()) return known->second;
    TensorId id = kNoTensor;
    if (value->node()->kind() == prim::GetAttr) {
        if (const auto name = attribute_name(value); name && has_attribute(model_, *name)) {
            const auto attribute = get_attribute(model_, *name);
            if (attribute.isTensor() && attribute.toTensor().defined()) {
                const auto tensor = attribute.toTensor();
                const auto known = parameter_of_impl_.find(tensor.unsafeGetTensorImpl());
                if (known != parameter_of_impl_.end()) {
                    id = parameters_[known->second].id;
                } else {
                    id = make_tensor(tensor.sizes().vec());
                    for (int64_t dim = 0; dim < tensor.dim(); ++dim)
                        for (int64_t i = 0; i < tensor.size(dim); ++i) has_parameter_[tensors_[id].first[dim] + i] = 1;
                    parameter_of_impl_[tensor.unsafeGetTensorImpl()] = parameters_.size();
                    parameters_.push_back({id, *name, tensor});
                }
            }
        }
    } else if (const auto tried = tried_.find(value); tried != tried_.end() && tried->second.is_tensor) {
        id = make_tensor(tried->second.shape);
    } else if (facts_.has_shape(value)) {
        id = make_tensor(facts_.shape(value));
        if (value->node()->kind() == prim::Constant) freeze_all(id, "meets a tensor constant of the graph");
    }
    of_value_[value] = id;
    return id;
}

TensorId Relations::find_tensor(const Value* value) const {
    const auto known = of_value_.find(value);
    return known == of_value_.end() ? kNoTensor : known->second;
}

std::shared_ptr<std::vector<TensorId>> Relations::list(const Value* value) {
    return find_list(value);
}

std::shared_ptr<std::vector<TensorId>> Relations::find_list(const Value* value) const {
    const auto known = lists_.find(value);
    return known == lists_.end() ? nullptr : known->second;
}

std::shared_ptr<std::vector<std::string>> Relations::keys(const Value* value) const {
    const auto known = keys_.find(value);
    return known == keys_.end() ? nullptr : known->second;
}

// ---------------------------------------------------------------------------------------------------------- relations

void Relations::tie(TensorId a, int64_t dim_a, TensorId b, int64_t dim_b) {
    if (a == kNoTensor || b == kNoTensor) return;
    dim_a = wrap(a, dim_a);
    dim_b = wrap(b, dim_b);
    const int64_t count = size(a, dim_a);
    if (count != size(b, dim_b))
        throw InternalError(
            "prune", "tied dimensions of size " + std::to_string(count) + " and " + std::to_string(size(b, dim_b)), "");
    for (int64_t i = 0; i < count; ++i)
        unite(tensors_[a].first[dim_a] + static_cast<int32_t>(i), tensors_[b].first[dim_b] + static_cast<int32_t>(i));
}

void Relations::tie(TensorId a, int64_t dim_a, int64_t index_a, TensorId b, int64_t dim_b, int64_t index_b) {
    unite(tensors_[a].first[wrap(a, dim_a)] + static_cast<int32_t>(index_a),
          tensors_[b].first[wrap(b, dim_b)] + static_cast<int32_t>(index_b));
}

void Relations::tie_all(TensorId a, TensorId b) {
    if (a == kNoTensor || b == kNoTensor) return;
    if (rank(a) != rank(b)) throw InternalError("prune", "tied tensors of different rank", "");
    for (int64_t dim = 0; dim < rank(a); ++dim) tie(a, dim, b, dim);
}

void Relations::tie_broadcast(TensorId a, TensorId b) {
    if (a == kNoTensor || b == kNoTensor) return;
    for (int64_t back = 1; back <= std::min(rank(a), rank(b)); ++back) {
        if (size(a, -back) == size(b, -back))
            tie(a, -back, b, -back);
        else if (size(a, -back) == 1)
            freeze(a, -back, "serves all indices of a dimension");  // gone, it would leave nothing to spread
    }
}

void Relations::tie_reshaped(TensorId x, TensorId y) {
    if (x == kNoTensor || y == kNoTensor) return;
    if (c10::multiply_integers(shape(x)) != c10::multiply_integers(shape(y)))
        throw InternalError("prune", "reshaped to another number of elements", "");
    // Dimensions of size 1 carry nothing. Both shapes fall into the smallest runs of dimensions with equal products.
    std::vector<Factor> from, to;
    for (int64_t dim = 0; dim < rank(x); ++dim)
        if (size(x, dim) != 1) from.push_back({x, dim});
    for (int64_t dim = 0; dim < rank(y); ++dim)
        if (size(y, dim) != 1) to.push_back({y, dim});
    for (const auto& factors : {from, to})
        for (const auto& factor : factors)
            if (size(factor.id, factor.dim) == 0) return;
    for (size_t i = 0, j = 0; i < from.size() && j < to.size();) {
        std::vector<Factor> left{from[i]}, right{to[j]};
        int64_t left_size = size(from[i].id, from[i].dim), right_size = size(to[j].id, to[j].dim);
        ++i, ++j;
        while (left_size != right_size) {
            if (left_size < right_size) {
                left_size *= size(from[i].id, from[i].dim);
                left.push_back(from[i++]);
            } else {
                right_size *= size(to[j].id, to[j].dim);
                right.push_back(to[j++]);
            }
        }
        if (left.size() == 1 && right.size() == 1) {
            tie(left[0].id, left[0].dim, right[0].id, right[0].dim);
        } else if (right.size() == 1) {
            foldings_.push_back({left, right[0]});
        } else if (left.size() == 1) {
            foldings_.push_back({right, left[0]});
        } else {
            const TensorId flat = make_tensor({left_size});
            foldings_.push_back({left, {flat, 0}});
            foldings_.push_back({right, {flat, 0}});
        }
    }
}

bool Relations::all_marked(const std::vector<char>& marks, const Factor& factor) const {
    for (int64_t i = 0; i < size(factor.id, factor.dim); ++i)
        if (!marks[class_of(factor.id, factor.dim, i)]) return false;
    return true;
}

bool Relations::all_frozen(const Factor& factor) const {
    for (int64_t i = 0; i < size(factor.id, factor.dim); ++i)
        if (!frozen(class_of(factor.id, factor.dim, i))) return false;
    return true;
}

// True when indices with the same digit are tied already: [N*H, ...] as attention makes it of [N, H*E] knows that heads
// repeat, and losing anything but heads would tie all of them together.
bool Relations::is_tied_by(const Folding& folding, size_t digit) const {
    int64_t inner = 1;
    for (size_t i = digit + 1; i < folding.factors.size(); ++i)
        inner *= size(folding.factors[i].id, folding.factors[i].dim);
    const int64_t count = size(folding.factors[digit].id, folding.factors[digit].dim);
    const auto& flat = folding.flat;
    for (int64_t k = 0; k < size(flat.id, flat.dim); ++k)
        if (class_of(flat.id, flat.dim, k) != class_of(flat.id, flat.dim, k / inner % count * inner)) return false;
    return true;
}

// A flat dimension can lose the indices of one of its digits, at every value of the others: [C, H, W] -> [C*H*W] loses
// blocks, heads x width -> features loses whole heads. Which digit is a choice where several are free; the others are
// frozen. Preferred: what the flat dimension is tied by already, then heads of attention (or what is beside them, where
// options ask for head width), then digits that a parameter knows, then what is no mere repetition (keys that several
// heads share), then the largest.
void Relations::resolve(const Folding& folding) {
    const auto& flat = folding.flat;
    const Factor* active = nullptr;
    const auto rank_of = [&](const Factor& factor) {
        bool is_independent = false, has_parameter = false, is_repeated = false;
        for (int64_t i = 0; i < size(factor.id, factor.dim); ++i) {
            const auto r = class_of(factor.id, factor.dim, i);
            is_independent |= independent_[r] != 0;
            has_parameter |= has_parameter_[r] != 0;
            is_repeated |= repeated_[r] != 0;
        }
        return std::make_tuple(is_tied_by(folding, static_cast<size_t>(&factor - folding.factors.data())),
                               is_independent != options_.head_width, has_parameter, !is_repeated,
                               size(factor.id, factor.dim));
    };
    if (!all_frozen(flat))
        for (const auto& factor : folding.factors)
            if (!all_frozen(factor) && (!active || rank_of(factor) > rank_of(*active))) active = &factor;
    if (!active) {
        // Every part is needed as it is: so is the whole, and the other way round.
        const auto& known = all_frozen(flat) ? flat : folding.factors.front();
        const std::string why = reason(class_of(known.id, known.dim, 0));
        freeze(flat.id, flat.dim, why);
        for (const auto& factor : folding.factors) freeze(factor.id, factor.dim, why);
        return;
    }
    for (const auto& factor : folding.factors)
        if (&factor != active)
            freeze(factor.id, factor.dim, "shares one dimension with another that is pruned instead");
    int64_t inner = 1;
    for (size_t i = folding.factors.size(); i-- > 0;) {
        if (&folding.factors[i] == active) break;
        inner *= size(folding.factors[i].id, folding.factors[i].dim);
    }
    const int64_t count = size(active->id, active->dim);
    for (int64_t k = 0; k < size(flat.id, flat.dim); ++k)
        tie(flat.id, flat.dim, k, active->id, active->dim, k / inner % count);
}

void Relations::freeze(TensorId id, int64_t dim, const std::string& reason) {
    if (id == kNoTensor) return;
    dim = wrap(id, dim);
    const auto number = intern(reason);
    for (int64_t i = 0; i < size(id, dim); ++i)
        freeze_element(tensors_[id].first[dim] + static_cast<int32_t>(i), number);
}

void Relations::freeze_all(TensorId id, const std::string& reason) {
    if (id == kNoTensor) return;
    for (int64_t dim = 0; dim < rank(id); ++dim) freeze(id, dim, reason);
}

void Relations::freeze_value(const Value* value, const std::string& reason) {
    if (!holds_tensor(value->type())) return;
    freeze_all(tensor(value), reason);
    if (const auto tensors = list(value))
        for (const TensorId id : *tensors) freeze_all(id, reason);
}

void Relations::freeze_node(const Node* node, const std::string& reason) {
    for (const Value* value : node->inputs()) freeze_value(value, reason);
    for (const Value* value : node->outputs()) freeze_value(value, reason);
}

void Relations::refuse(const Node* node, const std::string& why) {
    const std::string name = std::string(node->kind().toQualString()) + " at " + names_.of(node);
    freeze_node(node, "meets " + name + ", which " + why);
    for (const Value* value : node->inputs()) spoil(node, value);
    if (unknown_seen_.insert(node->kind().toQualString()).second) unknown_.push_back(name);
}

// A list that an operator changes in ways that are not followed: later readers must not trust what is known of it.
void Relations::spoil(const Node* node, const Value* value) {
    const auto tensors = list(value);
    if (!tensors) return;
    const auto* schema = node->maybeSchema();
    for (size_t i = 0; i < node->inputs().size(); ++i) {
        if (node->inputs()[i] != value) continue;
        const bool known_argument = schema && i < schema->arguments().size();
        const auto* alias = known_argument ? schema->arguments()[i].alias_info() : nullptr;
        if (alias && alias->isWrite()) tensors->push_back(kNoTensor);
    }
}

void Relations::produces(const Value* weight, int64_t dim, const Node* layer) {
    if (weight->node()->kind() != prim::GetAttr) return;
    const TensorId id = tensor(weight);
    if (id != kNoTensor) productions_.push_back({id, dim, layer});
}

void Relations::statistic(const Node* node, TensorId id, int64_t dim) {
    if (id == kNoTensor) return;
    statistics_.insert(node);
    mark(inexact_, id, dim);
}

void Relations::mark(std::vector<char>& marks, TensorId id, int64_t dim) {
    if (id == kNoTensor) return;
    dim = wrap(id, dim);
    for (int64_t i = 0; i < size(id, dim); ++i) marks[class_of(id, dim, i)] = 1;
}

void Relations::repeated(TensorId id, int64_t dim) {
    mark(repeated_, id, dim);
}

void Relations::independent(TensorId id, int64_t dim) {
    mark(independent_, id, dim);
}

// ------------------------------------------------------------------------------------------------------------ numbers

std::optional<c10::IValue> Relations::known(const Value* value) const {
    if (auto constant = constant_of(value)) return constant;
    if (const auto tried = tried_.find(value); tried != tried_.end()) return tried->second.constant;
    const auto* fact = facts_.find(value);
    return fact ? fact->constant : std::nullopt;
}

std::optional<int64_t> Relations::integer(const Value* value) const {
    const auto constant = known(value);
    return constant && constant->isInt() ? std::optional<int64_t>(constant->toInt()) : std::nullopt;
}

std::optional<std::vector<int64_t>> Relations::integers(const Value* value) const {
    const auto constant = known(value);
    if (constant && constant->isIntList()) return constant->toIntVector();
    if (constant && constant->isInt()) return std::vector<int64_t>{constant->toInt()};
    if (constant && constant->isList() && constant->toListRef().empty()) return std::vector<int64_t>{};
    return std::nullopt;
}

std::optional<bool> Relations::boolean(const Value* value) const {
    const auto constant = known(value);
    return constant && constant->isBool() ? std::optional<bool>(constant->toBool()) : std::nullopt;
}

std::optional<std::string> Relations::text(const Value* value) const {
    const auto constant = known(value);
    return constant && constant->isString() ? std::optional<std::string>(constant->toStringRef()) : std::nullopt;
}

bool Relations::is_none(const Value* value) const {
    if (value->mustBeNone()) return true;
    const auto constant = known(value);
    return constant && constant->isNone();
}

std::optional<std::vector<int64_t>> Relations::constant_places(const Value* value, int64_t size) const {
    at::Tensor tensor;
    if (const auto constant = toIValue(value); constant && constant->isTensor()) {
        tensor = constant->toTensor();
    } else if (const auto name = attribute_name(value); name && !name->empty() && has_attribute(model_, *name)) {
        const auto attribute = get_attribute(model_, *name);
        if (!attribute.isTensor() || written_.count(value->node()->s(attr::name))) return std::nullopt;
        tensor = attribute.toTensor();
        size_t reads = value->uses().size();
        for (const Node* node : all_nodes(*model_.graph())) {
            if (node->kind() != prim::GetAttr || node == value->node()) continue;
            const auto other = attribute_name(node->output());
            if (!other || other->empty() || !holds_tensor(node->output()->type())) continue;
            const auto read = get_attribute(model_, *other);
            if (read.isTensor() && read.toTensor().is_same(tensor)) reads += node->output()->uses().size();
        }
        if (reads != 1) return std::nullopt;
    }
    if (!tensor.defined() || tensor.dim() != 1 || tensor.numel() == 0) return std::nullopt;
    if (tensor.scalar_type() == at::kBool) {
        if (tensor.size(0) != size) return std::nullopt;
        tensor = tensor.nonzero().squeeze(1);
    }
    if (!at::isIntegralType(tensor.scalar_type(), /*includeBool=*/false)) return std::nullopt;
    tensor = tensor.to(at::kCPU, at::kLong).contiguous();
    std::vector<int64_t> places(tensor.data_ptr<int64_t>(), tensor.data_ptr<int64_t>() + tensor.numel());
    for (auto& place : places) {
        if (place < 0) place += size;
        if (place < 0 || place >= size) return std::nullopt;
    }
    return places;
}

// --------------------------------------------------------------------------------------------------------------- walk

void Relations::build() {
    const auto graph = model_.graph();
    for (size_t i = 1; i < graph->inputs().size(); ++i) {
        freeze_value(graph->inputs()[i], "is an input of the model");
        // Tensors inside of containers have no facts of their own; whatever unpacks them is frozen as unknown.
    }
    walk(graph->block());
    for (const Value* value : graph->outputs()) freeze_value(value, "is an output of the model");
    // Heads that share what is repeated for them: what is shared counts independent problems as well. So does what is
    // made of nothing else, [batch * heads]. From the last merge to the first, because one may feed another.
    for (size_t i = foldings_.size(); i-- > 0;) {
        const auto& [factors, flat] = foldings_[i];
        const auto is_repeated = [this](const Factor& factor) { return all_marked(repeated_, factor); };
        const auto is_independent = [this](const Factor& factor) { return all_marked(independent_, factor); };
        if (std::any_of(factors.begin(), factors.end(), is_repeated) && is_independent(flat))
            for (const auto& factor : factors) independent(factor.id, factor.dim);
        else if (std::all_of(factors.begin(), factors.end(), is_independent))
            independent(flat.id, flat.dim);
    }
    // In order of the graph: what an early split decides, a later merge finds decided.
    for (size_t i = 0; i < foldings_.size(); ++i) resolve(foldings_[i]);
}

int Relations::taken_block(const Node* node) const {
    if (const auto condition = boolean(node->input(0))) return *condition ? 0 : 1;
    if (const auto name = attribute_name(node->input(0)); name && has_attribute(model_, *name)) {
        const auto attribute = get_attribute(model_, *name);
        if (attribute.isBool()) return attribute.toBool() ? 0 : 1;
    }
    for (int i = 0; i < 2; ++i)
        for (const Node* inner : node->blocks()[i]->nodes())
            if (facts_.runs(inner) > 0) return i;
    return -1;
}

void Relations::freeze_reads(const Block* block, const std::string& reason) {
    for (const Node* node : const_cast<Block*>(block)->nodes()) {
        if (node->kind() == prim::GetAttr || node->kind() == prim::Constant) continue;
        // A shape query in a branch that is not taken constrains nothing.
        bool writes_tensor = false;
        for (const Value* value : node->outputs()) writes_tensor |= holds_tensor(value->type());
        if (writes_tensor || node->outputs().empty())
            for (const Value* value : node->inputs()) {
                freeze_value(value, reason);
                spoil(node, value);
            }
        for (const Block* inner : const_cast<Node*>(node)->blocks()) freeze_reads(inner, reason);
    }
    for (const Value* value : const_cast<Block*>(block)->outputs()) freeze_value(value, reason);
}

// By last names: an attribute counts as written when one of that name is set, or may be changed in place.
std::unordered_set<std::string> Relations::written_in(const Graph& graph) {
    std::unordered_set<std::string> written;
    for (const Node* node : all_nodes(graph)) {
        if (node->kind() == prim::SetAttr) written.insert(node->s(attr::name));
        if (node->kind() != prim::GetAttr) continue;
        const auto type = node->output()->type()->cast<c10::ClassType>();
        if (type && type->is_module()) continue;  // its attributes are read, and looked at, by themselves
        for (const auto& use : node->output()->uses()) {
            const auto indexes = [](const Use& by) { return by.user->kind() == aten::index; };
            if (use.user->kind() == prim::ListConstruct && use.user->output()->hasUses() &&
                std::all_of(use.user->output()->uses().begin(), use.user->output()->uses().end(), indexes))
                continue;
            const auto* schema = use.user->maybeSchema();
            const bool known = schema && use.offset < schema->arguments().size();
            const auto* alias = known ? schema->arguments()[use.offset].alias_info() : nullptr;
            if (!known || (alias && alias->isWrite())) written.insert(node->s(attr::name));
        }
    }
    return written;
}

// Computed from constants and attributes that no method writes alone, or from ranks.
bool Relations::fixed(const Value* value, bool at_this_rank) const {
    Node* node = const_cast<Node*>(value->node());
    if (node->kind() == prim::Constant) return true;
    if (holds_tensor(value->type()) || node->kind() == prim::Param) return false;
    if (node->kind() == prim::GetAttr) {
        const auto name = attribute_name(value);
        if (!name || name->empty() || node->s(attr::name) == "training" || value->type()->cast<c10::ClassType>())
            return false;
        return !written_.count(node->s(attr::name));
    }
    if (at_this_rank) {
        if (node->kind() == aten::dim) return true;
        if (node->kind() == aten::len && node->input()->node()->kind() == aten::size) return true;
        if (node->kind() == prim::If) {  // `and`, `or`
            bool all = fixed(node->input(0), true);
            for (const Block* block : node->blocks()) all &= fixed(block->outputs()[value->offset()], true);
            return all;
        }
    }
    if (node->inputs().empty() || !node->blocks().empty() || node->hasSideEffects() || node->isNondeterministic())
        return false;
    for (const Value* input : node->inputs())
        if (!fixed(input, at_this_rank)) return false;
    return true;
}

void Relations::walk_if(const Node* node) {
    const int taken = taken_block(node);
    if (taken >= 0 && fixed(node->input(0))) {  // the other branch is dead
        const Block* block = const_cast<Node*>(node)->blocks()[taken];
        walk(block);
        for (size_t i = 0; i < node->outputs().size(); ++i) {
            const Value *result = node->outputs()[i], *inner = const_cast<Block*>(block)->outputs()[i];
            if (!holds_tensor(result->type())) continue;
            if (const auto tensors = list(inner)) set_list(result, tensors);
            if (const auto names = keys(inner)) set_keys(result, names);
            if (const TensorId id = tensor(inner); id != kNoTensor) set_tensor(result, id);
        }
        return;
    }
    std::vector<bool> related(2, false);
    for (int i = 0; i < 2; ++i) {
        const Block* block = const_cast<Node*>(node)->blocks()[i];
        if (i == taken || (taken >= 0 && try_block(block))) {
            walk(block);
            related[i] = true;
        } else if (taken < 0 || !fixed(node->input(0), true)) {
            // Not so a branch for tensors of another rank, which cannot even be tried on these: it stays as it is.
            freeze_reads(block, "is read in a branch that the example input does not take (" + names_.of(node) + ")");
        }
    }
    if (taken < 0) {
        freeze_node(node, "leaves a branch that the analysis cannot follow (" + names_.of(node) + ")");
        return;
    }
    const int other = 1 - taken;
    for (size_t i = 0; i < node->outputs().size(); ++i) {
        const Value* result = node->outputs()[i];
        if (!holds_tensor(result->type())) continue;
        const Value* inner = node->blocks()[taken]->outputs()[i];
        if (const auto tensors = list(inner)) set_list(result, tensors);
        if (const auto names = keys(inner)) set_keys(result, names);
        const TensorId id = tensor(inner);
        if (id != kNoTensor) set_tensor(result, id);
        if (!related[other]) continue;
        // What the other branch would give has to fit as well.
        const Value* alternative = node->blocks()[other]->outputs()[i];
        const TensorId second = tensor(alternative);
        const std::string why = "has another size in a branch (" + names_.of(node) + ")";
        const auto entries = list(inner), others = list(alternative);
        if (entries && others && entries->size() == others->size() && !keys(inner) && !keys(alternative)) {
            for (size_t k = 0; k < entries->size(); ++k) tie_alternative((*entries)[k], (*others)[k], why);
        } else if (entries || others) {
            freeze_value(inner, why);
            freeze_value(alternative, why);
        } else {
            tie_alternative(id, second, why);
        }
    }
}

// Same channels: what else differs stays. Recurrent modules give an input without a batch dimension one of size 1, and
// take it away again: where the ranks differ, dimensions of size 1 are left out of the comparison.
void Relations::tie_alternative(TensorId taken, TensorId other, const std::string& why) {
    std::vector<int64_t> dims[2], sizes[2];
    const bool same_rank = taken != kNoTensor && other != kNoTensor && rank(taken) == rank(other);
    for (const int i : {0, 1}) {
        const TensorId id = i == 0 ? taken : other;
        for (int64_t dim = 0; id != kNoTensor && dim < rank(id); ++dim) {
            if (!same_rank && size(id, dim) == 1) {
                freeze(id, dim, why);
                continue;
            }
            dims[i].push_back(dim);
            sizes[i].push_back(size(id, dim));
        }
    }
    if (taken == kNoTensor || other == kNoTensor || (!same_rank && sizes[0] != sizes[1])) {
        freeze_all(taken, why);
        freeze_all(other, why);
        return;
    }
    for (size_t k = 0; k < dims[0].size(); ++k) {
        if (sizes[0][k] == sizes[1][k]) {
            tie(taken, dims[0][k], other, dims[1][k]);
        } else {
            freeze(taken, dims[0][k], why);
            freeze(other, dims[1][k], why);
        }
    }
}

// A branch that the example does not take (padding that is not needed, stochastic depth while training) has no facts.
// It is run by itself, on zeros in the shapes seen, to learn its shapes; where that fails, everything it reads is
// frozen.
bool Relations::try_block(const Block* block) {
    std::unordered_map<const Value*, c10::IValue> values;
    torch::NoGradGuard no_grad;
    try {
        try_nodes(block, values);
    } catch (const std::exception&) {
        return false;  // it raises on this shape, or needs what is not known: the caller freezes and says so
    }
    for (const auto& [value, content] : values) {
        ValueFact fact;
        if (content.isTensor() && content.toTensor().defined()) {
            fact.is_tensor = true;
            fact.shape = content.toTensor().sizes().vec();
            fact.dtype = content.toTensor().scalar_type();
        } else if (!content.isTensor() && !content.isTensorList() && !content.isObject()) {
            fact.constant = content;
        }
        tried_[value] = std::move(fact);
    }
    return true;
}

c10::IValue Relations::stand_in(const Value* value, const std::unordered_map<const Value*, c10::IValue>& values) const {
    if (const auto computed = values.find(value); computed != values.end()) return computed->second;
    if (const auto constant = toIValue(value)) return *constant;
    if (const auto name = attribute_name(value); name && !name->empty() && has_attribute(model_, *name)) {
        const auto attribute = get_attribute(model_, *name);
        // A branch for training may update statistics in place.
        return attribute.isTensor() && attribute.toTensor().defined()
                   ? c10::IValue(attribute.toTensor().detach().clone())
                   : attribute;
    }
    if (const auto number = known(value)) return *number;
    if (facts_.has_shape(value)) return at::zeros(facts_.shape(value), facts_.find(value)->dtype);
    if (const auto tried = tried_.find(value); tried != tried_.end() && tried->second.is_tensor)
        return at::zeros(tried->second.shape, tried->second.dtype);
    // A device, or a list of tensors: computed again from stand-ins.
    Node* node = const_cast<Node*>(value->node());
    if (node->kind() == prim::Param || !node->blocks().empty() || node->hasSideEffects())
        throw InternalError("prune", "a value of the branch is not known", "");
    return run_alone(node, values).at(value->offset());
}

std::vector<c10::IValue> Relations::run_alone(Node* node,
                                              const std::unordered_map<const Value*, c10::IValue>& values) const {
    auto graph = std::make_shared<Graph>();
    Stack stack;
    std::unordered_map<Value*, Value*> inputs;
    for (Value* input : node->inputs()) {
        if (inputs.count(input)) continue;
        inputs[input] = graph->addInput()->setType(input->type());
        stack.push_back(stand_in(input, values));
    }
    Node* copy = graph->insertNode(graph->createClone(node, [&](Value* value) { return inputs.at(value); }));
    for (Value* output : copy->outputs()) graph->registerOutput(output);
    InterpreterState(Code(graph, "branch")).run(stack);
    return stack;
}

void Relations::try_nodes(const Block* block, std::unordered_map<const Value*, c10::IValue>& values) {
    for (Node* node : const_cast<Block*>(block)->nodes()) {
        if (node->kind() == prim::Constant || node->kind() == prim::GetAttr) continue;
        if (node->kind() == prim::If) {
            const Block* taken = node->blocks()[stand_in(node->input(0), values).toBool() ? 0 : 1];
            try_nodes(taken, values);
            for (size_t i = 0; i < node->outputs().size(); ++i)
                values[node->outputs()[i]] = stand_in(const_cast<Block*>(taken)->outputs()[i], values);
            continue;
        }
        // Lists from outside would change for the branch that is taken, too.
        if (!node->blocks().empty() || node->kind() == prim::SetAttr || node->kind() == aten::append ||
            node->kind() == aten::_set_item)
            throw InternalError("prune", "the branch has effects", "");
        const auto stack = run_alone(node, values);
        for (size_t i = 0; i < node->outputs().size(); ++i) values[node->outputs()[i]] = stack.at(i);
    }
}

void Relations::walk(const Block* block) {
    analysed_.insert(block);
    for (const Node* node : const_cast<Block*>(block)->nodes()) {
        switch (node->kind()) {
            case prim::Constant:
            case prim::GetAttr:
                continue;
            case prim::If:
                walk_if(node);
                continue;
            case prim::Loop:
                freeze_reads(node->blocks()[0], "is read in a loop (" + names_.of(node) + ")");
                freeze_node(node, "passes through a loop (" + names_.of(node) + ")");
                continue;
            default:
                break;
        }
        bool reads = false, writes = false;
        for (const Value* value : node->inputs()) reads |= holds_tensor(value->type());
        for (const Value* value : node->outputs()) writes |= holds_tensor(value->type());
        if (!reads && !writes) continue;
        if (const Rule* rule = find_rule(node)) {
            try {
                rule->relate(*this, node);
            } catch (const InternalError&) {
                refuse(node, "has shapes that its rule does not expect");
            }
            // Tensors must not get lost in a list that no rule recorded (list + list).
            for (const Value* value : node->outputs()) {
                const auto kind = value->type()->kind();
                const bool container = kind == c10::TypeKind::ListType || kind == c10::TypeKind::TupleType ||
                                       kind == c10::TypeKind::DictType;
                if (container && holds_tensor(value->type()) && !list(value))
                    refuse(node, "makes a list that is not followed");
            }
            continue;
        }
        // A question about a tensor (size, dtype, device) has no tensor for an answer and constrains nothing.
        const bool question = !writes && !node->outputs().empty();
        if (question) continue;
        // Numbers that tracing wrapped in tensors: no dimension, nothing to tie.
        bool scalars = true;
        for (const auto& values : {node->inputs(), node->outputs()})
            for (const Value* value : values)
                if (holds_tensor(value->type())) {
                    const TensorId id = tensor(value);
                    scalars &= id != kNoTensor && rank(id) == 0;
                }
        if (!scalars) refuse(node);
    }
}

}  // namespace coppice::prune
