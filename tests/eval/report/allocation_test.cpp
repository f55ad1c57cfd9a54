// Cost allocation: sums by hand over runs, records of coppice track and emissions.csv.
#include <fstream>

#include <coppice/allocation.h>

#include "eval/report/sample.h"
#include "report/text.h"
#include "support/schema.h"
#include "support/support.h"

namespace coppice::eval {
namespace {

namespace fs = std::filesystem;
using coppice::testing::sample_figure;
using coppice::testing::sample_unavailable;
using coppice::testing::schema_violations;
using coppice::testing::TemporaryFolder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

void write(const fs::path& file, const Json& json) {
    fs::create_directories(file.parent_path());
    std::ofstream(file) << json;
}

void write_run(const fs::path& folder, const Json& owner, const std::vector<double>& joules) {
    Json manifest = {{"format", "coppice-run"}, {"version", 1}};
    manifest.update(owner);
    write(folder / "manifest.json", manifest);
    // The baseline's own "compression" must not count: nothing was made.
    write(folder / "00-baseline" / "measurement.json",
          {{"compression", {{"energy_j", sample_figure(1e9, "J", "measured", "")}}}});
    for (size_t i = 0; i < joules.size(); ++i)
        write(folder / ("0" + std::to_string(i + 1) + "-stage") / "measurement.json",
              {{"compression",
                {{"seconds", sample_figure(10, "s", "measured", "clock")},
                 {"energy_j", sample_figure(joules[i], "J", "modelled", "model")},
                 {"carbon_g", sample_figure(joules[i] * 1e-4, "g", "assumed", "model")}}},
               {"carbon", {{"pue", 1.5}}}});
}

void write_track(const fs::path& file, const std::string& project, const Json& tags, const Json& energy) {
    write(file, {{"format", "coppice-track"},
                 {"version", 1},
                 {"project", project},
                 {"run_id", file.stem().string()},
                 {"tags", tags},
                 {"seconds", sample_figure(5, "s", "measured", "clock")},
                 {"energy_j", energy},
                 {"carbon_g", sample_unavailable("g", "no energy")},
                 {"carbon", {{"pue", 1.0}}}});
}

const Json& group(const Json& allocation, const std::string& name) {
    for (const auto& group : allocation["groups"])
        if (group["name"] == name) return group;
    throw std::out_of_range(name);
}

class Allocation : public ::testing::Test {
protected:
    void SetUp() override {
        write_run(folder / "a", {{"project", "vision"}, {"user", "ada"}, {"tags", {"nightly", "gpu"}}}, {3600, 1800});
        write_run(folder / "b", {{"project", "speech"}, {"user", "ada"}, {"tags", {"nightly"}}}, {7200});
        write_track(folder / "c.json", "vision", Json::array(), sample_figure(400, "J", "measured", "counter"));
        write_track(folder / "d.json", "vision", Json::array(), sample_unavailable("J", "no counter"));
        std::ofstream(folder / "emissions.csv")
            << "timestamp,project_name,run_id,duration,emissions,energy_consumed,pue\n"
               "2026-01-01,\"speech, old\",r1,100,0.002,0.001,1\n"
               "2026-01-02,vision,r2,50,0.001,0.0005,1\n";
        all = {folder / "a", folder / "b", folder / "c.json", folder / "d.json", folder / "emissions.csv"};
    }
    Json by(const std::string& what, std::optional<double> price = {}, double per_tonne = 0) {
        AllocationOptions options;
        options.group_by = what;
        options.price_per_kwh = price;
        options.price_per_tonne = per_tonne;
        return allocate(all, options);
    }
    TemporaryFolder folder;
    std::vector<fs::path> all;
};

TEST_F(Allocation, SumsByProjectAcrossRunsTracksAndCsv) {
    const Json result = by("project");
    EXPECT_THAT(schema_violations(result, allocation_schema()), IsEmpty());
    std::vector<std::string> names;
    for (const auto& g : result["groups"]) names.push_back(g["name"]);
    EXPECT_THAT(names, ElementsAre("vision", "speech", "speech, old"));  // by energy: 7600, 7200, 3600 J
    const Json& vision = group(result, "vision");
    EXPECT_EQ(vision["records"], 4);
    EXPECT_NEAR(vision["energy_j"]["value"].get<double>(), 3600 + 1800 + 400 + 1800, 1e-9);
    EXPECT_EQ(vision["energy_j"]["records"], 3);  // one has no energy: it is not taken for 0
    EXPECT_EQ(vision["energy_j"]["provenance"], "modelled");
    EXPECT_NEAR(vision["seconds"]["value"].get<double>(), 20 + 5 + 5 + 50, 1e-9);
    EXPECT_NEAR(group(result, "speech, old")["carbon_g"]["value"].get<double>(), 2, 1e-12);
    EXPECT_NEAR(result["total"]["energy_j"]["value"].get<double>(), 7600 + 7200 + 3600, 1e-9);
    EXPECT_FALSE(result["total"].contains("cost"));
}

TEST_F(Allocation, ARecordCountsUnderEachOfItsTagsAndOnceInTheTotal) {
    const Json result = by("tag");
    EXPECT_NEAR(group(result, "nightly")["energy_j"]["value"].get<double>(), 5400 + 7200, 1e-9);
    EXPECT_NEAR(group(result, "gpu")["energy_j"]["value"].get<double>(), 5400, 1e-9);
    EXPECT_EQ(group(result, "(none)")["records"], 4);
    EXPECT_NEAR(result["total"]["energy_j"]["value"].get<double>(), 7600 + 7200 + 3600, 1e-9);
    EXPECT_THAT(allocation_text(result), HasSubstr("A record counts under each of its tags, in the total once."));
}

TEST_F(Allocation, MoneyIsEnergyTimesPueTimesPriceAndCarbonTimesItsPrice) {
    const Json ada = group(by("user", 0.30, 100), "ada");
    // PUE 1.5 of both runs: 12600 J = 0.0035 kWh. Carbon 1.26 g = 1.26e-6 t.
    EXPECT_NEAR(ada["cost"]["value"].get<double>(), 0.0035 * 1.5 * 0.30 + 1.26e-6 * 100, 1e-12);
    EXPECT_EQ(ada["cost"]["unit"], "EUR");
    EXPECT_EQ(ada["cost"]["provenance"], "assumed");
}

TEST_F(Allocation, WhatIsGivenTwiceCountsOnce) {
    all.push_back(folder / "a" / ".." / "a");
    all.push_back(folder / "c.json");
    const Json result = by("project");
    EXPECT_EQ(result["total"]["records"], 6);
    EXPECT_EQ(result["warnings"].size(), 2u);
}

TEST_F(Allocation, DamagedStagesAreNamedAndTheRestIsCounted) {
    std::ofstream(folder / "a" / "01-stage" / "measurement.json") << "{\"compress";
    fs::rename(folder / "b" / "01-stage", folder / "b" / "01-stage.partial");
    const Json result = by("project");
    EXPECT_EQ(result["warnings"].size(), 2u) << result["warnings"];
    EXPECT_NEAR(group(result, "vision")["energy_j"]["value"].get<double>(), 1800 + 400 + 1800, 1e-9);
    EXPECT_TRUE(group(result, "speech")["energy_j"]["value"].is_null());
}

TEST_F(Allocation, TheTableFitsAHundredColumns) {
    write_track(folder / "e.json", std::string(80, 'p') + "\x1b[31m", Json::array(),
                sample_figure(1, "J", "measured", ""));
    all.push_back(folder / "e.json");
    const std::string text = allocation_text(by("project", 0.3));
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) EXPECT_LE(report::columns(line), 100u) << line;
    EXPECT_EQ(text.find('\x1b'), std::string::npos);
    EXPECT_THAT(text, HasSubstr("(3 of 4)"));
}

TEST_F(Allocation, RefusesWhatIsNoRecord) {
    EXPECT_ERROR(by("team"), InvalidArgument, "unknown grouping \"team\"");
    EXPECT_ERROR(by("project", -1.0), InvalidArgument, "price of a kWh");
    EXPECT_ERROR(allocate({}, {}), InvalidArgument, "nothing to sum up");
    EXPECT_ERROR(allocate({folder / "none.json"}, {}), IoError, "cannot open");
    write(folder / "report.json", {{"format", "coppice-report"}, {"version", 1}});
    EXPECT_ERROR(allocate({folder / "report.json"}, {}), IoError, "its format is \"coppice-report\"");
    std::ofstream(folder / "other.csv") << "a,b\n1,2\n";
    EXPECT_ERROR(allocate({folder / "other.csv"}, {}), IoError, "has no column \"project_name\"");
}

}  // namespace
}  // namespace coppice::eval
