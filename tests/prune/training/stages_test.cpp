// Stages prune.gradual and prune.sparse_learning, and what prune.movement shares with them.
#include <coppice/prune_training.h>

#include <fstream>

#include "prune/masking.h"
#include "prune/training/context.h"

namespace coppice::testing {
namespace {

using Settings = std::vector<std::pair<std::string, std::string>>;

std::unique_ptr<Stage> training_stage(const std::string& name, const Settings& given) {
    Settings settings = given;
    for (const auto& standard : Settings{{"batch_size", "8"}, {"autocast", "off"}, {"lr", "0.02"}})
        if (std::none_of(given.begin(), given.end(), [&](const auto& own) { return own.first == standard.first; }))
            settings.push_back(standard);
    Options options(name, settings);
    const auto stages = prune::training_stages(builtin_losses());
    auto stage = find_entry(stages, "stage", name, "test").make(options);
    options.done();
    return stage;
}

void expect_equal(const Model& a, const Model& b, double tolerance) {
    const auto first = named_tensors(a);
    ASSERT_EQ(first.size(), named_tensors(b).size());
    for (const auto& named : first)
        EXPECT_LE(max_difference(named.tensor, get_attribute(b, named.name).toTensor()), tolerance) << named.name;
}

TEST(PruneGradual, AllAtTheBeginningIsPruningAndThenTraining) {
    const auto model = residual_model();
    auto context = context_of(40);
    const auto gradual = training_stage("prune.gradual", {{"epochs", "2"},
                                                          {"macs_ratio", "0.5"},
                                                          {"round_to", "2"},
                                                          {"criterion", "taylor"},
                                                          {"pruning_schedule", "one_shot"},
                                                          {"lr", "0.001"}})
                             ->apply(model, context);
    EXPECT_LT(context.facts["cut_difference"].get<double>(), 1e-5);
    auto other = context_of(40);
    const auto cut =
        make_stage({{"macs_ratio", "0.5"}, {"round_to", "2"}, {"criterion", "taylor"}})->apply(model, other);
    EXPECT_EQ(context.facts["removed"], other.facts["removed"]);
    Options options("train.finetune", {{"batch_size", "8"}, {"autocast", "off"}, {"lr", "0.001"}, {"epochs", "2"}});
    const auto stages = train_stages(builtin_losses());
    const auto trained = find_entry(stages, "stage", "train.finetune", "test").make(options)->apply(cut, other);
    expect_equal(trained, gradual, 1e-3);  // ten steps in float32, summed over other numbers of zeros
}

TEST(PruneGradual, MasksGrowAsTheScheduleSaysAndMeetTheTarget) {
    const auto model = residual_model();
    auto context = context_of(40);  // 5 steps an epoch
    Messages log;
    context.log = &log;
    const auto stage = training_stage("prune.gradual", {{"epochs", "4"},
                                                        {"ratio", "0.5"},
                                                        {"scope", "uniform"},
                                                        {"round_to", "1"},
                                                        {"pruning_schedule", "linear"},
                                                        {"begin_epoch", "1"},
                                                        {"end_epoch", "3"},
                                                        {"every_steps", "5"}});
    stage->check(model, context);
    const auto smaller = stage->apply(model, context);
    // Groups of 8, 16 and 16 channels lose 0, 1/4 and 1/2 of them after steps 5, 10 and 15.
    std::vector<std::string> growth;
    for (const auto& message : log.all)
        if (message.rfind("step ", 0) == 0) growth.push_back(message.substr(0, message.find(" are masked")));
    EXPECT_EQ(growth, (std::vector<std::string>{"step 5 of 20: 0 of 40 channels", "step 10 of 20: 10 of 40 channels",
                                                "step 15 of 20: 20 of 40 channels"}));
    EXPECT_EQ(get_attribute(smaller, "conv1.weight").toTensor().size(0), 4);
    EXPECT_EQ(get_attribute(smaller, "conv3.weight").toTensor().size(0), 8);
    EXPECT_LT(context.facts["cut_difference"].get<double>(), 1e-5);
    EXPECT_EQ(context.facts["epochs"], 4);
    EXPECT_EQ(context.facts["channels_after"], 20);
    for (const auto& change : context.changes) {
        if (change.layer == "conv2") {
            EXPECT_EQ(change.before + " -> " + change.after, "16 channels -> 8 channels");
        }
    }
}

TEST(PruneGradual, IgnoredLayersStayWhole) {
    auto context = context_of(16);
    Options options("prune.gradual", Setting::map({{"batch_size", Setting::scalar("8")},
                                                   {"round_to", Setting::scalar("1")},
                                                   {"ignore", [] {
                                                        Setting list;
                                                        list.kind = Setting::Kind::kList;
                                                        list.items = {Setting::scalar("^conv1$")};
                                                        return list;
                                                    }()}}));
    const auto stages = prune::training_stages(builtin_losses());
    const auto smaller =
        find_entry(stages, "stage", "prune.gradual", "test").make(options)->apply(residual_model(), context);
    EXPECT_EQ(get_attribute(smaller, "conv1.weight").toTensor().size(0), 8);
    EXPECT_LT(get_attribute(smaller, "conv2.weight").toTensor().size(0), 16);
}

TEST(PruneGradual, SoftMasksEndWithTheTargetToo) {
    auto context = context_of(40);
    const auto smaller = training_stage("prune.gradual", {{"epochs", "2"},
                                                          {"scope", "uniform"},
                                                          {"round_to", "1"},
                                                          {"soft", "true"},
                                                          {"every_steps", "3"},
                                                          {"bn_batches", "2"}})
                             ->apply(residual_model(), context);
    EXPECT_EQ(get_attribute(smaller, "conv2.weight").toTensor().size(0), 8);
    EXPECT_FALSE(context.facts.contains("cut_difference"));  // what grew back last is cut off
}

/// Interrupts in the second epoch, then goes on, and compares with a run in one go.
void expect_resumes(const std::string& name, const Settings& settings) {
    SCOPED_TRACE(name);
    TemporaryFolder once_folder, twice_folder;
    auto once = context_of(40), twice = context_of(40);
    once.work_dir = once_folder.path();
    twice.work_dir = twice_folder.path();
    const auto whole = training_stage(name, settings)->apply(residual_model(), once);
    int64_t polls = 0;
    twice.interrupted = [&] { return ++polls > 8; };  // 5 steps an epoch
    EXPECT_THROW(training_stage(name, settings)->apply(residual_model(), twice), Interrupted);
    twice.interrupted = [] { return false; };
    const auto resumed = training_stage(name, settings)->apply(residual_model(), twice);
    EXPECT_TRUE(twice.facts["resumed"].get<bool>());
    expect_equal(whole, resumed, 0);
    // The last epoch is done, but the process died before the stage was.
    auto again = context_of(40);
    again.work_dir = twice_folder.path();
    expect_equal(whole, training_stage(name, settings)->apply(residual_model(), again), 0);
}

TEST(PruneGradual, GoesOnWhereItWasInterrupted) {
    expect_resumes("prune.gradual", {{"epochs", "3"}, {"round_to", "1"}, {"every_steps", "3"}, {"end_epoch", "2"}});
}

TEST(PruneMovement, GoesOnWhereItWasInterrupted) {
    expect_resumes("prune.movement", {{"epochs", "3"}, {"sparsity", "0.7"}, {"every_steps", "2"}, {"end_epoch", "2"}});
}

TEST(PruneSparseLearning, GoesOnWhereItWasInterrupted) {
    expect_resumes("prune.sparse_learning", {{"epochs", "3"}, {"regulariser", "greg"}});
}

TEST(PruneSparseLearning, ThePenaltyEndsLowerThanWithoutItAndTheShapeStays) {
    for (const auto& row : prune::regularisers()) {
        SCOPED_TRACE(row.name);
        // The penalty is proportional to its factor, which is therefore divided out; 1e-9 of it trains nothing.
        std::vector<double> penalties;
        for (const char* factor : {"1e-9", "0.05"}) {
            auto context = context_of(40);
            const auto of_row =
                Setting::map({{row.name == "greg" ? "increment" : "strength", Setting::scalar(factor)}});
            Options options("prune.sparse_learning",
                            Setting::map({{"epochs", Setting::scalar("3")},
                                          {"batch_size", Setting::scalar("8")},
                                          {"lr", Setting::scalar("0.01")},
                                          {"regulariser", Setting::map({{row.name, of_row}})}}));
            const auto stages = prune::training_stages(builtin_losses());
            const auto stage = find_entry(stages, "stage", "prune.sparse_learning", "test").make(options);
            options.done();
            stage->check(residual_model(), context);
            const auto trained = stage->apply(residual_model(), context);
            verify(trained, context.example, row.name, {{2, 10}});
            EXPECT_EQ(cost(trained, context.example).macs, cost(residual_model(), context.example).macs);
            penalties.push_back(context.facts["penalty_after"].get<double>() / std::stod(factor));
        }
        EXPECT_LT(penalties[1], 0.99 * penalties[0]);
    }
}

Setting list_of(const std::string& text) {
    Setting list;
    list.kind = Setting::Kind::kList;
    list.items = {Setting::scalar(text)};
    return list;
}

/// Sequences for fused_encoder().
Context context_of_sequences() {
    Context context;
    context.example = {sine({2, 7, 6})};
    context.data.train = tensor_dataset({sine({40, 7, 6})}, at::arange(40).remainder(5), "smooth sequences");
    context.data.calibration = context.data.train;
    return context;
}

TEST(PruneSparseLearning, HeadsOfAFusedEncoderGetThePenaltyAndAreCutAfterwards) {
    std::vector<double> norms;
    for (const char* strength : {"1e-9", "5"}) {
        auto context = context_of_sequences();
        const auto lasso = Setting::map({{"group_lasso", Setting::map({{"strength", Setting::scalar(strength)}})}});
        Options options("prune.sparse_learning", Setting::map({{"epochs", Setting::scalar("3")},
                                                               {"batch_size", Setting::scalar("8")},
                                                               {"weight_decay", Setting::scalar("0")},
                                                               {"regulariser", lasso}}));
        const auto stages = prune::training_stages(builtin_losses());
        const auto stage = find_entry(stages, "stage", "prune.sparse_learning", "test").make(options);
        stage->check(fused_encoder(), context);
        const auto trained = stage->apply(fused_encoder(), context);
        EXPECT_THAT(context.facts["note"].get<std::string>(), ::testing::HasSubstr("written out"));
        // Rows of heads 0, 1 and 2 of the queries.
        norms.push_back(
            get_attribute(trained, "a.qkv.weight").toTensor().detach().slice(0, 0, 12).norm().item<double>());

        auto other = context_of_sequences();
        const auto cut =
            make_stage({{"ratio", "0.34"}, {"round_to", "1"}, {"scope", "uniform"}})->apply(trained, other);
        EXPECT_EQ(context.facts["groups"], other.facts["groups"]);
        EXPECT_EQ(get_attribute(cut, "a.qkv.weight").toTensor().size(0), 24);  // one head of three is gone
    }
    EXPECT_LT(norms[1], 0.9 * norms[0]);
}

TEST(PruneSparseLearning, WhatIsIgnoredGetsNoPenalty) {
    const auto model = prune::unfuse_attention(fused_encoder());
    for (const bool width : {false, true}) {
        auto context = context_of_sequences();
        const auto lasso = Setting::map({{"group_lasso", Setting::map({{"strength", Setting::scalar("1")}})}});
        Options options("prune.sparse_learning",
                        Setting::map({{"epochs", Setting::scalar("1")},
                                      {"batch_size", Setting::scalar("40")},
                                      {"lr", Setting::scalar("1e-6")},
                                      {"attention", Setting::scalar(width ? "width" : "heads")},
                                      {"ignore", list_of("\\.f1$")},
                                      {"regulariser", lasso}}));
        const auto stages = prune::training_stages(builtin_losses());
        find_entry(stages, "stage", "prune.sparse_learning", "test").make(options)->apply(fused_encoder(), context);
        // The sum over all channels but those of f1, by slices: |w_c| with every parameter of the channel.
        prune::GroupOptions grouping;
        grouping.head_width = width;
        double sum = 0;
        size_t others = 0;
        const auto groups = prune::find_groups(model, Facts::observe(model, context.example), grouping);
        for (const auto& group : groups.all()) {
            if (group.name == "a.f1") continue;
            ++others;
            for (int64_t c = 0; c < group.channels; ++c) {
                double squares = 0;
                for (const auto& slice : group.slices)
                    for (size_t i = 0; i < slice.channel_of.size(); ++i)
                        if (slice.channel_of[i] == c)
                            squares += slice.tensor.detach()
                                           .select(slice.dim, static_cast<int64_t>(i))
                                           .to(at::kDouble)
                                           .square()
                                           .sum()
                                           .item<double>();
                sum += std::sqrt(squares);
            }
        }
        EXPECT_EQ(context.facts["groups"], others);
        EXPECT_NEAR(context.facts["penalty_before"].get<double>(), sum, 1e-6 * sum);  // float32 squares
    }
    auto context = context_of_sequences();
    Options options("prune.sparse_learning", Setting::map({{"ignore", list_of("a.fl")}}));
    const auto stages = prune::training_stages(builtin_losses());
    const auto stage = find_entry(stages, "stage", "prune.sparse_learning", "test").make(options);
    EXPECT_ERROR(stage->check(fused_encoder(), context), InvalidArgument, "Did you mean \"a.f1\"");
}

TEST(PruneGradual, HeadsOfAFusedEncoderAreMaskedAndCut) {
    auto context = context_of_sequences();
    const auto smaller =
        training_stage("prune.gradual", {{"epochs", "1"}, {"ratio", "0.34"}, {"round_to", "1"}, {"scope", "uniform"}})
            ->apply(fused_encoder(), context);
    EXPECT_THAT(context.facts["note"].get<std::string>(), ::testing::HasSubstr("written out"));
    EXPECT_EQ(get_attribute(smaller, "a.qkv.weight").toTensor().size(0), 24);
}

TEST(PruneTraining, TablesAreSortedAndEveryRowMakesSomething) {
    const auto expect_good = [](const auto& table) {
        for (size_t i = 0; i < table.size(); ++i) {
            EXPECT_FALSE(table[i].summary.empty()) << table[i].name;
            if (i > 0) {
                EXPECT_LT(table[i - 1].name, table[i].name);
            }
            Options options(table[i].name);
            EXPECT_NE(table[i].make(options), nullptr) << table[i].name;
        }
    };
    expect_good(prune::schedules());
    expect_good(prune::regularisers());
    expect_good(prune::training_stages(builtin_losses()));
}

TEST(PruneTraining, WhatIsAlwaysRefusedIsNoOption) {
    std::set<std::string> listed;
    Options options("prune.gradual");
    for (const auto& row : prune::training_stages(builtin_losses()))
        if (row.name == "prune.gradual") row.make(options);
    for (const auto& asked : options.asked()) listed.insert(asked.name);
    EXPECT_TRUE(listed.count("macs_ratio") && listed.count("round_to"));
    for (const char* name : {"latency_ratio", "energy_ratio", "only_faster"}) EXPECT_FALSE(listed.count(name)) << name;
}

TEST(PruneTraining, NeedsComeFromTrainingCriterionAndBatchNorm) {
    EXPECT_TRUE(training_stage("prune.gradual", {})->needs().training_data);
    EXPECT_FALSE(training_stage("prune.gradual", {})->needs().calibration_data);
    EXPECT_TRUE(training_stage("prune.gradual", {{"criterion", "taylor"}})->needs().calibration_data);
    EXPECT_TRUE(training_stage("prune.gradual", {{"bn_batches", "2"}})->needs().calibration_data);
    EXPECT_TRUE(training_stage("prune.sparse_learning", {})->needs().training_data);
}

TEST(PruneTraining, MistakesAreNamed) {
    EXPECT_ERROR(training_stage("prune.gradual", {{"epochs", "2"}, {"begin_epoch", "1.5"}, {"end_epoch", "1"}}),
                 InvalidArgument, "the masks grow from epoch 1.5 to 1");
    EXPECT_ERROR(training_stage("prune.gradual", {{"scope", "sensitivity"}}), InvalidArgument,
                 "unknown scope \"sensitivity\"");
    EXPECT_ERROR(training_stage("prune.gradual", {{"latency_ratio", "0.5"}}), InvalidArgument, "needs a model at rest");
    EXPECT_ERROR(training_stage("prune.gradual", {{"round_to", "auto"}}), InvalidArgument, "round_to");
    EXPECT_ERROR(training_stage("prune.gradual", {{"only_faster", "true"}}), InvalidArgument, "only_faster");
    for (const char* timed : {"latency_ratio", "energy_ratio"}) {
        const auto greg = Setting::map({{"greg", Setting::map({{timed, Setting::scalar("0.5")}})}});
        Options options("prune.sparse_learning", Setting::map({{"regulariser", greg}}));
        const auto stages = prune::training_stages(builtin_losses());
        EXPECT_ERROR(find_entry(stages, "stage", "prune.sparse_learning", "test").make(options), InvalidArgument,
                     std::string(timed) + " needs a model at rest");
    }
    EXPECT_ERROR(training_stage("prune.gradual", {{"pruning_schedule", "cubc"}}), InvalidArgument,
                 "Did you mean \"cubic\"");
    EXPECT_ERROR(training_stage("prune.sparse_learning", {{"regulariser", "group_nrm"}}), InvalidArgument,
                 "Did you mean \"group_norm\"");
    auto context = context_of(8);
    context.data.train = nullptr;
    EXPECT_ERROR(training_stage("prune.gradual", {})->apply(residual_model(), context), InvalidArgument,
                 "there is no training data");
}

}  // namespace
}  // namespace coppice::testing
