// Removing channels: narrower tensors, and every constant that encoded a width or a place rewritten.
#include <torch/csrc/jit/passes/shape_analysis.h>

#include <numeric>

#include "groups/relations.h"

namespace coppice::prune {

using namespace torch::jit;

namespace {

bool is_number(const c10::IValue& value) {
    return value.isInt() || value.isDouble() || value.isBool();
}

bool same(const c10::IValue& a, const c10::IValue& b) {
    if (a.isTensor() && b.isTensor()) return at::equal(a.toTensor(), b.toTensor());
    if (a.isDouble() && b.isDouble()) return a.toDouble() == b.toDouble();
    if (a.isInt() && b.isInt()) return a.toInt() == b.toInt();
    if (a.isBool() && b.isBool()) return a.toBool() == b.toBool();
    if (a.isIntList() && b.isIntList()) return a.toIntVector() == b.toIntVector();
    return true;  // anything else hangs on no width
}

/// (value * numerator) / denominator in the graph, for a size that stays computed.
Value* scaled(Graph& graph, Value* value, int64_t numerator, int64_t denominator) {
    const int64_t divisor = std::max<int64_t>(std::gcd(numerator, denominator), 1);
    Value* product = graph.insert(aten::mul, {value, numerator / divisor});
    return graph.insert(aten::floordiv, {product, denominator / divisor});
}

}  // namespace

Cutter::Cutter(const Model& original, const Relations& relations, const std::unordered_set<int32_t>& removed)
    : original_(original), relations_(relations), removed_(removed) {}

int64_t Cutter::kept_between(TensorId id, int64_t dim, int64_t begin, int64_t end) const {
    dim = relations_.wrap(id, dim);
    begin = std::max<int64_t>(begin, 0);
    end = std::min(end, relations_.size(id, dim));
    int64_t kept = 0;
    for (int64_t i = begin; i < end; ++i) kept += removed_.count(relations_.class_of(id, dim, i)) ? 0 : 1;
    return kept;
}

std::vector<int64_t> Cutter::new_shape(TensorId id) const {
    std::vector<int64_t> shape;
    for (int64_t dim = 0; dim < relations_.rank(id); ++dim) shape.push_back(new_size(id, dim));
    return shape;
}

bool Cutter::touched(TensorId id) const {
    for (int64_t dim = 0; dim < relations_.rank(id); ++dim)
        if (touched(id, dim)) return true;
    return false;
}

void Cutter::fail(const Node* before, const std::string& problem) const {
    throw UnsupportedModel("prune at " + relations_.name_of(before),
                           std::string(before->kind().toQualString()) + " " + problem,
                           "Exclude the layer by `ignore`.");
}

std::optional<c10::IValue> Cutter::evaluate(const Value* value, bool cut) {
    auto& known = evaluated_[cut ? 1 : 0];
    if (const auto found = known.find(value); found != known.end()) return found->second;
    const auto compute = [&]() -> std::optional<c10::IValue> {
        if (auto constant = constant_of(value)) return constant;
        Node* node = const_cast<Node*>(value->node());
        switch (node->kind()) {
            case prim::GetAttr: {
                const auto name = attribute_name(value);
                if (!name || !has_attribute(original_, *name)) return std::nullopt;
                auto attribute = get_attribute(original_, *name);
                return is_number(attribute) || attribute.isIntList() ? std::optional<c10::IValue>(attribute)
                                                                     : std::nullopt;
            }
            case prim::If: {
                const int taken = relations_.taken_block(node);
                return taken < 0 ? std::nullopt : evaluate(node->blocks()[taken]->outputs()[value->offset()], cut);
            }
            case prim::Param:
            case prim::Loop:
                return std::nullopt;
            case aten::size: {
                const TensorId id = tensor(node->input(0));
                if (id == kNoTensor) return std::nullopt;
                const auto shape = cut ? new_shape(id) : relations_.shape(id);
                if (node->inputs().size() == 1) return c10::IValue(shape);
                const auto dim = evaluate(node->input(1), cut);
                if (!dim || !dim->isInt()) return std::nullopt;
                return c10::IValue(shape.at(static_cast<size_t>(relations_.wrap(id, dim->toInt()))));
            }
            case aten::numel: {
                const TensorId id = tensor(node->input(0));
                if (id == kNoTensor) return std::nullopt;
                return c10::IValue(c10::multiply_integers(cut ? new_shape(id) : relations_.shape(id)));
            }
            case aten::dim: {
                const TensorId id = tensor(node->input(0));
                return id == kNoTensor ? std::nullopt : std::optional<c10::IValue>(relations_.rank(id));
            }
            case prim::ListConstruct: {
                c10::List<int64_t> list;
                for (const Value* item : node->inputs()) {
                    const auto number = evaluate(item, cut);
                    if (!number || !number->isInt()) return std::nullopt;
                    list.push_back(number->toInt());
                }
                return c10::IValue(list);
            }
            case prim::ListUnpack: {
                const auto list = evaluate(node->input(0), cut);
                if (!list || !list->isIntList() || list->toIntVector().size() != node->outputs().size())
                    return std::nullopt;
                return c10::IValue(list->toIntVector()[value->offset()]);
            }
            default:
                break;
        }
        // Arithmetic on numbers: the operator itself tells.
        if (!node->maybeOperator() || !node->blocks().empty() || node->outputs().size() != 1 ||
            node->inputs().empty() || node->hasSideEffects())
            return std::nullopt;
        Stack stack;
        for (const Value* input : node->inputs()) {
            const auto known_input = evaluate(input, cut);
            if (!known_input) return std::nullopt;
            stack.push_back(known_input->isList() || known_input->isTensor() ? known_input->deepcopy() : *known_input);
        }
        try {
            node->getOperation()(stack);
        } catch (const std::exception&) {
            return std::nullopt;  // a size that is impossible before the rewrite, such as a division by zero
        }
        if (stack.size() != 1 || (stack[0].isTensor() && stack[0].toTensor().numel() > 1)) return std::nullopt;
        return stack[0];
    };
    auto result = compute();
    known[value] = result;
    return result;
}

void Cutter::set_constant(Node* after, size_t index, const c10::IValue& value) {
    WithInsertPoint guard(after);
    after->replaceInput(index, after->owningGraph()->insertConstant(value));
}

bool Cutter::set_attribute(const Value* before, const at::Tensor& tensor) {
    const auto name = attribute_name(before);
    if (!name || name->empty()) return false;
    set_tensor(copy_, *name, tensor);
    return true;
}

void Cutter::set_sizes(const Node* before, Node* after, size_t index, const std::vector<int64_t>& required) {
    const Value* list = before->inputs()[index];
    const auto was = relations_.integers(list);
    const auto now = evaluate(list, true);
    if (!was || was->size() != required.size()) fail(before, "has sizes that are not known");
    const auto literal = constant_of(list);
    const bool constructed = list->node()->kind() == prim::ListConstruct;
    std::vector<std::optional<int64_t>> now_entries(required.size());
    for (size_t i = 0; i < required.size(); ++i) {
        if (now && now->isIntList() && now->toIntVector().size() == required.size())
            now_entries[i] = now->toIntVector()[i];
        else if (constructed)
            if (const auto entry = evaluate(list->node()->inputs()[i], true); entry && entry->isInt())
                now_entries[i] = entry->toInt();
    }
    // -1 asks LibTorch to infer (view) or keep (expand) what is then right by itself.
    const auto fits = [&](size_t i) {
        return (*was)[i] == -1 || (now_entries[i] ? *now_entries[i] == required[i] : (*was)[i] == required[i]);
    };
    bool all_fit = true;
    for (size_t i = 0; i < required.size(); ++i) all_fit &= fits(i);
    if (all_fit) return;
    auto& graph = *after->owningGraph();
    WithInsertPoint guard(after);
    Value* old_list = after->inputs()[index];
    if (literal && !constructed) {
        auto sizes = *was;
        for (size_t i = 0; i < sizes.size(); ++i)
            if (!fits(i)) sizes[i] = required[i];
        after->replaceInput(index, graph.insertConstant(c10::IValue(sizes)));
        return;
    }
    std::vector<Value*> entries;
    for (size_t i = 0; i < required.size(); ++i) {
        Value* entry = constructed ? old_list->node()->inputs()[i]
                                   : graph.insert(aten::__getitem__, {old_list, static_cast<int64_t>(i)});
        if (!fits(i)) {
            const bool fixed = constructed ? constant_of(entry).has_value() : false;
            // A size that is computed may also follow the batch: scale it instead of fixing it.
            if (fixed || !now_entries[i] || *now_entries[i] <= 0)
                entry = graph.insertConstant(required[i]);
            else
                entry = scaled(graph, entry, required[i], *now_entries[i]);
        }
        entries.push_back(entry);
    }
    after->replaceInput(index, graph.insertNode(graph.createList(c10::IntType::get(), entries))->output());
}

// Numbers that an operator computes with must not follow a width: softmax(q k / sqrt(64)) stays divided by 8 when 48 of
// 64 are left.
void Cutter::keep_numbers(const Node* before, Node* after) {
    for (size_t i = 0; i < before->inputs().size(); ++i) {
        const Value* value = before->inputs()[i];
        const auto kind = value->type()->kind();
        const bool candidate = kind == c10::TypeKind::IntType || kind == c10::TypeKind::FloatType ||
                               kind == c10::TypeKind::NumberType || kind == c10::TypeKind::BoolType ||
                               kind == c10::TypeKind::ListType || kind == c10::TypeKind::OptionalType ||
                               (kind == c10::TypeKind::TensorType && relations_.find_tensor(value) != kNoTensor &&
                                relations_.rank(relations_.find_tensor(value)) == 0);
        if (!candidate || constant_of(value)) continue;
        const auto was = evaluate(value, false), now = evaluate(value, true);
        if (!was || !now || same(*was, *now)) continue;
        auto& graph = *after->owningGraph();
        WithInsertPoint guard(after);
        Value* entry = after->inputs()[i];
        if (was->isInt() && now->toInt() != 0)
            after->replaceInput(i, scaled(graph, entry, was->toInt(), now->toInt()));
        else if (was->isDouble() && now->toDouble() != 0)
            after->replaceInput(i, graph.insert(aten::mul, {entry, was->toDouble() / now->toDouble()}));
        else
            after->replaceInput(i, graph.insertConstant(*was));
    }
}

Model Cutter::run() {
    std::unordered_map<std::string, at::Tensor> narrower;
    for (const auto& parameter : relations_.parameters()) {
        if (!touched(parameter.id)) continue;
        at::Tensor tensor = parameter.tensor.detach();
        for (int64_t dim = 0; dim < relations_.rank(parameter.id); ++dim) {
            if (!touched(parameter.id, dim)) continue;
            std::vector<int64_t> kept;
            for (int64_t i = 0; i < relations_.size(parameter.id, dim); ++i)
                if (!removed_.count(relations_.class_of(parameter.id, dim, i))) kept.push_back(i);
            tensor = tensor.index_select(dim, at::tensor(kept, at::TensorOptions(at::kLong).device(tensor.device())));
        }
        narrower[parameter.name] = tensor.contiguous();
    }
    copy_ = original_.clone_with(narrower);
    const auto before = all_nodes(*original_.graph());
    const auto after = all_nodes(*copy_.graph());
    if (before.size() != after.size()) throw InternalError("prune", "the copy's graph differs from the original", "");
    // Branches that were not analysed keep their constants: everything they read is frozen.
    for (size_t i = 0; i < before.size(); ++i) {
        if (before[i]->kind() != after[i]->kind())
            throw InternalError("prune", "the copy's graph differs from the original", "");
        if (!relations_.analysed(before[i]->owningBlock())) continue;
        bool meets_tensor = before[i]->kind() == prim::If || before[i]->kind() == prim::Loop;
        for (const auto& values : {before[i]->inputs(), before[i]->outputs()})
            for (const Value* value : values) {
                const TensorId id = tensor(value);
                meets_tensor |= (id != kNoTensor && relations_.rank(id) > 0) || relations_.find_list(value) != nullptr;
            }
        if (!meets_tensor) continue;
        bool writes = before[i]->outputs().empty() || !before[i]->blocks().empty();
        for (const Value* value : before[i]->outputs())
            writes |= tensor(value) != kNoTensor || relations_.find_list(value);
        if (!writes) continue;  // questions about shapes give what they give
        const Rule* rule = find_rule(before[i]);
        if (rule && rule->edit)
            rule->edit(*this, before[i], after[i]);
        else if (before[i]->kind() != prim::ListConstruct && before[i]->kind() != prim::TupleConstruct)
            keep_numbers(before[i], after[i]);
    }
    EraseShapeInformation(copy_.graph());  // tracing leaves shapes in the types
    copy_.refresh();
    return copy_;
}

Model cut(const Model& model, const Facts&, const Groups& groups, const Removal& removal) {
    const auto relations = groups.relations();
    if (!relations) throw InvalidArgument("prune.cut", "the groups were made by hand", "Use find_groups().");
    if (removal.size() != groups.all().size())
        throw InvalidArgument("prune.cut",
                              "the removal has " + std::to_string(removal.size()) + " lists for " +
                                  std::to_string(groups.all().size()) + " groups",
                              "Give one list per group.");
    std::vector<std::vector<char>> goes;
    for (size_t g = 0; g < removal.size(); ++g) {
        const auto& group = groups.all()[g];
        goes.emplace_back(static_cast<size_t>(group.channels), 0);
        int64_t last = -1;
        for (const int64_t channel : removal[g]) {
            if (channel <= last || channel >= group.channels)
                throw InvalidArgument("prune.cut at " + group.name,
                                      "channel " + std::to_string(channel) + " is out of range or out of order",
                                      "Give sorted channels below " + std::to_string(group.channels) + ".");
            last = channel;
            goes.back()[static_cast<size_t>(channel)] = 1;
        }
        if (static_cast<int64_t>(removal[g].size()) >= group.channels)
            throw InvalidArgument("prune.cut at " + group.name,
                                  "all " + std::to_string(group.channels) + " channels would go", "Keep at least one.");
    }
    std::unordered_set<int32_t> removed;
    for (const auto& [c, place] : relations->places)
        if (goes[static_cast<size_t>(place.group)][static_cast<size_t>(place.channel)]) removed.insert(c);
    return removed.empty() ? model.clone() : Cutter(model, *relations, removed).run();
}

}  // namespace coppice::prune
