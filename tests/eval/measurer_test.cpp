#include <coppice/eval.h>
#include <coppice/pipeline.h>

#include "support/support.h"

namespace coppice::eval {
namespace {

using testing::TemporaryFolder;

MeasureOptions options(const std::string& profile = "off") {
    MeasureOptions options;
    options.profile = profile;
    options.grid = "DE";
    options.threads = {1};
    options.energy.source = "cpu_time";
    options.energy.cpu_watts_per_core = 10;
    return options;
}

std::shared_ptr<Dataset> images() {
    return tensor_dataset({testing::sine({40, 3, 8, 8})}, at::arange(40).remainder(10), "40 images");
}

Inputs example() {
    return {testing::sine({1, 3, 8, 8})};
}

// A copy of the model whose classifier answers another class.
Model with_shifted_bias(const Model& model) {
    auto copy = model.clone();
    const torch::NoGradGuard no_grad;
    copy.module().attr("fc").toModule().attr("bias").toTensor()[3] += 100;
    return copy;
}

void expect_figure(const Json& json) {
    EXPECT_NO_THROW(Figure::from_json(json)) << json.dump();
    EXPECT_TRUE(json.contains("unit") && json.contains("method") && json.contains("interval")) << json.dump();
}

TEST(Measurer, WritesTheMeasurementOfTheContract) {
    const TemporaryFolder folder;
    const auto baseline = testing::residual_model();
    const auto candidate = with_shifted_bias(baseline);
    baseline.save(folder / "baseline.pt");
    candidate.save(folder / "candidate.pt");
    auto choice = options("quick");
    choice.batches = {1, 2};
    choice.relative_interval = 1;  // ends at the first look
    Measurer measurer(example(), images(), "test", Task::kClassification, "", choice);
    const auto first = measurer.measure(baseline, baseline, folder / "baseline.pt", "baseline");
    const auto second = measurer.measure(baseline, candidate, folder / "candidate.pt", "prune.channel");

    for (const auto* json : {&first, &second}) {
        EXPECT_EQ((*json)["format"], "coppice-measurement");
        EXPECT_EQ((*json)["version"], 1);
        EXPECT_EQ((*json)["quality"]["metric"], "top1");
        EXPECT_EQ((*json)["quality"]["split"], "test");
        EXPECT_EQ((*json)["quality"]["data"], "40 images");
        EXPECT_EQ((*json)["quality"]["examples"], 40);
        expect_figure((*json)["quality"]["figure"]);
        for (const char* name : {"top1", "top5", "loss"}) expect_figure((*json)["metrics"][name]);
        for (const char* name :
             {"file_bytes", "parameters", "nonzero_parameters", "weight_bytes", "macs", "flops", "peak_memory_bytes",
              "power_w", "idle_power_w", "energy_per_inference_j", "carbon_per_inference_g"})
            expect_figure((*json)["figures"][name]);
        ASSERT_EQ((*json)["latency"].size(), 2);
        for (const auto& row : (*json)["latency"]) {
            for (const char* name : {"p50_s", "p90_s", "p99_s", "throughput_per_s", "ratio_to_baseline"})
                expect_figure(row[name]);
            EXPECT_TRUE(row["p50_s"]["value"].is_number());
            EXPECT_EQ(row["threads"], 1);
        }
        EXPECT_EQ((*json)["carbon"]["grid"], "DE");
        EXPECT_THAT((*json)["carbon"]["attribution"].get<std::string>(), ::testing::HasSubstr("CC BY 4.0"));
        EXPECT_TRUE((*json)["environment"].contains("cpu"));
        EXPECT_EQ(Json::parse(json->dump()), *json);
    }
    EXPECT_FALSE(first.contains("compression"));
    EXPECT_FALSE(first["metrics"].contains("agreement"));
    EXPECT_EQ(second["stage"], "prune.channel");
    EXPECT_EQ(second["model_file"], "candidate.pt");
    expect_figure(second["metrics"]["agreement"]);
    EXPECT_LT(second["metrics"]["agreement"]["value"].get<double>(), 1);
    EXPECT_DOUBLE_EQ(second["quality"]["value"].get<double>(), 0.1)
        << "class 3 is the answer to all of 40, and 4 are of it";
    EXPECT_DOUBLE_EQ(second["quality"]["points"].get<double>(), 10);
    for (const char* name : {"seconds", "cpu_seconds", "energy_j", "carbon_g"})
        expect_figure(second["compression"][name]);
    EXPECT_EQ(second["compression"]["energy_j"]["provenance"], "modelled");
    EXPECT_EQ(second["compression"]["seconds"]["provenance"], "measured");
    // Energy is CPU time x 10 W, carbon that x the grid: modelled and assumed, never measured.
    const auto& energy = second["figures"]["energy_per_inference_j"];
    EXPECT_EQ(energy["provenance"], "modelled");
    EXPECT_NEAR(energy["value"].get<double>(), 10 * second["latency"][0]["cpu_s"]["value"].get<double>(),
                0.2 * energy["value"].get<double>());  // the meter's clock includes the edges of a window
    EXPECT_EQ(second["figures"]["carbon_per_inference_g"]["provenance"], "assumed");
    EXPECT_EQ(second["figures"]["idle_power_w"]["provenance"], "unavailable");
}

TEST(Measurer, MeasuresTheFileAndNotTheObject) {
    const TemporaryFolder folder;
    const auto baseline = testing::residual_model();
    with_shifted_bias(baseline).save(folder / "model.pt");  // the file differs from the model it is said to be
    Measurer measurer(example(), images(), "test", Task::kClassification, "top1", options());
    const auto json = measurer.measure(baseline, baseline.clone(), folder / "model.pt", "stage");
    EXPECT_DOUBLE_EQ(json["quality"]["value"].get<double>(), 0.1);
    EXPECT_TRUE(json["latency"].empty());
    EXPECT_THAT(json["figures"]["energy_per_inference_j"]["reason"].get<std::string>(),
                ::testing::HasSubstr("switched off"));
}

TEST(Measurer, KeepsTheBaselinesOutputsBetweenStages) {
    class Counting final : public Dataset {
    public:
        int64_t size() const override { return base_->size(); }
        Batch batch(const std::vector<int64_t>& indices) const override {
            ++batches;
            return base_->batch(indices);
        }
        std::string description() const override { return "counting"; }
        std::string fingerprint() const override { return ""; }
        mutable int batches = 0;

    private:
        std::shared_ptr<Dataset> base_ = images();
    };
    const TemporaryFolder folder;
    const auto baseline = testing::residual_model();
    baseline.save(folder / "model.pt");
    const auto data = std::make_shared<Counting>();
    Measurer measurer(example(), data, "test", Task::kClassification, "", options());
    const auto first = measurer.measure(baseline, baseline.clone(), folder / "model.pt", "one");
    EXPECT_EQ(data->batches, 2) << "the baseline and the candidate";
    measurer.measure(baseline, baseline.clone(), folder / "model.pt", "two");
    EXPECT_EQ(data->batches, 3) << "only the candidate";
    EXPECT_EQ(first["metrics"]["agreement"]["value"], 1.0);
    EXPECT_EQ(first["quality"]["paired"]["lost"], 0);
}

TEST(Measurer, WithoutDataQualityIsUnavailableAndTheRestIsMeasured) {
    const TemporaryFolder folder;
    const auto model = testing::residual_model();
    model.save(folder / "model.pt");
    Measurer measurer(example(), nullptr, "test", Task::kRegression, "", options());
    const auto json = measurer.measure(model, model, folder / "model.pt", "baseline");
    EXPECT_TRUE(json["quality"]["value"].is_null());
    EXPECT_EQ(json["quality"]["metric"], "mse");
    EXPECT_EQ(json["quality"]["higher_is_better"], false);
    EXPECT_GT(json["figures"]["file_bytes"]["value"].get<int64_t>(), 0);
    EXPECT_ERROR(measurer.points(model), InvalidArgument, "no labelled data");
}

TEST(Measurer, PointsAreWhatGatesCompare) {
    const auto model = testing::residual_model();
    Measurer measurer(example(), images(), "test", Task::kClassification, "", options());
    EXPECT_DOUBLE_EQ(measurer.points(with_shifted_bias(model)), 10);
}

TEST(Measurer, ComparesFilesOfWhichOneIsTheBaseline) {
    const TemporaryFolder folder;
    const auto model = testing::residual_model();
    model.save(folder / "a.pt");
    torch::jit::freeze(with_shifted_bias(model).module()).save(folder / "b.pt");  // as a deployed model may come
    auto choice = options("quick");
    choice.relative_interval = 1;
    Measurer measurer(example(), images(), "test", Task::kClassification, "", choice);
    const auto results = measurer.compare({folder / "b.pt", folder / "a.pt"}, 1);
    ASSERT_EQ(results.size(), 2);
    EXPECT_EQ(results[0]["stage"], (folder / "b.pt").string());
    EXPECT_TRUE(results[0]["metrics"].contains("agreement"));
    EXPECT_GT(results[0]["figures"]["parameters"]["value"].get<int64_t>(), 3800) << "constants are counted";
    for (const auto& result : results)
        EXPECT_THAT(result["latency"][0]["p50_s"]["method"].get<std::string>(),
                    ::testing::HasSubstr("torch::jit::freeze"));
    EXPECT_FALSE(results[1]["metrics"].contains("agreement")) << "the baseline itself";
    EXPECT_EQ(results[1]["latency"][0]["ratio_to_baseline"]["value"], 1.0);
    EXPECT_FALSE(results[0].contains("compression"));
    EXPECT_ERROR(measurer.compare({folder / "a.pt"}, 1), InvalidArgument, "model number 2");
    EXPECT_ERROR(measurer.compare({folder / "absent.pt"}), IoError, "absent.pt");
}

TEST(Measurer, AModelOfOneFixedInputIsTimedAtThatSize) {
    const TemporaryFolder folder;
    const auto model = testing::build_model({}, "def forward(self, x):\n    return x.reshape([5, 2]) * 2\n");
    model.save(folder / "graph.pt");
    auto choice = options("quick");
    choice.relative_interval = 1;
    Measurer measurer({testing::sine({5, 2})}, nullptr, "test", Task::kRegression, "", choice);
    const auto json = measurer.measure(model, model, folder / "graph.pt", "baseline");
    ASSERT_EQ(json["latency"].size(), 2);
    EXPECT_TRUE(json["latency"][0]["p50_s"]["value"].is_null());
    EXPECT_EQ(json["latency"][1]["batch"], 5);
    EXPECT_TRUE(json["latency"][1]["p50_s"]["value"].is_number());
    EXPECT_TRUE(json["figures"]["energy_per_inference_j"]["value"].is_number());
}

TEST(Measurer, RefusesUnknownNames) {
    EXPECT_ERROR(Measurer(example(), nullptr, "test", Task::kClassification, "top2", options()), InvalidArgument,
                 "unknown metric \"top2\"");
    auto choice = options();
    choice.grid = "XX";
    EXPECT_ERROR(Measurer(example(), nullptr, "test", Task::kClassification, "", choice), InvalidArgument,
                 "unknown zone");
}

TEST(MeasureOptions, AreReadFromARecipe) {
    Options settings(
        "measure",
        {{"profile", "quick"}, {"grid", "FR"}, {"pue", "1.54"}, {"energy", "cpu_time"}, {"cpu_watts_per_core", "4"}});
    const auto read = MeasureOptions::read(settings);
    settings.done();
    EXPECT_EQ(read.seconds(), 3);
    EXPECT_EQ(read.grid, "FR");
    EXPECT_EQ(read.pue, 1.54);
    EXPECT_EQ(read.energy.source, "cpu_time");
    EXPECT_EQ(*read.energy.cpu_watts_per_core, 4);
    EXPECT_THAT(read.batches, ::testing::ElementsAre(1));
    EXPECT_EQ(settings.resolved()["relative_interval"], 0.02);
    EXPECT_FALSE(read.embodied_kg);
}

TEST(MeasureOptions, NameWhatIsWrong) {
    const auto read = [](const std::string& name, const std::string& value) {
        Options settings("measure", {{name, value}});
        MeasureOptions::read(settings);
        settings.done();
    };
    EXPECT_ERROR(read("profile", "fast"), InvalidArgument, "must be off, quick, standard or strict");
    EXPECT_ERROR(read("grid", "DEE"), InvalidArgument, "unknown zone");
    EXPECT_ERROR(read("batch", "0"), InvalidArgument, "must be at least 1");
    EXPECT_ERROR(read("pue", "0.5"), InvalidArgument, "pue");
    EXPECT_ERROR(read("metrics", "top2"), InvalidArgument, "unknown metric");
    EXPECT_ERROR(read("embodied_kg", "-1"), InvalidArgument, "must not be negative");
    EXPECT_ERROR(read("machine_share", "2"), InvalidArgument, "machine_share");
    EXPECT_ERROR(read("cpu_watts_per_core", "0"), InvalidArgument, "above 0");
    EXPECT_ERROR(read("energy", "rapl+nvlm"), InvalidArgument, "Did you mean \"nvml\"?");
    EXPECT_NO_THROW(read("energy", "rapl+nvml"));
}

TEST(Measurer, CarbonHoldsTheMachinesShareOrSaysThatItIsNotDeclared) {
    const TemporaryFolder folder;
    const auto model = testing::residual_model();
    model.save(folder / "model.pt");
    auto choice = options("quick");
    choice.relative_interval = 1;
    choice.idle = 0;
    const auto measure = [&] {
        return Measurer(example(), nullptr, "", Task::kClassification, "", choice)
            .measure(model, model.clone(), folder / "model.pt", "stage");
    };
    const auto undeclared = measure();
    EXPECT_EQ(undeclared["carbon"]["embodied_kg"], "not declared");
    EXPECT_THAT(undeclared["figures"]["embodied_per_inference_g"]["reason"].get<std::string>(),
                ::testing::HasSubstr("not declared"));
    EXPECT_THAT(undeclared["figures"]["sci_per_inference_g"]["method"].get<std::string>(),
                ::testing::HasSubstr("M not declared"));
    EXPECT_NEAR(undeclared["figures"]["sci_per_inference_g"]["value"].get<double>(),
                undeclared["figures"]["carbon_per_inference_g"]["value"].get<double>(), 1e-15);

    choice.embodied_kg = 1000;
    choice.lifetime_years = 5;
    choice.machine_share = 0.25;
    const auto json = measure();
    const auto value = [&json](const char* pointer) {
        return json.at(Json::json_pointer(pointer)).at("value").get<double>();
    };
    const double per_second = 1000 * 1000.0 / (5 * 365.25 * 86400) * 0.25;  // g
    const double seconds = 1 / value("/latency/0/throughput_per_s");
    EXPECT_NEAR(value("/figures/embodied_per_inference_g"), per_second * seconds, 1e-9 * per_second);
    EXPECT_NEAR(value("/figures/sci_per_inference_g"),
                value("/figures/carbon_per_inference_g") + value("/figures/embodied_per_inference_g"), 1e-15);
    EXPECT_EQ(json["figures"]["sci_per_inference_g"]["provenance"], "assumed");
    EXPECT_TRUE(json["figures"]["embodied_per_inference_g"]["interval"].is_array()) << "that of the time";
    EXPECT_NEAR(value("/compression/embodied_g"), per_second * value("/compression/seconds"), 1e-9);
    EXPECT_EQ(json["carbon"]["embodied_kg"], 1000);
    // Memory is a line of its own, time x its size.
    EXPECT_NEAR(value("/figures/memory_energy_per_inference_j"),
                seconds * 0.3725e-9 * json["environment"]["memory_bytes"].get<double>(), 1e-9);
    EXPECT_EQ(json["figures"]["memory_energy_per_inference_j"]["provenance"], "modelled");
}

TEST(StageMeter, CountsWhatAPieceOfWorkCosts) {
    const double before = cpu_seconds();
    StageMeter meter(options());
    // Both clocks: worker threads that still spin from earlier tests make CPU time run faster than the wall clock.
    const double start = cpu_seconds(), wall_start = wall_seconds();
    volatile double sink = 0;
    while (cpu_seconds() - start < 0.05 || wall_seconds() - wall_start < 0.05) sink = sink + 1;
    const auto json = meter.read();
    const double most = cpu_seconds() - before;
    EXPECT_GE(json["seconds"]["value"].get<double>(), 0.05);
    EXPECT_GE(json["cpu_seconds"]["value"].get<double>(), 0.05);
    EXPECT_LE(json["cpu_seconds"]["value"].get<double>(), most);
    EXPECT_GE(json["energy_j"]["value"].get<double>(), 10 * 0.05);  // 10 W per core, from options()
    EXPECT_LE(json["energy_j"]["value"].get<double>(), 10 * most);
    meter.restart();
    EXPECT_LT(meter.read()["cpu_seconds"]["value"].get<double>(), json["cpu_seconds"]["value"].get<double>());
}

}  // namespace
}  // namespace coppice::eval
