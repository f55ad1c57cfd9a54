// torch::nn models by LibTorch's tracer, which records operators as they run.
//
// What the tracer of C++ cannot see, and what is done about it:
//   - parameters: a TorchScript module of the same tree that shares the tensors stands in for `self`
//   - x.size(0) is a plain number: a second trace with inputs of other sizes tells which numbers differ, and these are
//     computed from the inputs' sizes
//   - is_training() is a plain bool: traced in eval mode, then the operators' own switches read the modules' `training`
//   - item() and conditions on tensors are not recorded at all: watched by LibTorch's profiling hooks, and refused
#include <coppice/trace.h>

#include <ATen/record_function.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/shape_analysis.h>

#include <cctype>
#include <numeric>

#include <coppice/error.h>
#include <coppice/graph.h>

namespace coppice {
namespace {

using namespace torch::jit;
using Forward = std::function<c10::IValue(const Inputs&)>;

constexpr const char* kWhere = "trace";
// The same operators on the same values: only canonical form may add or multiply in another order.
constexpr double kRelative = 1e-3;

/// "Net" of "user::(anonymous namespace)::NetImpl".
std::string class_name(const torch::nn::Module& module) {
    const auto full = module.name();
    std::string name;
    for (const char c : full.substr(full.rfind(':') == std::string::npos ? 0 : full.rfind(':') + 1))
        if (std::isalnum(static_cast<unsigned char>(c)) || c == '_') name += c;
    if (name.size() > 4 && name.substr(name.size() - 4) == "Impl") name.resize(name.size() - 4);
    return name.empty() || std::isdigit(static_cast<unsigned char>(name[0])) ? "Module" : name;
}

/// A TorchScript module with the tree, names and tensors (shared) of `module`, without methods.
torch::jit::Module mirror(const torch::nn::Module& module, const std::shared_ptr<CompilationUnit>& unit) {
    torch::jit::Module copy(c10::QualifiedName("__torch__." + class_name(module)), unit, /*shouldMangle=*/true);
    copy.register_attribute("training", c10::BoolType::get(), module.is_training());
    for (const auto& parameter : module.named_parameters(/*recurse=*/false))
        copy.register_parameter(parameter.key(), parameter.value(), /*is_buffer=*/false);
    for (const auto& buffer : module.named_buffers(/*recurse=*/false))
        copy.register_parameter(buffer.key(), buffer.value(), /*is_buffer=*/true);
    for (const auto& child : module.named_children()) copy.register_module(child.key(), mirror(*child.value(), unit));
    return copy;
}

/// All modules in eval mode while it lives.
class InEvalMode {
public:
    explicit InEvalMode(torch::nn::Module& module) : modules_(module.modules()) {
        for (const auto& each : modules_) training_.push_back(each->is_training());
        module.eval();
    }
    ~InEvalMode() {  // parents come before their children
        for (size_t i = 0; i < modules_.size(); ++i) modules_[i]->train(training_[i]);
    }
    InEvalMode(const InEvalMode&) = delete;

private:
    const std::vector<std::shared_ptr<torch::nn::Module>> modules_;
    std::vector<bool> training_;
};

/// Notes, on this thread and while it lives, operators that hand a value of a tensor to C++: those that no other
/// operator calls.
class ValueReads {
public:
    ValueReads() {
        depth = 0;
        found.clear();
        handle_ = at::addThreadLocalCallback(
            at::RecordFunctionCallback(&begin, &end).needsInputs(true).scopes({at::RecordScope::FUNCTION}));
    }
    ~ValueReads() { at::removeCallback(handle_); }
    ValueReads(const ValueReads&) = delete;
    const std::string& first() const { return found; }

private:
    static std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
        if (depth++ > 0 || !found.empty()) return nullptr;
        const std::string name = function.name();
        const bool reads = name == "aten::item" || name == "aten::_local_scalar_dense" || name == "aten::is_nonzero";
        bool compares = false;
#ifdef NDEBUG
        // Of a tensor and itself the answer is not a matter of values (torch::nn::MultiheadAttention asks that).
        // LibTorch is built with NDEBUG; without it RecordFunction is laid out differently, and what inputs() reads is
        // garbage.
        const auto inputs = function.inputs();
        compares = name == "aten::equal" && inputs.size() == 2 && inputs[0].isTensor() && inputs[1].isTensor() &&
                   !inputs[0].toTensor().is_same(inputs[1].toTensor());
#endif
        if (reads || compares) found = name;
        return nullptr;
    }
    static void end(const at::RecordFunction&, at::ObserverContext*) {
        --depth;
    }

    static thread_local int depth;
    static thread_local std::string found;
    at::CallbackHandle handle_;
};
thread_local int ValueReads::depth = 0;
thread_local std::string ValueReads::found;

struct Traced {
    torch::jit::Module root;
    std::shared_ptr<Graph> graph;
};

/// @param which  "the example", in messages
Traced trace_once(const torch::nn::Module& module, const Forward& forward, const Inputs& inputs,
                  const TraceOptions& options, const std::string& which) {
    Traced traced{mirror(module, std::make_shared<CompilationUnit>()), nullptr};
    auto names = options.arguments;
    for (size_t i = names.size(); i < inputs.size(); ++i)
        names.push_back(inputs.size() == 1 ? "x" : "x" + std::to_string(i));
    const ValueReads reads;
    try {
        traced.graph = tracer::trace(
                           Stack(inputs.begin(), inputs.end()),
                           [&](Stack stack) { return Stack{forward(Inputs(stack.begin(), stack.end()))}; },
                           [](const at::Tensor&) { return std::string(); }, /*strict=*/true, /*force_outplace=*/false,
                           &traced.root, names)
                           .first->graph;
    } catch (const std::exception& error) {
        const auto message = message_of(error);
        if (message.find("requires grad as a constant") != std::string::npos)
            throw InvalidArgument(kWhere, "forward uses a tensor that trains and is not in the module",
                                  "Register it with register_parameter(), and modules with register_module().");
        throw InvalidArgument(kWhere, "forward fails on " + which + ": " + message,
                              which == "the example"
                                  ? "Give inputs that it takes, as tensors."
                                  : "Give options.other, inputs of other sizes that it takes, or set fixed_sizes.");
    }
    if (!reads.first().empty() && !options.fixed_values)
        throw InvalidArgument(kWhere, "forward reads a value out of a tensor (" + reads.first() + ")",
                              "The trace would keep the example's. Compute with tensors instead (torch::where), or set "
                              "fixed_values.");
    return traced;
}

/// before  prim::Constant of a number that the other trace has as another one
/// after   aten::size of an input, or the product of two, times p over q, or plus k; fires for integers alone
class SizesOfInputs {
public:
    SizesOfInputs(Graph& graph, const Inputs& inputs, const Inputs& others) : graph_(graph) {
        for (size_t i = 0; i < inputs.size(); ++i) {
            const auto sizes = inputs[i].toTensor().sizes(), other = others[i].toTensor().sizes();
            if (sizes.size() != other.size())
                throw InvalidArgument(kWhere, "options.other has other ranks than the example", "Change sizes alone.");
            for (size_t d = 0; d < sizes.size(); ++d)
                if (sizes[d] != other[d]) sizes_.push_back({i, static_cast<int64_t>(d), sizes[d], other[d]});
        }
    }

    void follow(const Graph& other) {
        const auto nodes = all_nodes(graph_), others = all_nodes(other);
        bool same = nodes.size() == others.size();
        for (size_t i = 0; same && i < nodes.size(); ++i) same = nodes[i]->kind() == others[i]->kind();
        if (!same)
            throw UnsupportedModel(kWhere, "forward runs other operators on inputs of another size",
                                   "Trace it with fixed_sizes, for the example's sizes alone.");
        for (size_t i = 0; i < nodes.size(); ++i) {
            if (nodes[i]->kind() != prim::Constant) continue;
            const auto first = toIValue(nodes[i]->output()), second = toIValue(others[i]->output());
            if (!first || !second) continue;
            if (first->isInt() && second->isInt()) {
                if (first->toInt() != second->toInt())
                    nodes[i]->output()->replaceAllUsesWith(number(*nodes[i], first->toInt(), second->toInt()));
            } else if (differ(*first, *second)) {
                refuse(*nodes[i], "a constant");
            }
        }
    }

private:
    struct Size {
        size_t input;
        int64_t dim, first, second;
    };

    static bool differ(const c10::IValue& a, const c10::IValue& b) {
        if (a.isTensor() && b.isTensor()) {
            const auto &x = a.toTensor(), &y = b.toTensor();
            return x.defined() != y.defined() || (x.defined() && x.sizes() != y.sizes());
        }
        if (a.isDouble() && b.isDouble()) return a.toDouble() != b.toDouble();
        if (a.isBool() && b.isBool()) return a.toBool() != b.toBool();
        return a.tagKind() != b.tagKind();
    }

    [[noreturn]] static void refuse(const Node& constant, const std::string& what) {
        const Node* user = constant.output()->uses().empty() ? &constant : constant.output()->uses()[0].user;
        if (user->kind() == prim::ListConstruct && !user->output()->uses().empty())
            user = user->output()->uses()[0].user;
        throw UnsupportedModel(
            kWhere,
            what + " of " + user->kind().toQualString() + " changes with the inputs' sizes, and it cannot be told how",
            "Let it depend on one size, or trace with fixed_sizes.");
    }

    Value* number(const Node& constant, int64_t first, int64_t second) {
        for (const auto& size : sizes_)  // a multiple or a part
            if (size.first != 0 && first * size.second == second * size.first)
                return scaled({&size}, first, size.first);
        for (size_t i = 0; i < sizes_.size(); ++i)  // of the product of two, batch x length say
            for (size_t k = i; k < sizes_.size(); ++k) {
                const auto &a = sizes_[i], &b = sizes_[k];
                const auto product = a.first * b.first;
                if (product != 0 && first * a.second * b.second == second * product)
                    return scaled({&a, &b}, first, product);
            }
        for (const auto& size : sizes_)  // more or fewer
            if ((second - first) % (size.second - size.first) == 0) {
                const auto slope = (second - first) / (size.second - size.first);
                return make({&size}, slope, 1, first - slope * size.first);
            }
        for (const auto& size : sizes_)  // a part, rounded down
            if (first > 0 && size.first / first > 0 && size.second / (size.first / first) == second)
                return make({&size}, 1, size.first / first, 0);
        refuse(constant, "a number");
    }

    Value* scaled(const std::vector<const Size*>& of, int64_t numerator, int64_t denominator) {
        const auto divisor = std::gcd(numerator, denominator);
        return make(of, numerator / divisor, denominator / divisor, 0);
    }

    /// Product of sizes times `factor` over `divisor` plus `summand`.
    Value* make(const std::vector<const Size*>& of, int64_t factor, int64_t divisor, int64_t summand) {
        std::vector<int64_t> key{factor, divisor, summand};
        for (const auto* size : of) key.insert(key.end(), {static_cast<int64_t>(size->input), size->dim});
        auto& value = made_[key];
        if (value) return value;
        WithInsertPoint guard(last_ ? last_->next() : *graph_.nodes().begin());
        for (const auto* size : of) {
            Value* own = graph_.insert(aten::size, {graph_.inputs()[size->input + 1], size->dim});
            value = value ? graph_.insert(aten::mul, {value, own}) : own;
        }
        if (factor != 1) value = graph_.insert(aten::mul, {value, factor});
        if (divisor != 1) value = graph_.insert(aten::floordiv, {value, divisor});
        if (summand != 0) value = graph_.insert(aten::add, {value, summand});
        last_ = value->node();
        return value;
    }

    Graph& graph_;
    std::vector<Size> sizes_;
    std::map<std::vector<int64_t>, Value*> made_;
    Node* last_ = nullptr;
};

/// before  a constant false for `training`, because the trace was made in eval mode
/// after   `training` of the module that owns the running mean, else of the root
void follow_training(Graph& graph) {
    for (Node* node : all_nodes(graph)) {
        const auto* schema = node->maybeSchema();
        if (!schema) continue;
        const bool norm = std::string(node->kind().toQualString()) == "aten::batch_norm";
        for (size_t i = 0; i < schema->arguments().size() && i < node->inputs().size(); ++i) {
            const auto& argument = schema->arguments()[i].name();
            if (argument != "training" && argument != "train") continue;
            const auto value = constant_of(node->input(i));
            if (!value || !value->isBool() || value->toBool()) continue;
            Value* owner = graph.inputs()[0];
            if (norm) {
                auto* mean = node->namedInput("running_mean")->node();
                const auto momentum = constant_of(node->namedInput("momentum"));
                // Without momentum torch::nn averages over all batches so far, by a number that changes.
                if (momentum && momentum->toDouble() == 0) continue;
                if (mean->kind() == prim::GetAttr) owner = mean->input();
            }
            WithInsertPoint guard(node);
            node->replaceInput(i, graph.insertNode(graph.createGetAttr(owner, "training"))->output());
        }
    }
}

Inputs repeated(const Inputs& inputs, int64_t times) {
    Inputs result;
    for (const auto& input : inputs) {
        const auto tensor = input.toTensor();
        result.push_back(tensor.dim() == 0 ? tensor
                                           : at::cat(std::vector<at::Tensor>(static_cast<size_t>(times), tensor)));
    }
    return result;
}

void compare(const Model& model, const Forward& forward, const Inputs& inputs, const std::string& which) {
    const auto refuse = [&](const std::string& how) {
        throw UnsupportedModel(kWhere, "the trace gives " + how + " than forward on " + which,
                               "Does forward draw random numbers, keep a state, or branch on what is no tensor?");
    };
    std::vector<at::Tensor> expected, found;
    try {
        expected = all_tensors(forward(inputs));
        found = all_tensors(model.forward(inputs));
    } catch (const std::exception& error) {
        throw UnsupportedModel(kWhere, "the trace does not run on " + which + ": " + message_of(error),
                               "Trace it with fixed_sizes, for the example's sizes alone.");
    }
    if (expected.size() != found.size()) refuse("another number of tensors");
    for (size_t i = 0; i < expected.size(); ++i) {
        if (expected[i].sizes() != found[i].sizes()) refuse("another shape");
        const auto a = expected[i].to(at::kDouble), b = found[i].to(at::kDouble);
        const double largest = a.numel() ? a.abs().nan_to_num(0, 0, 0).max().item<double>() : 0;
        if (!at::allclose(b, a, kRelative, kRelative * 1e-2 * largest, /*equal_nan=*/true)) refuse("other values");
    }
}

using Tensors = std::unordered_map<std::string, at::Tensor>;

void copy_by_name(const Tensors& trained, torch::nn::Module& module) {
    std::vector<std::pair<std::string, at::Tensor>> targets;
    for (const auto& parameter : module.named_parameters()) targets.emplace_back(parameter.key(), parameter.value());
    for (const auto& buffer : module.named_buffers()) targets.emplace_back(buffer.key(), buffer.value());
    std::set<const void*> covered;  // a tensor that is registered twice may be listed under one name
    for (const auto& [name, target] : targets) {
        const auto found = trained.find(name);
        if (found == trained.end()) continue;
        if (found->second.sizes() != target.sizes())
            throw InvalidArgument(
                "copy_back",
                name + " has shape " + c10::str(found->second.sizes()) + ", in the module " + c10::str(target.sizes()),
                "What changed shapes lives on as TorchScript: save the model.");
        covered.insert(target.unsafeGetTensorImpl());
    }
    for (const auto& [name, target] : targets)
        if (target.is_floating_point() && !covered.count(target.unsafeGetTensorImpl()))
            throw InvalidArgument("copy_back", "there is no " + name + " in what was trained",
                                  "Was it folded into another layer? For quantize::prepare set train_norms.");
    torch::NoGradGuard no_grad;
    for (auto& [name, target] : targets)
        if (const auto found = trained.find(name); found != trained.end()) target.copy_(found->second.detach());
}

}  // namespace

Model trace(const std::shared_ptr<torch::nn::Module>& module, const Forward& forward, const Inputs& example,
            const TraceOptions& options) {
    if (!module || !forward) throw InvalidArgument(kWhere, "module or forward is empty", "Give both.");
    if (example.empty()) throw InvalidArgument(kWhere, "there is no example", "Give forward's inputs.");
    if (!options.other.empty() && options.other.size() != example.size())
        throw InvalidArgument(kWhere, "options.other has another number of inputs than the example", "Give as many.");
    if (!options.arguments.empty() && options.arguments.size() != example.size())
        throw InvalidArgument(kWhere, "options.arguments has another number of names than the example",
                              "Give as many.");
    for (const auto* inputs : {&example, &options.other})
        for (const auto& input : *inputs)
            if (!input.isTensor())
                throw InvalidArgument(kWhere, "an input is no tensor (" + input.tagKind() + ")",
                                      "Give tensors, and bind the rest in forward.");
    torch::NoGradGuard no_grad;
    const InEvalMode eval(*module);
    auto traced = trace_once(*module, forward, example, options, "the example");
    const auto others = options.other.empty() ? repeated(example, 2) : options.other;
    const std::string which = options.other.empty() ? "the example twice as long" : "options.other";
    if (!options.fixed_sizes)
        SizesOfInputs(*traced.graph, example, others)
            .follow(*trace_once(*module, forward, others, options, which).graph);
    follow_training(*traced.graph);
    EliminateDeadCode(traced.graph);
    EraseShapeInformation(traced.graph);  // those of the example
    traced.graph->lint();
    auto* function = traced.root._ivalue()->compilation_unit()->create_function(
        c10::QualifiedName(*traced.root.type()->name(), "forward"), traced.graph);
    traced.root.type()->addMethod(function);
    auto model = Model::from_module(traced.root, options.name);
    model.eval();
    compare(model, forward, example, "the example");
    if (!options.fixed_sizes) {
        compare(model, forward, others, which);
        if (options.other.empty()) compare(model, forward, repeated(example, 3), "the example three times as long");
    }
    return model;
}

void copy_back(const Model& trained, torch::nn::Module& module) {
    Tensors tensors;
    for (const auto& entry : named_tensors(trained)) tensors[entry.name] = entry.tensor;
    copy_by_name(tensors, module);
}

void copy_back(Trainable& trained, torch::nn::Module& module) {
    Tensors tensors;
    for (const auto& list : {trained.parameters(), trained.buffers()})
        for (const auto& [name, tensor] : list) tensors[name] = tensor;
    copy_by_name(tensors, module);
}

}  // namespace coppice
