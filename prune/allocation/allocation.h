/// What the allocations share: which widths a group may take, how a target is met. Private to prune.
#pragma once

#include <coppice/error.h>
#include <coppice/prune.h>

namespace coppice::prune {

/// The widths that one group may take: multiples of `step` from `low` on, and all its channels.
struct Widths {
    int64_t channels = 0, low = 0, step = 1;
    int64_t floor(double wanted) const;    ///< largest allowed width not above `wanted`, or low
    int64_t above(int64_t width) const;    ///< next allowed width, or `channels`
    int64_t nearest(double wanted) const;  ///< the larger of two that are equally near
};

/// @throws InvalidArgument when a field is out of range
void check_target(const Target& target);

std::vector<Widths> allowed_widths(const Groups& groups, const Target& target);

/// `wanted(share)`: real-valued channels kept per group when `share` of all prunable channels go. Finds the share that
/// meets the target (itself a share, or a share of multiply-adds by bisection) and rounds to allowed widths.
std::vector<int64_t> meet(const Groups& groups, const CostModel& cost, const Target& target,
                          const std::function<std::vector<double>(double share)>& wanted);

/// The lowest scores of each group go.
Removal lowest(const Groups& groups, const std::vector<at::Tensor>& scores, const std::vector<int64_t>& kept);

/// @throws InvalidArgument when scores and groups do not fit, or a score is not finite
void check_scores(const Groups& groups, const std::vector<at::Tensor>& scores);

}  // namespace coppice::prune
