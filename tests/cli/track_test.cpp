// coppice track, as a user runs it.
#include "program.h"

#include <csignal>
#include <fstream>

namespace coppice {
namespace {

using namespace coppice::testing;
using ::testing::HasSubstr;

class TrackTest : public ::testing::Test {
protected:
    Outcome track(std::vector<std::string> options, const std::vector<std::string>& command) {
        options.insert(options.begin(), "track");
        options.emplace_back("--");
        options.insert(options.end(), command.begin(), command.end());
        return run_program(options, folder.path());
    }
    Json record() { return Json::parse(read_text(folder / "run.json")); }
    TemporaryFolder folder;
};

TEST_F(TrackTest, PassesOnOutputInputAndExitCode) {
    const auto outcome = track({"--energy", "cpu_time"}, {"sh", "-c", "echo out; echo err >&2; exit 7"});
    EXPECT_EQ(outcome.code, 7);
    EXPECT_EQ(outcome.out, "out\n") << "stdout is the command's alone";
    EXPECT_THAT(outcome.err, HasSubstr("err\n"));
    EXPECT_THAT(outcome.err, HasSubstr("sh ended with code 7"));
    EXPECT_THAT(outcome.err, ::testing::ContainsRegex("modelled|assumed"));
    EXPECT_THAT(outcome.err, HasSubstr("not in the energy above"));
    EXPECT_EQ(track({"-q"}, {"sh", "-c", "kill -9 $$"}).code, 128 + SIGKILL);
    EXPECT_EQ(track({"-q"}, {"true"}).err, "");
}

TEST_F(TrackTest, OptionsBehindTheDashesAreTheCommands) {
    const auto outcome = track({"-q"}, {"echo", "--json", "-q", "--", "x"});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(outcome.out, "--json -q -- x\n");
}

TEST_F(TrackTest, CountsTheWholeTree) {
    // The work is done by a grandchild that its parent does not wait for.
    const auto outcome = track(
        {"-q",   "--energy",  "cpu_time", "--cpu-watts-per-core",
         "10",   "--grid",    "360",      "--pue",
         "2",    "--json",    "run.json", "--interval",
         "0.1",  "--project", "p",        "--tag",
         "a",    "--tag",     "b",        "--price",
         "0.36", "--user",    "anna"},
        {"sh", "-c",
         "(i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; : > done) & while [ ! -e done ]; do sleep 0.05; done"});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const auto json = record();
    const double cpu = json["cpu_seconds"]["value"], joules = json["energy_j"]["value"];
    EXPECT_GT(cpu, 0.005) << "100,000 rounds of a shell";
    EXPECT_NEAR(joules, 10 * cpu, 0.3 + 0.01 * joules) << "ticks of 10 ms between the two looks at /proc";
    EXPECT_NEAR(json["carbon_g"]["value"].get<double>(), joules * 2 * 360 / 3.6e6, 1e-9);
    EXPECT_NEAR(json["cost"]["value"].get<double>(), joules * 2 * 0.36 / 3.6e6, 1e-12);
    EXPECT_EQ(json["energy_j"]["provenance"], "modelled");
    EXPECT_EQ(json["exit_code"], 0);
    EXPECT_EQ(json["project"], "p");
    EXPECT_EQ(json["user"], "anna");
    EXPECT_EQ(json["tags"], Json({"a", "b"}));
    EXPECT_TRUE(json["peak_memory_bytes"]["value"].is_null() || json["peak_memory_bytes"]["value"] > 100000);
    EXPECT_EQ(json["net_energy_j"]["value"], json["energy_j"]["value"]) << "the model has no idle draw in it";
    EXPECT_EQ(json["net_energy_j"]["provenance"], "modelled");
    EXPECT_TRUE(json["idle"].is_null()) << "it was not asked for";
    EXPECT_NEAR(json["memory_energy_j"]["value"].get<double>(),
                json["seconds"]["value"].get<double>() * 0.3725e-9 * json["environment"]["memory_bytes"].get<double>(),
                1e-6)
        << "beside the energy, not in it";
}

TEST_F(TrackTest, AppendsEmissionsAndWritesTheCardField) {
    for (int i = 0; i < 2; ++i)
        ASSERT_EQ(track({"-q", "--energy", "cpu_time", "--csv", "emissions.csv", "--card", "card.yaml"}, {"true"}).code,
                  0);
    const auto text = read_text(folder / "emissions.csv");
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3);
    EXPECT_EQ(text.rfind("timestamp,project_name,run_id,experiment_id,duration,emissions,", 0), 0);
    EXPECT_THAT(read_text(folder / "card.yaml"), HasSubstr("co2_eq_emissions:\n  emissions: "));
}

TEST_F(TrackTest, ReadsAnExternalMeter) {
    // Readings of 50 W that begin long before and end long after.
    std::ofstream(folder / "meter.csv") << "time,watts\n1000000000,50\n4000000000,50\n";
    const auto outcome = track({"-q", "--meter", "meter.csv", "--json", "run.json"}, {"sleep", "0.2"});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const auto json = record();
    EXPECT_EQ(json["source"], "meter_csv");
    const double joules = json["energy_j"]["value"], seconds = json["seconds"]["value"];
    EXPECT_GE(joules, 50 * 0.2) << "it slept for so long, at least";
    EXPECT_LE(joules, 50 * seconds + 1e-6) << "the meter's window lies inside that of the wall clock";
    EXPECT_EQ(json["energy_j"]["provenance"], "derived");
}

TEST_F(TrackTest, AccountsInMoneyAndInTheTermsOfStandards) {
    std::ofstream(folder / "meter.csv") << "time,watts\n1000000000,36\n4000000000,36\n";
    const auto outcome = track({"--meter",
                                "meter.csv",
                                "--json",
                                "run.json",
                                "--grid",
                                "500",
                                "--pue",
                                "1.5",
                                "--price",
                                "0.3",
                                "--carbon-price",
                                "100",
                                "--embodied-kg",
                                "1461",
                                "--lifetime-years",
                                "4",
                                "--machine-share",
                                "0.5",
                                "--units",
                                "8",
                                "--unit",
                                "epoch",
                                "--green-algorithms",
                                "--memory-gb",
                                "16",
                                "--psf",
                                "2"},
                               {"sleep", "0.1"});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const auto json = record();
    const double joules = json["energy_j"]["value"], seconds = json["seconds"]["value"];
    const double grams = joules * 1.5 * 500 / 3.6e6;
    EXPECT_NEAR(json["carbon_g"]["value"].get<double>(), grams, 1e-12);
    // 0.45 per kWh with the PUE, 100 per tonne.
    EXPECT_NEAR(json["cost"]["value"].get<double>(), joules * 0.45 / 3.6e6 + grams * 1e-4, 1e-12);
    EXPECT_EQ(json["cost"]["unit"], "EUR");
    // Four years are 1461 days: 1 kg a day, half of it for the machine's share; 8 epochs.
    const double embodied = 1000.0 / 86400 * seconds * 0.5;
    EXPECT_NEAR(json["sci_g"]["value"].get<double>(), (grams + embodied) / 8, 1e-12);
    EXPECT_EQ(json["sci_g"]["provenance"], "assumed");
    const auto& green = json["green_algorithms"];
    const std::string method = green["energy_j"]["method"];
    EXPECT_THAT(method, HasSubstr("16 GB x 0.3725 W) x PUE 1.5 x PSF 2.0"));
    // Memory alone draws 5.96 W; sleeping cores add next to nothing.
    EXPECT_GE(green["energy_j"]["value"].get<double>(), seconds * 16 * 0.3725 * 1.5 * 2 - 1e-9);
    EXPECT_NEAR(green["carbon_g"]["value"].get<double>(), green["energy_j"]["value"].get<double>() * 500 / 3.6e6,
                1e-12);
    for (const char* part : {"cost", "SCI", "R = 8.0 epoch", "Green Algorithms"})
        EXPECT_THAT(outcome.err, HasSubstr(part));
}

TEST_F(TrackTest, LooksAtTheIdleMachineBeforeAndAfter) {
    const auto outcome = track({"--energy", "cpu_time", "--idle", "0.1", "--json", "run.json"}, {"true"});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const auto json = record();
    for (const char* when : {"before", "after"}) {
        const auto& idle = json["idle"][when];
        EXPECT_GE(idle["seconds"]["value"].get<double>(), 0.1) << when;
        EXPECT_THAT(idle["power_w"]["reason"].get<std::string>(), HasSubstr("cpu_time counts busy time only"));
        const auto& others = idle["others_ratio"]["value"];
        EXPECT_TRUE(others.is_null() || (others >= 0.0 && others <= 1.0)) << others;
    }
    EXPECT_TRUE(json["idle_power_w"]["value"].is_null());
}

TEST_F(TrackTest, PassesOnSignals) {
    Program program({"track", "-q", "--json", "run.json", "--", "sh", "-c",
                     "trap 'exit 5' TERM; : > ready; while :; do sleep 0.05; done"},
                    folder.path());
    ASSERT_TRUE(program.wait_until([&] { return std::filesystem::exists(folder / "ready"); }));
    program.signal(SIGTERM);
    EXPECT_EQ(program.wait().code, 5);
    EXPECT_EQ(record()["exit_code"], 5) << "and still tells what was spent";
}

TEST_F(TrackTest, ASignalThatComesBeforeTheCommandStartsIsNotLost) {
    Program program({"track", "-q", "--json", "run.json", "--", "sleep", "600"}, folder.path());
    // Its handler is there, the command may not be: bit 14 of the signals that are caught is SIGTERM.
    ASSERT_TRUE(program.wait_until([&] {
        std::ifstream status("/proc/" + std::to_string(program.pid()) + "/status");
        for (std::string line; std::getline(status, line);)
            if (line.rfind("SigCgt:", 0) == 0) return (std::stoull(line.substr(7), nullptr, 16) >> 14 & 1) == 1;
        return false;
    }));
    program.signal(SIGTERM);
    EXPECT_EQ(program.wait().code, 128 + SIGTERM);
    EXPECT_EQ(record()["exit_code"], 128 + SIGTERM);
}

TEST_F(TrackTest, WhereNothingCanBeWrittenTheCommandIsNotStarted) {
    std::ofstream(folder / "other.csv") << "timestamp,project_name\n";
    const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
        {{"--csv", "other.csv"}, "begins with other columns"},
        {{"--csv", "no/such.csv"}, "cannot be opened"},
        {{"--json", "no/such.json"}, "its folder does not exist"},
        {{"--card", "no/such.yaml"}, "its folder does not exist"}};
    for (const auto& [options, text] : cases) {
        const auto outcome = track(options, {"touch", "started"});
        EXPECT_EQ(outcome.code, 1) << text;
        EXPECT_THAT(outcome.err, HasSubstr(text));
        EXPECT_FALSE(std::filesystem::exists(folder / "started")) << text;
    }
    EXPECT_EQ(read_text(folder / "other.csv"), "timestamp,project_name\n");
}

TEST_F(TrackTest, NamesMistakes) {
    const auto check = [&](const std::vector<std::string>& arguments, int code, const std::string& text) {
        const auto outcome = run_program(arguments, folder.path());
        EXPECT_EQ(outcome.code, code) << text;
        EXPECT_THAT(outcome.err, HasSubstr(text));
    };
    check({"track"}, 2, "no command is given. Write coppice track -- python train.py.");
    check({"track", "python", "x.py"}, 2, "the command must stand behind --. Write coppice track -- python ...");
    check({"track", "--", "no-such-program-here"}, 127, "cannot run no-such-program-here: No such file or directory");
    check({"track", "--", "/"}, 126, "Permission denied");
    check({"track", "--carbon-price", "80", "--", "true"}, 2,
          "--carbon-price says nothing without --price. Add --price.");
    check({"track", "--embodied-kg", "x", "--", "true"}, 2, "--embodied-kg is \"x\", must be a number of at least 0");
    check({"track", "--embodied-kg", "1", "--machine-share", "2", "--", "true"}, 2,
          "--machine-share must be in (0, 1]");
    check({"track", "--units", "0", "--", "true"}, 2, "--units must be above 0");
    check({"track", "--pue", "0.5", "--", "true"}, 2, "must be at least 1");
    check({"track", "--grid", "XX", "--", "true"}, 2, "unknown zone");
    check({"track", "--energy", "rapll", "--", "true"}, 2, "Did you mean \"rapl\"?");
    check({"track", "--pue", "x", "--", "true"}, 2, "--pue is \"x\"");
}

}  // namespace
}  // namespace coppice
