// Stage prune.movement (Sanh et al., arXiv 2005.07683): a weight's score is S = -sum over steps of dL/dW' W, with W'
// the masked weight that the network computes with and W the weight behind the mask (straight-through): positive for
// what training moves away from zero. The lowest scores are masked, more and more by a schedule; a masked weight does
// not train, but its score does, so that it may come back. Differs from the paper in two ways: scores are sums from the
// first step on, without a learning rate of their own, which does not change their order; and the masks are chosen anew
// every few steps, not in every forward pass.
#include <coppice/error.h>

#include "training/stages.h"
#include "weights/weights.h"

namespace coppice::prune {
namespace {

constexpr const char* kWhere = "prune.movement";

/// One weight in training. `parameter` holds W' = W where the mask is true, else 0.
struct Moving {
    size_t layer;
    at::Tensor parameter;
    at::Tensor scores;
    at::Tensor mask;    // bool
    at::Tensor hidden;  // W where the mask is false

    at::Tensor behind() const { return at::where(mask, parameter, hidden); }
};

class Movement final : public Stage {
public:
    Movement(TrainingTask task, std::unique_ptr<WeightPattern> pattern, std::unique_ptr<Schedule> schedule,
             WeightPruningOptions pruning, GradualOptions options)
        : task_(std::move(task)),
          pattern_(std::move(pattern)),
          schedule_(std::move(schedule)),
          pruning_(std::move(pruning)),
          options_(options) {}

    Needs needs() const override { return task_.needs(); }

    void check(const Model& model, const Context& context) const override {
        task_.check(model, context);
        refuse_other_methods(model, kWhere);
        choose_layers(kWhere, model, pruning_, *pattern_, InputStatistic::kNone);
    }

    Model apply(const Model& model, Context& context) const override {
        if (!context.data.train) throw InvalidArgument(kWhere, "there is no training data", "Give data a train split.");
        refuse_other_methods(model, kWhere);
        Model trained = model.clone();
        trained.eval();
        auto module = trainable(trained);
        auto layers = choose_layers(kWhere, trained, pruning_, *pattern_, InputStatistic::kNone);
        std::vector<Moving> moving = start(*module, layers);
        std::map<size_t, ZeroCount> zeros;
        for (const auto& each : moving) zeros[each.layer].before = zeros_in(each.parameter.detach());

        const bool once = schedule_->at_once() || pattern_->sparsity().has_value();
        GrowthPlan plan(options_, task_.options(), context.data.train->size(), once);
        plan.begin = std::max<int64_t>(plan.begin, 1);  // before the first step there are no scores
        plan.end = std::max(plan.end, plan.begin);
        TrainCallbacks callbacks;
        // Before clipping, so that the length of the gradient counts only what trains.
        callbacks.on_gradients = [&](Trainable&) {
            torch::NoGradGuard no_grad;
            for (auto& each : moving) {
                auto gradient = each.parameter.grad();
                if (!gradient.defined()) continue;
                each.scores.sub_(gradient * each.behind());
                gradient.mul_(each.mask);
            }
        };
        // Momentum and decay move what is masked.
        callbacks.after_step = [&](Trainable&) {
            torch::NoGradGuard no_grad;
            for (auto& each : moving) each.parameter.mul_(each.mask);
        };
        callbacks.on_step = [&](const StepInfo& step) {
            const int64_t done = step.epoch * step.steps + step.step + 1;
            if (const auto time = plan.time(done)) {
                const double sparsity = pattern_->sparsity().value_or(schedule_->removed(*time, pruning_.sparsity));
                choose(layers, moving, sparsity);
                log(done, plan.total, moving, context);
            }
            return true;
        };
        std::vector<std::pair<std::string, at::Tensor>> state;
        for (const auto& each : moving) {
            const auto& name = layers[each.layer].attribute;
            state.emplace_back(name + ".scores", each.scores);
            state.emplace_back(name + ".mask", each.mask);
            state.emplace_back(name + ".hidden", each.hidden);
        }
        WithState with_masks(std::move(module), std::move(state));
        task_.run(trained, with_masks, context, callbacks);
        for (const auto& each : moving) zeros[each.layer].after = zeros_in(each.parameter.detach());
        report_zeros(kWhere, layers, zeros, *pattern_, context);
        return trained;
    }

private:
    static std::vector<Moving> start(Trainable& module, std::vector<WeightLayer>& layers) {
        std::map<std::string, at::Tensor> parameters;
        for (const auto& [name, parameter] : module.parameters()) parameters[name] = parameter;
        std::vector<Moving> moving;
        for (size_t i = 0; i < layers.size(); ++i) {
            auto& layer = layers[i];
            if (!layer.reason.empty()) continue;
            const auto found = parameters.find(layer.attribute);
            if (found == parameters.end()) {
                layer.reason = "does not train";
                continue;
            }
            const auto& parameter = found->second;
            moving.push_back({i, parameter, at::zeros_like(parameter.detach()),
                              at::ones_like(parameter.detach(), at::kBool), at::zeros_like(parameter.detach())});
        }
        if (moving.empty()) throw UnsupportedModel(kWhere, "no weight of the model trains", "Use prune.weight.");
        return moving;
    }

    void choose(const std::vector<WeightLayer>& layers, std::vector<Moving>& moving, double sparsity) const {
        torch::NoGradGuard no_grad;
        std::vector<WeightLayer> scored;
        std::vector<at::Tensor> matrices;  // [groups, rows, columns]
        for (const auto& each : moving) {
            scored.push_back(layers[each.layer]);
            scored.back().weight = each.scores;
            matrices.push_back(to_matrix(scored.back()));
        }
        std::vector<double> shares(moving.size(), sparsity);
        if (pruning_.scope == "global" && !pattern_->sparsity()) {
            std::vector<at::Tensor> units;
            for (const auto& matrix : matrices) units.push_back(pattern_->units(matrix));
            shares = shares_of_lowest(units, sparsity);
        }
        for (size_t i = 0; i < moving.size(); ++i) {
            auto& each = moving[i];
            const auto keep = pattern_->keep(matrices[i], shares[i], pruning_.scope == "row");
            const auto behind = each.behind();
            each.hidden.copy_(behind);
            each.mask.copy_(from_matrix(scored[i], keep.to(at::kDouble)).to(at::kBool));
            each.parameter.copy_(behind * each.mask);
        }
    }

    static void log(int64_t step, int64_t total, const std::vector<Moving>& moving, Context& context) {
        int64_t masked = 0, weights = 0;
        for (const auto& each : moving) {
            masked += zeros_in(each.mask);
            weights += each.mask.numel();
        }
        context.log->info("step " + std::to_string(step) + " of " + std::to_string(total) + ": " +
                          std::to_string(masked) + " of " + std::to_string(weights) + " weights are masked");
    }

    const TrainingTask task_;
    const std::unique_ptr<WeightPattern> pattern_;
    const std::unique_ptr<Schedule> schedule_;
    const WeightPruningOptions pruning_;
    const GradualOptions options_;
};

}  // namespace

std::unique_ptr<Stage> movement_pruning(TrainingTask task, std::unique_ptr<WeightPattern> pattern,
                                        std::unique_ptr<Schedule> schedule, WeightPruningOptions pruning,
                                        GradualOptions options) {
    check_growth(kWhere, options, task.options().epochs);
    return std::make_unique<Movement>(std::move(task), std::move(pattern), std::move(schedule), std::move(pruning),
                                      options);
}

}  // namespace coppice::prune
