// A plain walk over the graph. LibTorch's interpreter cannot be observed; a copy of the graph that returns every value cannot
// see into If and Loop and keeps all activations alive. This walk does both and costs a few microseconds a node.
#include <torch/csrc/jit/runtime/operator.h>
#include <torch/csrc/jit/runtime/vararg_functions.h>

#include <coppice/error.h>
#include <coppice/graph.h>

namespace coppice {
namespace {

using namespace torch::jit;

class Walker {
public:
    Walker(const Model& model, const NodeHooks& hooks) : graph_(model.graph()), hooks_(hooks) { plan(graph_->block()); }

    c10::IValue run(const c10::IValue& self, const Inputs& inputs) {
        const auto parameters = graph_->inputs();
        if (inputs.size() + 1 != parameters.size())
            throw InvalidArgument("forward", "takes " + std::to_string(parameters.size() - 1) + " inputs, got " +
                                  std::to_string(inputs.size()), "Give one --input (or example tensor) for each argument.");
        values_[parameters[0]] = self;
        for (size_t i = 0; i < inputs.size(); ++i) values_[parameters[i + 1]] = inputs[i];
        run_block(graph_->block());
        const auto outputs = graph_->outputs();
        if (outputs.size() == 1) return values_.at(outputs[0]);
        std::vector<c10::IValue> all;
        for (const Value* output : outputs) all.push_back(values_.at(output));
        return c10::ivalue::Tuple::create(std::move(all));
    }

private:
    /// Finds, for every value, the last node of its own block below which it is used: there it can be freed.
    void plan(Block* block) {
        const auto consider = [&](Value* value) {
            Node* last = nullptr;
            for (const auto& use : value->uses()) {
                Node* user = use.user;
                while (user->owningBlock() != block) user = user->owningBlock()->owningNode();
                if (user == block->return_node()) return;
                if (!last || user->isAfter(last)) last = user;
            }
            if (last) dies_after_[last].push_back(value);
        };
        for (Value* value : block->inputs()) consider(value);
        for (Node* node : block->nodes()) {
            for (Value* value : node->outputs()) consider(value);
            for (Block* inner : node->blocks()) plan(inner);
        }
    }

    const c10::IValue& at(const Value* value) const { return values_.at(value); }

    void run_block(Block* block) {
        for (Node* node : block->nodes()) {
            run_node(node);
            if (const auto dying = dies_after_.find(node); dying != dies_after_.end())
                for (const Value* value : dying->second) values_.erase(value);
        }
    }

    void run_node(Node* node) {
        switch (node->kind()) {
            case prim::Constant: {
                values_[node->output()] = toIValue(node->output()).value_or(c10::IValue());
                return;
            }
            case prim::GetAttr:
                values_[node->output()] = at(node->input()).toObject()->getAttr(node->s(attr::name));
                return;
            case prim::SetAttr:
                at(node->inputs()[0]).toObject()->setAttr(node->s(attr::name), at(node->inputs()[1]));
                return;
            case prim::If: {
                Block* taken = node->blocks()[at(node->input()).toBool() ? 0 : 1];
                run_block(taken);
                for (size_t i = 0; i < node->outputs().size(); ++i) values_[node->outputs()[i]] = at(taken->outputs()[i]);
                call_after(node);
                return;
            }
            case prim::Loop: {
                Block* body = node->blocks()[0];
                const int64_t trips = at(node->inputs()[0]).toInt();
                bool going = at(node->inputs()[1]).toBool();
                std::vector<c10::IValue> carried;
                for (size_t i = 2; i < node->inputs().size(); ++i) carried.push_back(at(node->inputs()[i]));
                for (int64_t trip = 0; trip < trips && going; ++trip) {
                    values_[body->inputs()[0]] = trip;
                    for (size_t i = 0; i < carried.size(); ++i) values_[body->inputs()[i + 1]] = carried[i];
                    run_block(body);
                    going = at(body->outputs()[0]).toBool();
                    for (size_t i = 0; i < carried.size(); ++i) carried[i] = at(body->outputs()[i + 1]);
                }
                for (size_t i = 0; i < carried.size(); ++i) values_[node->outputs()[i]] = carried[i];
                call_after(node);
                return;
            }
            default: break;
        }
        std::vector<c10::IValue> stack;
        stack.reserve(node->inputs().size() + 1);
        for (const Value* input : node->inputs()) stack.push_back(at(input));
        if (hooks_.before) hooks_.before(node, stack);
        try {
            execute(node, stack);
        } catch (const Error&) {
            throw;
        } catch (const std::exception& error) {
            throw UnsupportedModel(std::string("operator ") + node->kind().toQualString(),
                                   "failed on this input (" + message_of(error) + ")",
                                   "Check the number, shapes and dtypes of the inputs.");
        }
        if (hooks_.after) hooks_.after(node, stack);
        for (size_t i = 0; i < node->outputs().size(); ++i) values_[node->outputs()[i]] = std::move(stack[i]);
    }

    void call_after(Node* node) {
        if (!hooks_.after) return;
        std::vector<c10::IValue> outputs;
        for (const Value* output : node->outputs()) outputs.push_back(at(output));
        hooks_.after(node, outputs);
        for (size_t i = 0; i < outputs.size(); ++i) values_[node->outputs()[i]] = std::move(outputs[i]);
    }

    static void execute(Node* node, std::vector<c10::IValue>& stack) {
        const size_t count = node->inputs().size();
        switch (node->kind()) {  // what LibTorch's interpreter has instructions for instead of operators
            case prim::ListConstruct: return listConstruct(stack, *node->output()->type(), count);
            case prim::DictConstruct: return dictConstruct(stack, *node->output()->type(), count);
            case prim::ListUnpack: return listUnpack(stack, node->outputs().size());
            case prim::TupleUnpack: return tupleUnpack(stack);
            case prim::TupleSlice: {  // LibTorch does not export its own
                const auto elements = stack.back().toTuple()->elements().vec();
                stack.back() = c10::ivalue::Tuple::create(std::vector<c10::IValue>(elements.begin() + node->i(attr::beg), elements.begin() + node->i(attr::end)));
                return;
            }
            case prim::TupleConstruct:
                if (node->output()->type()->expect<c10::TupleType>()->name().has_value())
                    return namedTupleConstruct(stack, node->output()->type(), count);
                return tupleConstruct(stack, count);
            case prim::CreateObject: return createObject(stack, node->output()->type()->expect<c10::ClassType>());
            case prim::isinstance: return isinstance(stack, node->tys(attr::types));
            case prim::Uninitialized: stack.emplace_back(); return;
            case prim::unchecked_cast: return;
            default: break;
        }
        if (const auto* schema = node->maybeSchema(); schema && schema->is_vararg()) stack.emplace_back(static_cast<int64_t>(count));
        node->getOperation()(stack);
    }

    std::shared_ptr<Graph> graph_;
    const NodeHooks& hooks_;
    std::unordered_map<const Value*, c10::IValue> values_;
    std::unordered_map<const Node*, std::vector<const Value*>> dies_after_;
};

}  // namespace

c10::IValue run_nodes(const Model& model, const Inputs& inputs, const NodeHooks& hooks) {
    return Walker(model, hooks).run(model.module()._ivalue(), inputs);
}

}  // namespace coppice
