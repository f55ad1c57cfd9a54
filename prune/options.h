/// What several stages read from a recipe in the same words. Private to prune.
#pragma once

#include <coppice/prune.h>

namespace coppice::prune {

struct ChannelPruningParts {
    std::unique_ptr<Criterion> criterion;
    std::unique_ptr<Allocation> allocation;
    ChannelPruningOptions options;
};

/// Everything of prune.channel but its schedule and what it rewinds to.
ChannelPruningParts read_channel_pruning(Options& options);

/// ratio, or the one budget that takes its place.
void read_goal(Options& options, Target& target);

}  // namespace coppice::prune
