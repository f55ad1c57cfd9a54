// GPU energy, driven by a fake of both makers' libraries.
#include <coppice/eval.h>

#include <dlfcn.h>

#include <chrono>

#include "energy/polled.h"
#include "support/support.h"

namespace coppice::eval {
namespace {

using ::testing::HasSubstr;
using testing::TemporaryFolder;

class Gpus : public ::testing::Test {
protected:
    Gpus() : handle_(::dlopen(COPPICE_FAKE_GPU, RTLD_NOW | RTLD_LOCAL)) {
        options.nvml_library = options.amd_smi_library = COPPICE_FAKE_GPU;
        options.root = root.path();
        call<void()>("fake_reset")();
    }
    ~Gpus() override { ::dlclose(handle_); }

    template <typename Function>
    Function* call(const char* name) {
        return reinterpret_cast<Function*>(::dlsym(handle_, name));
    }
    void set(unsigned gpu, double joules, double watts) {
        call<void(unsigned, double, double)>("fake_set")(gpu, joules, watts);
    }
    void traits(unsigned gpu, bool counter, bool power, bool mig, bool lost) {
        call<void(unsigned, bool, bool, bool, bool)>("fake_traits")(gpu, counter, power, mig, lost);
    }
    EnergySourceStatus status(const std::string& name) {
        for (const auto& source : energy_sources())
            if (source.name == name) return source.probe(options);
        return {};
    }

    TemporaryFolder root;
    EnergyOptions options;

private:
    void* handle_;
};

TEST_F(Gpus, AreSummedByTheirEnergyCounters) {
    options.source = "nvml";
    set(0, 1000, 300);
    set(1, 5000, 100);
    const auto meter = make_energy_meter(options);
    meter->start();
    set(0, 1030, 300);
    set(1, 5010, 100);
    const auto energy = meter->stop();
    ASSERT_TRUE(energy.available()) << energy.reason;
    EXPECT_NEAR(*energy.value, 40, 1e-9);
    EXPECT_EQ(energy.provenance, Provenance::kMeasured);
    EXPECT_EQ(energy.systematic_ratio->low, 0.95);
    EXPECT_THAT(energy.method, HasSubstr("GPU 0 (Fake H100), GPU 1 (Fake H100)"));
    EXPECT_GE(meter->minimum_window_s(), 10);
}

TEST_F(Gpus, ACounterThatMovesInStepsIsUncertainByWhatOneHolds) {
    options.source = "nvml";
    options.gpus = {0};
    call<void(unsigned, double)>("fake_step")(0, 40);
    set(0, 1010, 300);
    const auto begin = std::chrono::steady_clock::now();
    const auto meter = make_energy_meter(options);
    meter->start();
    set(0, 1039, 300);
    EXPECT_THAT(meter->read().reason, HasSubstr("it moves every 0.1 s")) << "not 0 J";
    set(0, 1075, 300);
    const auto energy = meter->stop();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    ASSERT_TRUE(energy.available()) << energy.reason;
    EXPECT_NEAR(*energy.value, 40, 1e-9);
    // A tenth of a second at each edge, at the power that was seen: no less than 40 J over all the time of this test.
    ASSERT_TRUE(energy.interval);
    EXPECT_GE(energy.interval->high - 40, 0.1 * 40 / seconds);
}

TEST_F(Gpus, OnlyThoseNamedCount) {
    options.source = "nvml";
    options.gpus = {1};
    const auto meter = make_energy_meter(options);
    meter->start();
    set(0, 100, 0);
    set(1, 7, 0);
    EXPECT_NEAR(*meter->stop().value, 7, 1e-9);
}

TEST_F(Gpus, TheLibraryIsClosedAfterUse) {
    options.source = "nvml";
    {
        const auto meter = make_energy_meter(options);
        EXPECT_EQ(call<int()>("fake_open")(), 1);
    }
    EXPECT_EQ(call<int()>("fake_open")(), 0);
}

TEST_F(Gpus, NamesWhatIsMissing) {
    call<void(unsigned, int)>("fake_count")(0, 0);
    EXPECT_EQ(status("nvml").reason, "no device is visible");
    call<void(unsigned, int)>("fake_count")(2, 9);
    EXPECT_THAT(status("nvml").reason, HasSubstr("nvmlInit"));
    options.nvml_library = "libabsent.so.1";
    EXPECT_THAT(status("nvml").reason, HasSubstr("libabsent.so.1"));
    EXPECT_EQ(status("nvml").enable, "") << "there is no such GPU, so no driver would help";
    std::filesystem::create_directories(root / "sys/bus/pci/devices/0000:01:00.0");
    std::ofstream(root / "sys/bus/pci/devices/0000:01:00.0/vendor") << "0x10de\n";
    std::ofstream(root / "sys/bus/pci/devices/0000:01:00.0/class") << "0x030200\n";
    EXPECT_THAT(status("nvml").enable, HasSubstr("nvidia-driver"));
    EXPECT_FALSE(nvml_status("libabsent.so.1").usable);
}

TEST_F(Gpus, MigIsToldBecauseTheFigureIsOfAllInstances) {
    traits(0, true, true, true, false);
    EXPECT_THAT(status("nvml").reason, HasSubstr("GPU 0 (Fake H100): cut into MIG instances"));
    const auto devices = nvml_status(COPPICE_FAKE_GPU).devices;
    ASSERT_EQ(devices.size(), 2);
    EXPECT_TRUE(devices[0].mig);
    EXPECT_FALSE(devices[1].mig);
    EXPECT_EQ(nvml_status(COPPICE_FAKE_GPU).driver, "555.42");
}

TEST_F(Gpus, ALostGpuTakesTheFigureWithItAndNotTheRun) {
    options.source = "nvml";
    const auto meter = make_energy_meter(options);
    meter->start();
    set(0, 30, 100);
    set(1, 30, 100);
    EXPECT_TRUE(meter->read().available());
    traits(1, true, true, false, /*lost=*/true);
    const auto energy = meter->stop();
    EXPECT_FALSE(energy.available());
    EXPECT_THAT(energy.reason, HasSubstr("GPU 1 (Fake H100): the GPU was lost: GPU is lost"));
}

TEST_F(Gpus, ADriverThatWasReloadedResetsItsCounter) {
    options.source = "nvml";
    set(0, 500, 0);
    const auto meter = make_energy_meter(options);
    meter->start();
    set(0, 3, 0);
    EXPECT_THAT(meter->stop().reason, HasSubstr("went back from 500 to 3 J"));
}

TEST_F(Gpus, AmdTicksAreTurnedIntoJoules) {
    options.source = "amd_smi";
    options.gpus = {0};
    set(0, 1000, 0);
    const auto meter = make_energy_meter(options);
    meter->start();
    set(0, 1100, 0);
    const auto energy = meter->stop();
    ASSERT_TRUE(energy.available()) << energy.reason;
    EXPECT_NEAR(*energy.value, 100, 1e-3);  // two ticks of 15.3 uJ, and a resolution in single precision
    traits(0, false, false, false, false);
    EXPECT_THAT(status("amd_smi").reason, HasSubstr("amdsmi_get_energy_count: error"));
}

TEST_F(Gpus, AreAddedToTheMachineWhereTheyAreAskedFor) {
    options.cpu_watts_per_core = 10;
    double cpu = 0;
    options.cpu_clock = [&cpu] { return cpu; };
    EXPECT_EQ(make_energy_meter(options)->name(), "cpu_time")
        << "GPUs that a CPU model does not use are not its energy";
    options.source = "cpu_time+nvml";
    const auto meter = make_energy_meter(options);
    EXPECT_EQ(meter->name(), "cpu_time+nvml");
    meter->start();
    cpu = 2;
    set(0, 5, 0);
    set(1, 6, 0);
    const auto energy = meter->stop();
    ASSERT_TRUE(energy.available()) << energy.reason;
    EXPECT_NEAR(*energy.value, 20 + 11, 1e-9);
    EXPECT_EQ(energy.provenance, Provenance::kModelled) << "the weaker of the two";
    options.source = "auto";
    options.with_gpus = true;
    EXPECT_EQ(make_energy_meter(options)->name(), "cpu_time+nvml+amd_smi");
    options.source = "cpu_time+nvlm";
    EXPECT_ERROR(make_energy_meter(options), InvalidArgument, "Did you mean \"nvml\"?");
}

// A device in simulated time.
struct Simulated {
    double joules = 0, watts = 0;
    bool has_counter = true, fails = false;
    Device device() {
        Device device;
        device.name = "GPU";
        if (has_counter)
            device.joules = [this] {
                return fails ? Reading{std::nullopt, "gone", false} : Reading{joules, "", false};
            };
        device.watts = [this] { return fails ? Reading{std::nullopt, "gone", false} : Reading{watts, "", false}; };
        return device;
    }
};
const DeviceOptions kCoarse{.what = "test", .update_seconds = 0.1, .stall_seconds = 5, .poll_seconds = 0.5};

TEST(DeviceReader, ACoarseCounterIsUncertainByOneStepAtEachEdge) {
    Simulated gpu;
    DeviceReader reader({gpu.device()}, kCoarse);
    reader.start(0.03);
    // 200 W, but the counter moves every 0.1 s: at 2.06 s it stands where it was at 2.0.
    for (int i = 1; i <= 20; ++i) {
        gpu.joules = 200 * (0.1 * i);
        if (i % 5 == 0) reader.sample(0.1 * i);
    }
    reader.sample(2.06);
    const auto energy = reader.total(2.06);
    ASSERT_TRUE(energy.available()) << energy.reason;
    const double truth = 200 * 2.03;
    EXPECT_NE(*energy.value, truth);
    EXPECT_LE(energy.interval->low, truth);
    EXPECT_GE(energy.interval->high, truth);
    EXPECT_LE(energy.interval->high - energy.interval->low, 2 * 0.5 * 200 + 5) << "and by no more than a poll";
}

TEST(DeviceReader, ShorterThanAStepIsUnavailableNotZero) {
    Simulated gpu;
    DeviceReader reader({gpu.device()}, kCoarse);
    reader.start(0);
    reader.sample(0.02);
    EXPECT_THAT(reader.total(0.02).reason, HasSubstr("moves every 0.1 s"));
    reader.sample(6);
    gpu.joules = 50;  // too late
    reader.sample(6.5);
    EXPECT_THAT(reader.total(6.5).reason, HasSubstr("did not move in 6 s"));
}

TEST(DeviceReader, FlagsAnAveragePowerThatDisagrees) {
    for (const double watts : {100.0, 94.0, 104.0, 120.0}) {  // the counter says 100
        Simulated gpu;
        gpu.watts = watts;
        DeviceReader reader({gpu.device()}, kCoarse);
        reader.start(0);
        for (int second = 1; second <= 12; ++second) {
            gpu.joules = 100.0 * second;
            reader.sample(second);
        }
        const auto energy = reader.total(12);
        EXPECT_NEAR(*energy.value, 1200, 1e-9) << "the counter counts";
        if (std::abs(watts - 100) > 5)
            EXPECT_THAT(
                energy.method,
                HasSubstr(watts > 100 ? "flagged: GPU by its power would be 1.44e+03 J, 20 % more" : "6 % less"));
        else
            EXPECT_THAT(energy.method, ::testing::Not(HasSubstr("flagged"))) << watts;
    }
}

TEST(DeviceReader, IntegratesPowerWhereThereIsNoCounter) {
    Simulated gpu;
    gpu.has_counter = false;
    DeviceReader reader({gpu.device()}, kCoarse);
    reader.start(10);
    for (int i = 1; i <= 8; ++i) {  // a ramp from 0 to 80 W over 8 s
        gpu.watts = 10 * i;
        reader.sample(10 + i);
    }
    const auto energy = reader.total(18);
    EXPECT_NEAR(*energy.value, 320, 1e-9);
    EXPECT_EQ(energy.provenance, Provenance::kDerived);
    gpu.fails = true;
    reader.sample(19);
    EXPECT_EQ(reader.total(19).reason, "GPU: gone");
}

}  // namespace
}  // namespace coppice::eval
