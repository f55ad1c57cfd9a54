#include <coppice/lowrank.h>

#include "support/support.h"

namespace coppice::testing {
namespace {

using lowrank::energy;
using lowrank::RankQuestion;
using lowrank::ratio;

RankQuestion question() {  // squares 16, 9, 4, 1: sum 30
    RankQuestion q;
    q.singular_values = {4, 3, 2, 1};
    q.macs = 1000;
    q.macs_per_rank = 150;
    q.parameters = 100;
    q.parameters_per_rank = 24;
    return q;
}

TEST(EnergyRank, IsTheSmallestThatKeepsTheShare) {
    EXPECT_EQ(energy(0.5)->rank(question()), 1);        // 16 of 15
    EXPECT_EQ(energy(16.0 / 30)->rank(question()), 1);  // reached exactly
    EXPECT_EQ(energy(0.54)->rank(question()), 2);       // 25 of 16.2
    EXPECT_EQ(energy(0.9)->rank(question()), 3);        // 29 of 27
    EXPECT_EQ(energy(0.99)->rank(question()), 4);
    EXPECT_EQ(energy(1)->rank(question()), 4);
}

TEST(EnergyRank, OfAZeroWeightIsOne) {
    auto q = question();
    q.singular_values = {0, 0, 0};
    EXPECT_EQ(energy(0.9)->rank(q), 1);
}

TEST(RatioRank, IsTheLargestWithinTheBudget) {
    EXPECT_EQ(ratio(0.45)->rank(question()), 3);  // 450 of 450
    EXPECT_EQ(ratio(0.44)->rank(question()), 2);
    EXPECT_EQ(ratio(0.01)->rank(question()), 1);               // one is the least there is
    EXPECT_EQ(ratio(0.5, "parameters")->rank(question()), 2);  // 48 of 50
    EXPECT_EQ(ratio(0.9)->rank(question()), 4);
    EXPECT_EQ(ratio(1)->rank(question()), 4);
}

TEST(RankRules, SayWhatIsWrong) {
    EXPECT_ERROR(energy(0), InvalidArgument, "keep is 0.0, must be in (0, 1]");
    EXPECT_ERROR(energy(NAN), InvalidArgument, "keep");
    EXPECT_ERROR(ratio(1.5), InvalidArgument, "keep is 1.5");
    EXPECT_ERROR(ratio(0.5, "flops"), InvalidArgument, "must be macs or parameters");
}

TEST(RankRules, EveryRowStaysInRangeAndIsFullWhenAllIsKept) {
    for (const auto& row : lowrank::rank_rules()) {
        for (const char* keep : {"0.001", "0.3", "0.7", "0.999"}) {
            Options options(row.name, {{"keep", keep}});
            const auto rank = row.make(options)->rank(question());
            options.done();
            EXPECT_GE(rank, 1) << row.name << " " << keep;
            EXPECT_LE(rank, 4) << row.name << " " << keep;
        }
        Options options(row.name, {{"keep", "1"}});
        EXPECT_EQ(row.make(options)->rank(question()), 4) << row.name;
    }
}

}  // namespace
}  // namespace coppice::testing
