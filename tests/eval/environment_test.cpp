#include <coppice/eval.h>
#include <coppice/report.h>

#include <fstream>

#include "support/support.h"

namespace coppice::eval {
namespace {

TEST(Environment, ReadsTheMachineBelowARoot) {
    const testing::TemporaryFolder root;
    const auto write = [&](const std::string& name, const std::string& text) {
        std::filesystem::create_directories((root / name).parent_path());
        std::ofstream(root / name) << text;
    };
    write("proc/cpuinfo",
          "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz\n"
          "flags\t\t: fpu avx2 avx512f avx512_vnni hypervisor\nprocessor\t: 1\nmodel name\t: other\n");
    write("proc/meminfo", "MemTotal:       16384 kB\nMemFree: 3 kB\n");
    write("proc/sys/kernel/osrelease", "6.1.0-25-amd64\n");
    write("proc/1/cgroup", "0::/kubepods/burstable/pod1\n");
    write("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n");
    const auto machine = environment(root.path());
    EXPECT_EQ(machine.cpu, "Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz");
    EXPECT_THAT(machine.flags, ::testing::ElementsAre("avx2", "avx512f", "avx512_vnni"));
    EXPECT_TRUE(machine.virtual_machine);
    EXPECT_EQ(machine.container, "kubepods");
    EXPECT_EQ(machine.governor, "performance");
    EXPECT_EQ(machine.kernel, "6.1.0-25-amd64");
    EXPECT_EQ(machine.memory_bytes, 16384 * 1024);
    EXPECT_EQ(machine.smt, std::nullopt) << "the kernel did not say";
    write("sys/devices/system/cpu/smt/active", "1\n");
    EXPECT_EQ(environment(root.path()).smt, true);
}

TEST(Environment, WhatIsUnknownIsNull) {
    const testing::TemporaryFolder root;
    const auto json = environment(root.path()).to_json();
    EXPECT_TRUE(json["governor"].is_null());
    EXPECT_TRUE(json["container"].is_null());
    EXPECT_TRUE(json["memory_bytes"].is_null());
    EXPECT_EQ(json["virtual_machine"], false);
}

TEST(Environment, DescribesThisMachine) {
    const auto machine = environment();
    EXPECT_FALSE(machine.cpu.empty());
    EXPECT_GE(machine.cores, 1);
    EXPECT_GE(machine.threads, 1);
    EXPECT_THAT(machine.affinity, ::testing::MatchesRegex("[0-9]+([-,][0-9]+)*"));
    EXPECT_THAT(machine.libtorch, ::testing::StartsWith("2."));
    EXPECT_FALSE(machine.engine.empty());
    for (const char* key : {"cpu", "flags", "cores", "threads", "libtorch", "engine", "kernel", "virtual_machine",
                            "governor", "smt", "affinity"})
        EXPECT_TRUE(machine.to_json().contains(key)) << key;
}

TEST(Environment, NamesWhatDiffers) {
    auto machine = environment();
    auto other = machine;
    EXPECT_TRUE(environment_differences(machine.to_json(), other.to_json()).empty());
    other.threads += 1;
    other.kernel = "another";
    other.memory_bytes += 1;  // no figure depends on it
    EXPECT_THAT(environment_differences(machine.to_json(), other.to_json()),
                ::testing::ElementsAre("threads", "kernel"));
    auto older = machine.to_json();
    older.erase("malloc");
    older["smt"] = "another";
    EXPECT_THAT(environment_differences(older, machine.to_json()), ::testing::ElementsAre("smt"));
}

TEST(Environment, TellsWhatTheAllocatorWasTold) {
    ::unsetenv("MALLOC_TRIM_THRESHOLD_");
    const auto plain = environment().malloc;
    ::setenv("MALLOC_TRIM_THRESHOLD_", "1048576", 1);
    EXPECT_THAT(environment().malloc, ::testing::HasSubstr("MALLOC_TRIM_THRESHOLD_=1048576"));
    ::unsetenv("MALLOC_TRIM_THRESHOLD_");
    EXPECT_EQ(environment().malloc, plain);
}

}  // namespace
}  // namespace coppice::eval
