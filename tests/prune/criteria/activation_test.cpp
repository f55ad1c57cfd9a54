// apoz and mean_activation.
#include <cmath>

#include "prune/criteria/criteria.h"
#include "support/warnings.h"

namespace coppice::testing {
namespace {

const auto kInputs = sine({7, 4}) - 0.2;

/// Hidden value h of example n of hidden_layer().
double hidden(int64_t n, int64_t h) {
    double sum = 0.3 * std::sin(static_cast<double>(h));
    for (int64_t i = 0; i < 4; ++i)
        sum += 0.9 * std::sin(static_cast<double>(h * 4 + i)) * (std::sin(static_cast<double>(n * 4 + i)) - 0.2);
    return std::max(sum, 0.0);
}

TEST(PruneApoz, CountsWhatTheNextLayerReadsAsZero) {
    const auto scores = only_scores(*prune::apoz({3, 3}), hidden_layer(), calibrated_on({kInputs}));
    for (int64_t h = 0; h < 3; ++h) {
        double active = 0;
        for (int64_t n = 0; n < 7; ++n) active += hidden(n, h) > 0;
        EXPECT_NEAR(scores[h].item<double>(), active / 7, 1e-12);  // batches of 3, 3 and 1 weigh by their size
    }
}

TEST(PruneMeanActivation, AveragesWhatTheNextLayerReads) {
    const auto scores = only_scores(*prune::mean_activation({3, 3}), hidden_layer(), calibrated_on({kInputs}));
    for (int64_t h = 0; h < 3; ++h) {
        double sum = 0;
        for (int64_t n = 0; n < 7; ++n) sum += hidden(n, h);
        EXPECT_NEAR(scores[h].item<double>(), sum / 7, 1e-6);  // float32 activations
    }
}

TEST(PruneMeanActivation, AveragesOverTheLayersThatReadAGroupAndOverPositions) {
    // The trunk is read behind relu by conv2 and shortcut: one value, counted once.
    const auto model = residual_model();
    const Inputs example = {sine({2, 3, 8, 8})};
    auto context = calibrated_on(example);
    const auto groups = prune::find_groups(model, Facts::observe(model, example));
    const auto scores = prune::mean_activation()->scores(model, groups, context);
    at::Tensor read;
    NodeHooks hooks;
    hooks.before = [&](const torch::jit::Node* node, std::vector<c10::IValue>& inputs) {
        const auto view = as_conv(const_cast<torch::jit::Node*>(node));
        if (view && attribute_name(view->weight) == "conv2.weight") read = inputs[0].toTensor();
    };
    torch::NoGradGuard no_grad;
    run_nodes(model, example, hooks);
    for (size_t g = 0; g < scores.size(); ++g)
        if (groups.all()[g].name == "conv1")
            for (int64_t c = 0; c < 8; ++c)
                EXPECT_NEAR(scores[g][c].item<double>(), read.select(1, c).abs().mean().item<double>(), 1e-6);
}

TEST(PruneMeanActivation, FindsTheChannelsOfAFlattenedMapByTheirIndices) {
    const auto model = build_model({{"a.weight", sine({2, 1, 1, 1}, 0.9)}, {"b.weight", sine({3, 8}, 0.5)}}, R"(
def forward(self, x):
    return torch.linear(torch.flatten(torch.conv2d(x, self.a.weight), 1), self.b.weight)
)");
    const auto x = sine({5, 1, 2, 2});
    const auto scores = only_scores(*prune::mean_activation(), model, calibrated_on({x}));
    EXPECT_NEAR(scores[0].item<double>(), 0.0, 1e-12);  // sin(0)
    EXPECT_NEAR(scores[1].item<double>(), 0.9 * std::sin(1.0) * x.abs().mean().item<double>(), 1e-6);
}

TEST(PruneApoz, SaysWhereNothingIsEverZero) {
    const auto model = build_model({{"a.weight", sine({3, 4}, 0.9) + 0.1}, {"b.weight", sine({2, 3}, 0.8)}}, R"(
def forward(self, x):
    return torch.linear(torch.sigmoid(torch.linear(x, self.a.weight)), self.b.weight)
)");
    Warnings log;
    auto context = calibrated_on({kInputs});
    context.log = &log;
    only_scores(*prune::apoz(), model, context);
    EXPECT_THAT(log.texts,
                ::testing::Contains(::testing::HasSubstr("prune.apoz at a: all channels have the same score")));
}

TEST(PruneActivation, NeedsDataWithoutLabels) {
    EXPECT_TRUE(prune::apoz()->needs().calibration_data);
    EXPECT_FALSE(prune::apoz()->needs().labels);
    Context context;
    context.example = {kInputs};
    EXPECT_ERROR(only_scores(*prune::mean_activation(), hidden_layer(), context), InvalidArgument,
                 "no calibration data");
    EXPECT_ERROR(prune::apoz({0, 64}), InvalidArgument, "at least 1");
    auto bad = kInputs.clone();
    bad[0][0] = std::nan("");
    EXPECT_ERROR(only_scores(*prune::mean_activation(), hidden_layer(), calibrated_on({bad})), UnsupportedModel,
                 "NaN or infinity on the calibration data");
}

TEST(PruneActivation, AModelInTrainingModeIsObservedInEvalModeAndPutBack) {
    auto model = residual_model();
    const Inputs example = {sine({4, 3, 8, 8})};
    const auto groups = prune::find_groups(model, Facts::observe(model, example));
    auto context = calibrated_on(example);
    const auto expected = prune::mean_activation()->scores(model, groups, context);
    model.train();
    const auto before = get_attribute(model, "bn1.running_mean").toTensor().clone();
    const auto scores = prune::mean_activation()->scores(model, groups, context);
    for (size_t g = 0; g < scores.size(); ++g) EXPECT_TRUE(at::equal(scores[g], expected[g]));
    EXPECT_TRUE(at::equal(get_attribute(model, "bn1.running_mean").toTensor(), before));
    EXPECT_TRUE(model.module().is_training());
}

}  // namespace
}  // namespace coppice::testing
