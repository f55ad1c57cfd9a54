// Pruning in steps: the cut of step i is that of the target at time i/n, ranked by what the channels are worth in the
// model that step i - 1 left. All steps speak of the channels of the first model, so that bounds and rounding hold for
// the whole cut, and the last step's target is met as if it were the only one.
#include "allocation/allocation.h"
#include "schedule/rescore.h"

namespace coppice::prune {

Target at_time(const Target& target, const Schedule& schedule, double time) {
    Target now = target;
    now.ratio = schedule.removed(time, target.ratio);
    for (const auto& option : budget_options())
        if (auto& share = now.*option.share) share = 1 - schedule.removed(time, 1 - *share);
    for (auto& ratio : now.fixed)
        if (ratio) ratio = schedule.removed(time, *ratio);
    return now;
}

void check_steps(const Schedule& schedule, int64_t steps) {
    if (steps < 1)
        throw InvalidArgument("prune.channel", "steps is " + std::to_string(steps), "It must be at least 1.");
    if (schedule.at_once() != (steps == 1))
        throw InvalidArgument("prune.channel",
                              steps == 1 ? "a schedule of several steps is given, but steps is 1"
                                         : "steps is " + std::to_string(steps) + ", but the schedule is one_shot",
                              "Give schedule: linear, cubic or exponential together with steps: 2 or more.");
}

std::vector<at::Tensor> scores_in_steps(const Model& model, const Facts& facts, const Groups& groups,
                                        const Criterion& criterion, const Allocation& allocation, const CostModel& cost,
                                        Target target, const Schedule& schedule, int64_t steps,
                                        const std::function<void(Model&)>& prepare, Context& context,
                                        const GroupOptions& grouping) {
    check_steps(schedule, steps);
    auto scores = criterion.scores(model, groups, context);
    if (steps > 1 && !allocation.sensitivity_ratios().empty() && target.sensitivity.empty())
        target.sensitivity =
            sensitivity_curves(model, facts, groups, scores, target, allocation.sensitivity_ratios(), context);
    for (int64_t step = 1; step < steps; ++step) {
        if (context.interrupted()) throw Interrupted("prune.channel", "stopped", "");
        const auto now = at_time(target, schedule, static_cast<double>(step) / static_cast<double>(steps));
        const auto removal = allocation.allocate(groups, scores, cost, now);
        scores = rescored(model, facts, groups, removal, scores, criterion, prepare, context, grouping);
        context.log->progress("prune in steps", static_cast<double>(step), static_cast<double>(steps), "");
    }
    return scores;
}

}  // namespace coppice::prune
