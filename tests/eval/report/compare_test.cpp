// `report --compare` on runs whose answers are known: by hand, by symmetry, and by simulation.
#include <cmath>
#include <fstream>
#include <random>

#include <coppice/report.h>

#include "eval/report/sample.h"
#include "report/text.h"
#include "support/schema.h"
#include "support/support.h"

namespace coppice::eval {
namespace {

namespace fs = std::filesystem;
using coppice::testing::sample_figure;
using coppice::testing::schema_violations;
using coppice::testing::TemporaryFolder;
using coppice::testing::write_sample_run;
using ::testing::HasSubstr;
using ::testing::Not;

// One model against its baseline: what a run with a single stage holds.
struct Known {
    double top1 = 0.9, paired = 0, paired_half = 0;  // shares; the difference to the baseline and its half width
    double seconds = 0.1, ratio = 1, sure = 1.02;    // the ratio's interval is ratio / sure to ratio * sure
    double bytes = 1e6;
    std::string baseline = "sha-of-the-baseline", data = "ten thousand images", data_sha = "d1", cpu = "a CPU";
    bool paired_quality = true;
};

Json figure(double value, const std::string& unit, double sure, const std::string& provenance = "measured") {
    Json json = sample_figure(value, unit, provenance, "as the test says");
    if (sure > 1) json["interval"] = {value / sure, value * sure};
    return json;
}

Json measurement(const Known& known, bool baseline) {
    Json json = {{"format", "coppice-measurement"}, {"version", 1}};
    Json share = sample_figure(known.top1, "ratio", "measured", "share of hits");
    share["interval"] = {known.top1 - 0.006, known.top1 + 0.006};
    json["quality"] = {{"metric", "top1"},         {"value", known.top1}, {"points", 100 * known.top1},
                       {"higher_is_better", true}, {"figure", share},     {"split", "test"},
                       {"data", known.data},       {"examples", 10000}};
    if (!baseline && known.paired_quality)
        json["quality"]["paired"] = {{"difference", known.paired},
                                     {"interval", {known.paired - known.paired_half, known.paired + known.paired_half}},
                                     {"p_value", 0.25}};
    json["figures"] = {{"file_bytes", sample_figure(known.bytes, "B", "measured", "size of the file")},
                       {"energy_per_inference_j", figure(7 * known.seconds, "J", 1.1, "modelled")}};
    json["latency"] = {{{"batch", 1},
                        {"threads", 2},
                        {"p50_s", figure(known.seconds, "s", 1.01)},
                        {"ratio_to_baseline", baseline ? Json() : figure(known.ratio, "ratio", known.sure, "derived")},
                        {"steady", true}}};
    json["environment"] = {{"cpu", known.cpu}, {"threads", 2}};
    return json;
}

void write(const fs::path& file, const Json& json) {
    fs::create_directories(file.parent_path());
    std::ofstream(file) << json;
}

void write_run(const fs::path& folder, const Known& known) {
    write(folder / "manifest.json", {{"format", "coppice-run"},
                                     {"version", 1},
                                     {"model", {{"path", "net.pt"}, {"sha256", known.baseline}}},
                                     {"data", {{"test", {{"sha256", known.data_sha}}}}}});
    Known base;
    base.cpu = known.cpu;
    base.data = known.data;
    const Json stage = {{"format", "coppice-stage"}, {"version", 1}, {"stage", "baseline"}, {"kept", true}};
    write(folder / "00-baseline" / "measurement.json", measurement(base, true));
    write(folder / "00-baseline" / "stage.json", stage);
    write(folder / "01-change" / "measurement.json", measurement(known, false));
    write(folder / "01-change" / "stage.json",
          {{"format", "coppice-stage"}, {"version", 1}, {"stage", "change"}, {"kept", true}});
}

const Json& measure(const Json& comparison, const std::string& key) {
    for (const auto& candidate : comparison["measures"])
        if (candidate["key"] == key) return candidate;
    throw std::out_of_range(key);
}

TEST(Compare, AModelWithItsOwnBaselineIsComparedByThePairsThemselves) {
    TemporaryFolder folder;
    write_run(folder / "a", {.top1 = 0.894,
                             .paired = -0.006,
                             .paired_half = 0.004,
                             .seconds = 0.2,
                             .ratio = 0.5,
                             .sure = 1.05,
                             .bytes = 25e4});
    const Json json = compare_runs(folder / "a" / "00-baseline", folder / "a");
    const Json& time = measure(json, "latency_b1_t2");
    EXPECT_EQ(time["pairing"], "direct");
    EXPECT_EQ(time["verdict"], "better");
    EXPECT_EQ(time["effect"]["value"], 0.5);  // though the two medians say that it is slower
    EXPECT_EQ(time["effect"]["interval"], Json({0.5 / 1.05, 0.5 * 1.05}));
    const Json& quality = measure(json, "quality");
    EXPECT_EQ(quality["pairing"], "direct");
    EXPECT_EQ(quality["verdict"], "worse");
    EXPECT_NEAR(quality["effect"]["value"].get<double>(), -0.6, 1e-12);
    EXPECT_NEAR(quality["effect"]["interval"][0].get<double>(), -1.0, 1e-12);
    EXPECT_NEAR(quality["effect"]["interval"][1].get<double>(), -0.2, 1e-12);
    EXPECT_EQ(quality["effect"]["p_value"], 0.25);
    EXPECT_EQ(measure(json, "file_bytes")["effect"]["value"], 0.25);
    EXPECT_EQ(json["verdict"], "trade-off");
    EXPECT_EQ(
        json["sentence"],
        "B is neither better nor worse than A as a whole. Better: Latency, batch 1 2.0× faster (1.90 to 2.10); File "
        "size 4.0× smaller. Worse: Top-1 accuracy −0.60 points (−1.00 to −0.20); Energy per "
        "inference 2.0× more (1.75 to 2.29).");
}

TEST(Compare, TwoModelsWithOneBaselineAreComparedThroughIt) {
    TemporaryFolder folder;
    write_run(folder / "a", {.top1 = 0.89, .paired = -0.010, .paired_half = 0.003, .seconds = 0.1, .ratio = 0.5});
    // The machine was four times as slow while b was measured; its ratio to the baseline was not touched.
    write_run(folder / "b", {.top1 = 0.885, .paired = -0.015, .paired_half = 0.004, .seconds = 0.2, .ratio = 0.25});
    const Json json = compare_runs(folder / "a", folder / "b");
    const Json& time = measure(json, "latency_b1_t2");
    EXPECT_EQ(time["pairing"], "baseline");
    EXPECT_DOUBLE_EQ(time["effect"]["value"].get<double>(), 0.5);
    // Two half widths of log(1.02) in quadrature.
    const double sure = std::exp(std::sqrt(2.0) * std::log(1.02));
    EXPECT_NEAR(time["effect"]["interval"][0].get<double>(), 0.5 / sure, 1e-12);
    EXPECT_NEAR(time["effect"]["interval"][1].get<double>(), 0.5 * sure, 1e-12);
    EXPECT_EQ(time["verdict"], "better");
    const Json& quality = measure(json, "quality");
    EXPECT_EQ(quality["pairing"], "baseline");
    EXPECT_NEAR(quality["effect"]["value"].get<double>(), -0.5, 1e-12);
    EXPECT_NEAR(quality["effect"]["interval"][0].get<double>(), -1.0, 1e-12);  // 0.3 and 0.4 points: a 3-4-5 triangle
    EXPECT_NEAR(quality["effect"]["interval"][1].get<double>(), 0.0, 1e-12);
    EXPECT_EQ(measure(json, "file_bytes")["verdict"], "no difference shown");
}

TEST(Compare, WithoutACommonBaselineTheFiguresThemselvesAreCompared) {
    TemporaryFolder folder;
    write_run(folder / "a", {.seconds = 0.1, .ratio = 0.5});
    write_run(folder / "b", {.seconds = 0.2, .ratio = 0.25, .baseline = "another model"});
    const Json json = compare_runs(folder / "a", folder / "b");
    const Json& time = measure(json, "latency_b1_t2");
    EXPECT_EQ(time["pairing"], "unpaired");
    EXPECT_DOUBLE_EQ(time["effect"]["value"].get<double>(), 2.0);
    EXPECT_EQ(time["verdict"], "worse");
    // 0.6 points each, in quadrature.
    EXPECT_NEAR(measure(json, "quality")["effect"]["interval"][1].get<double>(), 0.6 * std::sqrt(2.0), 1e-9);
    EXPECT_THAT(comparison_text(json), HasSubstr("drift of the machine is not in the interval"));
}

TEST(Compare, AnotherMachineLeavesTimesAndEnergiesApartAndStillComparesCounts) {
    TemporaryFolder folder;
    write_run(folder / "a", {.seconds = 0.1, .bytes = 2e6});
    write_run(folder / "b", {.seconds = 0.001, .bytes = 1e6, .cpu = "another CPU"});
    const Json json = compare_runs(folder / "a", folder / "b");
    EXPECT_EQ(json["environment_differences"], Json({"cpu"}));
    for (const char* key : {"latency_b1_t2", "energy_per_inference_j"}) {
        EXPECT_EQ(measure(json, key)["verdict"], "not comparable");
        EXPECT_EQ(measure(json, key)["reason"], "measured in different environments (cpu)");
        EXPECT_TRUE(measure(json, key)["effect"]["value"].is_null());
    }
    EXPECT_EQ(measure(json, "file_bytes")["verdict"], "better");
    EXPECT_EQ(measure(json, "file_bytes")["effect"]["value"], 0.5);
    EXPECT_EQ(json["verdict"], "better");
    EXPECT_THAT(json["sentence"].get<std::string>(),
                HasSubstr("Not comparable: Energy per inference and Latency, batch 1."));
}

TEST(Compare, OtherTestDataMakeQualityNotComparable) {
    TemporaryFolder folder;
    write_run(folder / "a", {});
    write_run(folder / "b", {.data = "other images"});
    write_run(folder / "c", {.data_sha = "d2"});
    EXPECT_EQ(measure(compare_runs(folder / "a", folder / "b"), "quality")["reason"],
              "different test data: ten thousand images and other images");
    EXPECT_EQ(measure(compare_runs(folder / "a", folder / "c"), "quality")["reason"],
              "different test data: the files have other contents");
}

TEST(Compare, CountsThatDifferByLessThanTwoPercentDecideNothing) {
    TemporaryFolder folder;
    write_run(folder / "a", {.bytes = 1000000});
    write_run(folder / "b", {.bytes = 981000});
    write_run(folder / "c", {.bytes = 979000});
    EXPECT_EQ(measure(compare_runs(folder / "a", folder / "b"), "file_bytes")["verdict"], "no difference shown");
    EXPECT_EQ(measure(compare_runs(folder / "a", folder / "c"), "file_bytes")["verdict"], "better");
}

TEST(Compare, AFigureWithoutAnIntervalShowsNoDifference) {
    TemporaryFolder folder;
    write_run(folder / "a", {.ratio = 0.5, .sure = 1});
    write_run(folder / "b", {.ratio = 0.1, .sure = 1});
    const Json json = compare_runs(folder / "a", folder / "b");
    EXPECT_EQ(measure(json, "latency_b1_t2")["verdict"], "no difference shown");
    EXPECT_THAT(measure(json, "latency_b1_t2")["reason"].get<std::string>(), HasSubstr("without an interval"));
}

TEST(Compare, EnergiesOfDifferentSourcesAreNotComparable) {
    TemporaryFolder folder;
    write_run(folder / "a", {});
    write_run(folder / "b", {});
    Json changed = read_json(folder / "b" / "01-change" / "measurement.json");
    changed["figures"]["energy_per_inference_j"]["provenance"] = "measured";
    write(folder / "b" / "01-change" / "measurement.json", changed);
    const Json json = compare_runs(folder / "a", folder / "b");
    EXPECT_THAT(measure(json, "energy_per_inference_j")["reason"].get<std::string>(),
                HasSubstr("(modelled); as the test says (measured)"));
}

TEST(Compare, ExchangingTheTwoMirrorsEveryAnswer) {
    TemporaryFolder folder;
    write_run(folder / "a", {.top1 = 0.88, .paired = -0.02, .paired_half = 0.003, .ratio = 0.4, .bytes = 3e5});
    write_run(folder / "b", {.top1 = 0.89, .paired = -0.01, .paired_half = 0.002, .ratio = 0.7, .bytes = 7e5});
    for (const auto& [one, other] :
         {std::pair<fs::path, fs::path>(folder / "a", folder / "b"), {folder / "a", folder / "a" / "00-baseline"}}) {
        const Json there = compare_runs(one, other), back = compare_runs(other, one);
        ASSERT_EQ(there["measures"].size(), back["measures"].size());
        for (size_t i = 0; i < there["measures"].size(); ++i) {
            const Json &x = there["measures"][i], &y = measure(back, x["key"]);
            const std::string verdict = x["verdict"];
            EXPECT_EQ(y["verdict"], verdict == "better" ? "worse" : verdict == "worse" ? "better" : verdict) << x;
            EXPECT_EQ(x["pairing"], y["pairing"]);
            const bool ratio = x["effect"]["kind"] == "ratio";
            const double forth = x["effect"]["value"], reverse = y["effect"]["value"];
            EXPECT_NEAR(ratio ? forth * reverse : forth + reverse + 1, 1, 1e-12);
            const double low = x["effect"]["interval"][0], high = y["effect"]["interval"][1];
            EXPECT_NEAR(ratio ? low * high : low + high + 1, 1, 1e-12);
        }
        EXPECT_EQ(there["verdict"], "trade-off");
    }
}

// Baseline, A and B answer the same examples; A and B have the same true accuracy, but err on different ones. The 95 %
// interval through the baseline may miss 0 in one comparison of twenty.
TEST(Compare, FindsADifferenceBetweenEqualModelsInAtMostOneOfTwenty) {
    TemporaryFolder folder;
    std::mt19937 random(5);
    constexpr int kRounds = 150, kExamples = 400;
    int found = 0;
    for (int round = 0; round < kRounds; ++round) {
        int sum[2] = {0, 0}, gained[2] = {0, 0}, lost[2] = {0, 0};
        for (int i = 0; i < kExamples; ++i) {
            const bool base = random() % 100 < 90;
            for (int side = 0; side < 2; ++side) {
                const bool own = random() % 100 < 8 ? !base : base;  // flips 8 % of the answers
                sum[side] += own;
                gained[side] += own && !base;
                lost[side] += !own && base;
            }
        }
        for (int side = 0; side < 2; ++side) {
            // The interval of a difference of paired proportions, as the measurement records it.
            const double n = kExamples + 2, more = gained[side] + 0.5, less = lost[side] + 0.5;
            const double half = 1.96 * std::sqrt(more + less - (more - less) * (more - less) / n) / n;
            write_run(folder / (side ? "b" : "a"),
                      {.top1 = static_cast<double>(sum[side]) / kExamples,
                       .paired = static_cast<double>(gained[side] - lost[side]) / kExamples,
                       .paired_half = half});
        }
        found += measure(compare_runs(folder / "a", folder / "b"), "quality")["verdict"] != "no difference shown";
    }
    // 7.5 expected of 150; three standard deviations of the binomial are 8 more. None at all would be too blunt.
    EXPECT_LE(found, 15);
    EXPECT_GE(found, 1);
}

TEST(Compare, TellsTheFinalModelsOfTwoWholeRuns) {
    TemporaryFolder folder;
    write_sample_run(folder / "run-a");
    const Json json = compare_runs(folder / "run-a" / "07-train.finetune", folder / "run-a");
    EXPECT_THAT(json["b"]["path"].get<std::string>(), HasSubstr("run-a, 9 deploy"));
    EXPECT_EQ(json["b"]["stage"], "09-deploy");
    EXPECT_EQ(measure(json, "latency_b128_t2")["verdict"], "better");
    EXPECT_EQ(json["verdict"], "better") << json["sentence"];
    std::istringstream lines(comparison_text(json));
    for (std::string line; std::getline(lines, line);)
        if (line.find("  ") != std::string::npos && line[0] != 'A' && line[0] != 'B') {
            EXPECT_LE(report::columns(line), 100u) << line;
        }
}

TEST(Compare, FitsItsSchema) {
    TemporaryFolder folder;
    write_run(folder / "a", {});
    write_run(folder / "b", {.cpu = "another CPU"});
    Json json = compare_runs(folder / "a", folder / "b");
    EXPECT_THAT(schema_violations(json, comparison_schema()), ::testing::IsEmpty());
    json["measures"][0]["verdict"] = "splendid";
    json.erase("sentence");
    EXPECT_EQ(schema_violations(json, comparison_schema()).size(), 2u);
    EXPECT_ERROR(comparison_text({{"format", "coppice-report"}}), InvalidArgument, "no coppice-comparison");
}

TEST(Compare, SaysWhichFolderIsWrong) {
    TemporaryFolder folder;
    write_run(folder / "a", {});
    write_run(folder / "b", {});
    fs::create_directories(folder / "empty");
    EXPECT_ERROR(compare_runs(folder / "a", folder / "nowhere"), IoError, "nowhere: there is no such folder");
    EXPECT_ERROR(compare_runs(folder / "empty", folder / "a"), IoError, "no stage of it is intact");
    EXPECT_ERROR(compare_runs(folder / "a", folder / "b" / ".." / "a"), InvalidArgument, "twice");
    std::ofstream(folder / "b" / "01-change" / "measurement.json") << "{\"format\": \"coppice-me";
    EXPECT_ERROR(compare_runs(folder / "a", folder / "b" / "01-change"), IoError,
                 "not finished, or is damaged. Intact in this run: 00-baseline.");
    // The intact part of a damaged run can still be compared, and the damage is named.
    const Json json = compare_runs(folder / "a", folder / "b");
    EXPECT_EQ(json["b"]["stage"], "00-baseline");
    EXPECT_THAT(comparison_text(json), HasSubstr("Note: b/01-change is left out."));
}

}  // namespace
}  // namespace coppice::eval
