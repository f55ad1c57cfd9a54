#include <cmath>

#include "prune/depth/depth_cases.h"
#include "prune/masking.h"

namespace coppice::testing {
namespace {

using namespace prune;

std::unique_ptr<Stage> stage_of(std::vector<std::pair<std::string, std::string>> settings) {
    Options options("prune.depth", std::move(settings));
    auto stage = find_entry(stages(), "stage", "prune.depth", "test").make(options);
    options.done();
    return stage;
}

/// Three linear blocks whose branches are `weights` times the identity: x + w x, so that cos(x, y) = 1 for w > 0.
Model chain(const std::vector<at::Tensor>& weights) {
    std::vector<std::pair<std::string, at::Tensor>> tensors;
    std::string source = "def forward(self, x):\n";
    for (size_t i = 0; i < weights.size(); ++i) {
        const auto name = std::string(1, static_cast<char>('a' + i));
        tensors.emplace_back(name + ".fc.weight", weights[i]);
        source += "    x = x + torch.linear(x, self." + name + ".fc.weight)\n";
    }
    return build_model(tensors, source + "    return x\n");
}

/// y = x + turn(x): rotates a pair of channels by `degrees`, and keeps its length.
at::Tensor turn(double degrees) {
    const double c = std::cos(degrees * M_PI / 180), s = std::sin(degrees * M_PI / 180);
    return at::tensor({c - 1, -s, s, c - 1}).reshape({2, 2}).to(at::kFloat);
}

const Inputs kExample = {sine({4, 2})};

Context context_of() {
    Context context;
    context.example = kExample;
    context.data.calibration = tensor_dataset({sine({16, 2})}, at::zeros({16}, at::kLong), "by hand");
    return context;
}

TEST(DepthPruning, SimilarityIsOneMinusTheCosineOfTheAngleABlockTurnsBy) {
    const auto model = chain({turn(30), turn(10), turn(60)});
    auto context = context_of();
    const auto blocks = blocks_of(model, kExample);
    ASSERT_EQ(blocks.size(), 3u);
    const auto scores = block_similarity(10, 4)->scores(model, blocks, context);
    const double angles[] = {30, 10, 60};
    for (size_t i = 0; i < 3; ++i)  // 1e-6: float32 weights
        EXPECT_NEAR(scores[i], 1 - std::cos(angles[i] * M_PI / 180), 1e-6);
}

TEST(DepthPruning, RemovesTheBlocksThatTurnLeast) {
    const auto model = chain({turn(30), turn(10), turn(60), turn(20)});
    auto context = context_of();
    const auto shallower = stage_of({{"blocks", "2"}})->apply(model, context);
    EXPECT_LT(max_difference(first_tensor(shallower.forward(kExample)),
                             first_tensor(chain({turn(30), turn(60)}).forward(kExample))),
              1e-6);
    ASSERT_EQ(context.changes.size(), 4u);
    EXPECT_EQ(context.changes[0].layer, "b.fc");
    EXPECT_EQ(context.changes[0].action, "removed");
    EXPECT_EQ(context.changes[1].layer, "d.fc");
    EXPECT_EQ(context.changes[2].action, "kept");
    EXPECT_EQ(context.facts["blocks_removed"].get<int>(), 2);
    EXPECT_EQ(context.facts["parameters_after"].get<int64_t>(), 8);
}

TEST(DepthPruning, EvaluateRemovesTheBlockWithoutWhichTheMetricIsBest) {
    const auto model = chain({turn(30), turn(-40), turn(70)});
    auto context = context_of();
    const auto wanted = first_tensor(chain({turn(30), turn(70)}).forward(kExample));
    context.evaluate = [&](const Model& some) { return -max_difference(first_tensor(some.forward(kExample)), wanted); };
    const auto shallower = stage_of({{"criterion", "evaluate"}})->apply(model, context);
    EXPECT_FALSE(has_attribute(shallower, "b.fc.weight"));
    EXPECT_FALSE(context.facts.contains("chosen_on"));
    Messages log;
    context.log = &log;
    context.data.test = context.data.calibration;
    stage_of({{"criterion", "evaluate"}, {"blocks", "2"}})->apply(model, context);
    EXPECT_EQ(context.facts["chosen_on"], "test data");
    EXPECT_EQ(log.containing("the blocks are chosen on the test data"), 1);
    context.evaluate = {};
    EXPECT_ERROR(stage_of({{"criterion", "evaluate"}})->apply(model, context), InvalidArgument,
                 "needs labelled test or validation data");
}

TEST(DepthPruning, GoesOnUntilTheMultiplyAddsAreLowEnough) {
    const auto model = chain({turn(30), turn(10), turn(60), turn(20)});
    auto context = context_of();
    stage_of({{"macs_ratio", "0.6"}})->apply(model, context);
    EXPECT_EQ(context.facts["blocks_removed"].get<int>(), 2);
    EXPECT_EQ(context.facts["macs_after"].get<double>(), 0.5 * context.facts["macs_before"].get<double>());
    auto again = context_of();
    const auto same = stage_of({{"blocks", "0"}})->apply(model, again);
    EXPECT_TRUE(at::equal(first_tensor(same.forward(kExample)), first_tensor(model.forward(kExample))));
}

TEST(DepthPruning, BlocksKeepTheirNamesWhileOthersGo) {  // both branches of a layer lie in module "a"
    const auto model = build_model({{"a.one.weight", turn(10)},
                                    {"a.one.bias", at::zeros({2})},
                                    {"a.two.weight", turn(20)},
                                    {"a.scale", at::ones({2})},
                                    {"a.shift", at::zeros({2})}},
                                   "def forward(self, x):\n"
                                   "    x = x + torch.linear(x, self.a.one.weight, self.a.shift)\n"
                                   "    return x + self.a.scale * torch.linear(x, self.a.two.weight)\n");
    auto context = context_of();
    stage_of({})->apply(model, context);
    ASSERT_EQ(context.changes.size(), 2u);
    EXPECT_EQ(context.changes[0].layer + " " + context.changes[0].action, "a removed");
    EXPECT_EQ(context.changes[1].layer + " " + context.changes[1].action, "a#2 kept");
}

TEST(DepthPruning, RandomDependsOnTheSeedAlone) {
    const auto model = chain({turn(30), turn(10), turn(60), turn(20)});
    auto context = context_of();
    const auto blocks = blocks_of(model, kExample);
    EXPECT_EQ(random_blocks(3)->scores(model, blocks, context), random_blocks(3)->scores(model, blocks, context));
    EXPECT_NE(random_blocks(3)->scores(model, blocks, context), random_blocks(4)->scores(model, blocks, context));
}

TEST(DepthPruning, RefusesByName) {
    Context images;
    images.example = {sine({2, 3, 8, 8})};
    EXPECT_ERROR(stage_of({})->check(residual_model(), images), UnsupportedModel, "the model has no residual block");
    const auto model = chain({turn(30), turn(10)});
    auto context = context_of();
    EXPECT_ERROR(stage_of({{"blocks", "3"}})->check(model, context), InvalidArgument,
                 "blocks is 3, the model has 2 that can go");
    EXPECT_ERROR(stage_of({{"blocks", "1"}, {"macs_ratio", "0.5"}}), InvalidArgument, "both given");
    EXPECT_ERROR(stage_of({{"macs_ratio", "0"}}), InvalidArgument, "macs_ratio is 0.0, must be in (0, 1]");
    EXPECT_ERROR(stage_of({{"criterion", "similarty"}}), InvalidArgument, "Did you mean \"similarity\"");
    DepthPruningOptions options;
    options.ignore = {"^b"};
    depth_pruning(block_similarity(), options)->apply(model, context);
    EXPECT_EQ(context.changes.back().reason, "matches `ignore`");
    options.ignore = {"c.fd"};
    EXPECT_ERROR(depth_pruning(block_similarity(), options)->check(model, context), InvalidArgument,
                 "ignore \"c.fd\" matches no residual block. Did you mean");
    options.ignore = {"fc"};
    EXPECT_ERROR(depth_pruning(block_similarity(), options)->check(model, context), UnsupportedModel,
                 "every residual block matches `ignore`");
}

TEST(DepthPruning, BlocksOfFusedEncoderLayersCanGo) {
    const auto model = fused_encoder(2);
    Context context;
    context.example = {sine({2, 7, 6})};
    const auto stage = stage_of({{"blocks", "1"}, {"criterion", "random"}});
    stage->check(model, context);
    const auto shallower = stage->apply(model, context);
    EXPECT_THAT(context.facts["note"].get<std::string>(), ::testing::HasSubstr("written out"));
    EXPECT_EQ(context.facts["steps"][0]["scores"].size(), 4u);  // attention and feed-forward part of both layers
    EXPECT_LT(context.facts["macs_after"].get<double>(), context.facts["macs_before"].get<double>());
    const auto expected =
        without_branch(unfuse_attention(model), context.example, context.facts["steps"][0]["removed"]);
    EXPECT_LE(max_difference(first_tensor(shallower.forward(context.example)), expected), 1e-5);  // float32
}

}  // namespace
}  // namespace coppice::testing
