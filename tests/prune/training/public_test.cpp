// The stages that train, made by a C++ program: with the public headers alone, and the same as a recipe makes them.
#include <coppice/prune_training.h>

#include "prune/training/context.h"

namespace coppice::testing {
namespace {

TrainOptions two_epochs() {
    TrainOptions train;
    train.epochs = 2;
    train.batch_size = 8;
    train.lr = 0.02;
    return train;
}

/// The same stage by its name, with two_epochs() and other options as a recipe has them.
Model by_recipe(const std::string& name, std::vector<std::pair<std::string, Setting>> settings) {
    for (const auto& [option, value] : {std::pair("epochs", "2"), std::pair("batch_size", "8"), std::pair("lr", "0.02"),
                                        std::pair("autocast", "off")})
        settings.emplace_back(option, Setting::scalar(value));
    Options options(name, Setting::map(settings));
    const auto stages = prune::training_stages({});
    auto context = context_of(40);
    const auto model = find_entry(stages, "stage", name, "test").make(options)->apply(residual_model(), context);
    options.done();
    return model;
}

void expect_same_bits(const Model& a, const Model& b) {
    const auto tensors = named_tensors(a);
    ASSERT_EQ(tensors.size(), named_tensors(b).size());
    for (const auto& named : tensors)
        EXPECT_TRUE(at::equal(named.tensor, get_attribute(b, named.name).toTensor())) << named.name;
}

TEST(TrainingStagesInCpp, GradualPruning) {
    prune::ChannelPruningOptions pruning;
    pruning.target.macs_ratio = 0.5;
    pruning.target.round_to = 2;
    const auto stage =
        prune::gradual_pruning(TrainingTask("prune.gradual", two_epochs()), prune::magnitude(), prune::global(),
                               prune::cubic(), pruning, {.end_epoch = 1, .every_steps = 3});
    auto context = context_of(40);
    stage->check(residual_model(), context);
    const auto smaller = stage->apply(residual_model(), context);
    EXPECT_LE(cost(smaller, context.example).macs, 0.5 * cost(residual_model(), context.example).macs);
    expect_same_bits(smaller, by_recipe("prune.gradual", {{"macs_ratio", Setting::scalar("0.5")},
                                                          {"round_to", Setting::scalar("2")},
                                                          {"end_epoch", Setting::scalar("1")},
                                                          {"every_steps", Setting::scalar("3")}}));
}

TEST(TrainingStagesInCpp, MovementPruning) {
    prune::WeightPruningOptions pruning;
    pruning.sparsity = 0.75;
    const auto stage = prune::movement_pruning(TrainingTask("prune.movement", two_epochs()), prune::unstructured(),
                                               prune::linear(), pruning, {.end_epoch = 1});
    auto context = context_of(40);
    const auto sparse = stage->apply(residual_model(), context);
    const auto weight = get_attribute(sparse, "conv2.weight").toTensor();
    EXPECT_EQ(weight.detach().eq(0).sum().item<int64_t>(), weight.numel() * 3 / 4);
    expect_same_bits(sparse, by_recipe("prune.movement", {{"sparsity", Setting::scalar("0.75")},
                                                          {"pruning_schedule", Setting::scalar("linear")},
                                                          {"end_epoch", Setting::scalar("1")}}));
}

TEST(TrainingStagesInCpp, SparseLearning) {
    const auto stage = prune::sparse_learning(TrainingTask("prune.sparse_learning", two_epochs(), cross_entropy()),
                                              prune::group_lasso(0.01), {.ignore = {"^conv1$"}});
    auto context = context_of(40);
    const auto trained = stage->apply(residual_model(), context);
    EXPECT_LT(context.facts["penalty_after"].get<double>(), context.facts["penalty_before"].get<double>());
    Setting ignore;
    ignore.kind = Setting::Kind::kList;
    ignore.items = {Setting::scalar("^conv1$")};
    const auto lasso = Setting::map({{"group_lasso", Setting::map({{"strength", Setting::scalar("0.01")}})}});
    expect_same_bits(trained, by_recipe("prune.sparse_learning", {{"ignore", ignore}, {"regulariser", lasso}}));
}

TEST(TrainingStagesInCpp, WhatCannotBeDoneInTrainingIsRefusedWhenTheStageIsMade) {
    const auto make = [](std::unique_ptr<prune::Allocation> allocation, const prune::ChannelPruningOptions& pruning) {
        return prune::gradual_pruning(TrainingTask("prune.gradual", two_epochs()), prune::magnitude(),
                                      std::move(allocation), prune::cubic(), pruning);
    };
    EXPECT_ERROR(make(prune::sensitivity(), {}), InvalidArgument, "at every scoring");
    prune::ChannelPruningOptions timed;
    timed.target.latency_ratio = 0.5;
    EXPECT_ERROR(make(prune::global(), timed), InvalidArgument, "need a model at rest");
    prune::GregOptions greg;
    greg.target.energy_ratio = 0.5;
    EXPECT_ERROR(prune::greg(prune::magnitude(), prune::global(), greg), InvalidArgument, "need a model at rest");
}

}  // namespace
}  // namespace coppice::testing
