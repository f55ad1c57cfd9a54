// Gradients of the task's loss for criteria that need them: taylor, fisher.
#include <coppice/train.h>

#include "criteria/criteria.h"

namespace coppice::prune {
namespace {

std::unique_ptr<Loss> loss_of(Task task) {
    switch (task) {
        case Task::kClassification:
            return cross_entropy();
        case Task::kRegression:
            return mean_squared_error();
        case Task::kSimilarity:
            return pair_similarity();
    }
    throw InternalError("prune", "unknown task", "");
}

}  // namespace

int64_t with_gradients(const char* where, const Model& model, Context& context, int64_t batches, int64_t batch_size,
                       const std::function<void(const std::map<std::string, at::Tensor>&)>& visit) {
    if (!context.data.calibration || context.data.calibration->size() == 0)
        throw InvalidArgument(where, "there is no calibration data",
                              "Give `calibration` in `data:`, or use criterion magnitude.");
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
    const auto loss = loss_of(context.task);
    BatchIterator iterator(*context.data.calibration, batch_size, /*shuffle=*/true, context.seed);
    int64_t count = 0;
    at::AutoGradMode with_gradients(true);
    while (count < batches) {
        const auto batch = iterator.next();
        if (!batch) break;
        if (context.interrupted()) throw Interrupted(where, "stopped", "");
        if (!batch->target.defined())
            throw InvalidArgument(where, "the calibration data has no labels",
                                  "Use labelled data, or criterion magnitude.");
        for (auto& [name, parameter] : parameters) parameter.mutable_grad() = at::Tensor();
        const auto value = (*loss)(first_tensor(run_nodes(copy, batch->inputs)), {}, *batch);
        if (!value.isfinite().item<bool>())
            throw UnsupportedModel(where, "the loss on the calibration data is not finite",
                                   "Check data, task and checkpoint.");
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

}  // namespace coppice::prune
