// score[c] = mean over batches of (sum over parameters w of channel c of w * dL/dw)^2
//
// The sum of w * dL/dw is minus the first-order change of the loss when the channel's parameters become zero; squared,
// because the sign does not matter (Molchanov et al., arXiv 1906.10771, equation 8). It runs over the parameters that
// produce or scale the channel (filters, biases, batch norm): those that read it from the next layer say the same thing
// again, as w * dL/dw summed over either side of a linear map gives the activation times its gradient.
#include <coppice/train.h>

#include "criteria/criteria.h"

namespace coppice::prune {
namespace {

class Taylor final : public Criterion {
public:
    explicit Taylor(TaylorOptions options) : options_(options) {}

    Needs needs() const override {
        Needs needs;
        needs.calibration_data = true;
        needs.labels = true;
        return needs;
    }

    std::vector<at::Tensor> scores(const Model& model, const Groups& groups, Context& context) const override {
        if (!context.data.calibration || context.data.calibration->size() == 0)
            throw InvalidArgument("prune.taylor", "there is no calibration data",
                                  "Give `calibration` in `data:`, or use criterion magnitude.");
        Model copy = model.clone();
        copy.eval();
        std::map<std::string, at::Tensor> parameters;
        for (const auto& named : named_tensors(copy)) {
            if (named.role != Role::kParameter || !named.tensor.is_floating_point()) continue;
            if (!named.tensor.isfinite().all().item<bool>())
                throw UnsupportedModel("prune.taylor", named.name + " holds NaN or infinity", "Check the checkpoint.");
            auto leaf = named.tensor;
            leaf.set_requires_grad(true);
            parameters[named.name] = leaf;
        }
        const auto loss = loss_of(context.task);
        std::vector<at::Tensor> scores;
        for (const auto& group : groups.all()) scores.push_back(at::zeros({group.channels}, at::kDouble));
        BatchIterator batches(*context.data.calibration, options_.batch_size, /*shuffle=*/true, context.seed);
        int64_t count = 0;
        at::AutoGradMode with_gradients(true);
        while (count < options_.batches) {
            const auto batch = batches.next();
            if (!batch) break;
            if (context.interrupted()) throw Interrupted("prune.taylor", "stopped", "");
            if (!batch->target.defined())
                throw InvalidArgument("prune.taylor", "the calibration data has no labels",
                                      "Use labelled data, or criterion magnitude.");
            for (auto& [name, parameter] : parameters) parameter.mutable_grad() = at::Tensor();
            const auto value = (*loss)(first_tensor(run_nodes(copy, batch->inputs)), {}, *batch);
            if (!value.isfinite().item<bool>())
                throw UnsupportedModel("prune.taylor", "the loss on the calibration data is not finite",
                                       "Check data, task and checkpoint.");
            value.backward();
            add(groups, parameters, scores);
            context.log->progress("taylor scores", static_cast<double>(++count), static_cast<double>(options_.batches),
                                  "");
        }
        for (auto& score : scores) score /= static_cast<double>(count);
        return scores;
    }

private:
    static std::unique_ptr<Loss> loss_of(Task task) {
        switch (task) {
            case Task::kClassification:
                return cross_entropy();
            case Task::kRegression:
                return mean_squared_error();
            case Task::kSimilarity:
                return pair_similarity();
        }
        throw InternalError("prune.taylor", "unknown task", "");
    }

    static void add(const Groups& groups, const std::map<std::string, at::Tensor>& parameters,
                    std::vector<at::Tensor>& scores) {
        torch::NoGradGuard no_grad;
        std::map<std::string, at::Tensor> products;  // w * dL/dw, each computed once
        for (size_t g = 0; g < scores.size(); ++g) {
            const auto& group = groups.all()[g];
            auto change = at::zeros({group.channels}, at::kDouble);
            for (const auto& slice : group.slices) {
                const bool scales = slice.tensor.dim() == 1;  // biases and batch norm
                const auto found = parameters.find(slice.name);
                if (found == parameters.end() || !(slice.produces || scales) || !found->second.grad().defined())
                    continue;
                auto& product = products[slice.name];
                if (!product.defined()) product = (found->second * found->second.grad()).to(at::kDouble);
                const auto rows = product.movedim(slice.dim, 0).reshape({product.size(slice.dim), -1}).sum(1);
                change += per_channel(rows, slice, group.channels);
            }
            scores[g] += change.square();
        }
    }

    const TaylorOptions options_;
};

}  // namespace

std::unique_ptr<Criterion> taylor(TaylorOptions options) {
    if (options.batches < 1 || options.batch_size < 1)
        throw InvalidArgument("prune.taylor", "batches and batch_size must be at least 1",
                              "The defaults are 8 and 64.");
    return std::make_unique<Taylor>(options);
}

}  // namespace coppice::prune
