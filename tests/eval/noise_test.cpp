// Do 95 % intervals hold what they promise? On simulated noise, with a clock of its own: nothing here is timed.
#include <coppice/eval.h>

#include <cmath>
#include <random>

#include "support/support.h"

namespace coppice::eval {
namespace {

// A shared machine: its slowness is an AR(1) process that is correlated over about half a second, queries scatter, and
// bursts of another program's work make everything slower for a while.
class NoisyMachine {
public:
    struct Kind {
        double drift = 0;         // standard deviation of the slow part's logarithm
        double memory_s = 0.5;    // over which it is correlated
        double scatter = 0.02;    // of a single query
        double bursts_per_s = 0;  // each 0.2 s long and three times as slow
    };
    NoisyMachine(Kind kind, uint64_t seed) : kind_(kind), engine_(seed) { state_ = normal_(engine_); }

    std::function<void()> query(double seconds) {
        return [this, seconds] {
            const double keep = std::exp(-seconds / kind_.memory_s);
            state_ = keep * state_ + std::sqrt(1 - keep * keep) * normal_(engine_);
            if (now_ > burst_end_ && uniform_(engine_) < kind_.bursts_per_s * seconds) burst_end_ = now_ + 0.2;
            const double slow = std::exp(kind_.drift * state_ + kind_.scatter * normal_(engine_));
            now_ += seconds * slow * (now_ < burst_end_ ? 3 : 1);
        };
    }
    LatencyOptions options(double seconds, uint64_t seed) {
        LatencyOptions options;
        options.seconds = seconds;
        options.warm_up_seconds = 0.2;
        options.seed = seed;
        options.clock = options.cpu_clock = [this] { return now_; };
        return options;
    }

private:
    Kind kind_;
    std::mt19937_64 engine_;
    std::normal_distribution<double> normal_;
    std::uniform_real_distribution<double> uniform_;
    double state_ = 0, now_ = 0, burst_end_ = -1;
};

const NoisyMachine::Kind kIndependent{};
const NoisyMachine::Kind kCorrelated{.drift = 0.15, .memory_s = 0.5, .scatter = 0.02, .bursts_per_s = 0.2};

struct Outcome {
    int covered = 0, different = 0, runs = 0;
};

// Compares two queries `runs` times, each on a machine of its own.
Outcome compare(const NoisyMachine::Kind& kind, double ratio, int runs, double seconds, uint64_t first_seed = 1000) {
    constexpr double query_s = 0.01;
    Outcome outcome;
    for (int run = 0; run < runs; ++run) {
        NoisyMachine machine(kind, first_seed + run);
        const auto rows =
            time_interleaved({machine.query(query_s), machine.query(query_s * ratio)}, machine.options(seconds, run));
        const auto& interval = rows[1].ratio_to_baseline.interval;
        ++outcome.runs;
        if (!interval) continue;
        outcome.covered += interval->low <= ratio && ratio <= interval->high;
        outcome.different += interval->low > 1 || interval->high < 1;
    }
    return outcome;
}

// 93 to 97 % of 400 intervals; the share itself has a standard error of 1.1 points.
void expect_coverage(const Outcome& outcome) {
    EXPECT_GE(outcome.covered, 0.93 * outcome.runs);
    EXPECT_LE(outcome.covered, 0.97 * outcome.runs);
}

TEST(SimulatedNoise, IntervalsOfARatioCoverItUnderIndependentNoise) {
    expect_coverage(compare(kIndependent, 0.8, 400, 10));
}

TEST(SimulatedNoise, IntervalsOfARatioCoverItUnderDriftAndBursts) {
    expect_coverage(compare(kCorrelated, 0.8, 400, 10));
}

// Six seconds hold fewer than six stretches of correlated noise: Student's t makes up for it.
TEST(SimulatedNoise, IntervalsOfTheQuickProfileCoverToo) {
    MeasureOptions quick;
    quick.profile = "quick";
    expect_coverage(compare(kCorrelated, 0.8, 400, quick.seconds()));
}

TEST(SimulatedNoise, AModelComparedWithItselfIsNoDifferent) {
    // Of seeds 1000 to 1399, 19 find a difference: 4.75 %, as an interval of 95 % should. Here are half of them.
    const auto outcome = compare(kCorrelated, 1, 200, 60, 1200);
    EXPECT_LE(outcome.different, 14) << "at least 93 of 100 find none";
}

TEST(SimulatedNoise, TheStandardProfileFindsThreePercent) {
    const auto outcome = compare(kCorrelated, 1.03, 100, MeasureOptions().seconds());
    EXPECT_GE(outcome.different, 95) << "of 100";
}

// Mean of a series with AR(1) correlation and bursts, the form in which energy and throughput come.
TEST(SimulatedNoise, IntervalsOfAMeanCoverItUnderCorrelationAndBursts) {
    std::mt19937_64 engine(5);
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform;
    constexpr int kRuns = 400, kCount = 600, kBlock = 30;
    constexpr double kMemory = 0.7, kBurst = 0.02, kBurstSize = 3;
    int covered = 0;
    for (int run = 0; run < kRuns; ++run) {
        std::vector<double> values(kCount);
        double state = normal(engine);
        for (auto& value : values) {
            state = kMemory * state + std::sqrt(1 - kMemory * kMemory) * normal(engine);
            value = state + (uniform(engine) < kBurst ? kBurstSize : 0);
        }
        const auto interval = block_bootstrap(
            kCount, kBlock,
            [&](const std::vector<int64_t>& indices) {
                double sum = 0;
                for (const auto index : indices) sum += values[index];
                return sum / kCount;
            },
            400, run);
        const double truth = kBurst * kBurstSize;
        covered += interval->low <= truth && truth <= interval->high;
    }
    EXPECT_GE(covered, 0.93 * kRuns);
    EXPECT_LE(covered, 0.97 * kRuns);
}

}  // namespace
}  // namespace coppice::eval
