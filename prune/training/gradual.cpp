// Stage prune.gradual: the masks of a Masker grow by a schedule while the model trains (Zhu and Gupta, arXiv
// 1710.01878, for channels), with the scores taken anew each time on the model as it would be cut then. Training goes
// on after the last growth, and the masked channels are cut in the end.
//
// What prune.channel does with its options is not repeated here: it resolves `ignore` and `layers` (Ask) and makes and
// reports the cut (Chosen).
#include <coppice/error.h>

#include "groups/unfuse.h"
#include "training/stages.h"

namespace coppice::prune {
namespace {

constexpr const char* kWhere = "prune.gradual";

class NoScores final : public Criterion {
public:
    std::vector<at::Tensor> scores(const Model&, const Groups& groups, Context&) const override {
        std::vector<at::Tensor> zeros;
        for (const auto& group : groups.all()) zeros.push_back(at::zeros({group.channels}, at::kDouble));
        return zeros;
    }
};

/// Removes nothing, and keeps the target that it was asked for.
class Ask final : public Allocation {
public:
    explicit Ask(Target& target) : target_(target) {}
    Removal allocate(const Groups& groups, const std::vector<at::Tensor>&, const CostModel&,
                     const Target& target) const override {
        target_ = target;
        return Removal(groups.all().size());
    }

private:
    Target& target_;
};

/// What the training chose.
class Chosen final : public Allocation {
public:
    explicit Chosen(Removal removal) : removal_(std::move(removal)) {}
    Removal allocate(const Groups&, const std::vector<at::Tensor>&, const CostModel&, const Target&) const override {
        return removal_;
    }

private:
    const Removal removal_;
};

class Gradual final : public Stage {
public:
    Gradual(TrainingTask task, std::unique_ptr<Criterion> criterion, std::unique_ptr<Allocation> allocation,
            std::unique_ptr<Schedule> schedule, ChannelPruningOptions pruning, GradualOptions options)
        : task_(std::move(task)),
          criterion_(std::move(criterion)),
          allocation_(std::move(allocation)),
          schedule_(std::move(schedule)),
          pruning_(std::move(pruning)),
          options_(options) {}

    Needs needs() const override {
        Needs needs = task_.needs() | criterion_->needs();
        needs.calibration_data |= pruning_.bn_batches > 0 || pruning_.refit;
        return needs;
    }

    void check(const Model& model, const Context& context) const override {
        task_.check(model, context);
        Target target;
        channel_pruning(std::make_unique<NoScores>(), std::make_unique<Ask>(target), pruning_)->check(model, context);
    }

    Model apply(const Model& model, Context& context) const override {
        if (!context.data.train) throw InvalidArgument(kWhere, "there is no training data", "Give data a train split.");
        Model trained = unfused(model, context).clone();  // as prune.channel has it
        trained.eval();
        auto module = trainable(trained);  // all parameters train from here on
        const Target target = target_for(trained, context);
        const GrowthPlan plan(options_, task_.options(), context.data.train->size(), schedule_->at_once());
        Masker masker(trained, context.example, options_.soft, pruning_.groups);
        Context scoring = context;  // what criteria may report would stand beside the facts of the training
        const auto grow = [&](int64_t step) {
            const auto time = plan.time(step);
            if (!time) return;
            masker.grow(*criterion_, *allocation_, at_time(target, *schedule_, *time), scoring);
            log(step, plan, masker, context);
        };
        grow(0);
        TrainCallbacks callbacks = masker.callbacks();
        callbacks.only_last = true;
        callbacks.on_step = [&](const StepInfo& step) {
            grow(step.epoch * step.steps + step.step + 1);
            return true;
        };
        WithState with_masks(std::move(module), masker.state(), [&] { masker.restore(); });
        task_.run(trained, with_masks, context, callbacks);
        masker.restore();  // an earlier process may have finished the last epoch

        Model smaller =
            channel_pruning(std::make_unique<NoScores>(), std::make_unique<Chosen>(masker.removal()), pruning_)
                ->apply(trained, context);
        if (!options_.soft && pruning_.bn_batches == 0)
            context.facts["cut_difference"] = difference(trained, smaller, context.example);
        return smaller;
    }

private:
    Target target_for(const Model& model, const Context& context) const {
        Target target;
        Context unused = context;
        auto options = pruning_;
        options.bn_batches = 0;
        channel_pruning(std::make_unique<NoScores>(), std::make_unique<Ask>(target), std::move(options))
            ->apply(model, unused);
        return target;
    }

    static void log(int64_t step, const GrowthPlan& plan, const Masker& masker, Context& context) {
        const auto& groups = masker.groups().all();
        std::vector<int64_t> kept;
        int64_t masked = 0, channels = 0;
        for (size_t g = 0; g < groups.size(); ++g) {
            const auto gone = static_cast<int64_t>(masker.removal()[g].size());
            kept.push_back(groups[g].channels - gone);
            masked += gone;
            channels += groups[g].channels;
        }
        char share[32];
        std::snprintf(share, sizeof share, "%.3g", masker.cost().macs(kept) / masker.cost().baseline_macs());
        context.log->info("step " + std::to_string(step) + " of " + std::to_string(plan.total) + ": " +
                          std::to_string(masked) + " of " + std::to_string(channels) + " channels are masked, " +
                          share + " of the multiply-adds would stay");
    }

    /// Largest difference between the outputs of the masked and the cut model: how far the cut was free.
    static double difference(const Model& masked, const Model& cut, const Inputs& example) {
        torch::NoGradGuard no_grad;
        const auto a = all_tensors(run_nodes(masked, example)), b = all_tensors(run_nodes(cut, example));
        double largest = 0;
        for (size_t i = 0; i < a.size() && i < b.size(); ++i)
            if (a[i].numel() > 0)
                largest = std::max(largest, (a[i].to(at::kDouble) - b[i].to(at::kDouble)).abs().max().item<double>());
        return largest;
    }

    const TrainingTask task_;
    const std::unique_ptr<Criterion> criterion_;
    const std::unique_ptr<Allocation> allocation_;
    const std::unique_ptr<Schedule> schedule_;
    const ChannelPruningOptions pruning_;
    const GradualOptions options_;
};

}  // namespace

std::unique_ptr<Stage> gradual_pruning(TrainingTask task, std::unique_ptr<Criterion> criterion,
                                       std::unique_ptr<Allocation> allocation, std::unique_ptr<Schedule> schedule,
                                       ChannelPruningOptions pruning, GradualOptions options) {
    check_growth(kWhere, options, task.options().epochs);
    if (!allocation->sensitivity_ratios().empty())
        throw InvalidArgument(kWhere, "the scope measures the quality of the model group by group, at every scoring",
                              "Use scope global, uniform, greedy or isomorphic.");
    if (pruning.target.latency_ratio || pruning.target.energy_ratio || pruning.round_to_measured || pruning.only_faster)
        throw InvalidArgument(kWhere,
                              "latency_ratio, energy_ratio, round_to: auto and only_faster need a model at rest",
                              "Use macs_ratio, or prune.channel with them before train.finetune.");
    return std::make_unique<Gradual>(std::move(task), std::move(criterion), std::move(allocation), std::move(schedule),
                                     std::move(pruning), options);
}

}  // namespace coppice::prune
