// Sources other than powercap and GPUs, on synthetic trees and files.
#include <coppice/eval.h>

#include <cerrno>
#include <fstream>

#include "energy/sources.h"
#include "support/support.h"

namespace coppice::eval {
namespace {

using ::testing::HasSubstr;
using testing::TemporaryFolder;

class Sources : public ::testing::Test {
protected:
    Sources() { options.root = root.path(); }
    void write(const std::string& file, const std::string& text) {
        std::filesystem::create_directories((root / file).parent_path());
        std::ofstream(root / file) << text << "\n";
    }
    EnergySourceStatus status(const std::string& name) {
        for (const auto& source : energy_sources())
            if (source.name == name) return source.probe(options);
        return {};
    }
    std::unique_ptr<EnergyMeter> meter(const std::string& name) {
        options.source = name;
        return make_energy_meter(options);
    }

    // ------------------------------------------------------------------------------------------------- perf events
    void perf_unit(const std::string& cpumask, const std::vector<std::string>& events) {
        const std::string folder = "sys/bus/event_source/devices/power/";
        write(folder + "type", "31");
        write(folder + "cpumask", cpumask);
        for (size_t i = 0; i < events.size(); ++i) {
            write(folder + "events/" + events[i], "event=0x0" + std::to_string(i + 2));
            write(folder + "events/" + events[i] + ".scale", "2.3283064365386962890625e-10");
            write(folder + "events/" + events[i] + ".unit", "Joules");
        }
        options.perf_opener = [this](uint32_t type, uint64_t config, int cpu, int& error) -> PerfCounter {
            EXPECT_EQ(type, 31);
            error = open_error;
            if (open_error) return {};
            return [this, config, cpu]() -> std::optional<uint64_t> {
                if (vanished) return std::nullopt;
                return counts[{config, cpu}];
            };
        };
    }
    void count(uint64_t config, int cpu, double joules) {
        counts[{config, cpu}] = static_cast<uint64_t>(joules * 4294967296.0);  // 2^32 to a joule
    }
    std::map<std::pair<uint64_t, int>, uint64_t> counts;
    int open_error = 0;
    bool vanished = false;

    TemporaryFolder root;
    EnergyOptions options;
};

TEST_F(Sources, PerfAddsPackagesAndMemoryOfTwoSocketsButNotThePlatform) {
    perf_unit("0,18", {"energy-pkg", "energy-ram", "energy-psys"});
    count(2, 0, 7);
    const auto perf = meter("perf");
    perf->start();
    count(2, 0, 17);   // 10 J
    count(2, 18, 20);  // 20 J
    count(3, 0, 1);    // 1 J of memory
    count(3, 18, 2);   // 2 J
    count(4, 0, 500);  // contains them
    const auto energy = perf->stop();
    ASSERT_TRUE(energy.available()) << energy.reason;
    EXPECT_NEAR(*energy.value, 33, 1e-6);
    EXPECT_EQ(energy.provenance, Provenance::kMeasured);
    EXPECT_EQ(energy.systematic_ratio->high, 1.6);
    EXPECT_EQ(make_energy_meter([&] {
                  auto any = options;
                  any.source = "auto";
                  return any;
              }())
                  ->name(),
              "perf");
}

TEST_F(Sources, PerfCountsAnAmdSocketOnceWhateverItsDies) {
    perf_unit("0,8", {"energy-pkg"});
    for (const char* cpu : {"cpu0", "cpu8"})
        write(std::string("sys/devices/system/cpu/") + cpu + "/topology/physical_package_id", "0");
    write("proc/cpuinfo", "vendor_id\t: GenuineIntel");
    const auto energy = [&] {
        counts.clear();
        const auto perf = meter("perf");
        perf->start();
        count(2, 0, 10);
        count(2, 8, 10);
        return *perf->stop().value;
    };
    EXPECT_NEAR(energy(), 20, 1e-6) << "Intel counts per die";
    write("proc/cpuinfo", "vendor_id\t: AuthenticAMD");
    EXPECT_NEAR(energy(), 10, 1e-6);
}

TEST_F(Sources, PerfUsesThePlatformOnlyWithoutPackages) {
    perf_unit("0", {"energy-psys"});
    const auto perf = meter("perf");
    perf->start();
    count(2, 0, 4);
    EXPECT_NEAR(*perf->stop().value, 4, 1e-6);
}

TEST_F(Sources, PerfSaysWhatWouldEnableIt) {
    EXPECT_THAT(status("perf").reason, HasSubstr("shows no energy events"));
    EXPECT_THAT(status("perf").enable, HasSubstr("modprobe"));
    perf_unit("0", {"energy-pkg"});
    open_error = EACCES;
    EXPECT_THAT(status("perf").reason, HasSubstr("energy-pkg on CPU 0: Permission denied"));
    EXPECT_EQ(status("perf").enable, "sudo sysctl kernel.perf_event_paranoid=0");
    open_error = 0;
    write("sys/bus/event_source/devices/power/cpumask", "");
    EXPECT_THAT(status("perf").reason, HasSubstr("names no CPU"));
}

TEST_F(Sources, PerfEventsThatVanishOrStandStillAreNoZero) {
    perf_unit("0", {"energy-pkg"});
    const auto perf = meter("perf");
    perf->start();
    EXPECT_THAT(perf->read().reason, HasSubstr("did not move"));
    vanished = true;
    EXPECT_THAT(perf->stop().reason, HasSubstr("cannot be read any more"));
}

// ------------------------------------------------------------------------------------------------------ hwmon, battery

TEST_F(Sources, HwmonTakesTheMachinesMeterBeforeItsSockets) {
    write("sys/class/hwmon/hwmon0/name", "coretemp");
    write("sys/class/hwmon/hwmon1/name", "amd_energy");
    for (const auto& [number, label] :
         std::vector<std::pair<std::string, std::string>>{{"1", "Ecore000"}, {"2", "Esocket0"}, {"3", "Esocket1"}}) {
        write("sys/class/hwmon/hwmon1/energy" + number + "_label", label);
        write("sys/class/hwmon/hwmon1/energy" + number + "_input", "1000000");
    }
    const auto sockets = meter("hwmon");
    sockets->start();
    write("sys/class/hwmon/hwmon1/energy1_input", "9000000");  // inside a socket
    write("sys/class/hwmon/hwmon1/energy2_input", "3000000");
    write("sys/class/hwmon/hwmon1/energy3_input", "4000000");
    EXPECT_NEAR(*sockets->stop().value, 5, 1e-9);
    write("sys/class/hwmon/hwmon2/name", "power_meter");
    write("sys/class/hwmon/hwmon2/power1_average", "250000000");
    EXPECT_THAT(status("hwmon").reason, HasSubstr("hwmon of ACPI power meter hwmon2"));
    const auto machine = meter("hwmon");
    machine->start();
    const auto energy = machine->stop();  // microseconds at 250 W
    ASSERT_TRUE(energy.available()) << energy.reason;
    EXPECT_EQ(energy.provenance, Provenance::kDerived);
    write("sys/class/hwmon/hwmon2/power1_average", "n/a");
    EXPECT_THAT(status("hwmon").reason, HasSubstr("socket 0, socket 1")) << "a broken meter does not hide the others";
}

TEST_F(Sources, BatteryTellsOnlyWhileItDischarges) {
    EXPECT_THAT(status("battery").reason, HasSubstr("has no battery"));
    const std::string folder = "sys/class/power_supply/BAT0/";
    write(folder + "type", "Battery");
    write(folder + "status", "Charging");
    write(folder + "power_now", "12000000");
    EXPECT_THAT(status("battery").reason, HasSubstr("its status is \"Charging\""));
    EXPECT_FALSE(status("battery").enable.empty());
    write(folder + "status", "Discharging");
    EXPECT_TRUE(status("battery").usable);
    const auto battery = meter("battery");
    battery->start();
    EXPECT_TRUE(battery->read().available());
    write(folder + "status", "Full");  // plugged in meanwhile
    EXPECT_THAT(battery->stop().reason, HasSubstr("only a discharging battery"));
    // Without power_now: current x voltage.
    std::filesystem::remove(root / (folder + "power_now"));
    write(folder + "status", "Discharging");
    EXPECT_FALSE(status("battery").usable);
    write(folder + "current_now", "1000000");
    write(folder + "voltage_now", "11400000");
    EXPECT_TRUE(status("battery").usable);
}

// ------------------------------------------------------------------------------------------------------ external meter

TEST(MeteredEnergy, CutsTrapezoidsAtTheEdgesOfTheWindow) {
    // 100 W until 102 s, then a ramp to 200 W at 104 s; window from 100.5 to 103.
    const std::vector<std::pair<double, double>> series = {{99, 100},  {100, 100}, {101, 100},
                                                           {102, 100}, {103, 150}, {104, 200}};
    const auto energy = metered_energy(series, 100.5, 103);
    ASSERT_TRUE(energy.available()) << energy.reason;
    EXPECT_NEAR(*energy.value, 150 + 125, 1e-9);
    EXPECT_EQ(energy.provenance, Provenance::kDerived);
    EXPECT_NEAR(energy.interval->high - *energy.value, 25, 1e-9) << "the ramp may have been a step at either end";
}

TEST(MeteredEnergy, WhatItDidNotSeeIsUnavailable) {
    std::vector<std::pair<double, double>> series;
    for (int second = 100; second <= 200; ++second) series.emplace_back(second, 50);
    EXPECT_NEAR(*metered_energy(series, 110, 201.5).value, 91.5 * 50, 1e-9) << "a second behind, as such logs are";
    EXPECT_THAT(metered_energy(series, 99, 150).reason, HasSubstr("begins 1 s after the window"));
    EXPECT_THAT(metered_energy(series, 150, 210).reason, HasSubstr("ends 10 s before the window"));
    series.erase(series.begin() + 20, series.begin() + 30);
    EXPECT_THAT(metered_energy(series, 110, 150).reason, HasSubstr("gap of 11 s"));
    EXPECT_TRUE(metered_energy(series, 140, 150).available()) << "the gap lies outside";
    EXPECT_THAT(metered_energy({{1, 2}}, 1, 2).reason, HasSubstr("fewer than two readings"));
}

TEST_F(Sources, MeterCsvReadsTheFileWhenItIsAsked) {
    double now = 1000;
    options.unix_clock = [&now] { return now; };
    EXPECT_EQ(status("meter_csv").reason, "no file was named");
    options.meter_file = root / "meter.csv";
    EXPECT_THAT(status("meter_csv").reason, HasSubstr("cannot be opened"));
    write("meter.csv", "time,watts");
    EXPECT_THAT(status("meter_csv").reason, HasSubstr("holds no row"));
    write("meter.csv", "time,volts,watts\n999,230,60\n1000,230,60");
    const auto external = meter("meter_csv");
    external->start();
    write("meter.csv", "time,volts,watts\n999,230,60\n1000,230,60\n1001,230,60\n1002,230,60");
    now = 1002;
    EXPECT_NEAR(*external->stop().value, 120, 1e-9);
    write("meter.csv", "time,watts\n1000,60\n1001,sixty");
    EXPECT_THAT(external->stop().reason, HasSubstr("line 3: \"sixty\" is no number"));
}

}  // namespace
}  // namespace coppice::eval
