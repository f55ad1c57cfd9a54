#include <cmath>

#include "prune/masking.h"

namespace coppice::testing {
namespace {

using prune::Normaliser;
using prune::Removal;
using prune::Target;

prune::Groups groups_of(const std::vector<int64_t>& channels, int64_t multiplicity = 1) {
    std::vector<prune::ChannelGroup> groups;
    for (size_t i = 0; i < channels.size(); ++i) {
        prune::ChannelGroup group;
        group.name = "layer" + std::to_string(i);
        group.channels = channels[i];
        group.multiplicity = multiplicity;
        groups.push_back(group);
    }
    return prune::Groups(std::move(groups));
}

std::vector<at::Tensor> rising(const prune::Groups& groups) {
    std::vector<at::Tensor> scores;
    for (const auto& group : groups.all()) scores.push_back(at::arange(1, group.channels + 1, at::kDouble));
    return scores;
}

Target plain(double ratio) {
    Target target;
    target.ratio = ratio;
    target.round_to = 1;
    return target;
}

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

TEST(PruneAllocation, ReachesAShareOfTheMultiplyAdds) {
    const auto model = residual_model();
    const Inputs example = {sine({1, 3, 8, 8})};
    const auto groups = prune::find_groups(model, Facts::observe(model, example));
    const prune::CostModel cost(model, example, groups);
    Context context;
    const auto scores = prune::magnitude()->scores(model, groups, context);
    for (const double share : {0.8, 0.5, 0.3}) {
        for (const bool is_global : {false, true}) {
            auto target = plain(0);
            target.macs_ratio = share;
            const auto allocation = is_global ? prune::global() : prune::uniform();
            const auto removal = allocation->allocate(groups, scores, cost, target);
            const auto smaller = prune::cut(model, Facts::observe(model, example), groups, removal);
            const double reached = coppice::cost(smaller, example).macs / coppice::cost(model, example).macs;
            EXPECT_LE(reached, share + 1e-6);
            EXPECT_GE(reached, share - 0.05) << "one channel of these narrow layers is up to 5 %";
        }
    }
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
    target = plain(0.5);
    target.max_ratio = 1;
    EXPECT_ERROR(allocate(*prune::uniform(), groups, rising(groups), target), InvalidArgument, "max_ratio is 1");
    EXPECT_ERROR(allocate(*prune::uniform(), groups, {}, plain(0.5)), InvalidArgument, "0 scores for 1 groups");
    EXPECT_ERROR(allocate(*prune::global(), groups, {at::full({10}, std::nan(""), at::kDouble)}, plain(0.5)),
                 InvalidArgument, "NaN");
}

}  // namespace
}  // namespace coppice::testing
