// Every stage of every table, with its default options (training made short), on one model: what Stage promises.
#include "modules.h"
#include "support/support.h"

namespace coppice::testing {
namespace {

/// Options that every stage needs on a model this small; the rest are its defaults.
Setting options_of(const std::string& stage) {
    if (stage == "prune.channel")
        return Setting::map({{"ratio", Setting::scalar("0.5")}, {"round_to", Setting::scalar("1")}});
    if (stage == "prune.gradual")
        return Setting::map({{"ratio", Setting::scalar("0.5")},
                             {"round_to", Setting::scalar("1")},
                             {"epochs", Setting::scalar("1")},
                             {"batch_size", Setting::scalar("8")},
                             {"every_steps", Setting::scalar("1")},
                             {"autocast", Setting::scalar("off")}});
    if (stage == "train.finetune" || stage == "distill.logits" || stage == "prune.sparse_learning" ||
        stage == "prune.movement" || stage == "quantize.qat")
        return Setting::map({{"epochs", Setting::scalar("1")},
                             {"batch_size", Setting::scalar("8")},
                             {"autocast", Setting::scalar("off")}});
    // Its rows are so short that their scales weigh as much as a quarter of them.
    if (stage == "quantize.mixed") return Setting::map({{"ratio", Setting::scalar("0.5")}});
    if (stage == "quantize.static")
        return Setting::map({{"engine", Setting::scalar("x86")}, {"linear", Setting::scalar("packed")}});
    return {};
}

/// Its residual block keeps the shape, as those of residual_model() do not.
Model model_with_a_removable_block() {
    return build_model({{"conv1.weight", sine({8, 3, 3, 3}, 0.3)},
                        {"conv2.weight", sine({8, 8, 3, 3}, 0.2)},
                        {"fc.weight", sine({10, 8}, 0.5)}},
                       R"(
def forward(self, x):
    x = torch.relu(torch.conv2d(x, self.conv1.weight, None, [1, 1], [1, 1]))
    x = torch.relu(x + torch.conv2d(x, self.conv2.weight, None, [1, 1], [1, 1]))
    return torch.linear(torch.mean(x, [2, 3]), self.fc.weight)
)");
}

class StageContract : public ::testing::TestWithParam<std::string> {
protected:
    void SetUp() override {
        context_.example = {sine({2, 3, 8, 8})};
        auto images = (at::arange(32 * 3 * 8 * 8, at::kDouble) * 0.7).sin().to(at::kFloat).reshape({32, 3, 8, 8});
        context_.data.train = tensor_dataset({images}, at::arange(32).remainder(10), "smooth images");
        context_.data.calibration = context_.data.test = context_.data.train;
        context_.baseline = &model_;
        context_.evaluate = [](const Model&) { return 0.0; };
    }

    Model apply() {
        Options options(GetParam(), options_of(GetParam()));
        const auto& row = find_entry(cli::all_stages(), "stage", GetParam(), "test");
        const auto stage = row.make(options);
        options.done();
        stage->check(model_, context_);
        return stage->apply(model_, context_);
    }

    Model model_ = GetParam() == "prune.depth" ? model_with_a_removable_block() : residual_model();
    Context context_;
};

TEST_P(StageContract, LeavesItsInputAsItWas) {
    const auto before = model_.graph()->toString(false);
    std::vector<at::Tensor> tensors;
    for (const auto& named : named_tensors(model_)) tensors.push_back(named.tensor.detach().clone());
    apply();
    EXPECT_EQ(model_.graph()->toString(false), before);
    const auto after = named_tensors(model_);
    ASSERT_EQ(after.size(), tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i) EXPECT_TRUE(at::equal(tensors[i], after[i].tensor)) << after[i].name;
}

TEST_P(StageContract, GivesAModelThatRunsAndKeepsTheOutputsShape) {
    const auto result = apply();
    verify(result, context_.example, GetParam(), {{2, 10}});
}

TEST_P(StageContract, SavesAFileThatStockLibTorchLoadsToTheSameBits) {
    const auto result = apply();
    TemporaryFolder folder;
    result.save(folder / "model.pt");
    auto loaded = torch::jit::load((folder / "model.pt").string());
    torch::NoGradGuard no_grad;
    EXPECT_TRUE(
        at::equal(first_tensor(loaded.forward(context_.example)), first_tensor(result.forward(context_.example))));
}

TEST_P(StageContract, SameSeedSameBits) {
    if (GetParam() == "deploy" || GetParam() == "quantize.auto") GTEST_SKIP() << "chooses by measured time";
    torch::NoGradGuard no_grad;
    torch::manual_seed(1);
    const auto first = first_tensor(apply().forward(context_.example));
    torch::manual_seed(2);  // a stage depends on its own seed alone
    EXPECT_TRUE(at::equal(first, first_tensor(apply().forward(context_.example))));
}

TEST_P(StageContract, SaysWhatItChanged) {
    apply();
    EXPECT_TRUE(!context_.changes.empty() || !context_.facts.empty());
}

INSTANTIATE_TEST_SUITE_P(All, StageContract, ::testing::ValuesIn(names_of(cli::all_stages())), [](const auto& info) {
    std::string name = info.param;
    std::replace(name.begin(), name.end(), '.', '_');
    return name;
});

}  // namespace
}  // namespace coppice::testing
