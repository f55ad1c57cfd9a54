#include <coppice/eval.h>

#include <unistd.h>

#include <fstream>

#include "support/support.h"

namespace coppice::eval {
namespace {

// A machine in simulated time whose instrument shows `watts`, also while nothing runs.
struct QuietMachine {
    double now = 100, watts = 20, busy_s = 0, steal_s = 0;
    double busy_share = 0, steal_share = 0;  // of its four CPUs, while it sleeps

    IdleOptions options(double seconds = 5) {
        IdleOptions options;
        options.seconds = seconds;
        options.clock = [this] { return now; };
        options.sleep = [this](double slept) {
            now += slept;
            busy_s += 4 * slept * busy_share;
            steal_s += 4 * slept * steal_share;
        };
        options.machine_clock = [this]() -> std::optional<MachineTime> {
            return MachineTime{busy_s, 4 * now - busy_s - steal_s, steal_s};
        };
        return options;
    }
};

class Instrument final : public EnergyMeter {
public:
    explicit Instrument(const QuietMachine& machine, bool counts_idle = true)
        : machine_(machine), counts_idle_(counts_idle) {}
    std::string name() const override { return counts_idle_ ? "instrument" : "model"; }
    std::string method() const override { return "simulated"; }
    void start() override { start_ = machine_.now; }
    Figure read() override { return Figure::measured((machine_.now - start_) * machine_.watts, "J", method()); }
    bool counts_idle() const override { return counts_idle_; }

private:
    const QuietMachine& machine_;
    bool counts_idle_;
    double start_ = 0;
};

TEST(Idle, PowerIsWhatTheMeterCountsWhileThisProcessSleeps) {
    QuietMachine machine;
    machine.busy_share = 0.25, machine.steal_share = 0.125;
    Instrument meter(machine);
    const auto idle = measure_idle(meter, machine.options(5));
    EXPECT_NEAR(*idle.power_w.value, 20, 1e-9);
    EXPECT_EQ(idle.power_w.provenance, Provenance::kDerived);
    EXPECT_NEAR(*idle.seconds.value, 5, 1e-9);
    // Of 20 CPU seconds 5 were busy and 2.5 stolen; this process really used some of its own meanwhile, microseconds.
    EXPECT_NEAR(*idle.others_ratio.value, 0.25, 0.01);
    EXPECT_NEAR(*idle.steal_ratio.value, 0.125, 1e-9);
}

TEST(Idle, ADriftAboveFivePercentIsFlagged) {
    QuietMachine machine;
    Instrument meter(machine);
    const auto look = [&](double watts) {
        machine.watts = watts;
        return measure_idle(meter, machine.options());
    };
    const auto before = look(20);
    const auto steady = idle_change(before, look(20.9));  // 0.9 / 20.45 = 4.4 %
    EXPECT_FALSE(steady.drifted);
    EXPECT_NEAR(*steady.power_w.value, 20.45, 1e-9);
    EXPECT_NEAR(*steady.drift_ratio.value, 0.9 / 20.45, 1e-9);
    EXPECT_EQ(steady.note, "");
    for (const double watts : {21.2, 18.9}) {  // 5.8 %, 5.7 %
        const auto change = idle_change(before, look(watts));
        EXPECT_TRUE(change.drifted) << watts;
        EXPECT_THAT(change.note, ::testing::HasSubstr("idle power changed by 5."));
        EXPECT_EQ(change.to_json()["drifted"], true);
    }
}

TEST(Idle, WithoutAnInstrumentInterferenceIsComparedInstead) {
    QuietMachine machine;
    Instrument model(machine, /*counts_idle=*/false);
    const auto look = [&](double busy, double steal) {
        machine.busy_share = busy, machine.steal_share = steal;
        return measure_idle(model, machine.options());
    };
    const auto before = look(0.25, 0);
    EXPECT_THAT(before.power_w.reason, ::testing::HasSubstr("model counts busy time only"));
    EXPECT_FALSE(idle_change(before, look(0.28, 0)).drifted);
    EXPECT_THAT(idle_change(before, look(0.28, 0)).note, ::testing::HasSubstr("took 25 % of the CPUs before and 28 %"));
    const auto change = idle_change(before, look(0.25, 0.25));
    EXPECT_TRUE(change.drifted) << "another guest";
    EXPECT_NEAR(*change.drift_ratio.value, 0.25, 0.01);
    EXPECT_THAT(change.note, ::testing::HasSubstr("of the CPUs before and 50 % after"));
    EXPECT_FALSE(change.power_w.available());
}

TEST(Idle, WithoutProcStatNothingIsClaimed) {
    QuietMachine machine;
    Instrument model(machine, false);
    const testing::TemporaryFolder root;
    auto options = machine.options();
    options.machine_clock = nullptr;
    options.root = root.path();
    const auto idle = measure_idle(model, options);
    EXPECT_THAT(idle.others_ratio.reason, ::testing::HasSubstr("/proc/stat cannot be read"));
    const auto change = idle_change(idle, idle);
    EXPECT_FALSE(change.drift_ratio.available());
    EXPECT_FALSE(change.drifted);
}

TEST(Idle, NetEnergyIsLessIdlePowerTimesTime) {
    const auto energy = Figure::measured(100, "J", "counter", Interval{94, 106});
    const auto power = Figure::derived(20, "W", "idle", Interval{18, 22});
    const auto net = net_of_idle(energy, power, Figure::measured(4, "s", "clock"));
    EXPECT_NEAR(*net.value, 20, 1e-12);
    EXPECT_NEAR(net.interval->low, 10, 1e-9) << "6 and 4 x 2 J in quadrature";
    EXPECT_NEAR(net.interval->high, 30, 1e-9);
    EXPECT_EQ(net.provenance, Provenance::kDerived);
    EXPECT_EQ(net_of_idle(energy, Figure::assumed(20, "W", "given"), Figure::measured(4, "s", "")).provenance,
              Provenance::kAssumed);
    EXPECT_THAT(net_of_idle(energy, power, Figure::measured(6, "s", "clock")).reason,
                ::testing::HasSubstr("less than idling"));
    EXPECT_EQ(net_of_idle(energy, Figure::unavailable("W", "why"), Figure::measured(4, "s", "")).reason, "why");
    // A model of busy time has no idle draw in it that could be taken away.
    const auto model = net_of_idle(Figure::modelled(100, "J", "CPU"), power, Figure::measured(4, "s", ""), false);
    EXPECT_EQ(*model.value, 100);
    EXPECT_EQ(model.provenance, Provenance::kModelled);
}

TEST(MachineTimeOf, ReadsTheFirstLineOfProcStat) {
    const testing::TemporaryFolder root;
    EXPECT_FALSE(machine_time(root.path()));
    std::filesystem::create_directories(root / "proc");
    std::ofstream(root / "proc/stat") << "cpu  100 20 30 400 50 6 7 80 9 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n";
    const auto time = machine_time(root.path());
    const double tick = 1.0 / static_cast<double>(::sysconf(_SC_CLK_TCK));
    EXPECT_NEAR(time->busy_s, tick * (100 + 20 + 30 + 6 + 7), 1e-9) << "guest time is inside user time";
    EXPECT_NEAR(time->idle_s, tick * (400 + 50), 1e-9);
    EXPECT_NEAR(time->steal_s, tick * 80, 1e-9);
    std::ofstream(root / "proc/stat") << "intr 1 2 3\n";
    EXPECT_FALSE(machine_time(root.path()));
}

TEST(Measurer, LooksAtTheIdleMachineBeforeAndAfter) {
    const testing::TemporaryFolder folder;
    const auto write = [&](const std::string& file, const std::string& text) {
        const auto path = folder / "sys/bus/event_source/devices/power" / file;
        std::filesystem::create_directories(path.parent_path());
        std::ofstream(path) << text << "\n";
    };
    write("type", "31");
    write("cpumask", "0");
    write("events/energy-pkg", "event=0x02");
    write("events/energy-pkg.scale", "1e-6");
    write("events/energy-pkg.unit", "Joules");
    const auto model = testing::residual_model();
    model.save(folder / "model.pt");
    MeasureOptions options;
    options.profile = "quick";
    options.threads = {1};
    options.relative_interval = 1;
    options.idle = 0.05;
    options.energy.source = "perf";
    options.energy.root = folder.path();
    // A counter that shows 50 W for ever: net energy is then about 0, and not below.
    options.energy.perf_opener = [](uint32_t, uint64_t, int, int&) -> PerfCounter {
        return [] { return static_cast<uint64_t>(50e6 * wall_seconds()); };
    };
    Measurer measurer({testing::sine({1, 3, 8, 8})}, nullptr, "test", Task::kClassification, "", options);
    const auto json = measurer.measure(model, model.clone(), folder / "model.pt", "stage");
    EXPECT_NEAR(json["figures"]["idle_power_w"]["value"].get<double>(), 50, 1);
    for (const char* when : {"before", "after"})
        EXPECT_GE(json["idle"][when]["seconds"]["value"].get<double>(), 0.05) << when;
    EXPECT_EQ(json["idle"]["drifted"], false);
    const auto net = Figure::from_json(json["figures"]["net_energy_per_inference_j"]);
    const auto gross = Figure::from_json(json["figures"]["energy_per_inference_j"]);
    if (net.available()) EXPECT_LT(*net.value, 0.1 * *gross.value);
    EXPECT_TRUE(json["compression"].contains("net_energy_j"));
    EXPECT_TRUE(json["figures"]["meter_overhead_ratio"]["value"].is_number());

    options.profile = "off";
    Measurer without({testing::sine({1, 3, 8, 8})}, nullptr, "test", Task::kClassification, "", options);
    EXPECT_TRUE(without.measure(model, model, folder / "model.pt", "baseline")["idle"].is_null());
}

}  // namespace
}  // namespace coppice::eval
