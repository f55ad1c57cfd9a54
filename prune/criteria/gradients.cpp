// Gradients of the task's loss for criteria that need them: taylor, fisher.
#include <torch/autograd.h>

#include <coppice/training_task.h>

#include "criteria/readers.h"

namespace coppice::prune {
namespace {

at::Tensor loss_on(const char* where, const Model& model, const Loss& loss, const Batch& batch, Context& context,
                   const NodeHooks& hooks = {}) {
    if (context.interrupted()) throw Interrupted(where, "stopped", "");
    if (!batch.target.defined())
        throw InvalidArgument(where, "the calibration data has no labels",
                              "Use labelled data, or criterion magnitude.");
    auto value = loss(first_tensor(run_nodes(model, batch.inputs, hooks)), {}, batch);
    if (!value.isfinite().item<bool>())
        throw UnsupportedModel(where, "the loss on the calibration data is not finite",
                               "Check data, task and checkpoint.");
    return value;
}

void check_data(const char* where, const Context& context) {
    if (!context.data.calibration || context.data.calibration->size() == 0)
        throw InvalidArgument(where, "there is no calibration data",
                              "Give `calibration` in `data:`, or use criterion magnitude.");
}

/// Each place where a group is read, also several of one value; written ones of groups that nothing reads.
std::vector<Tap> gates_of(const Model& model, const Groups& groups, const char* where) {
    std::vector<Tap> gates;
    const Node* last = nullptr;
    for (const auto& reader : readers(model)) {
        if (reader.node == last) continue;  // the second direction of a recurrent layer
        last = reader.node;
        for (auto& tap : taps_of_reader(groups, reader)) gates.push_back(std::move(tap));
    }
    for (auto& tap : find_taps(model, groups, where))
        if (tap.written) gates.push_back(std::move(tap));
    return gates;
}

}  // namespace

int64_t with_gradients(const char* where, const Model& model, Context& context, int64_t batches, int64_t batch_size,
                       const std::function<void(const std::map<std::string, at::Tensor>&)>& visit) {
    check_data(where, context);
    Model copy = model.clone();
    copy.eval();
    std::map<std::string, at::Tensor> parameters;
    for (const auto& named : named_tensors(copy)) {
        if (named.role != Role::kParameter || !named.tensor.is_floating_point()) continue;
        if (!named.tensor.isfinite().all().item<bool>())
            throw UnsupportedModel(where, named.name + " holds NaN or infinity", "Check the checkpoint.");
        auto leaf = named.tensor;
        leaf.set_requires_grad(true);
        parameters[named.name] = leaf;
    }
    const auto loss = default_loss(context.task);
    BatchIterator iterator(*context.data.calibration, batch_size, /*shuffle=*/true, context.seed);
    int64_t count = 0;
    at::AutoGradMode with_gradients(true);
    while (count < batches) {
        const auto batch = iterator.next();
        if (!batch) break;
        for (auto& [name, parameter] : parameters) parameter.mutable_grad() = at::Tensor();
        const auto value = loss_on(where, copy, *loss, *batch, context);
        value.backward();
        {
            torch::NoGradGuard no_grad;
            visit(parameters);
        }
        context.log->progress(std::string(where) + " scores", static_cast<double>(++count),
                              static_cast<double>(batches), "");
    }
    return count;
}

int64_t with_gates(const char* where, const Model& model, const Groups& groups, Context& context, int64_t batches,
                   int64_t batch_size, const std::function<void(const std::vector<at::Tensor>&)>& visit) {
    check_data(where, context);
    const auto gates = gates_of(model, groups, where);
    std::map<const Node*, std::vector<const Tap*>> before, after;
    for (const auto& gate : gates) (gate.written ? after : before)[gate.node].push_back(&gate);
    const EvalMode eval(model);
    const auto loss = default_loss(context.task);
    BatchIterator iterator(*context.data.calibration, batch_size, /*shuffle=*/true, context.seed);
    int64_t count = 0;
    at::AutoGradMode with_gradients(true);
    while (count < batches) {
        const auto batch = iterator.next();
        if (!batch) break;
        std::vector<std::pair<const Tap*, at::Tensor>> ones;
        const auto insert = [&](const auto& table, const Node* node, std::vector<c10::IValue>& values) {
            const auto found = table.find(node);
            if (found == table.end()) return;
            // Groups side by side in one value share its gates.
            std::map<std::pair<size_t, int64_t>, at::Tensor> placed;
            for (const Tap* tap : found->second) {
                auto& gate = placed[{tap->port, tap->dim}];
                if (!gate.defined()) {
                    const auto x = values[tap->port].toTensor();
                    std::vector<int64_t> shape(static_cast<size_t>(x.dim()), 1);
                    shape[0] = x.size(0);
                    shape[tap->dim] = x.size(tap->dim);
                    gate = at::ones(shape, x.options()).set_requires_grad(true);
                    values[tap->port] = x * gate;
                }
                ones.emplace_back(tap, gate);
            }
        };
        NodeHooks hooks;
        hooks.before = [&](const Node* node, std::vector<c10::IValue>& values) { insert(before, node, values); };
        hooks.after = [&](const Node* node, std::vector<c10::IValue>& values) { insert(after, node, values); };
        const auto value = loss_on(where, model, *loss, *batch, context, hooks);
        std::vector<at::Tensor> leaves;
        for (const auto& [tap, gate] : ones) leaves.push_back(gate);
        const auto gradients = torch::autograd::grad({value}, leaves, {}, /*retain_graph=*/false,
                                                     /*create_graph=*/false, /*allow_unused=*/true);
        torch::NoGradGuard no_grad;
        const int64_t examples = batch->examples();
        std::vector<at::Tensor> sums;  // [examples, C] per group
        for (const auto& group : groups.all()) sums.push_back(at::zeros({examples, group.channels}, at::kDouble));
        for (size_t i = 0; i < ones.size(); ++i) {
            if (!gradients[i].defined()) continue;
            const Tap& tap = *ones[i].first;
            const auto per_row = tap.maps(gradients[i].to(at::kDouble)).flatten(2).sum(2);  // [rows, C]
            if (per_row.size(0) % examples != 0)
                throw UnsupportedModel(std::string(where) + " at " + groups.all()[tap.group].name,
                                       "a value does not hold the examples in its first dimension",
                                       "Use at: parameters.");
            // The loss is a mean over examples: times their number, each one's own. Rows of an example follow one
            // another.
            sums[tap.group] += per_row.reshape({examples, -1, per_row.size(1)}).sum(1) * static_cast<double>(examples);
        }
        visit(sums);
        context.log->progress(std::string(where) + " scores", static_cast<double>(++count),
                              static_cast<double>(batches), "");
    }
    return count;
}

}  // namespace coppice::prune
