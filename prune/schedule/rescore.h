/// Scores of a model that is partly pruned already, in terms of the channels of the whole one. Private to prune.
#pragma once

#include <coppice/error.h>
#include <coppice/prune.h>

namespace coppice::prune {

/// For each channel of `after`, the groups of the model that cut(removal) made: its group and channel in `before`.
std::vector<std::vector<Groups::Place>> origins(const Groups& before, const Removal& removal, const Groups& after);

/// @throws InvalidArgument when there are several steps and the schedule is one_shot, or the other way round
void check_steps(const Schedule& schedule, int64_t steps);

/// Scores of all channels of `groups`. Those that are left: of `criterion` on the model without `removed`, after
/// `prepare` was run on it. Those in `removed`: lower than any that is left, in the order of `last`, their scores
/// before.
std::vector<at::Tensor> rescored(const Model& model, const Facts& facts, const Groups& groups, const Removal& removed,
                                 const std::vector<at::Tensor>& last, const Criterion& criterion,
                                 const std::function<void(Model&)>& prepare, Context& context,
                                 const GroupOptions& grouping);

}  // namespace coppice::prune
