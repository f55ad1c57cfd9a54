#include <coppice/track.h>

#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <thread>

#include "support/support.h"

namespace coppice::eval {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

// A log whose energy is 10 J per second of a clock that the test moves.
struct Clock {
    double cpu = 0;
    std::shared_ptr<EnergyLog> log = make();

private:
    std::shared_ptr<EnergyLog> make() {
        EnergyOptions options;
        options.source = "cpu_time";
        options.cpu_watts_per_core = 10;
        options.cpu_clock = [this] { return cpu; };
        return std::make_shared<EnergyLog>(options, grid_of("360"), 2.0);
    }
};

TEST(EnergyWindow, NestsAndNamesItsPlace) {
    Clock clock;
    {
        const EnergyWindow train(clock.log, "train");
        for (const char* name : {"epoch 1", "epoch 2"}) {
            const EnergyWindow epoch(clock.log, name);
            clock.cpu += 3;
        }
        clock.cpu += 1;
    }
    const EnergyWindow test(clock.log, "test");
    const auto finished = clock.log->finished();
    ASSERT_EQ(finished.size(), 3);
    EXPECT_EQ(finished[0].name, "train/epoch 1");
    EXPECT_EQ(finished[1].name, "train/epoch 2");
    EXPECT_EQ(finished[2].name, "train");
    EXPECT_NEAR(*finished[0].energy_j.value, 30, 1e-9);
    EXPECT_NEAR(*finished[2].energy_j.value, 70, 1e-9);
    EXPECT_NEAR(*finished[2].carbon_g.value, 70 / 3.6e6 * 360 * 2, 1e-12);
    EXPECT_NEAR(*finished[2].cpu_s.value, 7, 1e-9);
    EXPECT_EQ(finished[2].energy_j.provenance, Provenance::kModelled);
    EXPECT_EQ(finished[2].to_json()["energy_j"]["unit"], "J");
}

TEST(EnergyWindow, StopsOnce) {
    Clock clock;
    EnergyWindow window(clock.log, "a");
    clock.cpu = 2;
    EXPECT_NEAR(*window.read().energy_j.value, 20, 1e-9);
    const auto first = window.stop();
    clock.cpu = 5;
    EXPECT_EQ(*window.stop().energy_j.value, *first.energy_j.value);
    EXPECT_EQ(*window.read().energy_j.value, *first.energy_j.value);
    EXPECT_EQ(clock.log->finished().size(), 1);
}

TEST(EnergyWindow, SeveralMayRunInSeveralThreads) {
    Clock clock;
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; ++i)
        threads.emplace_back([&clock, i] {
            for (int j = 0; j < 20; ++j) {
                EnergyWindow outer(clock.log, "thread " + std::to_string(i));
                const EnergyWindow inner(clock.log, "step");
            }
        });
    for (auto& thread : threads) thread.join();
    const auto finished = clock.log->finished();
    ASSERT_EQ(finished.size(), 8 * 20 * 2);
    for (const auto& usage : finished)
        EXPECT_EQ(usage.name.find("thread "), 0) << "no window of another thread is around it";
}

TEST(EnergyLog, RefusesAnUnknownSource) {
    EnergyOptions options;
    options.source = "raplx";
    EXPECT_ERROR(EnergyLog{options}, InvalidArgument, "Did you mean \"rapl\"?");
}

TEST(ProcessTree, AddsDescendantsOnly) {
    const TemporaryFolder proc;
    // pid, parent, utime + stime + cutime + cstime in ticks, resident and shared pages
    const auto process = [&](int pid, int parent, const std::string& name, int ticks, int resident, int shared) {
        const auto folder = proc / std::to_string(pid);
        std::filesystem::create_directories(folder);
        std::ofstream(folder / "stat") << pid << " (" << name << ") S " << parent << " 1 1 0 -1 4194304 1 2 3 4 "
                                       << ticks << " " << ticks << " " << ticks << " " << ticks << " 20 0 1 0 100 0 0";
        std::ofstream(folder / "statm") << 1000 << " " << resident << " " << shared << " 1 0 1 0";
    };
    process(100, 1, "coppice", 1000, 5000, 0);
    process(200, 100, "sh (a) b) S 1 1", 25, 100, 60);  // a name that looks like fields
    process(201, 200, "python", 50, 300, 80);
    process(202, 201, "worker", 75, 70, 90);  // counters a moment apart: shared above resident
    process(300, 1, "other", 9999, 9999, 0);
    std::filesystem::create_directories(proc / "self");
    std::filesystem::create_directories(proc / "203");  // ended while it was looked at
    const auto sample = ProcessTree(proc.path()).sample(100);
    const double ticks = static_cast<double>(::sysconf(_SC_CLK_TCK));
    EXPECT_EQ(sample.processes, 3);
    EXPECT_NEAR(sample.cpu_s, 4 * (25 + 50 + 75) / ticks, 1e-9);
    EXPECT_EQ(sample.memory_bytes, (40 + 220 + 90) * ::sysconf(_SC_PAGESIZE))
        << "own pages, and the largest shared part";
}

TrackRecord sample_record() {
    TrackRecord record;
    record.project = "a, b";
    record.user = "anna";
    record.run_id = "1234";
    record.tags = {"x", "y"};
    record.usage.started = 1767225600;
    record.usage.seconds = Figure::measured(100, "s", "clock");
    record.usage.cpu_s = Figure::measured(150, "s", "CPU");
    record.usage.energy_j =
        Figure::modelled(7.2e6, "J", "seconds x \"watts\", per core", std::nullopt, Interval{0.5, 3});
    record.usage.power_w = Figure::modelled(7.2e4, "W", "energy / time");
    record.usage.carbon_g = Figure::assumed(240, "g", "energy x grid");
    record.peak_memory_bytes = Figure::measured(1 << 30, "B", "statm");
    record.net_energy_j = Figure::unavailable("J", "no idle power");
    record.memory_energy_j = Figure::modelled(23, "J", "time x 16 GB x 0.3725 W/GB");
    record.idle_power_w = Figure::unavailable("W", "no idle power");
    record.environment = environment();
    record.source = "cpu_time";
    record.version = "0.1.0";
    record.grid = grid_of("FR");
    record.exit_code = 3;
    return record;
}

// Fields of one CSV line, quotes taken off.
std::vector<std::string> fields(const std::string& line) {
    std::vector<std::string> cells(1);
    bool quoted = false;
    for (size_t i = 0; i < line.size(); ++i) {
        if (line[i] == '"' && quoted && i + 1 < line.size() && line[i + 1] == '"')
            cells.back() += line[i++];
        else if (line[i] == '"')
            quoted = !quoted;
        else if (line[i] == ',' && !quoted)
            cells.emplace_back();
        else
            cells.back() += line[i];
    }
    return cells;
}

std::vector<std::vector<std::string>> rows_of(const std::filesystem::path& path) {
    std::istringstream text(read_text(path));
    std::vector<std::vector<std::string>> rows;
    for (std::string line; std::getline(text, line);) rows.push_back(fields(line));
    return rows;
}

TEST(EmissionsCsv, HasCodeCarbonsColumnsAndThenItsOwn) {
    const TemporaryFolder folder;
    append_emissions(folder / "emissions.csv", sample_record());
    const auto rows = rows_of(folder / "emissions.csv");
    ASSERT_EQ(rows.size(), 2);
    ASSERT_EQ(rows[0], emissions_columns());
    ASSERT_EQ(rows[1].size(), rows[0].size());
    std::map<std::string, std::string> cell;
    for (size_t i = 0; i < rows[0].size(); ++i) cell[rows[0][i]] = rows[1][i];
    EXPECT_EQ(rows[0][0], "timestamp");
    EXPECT_EQ(rows[0][37], "wue") << "38 columns are CodeCarbon's";
    EXPECT_EQ(cell["project_name"], "a, b");
    EXPECT_EQ(cell["energy_consumed"], "2.0");  // kWh
    EXPECT_EQ(cell["emissions"], "0.24");       // kg
    EXPECT_EQ(cell["duration"], "100.0");
    EXPECT_EQ(std::stod(cell["emissions_rate"]), 0.0024);
    EXPECT_EQ(cell["energy_provenance"], "modelled");
    EXPECT_EQ(cell["energy_method"], "seconds x \"watts\", per core");
    EXPECT_EQ(cell["energy_low"], "1.0");
    EXPECT_EQ(cell["energy_high"], "6.0");
    EXPECT_EQ(cell["country_iso_code"], "FR");
    EXPECT_EQ(cell["gpu_energy"], "") << "unknown is empty, never 0";
    EXPECT_EQ(cell["exit_code"], "3");
    EXPECT_EQ(cell["tags"], "x;y");
    EXPECT_EQ(cell["user"], "anna");
}

TEST(EmissionsCsv, IsAppendedToSafely) {
    const TemporaryFolder folder;
    const auto path = folder / "emissions.csv";
    append_emissions(path, sample_record());
    append_emissions(path, sample_record());
    EXPECT_EQ(rows_of(path).size(), 3);
    std::ofstream(path, std::ios::app) << "2026-01-01T00:00:00,cut o";  // killed within a row
    append_emissions(path, sample_record());
    const auto rows = rows_of(path);
    ASSERT_EQ(rows.size(), 5);
    EXPECT_EQ(rows[4].size(), rows[0].size());
    std::ofstream(folder / "other.csv") << "timestamp,project_name\n";
    EXPECT_ERROR(append_emissions(folder / "other.csv", sample_record()), IoError, "other columns");
    EXPECT_EQ(read_text(folder / "other.csv"), "timestamp,project_name\n");
    EXPECT_ERROR(append_emissions(folder / "no/such.csv", sample_record()), IoError, "cannot be opened");
    EXPECT_ERROR(check_emissions(folder / "other.csv"), IoError, "other columns");
    EXPECT_ERROR(check_emissions(folder / "no/such.csv"), IoError, "cannot be opened");
    EXPECT_NO_THROW(check_emissions(path));
    EXPECT_NO_THROW(check_emissions(folder / "new.csv"));
    append_emissions(folder / "new.csv", sample_record());
    EXPECT_EQ(rows_of(folder / "new.csv").size(), 2) << "the look before left an empty file, not a second header";
}

TEST(EmissionsCsv, TakesRowsFromSeveralProcessesAtOnce) {
    const TemporaryFolder folder;
    const auto path = folder / "emissions.csv";
    const auto record = sample_record();
    std::vector<pid_t> children;
    for (int i = 0; i < 4; ++i) {
        const pid_t child = ::fork();
        if (child == 0) {
            for (int j = 0; j < 10; ++j) append_emissions(path, record);
            ::_exit(0);
        }
        children.push_back(child);
    }
    for (const auto child : children) ::waitpid(child, nullptr, 0);
    const auto rows = rows_of(path);
    ASSERT_EQ(rows.size(), 41);
    for (size_t i = 1; i < rows.size(); ++i) {
        EXPECT_EQ(rows[i].size(), rows[0].size());
        EXPECT_NE(rows[i][0], "timestamp") << "one header";
    }
}

TEST(ModelCard, HasGramsSourcePlaceAndHardware) {
    const auto json = co2_eq_emissions(sample_record());
    EXPECT_EQ(json["emissions"], 240);
    EXPECT_EQ(json["source"], "Coppice 0.1.0, energy modelled (cpu_time)");
    EXPECT_EQ(json["geographical_location"], "FR");
    EXPECT_THAT(model_card_field(sample_record()), HasSubstr("co2_eq_emissions:\n  emissions: 240"));
    auto unknown = sample_record();
    unknown.usage.carbon_g = Figure::unavailable("g", "no counter");
    EXPECT_TRUE(co2_eq_emissions(unknown)["emissions"].is_null());
}

TEST(TrackRecord, HasEveryFigureWithItsProvenance) {
    const auto json = sample_record().to_json();
    EXPECT_EQ(json["format"], "coppice-track");
    EXPECT_EQ(json["version"], 1);
    for (const char* name : {"seconds", "cpu_seconds", "energy_j", "power_w", "carbon_g", "peak_memory_bytes",
                             "idle_power_w", "net_energy_j", "memory_energy_j"})
        EXPECT_NO_THROW(Figure::from_json(json[name])) << name;
    EXPECT_EQ(json["net_energy_j"]["reason"], "no idle power");
}

}  // namespace
}  // namespace coppice::eval
