#include <coppice/dataflow.h>
#include <coppice/deploy.h>
#include <coppice/graph.h>

namespace coppice {
namespace {

using namespace torch::jit;

// Operators whose result is memory of its own, as their schemas say. Those that may return their input (dropout,
// contiguous, to, reshape) or a part of it must not be overwritten.
bool is_fresh(const Value* value) {
    static const std::set<std::string> kFresh = {"aten::_add_relu",
                                                 "aten::_convolution",
                                                 "aten::adaptive_avg_pool2d",
                                                 "aten::add",
                                                 "aten::addmm",
                                                 "aten::avg_pool2d",
                                                 "aten::batch_norm",
                                                 "aten::bmm",
                                                 "aten::cat",
                                                 "aten::conv1d",
                                                 "aten::conv2d",
                                                 "aten::conv3d",
                                                 "aten::conv_transpose1d",
                                                 "aten::conv_transpose2d",
                                                 "aten::conv_transpose3d",
                                                 "aten::elu",
                                                 "aten::group_norm",
                                                 "aten::hardswish",
                                                 "aten::hardtanh",
                                                 "aten::layer_norm",
                                                 "aten::leaky_relu",
                                                 "aten::linear",
                                                 "aten::matmul",
                                                 "aten::max_pool2d",
                                                 "aten::mm",
                                                 "aten::mul",
                                                 "aten::relu",
                                                 "aten::sigmoid",
                                                 "aten::silu",
                                                 "aten::sub",
                                                 "aten::tanh"};
    if (kFresh.count(value->node()->kind().toQualString())) return true;
    // The model's own operators in place hand on the memory that they wrote into.
    const auto kind = value->node()->kind();
    const bool in_place = kind == aten::add_ || kind == aten::relu_ || kind == aten::mul_ || kind == aten::hardtanh_;
    return in_place && value->node()->input(0)->uses().size() == 1 && is_fresh(value->node()->input(0));
}

struct Rewriter {
    Graph& graph;
    const Facts& facts;
    const std::set<const Value*> dependent;                 // what the model's inputs reach
    const std::optional<Facts> doubled;                     // on a batch of twice the size, where the model takes one
    std::unordered_map<const Value*, const Value*> origin;  // values made here -> the value that they stand for

    const Value* original(const Value* value) const {
        const auto found = origin.find(value);
        return found == origin.end() ? value : found->second;
    }

    const ValueFact* fact(const Value* value) const { return facts.find(original(value)); }

    // Of one size on the example, and on any other batch: what no input reaches does not grow with it.
    bool grows_like(const Value* value, const Value* result) const {
        if (!same_shape(value, result)) return false;
        const auto *a = original(value), *b = original(result);
        if (!dependent.count(a) && dependent.count(b)) return false;
        return !doubled || !doubled->has_shape(a) || !doubled->has_shape(b) || doubled->shape(a) == doubled->shape(b);
    }

    bool is_float(const Value* value) const {
        const auto* known = fact(value);
        return known && known->is_tensor && known->dtype == at::kFloat;
    }

    bool same_shape(const Value* a, const Value* b) const {
        const auto *x = fact(a), *y = fact(b);
        return x && y && x->is_tensor && y->is_tensor && x->shape == y->shape && x->dtype == y->dtype;
    }

    // May `value` be overwritten by its only reader `user` with a result like `result`? Both in one block: in a loop
    // the value could be read again in the next round.
    bool may_overwrite(const Value* value, const Node* user, const Value* result) const {
        return (is_fresh(value) || origin.count(value)) && value->uses().size() == 1 &&
               value->node()->owningBlock() == user->owningBlock() && is_float(value) && grows_like(value, result);
    }

    // @param alpha the factor of an addition, which goes by name: by position the overload for a number would be taken
    Value* replace(Node* node, const std::string& op, const std::vector<NamedValue>& arguments, const Value* stands_for,
                   Value* alpha = nullptr) {
        WithInsertPoint guard(node);
        Value* const value =
            graph.insert(Symbol::fromQualString(op), arguments,
                         alpha ? std::vector<NamedValue>{NamedValue("alpha", alpha)} : std::vector<NamedValue>{});
        value->setType(node->output()->type());
        value->node()->setSourceRange(node->sourceRange());
        value->node()->setScope(node->scope());
        if (node->callstack()) value->node()->setCallStack(*node->callstack());
        const auto found = origin.find(stands_for);
        origin[value] = found == origin.end() ? stands_for : found->second;
        node->output()->replaceAllUsesWith(value);
        return value;
    }
};

bool is_tensor_add(const Node* node) {
    return (node->kind() == aten::add || node->kind() == aten::add_) && node->inputs().size() == 3 &&
           node->input(0)->type()->isSubtypeOf(*c10::TensorType::get()) &&
           node->input(1)->type()->isSubtypeOf(*c10::TensorType::get());
}

// May `first` be carried out as late as `second`? Not past an operator that writes into its arguments, or past a
// branch.
bool may_wait(const Node* first, const Node* second) {
    if (first->owningBlock() != second->owningBlock()) return false;
    for (const Node* node = first->next(); node != second; node = node->next()) {
        const std::string op = node->kind().toUnqualString();
        if (node->kind() == prim::Return || !node->blocks().empty() || op.back() == '_' ||
            node->kind() == prim::SetAttr)
            return false;
    }
    return true;
}

// With one image in the example a mean over the batch has the size of an image, too.
std::optional<Facts> observe_doubled(const Model& model, const Inputs& example) {
    Inputs doubled;
    for (const auto& input : example) {
        const bool batch = input.isTensor() && input.toTensor().dim() > 0;
        doubled.push_back(batch ? c10::IValue(at::cat({input.toTensor(), input.toTensor()})) : input);
    }
    try {
        return Facts::observe(model, doubled);
    } catch (const std::exception&) {
        return std::nullopt;  // it takes batches of this size alone
    }
}

}  // namespace

int fuse_elementwise(Model& model, const Inputs& example) {
    static const std::set<std::string> kInPlace = {"aten::elu",        "aten::hardswish", "aten::hardtanh",
                                                   "aten::leaky_relu", "aten::relu",      "aten::sigmoid",
                                                   "aten::silu",       "aten::tanh"};
    const auto graph = model.graph();
    const auto facts = Facts::observe(model, example);
    Rewriter rewriter{*graph, facts, dependent_values(*graph), observe_doubled(model, example), {}};
    int replaced = 0;
    // Operands of an addition, the one that may be overwritten first; null when neither may.
    const auto overwritable = [&](Node* add, const Value* result) -> std::pair<Value*, Value*> {
        for (const size_t i : {0, 1}) {
            // The model's own add_ writes into its first operand; and only the first one is free of the factor alpha.
            if (i == 1 && add->kind() == aten::add_) continue;
            if (i == 1 && !(constant_of(add->input(2)) && constant_of(add->input(2))->isInt() &&
                            constant_of(add->input(2))->toInt() == 1))
                continue;
            if (rewriter.may_overwrite(add->input(i), add, result) && rewriter.is_float(add->input(1 - i)))
                return {add->input(i), add->input(1 - i)};
        }
        return {nullptr, nullptr};
    };
    for (Node* node : all_nodes(*graph)) {
        const std::string op = node->kind().toQualString();
        if (node->outputs().size() != 1 || !rewriter.is_float(node->output())) continue;
        Value* const input = node->inputs().empty() ? nullptr : node->input(0);
        const bool is_relu = node->kind() == aten::relu || node->kind() == aten::relu_;
        if (is_relu && is_tensor_add(input->node()) && input->uses().size() == 1 &&
            rewriter.is_float(input->node()->input(0)) && rewriter.is_float(input->node()->input(1)) &&
            may_wait(input->node(), node)) {
            Node* const add = input->node();
            const auto [target, other] = overwritable(add, node->output());
            if (target)
                rewriter.replace(node, "aten::_add_relu_", {target, other}, node->output(), add->input(2));
            else if (add->kind() == aten::add)
                rewriter.replace(node, "aten::_add_relu", {add->input(0), add->input(1)}, node->output(),
                                 add->input(2));
            else
                continue;
            node->destroy();
            add->destroy();
            replaced += 2;
        } else if (kInPlace.count(op) && rewriter.may_overwrite(input, node, node->output())) {
            std::vector<NamedValue> arguments(node->inputs().begin(), node->inputs().end());
            rewriter.replace(node, op + "_", arguments, node->output());
            node->destroy();
            ++replaced;
        } else if (node->kind() == aten::add && is_tensor_add(node)) {
            // Before a relu the pair is fused when the relu is reached.
            const auto uses = node->output()->uses();
            if (uses.size() == 1 && (uses[0].user->kind() == aten::relu || uses[0].user->kind() == aten::relu_) &&
                may_wait(node, uses[0].user))
                continue;
            if (const auto [target, other] = overwritable(node, node->output()); target) {
                rewriter.replace(node, "aten::add_", {target, other}, node->output(), node->input(2));
                node->destroy();
                ++replaced;
            }
        }
    }
    if (replaced) model.refresh();
    return replaced;
}

}  // namespace coppice
