#include <coppice/eval.h>

#include <cmath>
#include <random>

#include "support/support.h"

namespace coppice::eval {
namespace {

TEST(Wilson, MatchesTheClosedFormByHand) {
    // 8 of 10 at z = 1.959964: centre (0.8 + 3.8415/20) / 1.38415, half width z/1.38415 sqrt(0.016 + 3.8415/400).
    const auto interval = wilson_interval(8, 10);
    EXPECT_NEAR(interval.low, 0.49016, 1e-5);
    EXPECT_NEAR(interval.high, 0.94331, 1e-4);
}

TEST(Wilson, StaysInsideZeroAndOne) {
    EXPECT_EQ(wilson_interval(0, 20).low, 0);
    EXPECT_NEAR(wilson_interval(0, 20).high, 3.8415 / (20 + 3.8415), 1e-4);  // z^2 / (n + z^2)
    EXPECT_EQ(wilson_interval(20, 20).high, 1);
}

TEST(Wilson, RefusesWhatIsNoProportion) {
    EXPECT_ERROR(wilson_interval(3, 2), InvalidArgument, "3 successes of 2 trials");
    EXPECT_ERROR(wilson_interval(0, 0), InvalidArgument, "0 trials");
}

TEST(McNemar, IsTheExactBinomialTest) {
    EXPECT_EQ(mcnemar_p_value(0, 0), 1);
    EXPECT_NEAR(mcnemar_p_value(0, 5), 2 / 32.0, 1e-12);
    EXPECT_NEAR(mcnemar_p_value(9, 1), 2 * (1 + 10) / 1024.0, 1e-12);
    EXPECT_EQ(mcnemar_p_value(4, 4), 1);
}

TEST(Quantile, InterpolatesBetweenOrderStatistics) {
    EXPECT_DOUBLE_EQ(quantile({3, 1, 2}, 0.5), 2);
    EXPECT_DOUBLE_EQ(quantile({4, 1, 2, 3}, 0.5), 2.5);
    EXPECT_DOUBLE_EQ(quantile({10, 20, 30, 40, 50}, 0.9), 46);
    EXPECT_DOUBLE_EQ(quantile({7}, 0.99), 7);
}

TEST(MinimumQueries, AreThoseOfMlperf) {
    EXPECT_EQ(minimum_queries(0.9), 64);
    EXPECT_EQ(minimum_queries(0.99), 662);
    EXPECT_EQ(minimum_queries(0.5), 11);  // 12 / 2^11 = 0.0059 and 11 / 2^10 = 0.0107
}

TEST(QuantileInterval, TakesOrderStatisticsByTheBinomialLaw) {
    // Median of 10: P(B <= 1) = 11/1024 = 0.0107 and P(B <= 2) = 0.0547, so the 2nd and the 9th value.
    const auto interval = quantile_interval({10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, 0.5);
    ASSERT_TRUE(interval);
    EXPECT_EQ(interval->low, 2);
    EXPECT_EQ(interval->high, 9);
    EXPECT_FALSE(quantile_interval({1, 2, 3}, 0.5)) << "three values cannot bound a median at 95 %";
}

std::vector<double> noise(std::mt19937_64& engine, int64_t count, double correlation) {
    std::normal_distribution<double> normal;
    std::vector<double> values(count);
    double state = normal(engine);
    for (auto& value : values) {
        value = state;
        state = correlation * state + std::sqrt(1 - correlation * correlation) * normal(engine);
    }
    return values;
}

double mean_at(const std::vector<double>& values, const std::vector<int64_t>& indices) {
    double sum = 0;
    for (const auto index : indices) sum += values[index];
    return sum / static_cast<double>(indices.size());
}

// Share of `runs` simulated series whose interval of the mean holds the true mean 0.
double coverage_of_mean(int runs, int64_t count, int64_t block, double correlation) {
    std::mt19937_64 engine(1);
    int covered = 0;
    for (int run = 0; run < runs; ++run) {
        const auto values = noise(engine, count, correlation);
        const auto interval = block_bootstrap(
            count, block, [&](const std::vector<int64_t>& indices) { return mean_at(values, indices); }, 400, run);
        covered += interval && interval->low <= 0 && 0 <= interval->high;
    }
    return static_cast<double>(covered) / runs;
}

TEST(BlockBootstrap, CoversTheMeanOfIndependentValues) {
    // 300 runs: the share has a standard error of 1.3 points, so 95 +- 4.
    EXPECT_NEAR(coverage_of_mean(300, 40, 1, 0), 0.95, 0.04);
}

TEST(BlockBootstrap, CoversTheMeanOfFewBlocks) {
    EXPECT_NEAR(coverage_of_mean(300, 8, 1, 0), 0.95, 0.045);
}

TEST(BlockBootstrap, CoversTheMeanOfCorrelatedValuesThatSingleDrawsMiss) {
    const double blocks = coverage_of_mean(300, 400, 40, 0.8), single = coverage_of_mean(300, 400, 1, 0.8);
    EXPECT_NEAR(blocks, 0.95, 0.05);
    EXPECT_LT(single, 0.7) << "blocks of one ignore the correlation: variance is (1 + r) / (1 - r) = 9 times larger";
}

TEST(BlockBootstrap, IsAbsentWithFewerThanFourBlocks) {
    EXPECT_FALSE(block_bootstrap(6, 2, [](const std::vector<int64_t>&) { return 0.0; }));
    EXPECT_TRUE(block_bootstrap(8, 2, [](const std::vector<int64_t>&) { return 0.0; }));
}

TEST(BlockBootstrap, GivesTheSameForTheSameSeed) {
    std::mt19937_64 engine(3);
    const auto values = noise(engine, 30, 0);
    const auto statistic = [&](const std::vector<int64_t>& indices) { return mean_at(values, indices); };
    EXPECT_EQ(block_bootstrap(30, 2, statistic, 200, 5)->low, block_bootstrap(30, 2, statistic, 200, 5)->low);
    EXPECT_NE(block_bootstrap(30, 2, statistic, 200, 5)->low, block_bootstrap(30, 2, statistic, 200, 6)->low);
}

TEST(PairedRatio, CancelsDriftThatHitsBoth) {
    // The machine slows down threefold within the run; the candidate always takes 0.8 of the baseline's time.
    std::vector<double> baseline, candidate;
    for (int i = 0; i < 40; ++i) {
        baseline.push_back(1 + i / 20.0);
        candidate.push_back(0.8 * baseline.back());
    }
    const auto paired = paired_log_ratio(baseline, candidate, 1);
    EXPECT_NEAR(paired.ratio, 0.8, 1e-12);
    ASSERT_TRUE(paired.interval);
    EXPECT_NEAR(paired.interval->low, 0.8, 1e-12);
    EXPECT_NEAR(paired.interval->high, 0.8, 1e-12);
}

TEST(PairedRatio, CoversTheTruthUnderBurstsAndDrift) {
    std::mt19937_64 engine(7);
    std::uniform_real_distribution<double> uniform;
    int covered = 0;
    const int runs = 200;
    for (int run = 0; run < runs; ++run) {
        const auto drift = noise(engine, 60, 0.9), first = noise(engine, 60, 0), second = noise(engine, 60, 0);
        std::vector<double> baseline(60), candidate(60);
        for (int i = 0; i < 60; ++i) {
            baseline[i] = std::exp(0.2 * drift[i] + 0.02 * first[i]) * (uniform(engine) < 0.05 ? 2 : 1);
            candidate[i] = 0.7 * std::exp(0.2 * drift[i] + 0.02 * second[i]) * (uniform(engine) < 0.05 ? 2 : 1);
        }
        const auto paired = paired_log_ratio(baseline, candidate, 1, run);
        ASSERT_TRUE(paired.interval);
        covered += paired.interval->low <= 0.7 && 0.7 <= paired.interval->high;
        EXPECT_LT(paired.interval->high - paired.interval->low, 0.04);
    }
    EXPECT_GE(covered, 0.90 * runs);  // standard error of the share: 1.5 points
}

}  // namespace
}  // namespace coppice::eval
