#include <cmath>

#include "prune/allocation/synthetic.h"

namespace coppice::testing {
namespace {

using prune::Normaliser;
using prune::Removal;
using prune::Target;

Removal allocate(const prune::Allocation& allocation, const prune::Groups& groups,
                 const std::vector<at::Tensor>& scores, const Target& target) {
    return allocation.allocate(groups, scores, prune::CostModel(groups), target);
}

TEST(PruneAllocation, UniformRemovesTheLowestOfEveryGroup) {
    const auto groups = groups_of({4, 10});
    const std::vector<at::Tensor> scores = {at::tensor({3.0, 1.0, 2.0, 4.0}, at::kDouble),
                                            at::arange(10, 0, -1, at::kDouble)};
    EXPECT_EQ(allocate(*prune::uniform(), groups, scores, plain(0.5)), (Removal{{1, 2}, {5, 6, 7, 8, 9}}));
}

TEST(PruneAllocation, RatioZeroRemovesNothing) {
    const auto groups = groups_of({16, 30});
    for (const auto* allocation : {prune::uniform().release(), prune::global().release()}) {
        const std::unique_ptr<const prune::Allocation> owner(allocation);
        EXPECT_EQ(allocate(*owner, groups, rising(groups), plain(0)), (Removal{{}, {}}));
    }
}

TEST(PruneAllocation, GlobalTakesTheWeakestWhereverTheyAre) {
    const auto groups = groups_of({4, 4});
    const std::vector<at::Tensor> scores = {at::tensor({0.1, 0.2, 0.3, 9.0}, at::kDouble),
                                            at::tensor({1.0, 1.1, 1.2, 0.25}, at::kDouble)};
    EXPECT_EQ(allocate(*prune::global(Normaliser::kNone), groups, scores, plain(0.5)), (Removal{{0, 1, 2}, {3}}));
}

TEST(PruneAllocation, NormalisersMakeGroupsComparable) {
    const auto groups = groups_of({4, 4});
    const auto base = at::tensor({0.1, 0.4, 1.0, 2.0}, at::kDouble);
    for (const auto normaliser :
         {Normaliser::kMean, Normaliser::kMax, Normaliser::kSum, Normaliser::kL2, Normaliser::kStandard}) {
        // The second group is the first times 1000: after normalising both lose the same.
        const auto removal = allocate(*prune::global(normaliser), groups, {base, base * 1000}, plain(0.5));
        EXPECT_EQ(removal, (Removal{{0, 1}, {0, 1}})) << static_cast<int>(normaliser);
    }
    EXPECT_EQ(allocate(*prune::global(Normaliser::kNone), groups, {base, base * 1000}, plain(0.375)),
              (Removal{{0, 1, 2}, {}}));
}

TEST(PruneAllocation, WidthsAreMultiplesOfRoundTo) {
    const auto groups = groups_of({64, 40, 20});
    auto target = plain(0.45);
    target.round_to = 8;
    const auto removal = allocate(*prune::uniform(), groups, rising(groups), target);
    EXPECT_EQ(64 - removal[0].size(), 32u);  // wanted 35.2
    EXPECT_EQ(40 - removal[1].size(), 24u);  // wanted 22, as near to 16 as to 24 is not: 24 is nearer
    EXPECT_EQ(20 - removal[2].size(), 8u);   // wanted 11
}

TEST(PruneAllocation, RoundsTheLayerNotTheChannelsOfAGroupedConvolution) {
    const auto groups = groups_of({16}, 4);  // a channel stands for 4 of the layer's 64
    auto target = plain(0.45);
    target.round_to = 8;
    EXPECT_EQ(16 - allocate(*prune::uniform(), groups, rising(groups), target)[0].size(),
              8u);  // wanted 8.8, steps of 2
}

TEST(PruneAllocation, NeverMoreThanTheBoundsAllow) {
    const auto groups = groups_of({10, 100});
    auto target = plain(0.95);
    target.max_ratio = 0.7;
    auto removal = allocate(*prune::uniform(), groups, rising(groups), target);
    EXPECT_EQ(removal[0].size(), 7u);
    EXPECT_EQ(removal[1].size(), 70u);
    target.min_channels = 6;
    removal = allocate(*prune::global(Normaliser::kNone), groups, rising(groups), target);
    EXPECT_EQ(removal[0].size(), 4u);
    target.ignored = {false, true};
    removal = allocate(*prune::uniform(), groups, rising(groups), target);
    EXPECT_EQ(removal[1].size(), 0u);
}

std::vector<std::pair<std::string, std::unique_ptr<prune::Allocation>>> by_scores() {
    std::vector<std::pair<std::string, std::unique_ptr<prune::Allocation>>> all;
    all.emplace_back("global", prune::global());
    all.emplace_back("greedy", prune::greedy());
    all.emplace_back("isomorphic", prune::isomorphic());
    all.emplace_back("uniform", prune::uniform());
    return all;
}

/// What a budget is held against: the figure of a model that was really cut.
struct Figure {
    std::string name;
    std::optional<double> Target::*share;
    std::function<double(const Cost&)> of;
};
const std::vector<Figure> kFigures = {
    {"multiply-adds", &Target::macs_ratio, [](const Cost& c) { return c.macs; }},
    {"parameters", &Target::params_ratio, [](const Cost& c) { return static_cast<double>(c.parameters); }},
    {"bytes", &Target::size_ratio,
     [](const Cost& c) { return static_cast<double>(c.parameter_bytes + c.buffer_bytes); }},
};

TEST(PruneAllocation, EveryBudgetHoldsAndLeavesNoRoomForAnotherChannel) {
    const auto model = residual_model();
    const Inputs example = {sine({1, 3, 8, 8})};
    const auto facts = Facts::observe(model, example);
    const auto groups = prune::find_groups(model, facts);
    const prune::CostModel cost(model, example, groups);
    Context context;
    const auto scores = prune::magnitude()->scores(model, groups, context);
    const auto reached = [&](const Figure& figure, const Removal& removal) {
        return figure.of(coppice::cost(prune::cut(model, facts, groups, removal), example)) /
               figure.of(coppice::cost(model, example));
    };
    for (const auto& figure : kFigures)
        for (const double share : {0.8, 0.5, 0.3})
            for (const auto& [name, allocation] : by_scores()) {
                SCOPED_TRACE(name + ", " + figure.name + " " + std::to_string(share));
                auto target = plain(0);
                target.*figure.share = share;
                const auto removal = allocation->allocate(groups, scores, cost, target);
                const double used = reached(figure, removal);
                EXPECT_LE(used, share + 1e-6);
                if (used > 0.99 * share) continue;  // near enough that the shares are not bent further
                for (size_t g = 0; g < removal.size(); ++g) {
                    if (removal[g].empty()) continue;
                    auto more = removal;
                    more[g].pop_back();
                    EXPECT_GT(reached(figure, more), share) << groups.all()[g].name << " could keep one more";
                }
            }
}

TEST(PruneAllocation, GreedyIsWithinATenthOfTheBestOfAllWidths) {
    const auto model = residual_model();
    const Inputs example = {sine({1, 3, 8, 8})};
    const auto groups = prune::find_groups(model, Facts::observe(model, example));
    const prune::CostModel cost(model, example, groups);
    Context context;
    const auto scores = prune::magnitude()->scores(model, groups, context);
    const auto lost = [&](const std::vector<int64_t>& kept) {  // scores of what goes, by plain addition
        double sum = 0;
        for (size_t g = 0; g < kept.size(); ++g) {
            const auto sorted = std::get<0>(scores[g].sort());
            for (int64_t c = 0; c < groups.all()[g].channels - kept[g]; ++c) sum += sorted[c].item<double>();
        }
        return sum;
    };
    for (const double share : {0.7, 0.4}) {
        auto target = plain(0);
        target.macs_ratio = share;
        target.max_ratio = 0.99;
        double best = std::numeric_limits<double>::infinity();
        for (const auto& kept : all_widths(groups, 1))
            if (cost.macs(kept) <= share * cost.baseline_macs()) best = std::min(best, lost(kept));
        const auto removal = prune::greedy(Normaliser::kNone)->allocate(groups, scores, cost, target);
        std::vector<int64_t> kept;
        for (size_t g = 0; g < removal.size(); ++g)
            kept.push_back(groups.all()[g].channels - static_cast<int64_t>(removal[g].size()));
        EXPECT_GE(lost(kept), best - 1e-9);
        EXPECT_LE(lost(kept), 1.1 * best) << "of a knapsack problem the greedy answer is near the best one";
    }
}

TEST(PruneAllocation, GreedyWithARatioTakesTheLeastScores) {
    // Every channel costs one, so the best answer is known: the lowest scores of all.
    const auto groups = groups_of({4, 4});
    const std::vector<at::Tensor> scores = {at::tensor({0.1, 0.2, 0.3, 9.0}, at::kDouble),
                                            at::tensor({1.0, 1.1, 1.2, 0.25}, at::kDouble)};
    EXPECT_EQ(allocate(*prune::greedy(Normaliser::kNone), groups, scores, plain(0.5)), (Removal{{0, 1, 2}, {3}}));
}

TEST(PruneAllocation, AFixedShareIsKeptWhateverTheTarget) {
    const auto groups = groups_of({10, 10, 10});
    for (const auto& [name, allocation] : by_scores()) {
        SCOPED_TRACE(name);
        auto target = plain(0.5);
        target.fixed = {0.0, std::nullopt, 0.95};  // more than max_ratio
        const auto removal = allocate(*allocation, groups, rising(groups), target);
        EXPECT_EQ(removal[0].size(), 0u);
        EXPECT_EQ(removal[1].size(), 5u);
        EXPECT_EQ(removal[2].size(), 9u);  // one channel stays
        target.macs_ratio = 0.5;           // of 30 channels; 11 are decided
        EXPECT_EQ(allocate(*allocation, groups, rising(groups), target)[1].size(), 6u);
    }
}

TEST(PruneAllocation, StepsOfAGroupTakeThePlaceOfRoundTo) {
    const auto groups = groups_of({64, 64});
    auto target = plain(0.4);  // 38.4 stay
    target.steps = {16, 4};
    const auto removal = allocate(*prune::uniform(), groups, rising(groups), target);
    EXPECT_EQ(64 - removal[0].size(), 32u);
    EXPECT_EQ(64 - removal[1].size(), 40u);
}

TEST(PruneAllocation, SaysWhatCanBeReached) {
    const auto groups = groups_of({10, 10});
    auto target = plain(0);
    target.macs_ratio = 0.05;
    EXPECT_ERROR(allocate(*prune::uniform(), groups, rising(groups), target), InvalidArgument,
                 "0.1 of the multiply-adds stay");
}

TEST(PruneAllocation, ChecksItsArguments) {
    const auto groups = groups_of({10});
    EXPECT_ERROR(allocate(*prune::uniform(), groups, rising(groups), plain(1.2)), InvalidArgument,
                 "ratio is 1.2, must be in [0, 1)");
    auto target = plain(0.5);
    target.macs_ratio = 0;
    EXPECT_ERROR(allocate(*prune::uniform(), groups, rising(groups), target), InvalidArgument, "macs_ratio is 0");
    target.macs_ratio = 0.5;
    target.size_ratio = 0.5;
    EXPECT_ERROR(allocate(*prune::uniform(), groups, rising(groups), target), InvalidArgument,
                 "macs_ratio and size_ratio are both given");
    target = plain(0.5);
    target.latency_ratio = 0.5;
    EXPECT_ERROR(allocate(*prune::uniform(), groups, rising(groups), target), InvalidArgument, "has not been timed");
    target = plain(0.5);
    target.fixed = {1.0};
    EXPECT_ERROR(allocate(*prune::uniform(), groups, rising(groups), target), InvalidArgument, "fixed ratio is 1");
    target = plain(0.5);
    target.steps = {1, 1};
    EXPECT_ERROR(allocate(*prune::uniform(), groups, rising(groups), target), InvalidArgument, "one entry per group");
    target = plain(0.5);
    target.max_ratio = 1;
    EXPECT_ERROR(allocate(*prune::uniform(), groups, rising(groups), target), InvalidArgument, "max_ratio is 1");
    EXPECT_ERROR(allocate(*prune::uniform(), groups, {}, plain(0.5)), InvalidArgument, "0 scores for 1 groups");
    EXPECT_ERROR(allocate(*prune::global(), groups, {at::full({10}, std::nan(""), at::kDouble)}, plain(0.5)),
                 InvalidArgument, "NaN");
}

}  // namespace
}  // namespace coppice::testing
