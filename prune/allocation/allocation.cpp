#include "allocation/allocation.h"
#include "messages.h"

#include <cmath>
#include <numeric>

namespace coppice::prune {

namespace {

constexpr const char* kWhere = "prune.channel";

}  // namespace

const std::vector<BudgetOption>& budget_options() {
    static const std::vector<BudgetOption> kOptions = {
        {"macs_ratio", "multiply-adds", &Target::macs_ratio, "share of the multiply-adds to keep; instead of ratio"},
        {"params_ratio", "parameters", &Target::params_ratio, "share of the parameters to keep; instead of ratio"},
        {"size_ratio", "bytes", &Target::size_ratio,
         "share of the bytes of parameters and buffers to keep; instead of ratio"},
        {"latency_ratio", "time", &Target::latency_ratio,
         "share of the time of a run on the example to keep, measured on this machine; instead of ratio",
         /*timed=*/true},
        {"energy_ratio", "CPU seconds", &Target::energy_ratio,
         "share of the CPU seconds of a run to keep, measured, which energy is modelled by; instead of ratio",
         /*timed=*/true},
    };
    return kOptions;
}

bool has_budget(const Target& target) {
    return std::any_of(budget_options().begin(), budget_options().end(),
                       [&](const BudgetOption& option) { return (target.*option.share).has_value(); });
}

bool Budget::holds(const std::vector<int64_t>& kept) const {
    // 1e-9: a cost that equals the limit was summed in another order.
    return cost(kept) <= share * baseline * (1 + 1e-9);
}

Budget budget_of(const Groups& groups, const CostModel& cost, const Target& target) {
    Budget budget;
    for (const auto& option : budget_options()) {
        if (!(target.*option.share)) continue;
        budget.option = option.name;
        budget.unit = option.unit;
        budget.share = *(target.*option.share);
    }
    if (target.macs_ratio)
        budget.cost = [&cost](const std::vector<int64_t>& kept) { return cost.macs(kept); };
    else if (target.params_ratio)
        budget.cost = [&cost](const std::vector<int64_t>& kept) { return cost.parameters(kept); };
    else if (target.size_ratio)
        budget.cost = [&cost](const std::vector<int64_t>& kept) { return cost.bytes(kept); };
    else if (is_timed(target))
        budget.cost = [&cost](const std::vector<int64_t>& kept) { return cost.seconds(kept); };
    else {
        budget.option = "ratio";
        budget.unit = "channels";
        budget.share = 1 - target.ratio;
        const auto widths = allowed_widths(groups, target);
        budget.cost = [widths](const std::vector<int64_t>& kept) {
            double channels = 0;
            for (size_t g = 0; g < kept.size(); ++g)
                if (widths[g].free()) channels += static_cast<double>(kept[g]);
            return channels;
        };
    }
    std::vector<int64_t> all;
    for (const auto& group : groups.all()) all.push_back(group.channels);
    budget.baseline = budget.cost(all);
    return budget;
}

int64_t Widths::floor(double wanted) const {
    if (wanted >= static_cast<double>(high)) return high;
    // 1e-9: a width of 15.999999999 is 16 that went through a division.
    const auto width = static_cast<int64_t>(std::floor((wanted + 1e-9) / static_cast<double>(step))) * step;
    return std::min(high, std::max(low, width));
}

int64_t Widths::above(int64_t width) const {
    return std::min(high, std::max(low, width / step * step + step));
}

int64_t Widths::below(int64_t width) const {
    return std::min(high, std::max(low, (width - 1) / step * step));
}

int64_t Widths::nearest(double wanted) const {
    const int64_t below = floor(wanted), higher = above(below);
    return wanted - static_cast<double>(below) < static_cast<double>(higher) - wanted ? below : higher;
}

void check_target(const Target& target) {
    if (!(target.ratio >= 0 && target.ratio < 1))
        throw InvalidArgument(kWhere, "ratio is " + text_of(target.ratio) + ", must be in [0, 1)",
                              "Use 0.5 to remove half of the channels.");
    const BudgetOption* given = nullptr;
    for (const auto& option : budget_options()) {
        const auto& share = target.*option.share;
        if (!share) continue;
        if (!(*share > 0 && *share <= 1))
            throw InvalidArgument(kWhere, std::string(option.name) + " is " + text_of(*share) + ", must be in (0, 1]",
                                  std::string("Use 0.5 to keep half of the ") + option.unit + ".");
        if (given)
            throw InvalidArgument(kWhere, std::string(given->name) + " and " + option.name + " are both given",
                                  "Give one of them.");
        given = &option;
    }
    if (!(target.max_ratio > 0 && target.max_ratio < 1))
        throw InvalidArgument(kWhere, "max_ratio is " + text_of(target.max_ratio) + ", must be in (0, 1)",
                              "The default is 0.9.");
    if (target.round_to < 1 || target.min_channels < 1)
        throw InvalidArgument(kWhere, "round_to and min_channels must be at least 1", "The defaults are 8 and 1.");
    for (const auto& ratio : target.fixed)
        if (ratio && !(*ratio >= 0 && *ratio < 1))
            throw InvalidArgument(kWhere, "a fixed ratio is " + text_of(*ratio) + ", must be in [0, 1)",
                                  "Use 0 to keep all channels.");
    for (const int64_t step : target.steps)
        if (step < 1) throw InvalidArgument(kWhere, "a step is " + std::to_string(step) + ", must be at least 1", "");
}

std::vector<Widths> allowed_widths(const Groups& groups, const Target& target) {
    check_target(target);
    const size_t count = groups.all().size();
    const auto fits = [&](size_t entries) { return entries == 0 || entries == count; };
    if (!fits(target.ignored.size()) || !fits(target.fixed.size()) || !fits(target.steps.size()))
        throw InvalidArgument(kWhere, "`ignored`, `fixed` or `steps` does not have one entry per group", "");
    std::vector<Widths> widths;
    for (size_t g = 0; g < count; ++g) {
        const auto& group = groups.all()[g];
        Widths allowed;
        allowed.channels = allowed.high = group.channels;
        // One channel stands for several indices of a grouped or packed layer: the layer's width is what gets rounded.
        allowed.step =
            target.steps.empty() ? target.round_to / std::gcd(target.round_to, group.multiplicity) : target.steps[g];
        const bool fixed = !target.fixed.empty() && target.fixed[g];
        const double max_ratio = fixed ? *target.fixed[g] : target.max_ratio;
        const auto most = static_cast<int64_t>(std::floor(max_ratio * static_cast<double>(group.channels) + 1e-9));
        const int64_t least = (target.min_channels + group.multiplicity - 1) / group.multiplicity;
        allowed.low = std::max<int64_t>({1, least, fixed ? 1 : group.channels - most});
        allowed.low = std::min(group.channels, (allowed.low + allowed.step - 1) / allowed.step * allowed.step);
        if (fixed) allowed.low = allowed.high = allowed.nearest((1 - max_ratio) * static_cast<double>(group.channels));
        if (!target.ignored.empty() && target.ignored[g]) allowed.low = allowed.high = group.channels;
        widths.push_back(allowed);
    }
    return widths;
}

namespace {

/// @throws InvalidArgument when even the narrowest widths cost too much
void check_reachable(const Budget& budget, const std::vector<Widths>& widths) {
    std::vector<int64_t> narrowest;
    for (const auto& width : widths) narrowest.push_back(width.low);
    if (budget.holds(narrowest)) return;
    throw InvalidArgument(
        kWhere,
        budget.option + " " + text_of(budget.share) + " cannot be reached: within the bounds " +
            text_of(budget.cost(narrowest) / budget.baseline) + " of the " + budget.unit + " stay",
        "Raise " + budget.option + " or max_ratio, or lower round_to, min_channels, `ignore` or `layers`.");
}

}  // namespace

std::vector<int64_t> meet(const Groups& groups, const CostModel& cost, const Target& target, const Wanted& wanted) {
    const auto widths = allowed_widths(groups, target);
    const auto clamped = [&](double share) {
        auto ideal = wanted(share);
        for (size_t g = 0; g < ideal.size(); ++g)
            ideal[g] = std::clamp(ideal[g], static_cast<double>(widths[g].low), static_cast<double>(widths[g].high));
        return ideal;
    };
    std::vector<int64_t> kept(widths.size());
    if (!has_budget(target)) {
        const auto ideal = clamped(target.ratio);
        for (size_t g = 0; g < widths.size(); ++g) kept[g] = widths[g].nearest(ideal[g]);
        return kept;
    }
    const auto budget = budget_of(groups, cost, target);
    check_reachable(budget, widths);
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
        return result;
    };
    double low = 0, high = 1;
    for (int step = 0; step < 40; ++step) {
        const double middle = (low + high) / 2;
        (budget.holds(unrounded(middle)) ? high : low) = middle;
    }
    const auto ideal = clamped(high);
    kept = floors(high);
    // Rounding to the nearest whole channel may have hidden a little: never start above the budget.
    for (double share = high; !budget.holds(kept) && share < 1; share += 0.001) kept = floors(share);
    if (!budget.holds(kept))
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
            if (budget.holds(kept))
                raised = true;
            else
                kept[g] = before;
        }
        // One round gives every group its remainder; more only while the target is missed by over a percent.
        if (budget.cost(kept) > 0.99 * budget.share * budget.baseline) break;
    }
    return kept;
}

std::vector<int64_t> descend(const Groups& groups, const CostModel& cost, const Target& target,
                             const std::function<double(size_t group, int64_t kept)>& loss) {
    // As many allowed widths are looked at as make the longest plateau that kernels have: 32 channels in steps of 4.
    constexpr int kLookAhead = 8;
    const auto widths = allowed_widths(groups, target);
    const auto budget = budget_of(groups, cost, target);
    if (has_budget(target)) check_reachable(budget, widths);
    std::vector<int64_t> kept;
    for (const auto& width : widths) kept.push_back(width.high);
    const auto removed = [&](size_t g, int64_t width) {
        return 1 - static_cast<double>(width) / static_cast<double>(widths[g].channels);
    };
    while (!budget.holds(kept)) {
        const double now = budget.cost(kept);
        size_t best_group = kept.size();
        int64_t best_width = 0;
        double best_price = std::numeric_limits<double>::infinity(), best_removed = 0;
        for (size_t g = 0; g < kept.size(); ++g) {
            const int64_t before = kept[g];
            const double loss_before = loss(g, before);
            int64_t width = before;
            for (int ahead = 0; ahead < kLookAhead && width > widths[g].low; ++ahead) {
                width = widths[g].below(width);
                kept[g] = width;
                const double saved = now - budget.cost(kept);
                if (saved <= 0) continue;
                const double price = (loss(g, width) - loss_before) / saved;
                // Where prices are equal, the group goes on that has lost the smaller share.
                if (price < best_price || (price == best_price && removed(g, width) < best_removed)) {
                    best_group = g;
                    best_width = width;
                    best_price = price;
                    best_removed = removed(g, width);
                }
            }
            kept[g] = before;
        }
        if (best_group == kept.size()) {
            // No single group saves anything: all go down by one width.
            bool moved = false;
            for (size_t g = 0; g < kept.size(); ++g) {
                const int64_t next = widths[g].below(kept[g]);
                moved |= next != kept[g];
                kept[g] = next;
            }
            if (!moved) break;
            continue;
        }
        kept[best_group] = best_width;
    }
    // The last steps may have saved more than was needed.
    for (bool raised = true; raised;) {
        raised = false;
        size_t best_group = kept.size();
        double best_gain = -1;
        const double now = budget.cost(kept);
        for (size_t g = 0; g < kept.size(); ++g) {
            const int64_t before = kept[g], next = widths[g].above(before);
            if (next == before) continue;
            kept[g] = next;
            if (budget.holds(kept)) {
                const double paid = std::max(budget.cost(kept) - now, 1e-9 * budget.baseline);
                const double gain = (loss(g, before) - loss(g, next)) / paid;
                if (gain > best_gain) best_gain = gain, best_group = g;
            }
            kept[g] = before;
        }
        if (best_group < kept.size()) {
            kept[best_group] = widths[best_group].above(kept[best_group]);
            raised = true;
        }
    }
    return kept;
}

std::vector<int64_t> kept_of(const Groups& groups, const Removal& removal) {
    std::vector<int64_t> kept;
    for (size_t g = 0; g < groups.all().size(); ++g)
        kept.push_back(groups.all()[g].channels - static_cast<int64_t>(removal[g].size()));
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
