#include "allocation/allocation.h"

#include <cmath>
#include <numeric>

namespace coppice::prune {

namespace {

constexpr const char* kWhere = "prune.channel";

std::string text_of(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.3g", value);
    return text;
}

}  // namespace

int64_t Widths::floor(double wanted) const {
    if (wanted >= static_cast<double>(channels)) return channels;
    // 1e-9: a width of 15.999999999 is 16 that went through a division.
    const auto width = static_cast<int64_t>(std::floor((wanted + 1e-9) / static_cast<double>(step))) * step;
    return std::min(channels, std::max(low, width));
}

int64_t Widths::above(int64_t width) const {
    return std::min(channels, std::max(low, width / step * step + step));
}

int64_t Widths::nearest(double wanted) const {
    const int64_t below = floor(wanted), higher = above(below);
    return wanted - static_cast<double>(below) < static_cast<double>(higher) - wanted ? below : higher;
}

void check_target(const Target& target) {
    if (!(target.ratio >= 0 && target.ratio < 1))
        throw InvalidArgument(kWhere, "ratio is " + text_of(target.ratio) + ", must be in [0, 1)",
                              "Use 0.5 to remove half of the channels.");
    if (target.macs_ratio && !(*target.macs_ratio > 0 && *target.macs_ratio <= 1))
        throw InvalidArgument(kWhere, "macs_ratio is " + text_of(*target.macs_ratio) + ", must be in (0, 1]",
                              "Use 0.5 to keep half of the multiply-adds.");
    if (!(target.max_ratio > 0 && target.max_ratio < 1))
        throw InvalidArgument(kWhere, "max_ratio is " + text_of(target.max_ratio) + ", must be in (0, 1)",
                              "The default is 0.9.");
    if (target.round_to < 1 || target.min_channels < 1)
        throw InvalidArgument(kWhere, "round_to and min_channels must be at least 1", "The defaults are 8 and 1.");
}

std::vector<Widths> allowed_widths(const Groups& groups, const Target& target) {
    check_target(target);
    if (!target.ignored.empty() && target.ignored.size() != groups.all().size())
        throw InvalidArgument(kWhere, "`ignored` does not have one entry per group", "");
    std::vector<Widths> widths;
    for (size_t g = 0; g < groups.all().size(); ++g) {
        const auto& group = groups.all()[g];
        Widths allowed;
        allowed.channels = group.channels;
        // One channel stands for several indices of a grouped or packed layer: the layer's width is what gets rounded.
        allowed.step = target.round_to / std::gcd(target.round_to, group.multiplicity);
        const auto most =
            static_cast<int64_t>(std::floor(target.max_ratio * static_cast<double>(group.channels) + 1e-9));
        const int64_t least = (target.min_channels + group.multiplicity - 1) / group.multiplicity;
        allowed.low = std::max<int64_t>({1, least, group.channels - most});
        allowed.low = std::min(group.channels, (allowed.low + allowed.step - 1) / allowed.step * allowed.step);
        if (!target.ignored.empty() && target.ignored[g]) allowed.low = group.channels;
        widths.push_back(allowed);
    }
    return widths;
}

std::vector<int64_t> meet(const Groups& groups, const CostModel& cost, const Target& target,
                          const std::function<std::vector<double>(double)>& wanted) {
    const auto widths = allowed_widths(groups, target);
    const auto clamped = [&](double share) {
        auto ideal = wanted(share);
        for (size_t g = 0; g < ideal.size(); ++g)
            ideal[g] =
                std::clamp(ideal[g], static_cast<double>(widths[g].low), static_cast<double>(widths[g].channels));
        return ideal;
    };
    std::vector<int64_t> kept(widths.size());
    if (!target.macs_ratio) {
        const auto ideal = clamped(target.ratio);
        for (size_t g = 0; g < widths.size(); ++g) kept[g] = widths[g].nearest(ideal[g]);
        return kept;
    }
    const double budget = *target.macs_ratio * cost.baseline_macs() * (1 + 1e-9);
    for (size_t g = 0; g < widths.size(); ++g) kept[g] = widths[g].low;
    if (cost.macs(kept) > budget)
        throw InvalidArgument(kWhere,
                              "macs_ratio " + text_of(*target.macs_ratio) + " cannot be reached: within the bounds " +
                                  text_of(cost.macs(kept) / cost.baseline_macs()) + " of the multiply-adds stay",
                              "Raise macs_ratio or max_ratio, or lower round_to, min_channels or `ignore`.");
    // The largest model within the budget: first with widths rounded down, by bisection over the share that goes.
    const auto floors = [&](double share) {
        const auto ideal = clamped(share);
        std::vector<int64_t> result(widths.size());
        for (size_t g = 0; g < widths.size(); ++g) result[g] = widths[g].floor(ideal[g]);
        return result;
    };
    // The share whose unrounded widths meet the budget. Widths are whole numbers for the cost model, so round to the
    // nearest one there.
    const auto unrounded = [&](double share) {
        const auto ideal = clamped(share);
        std::vector<int64_t> result(widths.size());
        for (size_t g = 0; g < widths.size(); ++g) result[g] = std::llround(ideal[g]);
        return cost.macs(result);
    };
    double low = 0, high = 1;
    for (int step = 0; step < 40; ++step) {
        const double middle = (low + high) / 2;
        (unrounded(middle) > budget ? low : high) = middle;
    }
    const auto ideal = clamped(high);
    kept = floors(high);
    // Rounding to the nearest whole channel may have hidden a little: never start above the budget.
    for (double share = high; cost.macs(kept) > budget && share < 1; share += 0.001) kept = floors(share);
    if (cost.macs(kept) > budget)
        for (size_t g = 0; g < widths.size(); ++g) kept[g] = widths[g].low;
    // Then the largest remainders are rounded up, as long as the budget holds (Hamilton's method).
    std::vector<size_t> order(widths.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
        return (ideal[a] - static_cast<double>(kept[a])) / static_cast<double>(widths[a].step) >
               (ideal[b] - static_cast<double>(kept[b])) / static_cast<double>(widths[b].step);
    });
    for (bool raised = true; raised;) {
        raised = false;
        for (const size_t g : order) {
            const int64_t before = kept[g], next = widths[g].above(before);
            if (next == before) continue;
            kept[g] = next;
            if (cost.macs(kept) <= budget)
                raised = true;
            else
                kept[g] = before;
        }
        // One round gives every group its remainder; more only while the target is missed by over a percent.
        if (cost.macs(kept) > 0.99 * budget) break;
    }
    return kept;
}

Removal lowest(const Groups& groups, const std::vector<at::Tensor>& scores, const std::vector<int64_t>& kept) {
    Removal removal;
    for (size_t g = 0; g < groups.all().size(); ++g) {
        // Stable: equal scores go by their number, the same on every machine.
        const auto order = std::get<1>(scores[g].sort(/*stable=*/true, /*dim=*/0, /*descending=*/false));
        const auto gone = std::get<0>(order.slice(0, 0, groups.all()[g].channels - kept[g]).sort());
        removal.emplace_back(gone.data_ptr<int64_t>(), gone.data_ptr<int64_t>() + gone.numel());
    }
    return removal;
}

void check_scores(const Groups& groups, const std::vector<at::Tensor>& scores) {
    if (scores.size() != groups.all().size())
        throw InvalidArgument(
            kWhere, std::to_string(scores.size()) + " scores for " + std::to_string(groups.all().size()) + " groups",
            "Give one tensor per group.");
    for (size_t g = 0; g < scores.size(); ++g) {
        const auto& group = groups.all()[g];
        if (scores[g].dim() != 1 || scores[g].size(0) != group.channels)
            throw InvalidArgument(std::string(kWhere) + " at " + group.name, "the scores are not one per channel",
                                  "Give " + std::to_string(group.channels) + " numbers.");
        if (!scores[g].isfinite().all().item<bool>())
            throw InvalidArgument(std::string(kWhere) + " at " + group.name, "a score is NaN or infinite",
                                  "Check the checkpoint and the calibration data.");
    }
}

}  // namespace coppice::prune
