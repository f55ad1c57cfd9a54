// Energy in the log of a training, predictions of the total, budgets: with a meter of its own, so that nothing hangs on
// this machine.
#include "train/tracker.h"

#include <cmath>
#include <random>

#include "models.h"

namespace coppice::testing {
namespace {

class Events final : public Log {
public:
    void write(const std::string& level, const std::string& message) override {
        lines.push_back(level + ": " + message);
    }
    void progress(const std::string&, double, double, const std::string& detail) override { last = detail; }
    void event(const Json& record) override { all.push_back(record); }
    std::vector<Json> of(const std::string& name) const {
        std::vector<Json> found;
        for (const auto& event : all)
            if (event["event"] == name) found.push_back(event);
        return found;
    }
    bool has(const std::string& text) const {
        return std::any_of(lines.begin(), lines.end(),
                           [&](const std::string& line) { return line.find(text) != std::string::npos; });
    }
    std::vector<Json> all;
    std::vector<std::string> lines;
    std::string last;
};

// 60 examples in batches of 16: four steps in an epoch. A step takes 10 J and an evaluation 5 J; a joule is 0.01 g.
class Training {
public:
    Training() {
        options.epochs = 6, options.batch_size = 16, options.lr = 0.05, options.seed = 3;
        callbacks.after_step = [this](Trainable&) {
            joules += joules_per_step;
            ++steps;
        };
        callbacks.spent = [this] { return Spent{joules, joules / 100, "measured", ""}; };
    }
    TrainResult fit(const std::filesystem::path& checkpoint = {}, bool evaluated = true,
                    const std::function<bool()>& interrupted = {}) {
        std::function<double()> evaluate;
        if (evaluated)
            evaluate = [this] {
                joules += 5;
                at_epoch.push_back(values(*module));
                return metrics.at(at_epoch.size() - 1);
            };
        return Trainer(options).fit(*module, *stripes(60), *cross_entropy(), {}, callbacks, checkpoint, log, evaluate,
                                    interrupted);
    }
    TrainOptions options;
    TrainCallbacks callbacks;
    Events log;
    std::unique_ptr<Trainable> module = trainable(small_model());
    double joules = 1000, joules_per_step = 10;  // a meter may have counted before
    int steps = 0;
    std::vector<double> metrics = {0.5, 0.9, 0.3, 0.4, 0.6, 0.7};
    std::vector<std::vector<at::Tensor>> at_epoch;  // weights as they were judged
};

TEST(PredictTotal, IsTheMeanTimesTheEpochsWithTheIntervalOfTheirScatter) {
    // Mean 12, standard deviation 2; two epochs to come: 4.3027 x 2 x sqrt(2 + 4 / 3) = 15.711.
    const auto prediction = predict_total({10, 12, 14}, 5);
    EXPECT_NEAR(prediction.total, 60, 1e-12);
    EXPECT_NEAR(prediction.interval->first, 60 - 15.711, 1e-3);
    EXPECT_NEAR(prediction.interval->second, 60 + 15.711, 1e-3);
    EXPECT_EQ(predict_total({7}, 4).total, 28);
    EXPECT_FALSE(predict_total({7}, 4).interval) << "one epoch has no scatter";
    EXPECT_EQ(predict_total({1, 9}, 3).interval->first, 10) << "what is spent is spent";
    EXPECT_EQ(predict_total({4, 4, 4}, 3).interval->second, 12) << "nothing is to come";
}

TEST(PredictTotal, IntervalsCoverTheTotal) {
    std::mt19937_64 engine(7);
    std::normal_distribution<double> normal(100, 5);
    for (const size_t first : {3, 12, 30}) {  // from Student's table, and from the expansion
        constexpr int kRuns = 4000;
        int covered = 0;
        for (int run = 0; run < kRuns; ++run) {
            std::vector<double> epochs(40);
            double total = 0;
            for (auto& epoch : epochs) total += epoch = normal(engine);
            const auto interval = *predict_total({epochs.begin(), epochs.begin() + first}, 40).interval;
            covered += interval.first <= total && total <= interval.second;
        }
        // The standard error of the share is 0.34 points.
        EXPECT_NEAR(covered / static_cast<double>(kRuns), 0.95, 0.014) << first;
    }
}

TEST(TrainingTracker, WritesEnergyAndCarbonOfEveryEpoch) {
    Training training;
    const auto result = training.fit();
    const auto epochs = training.log.of("epoch");
    ASSERT_EQ(epochs.size(), 6u);
    for (const auto& epoch : epochs) {
        EXPECT_NEAR(epoch["energy_j"].get<double>(), 45, 1e-9) << "four steps and an evaluation";
        EXPECT_NEAR(epoch["carbon_g"].get<double>(), 0.45, 1e-9);
        EXPECT_EQ(epoch["provenance"], "measured");
        for (const char* name : {"train_loss", "metric", "seconds", "evaluate_seconds"})
            EXPECT_TRUE(epoch[name].is_number()) << name;
    }
    EXPECT_EQ(training.log.last.rfind("loss ", 0), 0u);
    EXPECT_THAT(training.log.last, ::testing::HasSubstr("265 J, 2.65 g CO2e")) << "six epochs but the last evaluation";
    EXPECT_EQ(result.stopped_by, "");
    EXPECT_EQ(result.kept_epoch, 5) << "without a budget the last epoch stays, not the best";
    EXPECT_TRUE(bitwise_equal(values(*training.module), training.at_epoch.back()));
}

TEST(TrainingTracker, PredictsTheTotalAndTellsItsError) {
    Training training;
    // Epochs 1 to 3 cost 45 J each, later ones 85 J: the prediction after three is too low, and the log says by how
    // much.
    training.callbacks.on_epoch = [&](const EpochInfo& info) {
        if (info.epoch == 2) training.joules_per_step = 20;
        return true;
    };
    training.fit();
    const auto predictions = training.log.of("prediction");
    ASSERT_EQ(predictions.size(), 4u) << "after epochs 2, 3, 4 and 5";
    EXPECT_EQ(predictions[0]["after_epochs"], 2);
    EXPECT_NEAR(predictions[1]["energy_j"]["value"].get<double>(), 6 * 45, 1e-9);
    EXPECT_EQ(predictions[1]["energy_j"]["unit"], "J");
    EXPECT_EQ(predictions[1]["energy_j"]["provenance"], "modelled");
    EXPECT_NEAR(predictions[1]["energy_j"]["interval"][1].get<double>(), 6 * 45, 1e-9) << "they were all alike";
    EXPECT_NEAR(predictions[1]["carbon_g"]["value"].get<double>(), 6 * 0.45, 1e-9);
    EXPECT_GT(predictions[1]["seconds"]["value"].get<double>(), 0);
    EXPECT_GT(predictions[2]["energy_j"]["interval"][1].get<double>(), predictions[2]["energy_j"]["value"]);
    const auto total = training.log.of("total");
    ASSERT_EQ(total.size(), 1u);
    EXPECT_NEAR(total[0]["energy_j"].get<double>(), 3 * 45 + 3 * 85, 1e-9);
    EXPECT_EQ(total[0]["predicted"]["after_epochs"], 3);
    EXPECT_NEAR(total[0]["predicted"]["energy_j"]["error_ratio"].get<double>(), 270.0 / 390 - 1, 1e-9);
    EXPECT_TRUE(training.log.has("prediction after 3 of 6 epochs: all take ")) << training.log.lines.size();
    EXPECT_TRUE(training.log.has("270 J (270 to 270 J)"));
}

TEST(TrainingTracker, AnEnergyBudgetEndsTheTrainingInTheStepInWhichItIsUsedUp) {
    Training training;
    training.options.max_energy_j = 100;  // two epochs take 90 J; the first step of the third one reaches it
    const auto result = training.fit();
    EXPECT_EQ(training.steps, 9);
    EXPECT_EQ(result.stopped_by, "max_energy_j");
    ASSERT_EQ(result.epochs.size(), 3u);
    EXPECT_NEAR(*result.epochs[2].energy_j, 15, 1e-9);
    EXPECT_EQ(result.kept_epoch, 1) << "metric 0.9";
    EXPECT_TRUE(bitwise_equal(values(*training.module), training.at_epoch[1]));
    EXPECT_FALSE(bitwise_equal(values(*training.module), training.at_epoch[2]));
    EXPECT_EQ(training.log.of("epoch")[2]["stopped_by"], "max_energy_j");
    EXPECT_EQ(training.log.of("total")[0]["stopped_by"], "max_energy_j");
    EXPECT_TRUE(training.log.of("total")[0]["predicted"].is_null());
    EXPECT_TRUE(
        training.log.has("ended in epoch 3 of 6, because max_energy_j is used up; the weights of the best epoch "
                         "by the metric (2) are kept"));
}

TEST(TrainingTracker, KeepSaysWhoseWeightsStay) {
    Training last;
    last.options.max_energy_j = 100, last.options.keep = "last";
    EXPECT_EQ(last.fit().kept_epoch, 2);
    EXPECT_TRUE(bitwise_equal(values(*last.module), last.at_epoch[2]));
    Training best;  // also without a budget
    best.options.keep = "best";
    EXPECT_EQ(best.fit().kept_epoch, 1);
    EXPECT_TRUE(bitwise_equal(values(*best.module), best.at_epoch[1]));
    Training blind;  // no metric: the last one
    blind.options.max_energy_j = 100;
    const auto result = blind.fit({}, /*evaluated=*/false);
    EXPECT_EQ(result.stopped_by, "max_energy_j");
    EXPECT_EQ(result.kept_epoch, static_cast<int64_t>(result.epochs.size()) - 1);
    Training masks;  // whose earlier epochs are no result
    masks.options.max_energy_j = 100, masks.callbacks.only_last = true;
    EXPECT_EQ(masks.fit().kept_epoch, 2);
    Training neither;
    neither.options.keep = "best";
    EXPECT_ERROR(neither.fit({}, false), InvalidArgument, "keep: best needs a metric");
    neither.callbacks.only_last = true;
    EXPECT_ERROR(neither.fit(), InvalidArgument, "keep: best makes no sense here");
}

TEST(TrainingTracker, CarbonAndTimeAreBudgetsToo) {
    Training carbon;
    carbon.options.max_carbon_g = 0.15;  // 15 J
    EXPECT_EQ(carbon.fit().stopped_by, "max_carbon_g");
    EXPECT_EQ(carbon.steps, 2);
    Training time;
    time.options.max_time_s = 1e-9;
    time.callbacks.spent = nullptr;  // needs no meter
    EXPECT_EQ(time.fit().stopped_by, "max_time_s");
    EXPECT_EQ(time.steps, 1);
    EXPECT_TRUE(time.log.of("epoch")[0]["energy_j"].is_null());
    Training enough;
    enough.options.max_energy_j = 271, enough.options.max_carbon_g = 3, enough.options.max_time_s = 1e9;
    EXPECT_EQ(enough.fit().stopped_by, "");
    EXPECT_EQ(enough.steps, 24);
}

TEST(TrainingTracker, WarnsEarlyThatABudgetWillNotLast) {
    Training training;
    training.options.max_energy_j = 200;  // epochs of 45 J: in the fifth
    training.fit();
    EXPECT_TRUE(training.log.has("warning: max_energy_j will be used up in epoch 5 of 6"));
    Training enough;
    enough.options.max_energy_j = 1000;
    enough.fit();
    EXPECT_FALSE(enough.log.has("will be used up"));
}

TEST(TrainingTracker, ABudgetThatCannotBeWatchedIsAnError) {
    Training training;
    training.options.max_energy_j = 100;
    training.callbacks.spent = nullptr;
    EXPECT_ERROR(training.fit(), MeasurementError, "max_energy_j is set, and nothing tells what is spent");
    training.callbacks.spent = [] {
        return Spent{std::nullopt, std::nullopt, "unavailable", "energy is switched off"};
    };
    EXPECT_ERROR(training.fit(), MeasurementError, "energy is switched off. Choose a source");
    EXPECT_EQ(training.steps, 0);
    Training lost;  // the counter goes away in the second epoch
    lost.options.max_energy_j = 1000;
    lost.callbacks.spent = [&] {
        return lost.steps < 6 ? Spent{lost.joules, 0, "measured", ""}
                              : Spent{std::nullopt, std::nullopt, "unavailable", "the counter vanished"};
    };
    EXPECT_ERROR(lost.fit(), MeasurementError, "the counter vanished");
    EXPECT_EQ(lost.steps, 6);
    Training unwatched;  // without a budget it costs only the figure
    unwatched.callbacks.spent = [] { return Spent{std::nullopt, std::nullopt, "unavailable", "off"}; };
    EXPECT_EQ(unwatched.fit().epochs.size(), 6u);
    EXPECT_TRUE(unwatched.log.of("epoch")[5]["energy_j"].is_null());
    training.options.max_energy_j = -1;
    EXPECT_ERROR(training.fit(), InvalidArgument, "max_energy_j is -1");
}

TEST(TrainingTracker, AResumedTrainingHasTheSameBudgetAndTheSameBestEpoch) {
    const TemporaryFolder folder;
    Training whole;
    whole.options.max_energy_j = 200;
    const auto expected = whole.fit();
    Training first;
    first.options = whole.options;
    int polls = 0;
    EXPECT_ERROR(first.fit(folder / "c.pt", true, [&] { return ++polls == 11; }), Interrupted, "epoch 3");
    Training second;  // another process: its meter knows nothing of the first two epochs
    second.options = whole.options;
    second.metrics = {0.3, 0.4, 0.6, 0.7};
    const auto result = second.fit(folder / "c.pt");
    EXPECT_TRUE(result.resumed);
    EXPECT_EQ(result.stopped_by, "max_energy_j");
    EXPECT_EQ(result.epochs.size(), expected.epochs.size());
    EXPECT_EQ(second.steps + 8, whole.steps);
    EXPECT_EQ(result.kept_epoch, 1) << "an epoch of the first process";
    EXPECT_TRUE(bitwise_equal(values(*second.module), values(*whole.module)));
    Training third;  // nothing is left to do
    third.options = whole.options;
    EXPECT_EQ(third.fit(folder / "c.pt").stopped_by, "max_energy_j");
    EXPECT_EQ(third.steps, 0);
    EXPECT_TRUE(bitwise_equal(values(*third.module), values(*whole.module)));
    EXPECT_TRUE(third.log.of("total").empty()) << "it was told before";
}

TEST(FineTune, TakesBudgetsFromTheRecipeAndTheMeterFromTheContext) {
    Options options("train.finetune", {{"epochs", "6"}, {"batch_size", "16"}, {"max_energy_j", "25"}});
    const auto stages = train_stages(builtin_losses());
    const auto stage = find_entry(stages, "stage", "train.finetune", "test").make(options);
    options.done();
    Context context;
    context.example = {at::ones({1, 1, 8, 8})};
    context.data.train = stripes(60);
    EXPECT_ERROR(stage->check(small_model(), context), MeasurementError, "nothing tells what is spent");
    double joules = 0;
    context.spent = [&] { return Spent{joules += 1, joules / 100, "modelled", ""}; };  // a joule per look
    stage->check(small_model(), context);
    stage->apply(small_model(), context);
    EXPECT_EQ(context.facts["stopped_by"], "max_energy_j");
    EXPECT_EQ(context.facts["train_energy_provenance"], "modelled");
    EXPECT_GE(context.facts["train_energy_j"].get<double>(), 25);
    EXPECT_LT(context.facts["train_energy_j"].get<double>(), 30);
    EXPECT_EQ(context.facts["kept_epoch"].get<size_t>() + 1, context.facts["epochs"].get<size_t>());
}

}  // namespace
}  // namespace coppice::testing
