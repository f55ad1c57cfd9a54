#include <ATen/Parallel.h>

#include <coppice/deploy.h>
#include <coppice/graph.h>

#include "support/support.h"

namespace coppice::testing {
namespace {

at::Tensor output(const Model& model, const Inputs& inputs) {
    torch::NoGradGuard no_grad;
    return first_tensor(model.forward(inputs));
}

int count(const Model& model, const std::string& op) {
    int found = 0;
    for (const auto* node : all_nodes(*model.graph())) found += node->kind().toQualString() == op;
    return found;
}

DeployOptions form(const std::string& name) {
    DeployOptions options;
    options.form = name;
    options.seconds = 0.2;
    return options;
}

const Inputs kImage = {sine({2, 3, 8, 8})};

TEST(Deploy, EveryFormKeepsTheFunctionAndItsArgument) {
    const auto model = residual_model();
    const auto before_text = model.graph()->toString();
    const auto before = output(model, kImage);
    for (const char* name :
         {"auto", "as_is", "folded", "fused", "attention", "merged", "channels_last", "fused_channels_last"}) {
        Context context;
        context.example = kImage;
        const auto result = deploy(form(name))->apply(model, context);
        EXPECT_NO_THROW(result.graph()->lint()) << name;
        EXPECT_EQ(output(result, kImage).sizes(), before.sizes()) << name;
        EXPECT_LT(max_difference(output(result, kImage), before), 1e-4 * before.abs().max().item<double>()) << name;
        const TemporaryFolder folder;
        result.save(folder / "model.pt");
        auto stock = torch::jit::load((folder / "model.pt").string());
        EXPECT_TRUE(at::equal(stock.forward(kImage).toTensor(), output(result, kImage))) << name;
    }
    EXPECT_EQ(model.graph()->toString(), before_text);
    EXPECT_TRUE(at::equal(output(model, kImage), before));
}

TEST(Deploy, AsIsIsTheIdentity) {
    Context context;
    context.example = kImage;
    const auto model = residual_model();
    const auto result = deploy(form("as_is"))->apply(model, context);
    EXPECT_TRUE(at::equal(output(result, kImage), output(model, kImage)));
    EXPECT_EQ(count(result, "aten::batch_norm"), 4);
    EXPECT_EQ(context.facts.at("form"), "as_is");
}

TEST(Deploy, ANamedFormGivesTheSameBitsEveryTime) {
    Context a, b;
    a.example = b.example = kImage;
    const auto first = deploy(form("fused_channels_last"))->apply(residual_model(), a);
    const auto second = deploy(form("fused_channels_last"))->apply(residual_model(), b);
    EXPECT_TRUE(at::equal(output(first, kImage), output(second, kImage)));
    EXPECT_EQ(count(first, "aten::batch_norm"), 0);
    EXPECT_EQ(count(first, "aten::contiguous"), 1);
    EXPECT_EQ(a.facts.at("form"), "fused_channels_last");
}

TEST(Deploy, SaysWhatItTriedWithTimesAndIntervals) {
    Context context;
    context.example = kImage;
    auto options = form("auto");
    options.seconds = 3;
    deploy(options)->apply(residual_model(), context);
    const auto& forms = context.facts.at("forms");
    ASSERT_EQ(forms.size(), 7u);
    int kept = 0;
    for (const auto& row : forms) {
        if (row.at("name") == "attention" || row.at("name") == "merged") {
            EXPECT_EQ(row.at("reason"), "nothing to rewrite that a simpler form does not");
            continue;
        }
        kept += row.at("kept").get<bool>();
        EXPECT_GT(row.at("seconds").at("2").get<double>(), 0) << row;
        EXPECT_GT(row.at("seconds").at("32").get<double>(), 0) << row;
        EXPECT_LE(row.at("time_ratio_interval")[0].get<double>(), row.at("time_ratio").get<double>()) << row;
        EXPECT_EQ(row.at("provenance"), "measured");
        EXPECT_TRUE(row.at("kept").get<bool>() || row.contains("reason")) << row;
    }
    EXPECT_EQ(kept, 1);
    EXPECT_GE(context.facts.at("rounds").get<int>(), 6);
    EXPECT_EQ(context.facts.at("threads"), at::get_num_threads());
}

TEST(Deploy, KeepsWhatItsFiguresSayIsFastest) {
    Context context;
    context.example = {sine({1, 3, 64, 64})};
    const auto result = deploy(form("auto"))->apply(residual_model(), context);
    double least_high = 2;  // upper end of the best interval against as_is
    Json kept;
    for (const auto& row : context.facts.at("forms")) {
        if (row.at("name") != "as_is" && row.contains("time_ratio_interval"))
            least_high = std::min(least_high, row.at("time_ratio_interval")[1].get<double>());
        if (row.at("kept").get<bool>()) kept = row;
    }
    EXPECT_EQ(kept.at("name"), context.facts.at("form"));
    if (least_high < 0.98) EXPECT_NE(kept.at("name"), "as_is") << context.facts.dump(1);
    if (kept.at("name") != "as_is") EXPECT_LT(kept.at("time_ratio").get<double>(), 0.99) << context.facts.dump(1);
    int folded = 0;
    for (const auto& change : context.changes) folded += change.action == "folded";
    EXPECT_EQ(folded, kept.at("folded").get<int>());
    EXPECT_EQ(count(result, "aten::batch_norm"), 4 - folded);
}

TEST(Deploy, PassesAModelThroughThatHasNothingToRewrite) {
    const auto model = build_model({{"fc.weight", sine({4, 6})}},
                                   "def forward(self, x):\n    return torch.linear(x, self.fc.weight)\n");
    for (const char* name : {"auto", "folded"}) {
        Context context;
        context.example = {sine({2, 6})};
        const auto result = deploy(form(name))->apply(model, context);
        EXPECT_TRUE(at::equal(output(result, context.example), output(model, context.example)));
        EXPECT_EQ(context.facts.at("form"), "as_is");
        ASSERT_EQ(context.changes.size(), 1u);
        EXPECT_THAT(context.changes[0].reason, ::testing::HasSubstr("already in its fastest known form"));
    }
}

TEST(Deploy, LeavesOutAFormThatDoesNotAgree) {
    auto options = form("auto");
    options.tolerance = 0;  // folding rounds differently: only what keeps every bit may stay
    Context context;
    context.example = kImage;
    deploy(options)->apply(residual_model(), context);
    EXPECT_EQ(context.facts.at("form"), "as_is");
    bool said = false;
    for (const auto& row : context.facts.at("forms"))
        said |= row.contains("reason") &&
                row.at("reason").get<std::string>().find("outputs differ by") != std::string::npos;
    EXPECT_TRUE(said) << context.facts.dump(1);
    auto by_name = form("folded");
    by_name.tolerance = 0;
    EXPECT_ERROR(deploy(by_name)->apply(residual_model(), context), UnsupportedModel, "outputs differ by");
}

TEST(Deploy, LeavesOutAFormThatCannotBeMade) {
    // The bfloat16 form is made on top of the channels-last one, whose convolution gives no pairs side by side.
    const auto model = build_model({{"c.weight", sine({4, 3, 3, 1}, 0.3)}},
                                   "def forward(self, x):\n"
                                   "    return torch.view_as_complex(torch.conv2d(x, self.c.weight)).abs()\n");
    auto options = form("auto");
    options.bf16 = true;
    Context context;
    context.example = {sine({2, 3, 8, 2})};
    const auto result = deploy(options)->apply(model, context);
    EXPECT_TRUE(at::equal(output(result, context.example), output(model, context.example)));
    EXPECT_EQ(context.facts.at("form"), "as_is");
    std::string reason;
    for (const auto& row : context.facts.at("forms"))
        if (row.at("name") == "bf16") reason = row.at("reason").get<std::string>();
    EXPECT_THAT(reason, ::testing::HasSubstr("it cannot be made"));
    EXPECT_ERROR(deploy(form("bf16"))->apply(model, context), UnsupportedModel, "it cannot be made");
}

TEST(Deploy, RefusesAModelThatDoesNotAgreeWithItself) {
    // One draw per run, seeded, is equal; a counter in the model is not.
    const auto model = build_model({{"buffer_calls", at::zeros({1})}, {"fc.weight", sine({4, 6})}},
                                   "def forward(self, x):\n"
                                   "    self.buffer_calls.add_(1)\n"
                                   "    return torch.linear(x, self.fc.weight) + self.buffer_calls\n");
    Context context;
    context.example = {sine({2, 6})};
    EXPECT_ERROR(deploy(form("auto"))->apply(model, context), UnsupportedModel, "two runs on the same input differ");
}

TEST(Deploy, MeasuresOnlyTheExampleWhereABatchOf32DoesNotRun) {
    const auto model =
        build_model({{"conv.weight", sine({4, 3, 3, 3})}},
                    "def forward(self, x):\n    return torch.relu(torch.conv2d(x, self.conv.weight)).view([2, 144])\n");
    Context context;
    context.example = kImage;
    deploy(form("auto"))->apply(model, context);
    for (const auto& row : context.facts.at("forms"))
        if (row.contains("seconds")) EXPECT_EQ(row.at("seconds").size(), 1u) << row;
}

TEST(Deploy, ZeroesSubnormalWeights) {
    auto model = residual_model();
    auto weight = get_attribute(model, "fc.weight").toTensor().detach().clone();
    weight.view(-1)[3] = 1e-40f;
    set_tensor(model, "fc.weight", weight);
    Context context;
    context.example = kImage;
    const auto result = deploy(form("as_is"))->apply(model, context);
    EXPECT_EQ(context.facts.at("subnormal_weights"), 1);
    EXPECT_EQ(get_attribute(result, "fc.weight").toTensor().view(-1)[3].item<float>(), 0.0f);
}

TEST(Deploy, TriesBf16OnlyWhenAsked) {
    auto options = form("auto");
    options.bf16 = true;
    Context context;
    context.example = kImage;
    deploy(options)->apply(residual_model(), context);
    EXPECT_EQ(context.facts.at("forms").size(), 8u);
    EXPECT_EQ(context.facts.at("forms").back().at("name"), "bf16");
}

TEST(Deploy, SaysWhatIsWrong) {
    Context nothing;
    EXPECT_ERROR(deploy()->apply(residual_model(), nothing), InvalidArgument, "no example input");
    EXPECT_ERROR(deploy(form("fuse")), InvalidArgument, "Did you mean \"fused\"?");
    auto options = form("auto");
    options.batch = {0};
    EXPECT_ERROR(deploy(options), InvalidArgument, "must be at least 1");
}

TEST(DeployRegistry, ReadsItsOptions) {
    const auto& row = find_entry(deploy_stages(), "stage", "deploy", "test");
    Options options("deploy", {{"form", "folded"}, {"seconds", "1"}, {"batch", "16"}, {"tolerance", "0.001"}});
    const auto stage = row.make(options);
    options.done();
    Context context;
    context.example = kImage;
    stage->apply(residual_model(), context);
    EXPECT_EQ(context.facts.at("form"), "folded");
}

TEST(DeployOnRealModels, KeepsTheFunctionOfResNet20) {
    SKIP_WITHOUT_DATA("cifar10/resnet20.pt");
    const auto model = Model::load(data_path("cifar10/resnet20.pt"));
    Context context;
    context.example = {sine({1, 3, 32, 32}, 2)};
    auto options = form("auto");
    options.seconds = 3;
    const auto result = deploy(options)->apply(model, context);
    const Inputs images = {sine({8, 3, 32, 32}, 2)};
    const auto before = output(model, images);
    EXPECT_LT(max_difference(output(result, images), before), 1e-4 * before.abs().max().item<double>());
    RecordProperty("forms", context.facts.at("forms").dump());
    EXPECT_EQ(context.facts.at("forms")[1].at("folded"), 19);
}

}  // namespace
}  // namespace coppice::testing
