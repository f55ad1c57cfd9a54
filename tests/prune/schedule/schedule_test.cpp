#include "prune/masking.h"

namespace coppice::testing {
namespace {

TEST(PruneSchedule, EveryRowRisesToTheTarget) {
    for (const auto& row : prune::schedules()) {
        SCOPED_TRACE(row.name);
        Options options(row.name);
        const auto schedule = row.make(options);
        for (const double target : {0.0, 0.3, 0.95}) {
            double last = 0;
            for (int i = 0; i <= 20; ++i) {
                const double removed = schedule->removed(i / 20.0, target);
                EXPECT_GE(removed, last - 1e-15);
                EXPECT_LE(removed, target + 1e-15);  // the last digit of 1 - (1 - x)
                last = removed;
            }
            EXPECT_EQ(schedule->removed(1, target), target);
        }
    }
}

TEST(PruneSchedule, FormulasByHand) {
    EXPECT_DOUBLE_EQ(prune::linear()->removed(0.25, 0.8), 0.2);
    EXPECT_DOUBLE_EQ(prune::cubic()->removed(0.5, 0.8), 0.7);         // 0.8 (1 - 1/8)
    EXPECT_DOUBLE_EQ(prune::cubic(0.5)->removed(0, 0.8), 0.4);        // s_i
    EXPECT_DOUBLE_EQ(prune::cubic(0.5)->removed(0.5, 0.8), 0.75);     // 0.8 - 0.4 / 8
    EXPECT_DOUBLE_EQ(prune::exponential()->removed(0.5, 0.75), 0.5);  // half stays, twice
    EXPECT_DOUBLE_EQ(prune::one_shot()->removed(0, 0.8), 0.8);
    EXPECT_ERROR(prune::cubic(1.5), InvalidArgument, "initial is 1.5, must be in [0, 1]");
}

TEST(PruneSchedule, BudgetsAndFixedRatiosFollowIt) {
    prune::Target target;
    target.macs_ratio = 0.4;
    target.fixed = {std::nullopt, 0.5};
    const auto half = prune::at_time(target, *prune::linear(), 0.5);
    EXPECT_DOUBLE_EQ(*half.macs_ratio, 0.7);
    EXPECT_FALSE(half.fixed[0]);
    EXPECT_DOUBLE_EQ(*half.fixed[1], 0.25);
    EXPECT_FALSE(half.params_ratio);
}

}  // namespace
}  // namespace coppice::testing
