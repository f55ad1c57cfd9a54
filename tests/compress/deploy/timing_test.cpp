#include "deploy/timing.h"

#include <cmath>

#include "support/support.h"

namespace coppice::testing {
namespace {

TEST(MedianInterval, IsTheTabulatedPairOfOrderStatistics) {
    // Ranks of the 95 % interval of the median from the binomial table: n = 6: 1 and 6, n = 10: 2 and 9, n = 25: 8
    // and 18.
    for (const auto& [n, low, high] : std::vector<std::array<int, 3>>{{6, 1, 6}, {9, 2, 8}, {10, 2, 9}, {25, 8, 18}}) {
        std::vector<double> values;
        for (int i = n; i >= 1; --i) values.push_back(i);
        const auto interval = median_interval(values);
        EXPECT_EQ(interval.low, low) << n;
        EXPECT_EQ(interval.high, high) << n;
        EXPECT_EQ(interval.median, (n + 1) / 2.0) << n;
    }
}

TEST(MedianInterval, NeedsSixValues) {
    EXPECT_ERROR(median_interval({1, 2, 3, 4, 5}), InternalError, "5 values");
}

/// Times of models relative to a machine whose speed changes from round to round by up to ten times.
RoundTimes drifting(const std::vector<double>& factors, double noise, size_t rounds = 25) {
    RoundTimes times;
    for (size_t model = 0; model < factors.size(); ++model) {
        times.push_back({{}, {}});
        for (size_t round = 0; round < rounds; ++round)
            for (size_t set = 0; set < 2; ++set) {
                const double machine = std::pow(10, std::sin(double(round)));
                const double wobble = std::exp(noise * std::sin(double(7 * round + 3 * set + 11 * model)));
                times[model][set].push_back(factors[model] * machine * wobble * double(1 + 30 * set));
            }
    }
    return times;
}

TEST(ChooseFastest, SeesADifferenceThroughDrift) {
    const auto choice = choose_fastest(drifting({1, 0.9, 0.8, 0.95}, 0.02), 0.01);
    EXPECT_EQ(choice.best, 2u);
    EXPECT_NEAR(choice.ratio[2].median, 0.8, 0.02);
    EXPECT_LE(choice.ratio[2].low, choice.ratio[2].median);
    EXPECT_GE(choice.ratio[2].high, choice.ratio[2].median);
    EXPECT_EQ(choice.reasons[0] + " " + std::to_string(choice.rivals[0]), "slower than 1");
    EXPECT_EQ(choice.reasons[1] + " " + std::to_string(choice.rivals[1]), "slower than 2");
    EXPECT_EQ(choice.reasons[2], "");
    EXPECT_EQ(choice.reasons[3] + " " + std::to_string(choice.rivals[3]), "slower than 2");
}

TEST(ChooseFastest, KeepsTheSimplerOneWithinNoiseAndForLessThanTheLeastGain) {
    const auto noisy = choose_fastest(drifting({1, 0.97}, 0.5), 0.01);
    EXPECT_EQ(noisy.best, 0u);
    EXPECT_EQ(noisy.reasons[1], "not faster beyond noise than");
    EXPECT_EQ(choose_fastest(drifting({1, 0.995}, 0), 0.01).best, 0u);
    EXPECT_EQ(choose_fastest(drifting({1, 0.985}, 0), 0.01).best, 1u);
    EXPECT_EQ(choose_fastest(drifting({1, 1.1}, 0.02), 0.01).reasons[1], "slower than");
}

TEST(InterleavedTimes, TellsASlowModelFromAFastOne) {
    const auto model = [](int rounds) {
        return build_module({}, "def forward(self, x):\n    for i in range(" + std::to_string(rounds) +
                                    "):\n        x = torch.cos(x)\n    return x\n");
    };
    std::vector<torch::jit::Module> models = {model(200), model(20)};
    int polls = 0;
    const auto times = interleaved_times(models, {{at::zeros({64, 64})}}, 0, 0, [&] { return ++polls > 100; });
    ASSERT_EQ(times.size(), 2u);
    ASSERT_EQ(times[0][0].size(), 6u);  // no budget: the least number of rounds
    EXPECT_GT(median_interval(times[0][0]).median, 3 * median_interval(times[1][0]).median);
}

}  // namespace
}  // namespace coppice::testing
