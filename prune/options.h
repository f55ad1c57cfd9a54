/// What several stages read from a recipe in the same words. Private to prune.
#pragma once

#include <coppice/prune.h>

namespace coppice::prune {

struct ChannelPruningParts {
    std::unique_ptr<Criterion> criterion;
    std::unique_ptr<Allocation> allocation;
    ChannelPruningOptions options;
};

/// What the model is while channels are chosen: in training, nothing of it can be timed, nor evaluated group by group.
enum class While { kAtRest, kTraining };

/// Everything of prune.channel but its schedule and what it rewinds to.
ChannelPruningParts read_channel_pruning(Options& options, While at = While::kAtRest);

/// ratio, or the one budget that takes its place.
/// @param timed  latency_ratio and energy_ratio are among them
void read_goal(Options& options, Target& target, bool timed = true);

}  // namespace coppice::prune
