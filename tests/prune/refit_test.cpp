#include "prune/criteria/criteria.h"
#include "reference/pruning.h"
#include "support/warnings.h"

namespace coppice::testing {
namespace {

struct Cut {
    prune::Groups groups;
    prune::Removal removal;
    Model smaller;
};

/// Removes `channels` of the group that `layer` produces.
Cut cut_channels(const Model& model, const Inputs& example, const std::string& layer, std::vector<int64_t> channels) {
    const auto facts = Facts::observe(model, example);
    Cut result;
    result.groups = prune::find_groups(model, facts);
    for (const auto& group : result.groups.all()) {
        const bool hit = std::find(group.layers.begin(), group.layers.end(), layer) != group.layers.end();
        result.removal.push_back(hit ? channels : std::vector<int64_t>{});
    }
    result.smaller = prune::cut(model, facts, result.groups, result.removal);
    return result;
}

prune::RefitOptions all_positions(double ridge = 1e-9) {
    prune::RefitOptions options;
    options.positions = 100000;
    options.ridge = ridge;
    return options;
}

/// Largest difference of the outputs of both models, over the largest output.
double difference(const Model& a, const Model& b, const Inputs& inputs) {
    torch::NoGradGuard no_grad;
    const auto first = first_tensor(run_nodes(a, inputs)), second = first_tensor(run_nodes(b, inputs));
    return max_difference(first, second) / first.abs().max().item<double>();
}

/// Rows 1 and 3 of a weight with four or more outputs become sums of rows 0 and 2.
at::Tensor with_sums(at::Tensor rows) {
    rows = rows.clone();
    rows[1] = 2 * rows[0] - rows[2];
    rows[3] = 0.5 * rows[0] + rows[2];
    return rows;
}

void expect_exact(const Model& model, const Inputs& example, const std::string& layer) {
    auto cut = cut_channels(model, example, layer, {1, 3});
    EXPECT_GT(difference(model, cut.smaller, example), 0.05) << "the channels were needed";
    auto context = calibrated_on(example);
    prune::refit(cut.smaller, model, cut.groups, cut.removal, all_positions(), context);
    // Float32 weights and activations; the ridge of 1e-9 is below that.
    EXPECT_LT(difference(model, cut.smaller, example), 1e-4);
    for (const auto& layer_error : context.facts["refit"]) EXPECT_LT(layer_error["error_after"].get<double>(), 1e-8);
    EXPECT_GE(context.facts["refit"].size(), 1u);
}

TEST(PruneRefit, ReproducesTheOriginalWhereConvolutionChannelsAreSumsOfOthers) {
    expect_exact(build_model({{"a.weight", with_sums(sine({5, 3, 3, 3}, 0.4))},
                              {"a.bias", with_sums(sine({5}, 0.3))},
                              {"b.weight", sine({4, 5, 3, 3}, 0.3)},
                              {"b.bias", sine({4}, 0.2)}},
                             R"(
def forward(self, x):
    x = torch.conv2d(x, self.a.weight, self.a.bias, [1, 1], [1, 1])
    return torch.conv2d(x, self.b.weight, self.b.bias, [2, 1], [1, 2], [1, 2])
)"),
                 {sine({6, 3, 12, 12})}, "a");
}

TEST(PruneRefit, ReproducesTheOriginalWhereLinearFeaturesAreSumsOfOthers) {
    expect_exact(build_model({{"a.weight", with_sums(sine({6, 7}, 0.5))}, {"b.weight", sine({6, 3}, 0.6)}}, R"(
def forward(self, x):
    return torch.matmul(torch.linear(x, self.a.weight), self.b.weight)
)"),
                 {sine({5, 8, 7})}, "a");
}

TEST(PruneRefit, ReproducesTheOriginalThroughAFlatten) {
    expect_exact(build_model({{"a.weight", with_sums(sine({4, 2, 1, 1}, 0.5))}, {"b.weight", sine({3, 16}, 0.6)}}, R"(
def forward(self, x):
    return torch.linear(torch.flatten(torch.conv2d(x, self.a.weight), 1), self.b.weight)
)"),
                 {sine({40, 2, 2, 2})}, "a");
}

TEST(PruneRefit, ReproducesTheInputsOfARecurrentLayer) {
    expect_exact(build_model({{"a.weight", with_sums(sine({5, 4}, 0.6))},
                              {"gru.w_ih", sine({9, 5}, 0.5)},
                              {"gru.w_hh", sine({9, 3}, 0.4)},
                              {"gru.w_ih_reverse", sine({9, 5}, 0.7)},
                              {"gru.w_hh_reverse", sine({9, 3}, 0.3)}},
                             R"(
def forward(self, x):
    x = torch.linear(x, self.a.weight)
    h = torch.zeros([2, x.size(0), 3])
    y, _ = torch.gru(x, h, [self.gru.w_ih, self.gru.w_hh, self.gru.w_ih_reverse, self.gru.w_hh_reverse], False, 1, 0.0, False, True, True)
    return y
)"),
                 {sine({12, 6, 4})}, "a");
}

TEST(PruneRefit, AConstantChannelMovesIntoTheBias) {
    const auto model = build_model({{"a.weight", sine({3, 4}, 0.8)},
                                    {"a.bias", at::tensor({0.1f, 50.0f, -0.2f})},
                                    {"b.weight", sine({2, 3}, 0.9)},
                                    {"b.bias", at::zeros({2})}},
                                   R"(
def forward(self, x):
    return torch.linear(torch.sigmoid(torch.linear(x, self.a.weight, self.a.bias)), self.b.weight, self.b.bias)
)");
    const Inputs example = {sine({20, 4})};
    auto cut = cut_channels(model, example, "a", {1});
    auto context = calibrated_on(example);
    prune::refit(cut.smaller, model, cut.groups, cut.removal, all_positions(), context);
    EXPECT_LT(difference(model, cut.smaller, example), 1e-5);  // float32
    // sigmoid(50) = 1: the bias takes what its weights gave.
    const auto bias = get_attribute(cut.smaller, "b.bias").toTensor();
    for (int64_t o = 0; o < 2; ++o)
        EXPECT_NEAR(bias[o].item<double>(), get_attribute(model, "b.weight").toTensor()[o][1].item<double>(), 1e-4);
}

TEST(PruneRefit, FindsTheLeastSquaresSolution) {  // against Gram-Schmidt by plain loops
    const auto model = build_model({{"a.weight", at::eye(5) + sine({5, 5}, 0.4)}, {"b.weight", sine({3, 5}, 0.8)}}, R"(
def forward(self, x):
    return torch.linear(torch.linear(x, self.a.weight), self.b.weight)
)");
    const auto x = sine({40, 5}) + 0.2;
    auto cut = cut_channels(model, {x}, "a", {0, 3});
    auto context = calibrated_on({x});
    prune::refit(cut.smaller, model, cut.groups, cut.removal, all_positions(), context);
    torch::NoGradGuard no_grad;
    const auto hidden = at::linear(x, get_attribute(model, "a.weight").toTensor());
    const double expected =
        reference::fitted_error(hidden, get_attribute(model, "b.weight").toTensor(), {false, true, true, false, true});
    const double reached = (first_tensor(run_nodes(model, {x})) - first_tensor(run_nodes(cut.smaller, {x})))
                               .square()
                               .sum(1)
                               .mean()
                               .item<double>();
    EXPECT_NEAR(reached, expected, 1e-5 * expected + 1e-7);  // float32 outputs
}

TEST(PruneRefit, WarnsWhereTheRowsAreHardlyMoreThanTheInputs) {
    const auto model = build_model({{"a.weight", at::eye(5) + sine({5, 5}, 0.4)}, {"b.weight", sine({3, 5}, 0.8)}}, R"(
def forward(self, x):
    return torch.linear(torch.linear(x, self.a.weight), self.b.weight)
)");
    for (const auto& [rows, warned] : {std::pair<int64_t, bool>{5, true}, {6, false}}) {  // three of five inputs stay
        const auto x = sine({rows, 5}) + 0.2;
        auto cut = cut_channels(model, {x}, "a", {0, 3});
        auto context = calibrated_on({x});
        Warnings log;
        context.log = &log;
        prune::refit(cut.smaller, model, cut.groups, cut.removal, all_positions(), context);
        ASSERT_EQ(log.texts.size(), warned ? 1u : 0u) << rows;
        if (warned) {
            EXPECT_THAT(log.texts[0], ::testing::HasSubstr("1 layer (b) fitted"));
        }
    }
}

TEST(PruneRefit, TouchesNothingButTheLayersThatLostInputs) {
    const auto model = residual_model();
    const Inputs example = {sine({8, 3, 8, 8})};
    auto cut = cut_channels(model, example, "conv2", {2, 5, 9});
    const auto before = cut.smaller.clone();
    auto context = calibrated_on(example);
    prune::refit(cut.smaller, model, cut.groups, cut.removal, all_positions(1e-3), context);
    for (const auto& named : named_tensors(before)) {
        const bool same = at::equal(named.tensor, get_attribute(cut.smaller, named.name).toTensor());
        EXPECT_EQ(same, named.name != "conv3.weight") << named.name;
    }
    ASSERT_EQ(context.facts["refit"].size(), 1u);
    EXPECT_EQ(context.facts["refit"][0]["layer"], "conv3");
    EXPECT_LT(context.facts["refit"][0]["error_after"].get<double>(),
              context.facts["refit"][0]["error_before"].get<double>());
}

TEST(PruneRefit, AnEndlessRidgeLeavesTheWeights) {
    const auto model = residual_model();
    const Inputs example = {sine({4, 3, 8, 8})};
    auto cut = cut_channels(model, example, "conv2", {2, 5, 9});
    const auto before = get_attribute(cut.smaller, "conv3.weight").toTensor().clone();
    auto context = calibrated_on(example);
    prune::refit(cut.smaller, model, cut.groups, cut.removal, all_positions(1e9), context);
    EXPECT_LT(max_difference(before, get_attribute(cut.smaller, "conv3.weight").toTensor()), 1e-6);
}

TEST(PruneRefit, TheStageRefitsBehindTheCut) {
    const auto model = residual_model();
    const Inputs example = {sine({8, 3, 8, 8})};
    const auto error = [&](const std::string& refit) {
        auto context = calibrated_on(example);
        const auto stage = make_stage({{"ratio", "0.4"}, {"scope", "uniform"}, {"round_to", "1"}, {"refit", refit}});
        EXPECT_EQ(stage->needs().calibration_data, refit != "none");
        const auto smaller = stage->apply(model, context);
        torch::NoGradGuard no_grad;
        return (first_tensor(run_nodes(model, example)) - first_tensor(run_nodes(smaller, example)))
            .square()
            .mean()
            .item<double>();
    };
    EXPECT_LT(error("least_squares"), 0.5 * error("none"));
}

TEST(PruneRefit, MistakesAreNamed) {
    EXPECT_ERROR(make_stage({{"refit", "least_square"}}), InvalidArgument, "Did you mean \"least_squares\"");
    const auto model = residual_model();
    const Inputs example = {sine({2, 3, 8, 8})};
    auto cut = cut_channels(model, example, "conv2", {2});
    Context context;
    EXPECT_ERROR(prune::refit(cut.smaller, model, cut.groups, cut.removal, {}, context), InvalidArgument,
                 "no calibration data");
    auto options = all_positions();
    options.ridge = -1;
    EXPECT_ERROR(prune::refit(cut.smaller, model, cut.groups, cut.removal, options, context), InvalidArgument,
                 "ridge at least 0");
}

}  // namespace
}  // namespace coppice::testing
