#include "prune/masking.h"

namespace coppice::testing {
namespace {

TEST(PruneRandom, TheSameSeedGivesTheSameScores) {
    prune::ChannelGroup group;
    group.channels = 50;
    const prune::Groups groups({group, group});
    Context context;
    const auto first = prune::random_scores(3)->scores(Model(), groups, context);
    const auto again = prune::random_scores(3)->scores(Model(), groups, context);
    const auto other = prune::random_scores(4)->scores(Model(), groups, context);
    ASSERT_EQ(first.size(), 2u);
    EXPECT_TRUE(at::equal(first[0], again[0]));
    EXPECT_FALSE(at::equal(first[0], other[0]));
    EXPECT_FALSE(at::equal(first[0], first[1]));  // groups do not repeat one another
    EXPECT_GE(first[0].min().item<double>(), 0.0);
    EXPECT_LT(first[0].max().item<double>(), 1.0);
}

}  // namespace
}  // namespace coppice::testing
