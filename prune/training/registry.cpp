// Tables of schedules and regularisers, and the stages that train: one row per algorithm. Sorted.
#include <coppice/error.h>
#include <coppice/prune_training.h>

#include "options.h"
#include "weights/weights.h"

namespace coppice::prune {
namespace {

std::unique_ptr<Regulariser> make_greg(Options& o) {
    GregOptions options;
    auto criterion = make<Criterion>(o, "criterion", "magnitude", criteria(), "what decides which channels are to go");
    auto allocation = make<Allocation>(o, "scope", "global", allocations(), "how they are spread over the layers");
    read_goal(o, options.target, /*timed=*/false);
    options.target.round_to = o.integer("round_to", 8, 1, 1024, "widths that stay are multiples of this");
    options.target.max_ratio = o.number_in("max_ratio", 0.9, 0, 1, "largest share chosen of any one group");
    options.increment = o.number_in("increment", options.increment, 0, 1e6, "what the penalty grows by");
    options.every_steps = o.integer("every_steps", options.every_steps, 1, INT64_MAX, "steps between two increments");
    options.ceiling = o.number_in("ceiling", options.ceiling, 0, 1e6, "where it stops growing");
    return greg(std::move(criterion), std::move(allocation), std::move(options));
}

GradualOptions read_growth(Options& o, const TrainingTask& task) {
    const auto epochs = static_cast<double>(task.options().epochs);
    GradualOptions options;
    options.begin_epoch = o.number_in("begin_epoch", 0, 0, epochs, "when the masks begin to grow");
    options.end_epoch = o.number_in("end_epoch", epochs / 2, 0, epochs,
                                    "when the target is reached and the masks stay; half of the epochs");
    options.every_steps =
        o.integer("every_steps", options.every_steps, 1, INT64_MAX, "training steps between two scorings");
    return options;
}

std::unique_ptr<Stage> make_gradual(Options& o, const std::vector<Entry<Loss>>& losses) {
    TrainingTask task(o, losses);
    auto parts = read_channel_pruning(o, While::kTraining);
    auto schedule = make<Schedule>(o, "pruning_schedule", "cubic", schedules(), "how the masks grow");
    auto options = read_growth(o, task);
    options.soft =
        o.boolean("soft", false, "masked filters may grow back until the next scoring, to the end (arXiv 1808.06866)");
    return gradual_pruning(std::move(task), std::move(parts.criterion), std::move(parts.allocation),
                           std::move(schedule), std::move(parts.options), options);
}

std::unique_ptr<Stage> make_movement(Options& o, const std::vector<Entry<Loss>>& losses) {
    TrainingTask task(o, losses);
    WeightPruningOptions pruning;
    auto pattern = read_weights(o, pruning);
    auto schedule = make<Schedule>(o, "pruning_schedule", "cubic", schedules(), "how the masks grow");
    const auto options = read_growth(o, task);
    return movement_pruning(std::move(task), std::move(pattern), std::move(schedule), std::move(pruning), options);
}

std::unique_ptr<Stage> make_sparse_learning(Options& o, const std::vector<Entry<Loss>>& losses) {
    TrainingTask task(o, losses);
    auto regulariser =
        make<Regulariser>(o, "regulariser", "group_norm", regularisers(), "what draws the channels towards zero");
    GroupOptions groups;
    groups.ignore = o.texts("ignore", {}, "regular expressions on layer names whose outputs get no penalty");
    groups.head_width = o.choice("attention", "heads", {"heads", "width"},
                                 "what gets a penalty in attention, as prune.channel then cuts it: whole heads, or "
                                 "the width of every head") == "width";
    return sparse_learning(std::move(task), std::move(regulariser), std::move(groups));
}

}  // namespace

const std::vector<Entry<Schedule>>& schedules() {
    static const std::vector<Entry<Schedule>> kSchedules = {
        {"cubic", "fast at first, slow at the end (arXiv 1710.01878)",
         [](Options& o) {
             return cubic(o.number("initial", 0, "share of the target that is removed at the beginning, [0, 1]"));
         }},
        {"exponential", "the same share of what is left in every step (arXiv 1803.03635)",
         [](Options&) { return exponential(); }},
        {"linear", "equal steps", [](Options&) { return linear(); }},
        {"one_shot", "all at once", [](Options&) { return one_shot(); }},
    };
    return kSchedules;
}

const std::vector<Entry<Regulariser>>& regularisers() {
    static const std::vector<Entry<Regulariser>> kRegularisers = {
        {"bn_slimming", "L1 norm of the batch-norm scales (arXiv 1708.06519)",
         [](Options& o) { return bn_slimming(o.number("strength", 1e-4, "factor of the penalty")); }},
        {"greg", "growing penalty on channels chosen at the beginning (GReg-1, arXiv 2012.09243)", make_greg},
        {"group_lasso", "L2 norm of each channel's parameters (arXiv 1608.03665)",
         [](Options& o) { return group_lasso(o.number("strength", 1e-4, "factor of the penalty")); }},
        {"group_norm", "squared norm of each channel's parameters, stronger on weaker ones (arXiv 2301.12900)",
         [](Options& o) {
             const double strength = o.number("strength", 5e-4, "factor of the penalty, on the strongest channel");
             return group_norm(strength, o.number("alpha", 4, "it is 2^alpha times that on the weakest"));
         }},
    };
    return kRegularisers;
}

std::vector<Entry<Stage>> training_stages(std::vector<Entry<Loss>> losses) {
    return {
        {"prune.gradual",
         "trains while more and more channels are masked, and cuts them (arXiv 1710.01878, 1808.06866)",
         [losses](Options& o) { return make_gradual(o, losses); }},
        {"prune.movement", "trains, and sets to zero the weights that move towards zero (arXiv 2005.07683)",
         [losses](Options& o) { return make_movement(o, losses); }},
        {"prune.sparse_learning", "trains with a penalty that draws whole channels towards zero (arXiv 2301.12900)",
         [losses](Options& o) { return make_sparse_learning(o, losses); }},
    };
}

}  // namespace coppice::prune
