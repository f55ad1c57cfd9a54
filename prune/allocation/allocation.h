/// What the allocations share: which widths a group may take, how a target is met. Private to prune.
#pragma once

#include <coppice/error.h>
#include <coppice/prune.h>

namespace coppice::prune {

/// A target besides `ratio`: the option, what it is a share of, and its place in Target.
struct BudgetOption {
    const char* name;
    const char* unit;
    std::optional<double> Target::*share;
    const char* help;
    bool timed = false;  ///< in seconds, of the clock or the CPU
};
const std::vector<BudgetOption>& budget_options();

/// The most that the model may cost.
struct Budget {
    std::string option, unit;
    double share = 1, baseline = 0;
    std::function<double(const std::vector<int64_t>& kept)> cost;
    bool holds(const std::vector<int64_t>& kept) const;
};
/// What the target limits; with `ratio`, the channels of the groups that are free.
Budget budget_of(const Groups& groups, const CostModel& cost, const Target& target);
/// True when a cost is the target, false for `ratio`.
bool has_budget(const Target& target);
/// The target is in seconds, of the clock or the CPU.
inline bool is_timed(const Target& target) {
    return target.latency_ratio || target.energy_ratio;
}

/// The widths that one group may take: multiples of `step` from `low` to `high`, and `low` and `high` themselves.
struct Widths {
    int64_t channels = 0, low = 0, high = 0, step = 1;
    bool free() const { return low < high; }
    int64_t floor(double wanted) const;    ///< largest allowed width not above `wanted`, or low
    int64_t above(int64_t width) const;    ///< next allowed width, or `high`
    int64_t below(int64_t width) const;    ///< next narrower allowed width, or `low`
    int64_t nearest(double wanted) const;  ///< the larger of two that are equally near
};

/// @throws InvalidArgument when a field is out of range
void check_target(const Target& target);

std::vector<Widths> allowed_widths(const Groups& groups, const Target& target);

/// Real-valued channels kept per group when `share` of all free channels go.
using Wanted = std::function<std::vector<double>(double share)>;

/// Finds the share that meets the target (itself a share, or by bisection one whose cost is within the budget) and
/// rounds to allowed widths.
std::vector<int64_t> meet(const Groups& groups, const CostModel& cost, const Target& target, const Wanted& wanted);

/// One ranking per class of groups, with the same share of each. @param scores  comparable within a class
/// @param class_of  per group
Wanted ranked(const std::vector<at::Tensor>& scores, const std::vector<Widths>& widths,
              const std::vector<size_t>& class_of);

/// Scores divided by the figure of their group that `normaliser` names (arXiv 2301.12900, section 3.3).
std::vector<at::Tensor> normalised(const std::vector<at::Tensor>& scores, Normaliser normaliser);

/// Goes from the widest allowed model down, one group at a time, by the step that adds the least loss per unit of cost
/// saved, until the target is met; then takes back whatever the target still allows, the most loss per cost first.
/// @param loss  of a group at a width; does not fall as the width does
std::vector<int64_t> descend(const Groups& groups, const CostModel& cost, const Target& target,
                             const std::function<double(size_t group, int64_t kept)>& loss);

/// The lowest scores of each group go.
Removal lowest(const Groups& groups, const std::vector<at::Tensor>& scores, const std::vector<int64_t>& kept);

/// @throws InvalidArgument when scores and groups do not fit, or a score is not finite
void check_scores(const Groups& groups, const std::vector<at::Tensor>& scores);

/// Channels kept per group.
std::vector<int64_t> kept_of(const Groups& groups, const Removal& removal);

/// Multiples that the kernels step by, per group in channels, as measured: see steps.cpp.
std::vector<int64_t> measured_steps(const Groups& groups, const LatencyModel& latency);

class Relations;
/// Size of a dimension of a tensor of the analysis. @param tensor  a TensorId
Width width_of(const Relations& relations, const Groups& groups, int32_t tensor, int64_t dim);

}  // namespace coppice::prune
