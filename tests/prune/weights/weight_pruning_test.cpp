#include "prune/weights/weights_cases.h"

namespace coppice::testing {
namespace {

using namespace prune;

std::unique_ptr<Stage> stage_of(std::vector<std::pair<std::string, std::string>> settings) {
    Options options("prune.weight", std::move(settings));
    auto stage = find_entry(stages(), "stage", "prune.weight", "test").make(options);
    options.done();
    return stage;
}

Json resolved(std::vector<std::pair<std::string, std::string>> settings) {
    Options options("prune.weight", std::move(settings));
    find_entry(stages(), "stage", "prune.weight", "test").make(options);
    return options.resolved();
}

const Inputs kImages = {sine({2, 3, 8, 8})};

Context images() {
    auto context = context_of(kImages);
    context.data.calibration = tensor_dataset({sine({16, 3, 8, 8})}, at::arange(16).remainder(10), "by hand");
    return context;
}

TEST(WeightPruning, SparsityZeroIsTheIdentityForEveryCriterion) {
    const auto model = residual_model();
    for (const auto& row : weight_criteria()) {
        auto context = images();
        const auto same = stage_of({{"criterion", row.name}, {"sparsity", "0"}})->apply(model, context);
        for (const auto& named : named_tensors(model))
            EXPECT_TRUE(at::equal(named.tensor, get_attribute(same, named.name).toTensor())) << row.name << named.name;
        for (const auto& change : context.changes) EXPECT_EQ(change.action, "kept") << change.layer;
    }
}

TEST(WeightPruning, EveryCriterionReachesTheShareWithEveryScope) {
    const auto model = residual_model();
    for (const auto& row : weight_criteria())
        for (const char* scope : {"global", "layer", "row"}) {
            SCOPED_TRACE(row.name + ", " + scope);
            auto context = images();
            const auto pruned =
                stage_of({{"criterion", row.name}, {"scope", scope}, {"sparsity", "0.5"}})->apply(model, context);
            const auto before = cost(model, kImages), after = cost(pruned, kImages);
            EXPECT_EQ(after.parameters, before.parameters);
            // The share is rounded per layer (per row and block at the finest): 5 layers, rows of at least 8 weights.
            EXPECT_NEAR(context.facts["sparsity"].get<double>(), 0.5, 0.02);
            EXPECT_EQ(before.nonzero_parameters - after.nonzero_parameters,
                      context.facts["zeros_after"].get<int64_t>() - context.facts["zeros_before"].get<int64_t>());
            EXPECT_EQ(context.changes.size(), 5u);
            for (const auto& change : context.changes) {
                EXPECT_THAT(change.before, ::testing::StartsWith("sparsity ")) << change.layer;
                EXPECT_THAT(change.after, ::testing::StartsWith("sparsity ")) << change.layer;
            }
            EXPECT_THAT(context.facts["note"].get<std::string>(), ::testing::HasSubstr("run no faster"));
        }
}

TEST(WeightPruning, PatternsHoldAlongTheInputChannelsOfAConvolution) {
    const auto model = residual_model();
    for (const auto& row : weight_criteria()) {
        auto context = images();
        const auto pruned = stage_of({{"criterion", row.name}, {"pattern", "2:4"}})->apply(model, context);
        for (const char* name : {"conv2.weight", "conv3.weight", "shortcut.weight", "fc.weight"}) {
            auto weight = get_attribute(pruned, name).toTensor();
            if (weight.dim() == 4) weight = weight.permute({0, 2, 3, 1});
            const auto kept = (weight.reshape({-1, 4}) != 0).sum(1);
            EXPECT_TRUE((kept <= 2).all().item<bool>()) << row.name << " " << name;
        }
        EXPECT_EQ(context.changes[0].layer, "conv1");  // three input channels
        EXPECT_EQ(context.changes[0].reason, "3 inputs are no multiple of the pattern's 4");
    }
}

TEST(WeightPruning, BlocksOfOutputsVanishTogether) {
    const auto model = residual_model();
    auto context = images();
    const auto pruned = stage_of({{"pattern", "4x1"}, {"sparsity", "0.75"}})->apply(model, context);
    const auto weight = get_attribute(pruned, "conv3.weight").toTensor();  // [16, 16, 3, 3]
    const auto kept = (weight.reshape({4, 4, -1}) != 0).sum(1);            // of the four outputs of a block
    EXPECT_TRUE(((kept == 0) | (kept == 4)).all().item<bool>());
    EXPECT_EQ((kept == 0).sum().item<int64_t>(), 4 * 16 * 9 * 3 / 4);
}

TEST(WeightPruning, LayersThatAreNotAskedForStayAndSayWhy) {
    const auto model =
        build_model({{"embed.weight", sine({10, 8})}, {"fc.weight", sine({4, 8})}, {"head.weight", sine({4, 4})}},
                    "def forward(self, x):\n"
                    "    x = torch.linear(torch.embedding(self.embed.weight, x), self.fc.weight)\n"
                    "    return torch.linear(x, self.head.weight)\n");
    auto context = context_of({at::arange(6).reshape({2, 3})});
    WeightPruningOptions options;
    options.ignore = {"^head$"};
    auto pruned = weight_pruning(weight_magnitude(), unstructured(), options)->apply(model, context);
    ASSERT_EQ(context.changes.size(), 3u);
    EXPECT_EQ(context.changes[0].reason, "embeddings are not asked for");
    EXPECT_EQ(context.changes[1].action, "sparsified");
    EXPECT_EQ(context.changes[2].reason, "matches `ignore`");
    options.embeddings = true;
    options.min_size = 20;
    context.changes.clear();
    pruned = weight_pruning(weight_magnitude(), unstructured(), options)->apply(model, context);
    EXPECT_EQ(get_attribute(pruned, "embed.weight").toTensor().count_nonzero().item<int64_t>(), 40);
    options.ignore = {"hed"};
    EXPECT_ERROR(weight_pruning(weight_magnitude(), unstructured(), options)->apply(model, context), InvalidArgument,
                 "ignore \"hed\" matches no layer. Did you mean \"head\"?");
    options.ignore = {"."};
    EXPECT_ERROR(weight_pruning(weight_magnitude(), unstructured(), options)->check(model, context), UnsupportedModel,
                 "no weight can be set to zero: embed: matches `ignore`");
}

TEST(WeightPruning, AWeightThatTwoLayersShareIsPrunedOnceForBoth) {
    const auto model =
        build_model({{"a.weight", sine({6, 6})}},
                    "def forward(self, x):\n"
                    "    return torch.linear(torch.relu(torch.linear(x, self.a.weight)), self.a.weight)\n");
    auto context = context_of({sine({4, 6})});
    context.data.calibration = tensor_dataset({sine({8, 6})}, at::zeros({8}, at::kLong), "by hand");
    const auto pruned = weight_pruning(sparsegpt(), unstructured(), options_of(0.5))->apply(model, context);
    EXPECT_EQ(context.changes.size(), 1u);
    EXPECT_EQ(get_attribute(pruned, "a.weight").toTensor().count_nonzero().item<int64_t>(), 18);
}

TEST(WeightPruning, TransposedConvolutionsGoByMagnitudeAlone) {
    const auto model = build_model({{"up.weight", sine({4, 6, 2, 2})}},
                                   "def forward(self, x):\n"
                                   "    return torch.conv_transpose2d(x, self.up.weight, None, [2, 2])\n");
    auto context = context_of({sine({1, 4, 3, 3})});
    const auto pruned = stage_of({{"scope", "row"}, {"sparsity", "0.25"}})->apply(model, context);
    // A row is an output channel: 4 inputs x 4 taps, a quarter of 16 goes.
    const auto kept = (get_attribute(pruned, "up.weight").toTensor() != 0).sum(at::IntArrayRef{0, 2, 3});
    EXPECT_TRUE(at::equal(kept, at::full({6}, 12)));
    EXPECT_ERROR(weight_pruning(weight_wanda(), unstructured())->check(model, context), UnsupportedModel,
                 "inputs of transposed convolutions are not weighed");
}

TEST(WeightPruning, MistakesAreNamed) {
    EXPECT_ERROR(stage_of({{"sparsity", "1"}}), InvalidArgument, "sparsity is 1.0, must be in [0, 1)");
    EXPECT_ERROR(stage_of({{"pattern", "2:4"}, {"sparsity", "0.7"}}), InvalidArgument,
                 "sparsity is fixed by pattern 2:4: 0.5");
    EXPECT_ERROR(stage_of({{"pattern", "unstuctured"}}), InvalidArgument, "Did you mean \"unstructured\"");
    EXPECT_ERROR(stage_of({{"pattern", "4-8"}}), InvalidArgument, "pattern is \"4-8\", must be n:m");
    EXPECT_ERROR(stage_of({{"criterion", "wandas"}}), InvalidArgument, "Did you mean \"wanda\"");
    EXPECT_ERROR(stage_of({{"scope", "local"}}), InvalidArgument, "must be global, layer or row");
    auto context = context_of(kImages);
    EXPECT_ERROR(stage_of({{"criterion", "wanda"}})->apply(residual_model(), context), InvalidArgument,
                 "there is no calibration data");
}

TEST(WeightPruning, AResolvedRecipeRunsAgain) {
    EXPECT_EQ(resolved({{"pattern", "4:8"}})["pattern"], "4:8");
    EXPECT_TRUE(resolved({{"pattern", "2:4"}})["sparsity"].is_null());
    EXPECT_EQ(resolved({{"pattern", "block"}})["pattern"].dump(), R"({"block":{"rows":4,"columns":1}})");
}

TEST(WeightPruning, TheFileOfResNet20ShrinksWithTheShareOfZeros) {
    SKIP_WITHOUT_DATA("cifar10/resnet20.pt");
    const auto model = Model::load(data_path("cifar10/resnet20.pt"));
    TemporaryFolder folder;
    const auto bytes = [&](const Model& some) {
        some.save(folder / "model.pt");
        return static_cast<double>(std::filesystem::file_size(folder / "model.pt"));
    };
    const double dense = bytes(model);
    for (const auto& [sparsity, most] : {std::pair("0.5", 0.65), std::pair("0.9", 0.25)}) {
        auto context = context_of({sine({1, 3, 32, 32})});
        const auto pruned = stage_of({{"sparsity", sparsity}})->apply(model, context);
        // A float32 weight has about 3.7 bytes of information; a zero costs a few bits. So 0.5 leaves about 0.55 + the
        // code, 0.9 about 0.17.
        EXPECT_LT(bytes(pruned) / dense, most) << sparsity;
        EXPECT_EQ(first_tensor(Model::load(folder / "model.pt").forward(context.example)).sizes(),
                  (std::vector<int64_t>{1, 10}));
    }
}

}  // namespace
}  // namespace coppice::testing
