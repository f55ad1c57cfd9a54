#include <coppice/lowrank.h>

#include <torch/csrc/jit/testing/file_check.h>

#include "reference/lowrank.h"
#include "support/support.h"

namespace coppice::testing {
namespace {

using lowrank::svd;
using lowrank::SvdOptions;

/// Closed form of full rank; sine() reshaped to a matrix has rank 2, sin(a + b) being a sum of two products.
at::Tensor rough(at::IntArrayRef shape, double scale = 1) {
    const auto index = at::arange(c10::multiply_integers(shape), at::kDouble);
    return ((index.square() * 0.37).sin() * scale).to(at::kFloat).reshape(shape);
}

SvdOptions options(std::shared_ptr<const lowrank::RankRule> rank, const std::string& method = "auto") {
    SvdOptions options;
    options.rank = std::move(rank);
    options.method = method;
    options.min_size = 0;
    return options;
}

struct Applied {
    Model model;
    Context context;
    const LayerChange& change(const std::string& layer) const {
        for (const auto& change : context.changes)
            if (change.layer == layer) return change;
        static const LayerChange none;
        ADD_FAILURE() << "no change of layer " << layer;
        return none;
    }
};

Applied apply(const Model& model, const Inputs& example, SvdOptions of_stage) {
    Applied applied;
    applied.context.example = example;
    applied.model = svd(std::move(of_stage))->apply(model, applied.context);
    return applied;
}

at::Tensor output(const Model& model, const Inputs& inputs) {
    torch::NoGradGuard no_grad;
    return first_tensor(model.forward(inputs));
}

/// The operators in order: what an identity must keep, names of values and types being new in every copy.
std::string operators(const Model& model) {
    std::string list;
    for (const auto* node : all_nodes(*model.graph())) list += std::string(node->kind().toQualString()) + "\n";
    return list;
}

std::string text(const Model& model) {
    return model.graph()->toString(/*print_source_locations=*/false);
}

/// The factorised model equals the original with the weight that plain loops make of its factors. Returns that weight.
at::Tensor expect_equal_to_reconstruction(const Model& original, const Model& factorised, const std::string& weight,
                                          const Inputs& inputs) {
    const auto v = get_attribute(factorised, weight + "_v").toTensor();
    const auto u = get_attribute(factorised, weight + "_u").toTensor();
    const auto old = get_attribute(original, weight).toTensor();
    at::Tensor whole;
    if (old.dim() == 2) {
        whole = reference::linear_of_factors(v, u);
        if (old.sizes() != whole.sizes()) whole = whole.t();
    } else {
        const auto flat = [](const at::Tensor& t) { return t.dim() == 3 ? t.unsqueeze(2) : t; };  // conv1d as 1 x k
        whole = reference::conv_of_factors(flat(v), flat(u)).reshape(old.sizes());
    }
    auto reconstructed = original.clone();
    set_tensor(reconstructed, weight, whole.to(at::kFloat).contiguous());
    // 1e-4 of values of order 1 to 10: two float32 products in place of one.
    EXPECT_LT(max_difference(output(factorised, inputs), output(reconstructed, inputs)), 1e-4);
    return whole;
}

Model conv_model(const std::string& arguments, at::IntArrayRef kernel, bool bias = true) {
    std::vector<std::pair<std::string, at::Tensor>> tensors = {
        {"conv.weight", rough({12, 8, kernel[0], kernel[1]}, 0.4)}};
    if (bias) tensors.emplace_back("conv.bias", sine({12}));
    return build_model(tensors, "def forward(self, x):\n    return torch.conv2d(x, self.conv.weight, " +
                                    std::string(bias ? "self.conv.bias" : "None") + arguments + ")\n");
}

// --------------------------------------------------------------------------------------------------- convolutions

struct ConvCase {
    std::string name, arguments;
    std::vector<int64_t> kernel;
};

class SvdOfConv : public ::testing::TestWithParam<ConvCase> {};

TEST_P(SvdOfConv, EqualsTheConvolutionWithTheWeightItStandsFor) {
    const Inputs inputs = {sine({2, 8, 11, 14})};
    const auto model = conv_model(GetParam().arguments, GetParam().kernel);
    for (const std::string method : {"channel", "spatial"}) {
        const auto applied = apply(model, inputs, options(lowrank::ratio(0.5), method));
        EXPECT_EQ(applied.change("conv").action, "factorised");
        expect_equal_to_reconstruction(model, applied.model, "conv.weight", inputs);
        EXPECT_FALSE(has_attribute(applied.model, "conv.weight"));
        const double before = cost(model, inputs).macs, after = cost(applied.model, inputs).macs;
        EXPECT_LE(after, 0.5 * before) << method;
        EXPECT_GT(after, 0.3 * before)
            << method;  // the rank is the largest within the half: 12 x 72 / (72 + 12) / 2 = 5.1
        EXPECT_EQ(applied.context.facts.at("macs_after"), after);
    }
}

INSTANTIATE_TEST_SUITE_P(Settings, SvdOfConv,
                         ::testing::Values(ConvCase{"plain", "", {3, 3}},
                                           ConvCase{"padding", ", [1, 1], [1, 2]", {3, 3}},
                                           ConvCase{"stride", ", [2, 3], [1, 0]", {3, 3}},
                                           ConvCase{"dilation", ", [1, 2], [2, 1], [2, 1]", {3, 3}},
                                           ConvCase{"same", ", [1, 1], \"same\", [1, 2]", {3, 4}},
                                           ConvCase{"valid", ", [2, 1], \"valid\"", {3, 5}},
                                           ConvCase{"oblong", ", [1, 1], [0, 2]", {2, 5}}),
                         [](const auto& info) { return info.param.name; });

TEST(Svd, SpatialConvolutionsAre1xkThenKx1) {
    const Inputs inputs = {sine({1, 8, 9, 9})};
    const auto applied =
        apply(conv_model(", [2, 1], [1, 0], [1, 3]", {3, 3}), inputs, options(lowrank::ratio(0.5), "spatial"));
    const auto layers = cost(applied.model, inputs).layers;
    std::vector<const LayerCost*> convs;
    for (const auto& layer : layers)
        if (layer.op == "aten::conv2d") convs.push_back(&layer);
    ASSERT_EQ(convs.size(), 2u);
    const auto first = as_conv(const_cast<torch::jit::Node*>(convs[0]->node)).value();
    const auto second = as_conv(const_cast<torch::jit::Node*>(convs[1]->node)).value();
    EXPECT_EQ(first.stride, (std::vector<int64_t>{1, 1}));
    EXPECT_EQ(first.padding, (std::vector<int64_t>{0, 0}));
    EXPECT_EQ(first.dilation, (std::vector<int64_t>{1, 3}));
    EXPECT_FALSE(first.has_bias);
    EXPECT_EQ(second.stride, (std::vector<int64_t>{2, 1}));
    EXPECT_EQ(second.padding, (std::vector<int64_t>{1, 0}));
    EXPECT_EQ(second.dilation, (std::vector<int64_t>{1, 1}));
    EXPECT_TRUE(second.has_bias);
    EXPECT_EQ(get_attribute(applied.model, "conv.weight_v").toTensor().size(3), 3);
    EXPECT_EQ(get_attribute(applied.model, "conv.weight_u").toTensor().size(2), 3);
}

TEST(Svd, PointwiseConvolutionsBecomeTwo) {
    const Inputs inputs = {sine({2, 8, 5, 5})};
    const auto model = conv_model("", {1, 1}, /*bias=*/false);
    const auto applied = apply(model, inputs, options(lowrank::ratio(0.5), "spatial"));
    EXPECT_EQ(get_attribute(applied.model, "conv.weight_v").toTensor().sizes(), (at::IntArrayRef{2, 8, 1, 1}));
    expect_equal_to_reconstruction(model, applied.model, "conv.weight", inputs);
}

TEST(Svd, TreatsConv1dAndUnbatchedInput) {
    const auto model = build_model({{"conv.weight", rough({16, 8, 5}, 0.3)}, {"conv.bias", sine({16})}},
                                   "def forward(self, x):\n"
                                   "    return torch.conv1d(x, self.conv.weight, self.conv.bias, [2], [2])\n");
    for (const Inputs& inputs : {Inputs{sine({3, 8, 20})}, Inputs{sine({8, 20})}}) {
        const auto applied = apply(model, inputs, options(lowrank::ratio(0.6)));
        EXPECT_EQ(applied.change("conv").action, "factorised");
        expect_equal_to_reconstruction(model, applied.model, "conv.weight", inputs);
        torch::jit::testing::FileCheck().check("aten::conv1d")->check("aten::conv1d")->run(text(applied.model));
    }
}

TEST(Svd, AutoTakesTheSpatialFormForSeparableKernels) {
    auto w = at::zeros({16, 16, 3, 3});  // every kernel is a column times a row: spatial rank 16, channel rank 16 of 16
    const auto mix = rough({16, 16});
    const auto column = at::tensor({1.0f, 2.0f, 1.0f}), row = at::tensor({-1.0f, 0.5f, 1.0f});
    w = mix.reshape({16, 16, 1, 1}) * (column.reshape({3, 1}) * row).reshape({1, 1, 3, 3});
    const auto model =
        build_model({{"conv.weight", w}},
                    "def forward(self, x):\n    return torch.conv2d(x, self.conv.weight, None, [1, 1], [1, 1])\n");
    const Inputs inputs = {sine({1, 16, 8, 8})};
    // The same singular values in both forms, but the spatial one costs 96 instead of 160 per rank: more rank at equal
    // cost.
    const auto applied = apply(model, inputs, options(lowrank::ratio(0.3)));
    EXPECT_EQ(get_attribute(applied.model, "conv.weight_v").toTensor().size(2), 1);
}

TEST(Svd, AutoTakesTheChannelFormWhereFiltersRepeat) {
    const auto w = rough({1, 16, 3, 3}) * rough({16, 1, 1, 1}) + 0.01 * rough({16, 16, 3, 3});
    const auto model =
        build_model({{"conv.weight", w}},
                    "def forward(self, x):\n    return torch.conv2d(x, self.conv.weight, None, [1, 1], [1, 1])\n");
    const Inputs inputs = {sine({1, 16, 8, 8})};
    const auto applied = apply(model, inputs, options(lowrank::ratio(0.1)));
    EXPECT_EQ(get_attribute(applied.model, "conv.weight_v").toTensor().size(2), 3);
}

// -------------------------------------------------------------------------------------------------------- linear

class SvdOfLinear : public ::testing::TestWithParam<std::pair<std::string, std::string>> {};

TEST_P(SvdOfLinear, EqualsTheLayerWithTheWeightItStandsFor) {
    const auto& [shape, expression] = GetParam();
    const auto weight = shape == "turned" ? rough({20, 12}, 0.5) : rough({12, 20}, 0.5);
    const auto model = build_model({{"fc.weight", weight}, {"fc.bias", sine({12})}},
                                   "def forward(self, x):\n    return " + expression + " + 0.0 * self.fc.bias\n");
    const Inputs inputs = {sine({7, 20}, 2)};
    const auto applied = apply(model, inputs, options(lowrank::ratio(0.6)));
    EXPECT_EQ(applied.change("fc").action, "factorised") << applied.change("fc").reason;
    expect_equal_to_reconstruction(model, applied.model, "fc.weight", inputs);
}

INSTANTIATE_TEST_SUITE_P(Spellings, SvdOfLinear,
                         ::testing::Values(std::make_pair("straight", "torch.linear(x, self.fc.weight, self.fc.bias)"),
                                           std::make_pair("straight", "torch.linear(x, self.fc.weight)"),
                                           std::make_pair("straight",
                                                          "torch.addmm(self.fc.bias, x, self.fc.weight.t())"),
                                           std::make_pair("straight", "torch.matmul(x, self.fc.weight.t())"),
                                           std::make_pair("turned", "torch.addmm(self.fc.bias, x, self.fc.weight)"),
                                           std::make_pair("turned", "torch.mm(x, self.fc.weight)")));

TEST(Svd, TreatsLinearOnInputOfAnyDimension) {
    const auto model = build_model({{"fc.weight", rough({12, 20}, 0.5)}, {"fc.bias", sine({12})}},
                                   "def forward(self, x):\n    return torch.linear(x, self.fc.weight, self.fc.bias)\n");
    for (const Inputs& inputs : {Inputs{sine({20})}, Inputs{sine({2, 3, 20})}, Inputs{sine({2, 3, 4, 20})}}) {
        const auto applied = apply(model, inputs, options(lowrank::ratio(0.6)));
        expect_equal_to_reconstruction(model, applied.model, "fc.weight", inputs);
    }
}

// ------------------------------------------------------------------------------------------------------ contract

TEST(Svd, LeavesItsArgumentUntouchedAndKeepsWhatItShould) {
    const auto model = residual_model();
    const Inputs inputs = {sine({2, 3, 8, 8})};
    const auto before_text = text(model);
    const auto before = output(model, inputs);
    const auto applied = apply(model, inputs, options(lowrank::ratio(0.5)));
    EXPECT_EQ(text(model), before_text);
    EXPECT_TRUE(at::equal(output(model, inputs), before));
    EXPECT_NO_THROW(applied.model.graph()->lint());
    EXPECT_EQ(output(applied.model, inputs).sizes(), before.sizes());
    EXPECT_LT(cost(applied.model, inputs).macs, cost(model, inputs).macs);
    EXPECT_FALSE(has_attribute(applied.model, "conv3.weight"));
}

TEST(Svd, SavedModelAgreesAndTrains) {
    const Inputs inputs = {sine({2, 3, 8, 8})};
    auto applied = apply(residual_model(), inputs, options(lowrank::ratio(0.5)));
    const TemporaryFolder folder;
    applied.model.save(folder / "model.pt");
    auto stock = torch::jit::load((folder / "model.pt").string());
    EXPECT_TRUE(at::equal(stock.forward(inputs).toTensor(), output(applied.model, inputs)));
    applied.model.train();
    first_tensor(applied.model.forward(inputs)).sum().backward();
    for (const char* name : {"conv3.weight_v", "conv3.weight_u"}) {
        const auto factor = get_attribute(applied.model, name).toTensor();
        EXPECT_TRUE(factor.requires_grad() && factor.grad().defined() && factor.grad().abs().max().item<double>() > 0)
            << name;
    }
    int parameters = 0;
    for (const auto& tensor : named_tensors(applied.model))
        if (tensor.name.find("weight_") != std::string::npos) {
            EXPECT_EQ(static_cast<int>(tensor.role), static_cast<int>(Role::kParameter)) << tensor.name;
            ++parameters;
        }
    EXPECT_EQ(parameters, 2 * applied.context.facts.at("layers_factorised").get<int>());
}

TEST(Svd, SameSettingsGiveTheSameBits) {
    const Inputs inputs = {sine({2, 3, 8, 8})};
    const auto a = apply(residual_model(), inputs, options(lowrank::energy(0.7)));
    const auto b = apply(residual_model(), inputs, options(lowrank::energy(0.7)));
    EXPECT_TRUE(at::equal(output(a.model, inputs), output(b.model, inputs)));
}

TEST(Svd, FullRankIsTheIdentity) {
    const auto model = residual_model();
    const Inputs inputs = {sine({2, 3, 8, 8})};
    for (const auto& row : lowrank::rank_rules()) {
        Options keep_all(row.name, {{"keep", "1"}});
        const auto applied = apply(model, inputs, options(row.make(keep_all)));
        EXPECT_EQ(operators(applied.model), operators(model.clone())) << row.name;
        EXPECT_TRUE(at::equal(output(applied.model, inputs), output(model, inputs))) << row.name;
        EXPECT_EQ(applied.context.facts.at("layers_factorised"), 0) << row.name;
        EXPECT_THAT(applied.change("conv3").reason, ::testing::HasSubstr("of the multiply-adds"));
    }
}

TEST(Svd, KeepsWhatWouldNotGetCheaper) {
    // 12 x 20 at rank 8: 8 x 32 = 256 of 240 multiply-adds; at rank 7: 224.
    const auto model = build_model({{"fc.weight", rough({12, 20}, 0.5)}},
                                   "def forward(self, x):\n    return torch.linear(x, self.fc.weight)\n");
    auto eight = options(lowrank::ratio(0.2));  // rank 1, rounded up to 8
    eight.round_to = 8;
    const auto kept = apply(model, {sine({1, 20})}, eight);
    EXPECT_EQ(kept.change("fc").action, "kept");
    EXPECT_EQ(kept.change("fc").reason, "rank 8 of 12 would need 1.067 of the multiply-adds");
    auto seven = options(lowrank::ratio(0.2));
    seven.round_to = 7;
    const auto cut = apply(model, {sine({1, 20})}, seven);
    EXPECT_EQ(cut.change("fc").action, "factorised");
    EXPECT_EQ(cost(cut.model, {sine({1, 20})}).macs, 224);
}

TEST(Svd, FactorisesASharedWeightOnce) {
    const auto model = build_model({{"fc.weight", rough({20, 20}, 0.3)}, {"fc.bias", sine({20})}},
                                   "def forward(self, x):\n"
                                   "    x = torch.relu(torch.linear(x, self.fc.weight, self.fc.bias))\n"
                                   "    return torch.linear(x, self.fc.weight)\n");
    const Inputs inputs = {sine({3, 20})};
    const auto applied = apply(model, inputs, options(lowrank::ratio(0.5)));
    EXPECT_EQ(applied.context.facts.at("layers_factorised"), 2);
    int factors = 0;
    for (const auto& tensor : named_tensors(applied.model)) factors += tensor.name.find("weight") != std::string::npos;
    EXPECT_EQ(factors, 2);
    expect_equal_to_reconstruction(model, applied.model, "fc.weight", inputs);
}

TEST(Svd, KeepsAWeightThatAnotherOperatorReads) {
    const auto model = build_model({{"tied.weight", rough({30, 16}, 0.3)}, {"fc.weight", rough({16, 16}, 0.3)}},
                                   "def forward(self, i):\n"
                                   "    x = torch.embedding(self.tied.weight, i)\n"
                                   "    return torch.linear(torch.linear(x, self.fc.weight), self.tied.weight)\n");
    const auto applied = apply(model, {at::arange(4)}, options(lowrank::ratio(0.5)));
    EXPECT_EQ(applied.context.facts.at("layers_factorised"), 1);
    EXPECT_TRUE(has_attribute(applied.model, "tied.weight"));
    std::string reasons;
    for (const auto& change : applied.context.changes) reasons += change.reason + "\n";
    EXPECT_THAT(reasons, ::testing::HasSubstr("also read by"));
    EXPECT_THAT(reasons, ::testing::HasSubstr("embeddings are not factorised"));
}

TEST(Svd, RespectsIgnoreAndMinSize) {
    const Inputs inputs = {sine({2, 3, 8, 8})};
    auto some = options(lowrank::ratio(0.5));
    some.ignore = {"conv[12]"};
    some.min_size = 200;
    const auto applied = apply(residual_model(), inputs, some);
    EXPECT_EQ(applied.change("conv2").reason, "matches \"conv[12]\" in ignore");
    EXPECT_EQ(applied.change("fc").reason, "160 weights, below min_size 200");
    EXPECT_EQ(applied.change("conv3").action, "factorised");
}

TEST(Svd, RefusesAModelWithoutSuchLayers) {
    const auto model = build_model({{"conv.weight", rough({8, 1, 3, 3})}},
                                   "def forward(self, x):\n"
                                   "    return torch.conv2d(x, self.conv.weight, None, [1, 1], [0, 0], [1, 1], 8)\n");
    Context context;
    context.example = {sine({1, 8, 6, 6})};
    EXPECT_ERROR(svd()->apply(model, context), UnsupportedModel, "grouped convolution (8 groups)");
    EXPECT_ERROR(svd()->check(model, context), UnsupportedModel, "no layer that can be factorised");
    EXPECT_NO_THROW(svd()->check(residual_model(), Context{}));
}

TEST(Svd, SaysWhatIsWrong) {
    SvdOptions wrong;
    wrong.method = "tucker";
    EXPECT_ERROR(svd(wrong), InvalidArgument, "method is \"tucker\", must be auto, channel or spatial");
    SvdOptions pattern;
    pattern.ignore = {"conv("};
    EXPECT_ERROR(svd(pattern), InvalidArgument, "no regular expression");
    auto model = residual_model();
    auto broken = get_attribute(model, "conv3.weight").toTensor().detach().clone();
    broken.view(-1)[0] = INFINITY;
    set_tensor(model, "conv3.weight", broken);
    EXPECT_ERROR(apply(model, {sine({1, 3, 8, 8})}, options(lowrank::energy())), UnsupportedModel, "conv3");
}

TEST(SvdRegistry, MakesTheStageOfARecipe) {
    const auto& row = find_entry(lowrank::stages(), "stage", "lowrank.svd", "test");
    Setting rank = Setting::map({{"ratio", Setting::map({{"keep", Setting::scalar("0.4")}})}});
    Options of_recipe(
        "lowrank.svd",
        Setting::map({{"rank", rank}, {"method", Setting::scalar("channel")}, {"min_size", Setting::scalar("0")}}));
    const auto stage = row.make(of_recipe);
    of_recipe.done();
    EXPECT_EQ(of_recipe.resolved().at("rank").at("ratio").at("keep"), 0.4);
    Context context;
    context.example = {sine({2, 3, 8, 8})};
    const auto model = stage->apply(residual_model(), context);
    EXPECT_LT(context.facts.at("macs_after").get<double>(), context.facts.at("macs_before").get<double>());
    Options wrong("lowrank.svd", {{"rank", "enrgy"}});
    EXPECT_ERROR(row.make(wrong), InvalidArgument, "Did you mean \"energy\"?");
}

TEST(LowrankExplain, NamesEveryLayerWithItsReason) {
    const auto model =
        build_model({{"depthwise.weight", rough({8, 1, 3, 3})},
                     {"up.weight", rough({8, 4, 2, 2})},
                     {"fc.weight", rough({10, 64})},
                     {"thin.weight", rough({1, 10})}},
                    "def forward(self, x):\n"
                    "    x = torch.conv2d(x, self.depthwise.weight, None, [1, 1], [1, 1], [1, 1], 8)\n"
                    "    x = torch.conv_transpose2d(x, self.up.weight)\n"
                    "    x = torch.linear(torch.flatten(torch.adaptive_avg_pool2d(x, [4, 4]), 1), self.fc.weight)\n"
                    "    return torch.linear(x, self.thin.weight)\n");
    const auto rows = lowrank::explain(model, {sine({1, 8, 6, 6})});
    ASSERT_EQ(rows.size(), 4u);
    EXPECT_EQ(rows[0].layer, "depthwise");
    EXPECT_EQ(rows[0].reason, "grouped convolution (8 groups)");
    EXPECT_EQ(rows[1].reason, "transposed convolutions are not factorised");
    EXPECT_TRUE(rows[2].factorisable);
    EXPECT_EQ(rows[2].op, "aten::linear");
    EXPECT_EQ(rows[2].full_rank, 10);
    EXPECT_EQ(rows[2].break_even_rank, 8);  // 8 x 74 = 592 < 640 < 9 x 74
    EXPECT_EQ(rows[3].reason, "no rank would need fewer multiply-adds");
}

}  // namespace
}  // namespace coppice::testing
