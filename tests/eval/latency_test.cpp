#include <ATen/Parallel.h>
#include <coppice/eval.h>

#include <cmath>
#include <random>
#include <set>

#include "support/support.h"

namespace coppice::eval {
namespace {

// A machine in simulated time: a query moves the clock by its duration, times what the machine is slowed down by.
struct Machine {
    double now = 0, cpu = 0;
    std::function<double()> slow_down = [] { return 1.0; };

    std::function<void()> query(double seconds) {
        return [this, seconds] {
            const double taken = seconds * slow_down();
            now += taken;
            cpu += 2 * taken;  // as if two threads were busy
        };
    }
    LatencyOptions options(double seconds) {
        LatencyOptions options;
        options.seconds = seconds;
        options.clock = [this] { return now; };
        options.cpu_clock = [this] { return cpu; };
        return options;
    }
};

// Joules by the simulated clock: `watts` while anything runs.
class SimulatedMeter final : public EnergyMeter {
public:
    SimulatedMeter(const Machine& machine, double watts) : machine_(machine), watts_(watts) {}
    std::string name() const override { return "simulated"; }
    std::string method() const override { return "simulated"; }
    void start() override { start_ = machine_.now; }
    Figure read() override { return Figure::measured((machine_.now - start_) * watts_, "J", method()); }

private:
    const Machine& machine_;
    double watts_, start_ = 0;
};

TEST(TimeInterleaved, FindsTheRatioOfTwoQueries) {
    Machine machine;
    const auto rows = time_interleaved({machine.query(0.004), machine.query(0.001)}, machine.options(3));
    ASSERT_EQ(rows.size(), 2);
    EXPECT_NEAR(*rows[0].p50_s.value, 0.004, 1e-9);
    EXPECT_NEAR(*rows[1].p50_s.value, 0.001, 1e-9);
    EXPECT_NEAR(*rows[1].throughput_per_s.value, 1000, 1e-3);
    EXPECT_NEAR(*rows[1].ratio_to_baseline.value, 0.25, 1e-6);
    EXPECT_EQ(*rows[0].ratio_to_baseline.value, 1);
    EXPECT_EQ(rows[1].ratio_to_baseline.provenance, Provenance::kDerived);
    EXPECT_TRUE(rows[0].steady);
    EXPECT_NEAR(*rows[0].cpu_s.value, 0.008, 1e-9);
    EXPECT_NEAR(rows[0].cpu_share, 2, 1e-6);
}

// An instrument whose reading takes time.
class SlowMeter final : public EnergyMeter {
public:
    SlowMeter(Machine& machine, double call_s) : machine_(machine), call_s_(call_s) {}
    std::string name() const override { return "slow"; }
    std::string method() const override { return "slow"; }
    void start() override { machine_.now += call_s_; }
    Figure read() override {
        machine_.now += call_s_;
        return Figure::measured(1, "J", method());
    }

private:
    Machine& machine_;
    double call_s_;
};

TEST(TimeInterleaved, WindowsAreSoLongThatTheMetersOwnTimeIsNoMatter) {
    for (const double call_s : {1e-5, 1e-3}) {
        Machine machine;
        SlowMeter meter(machine, call_s);
        const auto rows = time_interleaved({machine.query(0.001)}, machine.options(3), &meter);
        const auto& overhead = rows[0].meter_overhead;
        ASSERT_TRUE(overhead.available()) << overhead.reason;
        EXPECT_EQ(overhead.provenance, Provenance::kMeasured);
        EXPECT_LT(*overhead.value, kMeterOverheadRatio);
        // Two calls of each window, which holds the queries that were timed.
        EXPECT_NEAR(*overhead.value,
                    2 * call_s * static_cast<double>(rows[0].windows.size()) / (0.001 * rows[0].queries), 1e-9);
    }
}

TEST(TimeInterleaved, RecordsEachWindowAndWhatDisturbedIt) {
    Machine machine;
    double stolen = 0;
    auto options = machine.options(3);
    options.machine_clock = [&]() -> std::optional<MachineTime> {
        stolen += 0.001;  // each look finds a millisecond more
        return MachineTime{machine.cpu, 4 * machine.now - machine.cpu, stolen};
    };
    const auto rows = time_interleaved({machine.query(0.004)}, options);
    ASSERT_FALSE(rows[0].windows.empty());
    EXPECT_EQ(static_cast<int64_t>(rows[0].windows.size()), rows[0].pairs);
    for (const auto& window : rows[0].windows) {
        EXPECT_NEAR(window.median_s, 0.004, 1e-9);
        EXPECT_NEAR(window.cpu_s, 0.008, 1e-9);
        EXPECT_NEAR(window.steal_s.value(), 0.001, 1e-9);
        EXPECT_FALSE(window.energy_j);
    }
    EXPECT_GT(*rows[0].steal_ratio.value, 0);
    EXPECT_EQ(rows[0].to_json()["outliers"]["high_severe"], 0);
    EXPECT_EQ(rows[0].to_json()["outliers"]["windows"], rows[0].pairs);
    EXPECT_FALSE(rows[0].meter_overhead.available());
}

TEST(TimeInterleaved, CountsWindowsThatOtherWorkDisturbed) {
    Machine machine;
    // Every fourth look at the machine finds stolen time; two looks make a window.
    int looks = 0;
    double stolen = 0;
    auto options = machine.options(3);
    options.relative_interval = 1e-9;
    options.machine_clock = [&]() -> std::optional<MachineTime> {
        stolen += ++looks % 4 == 0 ? 0.002 : 0;  // 10 % of a window of 20 ms
        return MachineTime{machine.cpu, 4 * machine.now - machine.cpu, stolen};
    };
    const auto stealing = time_interleaved({machine.query(0.004)}, options)[0];
    EXPECT_NEAR(*stealing.disturbed_ratio.value, 0.5, 0.01);
    EXPECT_EQ(stealing.disturbed_ratio.provenance, Provenance::kMeasured);

    // In a fifth of the time the program gets half of the CPU time that it gets else.
    Machine waiting;
    waiting.slow_down = [&] { return std::fmod(waiting.now, 1) < 0.2 ? 2.0 : 1.0; };
    const auto query = [&] {
        const double from = waiting.now;
        waiting.query(0.004)();
        if (std::fmod(from, 1) < 0.2) waiting.cpu -= waiting.now - from;
    };
    auto brief = waiting.options(10);
    brief.relative_interval = 1e-9;
    const auto row = time_interleaved({query}, brief)[0];
    EXPECT_GT(*row.disturbed_ratio.value, 0.08);
    EXPECT_LT(*row.disturbed_ratio.value, 0.3);
    EXPECT_THAT(row.disturbed_ratio.method, ::testing::HasSubstr("waited for a CPU"));
}

TEST(Outliers, AreClassifiedByTukeysFences) {
    // Quartiles of 0..8 are 2 and 6: fences at -4 and 12, far ones at -10 and 18.
    std::vector<double> values = {0, 1, 2, 3, 4, 5, 6, 7, 8};
    const auto none = classify_outliers(values);
    EXPECT_EQ(none.low_mild + none.low_severe + none.high_mild + none.high_severe, 0);
    // Of the 13 values those at positions 3 and 9 are the quartiles, 1 and 7: fences at -8 and 16, far ones -17 and 25.
    values.insert(values.end(), {-20, -10, 20, 30});
    const auto some = classify_outliers(values);
    EXPECT_EQ(some.low_severe, 1);
    EXPECT_EQ(some.low_mild, 1);
    EXPECT_EQ(some.high_mild, 1);
    EXPECT_EQ(some.high_severe, 1);
}

TEST(TimeInterleaved, ReadsTheMeterAroundEachWindow) {
    Machine machine;
    SimulatedMeter meter(machine, 50);
    const auto rows = time_interleaved({machine.query(0.004), machine.query(0.001)}, machine.options(3), &meter);
    EXPECT_NEAR(*rows[0].energy_j.value, 0.2, 1e-9);
    EXPECT_NEAR(*rows[1].energy_j.value, 0.05, 1e-9);
    EXPECT_NEAR(*rows[1].power_w.value, 50, 1e-6);
    EXPECT_EQ(rows[1].power_w.provenance, Provenance::kDerived);
    EXPECT_FALSE(time_interleaved({machine.query(1)}, machine.options(1))[0].energy_j.available());
}

// A counter that steps every 0.1 s, read by queries that keep step with it: each window would begin at one phase.
TEST(TimeInterleaved, WindowsOfASteppingCounterBeginAtRandomPhases) {
    class Stepping final : public EnergyMeter {
    public:
        explicit Stepping(Machine& machine) : machine_(machine) {}
        std::string name() const override { return "stepping"; }
        std::string method() const override { return "stepping"; }
        double update_s() const override { return 0.1; }
        void start() override { phases.push_back(std::fmod(machine_.now, 0.1)); }
        Figure read() override { return Figure::measured(1, "J", method()); }
        std::vector<double> phases;

    private:
        Machine& machine_;
    };
    Machine machine;
    Stepping meter(machine);
    auto options = machine.options(20);
    options.window_seconds = 0.2;
    double slept = 0;
    options.sleep = [&](double seconds) {
        EXPECT_GE(seconds, 0);
        EXPECT_LT(seconds, 0.1);
        slept += seconds;
        machine.now += seconds;
    };
    const auto rows = time_interleaved({machine.query(0.1), machine.query(0.2)}, options, &meter);
    EXPECT_GT(slept, 0);
    // Deciles of the phase: with so many starts each holds some. (0.9^n x 10 is the probability that one holds none.)
    std::set<int> deciles;
    for (const double phase : meter.phases) deciles.insert(static_cast<int>(100 * phase));
    ASSERT_GE(meter.phases.size(), 100u);
    EXPECT_GE(deciles.size(), 10u);
    EXPECT_NEAR(*rows[1].ratio_to_baseline.value, 2, 1e-6) << "pauses are not in the times";
    EXPECT_NEAR(*rows[0].p50_s.value, 0.1, 1e-9);
}

TEST(TimeInterleaved, SaysWhichIntervalWasWantedAndReached) {
    Machine machine;
    std::mt19937_64 engine(1);
    std::uniform_real_distribution<double> uniform;
    machine.slow_down = [&] { return 0.9 + 0.2 * uniform(engine); };
    auto options = machine.options(20);
    options.relative_interval = 0.03;
    const auto rows = time_interleaved({machine.query(0.01), machine.query(0.02)}, options);
    const auto& ratio = rows[1].ratio_to_baseline;
    EXPECT_EQ(rows[1].wanted_interval, 0.03);
    EXPECT_NEAR(rows[1].reached_interval.value(), (ratio.interval->high - ratio.interval->low) / 2 / *ratio.value,
                1e-12);
    const auto& p50 = rows[0].p50_s;
    EXPECT_NEAR(rows[0].reached_interval.value(), (p50.interval->high - p50.interval->low) / 2 / *p50.value, 1e-12);
    EXPECT_EQ(rows[1].to_json()["relative_interval"]["wanted"], 0.03);
    EXPECT_TRUE(rows[1].to_json()["relative_interval"]["reached"].is_number());
}

TEST(TimeInterleaved, DriftAndBurstsOfTheMachineDoNotReachTheRatio) {
    Machine machine;
    std::mt19937_64 engine(1);
    std::uniform_real_distribution<double> uniform;
    // The machine's speed swings by half within seconds, each query scatters by 5 %, and some take thrice as long.
    machine.slow_down = [&] {
        const double drift = 1 + 0.5 * std::sin(machine.now);
        return drift * (0.95 + 0.1 * uniform(engine)) * (uniform(engine) < 0.03 ? 3 : 1);
    };
    auto options = machine.options(60);
    options.warm_up_seconds = 0.5;
    const auto rows = time_interleaved({machine.query(0.01), machine.query(0.0097)}, options);
    const auto& ratio = rows[1].ratio_to_baseline;
    ASSERT_TRUE(ratio.interval);
    EXPECT_NEAR(*ratio.value, 0.97, 0.02);
    EXPECT_LE(ratio.interval->low, 0.975);
    EXPECT_GE(ratio.interval->high, 0.965);
    EXPECT_LE((ratio.interval->high - ratio.interval->low) / 2, 0.021);
}

TEST(TimeInterleaved, PercentilesNeedEnoughQueries) {
    Machine machine;
    auto few = time_interleaved({machine.query(0.1)}, machine.options(3))[0];
    EXPECT_TRUE(few.p50_s.available());
    EXPECT_FALSE(few.p90_s.available());
    EXPECT_THAT(few.p90_s.reason, ::testing::HasSubstr("needs 64 queries"));
    auto more = time_interleaved({machine.query(0.01)}, machine.options(3))[0];
    EXPECT_GE(more.queries, 64);
    EXPECT_TRUE(more.p90_s.available());
    EXPECT_FALSE(more.p99_s.available()) << "3 s hold 300 queries, p99 needs 662";
    EXPECT_THAT(more.p99_s.reason, ::testing::HasSubstr("662"));
    auto many = time_interleaved({machine.query(0.001)}, machine.options(3))[0];
    EXPECT_TRUE(many.p99_s.available());
}

TEST(TimeInterleaved, SlowQueriesStillGetEightRounds) {
    Machine machine;
    const auto rows = time_interleaved({machine.query(2), machine.query(1)}, machine.options(3));
    EXPECT_EQ(rows[1].pairs, 8);
    EXPECT_EQ(rows[1].queries, 8);
    EXPECT_NEAR(*rows[1].ratio_to_baseline.value, 0.5, 1e-9);
}

TEST(TimeInterleaved, StopsEarlyOncePreciseAndNotBefore) {
    Machine machine;
    time_interleaved({machine.query(0.01)}, machine.options(600));
    EXPECT_LT(machine.now, 60) << "queries without noise are precise after the 662 that p99 needs";
    EXPECT_GT(machine.now, 6.6);

    Machine noisy;
    std::mt19937_64 engine(1);
    std::uniform_real_distribution<double> uniform;
    noisy.slow_down = [&] { return 0.2 + 1.6 * uniform(engine); };
    time_interleaved({noisy.query(0.5), noisy.query(0.5)}, noisy.options(10));
    EXPECT_GE(noisy.now, 20) << "noise of +-80 % is not within 2 % after 20 queries, so all the time is used";
}

TEST(TimeInterleaved, SaysWhenTheWarmUpNeverBecameSteady) {
    Machine machine;
    machine.slow_down = [&machine] { return 1 + 5 * machine.now; };  // ever slower
    EXPECT_FALSE(time_interleaved({machine.query(0.01)}, machine.options(1))[0].steady);
}

TEST(TimeInterleaved, WindowsGrowWhenTheWarmUpFellIntoABusyMoment) {
    Machine machine;
    machine.slow_down = [&] { return machine.now < 0.65 ? 100.0 : 1.0; };  // six windows of warm-up take 0.6 s
    const auto rows = time_interleaved({machine.query(0.001)}, machine.options(2));
    // 20 queries of 1 ms fill a window; in the warm-up one took 100 ms.
    EXPECT_NEAR(static_cast<double>(rows[0].queries) / static_cast<double>(rows[0].pairs), 20, 1);
    EXPECT_NEAR(rows[0].p50_s.value.value(), 0.001, 1e-9);
}

TEST(TimeInterleaved, TellsHowFarItIs) {
    Machine machine;
    auto options = machine.options(2);
    options.relative_interval = 1e-9;  // never precise enough
    std::vector<double> shares;
    options.progress = [&](double done, double total) {
        EXPECT_EQ(total, 4) << "two variants of 2 s";
        shares.push_back(done / total);
    };
    time_interleaved({machine.query(0.004), machine.query(0.001)}, options);
    ASSERT_GE(shares.size(), 8u);
    EXPECT_TRUE(std::is_sorted(shares.begin(), shares.end()));
    EXPECT_EQ(shares.back(), 1);
}

TEST(TimeInterleaved, EndsOnRequest) {
    Machine machine;
    auto options = machine.options(60);
    options.interrupted = [&machine] { return machine.now > 1; };
    EXPECT_ERROR(time_interleaved({machine.query(0.01)}, options), Interrupted, "stopped");
}

TEST(Tiled, RepeatsWhatHasTheBatchDimension) {
    const auto ids = at::arange(6).reshape({2, 3}), mask = at::ones({2, 3}), table = at::zeros({5});
    const auto more = tiled({ids, mask, table, 3}, 5);
    EXPECT_TRUE(at::equal(more[0].toTensor(), at::cat({ids, ids, ids.narrow(0, 0, 1)})));
    EXPECT_EQ(more[1].toTensor().size(0), 5);
    EXPECT_EQ(more[2].toTensor().size(0), 5) << "its dimension 0 is not the batch";
    EXPECT_EQ(more[3].toInt(), 3);
    EXPECT_EQ(tiled({ids}, 1)[0].toTensor().size(0), 1);
    EXPECT_ERROR(tiled({c10::IValue(3)}, 4), InvalidArgument, "batch dimension");
}

LatencyOptions brief() {
    LatencyOptions options;
    options.seconds = 0.1;
    options.warm_up_seconds = 0.1;
    options.window_seconds = 0.002;
    return options;
}

TEST(MeasureLatency, TimesModelsPerBatchAndThreadCountAndRestoresTheThreads) {
    const auto small = testing::build_module({{"weight", testing::sine({16, 16})}},
                                             "def forward(self, x):\n    return torch.linear(x, self.weight)\n");
    const auto large = testing::build_module({{"weight", testing::sine({16, 16})}}, R"(
def forward(self, x):
    for i in range(40):
        x = torch.linear(x, self.weight)
    return x
)");
    const int threads = at::get_num_threads();
    const auto rows =
        measure_latency({{"large", large}, {"small", small}}, {testing::sine({1, 16})}, {1, 4}, {1}, brief());
    ASSERT_EQ(rows.size(), 2);
    EXPECT_EQ(at::get_num_threads(), threads);
    for (const auto& row : rows) {
        ASSERT_EQ(row.size(), 2);
        EXPECT_LT(*row[1].ratio_to_baseline.value, 0.5) << "40 layers against one";
        EXPECT_THAT(row[1].p50_s.method, ::testing::HasSubstr("torch::jit::freeze"));
        EXPECT_EQ(row[1].threads, 1);
    }
    EXPECT_EQ(rows[1][0].batch, 4);
    // Examples and not queries: 4 / seconds of a query, which are its CPU seconds / CPU share.
    const auto& four = rows[1][1];
    EXPECT_NEAR(*four.throughput_per_s.value * *four.cpu_s.value / four.cpu_share, 4, 1e-6);
}

TEST(MeasureLatency, AModelThatRefusesABatchSizeSaysSo) {
    const auto any = testing::build_module({}, "def forward(self, x):\n    return x * 2\n");
    const auto two = testing::build_module({}, "def forward(self, x):\n    return x.reshape([2, 3])\n");
    const auto rows = measure_latency({{"any", any}, {"two", two}}, {testing::sine({2, 3})}, {2, 8}, {1}, brief());
    EXPECT_TRUE(rows[0][1].p50_s.available());
    EXPECT_TRUE(rows[1][0].p50_s.available());
    EXPECT_FALSE(rows[1][1].p50_s.available());
    EXPECT_THAT(rows[1][1].p50_s.reason, ::testing::HasSubstr("does not run at batch size 8"));
    EXPECT_FALSE(rows[1][1].ratio_to_baseline.available());
    const auto reversed = measure_latency({{"two", two}, {"any", any}}, {testing::sine({2, 3})}, {8}, {1}, brief());
    EXPECT_TRUE(reversed[0][1].p50_s.available());
    EXPECT_THAT(reversed[0][1].ratio_to_baseline.reason, ::testing::HasSubstr("the baseline does not run"));
}

TEST(MeasureLatency, RunsACopyThatNothingElseRanThrough) {
    // Counts its calls; at batch 2 it fails where it ever ran at batch 1.
    const auto module = testing::build_module({{"single", at::zeros({1})}}, R"(
def forward(self, x):
    if x.size(0) == 1:
        self.single.add_(1)
    elif bool(self.single > 0):
        return x.reshape([7])
    return x * 2
)");
    const auto rows = measure_latency({{"counting", module}}, {testing::sine({1, 3})}, {1, 2}, {1}, brief());
    EXPECT_TRUE(rows[0][0].p50_s.available());
    EXPECT_TRUE(rows[1][0].p50_s.available()) << rows[1][0].p50_s.reason;
    EXPECT_EQ(module.attr("single").toTensor().item<float>(), 0);
}

TEST(MeasureLatency, LeavesAModelInTrainingModeAsItWas) {
    auto module = testing::build_module({}, "def forward(self, x):\n    return torch.dropout(x, 0.5, self.training)\n");
    module.setattr("training", true);
    measure_latency({{"dropout", module}}, {testing::sine({2, 3})}, {1}, {1}, brief());
    EXPECT_TRUE(module.attr("training").toBool());
}

TEST(Latency, JsonHasTheRowOfTheContract) {
    Machine machine;
    const auto json = time_interleaved({machine.query(0.01)}, machine.options(1))[0].to_json();
    for (const char* key :
         {"batch", "threads", "p50_s", "p90_s", "p99_s", "throughput_per_s", "ratio_to_baseline", "steady", "pairs"})
        EXPECT_TRUE(json.contains(key)) << key;
    EXPECT_NO_THROW(Figure::from_json(json["p50_s"]));
}

}  // namespace
}  // namespace coppice::eval
