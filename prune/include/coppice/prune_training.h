/// Stages that train and prune, for pipelines in C++. What they are made of (criteria, schedules, regularisers, masks
/// for a loop of one's own) is in prune.h.
///
///     coppice::TrainOptions train;
///     train.epochs = 4;
///     coppice::prune::ChannelPruningOptions pruning;
///     pruning.target.macs_ratio = 0.5;
///     const auto stage = coppice::prune::gradual_pruning(
///         coppice::TrainingTask("prune.gradual", train), coppice::prune::magnitude(), coppice::prune::global(),
///         coppice::prune::cubic(), pruning, {.end_epoch = 2});
///     const auto smaller = stage->apply(model, context);
#pragma once

#include <memory>

#include <coppice/prune.h>
#include <coppice/training_task.h>

namespace coppice::prune {

/// When masks grow while a model trains.
struct GradualOptions {
    double begin_epoch = 0;
    double end_epoch = 0.5;    ///< the target is reached; from here on the masks stay, but for soft ones
    int64_t every_steps = 20;  ///< training steps between two scorings
    bool soft = false;         ///< see Masker; channels only
};

/// Stage prune.gradual (Zhu and Gupta, arXiv 1710.01878, for channels; soft: He et al., 1808.06866): trains, masks more
/// and more channels on the way by a Masker, and cuts them at the end as prune.channel does. context.facts has what
/// that stage reports and "cut_difference", how far the cut changed an output (hard masks, without bn_batches).
/// @param schedule  from begin_epoch to end_epoch
/// @param pruning   `schedule`, `steps` and `rewind_to` are not used
/// @throws InvalidArgument when the epochs are out of order, the allocation evaluates the model (sensitivity), or
///         something is to be timed: latency_ratio, energy_ratio, round_to_measured, only_faster
std::unique_ptr<Stage> gradual_pruning(TrainingTask task, std::unique_ptr<Criterion> criterion,
                                       std::unique_ptr<Allocation> allocation, std::unique_ptr<Schedule> schedule,
                                       ChannelPruningOptions pruning = {}, GradualOptions options = {});

/// Stage prune.movement (Sanh et al., arXiv 2005.07683): trains, and sets to zero the weights that training moves
/// towards zero, S = -sum over steps of dL/dW' W, the lowest scores first. Shapes stay.
/// @param schedule  from begin_epoch to end_epoch; a pattern that fixes its share of zeros takes it at once
/// @param pruning   `sparsity`, `scope`, `ignore`, `min_size` and `embeddings` count
/// @param options   `soft` is not used
/// @throws InvalidArgument when the epochs are out of order
std::unique_ptr<Stage> movement_pruning(TrainingTask task, std::unique_ptr<WeightPattern> pattern,
                                        std::unique_ptr<Schedule> schedule, WeightPruningOptions pruning = {},
                                        GradualOptions options = {});

/// Stage prune.sparse_learning (Fang et al., arXiv 2301.12900, section 3.3): trains with a penalty that draws whole
/// channels towards zero and cuts nothing: prune.channel follows. context.facts: "penalty_before", "penalty_after";
/// "weaker_half_before" and "weaker_half_after", the share of the squared weights that the weaker half of the channels
/// holds, averaged over groups.
/// @param groups  the channels that get the penalty: those that prune.channel can cut with the same options
std::unique_ptr<Stage> sparse_learning(TrainingTask task, std::unique_ptr<Regulariser> regulariser,
                                       GroupOptions groups = {});

}  // namespace coppice::prune
