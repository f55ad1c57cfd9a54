// Stage prune.sparse_learning: trains with a penalty that draws whole channels towards zero, so that removing them
// later costs less (arXiv 2301.12900, section 3.3; 1708.06519; 2012.09243). The model keeps its shape: prune.channel
// follows. Fused attention is written out as there, so that the groups are the same, and because it does not train.
#include <coppice/error.h>

#include "groups/unfuse.h"
#include "messages.h"
#include "regularisers/regularisers.h"
#include "training/stages.h"

namespace coppice::prune {
namespace {

constexpr const char* kWhere = "prune.sparse_learning";

class SparseLearning final : public Stage {
public:
    SparseLearning(TrainingTask task, std::unique_ptr<Regulariser> regulariser, GroupOptions groups)
        : task_(std::move(task)), regulariser_(std::move(regulariser)), groups_(std::move(groups)) {}

    Needs needs() const override { return task_.needs() | regulariser_->needs(); }

    void check(const Model& model, const Context& context) const override {
        task_.check(model, context);
        refuse_other_methods(model, kWhere);
        groups_of(unfuse_attention(model), context);
    }

    Model apply(const Model& model, Context& context) const override {
        refuse_other_methods(model, kWhere);
        Model trained = unfused(model, context).clone();
        trained.eval();
        auto module = trainable(trained);  // all parameters train from here on
        const auto groups = groups_of(trained, context);
        Context choosing = context;  // what criteria may report would stand beside the facts of the training
        const auto penalty = regulariser_->bind(trained, groups, choosing);
        if (choosing.facts.contains("chosen_on")) context.facts["chosen_on"] = choosing.facts["chosen_on"];
        const double penalty_before = penalty->value(), weaker_before = weaker_half(groups);
        TrainCallbacks callbacks;
        callbacks.on_gradients = [&](Trainable&) { penalty->add_gradients(); };
        callbacks.only_last = true;
        WithState with_penalty(std::move(module), penalty->state());
        task_.run(trained, with_penalty, context, callbacks);
        context.facts["penalty_before"] = penalty_before;
        context.facts["penalty_after"] = penalty->value();
        context.facts["weaker_half_before"] = weaker_before;
        context.facts["weaker_half_after"] = weaker_half(groups);
        context.facts["groups"] = groups.all().size();
        return trained;
    }

private:
    Groups groups_of(const Model& model, const Context& context) const {
        auto groups = find_groups(model, Facts::observe(model, context.example), groups_);
        if (groups.all().empty())
            throw UnsupportedModel(kWhere, "no channel can be removed", "See `coppice inspect` for the reasons.");
        return groups;
    }

    /// The share of a group's squared weights that its weaker half of channels holds, averaged over groups: 0.5 where
    /// all are equal, 0 where half of them can go for nothing.
    static double weaker_half(const Groups& groups) {
        double sum = 0;
        for (const auto& parameters : parameters_of(groups)) {
            const auto squares = std::get<0>(parameters.squares().sort());
            const double all = squares.sum().item<double>();
            if (all > 0) sum += squares.slice(0, 0, parameters.channels() / 2).sum().item<double>() / all;
        }
        return sum / static_cast<double>(groups.all().size());
    }

    const TrainingTask task_;
    const std::unique_ptr<Regulariser> regulariser_;
    const GroupOptions groups_;
};

}  // namespace

std::unique_ptr<Stage> sparse_learning(TrainingTask task, std::unique_ptr<Regulariser> regulariser,
                                       GroupOptions groups) {
    ignore_patterns(kWhere, groups.ignore);  // refused here rather than when the model is there
    return std::make_unique<SparseLearning>(std::move(task), std::move(regulariser), std::move(groups));
}

}  // namespace coppice::prune
