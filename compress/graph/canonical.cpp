// The canonical form: what every stage rests on.
//
// before  a tree of modules whose types are shared between instances, methods that call each other
// after   the same tree, a type of its own for every instance, and each exported method one graph that reads attributes
// by
//         chains of GetAttr from self and calls nothing
//
// Then, repeated until nothing changes, what hides the structure without contributing to the result goes:
//   - branches that only raise (shape guards), by EliminateExceptions
//   - attributes that are plain constants (eps, flags), read-only in every method: folded; `training` stays
//   - `num_batches_tracked += 1` where nothing else reads the counter (momentum is set)
//   - convolutions under the name that tracing gives to a padding of "same" or "valid" get their usual one
//   - `if c: True else: False` becomes c; an If whose branches return the same value is removed; outputs that are the
//     same in each branch are one; tuples that both branches make become their entries
//   - `x is x` becomes True
//   - constant propagation, peephole, common subexpressions, dead code
// Weights that a frozen or traced file holds as constants become parameters, so that stages can edit them.
// Submodules that hold a tensor which no file can (oneDNN's layout) keep the methods by which they save and load
// themselves (__getstate__, __setstate__); of others all attributes are saved.
#include "graph/canonical.h"

#include <torch/csrc/jit/passes/common_subexpression_elimination.h>
#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/lower_tuples.h>
#include <torch/csrc/jit/passes/normalize_ops.h>
#include <torch/csrc/jit/passes/peephole.h>
#include <torch/csrc/jit/passes/remove_exceptions.h>

#include <coppice/error.h>
#include <coppice/graph.h>

namespace coppice {
namespace {

using namespace torch::jit;

constexpr const char* kWhere = "canonical form";

/// A name for a fresh type that keeps the class name of the original readable: __torch__.ResNet_c12.
/// `number` counts within one compilation unit, so that the same model saves to the same bytes in every process.
c10::QualifiedName fresh_name(const c10::ClassTypePtr& type, size_t number) {
    std::string base = type->name() ? type->name()->name() : "Module";
    if (const auto tail = base.rfind("_c"); tail != std::string::npos && tail + 2 < base.size() &&
                                            base.find_first_not_of("0123456789", tail + 2) == std::string::npos)
        base.resize(tail);  // a copy of a copy does not grow a longer name
    return c10::QualifiedName("__torch__." + base + "_c" + std::to_string(number));
}

/// Inlining leaves the calls that led to a node at the node, with plain pointers to the functions, which LibTorch
/// follows when an operator fails. Those functions belong to modules that may be gone by then: `function` takes their
/// place.
class CallStacks {
public:
    explicit CallStacks(Function* function) : function_(function) {}

    void own(Block* block) {
        for (Node* node : block->nodes()) {
            if (const auto stack = node->callstack()) node->setCallStack(owned(*stack));
            for (Block* inner : node->blocks()) own(inner);
        }
    }

private:
    InlinedCallStackPtr owned(const InlinedCallStackPtr& stack) {
        auto& copy = copies_[stack.get()];
        if (copy) return copy;
        const auto callee = stack->callee();
        copy = callee
                   ? c10::make_intrusive<InlinedCallStack>(owned(*callee), function_, stack->source_range(),
                                                           stack->module_instance())
                   : c10::make_intrusive<InlinedCallStack>(function_, stack->source_range(), stack->module_instance());
        kept_.push_back(stack);
        return copy;
    }

    Function* function_;
    std::unordered_map<const InlinedCallStack*, InlinedCallStackPtr> copies_;  // nodes share what they have in common
    std::vector<InlinedCallStackPtr> kept_;  // keeps the keys of copies_ from being used again
};

class Rebuilder {
public:
    Rebuilder(const Module& source, const Replacements& replacements)
        : unit_(std::make_shared<CompilationUnit>()), replacements_(replacements) {
        root_ = rebuild(source);
        objects_[source._ivalue().get()] = root_;
        for (const auto& [original, copy] : saving_themselves_)
            if (copy.type() != root_.type())  // the root's methods are copied by name
                for (const char* name : {"__getstate__", "__setstate__"}) copy_method(original, copy, name);
    }

    Module root() const { return root_; }

    /// Copies method `name` of `source`, everything inlined, and adds it to the root.
    void copy_method(const Module& source, const std::string& name) { copy_method(source, root_, name); }

private:
    void copy_method(const Module& source, const Module& copy_of_source, const std::string& name) {
        const auto* function = dynamic_cast<GraphFunction*>(&source.get_method(name).function());
        if (!function)
            throw UnsupportedModel(kWhere, "method \"" + name + "\" has no graph", "Script or trace the model again.");
        auto graph = function->graph()->copy();
        std::unordered_map<const Value*, Module> modules;
        const auto type = copy_of_source.type();
        graph->inputs()[0]->setType(type);
        modules[graph->inputs()[0]] = source;
        retype(graph->block(), modules);
        const auto& schema = function->getSchema();
        auto arguments = schema.arguments();
        arguments[0] = c10::Argument(arguments[0].name(), type);
        auto* copy = unit_->create_function(c10::QualifiedName(*type->name(), name), graph);
        copy->setSchema(schema.cloneWithArguments(arguments));
        type->addMethod(copy);
        CallStacks(copy).own(graph->block());
    }

    at::Tensor copy_tensor(const at::Tensor& tensor) {
        if (!tensor.defined()) return tensor;
        // Two tensors over the same memory are one: a GRU keeps its weights as parameters and in a list, and an archive
        // gives back two objects that share a storage.
        const bool strided = tensor.layout() == at::kStrided;  // sparse tensors have no memory of their own
        auto& copy = tensors_[{tensor.numel() == 0 || !strided ? static_cast<const void*>(tensor.unsafeGetTensorImpl())
                                                               : tensor.const_data_ptr(),
                               tensor.sizes().vec(), strided ? tensor.strides().vec() : std::vector<int64_t>(),
                               tensor.is_floating_point()}];
        if (!copy.defined()) {
            const auto other = replacements_.find(tensor.unsafeGetTensorImpl());
            // A clone keeps strides: channels-last weights stay so.
            copy = other == replacements_.end() ? tensor.detach().clone() : other->second;
            if (copy.is_floating_point()) copy.set_requires_grad(tensor.requires_grad());
        }
        return copy;
    }

    IValue copy_value(const IValue& value) {
        if (value.isTensor()) return copy_tensor(value.toTensor());
        if (value.isTensorList()) {
            c10::List<at::Tensor> copies;
            for (const auto& tensor : value.toTensorVector()) copies.push_back(copy_tensor(tensor));
            return copies;
        }
        if (value.isTuple() || value.isList() || value.isGenericDict()) return value.deepcopy();
        return value;  // numbers, strings, None, custom classes (immutable packed weights)
    }

    Module rebuild(const Module& source) {
        const auto* key = source._ivalue().get();
        if (const auto known = objects_.find(key); known != objects_.end()) return known->second;
        const auto type = source.type();
        Module copy(fresh_name(type, types_++), unit_, /*shouldMangle=*/true);
        for (size_t i = 0; i < type->numConstants(); ++i)
            copy.type()->addConstant(type->getConstantName(i), type->getConstant(i));
        bool opaque = false;
        for (size_t slot = 0; slot < type->numAttributes(); ++slot) {
            const auto& name = type->getAttributeName(slot);
            const auto& value = source._ivalue()->getSlot(slot);
            opaque = opaque || (value.isTensor() && value.toTensor().defined() && value.toTensor().is_mkldnn());
            const auto declared = type->getAttribute(slot);
            const bool is_module = value.isObject() && value.toObject()->type()->is_module();
            if (is_module) {
                copy.register_module(name, rebuild(Module(value.toObject())));
            } else if (type->is_parameter(slot) && value.isTensor()) {
                copy.register_parameter(name, copy_tensor(value.toTensor()), /*is_buffer=*/false);
            } else if (type->is_buffer(slot) && value.isTensor()) {
                copy.register_parameter(name, copy_tensor(value.toTensor()), /*is_buffer=*/true);
            } else {
                // Also a parameter or buffer slot that holds None (bias=None).
                copy.register_attribute(name, value.isNone() ? c10::TypePtr(c10::NoneType::get()) : declared,
                                        copy_value(value));
            }
        }
        objects_[key] = copy;
        if (opaque && type->findMethod("__getstate__") && type->findMethod("__setstate__"))
            saving_themselves_.emplace_back(source, copy);
        return copy;
    }

    /// Walks a block in order; `modules` maps values to the ORIGINAL module they hold. Calls are inlined where they are
    /// met, so that interface-typed members resolve to what the instance really holds.
    void retype(Block* block, std::unordered_map<const Value*, Module>& modules) {
        for (Node* node = block->nodes().front(); node != block->return_node();) {
            Node* next = node->next();
            switch (node->kind()) {
                case prim::GetAttr: {
                    const auto found = modules.find(node->input());
                    if (found == modules.end()) break;
                    const auto& name = node->s(attr::name);
                    const auto value = found->second.attr(name);
                    const auto copy = objects_.at(found->second._ivalue().get());
                    if (value.isObject() && value.toObject()->type()->is_module()) {
                        modules[node->output()] = Module(value.toObject());
                    }
                    node->output()->setType(copy.type()->getAttribute(name));
                    break;
                }
                case prim::SetAttr: {
                    const auto found = modules.find(node->inputs()[0]);
                    if (found == modules.end()) break;
                    if (node->inputs()[1]->type()->cast<c10::ClassType>() && modules.count(node->inputs()[1]))
                        throw UnsupportedModel(kWhere, "forward replaces submodule \"" + node->s(attr::name) + "\"",
                                               "Choose the submodule before the model is scripted.");
                    break;
                }
                case prim::CallMethod: {
                    const auto& name = node->s(attr::name);
                    Function* callee = nullptr;
                    if (const auto found = modules.find(node->input(0)); found != modules.end())
                        callee = found->second.type()->findMethod(name);
                    else if (const auto type = node->input(0)->type()->cast<c10::ClassType>())
                        callee = type->findMethod(name);
                    if (!callee)
                        throw UnsupportedModel(
                            kWhere, "the receiver of a call of \"" + name + "\" is not known before the model runs",
                            "Submodules chosen while running cannot be analysed; trace the model instead.");
                    next = inline_call(node, callee, next);
                    break;
                }
                case prim::CallFunction: {
                    const auto type = node->input(0)->type()->cast<c10::FunctionType>();
                    if (!type) break;
                    Value* function_value = node->input(0);
                    Function* callee = type->function();
                    node->removeInput(0);
                    next = inline_call(node, callee, next);
                    if (!function_value->hasUses()) {
                        if (next == function_value->node()) next = next->next();
                        function_value->node()->destroy();
                    }
                    break;
                }
                default:
                    for (size_t i = 0; i < node->inputs().size(); ++i)
                        if (modules.count(node->input(i)))
                            throw UnsupportedModel(
                                kWhere, std::string("a submodule is passed to ") + node->kind().toQualString(),
                                "Call submodules by their names in forward.");
                    for (Block* inner : node->blocks()) retype(inner, modules);
            }
            node = next;
        }
        for (const Value* value : block->outputs())
            if (modules.count(value))
                throw UnsupportedModel(kWhere, "a submodule is the result of a branch or of forward",
                                       "Call submodules by their names in forward.");
    }

    /// Replaces the call by the callee's nodes; returns the first of them, or `next` when it has none.
    Node* inline_call(Node* node, Function* callee, Node* next) {
        auto* function = tryToGraphFunction(*callee);
        if (!function) throw UnsupportedModel(kWhere, "\"" + callee->name() + "\" is not TorchScript", "");
        if (++inlined_ > 1'000'000) throw UnsupportedModel(kWhere, "calls do not end", "");
        Node* previous = node->prev();
        inlineCallTo(node, function, /*use_graph=*/true);
        Node* first = previous->next();
        return first == nullptr ? next : first;
    }

    std::shared_ptr<CompilationUnit> unit_;
    const Replacements& replacements_;
    Module root_;
    std::unordered_map<const c10::ivalue::Object*, Module> objects_;
    std::vector<std::pair<Module, Module>> saving_themselves_;
    std::map<std::tuple<const void*, std::vector<int64_t>, std::vector<int64_t>, bool>, at::Tensor> tensors_;
    size_t types_ = 0, inlined_ = 0;
};

/// Methods of the root that forward calls, directly or through others: scripting compiles them along (`_forward_impl`,
/// `forward_features`), nobody exported them, and inlined they are part of forward.
std::set<std::string> helpers_of_forward(const Module& source) {
    std::set<std::string> helpers;
    std::vector<std::string> open{"forward"};
    while (!open.empty()) {
        const auto graph = source.get_method(open.back()).graph();
        open.pop_back();
        for (const Node* node : all_nodes(*graph)) {
            if (node->kind() != prim::CallMethod || node->input(0) != graph->inputs()[0]) continue;
            const auto& name = node->s(attr::name);
            if (name != "forward" && helpers.insert(name).second) open.push_back(name);
        }
    }
    return helpers;
}

/// Paths ("layer1.0.eps") that some method writes.
std::set<std::string> written_attributes(const Module& module) {
    std::set<std::string> written;
    for (const auto& method : module.get_methods())
        for (Node* node : all_nodes(*method.graph()))
            if (node->kind() == prim::SetAttr)
                if (const auto owner = attribute_name(node->inputs()[0]))
                    written.insert(owner->empty() ? node->s(attr::name) : *owner + "." + node->s(attr::name));
    return written;
}

bool is_plain(const IValue& value) {
    if (value.isNone() || value.isInt() || value.isDouble() || value.isBool() || value.isString()) return true;
    if (value.isTuple()) {
        for (const auto& item : value.toTupleRef().elements())
            if (!is_plain(item)) return false;
        return true;
    }
    return value.isIntList() || value.isDoubleList() || value.isBoolList();
}

/// Lists can be changed in place (self.sizes.append): fold only those that no mutating operator touches.
bool only_read(const Value* value) {
    if (value->type()->kind() != c10::TypeKind::ListType) return true;
    for (const auto& use : value->uses()) {
        const auto* schema = use.user->maybeSchema();
        if (!schema) return false;
        if (schema->is_vararg() || use.offset >= schema->arguments().size()) return false;
        const auto* alias = schema->arguments()[use.offset].alias_info();
        if (alias && alias->isWrite()) return false;
    }
    return true;
}

/// The value at a dotted path below the root; None when there is no such attribute.
IValue value_at(const Module& root, const std::string& path) {
    IValue value = root._ivalue();
    for (size_t begin = 0;;) {
        const auto dot = path.find('.', begin);
        value = value.toObject()->getAttr(path.substr(begin, dot == std::string::npos ? dot : dot - begin));
        if (dot == std::string::npos) return value;
        begin = dot + 1;
    }
}

void fold_plain_attributes(Graph& graph, const Module& root, const std::set<std::string>& written) {
    for (Node* node : all_nodes(graph)) {
        if (node->kind() != prim::GetAttr || node->s(attr::name) == "training") continue;
        const auto path = attribute_name(node->output());
        if (!path || written.count(*path)) continue;
        const IValue value = value_at(root, *path);
        if (!is_plain(value) || !only_read(node->output())) continue;
        WithInsertPoint guard(node);
        if (const auto constant = tryInsertConstant(graph, value)) node->output()->replaceAllUsesWith(*constant);
    }
}

/// before  self.gru._flat_weights (a list of tensors that are parameters as well)
/// after   [self.gru.weight_ih_l0, ...]; fires when every tensor of a list that no method writes is a member of its
/// module.
void spell_out_weight_lists(Graph& graph, const Module& root, const std::set<std::string>& written) {
    for (Node* node : all_nodes(graph)) {
        if (node->kind() != prim::GetAttr) continue;
        const auto path = attribute_name(node->output());
        if (!path || written.count(*path) || !only_read(node->output())) continue;
        const auto value = value_at(root, *path);
        if (!value.isTensorList()) continue;
        const auto dot = path->rfind('.');
        const Module owner = dot == std::string::npos ? root : Module(value_at(root, path->substr(0, dot)).toObject());
        std::vector<std::string> members;
        for (const auto& tensor : value.toTensorVector())
            for (const auto& member : owner.named_attributes(/*recurse=*/false))
                if (member.value.isTensor() && member.value.toTensor().is_same(tensor)) {
                    members.push_back(member.name);
                    break;
                }
        if (members.empty() || members.size() != value.toTensorVector().size()) continue;
        WithInsertPoint guard(node);
        std::vector<Value*> reads;
        for (const auto& member : members)
            reads.push_back(graph.insertNode(graph.createGetAttr(node->input(), member))->output());
        node->output()->replaceAllUsesWith(graph.insertNode(graph.createList(c10::TensorType::get(), reads))->output());
    }
}

/// before  if training: num_batches_tracked.add_(1)
/// after   nothing; fires when every use of the counter is such an addition with an unused result.
void remove_batch_counters(Graph& graph) {
    std::map<std::string, std::vector<Node*>> additions;
    std::set<std::string> read_elsewhere;
    for (Node* node : all_nodes(graph)) {
        if (node->kind() != prim::GetAttr || node->s(attr::name) != "num_batches_tracked") continue;
        const auto path = attribute_name(node->output());
        if (!path) continue;
        for (const auto& use : node->output()->uses()) {
            const bool counts = use.user->kind() == aten::add_ && use.offset == 0 && !use.user->output()->hasUses();
            // `if self.num_batches_tracked is not None` reads no number.
            const bool tests = use.user->kind() == aten::__isnot__ || use.user->kind() == aten::__is__;
            if (counts)
                additions[*path].push_back(use.user);
            else if (!tests)
                read_elsewhere.insert(*path);
        }
    }
    for (const auto& [path, nodes] : additions) {
        if (read_elsewhere.count(path)) continue;
        for (Node* node : std::set<Node*>(nodes.begin(), nodes.end())) node->destroy();
    }
}

std::optional<bool> constant_bool(const Value* value) {
    const auto constant = toIValue(value);
    if (!constant || !constant->isBool()) return std::nullopt;
    return constant->toBool();
}

/// before  query is key, of one value: self-attention asks whether it is that
/// after   True
bool settle_identities(Graph& graph) {
    bool changed = false;
    for (Node* node : all_nodes(graph)) {
        if (node->kind() != aten::__is__ && node->kind() != aten::__isnot__) continue;
        if (node->input(0) != node->input(1) || !node->output()->hasUses()) continue;
        WithInsertPoint guard(node);
        node->output()->replaceAllUsesWith(graph.insertConstant(node->kind() == aten::__is__));
        changed = true;
    }
    return changed;
}

/// before  y = if c: (a, b) else: (d, e)
/// after   y = (if c: a else: d, if c: b else: e), so that an entry that nobody reads is not computed
bool split_tuple(Node* node, size_t index) {
    const auto type = node->outputs()[index]->type()->cast<c10::TupleType>();
    if (!type || type->schema() || !node->outputs()[index]->hasUses()) return false;
    for (Block* inner : node->blocks()) {
        const Node* tuple = inner->outputs()[index]->node();
        if (tuple->kind() != prim::TupleConstruct || tuple->inputs().size() != type->elements().size()) return false;
    }
    std::vector<Value*> entries;
    for (size_t i = 0; i < type->elements().size(); ++i) {
        for (Block* inner : node->blocks()) inner->registerOutput(inner->outputs()[index]->node()->input(i));
        entries.push_back(node->addOutput()->setType(type->elements()[i]));
    }
    Node* tuple = node->owningGraph()->createTuple(entries);
    tuple->insertAfter(node);
    node->outputs()[index]->replaceAllUsesWith(tuple->output());
    return true;
}

/// Simplifies outputs of If nodes: (True, False) is the condition itself, equal branches need no If.
bool simplify_ifs(Block* block) {
    bool changed = false;
    for (Node* node : block->nodes()) {
        for (Block* inner : node->blocks()) changed |= simplify_ifs(inner);
        if (node->kind() != prim::If) continue;
        for (size_t i = 0; i < node->outputs().size(); ++i) {
            Value* output = node->outputs()[i];
            if (!output->hasUses()) continue;
            Value* yes = node->blocks()[0]->outputs()[i];
            Value* no = node->blocks()[1]->outputs()[i];
            const auto yes_constant = constant_bool(yes), no_constant = constant_bool(no);
            Value* replacement = nullptr;
            if (yes_constant && no_constant && *yes_constant && !*no_constant)
                replacement = node->input();
            else if (yes == no)
                replacement = yes;  // defined outside of both blocks
            for (size_t k = 0; k < i && !replacement; ++k)
                if (node->blocks()[0]->outputs()[k] == yes && node->blocks()[1]->outputs()[k] == no &&
                    *node->outputs()[k]->type() == *output->type())
                    replacement = node->outputs()[k];
            if (replacement) {
                output->replaceAllUsesWith(replacement);
                changed = true;
            } else {
                changed |= split_tuple(node, i);
            }
        }
    }
    return changed;
}

/// Constants that enter where a weight, bias or statistic belongs become parameters of the root: "constant_weight_3".
void lift_constant_weights(Module& root, Graph& graph, std::vector<std::string>& notes) {
    static const std::map<std::string, std::vector<std::pair<size_t, const char*>>> kSlots = {
        {"aten::conv1d", {{1, "weight"}, {2, "bias"}}},
        {"aten::conv2d", {{1, "weight"}, {2, "bias"}}},
        {"aten::conv3d", {{1, "weight"}, {2, "bias"}}},
        {"aten::conv_transpose1d", {{1, "weight"}, {2, "bias"}}},
        {"aten::conv_transpose2d", {{1, "weight"}, {2, "bias"}}},
        {"aten::conv_transpose3d", {{1, "weight"}, {2, "bias"}}},
        {"aten::_convolution", {{1, "weight"}, {2, "bias"}}},
        {"aten::convolution", {{1, "weight"}, {2, "bias"}}},
        {"aten::linear", {{1, "weight"}, {2, "bias"}}},
        {"aten::matmul", {{1, "weight"}}},
        {"aten::mm", {{1, "weight"}}},
        {"aten::addmm", {{0, "bias"}, {2, "weight"}}},
        {"aten::t", {{0, "weight"}}},
        {"aten::batch_norm", {{1, "weight"}, {2, "bias"}, {3, "running_mean"}, {4, "running_var"}}},
        {"aten::layer_norm", {{2, "weight"}, {3, "bias"}}},
        {"aten::group_norm", {{2, "weight"}, {3, "bias"}}},
        {"aten::embedding", {{0, "weight"}}},
        {"aten::prelu", {{1, "weight"}}},
    };
    std::unordered_map<const at::TensorImpl*, std::string> lifted;
    size_t number = 0;
    for (Node* node : all_nodes(graph)) {
        const auto slots = kSlots.find(node->kind().toQualString());
        if (slots == kSlots.end()) continue;
        for (const auto& [index, role] : slots->second) {
            if (index >= node->inputs().size()) continue;
            Value* input = node->input(index);
            if (input->node()->kind() != prim::Constant) continue;
            const auto constant = toIValue(input);
            if (!constant || !constant->isTensor() || !constant->toTensor().is_floating_point()) continue;
            auto& name = lifted[constant->toTensor().unsafeGetTensorImpl()];
            if (name.empty()) {
                do name = std::string("constant_") + role + "_" + std::to_string(number++);
                while (root.hasattr(name));
                const bool buffer = std::string(role).rfind("running_", 0) == 0;
                auto tensor = constant->toTensor().detach().clone();
                tensor.set_requires_grad(!buffer);
                root.register_parameter(name, tensor, buffer);
            }
            WithInsertPoint guard(node);
            Node* read = graph.createGetAttr(graph.inputs()[0], name);
            graph.insertNode(read);
            node->replaceInput(index, read->output());
        }
    }
    if (!lifted.empty())
        notes.push_back(std::to_string(lifted.size()) + " weights were constants of the graph and are parameters now");
}

/// before  unchecked_cast(None) to List[float], in a branch that is never taken with None
/// after   an uninitialized value; LibTorch's constant propagation would fold the cast into a constant that is neither
/// None
///         nor has a value, and trip over it later.
void settle_none_casts(Graph& graph) {
    for (Node* node : all_nodes(graph)) {
        if (node->kind() != prim::unchecked_cast || !node->input()->mustBeNone()) continue;
        WithInsertPoint guard(node);
        node->output()->replaceAllUsesWith(
            graph.insertNode(graph.createUninitialized(node->output()->type()))->output());
        node->destroy();
    }
}

/// before  aten::_convolution_mode(x, w, b, stride, "same", dilation, groups): what tracing makes of padding="same"
/// after   aten::conv2d with that padding, which calls the former; fires when the number of strides is known.
void name_convolutions(Graph& graph) {
    static const char* const kNames[] = {"aten::conv1d", "aten::conv2d", "aten::conv3d"};
    for (Node* node : all_nodes(graph)) {
        if (std::string(node->kind().toQualString()) != "aten::_convolution_mode") continue;
        const auto constant = toIValue(node->input(3));
        const auto* list = node->input(3)->node();
        const size_t dims = constant && constant->isIntList()     ? constant->toIntVector().size()
                            : list->kind() == prim::ListConstruct ? list->inputs().size()
                                                                  : 0;
        if (dims < 1 || dims > 3) continue;
        WithInsertPoint guard(node);
        std::vector<NamedValue> inputs(node->inputs().begin(), node->inputs().end());
        Value* result = graph.insert(Symbol::fromQualString(kNames[dims - 1]), inputs);
        result->node()->copyMetadata(node);
        result->setType(node->output()->type());
        node->output()->replaceAllUsesWith(result);
        node->destroy();
    }
}

void simplify_graph(const std::shared_ptr<Graph>& graph_pointer, Module& root, const std::set<std::string>& written) {
    auto graph = graph_pointer;
    settle_none_casts(*graph);
    EliminateExceptions(graph);
    remove_batch_counters(*graph);
    fold_plain_attributes(*graph, root, written);
    spell_out_weight_lists(*graph, root, written);
    name_convolutions(*graph);
    for (int round = 0; round < 8; ++round) {
        ConstantPropagation(graph);
        bool changed = PeepholeOptimize(graph);
        settle_none_casts(*graph);
        changed |= simplify_ifs(graph->block());
        changed |= settle_identities(*graph);
        EliminateDeadCode(graph);
        changed |= EliminateCommonSubexpression(graph);
        if (!changed) break;
    }
    LowerSimpleTuples(graph);
    EliminateDeadCode(graph);
}

}  // namespace

Canonical canonicalise(const Module& source, bool simplify, const Replacements& replacements) {
    Canonical result;
    Rebuilder rebuilder(source, replacements);
    std::vector<std::string> methods;
    if (!source.find_method("forward"))
        throw UnsupportedModel(kWhere, "the module has no method forward", "Export one that is called forward.");
    const auto helpers = helpers_of_forward(source);
    for (const auto& method : source.get_methods()) {
        if (helpers.count(method.name()) == 0)
            methods.push_back(method.name());
        else
            result.notes.push_back("method \"" + method.name() + "\", which forward calls, is part of forward now");
    }
    for (const auto& method : methods) rebuilder.copy_method(source, method);
    result.module = rebuilder.root();
    if (!simplify) return result;
    const auto written = written_attributes(result.module);
    for (const auto& path : written) result.notes.push_back("forward writes attribute \"" + path + "\"");
    for (const auto& method : methods) {
        auto graph = result.module.get_method(method).graph();
        simplify_graph(graph, result.module, written);
        lift_constant_weights(result.module, *graph, result.notes);
        graph->lint();
    }
    return result;
}

void reinstall_method(Module& module, const std::string& name) {
    auto method = module.get_method(name);
    auto graph = method.graph();
    const auto schema = method.function().getSchema();
    const auto type = module.type();
    const c10::QualifiedName qualified(*type->name(), name);
    auto unit = module._ivalue()->compilation_unit();
    type->unsafeRemoveMethod(name);
    unit->unsafeRemoveMethod(qualified);
    auto* function = unit->create_function(qualified, graph);
    function->setSchema(schema);
    type->addMethod(function);
    CallStacks(function).own(graph->block());
}

}  // namespace coppice
