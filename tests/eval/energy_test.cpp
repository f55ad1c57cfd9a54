#include <coppice/eval.h>

#include <unistd.h>

#include <cmath>
#include <fstream>

#include "energy/cpu_table.h"
#include "energy/rapl.h"
#include "support/support.h"

namespace coppice::eval {
namespace {

using testing::TemporaryFolder;

// A powercap tree that a test writes: zones "intel-rapl:0" (or "intel-rapl-mmio:0", "intel-rapl:0:1"), flat as in
// /sys/class.
class Tree {
public:
    void zone(const std::string& id, const std::string& name, double microjoules, double range = 262143328850) {
        write(id, "name", name);
        counter(id, microjoules);
        if (range > 0) write(id, "max_energy_range_uj", text(range));
    }
    void counter(const std::string& id, double microjoules) { write(id, "energy_uj", text(microjoules)); }
    void write(const std::string& id, const std::string& file, const std::string& content) {
        const auto path = folder.path() / "sys/class/powercap" / id;
        std::filesystem::create_directories(path);
        std::ofstream(path / file) << content << "\n";
    }
    void vanish(const std::string& id) { std::filesystem::remove_all(folder.path() / "sys/class/powercap" / id); }

    TemporaryFolder folder;

private:
    static std::string text(double value) { return std::to_string(static_cast<int64_t>(value)); }
};

TEST(Rapl, AddsPackagesAndMemoryButNotWhatIsInsideThem) {
    Tree tree;
    tree.zone("intel-rapl:0", "package-0", 1e6);
    tree.zone("intel-rapl:0:0", "core", 5e6);
    tree.zone("intel-rapl:0:1", "dram", 2e6);
    tree.zone("intel-rapl:1", "package-1", 7e6);
    tree.zone("intel-rapl:2", "psys", 9e6);
    RaplReader reader(tree.folder.path());
    ASSERT_TRUE(reader.usable()) << reader.why_not();
    reader.start(0);
    tree.counter("intel-rapl:0", 11e6);    // 10 J
    tree.counter("intel-rapl:0:0", 12e6);  // inside the package
    tree.counter("intel-rapl:0:1", 5e6);   // 3 J
    tree.counter("intel-rapl:1", 8e6);     // 1 J
    tree.counter("intel-rapl:2", 99e6);    // contains the packages
    reader.sample(1);
    const auto total = reader.total(1);
    ASSERT_TRUE(total.available()) << total.reason;
    EXPECT_NEAR(*total.value, 14, 1e-9);
    EXPECT_EQ(total.provenance, Provenance::kMeasured);
    EXPECT_THAT(total.method, ::testing::HasSubstr("package-0, package-1, package-0/dram"));
}

TEST(Rapl, CountsAPackageThatTwoDriversShowOnce) {
    Tree tree;
    tree.zone("intel-rapl:0", "package-0", 0);
    tree.zone("intel-rapl-mmio:0", "package-0", 0);
    RaplReader reader(tree.folder.path());
    reader.start(0);
    tree.counter("intel-rapl:0", 4e6);
    tree.counter("intel-rapl-mmio:0", 4e6);
    reader.sample(1);
    EXPECT_NEAR(*reader.total(1).value, 4, 1e-9);
}

TEST(Rapl, CountsDiesThatMirrorOneCounterOnceAndOthersEach) {
    Tree tree;
    tree.zone("intel-rapl:0", "package-0-die-0", 3e9);
    tree.zone("intel-rapl:1", "package-0-die-1", 3e9 + 500);  // read half a millisecond later
    RaplReader mirrored(tree.folder.path());
    mirrored.start(0);
    tree.counter("intel-rapl:0", 3e9 + 6e6);
    tree.counter("intel-rapl:1", 3e9 + 6e6 + 700);
    mirrored.sample(1);
    EXPECT_NEAR(*mirrored.total(1).value, 6, 1e-3);

    tree.counter("intel-rapl:1", 8e9);
    RaplReader separate(tree.folder.path());
    separate.start(0);
    tree.counter("intel-rapl:0", 3e9 + 10e6);
    tree.counter("intel-rapl:1", 8e9 + 5e6);
    separate.sample(1);
    EXPECT_NEAR(*separate.total(1).value, 9, 1e-3);
}

TEST(Rapl, UnwrapsTheCounterOncePerPoll) {
    Tree tree;
    tree.zone("intel-rapl:0", "package-0", 90e6, /*range=*/100e6);
    RaplReader reader(tree.folder.path());
    EXPECT_NEAR(reader.poll_seconds(), 100 / 4000.0, 1e-12);
    reader.start(0);
    double joules = 0, counter = 90;
    for (int i = 1; i <= 20; ++i) {  // 15 J at each poll: three wraps on the way
        joules += 15;
        counter = std::fmod(counter + 15, 100);
        tree.counter("intel-rapl:0", counter * 1e6);
        reader.sample(0.05 * i);
    }
    ASSERT_TRUE(reader.total(1).available()) << reader.total(1).reason;
    EXPECT_NEAR(*reader.total(1).value, joules, 1e-6);
}

TEST(Rapl, AGapInWhichItMayHaveWrappedUnseenIsInvalid) {
    Tree tree;
    tree.zone("intel-rapl:0", "package-0", 10e6, /*range=*/65532610987);
    RaplReader reader(tree.folder.path());
    reader.start(0);
    tree.counter("intel-rapl:0", 20e6);
    reader.sample(66);
    EXPECT_FALSE(reader.total(66).available());
    EXPECT_THAT(reader.total(66).reason, ::testing::HasSubstr("may have wrapped unseen"));
}

TEST(Rapl, ACounterThatWasResetIsInvalidNotNegativeOrHuge) {
    Tree tree;
    tree.zone("intel-rapl:0", "package-0", 100e9);
    RaplReader reader(tree.folder.path());
    reader.start(0);
    tree.counter("intel-rapl:0", 0);  // as a wrap this would be 162 kJ in one second
    reader.sample(1);
    EXPECT_FALSE(reader.total(1).available());
    EXPECT_THAT(reader.total(1).reason, ::testing::HasSubstr("too far for a wrap"));
}

TEST(Rapl, WithoutARangeACounterIsReadButNotUnwrapped) {
    Tree tree;
    tree.zone("intel-rapl:0", "package-0", 10e6, /*range=*/0);
    RaplReader reader(tree.folder.path());
    reader.start(0);
    tree.counter("intel-rapl:0", 12e6);
    reader.sample(1);
    EXPECT_NEAR(*reader.total(1).value, 2, 1e-9);
    tree.counter("intel-rapl:0", 1e6);
    reader.sample(2);
    EXPECT_THAT(reader.total(2).reason, ::testing::HasSubstr("names no range"));
}

TEST(Rapl, AStalledCounterIsUnavailableNotZero) {
    Tree tree;
    tree.zone("intel-rapl:0", "package-0", 10e6);
    RaplReader reader(tree.folder.path());
    reader.start(0);
    reader.sample(1);
    EXPECT_THAT(reader.total(1).reason, ::testing::HasSubstr("did not move"));
}

TEST(Rapl, AZoneThatVanishesTakesOnlyAPackageWithIt) {
    Tree tree;
    tree.zone("intel-rapl:0", "package-0", 0);
    tree.zone("intel-rapl:0:0", "dram", 0);
    RaplReader reader(tree.folder.path());
    reader.start(0);
    tree.counter("intel-rapl:0", 5e6);
    tree.vanish("intel-rapl:0:0");
    reader.sample(1);
    EXPECT_NEAR(*reader.total(1).value, 5, 1e-9);
    EXPECT_THAT(reader.total(1).method, ::testing::HasSubstr("RAPL counters of package-0; without package-0/dram"));
    tree.vanish("intel-rapl:0");
    reader.sample(2);
    EXPECT_FALSE(reader.total(2).available());
}

TEST(Rapl, GarbageAndMissingFilesAreNamed) {
    Tree tree;
    tree.zone("intel-rapl:0", "package-0", 0);
    tree.write("intel-rapl:0", "energy_uj", "n/a");
    const RaplReader reader(tree.folder.path());
    EXPECT_FALSE(reader.usable());
    EXPECT_THAT(reader.why_not(), ::testing::HasSubstr("holds \"n/a\""));
}

TEST(Rapl, RefusesTextThatOnlyLooksLikeANumber) {
    for (const char* text : {"", "nan", "inf", "-5", "0x10", "12 J?", "1e999", "12abc"}) {
        Tree tree;
        tree.zone("intel-rapl:0", "package-0", 0);
        tree.write("intel-rapl:0", "energy_uj", text);
        const bool trailing = std::string(text) == "12 J?";  // a unit behind a blank is tolerated
        EXPECT_EQ(RaplReader(tree.folder.path()).usable(), trailing) << text;
    }
}

TEST(Rapl, FindsMemoryInATreeThatIsNestedAsInDevices) {
    Tree tree;
    tree.zone("intel-rapl:0", "package-0", 0);
    tree.zone("intel-rapl:0/intel-rapl:0:0", "dram", 0);
    RaplReader reader(tree.folder.path());
    reader.start(0);
    tree.counter("intel-rapl:0", 5e6);
    tree.counter("intel-rapl:0/intel-rapl:0:0", 2e6);
    reader.sample(0.5);
    EXPECT_NEAR(*reader.total(0.5).value, 7, 1e-9);
}

TEST(Rapl, AddsTwoSocketsOfWhichOneWraps) {
    Tree tree;
    tree.zone("intel-rapl:0", "package-0", 262143e6);  // 328 850 uJ before its end
    tree.zone("intel-rapl:1", "package-1", 1000e6);
    tree.zone("intel-rapl:0:0", "dram", 10e6);
    tree.zone("intel-rapl:1:0", "dram", 20e6);
    RaplReader reader(tree.folder.path());
    reader.start(0);
    tree.counter("intel-rapl:0", 99671150);  // 100 J on
    tree.counter("intel-rapl:1", 1050e6);
    tree.counter("intel-rapl:0:0", 13e6);
    tree.counter("intel-rapl:1:0", 24e6);
    reader.sample(1);
    ASSERT_TRUE(reader.total(1).available()) << reader.total(1).reason;
    EXPECT_NEAR(*reader.total(1).value, 100 + 50 + 3 + 4, 1e-6);
}

TEST(Rapl, TwoWrapsBetweenTwoReadsAreNeverCounted) {
    // AMD's range holds 65.5 kJ: at 1 kW a wrap takes 65.5 s, and a program that slept for 140 s may have missed two.
    Tree tree;
    tree.zone("intel-rapl:0", "package-0", 30000e6, /*range=*/65532610987);
    RaplReader reader(tree.folder.path());
    EXPECT_NEAR(reader.poll_seconds(), 65532.610987 / 4000, 1e-9);
    reader.start(0);
    tree.counter("intel-rapl:0", 31000e6);  // in truth 1 kJ + two turns
    reader.sample(140);
    EXPECT_FALSE(reader.total(140).available());
    reader.start(140);  // the next window is not harmed
    tree.counter("intel-rapl:0", 31010e6);
    reader.sample(141);
    EXPECT_NEAR(*reader.total(141).value, 10, 1e-9);
}

TEST(Rapl, AnUnreadableRangeIsAsGoodAsNone) {
    for (const char* range : {"", "0", "garbage"}) {
        Tree tree;
        tree.zone("intel-rapl:0", "package-0", 10e6);
        tree.write("intel-rapl:0", "max_energy_range_uj", range);
        RaplReader reader(tree.folder.path());
        reader.start(0);
        tree.counter("intel-rapl:0", 15e6);
        reader.sample(0.5);
        EXPECT_NEAR(*reader.total(0.5).value, 5, 1e-9) << range;
        tree.counter("intel-rapl:0", 1e6);
        reader.sample(0.9);
        EXPECT_FALSE(reader.total(0.9).available()) << range;
    }
}

TEST(Rapl, AFileWithoutPermissionIsNamedWithTheCommandThatHelps) {
    Tree tree;
    tree.zone("intel-rapl:0", "package-0", 0);
    tree.zone("intel-rapl:0:0", "dram", 0);
    tree.zone("intel-rapl-mmio:0", "package-0", 0);
    const auto denied = [&](const std::string& id) {
        std::filesystem::permissions(tree.folder.path() / "sys/class/powercap" / id / "energy_uj",
                                     std::filesystem::perms::none);
    };
    std::filesystem::permissions(tree.folder.path(), static_cast<std::filesystem::perms>(0755));
    denied("intel-rapl:0:0");
    const bool root = ::geteuid() == 0;
    if (root && ::seteuid(65534) != 0) GTEST_SKIP() << "root reads every file, and cannot become another user here";
    RaplReader without_memory(tree.folder.path());
    without_memory.start(0);
    if (root) ASSERT_EQ(::seteuid(0), 0);
    tree.counter("intel-rapl:0", 5e6);
    without_memory.sample(0.5);
    EXPECT_NEAR(*without_memory.total(0.5).value, 5, 1e-9) << "memory that cannot be read is left out and named";
    EXPECT_THAT(without_memory.total(0.5).method, ::testing::HasSubstr("without package-0/dram"));

    denied("intel-rapl:0");
    if (root) ASSERT_EQ(::seteuid(65534), 0);
    const RaplReader twin(tree.folder.path());
    if (root) ASSERT_EQ(::seteuid(0), 0);
    EXPECT_TRUE(twin.usable()) << "the same package by the other driver can be read";

    denied("intel-rapl-mmio:0");
    if (root) ASSERT_EQ(::seteuid(65534), 0);
    EnergyOptions options;
    options.root = tree.folder.path();
    EnergySourceStatus status;
    for (const auto& source : energy_sources())
        if (source.name == "rapl") status = source.probe(options);
    if (root) ASSERT_EQ(::seteuid(0), 0);
    EXPECT_FALSE(status.usable);
    EXPECT_THAT(status.reason, ::testing::HasSubstr("Permission denied"));
    EXPECT_THAT(status.enable, ::testing::HasSubstr("chmod a+r"));
}

TEST(Rapl, ACounterThatStopsInTheMiddleIsUnavailable) {
    Tree tree;
    tree.zone("intel-rapl:0", "package-0", 10e6);
    RaplReader reader(tree.folder.path());
    reader.start(0);
    tree.counter("intel-rapl:0", 60e6);
    reader.sample(0.5);
    EXPECT_TRUE(reader.total(0.5).available());
    reader.sample(6);  // 5.5 s without a step
    EXPECT_THAT(reader.total(6).reason, ::testing::HasSubstr("did not move"));
}

TEST(Rapl, ADramCounterThatNeverMovesIsLeftOut) {
    Tree tree;
    tree.zone("intel-rapl:0", "package-0", 0);
    tree.zone("intel-rapl:0:0", "dram", 0);
    RaplReader reader(tree.folder.path());
    reader.start(0);
    tree.counter("intel-rapl:0", 60e6);
    reader.sample(6);
    EXPECT_NEAR(*reader.total(6).value, 60, 1e-9);
    EXPECT_THAT(reader.total(6).method, ::testing::HasSubstr("without package-0/dram (package-0/dram did not move"));
}

TEST(Rapl, UsesTheWholePlatformOnlyWithoutPackages) {
    Tree tree;
    tree.zone("intel-rapl:0", "psys", 0);
    RaplReader reader(tree.folder.path());
    reader.start(0);
    tree.counter("intel-rapl:0", 30e6);
    reader.sample(1);
    EXPECT_NEAR(*reader.total(1).value, 30, 1e-9);
}

TEST(EnergySources, TakeTheCounterBeforeTheModel) {
    Tree tree;
    tree.zone("intel-rapl:0", "package-0", 1e6);
    EnergyOptions options;
    options.root = tree.folder.path();
    const auto meter = make_energy_meter(options);
    EXPECT_EQ(meter->name(), "rapl");
    meter->start();
    tree.counter("intel-rapl:0", 3e6);
    const auto figure = meter->stop();
    ASSERT_TRUE(figure.available()) << figure.reason;
    EXPECT_NEAR(*figure.value, 2, 1e-9);
}

TEST(EnergySources, FallBackToTheModelWhereThereIsNoCounter) {
    const TemporaryFolder empty;
    EnergyOptions options;
    options.root = empty.path();
    EXPECT_EQ(make_energy_meter(options)->name(), "cpu_time");
    options.source = "rapl";
    EXPECT_ERROR(make_energy_meter(options), MeasurementError, "holds no RAPL package");
    options.source = "rapel";
    EXPECT_ERROR(make_energy_meter(options), InvalidArgument, "Did you mean \"rapl\"?");
}

TEST(EnergySources, SayWhyTheyAreNotUsableAndWhatWouldHelp) {
    const TemporaryFolder empty;
    EnergyOptions options;
    options.root = empty.path();
    options.nvml_library = options.amd_smi_library = empty / "absent.so";
    const auto statuses = probe_energy_sources(options);
    ASSERT_EQ(statuses.size(), energy_sources().size());
    std::vector<std::string> names;
    for (const auto& status : statuses) {
        names.push_back(status.name);
        EXPECT_EQ(status.usable, status.name == "cpu_time" || status.name == "none") << status.name;
    }
    EXPECT_THAT(names, ::testing::ElementsAre("perf", "rapl", "nvml", "amd_smi", "hwmon", "battery", "meter_csv",
                                              "cpu_time", "none"));
    EXPECT_THAT(statuses[1].enable, ::testing::HasSubstr("modprobe"));
    for (const auto& status : statuses) EXPECT_FALSE(status.reason.empty()) << status.name;
}

TEST(EnergySources, NoneIsUnavailableNeverZero) {
    EnergyOptions options;
    options.source = "none";
    const auto meter = make_energy_meter(options);
    meter->start();
    EXPECT_FALSE(meter->stop().available());
    EXPECT_FALSE(meter->idle_power_w().available());
}

TEST(CpuPower, LooksUpTheExactNameWithoutItsDecoration) {
    EXPECT_EQ(normalized_cpu_name("Intel(R) Xeon(R) CPU E5-2686 v4 @ 2.30GHz"), "Intel Xeon E5-2686 v4");
    EXPECT_EQ(normalized_cpu_name("AMD EPYC 7763 64-Core Processor"), "AMD EPYC 7763");
    EXPECT_EQ(normalized_cpu_name("Intel(R) Core(TM) i7-8700K CPU @ 3.70GHz"), "Intel Core i7-8700K");
    EXPECT_EQ(normalized_cpu_name("11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz"), "Intel Core i7-1165G7");
    EXPECT_EQ(normalized_cpu_name("AMD Ryzen 7 5800H with Radeon Graphics"), "AMD Ryzen 7 5800H");
    EXPECT_EQ(normalized_cpu_name("AMD Ryzen Threadripper 3970X 32-Core Processor"), "AMD Ryzen Threadripper 3970X");
    const auto power = cpu_power("AMD EPYC 7763 64-Core Processor");
    EXPECT_TRUE(power.known);
    EXPECT_NEAR(power.watts_per_core, 280.0 / 64, 1e-12);
    EXPECT_THAT(power.method, ::testing::HasSubstr("TDP 280 W / 64 cores of AMD EPYC 7763"));
}

TEST(CpuPower, AnUnknownNameIsAssumedAndSaysSo) {
    for (const char* name : {"AMD EPYC", "AMD EPYC 7763X", ""}) {
        const auto power = cpu_power(name);
        EXPECT_FALSE(power.known) << name;
        EXPECT_THAT(power.method, ::testing::HasSubstr("assumed 8 W per core (")) << name;
        // Any CPU of the table lies within, by as much as the model may be wrong on top.
        for (const auto& row : cpu_rows()) {
            EXPECT_LE(power.systematic_ratio.low * 8, 0.5 * row.watts / row.cores + 1e-9) << row.name;
            EXPECT_GE(power.systematic_ratio.high * 8, 3 * row.watts / row.cores - 1e-9) << row.name;
        }
    }
    EXPECT_EQ(cpu_power("AMD EPYC", 4.5).watts_per_core, 4.5);
    EXPECT_ERROR(cpu_power("AMD EPYC", 0.0), InvalidArgument, "must be above 0");
}

TEST(CpuPower, TableIsSortedAndPlausible) {
    const auto& rows = cpu_rows();
    for (size_t i = 0; i < rows.size(); ++i) {
        if (i > 0) EXPECT_LT(std::string(rows[i - 1].name), rows[i].name);
        EXPECT_EQ(normalized_cpu_name(rows[i].name), rows[i].name);
        EXPECT_GT(rows[i].watts / rows[i].cores, 1.5) << rows[i].name;
        EXPECT_LT(rows[i].watts / rows[i].cores, 25) << rows[i].name;
    }
}

TEST(CpuTimeMeter, IsCpuSecondsTimesWattsAndModelled) {
    EnergyOptions options;
    options.source = "cpu_time";
    options.cpu_watts_per_core = 10;
    const auto meter = make_energy_meter(options);
    const double before = cpu_seconds();
    meter->start();
    volatile double sink = 0;
    while (cpu_seconds() - before < 0.05) sink = sink + 1;
    const auto figure = meter->stop();
    const double spent = cpu_seconds() - before;
    EXPECT_EQ(figure.provenance, Provenance::kModelled);
    EXPECT_GE(*figure.value, 0.49);
    EXPECT_LE(*figure.value, 10 * spent + 1e-9);
    EXPECT_EQ(figure.systematic_ratio->low, 0.5);
    EXPECT_EQ(figure.systematic_ratio->high, 3);
    EXPECT_THAT(figure.method, ::testing::HasSubstr("10 W per core given by the user"));
}

TEST(CpuTimeMeter, OfAnUnknownCpuIsAssumed) {
    const TemporaryFolder machine;
    std::filesystem::create_directories(machine / "proc");
    EnergyOptions options;
    options.source = "cpu_time";
    options.root = machine.path();
    double cpu = 0;
    options.cpu_clock = [&cpu] { return cpu; };
    const auto figure_of = [&](const std::string& name) {
        std::ofstream(machine / "proc/cpuinfo") << "model name\t: " << name << "\n";
        const auto meter = make_energy_meter(options);
        meter->start();
        cpu += 2;
        return meter->stop();
    };
    const auto known = figure_of("AMD EPYC 7763 64-Core Processor"), unknown = figure_of("AMD EPYC");
    EXPECT_EQ(known.provenance, Provenance::kModelled);
    EXPECT_NEAR(*known.value, 2 * 280.0 / 64, 1e-9);
    EXPECT_EQ(unknown.provenance, Provenance::kAssumed);
    EXPECT_NEAR(*unknown.value, 16, 1e-9);
    EXPECT_LT(unknown.systematic_ratio->low, known.systematic_ratio->low);
    EXPECT_GT(unknown.systematic_ratio->high, known.systematic_ratio->high);
}

TEST(MemoryEnergy, IsTimeTimesItsSizeWhereNoCounterHasIt) {
    const TemporaryFolder machine;
    std::filesystem::create_directories(machine / "proc");
    EnergyOptions options;
    options.root = machine.path();
    options.source = "cpu_time";
    const auto seconds = Figure::measured(100, "s", "wall clock", Interval{90, 110});
    const auto memory = memory_energy_j(*make_energy_meter(options), 64'000'000'000, seconds);
    ASSERT_TRUE(memory.available()) << memory.reason;
    EXPECT_NEAR(*memory.value, 100 * 64 * 0.3725, 1e-9);
    EXPECT_EQ(memory.provenance, Provenance::kModelled);
    EXPECT_NEAR(memory.interval->high / memory.interval->low, 110.0 / 90, 1e-9);
    EXPECT_FALSE(memory_energy_j(*make_energy_meter(options), 0, seconds).available());

    Tree tree;
    tree.zone("intel-rapl:0", "package-0", 1e6);
    options.root = tree.folder.path();
    options.source = "rapl";
    EXPECT_FALSE(make_energy_meter(options)->counts_memory());
    tree.zone("intel-rapl:0:0", "dram", 1e6);
    EXPECT_TRUE(make_energy_meter(options)->counts_memory());
    EXPECT_THAT(memory_energy_j(*make_energy_meter(options), 64'000'000'000, seconds).reason,
                ::testing::HasSubstr("memory is in what rapl counts"));
    options.source = "rapl+cpu_time";
    EXPECT_TRUE(make_energy_meter(options)->counts_memory()) << "a sum has it if a part does";
}

TEST(CpuTimeMeter, IdlePowerIsWhatTheUserSaysOrUnavailable) {
    EnergyOptions options;
    options.source = "cpu_time";
    EXPECT_FALSE(make_energy_meter(options)->idle_power_w().available());
    options.idle_watts = 45;
    EXPECT_EQ(make_energy_meter(options)->idle_power_w().provenance, Provenance::kAssumed);
}

}  // namespace
}  // namespace coppice::eval
