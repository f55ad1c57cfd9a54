// The pipeline with stages that do one thing each, on a model whose weight says how good, slow and large it is.
#include "support/support.h"

#include <chrono>
#include <fstream>
#include <thread>

namespace coppice {
namespace {

using testing::TemporaryFolder;

const Json kRunManifest = {{"format", "coppice-run"}, {"model", {{"sha256", "aa"}}}, {"recipe", {{"seed", 0}}}};

// weight[0] = {points, time ratio, file bytes / 1000, anything}
Model subject() {
    return testing::build_model({{"weight", at::tensor({90.0f, 1.0f, 100.0f, 0.0f}).reshape({1, 4})}},
                                "def forward(self, x):\n    return torch.linear(x, self.weight)\n");
}

at::Tensor weight_of(const Model& model) {
    return get_attribute(model, "weight").toTensor();
}
double at_weight(const Model& model, int64_t i) {
    return weight_of(model)[0][i].item<double>();
}

Json measured(const Model&, const Model& candidate, const StageWork& work) {
    const double points = at_weight(candidate, 0), time = at_weight(candidate, 1);
    return {{"stage", work.stage},
            {"quality", {{"metric", "top1"}, {"value", points / 100}, {"points", points}}},
            {"figures", {{"file_bytes", {{"value", 1000 * at_weight(candidate, 2)}}}}},
            {"latency",
             {{{"batch", 1},
               {"threads", 1},
               {"ratio_to_baseline", {{"value", time}, {"interval", {time * 0.99, time * 1.01}}}}}}}};
}

using Effect = std::function<void(Model&, Context&)>;

class FakeStage final : public Stage {
public:
    explicit FakeStage(Effect effect, Needs needs = {}) : effect_(std::move(effect)), needs_(needs) {}
    Needs needs() const override { return needs_; }
    void check(const Model&, const Context&) const override {
        ++checks;
        if (on_check) on_check();
    }
    Model apply(const Model& model, Context& context) const override {
        ++applied;
        Model changed = model.clone();
        effect_(changed, context);
        return changed;
    }
    mutable int checks = 0, applied = 0;
    std::function<void()> on_check;

private:
    Effect effect_;
    Needs needs_;
};

void change(Model& model, int64_t index, double value) {
    const auto weight = weight_of(model).clone();
    weight[0][index] = value;
    set_tensor(model, "weight", weight);
}

Effect lose(double points) {
    return [points](Model& model, Context&) { change(model, 0, at_weight(model, 0) - points); };
}

Effect shrink(double factor, double points = 0) {
    return [=](Model& model, Context&) {
        change(model, 2, at_weight(model, 2) * factor);
        change(model, 1, at_weight(model, 1) * factor);
        if (points != 0) change(model, 0, at_weight(model, 0) - points);
    };
}

class PipelineTest : public ::testing::Test {
protected:
    PipelineTest() { context.example = {at::ones({2, 4})}; }

    std::shared_ptr<FakeStage> add(const std::string& name, Effect effect, Needs needs = {}) {
        auto stage = std::make_shared<FakeStage>(std::move(effect), needs);
        stages.push_back({name, Json::object(), stage, name.rfind("train.", 0) == 0});
        return stage;
    }

    std::vector<StageResult> run(const std::string& name = "run", bool resume = false) {
        auto directory = RunDirectory::open(folder / name, kRunManifest, resume);
        return run_pipeline(subject(), stages, context, directory, measure, options);
    }

    double final_points(const std::string& name = "run") {
        return at_weight(Model::load(folder / name / "model.pt"), 0);
    }
    std::string bytes(const std::string& relative) { return read_text(folder.path() / relative); }
    std::string content(const std::string& relative) { return model_content_sha256(folder.path() / relative); }
    bool exists(const std::string& relative) { return std::filesystem::exists(folder.path() / relative); }

    TemporaryFolder folder;
    Context context;
    std::vector<PipelineStage> stages;
    PipelineOptions options;
    Measure measure = measured;
};

TEST_F(PipelineTest, RefusesModelsThatWriteIntoTheirArguments) {
    for (const std::string line : {"x.mul_(2.)", "x[:, 0].zero_()", "y = x.t()\n    y += 1."}) {
        SCOPED_TRACE(line);
        const auto model =
            testing::build_model({{"weight", at::ones({1, 4})}},
                                 "def forward(self, x):\n    " + line + "\n    return torch.linear(x, self.weight)\n");
        auto directory = RunDirectory::open(folder / "in_place", kRunManifest, false);
        EXPECT_ERROR(run_pipeline(model, stages, context, directory, measure, options), UnsupportedModel,
                     "forward changes its argument x in place");
        EXPECT_TRUE(at::equal(context.example[0].toTensor(), at::ones({2, 4})));
        std::filesystem::remove_all(folder / "in_place");
    }
}

TEST_F(PipelineTest, RunsAllStagesAndWritesWhatTheyDid) {
    add("prune.a", [](Model& model, Context& context) {
        shrink(0.5, 0.25)(model, context);
        context.record({"fc", "pruned", "4 channels", "2 channels", ""});
        context.facts["macs_before"] = 8;
    });
    add("quantize.b", shrink(0.5));
    const auto results = run();
    ASSERT_EQ(results.size(), 3u);
    EXPECT_EQ(results[0].folder, "00-baseline");
    EXPECT_EQ(results[2].folder, "02-quantize.b");
    EXPECT_TRUE(results[2].kept);
    EXPECT_EQ(bytes("run/model.pt"), bytes("run/02-quantize.b/model.pt"));
    const auto stage = read_json(folder / "run" / "01-prune.a" / "stage.json");
    EXPECT_EQ(stage["format"], "coppice-stage");
    EXPECT_EQ(stage["changes"][0]["after"], "2 channels");
    EXPECT_EQ(stage["facts"]["macs_before"], 8);
    EXPECT_EQ(stage["layers"][0]["macs"], 8.0);  // 2 x 4 inputs times one output
    EXPECT_EQ(stage["verdict"],
              "kept; against the baseline: top1 89.75 (-0.25 points), file 0.50x, time 0.50x (batch 1, 1 threads)");
    EXPECT_EQ(read_json(folder / "run" / "02-quantize.b" / "measurement.json")["quality"]["points"], 89.75);
    EXPECT_FALSE(exists("run/01-prune.a/work"));
    EXPECT_FALSE(exists("run/01-prune.a.partial"));
}

TEST_F(PipelineTest, SubNormalWeightsAreZeroInEveryResult) {
    add("train.a", [](Model& model, Context&) { change(model, 3, 1e-39); });
    add("prune.b", shrink(0.5));
    const auto results = run();
    EXPECT_EQ(at_weight(Model::load(folder / "run" / "01-train.a" / "model.pt"), 3), 0);
    const auto stage = read_json(folder / "run" / "01-train.a" / "stage.json");
    EXPECT_EQ(stage["facts"]["subnormal_weights"], 1);
    EXPECT_EQ(stage["changes"][0]["before"], "1 sub-normal weights");
    EXPECT_FALSE(read_json(folder / "run" / "02-prune.b" / "stage.json")["facts"].contains("subnormal_weights"));
}

TEST_F(PipelineTest, ADropAndAGateThatRoundToTheSameAreToldApart) {
    options.gate.max_drop = 0.001;
    add("prune.bad", shrink(0.5, 1.0 / 256));
    EXPECT_THAT(run()[1].verdict, ::testing::HasSubstr("fell by 0.003906 points, the gate allows 0.001000"));
}

TEST_F(PipelineTest, AStageThatMissesTheGateIsUndoneAndTheNextRunsOnTheModelBefore) {
    options.gate.max_drop = 0.5;
    add("prune.good", shrink(0.8, 0.3));
    add("prune.bad", shrink(0.5, 5));
    add("quantize.c", shrink(0.9, 0.1));
    const auto results = run();
    EXPECT_TRUE(results[1].kept);
    EXPECT_FALSE(results[2].kept);
    EXPECT_TRUE(results[2].gate_missed);
    EXPECT_THAT(results[2].verdict, ::testing::StartsWith("undone: top1 fell by 5.30 points, the gate allows 0.50"));
    EXPECT_TRUE(results[3].kept);
    EXPECT_NEAR(final_points(), 90 - 0.3 - 0.1, 1e-4);
    EXPECT_TRUE(exists("run/02-prune.bad/model.pt"));  // undone is not deleted
    EXPECT_EQ(read_json(folder / "run" / "02-prune.bad" / "stage.json")["kept"], false);
}

TEST_F(PipelineTest, ADropOfExactlyTheGateIsAllowed) {
    options.gate.max_drop = 0.5;
    add("prune.a", shrink(0.5, 0.5));
    EXPECT_TRUE(run()[1].kept);
}

TEST_F(PipelineTest, TheGateWaitsForTheRecoveryThatFollows) {
    options.gate.max_drop = 0.5;
    add("prune.a", shrink(0.5, 30));
    add("lowrank.b", shrink(0.9, 5));
    add("train.finetune", lose(-34.8));
    const auto results = run();
    for (const auto& result : results) EXPECT_TRUE(result.kept) << result.name << ": " << result.verdict;
    EXPECT_THAT(results[1].verdict,
                ::testing::StartsWith("kept after train.finetune; against the baseline: top1 60.00"));
    EXPECT_EQ(read_json(folder / "run" / "01-prune.a" / "stage.json")["verdict"], results[1].verdict);
    EXPECT_NEAR(final_points(), 89.8, 1e-4);
}

TEST_F(PipelineTest, ARecoveryThatFailsTakesTheStagesBeforeItBackToo) {
    options.gate.max_drop = 0.5;
    add("prune.first", shrink(0.9, 0.1));
    add("train.one", lose(0));
    add("prune.second", shrink(0.5, 30));
    add("train.two", lose(-10));
    add("quantize.c", shrink(0.8));
    const auto results = run();
    EXPECT_TRUE(results[1].kept);
    EXPECT_FALSE(results[3].kept);
    EXPECT_FALSE(results[4].kept);
    EXPECT_FALSE(results[3].gate_missed);  // the one that was judged missed it
    EXPECT_TRUE(results[4].gate_missed);
    EXPECT_THAT(results[3].verdict, ::testing::StartsWith("undone together with train.two"));
    EXPECT_EQ(read_json(folder / "run" / "03-prune.second" / "stage.json")["kept"], false);
    EXPECT_TRUE(results[5].kept);
    EXPECT_NEAR(final_points(), 89.9, 1e-4);
}

TEST_F(PipelineTest, UntilTheRecoveryTheLastAcceptedModelIsAtTheTop) {
    add("prune.a", shrink(0.5, 30));
    add("train.finetune", [this](Model&, Context&) {
        EXPECT_NEAR(final_points(), 90, 1e-4);
        throw Error("train.finetune", "power cut", "");
    });
    EXPECT_THROW(run(), Error);
    EXPECT_NEAR(final_points(), 90, 1e-4);
}

TEST_F(PipelineTest, StopsAtTheGateWhenAsked) {
    options.gate.max_drop = 0.5;
    options.stop_at_gate = true;
    add("prune.bad", shrink(0.5, 5));
    const auto later = add("quantize.c", shrink(0.9));
    EXPECT_EQ(run().size(), 2u);
    EXPECT_EQ(later->applied, 0);
    EXPECT_NEAR(final_points(), 90, 1e-4);
}

TEST_F(PipelineTest, AStageThatIsSlowerAndNotSmallerSaysSoAndIsUndoneUnderAGate) {
    const auto slower = [](Model& model, Context&) { change(model, 1, 1.3); };
    add("prune.slow", slower);
    const auto without = run("without");
    EXPECT_TRUE(without[1].kept);
    EXPECT_THAT(without[1].verdict,
                ::testing::HasSubstr("kept (there is no gate): slower than the model before, not smaller"));
    options.gate.max_drop = 0.5;
    const auto with = run("with");
    EXPECT_FALSE(with[1].kept);
    EXPECT_FALSE(with[1].gate_missed);
    EXPECT_NEAR(at_weight(Model::load(folder / "with" / "model.pt"), 1), 1.0, 1e-6);
}

TEST_F(PipelineTest, OverlappingIntervalsAreNoSlowdown) {
    add("prune.a", [](Model& model, Context&) { change(model, 1, 1.015); });
    options.gate.max_drop = 0.5;
    EXPECT_TRUE(run()[1].kept);
}

TEST_F(PipelineTest, AStageThatChangedNothingSaysSo) {
    add("prune.idle", [](Model&, Context&) {});
    EXPECT_EQ(run()[1].verdict, "kept: it changed nothing");
}

TEST_F(PipelineTest, QualityThatIsNotANumberMissesTheGate) {
    options.gate.max_drop = 0.5;
    add("quantize.broken", lose(std::nan("")));
    measure = [](const Model& baseline, const Model& candidate, const StageWork& work) {
        auto measurement = measured(baseline, candidate, work);
        if (!std::isfinite(at_weight(candidate, 0))) measurement["quality"]["points"] = nullptr;
        return measurement;
    };
    const auto results = run();
    EXPECT_TRUE(results[1].gate_missed);
    EXPECT_EQ(results[1].verdict, "undone: top1 is not a number");
}

TEST_F(PipelineTest, ValidationSteersWhereThereIsSome) {
    options.gate.max_drop = 0.5;
    add("prune.a", shrink(0.5, 5));
    measure = [](const Model& baseline, const Model& candidate, const StageWork& work) {
        auto measurement = measured(baseline, candidate, work);
        measurement["validation"] = {{"metric", "top1"}, {"points", 50.0}};
        return measurement;
    };
    EXPECT_TRUE(run()[1].kept);
}

TEST_F(PipelineTest, AGateWithoutQualityIsRefusedBeforeAnyStage) {
    options.gate.max_drop = 0.5;
    const auto stage = add("prune.a", shrink(0.5));
    measure = [](const Model&, const Model&, const StageWork&) { return Json::object(); };
    EXPECT_ERROR(run(), InvalidArgument, "the baseline's quality was not measured");
    EXPECT_EQ(stage->applied, 0);
}

TEST_F(PipelineTest, AllStagesAreCheckedBeforeTheFirstRuns) {
    const auto first = add("prune.a", shrink(0.5));
    const auto second = add("quantize.b", shrink(0.5));
    second->on_check = [] { throw UnsupportedModel("quantize.b at fc", "cannot", "Use another."); };
    EXPECT_ERROR(run(), UnsupportedModel, "quantize.b at fc: cannot");
    EXPECT_EQ(first->checks, 1);
    EXPECT_EQ(first->applied, 0);
    EXPECT_FALSE(exists("run/00-baseline"));
}

TEST_F(PipelineTest, WhatAStageNeedsIsNamedWithItsPlace) {
    add("quantize.b", shrink(0.5), Needs{true, false, false, false});
    stages[0].where = "recipe.yaml line 7, column 5";
    EXPECT_ERROR(
        run(), InvalidArgument,
        "recipe.yaml line 7, column 5, quantize.b: needs calibration data, and there is none. Add it to the recipe");
    stages.clear();
    add("train.c", shrink(0.5), Needs{false, true, false, false});
    EXPECT_ERROR(run("other"), InvalidArgument, "train.c: needs training data, and there is none");
}

TEST_F(PipelineTest, LabelsThatAreMissingAreNoticedBeforeWork) {
    context.data.calibration = tensor_dataset({at::ones({4, 4})}, at::Tensor(), "unlabelled rows");
    add("prune.taylor", shrink(0.5), Needs{true, false, true, false});
    EXPECT_ERROR(run(), InvalidArgument, "prune.taylor: needs labels, and unlabelled rows has none");
}

// A stage that edits its argument, against the rules: what an undo goes back to must not change.
class Vandal final : public Stage {
public:
    Model apply(const Model& model, Context&) const override {
        torch::NoGradGuard no_grad;
        weight_of(model).fill_(-1);
        return model;
    }
};

TEST_F(PipelineTest, AStageThatEditsItsArgumentDoesNotReachTheModelBefore) {
    options.gate.max_drop = 0.5;
    stages.push_back({"prune.vandal", Json::object(), std::make_shared<Vandal>()});
    add("quantize.b", [](Model& model, Context& context) {
        EXPECT_NEAR(at_weight(model, 0), 90, 1e-4);
        shrink(0.5)(model, context);
    });
    const auto model = subject();
    auto directory = RunDirectory::open(folder / "run", kRunManifest, false);
    run_pipeline(model, stages, context, directory, measure, options);
    EXPECT_NEAR(at_weight(model, 0), 90, 1e-4);
    EXPECT_NEAR(final_points(), 90, 1e-4);
}

TEST_F(PipelineTest, AnotherOutputShapeIsAnErrorThatNamesTheStage) {
    add("prune.wrong", [](Model& model, Context&) { set_tensor(model, "weight", at::ones({3, 4})); });
    EXPECT_ERROR(run(), InternalError, "prune.wrong");
    EXPECT_FALSE(exists("run/01-prune.wrong"));
    EXPECT_NEAR(final_points(), 90, 1e-4);
}

TEST_F(PipelineTest, AnErrorOfLibTorchNamesTheStageWithoutItsStack) {
    add("prune.a", [](Model&, Context&) { at::ones({2, 3}).matmul(at::ones({2, 3})); });
    stages[0].where = "recipe.yaml line 3, column 5";
    try {
        run();
        FAIL();
    } catch (const Error& error) {
        EXPECT_THAT(std::string(error.what()), ::testing::StartsWith("recipe.yaml line 3, column 5, prune.a: "));
        EXPECT_THAT(std::string(error.what()), ::testing::HasSubstr("cannot be multiplied"));
        EXPECT_THAT(std::string(error.what()), ::testing::Not(::testing::HasSubstr("frame #")));
    }
}

// Every place at which a run can end, by throwing there; then --resume must give what a run without a break gives.
struct Stop {
    std::string place;  // "apply", "measure"
    size_t stage;       // 1: the first stage
};

class PipelineStops : public PipelineTest, public ::testing::WithParamInterface<Stop> {};

TEST_P(PipelineStops, ResumedRunEqualsAnUninterruptedOne) {
    const auto stop = GetParam();
    bool armed = false;
    size_t running = 0;
    const auto stage_at = [&](size_t index, const Effect& effect) {
        return [&, index, effect](Model& model, Context& context) {
            running = index;
            // Random numbers must not depend on what ran before in this process.
            change(model, 3, at::randn({1}).item<double>());
            effect(model, context);
            if (armed && stop.place == "apply" && stop.stage == index) throw Error("here", "killed", "");
        };
    };
    options.gate.max_drop = 0.5;
    std::vector<std::shared_ptr<FakeStage>> fakes = {
        add("prune.a", stage_at(1, shrink(0.5, 30))), add("train.b", stage_at(2, lose(-29.9))),
        add("quantize.bad", stage_at(3, shrink(0.5, 7))), add("quantize.d", stage_at(4, shrink(0.7, 0.1)))};
    measure = [&](const Model& baseline, const Model& candidate, const StageWork& work) {
        if (armed && stop.place == "measure" && (work.stage == "baseline" ? 0 : running) == stop.stage)
            throw Error("here", "killed", "");
        return measured(baseline, candidate, work);
    };
    const auto whole = run("whole");
    for (const auto& fake : fakes) fake->applied = 0;
    running = 0;
    armed = true;
    EXPECT_THROW(run("broken"), Error);
    if (stop.stage > 0 || stop.place == "apply") {
        EXPECT_TRUE(exists("broken/model.pt"));
    }
    armed = false;
    const auto resumed = run("broken", true);

    ASSERT_EQ(resumed.size(), whole.size());
    for (size_t i = 0; i < whole.size(); ++i) {
        EXPECT_EQ(resumed[i].kept, whole[i].kept) << i;
        EXPECT_EQ(resumed[i].verdict, whole[i].verdict) << i;
        EXPECT_EQ(resumed[i].resumed, i < stop.stage) << i;
        EXPECT_EQ(content("broken/" + whole[i].folder + "/model.pt"), content("whole/" + whole[i].folder + "/model.pt"))
            << i;
    }
    EXPECT_EQ(content("broken/model.pt"), content("whole/model.pt"));
    for (size_t i = 0; i < fakes.size(); ++i)  // only the interrupted stage ran twice
        EXPECT_EQ(fakes[i]->applied, i + 1 == stop.stage ? 2 : 1) << i;
}

INSTANTIATE_TEST_SUITE_P(Everywhere, PipelineStops,
                         ::testing::Values(Stop{"measure", 0}, Stop{"apply", 1}, Stop{"measure", 1}, Stop{"apply", 2},
                                           Stop{"measure", 2}, Stop{"apply", 3}, Stop{"measure", 3}, Stop{"apply", 4},
                                           Stop{"measure", 4}),
                         [](const auto& info) { return info.param.place + std::to_string(info.param.stage); });

TEST_F(PipelineTest, AFinishedRunIsNotRepeated) {
    const auto stage = add("prune.a", shrink(0.5));
    run();
    const auto again = run("run", true);
    EXPECT_EQ(stage->applied, 1);
    EXPECT_TRUE(again[1].resumed);
    EXPECT_EQ(again[1].measurement["quality"]["points"], 90.0);
}

TEST_F(PipelineTest, ADamagedMeasurementIsMovedAsideAndTheStageRepeatedButNotTheNext) {
    const auto first = add("prune.a", shrink(0.5)), second = add("quantize.b", shrink(0.5));
    run();
    const auto final_model = content("run/model.pt");
    std::ofstream(folder / "run" / "01-prune.a" / "measurement.json") << "{\"quality\": {\"poi";
    run("run", true);
    EXPECT_EQ(first->applied, 2);
    EXPECT_EQ(second->applied, 1);  // its input has the same bits again
    EXPECT_TRUE(exists("run/01-prune.a.aside-1/model.pt"));
    EXPECT_EQ(content("run/model.pt"), final_model);
    EXPECT_THAT(bytes("run/log.jsonl"), ::testing::HasSubstr("its files are damaged"));
}

TEST_F(PipelineTest, ADamagedModelFileIsNoticed) {
    const auto first = add("prune.a", shrink(0.5));
    run();
    auto model = bytes("run/01-prune.a/model.pt");
    model[model.size() / 2] ^= 1;
    std::ofstream(folder / "run" / "01-prune.a" / "model.pt", std::ios::binary) << model;
    run("run", true);
    EXPECT_EQ(first->applied, 2);
    EXPECT_TRUE(exists("run/01-prune.a.aside-1/model.pt"));
}

TEST_F(PipelineTest, AStageWhoseInputIsAnotherNowIsRepeated) {
    double points = 1;
    const auto first = add("prune.a", [&](Model& model, Context& context) { shrink(0.5, points)(model, context); });
    const auto second = add("quantize.b", shrink(0.5));
    run();
    std::filesystem::remove_all(folder / "run" / "01-prune.a");
    points = 2;
    run("run", true);
    EXPECT_EQ(first->applied, 2);
    EXPECT_EQ(second->applied, 2);
    EXPECT_TRUE(exists("run/02-quantize.b.aside-1/model.pt"));
    EXPECT_NEAR(final_points(), 88, 1e-4);
}

TEST_F(PipelineTest, AMissingFinalModelIsPutBack) {
    add("prune.a", shrink(0.5));
    run();
    const auto model = bytes("run/model.pt");
    std::filesystem::remove(folder / "run" / "model.pt");
    run("run", true);
    EXPECT_EQ(bytes("run/model.pt"), model);
}

TEST_F(PipelineTest, CheckpointsSurviveACrashUntilTheStageIsDone) {
    bool found = false, armed = true;
    add("train.a", [&](Model& model, Context& context) {
        found = std::filesystem::exists(context.work_dir / "checkpoint.pt");
        std::ofstream(context.work_dir / "checkpoint.pt") << "epoch 3";
        if (armed) throw Error("here", "killed", "");
        lose(-1)(model, context);
    });
    EXPECT_THROW(run(), Error);
    EXPECT_FALSE(found);
    armed = false;
    run("run", true);
    EXPECT_TRUE(found);
    EXPECT_FALSE(exists("run/01-train.a/work"));
}

TEST_F(PipelineTest, CheckpointsOfAnotherInputAreNotUsed) {
    bool found = false, armed = true;
    double points = 1;
    add("prune.a", [&](Model& model, Context& context) { shrink(0.5, points)(model, context); });
    add("train.b", [&](Model& model, Context& context) {
        found = std::filesystem::exists(context.work_dir / "checkpoint.pt");
        std::ofstream(context.work_dir / "checkpoint.pt") << "epoch 3";
        if (armed) throw Error("here", "killed", "");
        lose(-1)(model, context);
    });
    EXPECT_THROW(run(), Error);
    std::filesystem::remove_all(folder / "run" / "01-prune.a");
    points = 2;
    armed = false;
    run("run", true);
    EXPECT_FALSE(found);
    EXPECT_TRUE(exists("run/02-train.b.partial.aside-1/work/checkpoint.pt"));
}

TEST_F(PipelineTest, TheTimeOfACrashedAttemptCounts) {
    bool armed = true;
    double seconds = 0;
    add("train.a", [&](Model& model, Context& context) {
        if (armed) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1100));
            context.log->progress("training", 1, 10, "");  // the sign of life
            throw Error("here", "killed", "");
        }
        lose(-1)(model, context);
    });
    measure = [&](const Model& baseline, const Model& candidate, const StageWork& work) {
        seconds = work.seconds;
        return measured(baseline, candidate, work);
    };
    EXPECT_THROW(run(), Error);
    armed = false;
    run("run", true);
    EXPECT_GE(seconds, 1.1);
}

TEST_F(PipelineTest, AnInterruptionKeepsWhatWasFinished) {
    bool stop = false, armed = true;
    context.interrupted = [&] { return stop; };
    const auto first = add("prune.a", [&](Model& model, Context& context) { shrink(0.5)(model, context); });
    add("quantize.b", [&](Model& model, Context& context) {
        shrink(0.5)(model, context);
        stop = armed;
    });
    EXPECT_THROW(run(), Interrupted);
    EXPECT_TRUE(exists("run/01-prune.a/model.pt"));
    EXPECT_FALSE(exists("run/02-quantize.b"));
    EXPECT_EQ(bytes("run/model.pt"), bytes("run/01-prune.a/model.pt"));
    stop = armed = false;
    EXPECT_EQ(run("run", true).size(), 3u);
    EXPECT_EQ(first->applied, 1);
}

TEST_F(PipelineTest, WarningsOfAStageAreInItsFile) {
    add("prune.a", [](Model& model, Context& context) {
        context.log->warning("layer fc was left out");
        shrink(0.5)(model, context);
    });
    run();
    EXPECT_EQ(read_json(folder / "run" / "01-prune.a" / "stage.json")["warnings"].dump(),
              R"(["layer fc was left out"])");
}

TEST_F(PipelineTest, TheLogTellsTheStoryLineByLine) {
    add("prune.a", shrink(0.5));
    run();
    std::vector<std::string> events;
    std::istringstream log(bytes("run/log.jsonl"));
    for (std::string line; std::getline(log, line);) {
        const auto record = Json::parse(line);
        EXPECT_TRUE(record.contains("time"));
        if (record["event"] != "message") events.push_back(record["event"]);
    }
    EXPECT_EQ(events,
              (std::vector<std::string>{"start", "stage_start", "stage_done", "stage_start", "stage_done", "done"}));
}

TEST_F(PipelineTest, TheContentOfAModelFileIsItsTensorsAndItsCode) {
    auto model = subject();
    model.save(folder / "a.pt");
    model.clone().save(folder / "b.pt");  // other type names
    EXPECT_EQ(content("a.pt"), content("b.pt"));
    change(model, 3, 1e-3);
    model.save(folder / "c.pt");
    EXPECT_NE(content("a.pt"), content("c.pt"));
    testing::build_model({{"weight", weight_of(subject())}},
                         "def forward(self, x):\n    return torch.relu(torch.linear(x, self.weight))\n")
        .save(folder / "d.pt");
    EXPECT_NE(content("a.pt"), content("d.pt"));
}

TEST_F(PipelineTest, TheContextIsGivenBackAsItWas) {
    Log* log = context.log;
    add("prune.a", shrink(0.5));
    run();
    EXPECT_EQ(context.log, log);
    EXPECT_EQ(context.baseline, nullptr);
    EXPECT_TRUE(context.work_dir.empty());
}

}  // namespace
}  // namespace coppice
