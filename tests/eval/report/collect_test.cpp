// Run directories to report.json: whole, half-written, damaged, several.
#include <fstream>
#include <map>

#include <coppice/report.h>

#include "eval/report/sample.h"
#include "support/support.h"

namespace coppice::eval {
namespace {

namespace fs = std::filesystem;
using coppice::testing::TemporaryFolder;
using coppice::testing::write_sample_run;
using ::testing::Contains;
using ::testing::HasSubstr;

std::vector<std::string> warnings_of(const Json& report) {
    return report["warnings"].get<std::vector<std::string>>();
}

const Json& pareto(const Json& report, const std::string& key) {
    for (const auto& measure : report["pareto"]["measures"])
        if (measure["key"] == key) return measure;
    throw std::out_of_range(key);
}

std::string status_of(const Json& measure, const std::string& stage) {
    for (const auto& point : measure["points"])
        if (point["stage"] == stage) return point["status"];
    return "absent";
}

void edit(const fs::path& file, const std::function<void(Json&)>& change) {
    Json json = read_json(file);
    change(json);
    std::ofstream(file) << json;
}

TEST(CollectReport, ReadsAWholeRun) {
    TemporaryFolder folder;
    write_sample_run(folder / "run-a");
    const Json report = collect_report({folder / "run-a"});
    EXPECT_EQ(report["title"], "resnet20.pt");
    EXPECT_EQ(report["generated_by"], "coppice 0.1.0");
    EXPECT_TRUE(report["warnings"].empty()) << report["warnings"];
    ASSERT_EQ(report["runs"].size(), 1u);
    ASSERT_EQ(report["runs"][0]["stages"].size(), 10u);
    EXPECT_EQ(report["runs"][0]["stages"][8]["folder"], "08-quantize.static");
    EXPECT_THAT(report["runs"][0]["recipe"].get<std::string>(), HasSubstr("prune.channel"));
    EXPECT_EQ(
        report["summary"],
        "Top-1 accuracy 88.70 % → 87.39 %, 6.5× smaller file, 4.2× faster at batch 128, 4.2× less energy per inference "
        "(modelled). Measured on Intel Xeon Platinum 8481C CPU @ 2.70GHz, 2 threads.");
}

TEST(CollectReport, PutsEachStageOnTheFrontTiedOrDominated) {
    TemporaryFolder folder;
    write_sample_run(folder / "run-a");
    const Json report = collect_report({folder / "run-a"});
    const Json& energy = pareto(report, "energy_per_inference_j");
    // 87.39 % at the least energy, 88.70 % at the most; the fine-tuned ones between them; int8 without deploy costs
    // more for the same accuracy, but the intervals of accuracy overlap; the pruned one before fine-tuning is far
    // below.
    EXPECT_EQ(energy["front"], Json({"0/09-deploy", "0/07-train.finetune", "0/02-train.finetune", "0/00-baseline"}));
    EXPECT_EQ(status_of(energy, "0/08-quantize.static"), "tied");
    EXPECT_EQ(status_of(energy, "0/01-prune.channel"), "dominated");
    EXPECT_EQ(status_of(energy, "0/00-baseline"), "front");
}

TEST(CollectReport, PlacesLatencyByThePairedRatioSoThatDriftCancels) {
    TemporaryFolder folder;
    write_sample_run(folder / "run-a");
    // The machine was twice as slow while the last stage was measured: its median doubled, its paired ratio did not.
    edit(folder / "run-a" / "09-deploy" / "measurement.json", [](Json& json) {
        auto& entry = json["latency"][1];
        entry["p50_s"] = coppice::testing::sample_figure(0.1042, "s", "measured", "", 0.01);
        entry["ratio_to_baseline"] = coppice::testing::sample_figure(0.25, "1", "measured", "", 0.02);
    });
    const Json report = collect_report({folder / "run-a"});
    for (const auto& point : pareto(report, "latency_b128_t2")["points"])
        if (point["stage"] == "0/09-deploy") {
            EXPECT_NEAR(point["x"].get<double>(), 0.25 * 0.2214, 1e-12);
            EXPECT_NEAR(point["x_interval"][1].get<double>(), 0.25 * 1.02 * 0.2214, 1e-12);
            EXPECT_EQ(point["x_provenance"], "derived");
        }
    EXPECT_THAT(report["summary"].get<std::string>(), HasSubstr("4.0× faster at batch 128"));
}

TEST(CollectReport, ComparesEnergyByThePairedRatioSoThatLoadCancels) {
    TemporaryFolder folder;
    write_sample_run(folder / "run-a");
    // The machine was idle while the last stage was measured: its own figure is a tenth, its paired ratio is not.
    edit(folder / "run-a" / "09-deploy" / "measurement.json", [](Json& json) {
        auto& figures = json["figures"];
        figures["energy_per_inference_j"]["value"] = 0.1 * figures["energy_per_inference_j"]["value"].get<double>();
        figures["energy_ratio_to_baseline"] = coppice::testing::sample_figure(0.25, "ratio", "modelled", "", 0.02);
    });
    const Json report = collect_report({folder / "run-a"});
    const double baseline = 11.6 * 0.2214 / 128;  // J, as below
    for (const auto& point : pareto(report, "energy_per_inference_j")["points"])
        if (point["stage"] == "0/09-deploy") {
            EXPECT_NEAR(point["x"].get<double>(), 0.25 * baseline, 1e-9);
            EXPECT_EQ(point["x_provenance"], "modelled");
        }
    EXPECT_THAT(report["summary"].get<std::string>(), HasSubstr("4.0× less energy"));
    const double seconds = report["runs"][0]["cost"]["seconds"]["value"];
    EXPECT_EQ(report["runs"][0]["cost"]["payback_inferences"]["value"].get<double>(),
              std::ceil(11 * seconds / (0.75 * baseline)));
}

// Two models of 87.39 and 87.44 % overlap by their own intervals of +-0.65; of 10,000 examples that both answered they
// differ in few.
TEST(CollectReport, PlacesQualityByThePairedDifferenceWhereEveryStageHasOne) {
    TemporaryFolder folder;
    write_sample_run(folder / "run-a");
    const auto shares = [](const Json& report) {
        std::map<std::string, Json> points;
        for (const auto& point : pareto(report, "file_bytes")["points"]) points[point["stage"]] = point;
        return points;
    };
    const auto own = shares(collect_report({folder / "run-a"}));
    EXPECT_LT(own.at("0/00-baseline")["y_interval"][0], own.at("0/00-baseline")["y"]);
    const auto pair = [&](bool last_too) {
        for (const auto& entry : fs::directory_iterator(folder / "run-a")) {
            if (!entry.is_directory() || entry.path().filename() == "00-baseline") continue;
            edit(entry.path() / "measurement.json", [&](Json& json) {
                const double difference = json["quality"]["value"].get<double>() - 0.8870;
                json["quality"]["paired"] = {{"difference", difference},
                                             {"interval", {difference - 0.0002, difference + 0.0003}}};
                if (!last_too && entry.path().filename() == "09-deploy") json["quality"].erase("paired");
            });
        }
    };
    pair(true);
    const auto paired = shares(collect_report({folder / "run-a"}));
    const auto& deploy = paired.at("0/09-deploy");
    EXPECT_NEAR(deploy["y"].get<double>(), 87.39, 1e-9);
    EXPECT_NEAR(deploy["y_interval"][0].get<double>(), 87.37, 1e-6);
    EXPECT_NEAR(deploy["y_interval"][1].get<double>(), 87.42, 1e-6);
    EXPECT_EQ(paired.at("0/00-baseline")["y_interval"], Json({88.7, 88.7})) << "what all others are placed by";
    // Larger and 0.3 points worse than deploy: a tie by their own intervals.
    EXPECT_EQ(own.at("0/04-prune.weight")["status"], "tied");
    EXPECT_EQ(paired.at("0/04-prune.weight")["status"], "dominated");
    pair(false);
    EXPECT_EQ(shares(collect_report({folder / "run-a"})).at("0/07-train.finetune")["y_interval"],
              own.at("0/07-train.finetune")["y_interval"])
        << "one stage without a pair cannot be set against the others' differences";
}

TEST(CollectReport, SumsTheCostOfAllStagesAndFindsThePayback) {
    TemporaryFolder folder;
    write_sample_run(folder / "run-a");
    const Json cost = collect_report({folder / "run-a"})["runs"][0]["cost"];
    // Seconds as in sample.cpp, 11 W throughout, 11.6 W x latency / 128 per inference.
    const double seconds = 9.4 + 512 + 3.1 + 2.2 + 0.8 + 7.7 + 408 + 14.2 + 4.6;
    EXPECT_NEAR(cost["seconds"]["value"].get<double>(), seconds, 1e-9);
    EXPECT_EQ(cost["seconds"]["provenance"], "derived");
    EXPECT_NEAR(cost["energy_j"]["value"].get<double>(), 11 * seconds, 1e-6);
    EXPECT_EQ(cost["energy_j"]["provenance"], "modelled");
    EXPECT_EQ(cost["payback_inferences"]["value"].get<double>(),
              std::ceil(11 * seconds / (11.6 / 128 * (0.2214 - 0.0521))));
    EXPECT_LT(cost["payback_inferences"]["interval"][0], cost["payback_inferences"]["value"]);
    EXPECT_GT(cost["payback_inferences"]["interval"][1], cost["payback_inferences"]["value"]);
    const auto& figures = [&] { return collect_report({folder / "run-a"})["runs"][0]["stages"]; }();
    const auto each = [&](size_t stage) {
        return figures[stage]["measurement"]["figures"]["carbon_per_inference_g"]["value"].get<double>();
    };
    EXPECT_EQ(cost["payback_carbon_inferences"]["value"].get<double>(),
              std::ceil(cost["carbon_g"]["value"].get<double>() / (each(0) - each(9))));
    EXPECT_THAT(cost["payback_carbon_inferences"]["method"].get<std::string>(), HasSubstr("carbon of all stages"));
}

TEST(CollectReport, ReportsTheIntactStagesOfAHalfWrittenRunAndNamesTheRest) {
    TemporaryFolder folder;
    const fs::path run = folder / "run-a";
    write_sample_run(run);
    fs::rename(run / "09-deploy", run / "09-deploy.partial");
    std::ofstream(run / "08-quantize.static" / "measurement.json") << "{\"format\": \"coppice-meas";
    fs::remove(run / "07-train.finetune" / "stage.json");
    edit(run / "06-prune.channel" / "measurement.json", [](Json& json) { json["version"] = 2; });
    fs::remove(run / "manifest.json");
    const Json report = collect_report({run});
    EXPECT_EQ(report["runs"][0]["stages"].size(), 6u);
    const auto warnings = warnings_of(report);
    EXPECT_THAT(warnings, Contains("run-a/manifest.json is missing."));
    EXPECT_THAT(warnings, Contains("run-a/09-deploy was not finished and is left out."));
    EXPECT_THAT(warnings, Contains(HasSubstr("run-a/08-quantize.static/measurement.json cannot be read")));
    EXPECT_THAT(warnings, Contains("run-a/08-quantize.static is left out."));
    EXPECT_THAT(warnings, Contains("run-a/07-train.finetune/stage.json is missing."));
    EXPECT_THAT(warnings,
                Contains(HasSubstr("06-prune.channel/measurement.json is not a coppice-measurement of version 1")));
    for (const auto& render : {html, csv, markdown, terminal_table}) EXPECT_FALSE(render(report).empty());
}

TEST(CollectReport, ModelsSideBySideHaveNoFinalOneAndNoPayback) {
    TemporaryFolder folder;
    write_sample_run(folder / "run-a");
    edit(folder / "run-a" / "manifest.json", [](Json& json) { json["kind"] = "eval"; });
    const Json report = collect_report({folder / "run-a"});
    EXPECT_EQ(
        report["summary"],
        "9 models beside baseline: Top-1 accuracy 69.31 % to 87.82 % (baseline 88.70 %), 0.15 to 0.55 of its file, "
        "0.24 "
        "to 0.64 of its time at batch 128, 0.24 to 0.64 of its energy per inference. Measured on Intel Xeon Platinum "
        "8481C CPU @ 2.70GHz, 2 threads.");
    EXPECT_TRUE(report["runs"][0]["cost"]["payback_inferences"]["value"].is_null());
    for (const auto& render : {html, csv, markdown, terminal_table, svg}) EXPECT_FALSE(render(report).empty());
}

// A resumed run moves what it cannot use aside: neither a finished stage nor a begun one counts twice.
TEST(CollectReport, LeavesOutWhatAResumedRunSetAside) {
    TemporaryFolder folder;
    write_sample_run(folder / "run-a");
    for (const char* name : {"04-prune.weight", "05-quantize.dynamic"})
        fs::copy(folder / "run-a" / name, folder / "run-a" / (std::string(name) + ".aside-1"),
                 fs::copy_options::recursive);
    fs::copy(folder / "run-a" / "05-quantize.dynamic", folder / "run-a" / "06-prune.channel.partial.aside-2",
             fs::copy_options::recursive);
    const Json report = collect_report({folder / "run-a"});
    EXPECT_EQ(report["runs"][0]["stages"].size(), 10u);
    EXPECT_THAT(warnings_of(report),
                Contains("run-a/04-prune.weight.aside-1 was set aside as damaged or out of date and is left out."));
    EXPECT_EQ(warnings_of(report).size(), 3u);
}

TEST(CollectReport, SaysThatOnlyTheBaselineIsFinished) {
    TemporaryFolder folder;
    write_sample_run(folder / "run-a");
    for (const auto& entry : fs::directory_iterator(folder / "run-a"))
        if (entry.is_directory() && entry.path().filename() != "00-baseline") fs::remove_all(entry.path());
    const Json report = collect_report({folder / "run-a"});
    EXPECT_THAT(report["summary"].get<std::string>(), HasSubstr("Only the baseline is finished so far."));
    EXPECT_EQ(report["runs"][0]["cost"]["payback_inferences"]["provenance"], "unavailable");
    EXPECT_THAT(html(report), HasSubstr("baseline"));
}

TEST(CollectReport, WithoutABaselineShowsValuesAndNoDifferences) {
    TemporaryFolder folder;
    write_sample_run(folder / "run-a");
    fs::remove_all(folder / "run-a" / "00-baseline");
    const Json report = collect_report({folder / "run-a"});
    EXPECT_THAT(warnings_of(report), Contains(HasSubstr("has no baseline")));
    EXPECT_THAT(markdown(report), ::testing::Not(HasSubstr("smaller")));
}

TEST(CollectReport, ComparesSeveralRunsInOnePicture) {
    TemporaryFolder folder;
    write_sample_run(folder / "run-a");
    write_sample_run(folder / "run-b");
    for (const auto& entry : fs::directory_iterator(folder / "run-b"))
        if (entry.is_directory())
            edit(entry.path() / "measurement.json", [](Json& json) { json["environment"]["cpu"] = "another"; });
    const Json report = collect_report({folder / "run-a", folder / "run-b"});
    EXPECT_EQ(report["title"], "resnet20.pt, 2 runs");
    EXPECT_EQ(pareto(report, "file_bytes")["points"].size(), 20u);
    EXPECT_THAT(warnings_of(report), Contains(HasSubstr("not all measured in the same environment")));
    EXPECT_THAT(terminal_table(report), HasSubstr("run-b · "));
}

TEST(CollectReport, LeavesAnotherMetricOutOfThePicture) {
    TemporaryFolder folder;
    write_sample_run(folder / "run-a");
    edit(folder / "run-a" / "02-train.finetune" / "measurement.json",
         [](Json& json) { json["quality"]["metric"] = "top5"; });
    const Json report = collect_report({folder / "run-a"});
    EXPECT_THAT(warnings_of(report), Contains(HasSubstr("2 train.finetune has another metric")));
    EXPECT_EQ(status_of(pareto(report, "file_bytes"), "0/02-train.finetune"), "absent");
}

TEST(CollectReport, AMetricWhereLowerIsBetterKeepsItsOwnSign) {
    TemporaryFolder folder;
    write_sample_run(folder / "run-a");
    for (const auto& entry : fs::directory_iterator(folder / "run-a"))
        if (entry.is_directory())
            edit(entry.path() / "measurement.json", [](Json& json) {
                const double value = 1 - json["quality"]["value"].get<double>();
                json["quality"] = {{"metric", "mse"},
                                   {"value", value},
                                   {"points", -value},
                                   {"higher_is_better", false},
                                   {"figure", coppice::testing::sample_figure(value, "1", "measured", "mean", 0.05)}};
            });
    const Json report = collect_report({folder / "run-a"});
    EXPECT_THAT(report["summary"].get<std::string>(), HasSubstr("Mean squared error 0.1130 → 0.1261"));
    EXPECT_THAT(terminal_table(report), HasSubstr("0.1261 +0.0131"));  // an error that grew
    for (const auto& point : pareto(report, "file_bytes")["points"]) {
        EXPECT_LE(point["y_interval"][0], point["y"]);
        EXPECT_GE(point["y_interval"][1], point["y"]);
        EXPECT_LT(point["y"], 0);
    }
}

TEST(CollectReport, RefusesWhatIsNoRun) {
    TemporaryFolder folder;
    EXPECT_ERROR(collect_report({}), InvalidArgument, "no run is given");
    EXPECT_ERROR(collect_report({folder / "nowhere"}), IoError, "there is no such folder");
    EXPECT_ERROR(collect_report({folder.path()}), IoError, "no stage of it is intact");
}

}  // namespace
}  // namespace coppice::eval
