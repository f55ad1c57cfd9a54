// A plain walk over the graph. LibTorch's interpreter cannot be observed; a copy of the graph that returns every value
// cannot see into If and Loop and keeps all activations alive. This walk does both and costs a few microseconds a node.
#include <torch/csrc/jit/runtime/operator.h>

#include "graph/run_nodes.h"

#include <coppice/error.h>
#include <coppice/run_part.h>

namespace coppice {
namespace {

using namespace torch::jit;

class Walker {
public:
    Walker(const Model& model, const NodeHooks& hooks, const Instead& instead)
        : graph_(model.graph()), hooks_(hooks), instead_(instead) {
        plan(graph_->block());
    }

    c10::IValue run(const c10::IValue& self, const Inputs& inputs) {
        const auto parameters = graph_->inputs();
        if (inputs.size() + 1 != parameters.size())
            throw InvalidArgument(
                "forward",
                "takes " + std::to_string(parameters.size() - 1) + " inputs, got " + std::to_string(inputs.size()),
                "Give one --input (or example tensor) for each argument.");
        values_[parameters[0]] = self;
        for (size_t i = 0; i < inputs.size(); ++i) values_[parameters[i + 1]] = inputs[i];
        run_block(graph_->block());
        const auto outputs = graph_->outputs();
        if (outputs.size() == 1) return values_.at(outputs[0]);
        std::vector<c10::IValue> all;
        for (const Value* output : outputs) all.push_back(values_.at(output));
        return c10::ivalue::Tuple::create(std::move(all));
    }

    void run(const std::vector<Node*>& nodes, Values& values) {
        values_.swap(values);
        for (Node* node : nodes) run_node(node);
        values_.swap(values);
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
                for (size_t i = 0; i < node->outputs().size(); ++i)
                    values_[node->outputs()[i]] = at(taken->outputs()[i]);
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
            default:
                break;
        }
        std::vector<c10::IValue> stack;
        stack.reserve(node->inputs().size() + 1);
        for (const Value* input : node->inputs()) stack.push_back(at(input));
        if (hooks_.before) hooks_.before(node, stack);
        try {
            if (!instead_ || !instead_(node, stack)) execute(node, stack);
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

    /// The last `count` items of the stack.
    static std::vector<c10::IValue> take(std::vector<c10::IValue>& stack, size_t count) {
        std::vector<c10::IValue> items(stack.end() - static_cast<std::ptrdiff_t>(count), stack.end());
        stack.resize(stack.size() - count);
        return items;
    }

    static void construct_list(std::vector<c10::IValue>& stack, const c10::ListType& type, size_t count) {
        c10::impl::GenericList list(type.getElementType());  // typed lists store the same representation
        list.reserve(count);
        for (auto& item : take(stack, count)) list.push_back(std::move(item));
        stack.emplace_back(std::move(list));
    }

    /// Operators that are instructions of LibTorch's interpreter, whose functions it does not export; false: not one of
    /// them.
    static bool execute_instruction(Node* node, std::vector<c10::IValue>& stack) {
        const size_t count = node->inputs().size();
        switch (node->kind()) {
            case prim::ListConstruct:
                construct_list(stack, *node->output()->type()->expect<c10::ListType>(), count);
                return true;
            case prim::DictConstruct: {
                const auto type = node->output()->type()->expect<c10::DictType>();
                c10::impl::GenericDict dict(type->getKeyType(), type->getValueType());
                const auto items = take(stack, count);
                for (size_t i = 0; i < items.size(); i += 2) dict.insert_or_assign(items[i], items[i + 1]);
                stack.emplace_back(std::move(dict));
                return true;
            }
            case prim::ListUnpack: {
                const auto items = take(stack, 1)[0].toListRef().vec();
                if (items.size() != node->outputs().size())
                    throw UnsupportedModel("prim::ListUnpack",
                                           "expects " + std::to_string(node->outputs().size()) +
                                               " items, the list has " + std::to_string(items.size()),
                                           "The model fixes this number; check the input's shape.");
                stack.insert(stack.end(), items.begin(), items.end());
                return true;
            }
            case prim::TupleUnpack: {
                const auto tuple = take(stack, 1)[0].toTuple();
                for (const auto& item : tuple->elements()) stack.push_back(item);
                return true;
            }
            case prim::TupleSlice: {
                const auto items = take(stack, 1)[0].toTuple()->elements().vec();
                stack.emplace_back(c10::ivalue::Tuple::create(
                    std::vector<c10::IValue>(items.begin() + node->i(attr::beg), items.begin() + node->i(attr::end))));
                return true;
            }
            case prim::TupleConstruct: {
                const auto type = node->output()->type()->expect<c10::TupleType>();
                auto items = take(stack, count);
                stack.emplace_back(type->name() ? c10::ivalue::Tuple::createNamed(std::move(items), type)
                                                : c10::ivalue::Tuple::create(std::move(items)));
                return true;
            }
            case prim::CreateObject: {
                const auto type = node->output()->type()->expect<c10::ClassType>();
                stack.emplace_back(c10::ivalue::Object::create(c10::StrongTypePtr(type->compilation_unit(), type),
                                                               type->numAttributes()));
                return true;
            }
            case prim::isinstance: {
                const auto type = take(stack, 1)[0].type();
                bool matches = false;
                for (const auto& candidate : node->tys(attr::types)) matches |= type->isSubtypeOf(*candidate);
                stack.emplace_back(matches);
                return true;
            }
            case prim::Uninitialized:
                stack.emplace_back();
                return true;
            case prim::unchecked_cast:
                return true;
            case aten::warn:  // the interpreter prints it; a library does not
                take(stack, count);
                return true;
            default:
                return false;
        }
    }

    static void execute(Node* node, std::vector<c10::IValue>& stack) {
        if (!execute_instruction(node, stack)) execute_operator(node, stack);
    }

    std::shared_ptr<Graph> graph_;
    const NodeHooks& hooks_;
    const Instead& instead_;
    Values values_;
    std::unordered_map<const Node*, std::vector<const Value*>> dies_after_;
};

}  // namespace

void execute_operator(Node* node, std::vector<c10::IValue>& stack) {
    if (const auto* schema = node->maybeSchema(); schema && schema->is_vararg())
        stack.emplace_back(static_cast<int64_t>(node->inputs().size()));
    node->getOperation()(stack);
}

c10::IValue run_nodes(const Model& model, const Inputs& inputs, const NodeHooks& hooks) {
    return run_nodes(model, inputs, hooks, Instead());
}

c10::IValue run_nodes(const Model& model, const Inputs& inputs, const NodeHooks& hooks, const Instead& instead) {
    return Walker(model, hooks, instead).run(model.module()._ivalue(), inputs);
}

void run_part(const Model& model, const std::vector<Node*>& nodes, Values& values, const NodeHooks& hooks) {
    Walker(model, hooks, Instead()).run(nodes, values);
}

}  // namespace coppice
