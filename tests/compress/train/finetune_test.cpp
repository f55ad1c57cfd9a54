#include "models.h"
#include "support/warnings.h"

namespace coppice::testing {
namespace {

/// Distance to the teacher's output: a loss that needs one.
class Imitate final : public Loss {
public:
    Needs needs() const override {
        Needs needs;
        needs.teacher = true;
        return needs;
    }
    at::Tensor operator()(const at::Tensor& output, const at::Tensor& teacher, const Batch&) const override {
        return at::mse_loss(output, teacher);
    }
};

std::unique_ptr<Stage> stage(std::vector<std::pair<std::string, std::string>> scalars) {
    auto losses = builtin_losses();
    losses.insert(losses.begin() + 1,
                  Entry<Loss>{"imitate", "test", [](Options&) { return std::make_unique<Imitate>(); }});
    Options options("train.finetune", std::move(scalars));
    const auto stages = train_stages(losses);
    auto made = find_entry(stages, "stage", "train.finetune", "test").make(options);
    options.done();
    return made;
}

Context context_with(const std::shared_ptr<Dataset>& data) {
    Context context;
    context.example = {at::ones({1, 1, 8, 8})};
    context.data.train = data;
    return context;
}

}  // namespace

TEST(FineTune, SaysWhenTheEpochIsChosenOnTheTestData) {
    const auto data = stripes(40);
    struct Case {
        const char* keep;
        bool test, validation, chosen;
    };
    for (const auto& [keep, test, validation, chosen] :
         {Case{"best", true, false, true}, Case{"best", true, true, false}, Case{"best", false, false, false},
          Case{"last", true, false, false}, Case{"auto", true, false, false}}) {
        auto context = context_with(data);
        context.evaluate = [&](const Model& m) { return accuracy(*trainable(m), *data); };
        if (test) context.data.test = data;
        if (validation) context.data.validation = data;
        stage({{"epochs", "2"}, {"batch_size", "20"}, {"keep", keep}})->apply(small_model(), context);
        EXPECT_EQ(context.facts.contains("chosen_on"), chosen) << keep << test << validation;
    }
}

TEST(FineTune, TrainsACopyAndReportsIt) {
    const auto data = stripes(120);
    const auto model = small_model();
    const auto untouched = values(*trainable(small_model()));
    auto context = context_with(data);
    context.evaluate = [&](const Model& m) { return accuracy(*trainable(m), *data); };
    const auto made = stage({{"epochs", "4"}, {"lr", "0.05"}, {"batch_size", "16"}});
    EXPECT_TRUE(made->needs().training_data);
    EXPECT_TRUE(made->needs().labels);
    EXPECT_FALSE(made->needs().teacher);
    made->check(model, context);
    const auto trained = made->apply(model, context);
    EXPECT_TRUE(bitwise_equal(values(*trainable(model)), untouched));
    EXPECT_GT(accuracy(*trainable(trained), *data), 0.95);
    EXPECT_EQ(context.facts["epochs"], 4);
    EXPECT_EQ(context.facts["train_loss"].size(), 4u);
    EXPECT_GT(context.facts["metric"][3].get<double>(), 0.95);
    EXPECT_GT(context.facts["train_seconds"].get<double>(), 0);
    // Eval mode: dropout off, so two runs agree.
    EXPECT_TRUE(at::equal(first_tensor(trained.forward({at::ones({1, 1, 8, 8})})),
                          first_tensor(trained.forward({at::ones({1, 1, 8, 8})}))));
}

TEST(FineTune, LearnsFromTheBaselineOrAFile) {
    const TemporaryFolder folder;
    const auto data = stripes(60);
    auto teacher = small_model();
    const auto taught = trainable(teacher);
    TrainOptions options;
    options.epochs = 3, options.lr = 0.05, options.batch_size = 16;
    Trainer(options).fit(*taught, *data, *cross_entropy());
    teacher.save(folder / "teacher.pt");
    for (const char* name : {"baseline", "teacher.pt"}) {
        auto context = context_with(data);
        context.base_dir = folder.path();
        if (std::string(name) == "baseline") context.baseline = &teacher;
        const auto made =
            stage({{"epochs", "6"}, {"lr", "0.02"}, {"batch_size", "16"}, {"loss", "imitate"}, {"teacher", name}});
        EXPECT_EQ(made->needs().teacher, std::string(name) == "baseline");
        made->check(small_model(), context);
        const auto student = made->apply(small_model("0.0"), context);
        EXPECT_LT(context.facts["train_loss"][5].get<double>(), context.facts["train_loss"][0].get<double>() / 3)
            << name;
        EXPECT_GT(accuracy(*trainable(student), *data), 0.9) << name;
    }
    auto context = context_with(data);
    context.base_dir = folder.path();
    EXPECT_ERROR(stage({{"loss", "imitate"}, {"teacher", "none.pt"}})->check(small_model(), context), InvalidArgument,
                 "none.pt is not there");
    EXPECT_ERROR(stage({{"loss", "imitate"}})->apply(small_model(), context), InvalidArgument,
                 "no baseline to learn from");
}

TEST(FineTune, GoesOnFromItsCheckpoint) {
    const TemporaryFolder folder;
    const auto data = stripes(60);
    const auto made = stage({{"epochs", "4"}, {"lr", "0.05"}, {"batch_size", "16"}});
    auto whole = context_with(data);
    const auto expected = made->apply(small_model(), whole);
    auto context = context_with(data);
    context.work_dir = folder.path();
    int polls = 0;
    context.interrupted = [&] { return ++polls == 10; };
    EXPECT_ERROR(made->apply(small_model(), context), Interrupted, "epoch 3");
    context.interrupted = [] { return false; };
    const auto resumed = made->apply(small_model(), context);
    EXPECT_EQ(context.facts["resumed"], true);
    EXPECT_TRUE(bitwise_equal(values(*trainable(resumed)), values(*trainable(expected))));
}

TEST(FineTune, KeepsTheZerosOfASparseModelWhenAskedTo) {
    const auto data = stripes(60);
    for (const char* optimizer : {"sgd", "adamw"}) {
        auto model = small_model();
        for (const char* name : {"conv.weight", "fc.weight"}) {
            const auto weight = get_attribute(model, name).toTensor().detach();
            set_tensor(model, name, at::where(weight.abs() < weight.abs().median(), 0, weight));
        }
        for (const char* keep : {"true", "false"}) {
            SCOPED_TRACE(std::string(optimizer) + ", keep_zeros: " + keep);
            auto context = context_with(data);
            Warnings log;
            context.log = &log;
            const auto trained = stage({{"epochs", "2"},
                                        {"lr", "0.01"},
                                        {"batch_size", "16"},
                                        {"optimizer", optimizer},
                                        {"weight_decay", "0.01"},
                                        {"keep_zeros", keep}})
                                     ->apply(model, context);
            const bool kept = keep == std::string("true");
            for (const char* name : {"conv.weight", "fc.weight"}) {
                const auto before = get_attribute(model, name).toTensor(),
                           after = get_attribute(trained, name).toTensor();
                EXPECT_EQ(at::equal(before == 0, after == 0), kept) << name;
                EXPECT_FALSE(at::equal(before, after)) << name;
            }
            EXPECT_EQ(log.texts.size(), kept ? 0u : 1u);
            EXPECT_EQ(context.facts.contains("zeros_kept"), kept);
        }
    }
}

TEST(FineTune, ASharedWeightMovesByTheSumOfTheGradientsOfItsUses) {
    // One step of plain gradient descent on mean((x w^T - t)^2): dL/dw = 2 / (N C) (x w^T - t)^T x.
    const auto x = sine({16, 4}), target = sine({16, 2}, 2.0);
    const auto weight = at::tensor({0.5f, -0.25f, 0.5f, 0.f, -0.25f, 0.5f, 0.f, -0.25f}).view({2, 4});
    auto context = context_with(tensor_dataset({x}, target, "values"));
    context.task = Task::kRegression;
    const auto model = build_model({{"w", weight}}, "def forward(self, x):\n    return torch.linear(x, self.w)\n");
    const auto trained = stage({{"epochs", "1"},
                                {"lr", "0.1"},
                                {"batch_size", "16"},
                                {"momentum", "0"},
                                {"weight_decay", "0"},
                                {"schedule", "constant"},
                                {"keep_shared", "true"}})
                             ->apply(model, context);
    const auto gradient = (at::linear(x, weight) - target).t().mm(x) * (2.0 / (16 * 2));
    auto expected = weight.clone();
    for (const float value : {0.5f, -0.25f})  // zeros stay
        expected.masked_fill_(weight == value,
                              value - 0.1 * gradient.masked_select(weight == value).sum().item<double>());
    const auto after = get_attribute(trained, "w").toTensor().detach();
    EXPECT_LE(max_difference(after, expected), 1e-6);  // float32 sums of 16 terms
    EXPECT_EQ(std::get<0>(at::_unique2(after)).numel(), 3);
    EXPECT_EQ(context.facts["shared_parameters"], 1);
}

TEST(FineTune, KeepsEqualWeightsEqualWithEveryOptimizerAndSaysWhenThereAreNone) {
    const auto data = stripes(60);
    auto model = small_model();
    auto context = context_with(data);
    EXPECT_ERROR(stage({{"epochs", "1"}, {"keep_shared", "true"}})->apply(model, context), UnsupportedModel,
                 "at most 256 distinct");
    const auto weight = get_attribute(model, "fc.weight").toTensor().detach();
    set_tensor(model, "fc.weight", at::where(weight > 0, 0.1, -0.2).to(at::kFloat));
    for (const char* optimizer : {"sgd", "adamw"}) {
        context = context_with(data);
        const auto trained = stage({{"epochs", "2"},
                                    {"lr", "0.001"},
                                    {"batch_size", "16"},
                                    {"optimizer", optimizer},
                                    {"keep_shared", "true"}})
                                 ->apply(model, context);
        const auto after = get_attribute(trained, "fc.weight").toTensor().detach();
        const auto upper = after.masked_select(weight > 0), lower = after.masked_select(weight <= 0);
        EXPECT_TRUE((upper == upper[0]).all().item<bool>()) << optimizer;
        EXPECT_TRUE((lower == lower[0]).all().item<bool>()) << optimizer;
        EXPECT_NE(upper[0].item<float>(), 0.1f) << optimizer;
        EXPECT_NE(get_attribute(trained, "conv.weight").toTensor()[0][0][0][0].item<float>(),
                  get_attribute(model, "conv.weight").toTensor()[0][0][0][0].item<float>());
    }
}

TEST(FineTune, SaysWhichLayersATracedModelCannotTrain) {
    struct Recorder final : Log {
        void write(const std::string& level, const std::string& message) override {
            lines.push_back(level + ": " + message);
        }
        std::vector<std::string> lines;
    } log;
    const auto traced = build_model({{"bn.weight", at::ones({1})},
                                     {"bn.bias", at::zeros({1})},
                                     {"bn.running_mean", at::zeros({1})},
                                     {"bn.running_var", at::ones({1})},
                                     {"fc.weight", sine({3, 64}, 0.3)}},
                                    R"(
def forward(self, x):
    x = torch.batch_norm(x, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-5, True)
    return torch.linear(torch.flatten(x, 1), self.fc.weight)
)");
    auto context = context_with(stripes(30));
    context.log = &log;
    stage({{"epochs", "1"}})->apply(traced, context);
    ASSERT_FALSE(log.lines.empty());
    EXPECT_THAT(log.lines[0], ::testing::HasSubstr("warning: train.finetune: 1 layers (bn) behave as in eval mode"));
    ASSERT_EQ(context.changes.size(), 1u);
    EXPECT_EQ(context.changes[0].layer, "bn");
    auto scripted = context_with(stripes(30));
    stage({{"epochs", "1"}})->apply(small_model(), scripted);
    EXPECT_TRUE(scripted.changes.empty());
}

TEST(FineTune, TakesTheLossOfTheTask) {
    auto context = context_with(tensor_dataset({sine({16, 4})}, sine({16, 2}), "values"));
    context.task = Task::kRegression;
    const auto model =
        build_model({{"w", sine({2, 4})}}, "def forward(self, x):\n    return torch.linear(x, self.w)\n");
    stage({{"epochs", "3"}, {"lr", "0.1"}, {"batch_size", "4"}})->apply(model, context);
    EXPECT_LT(context.facts["train_loss"][2].get<double>(), context.facts["train_loss"][0].get<double>());
    EXPECT_ERROR(stage({{"loss", "mes"}}), InvalidArgument, "Did you mean \"mse\"?");
    EXPECT_ERROR(stage({{"epoch", "3"}}), InvalidArgument, "Did you mean \"epochs\"?");
}

TEST(RealModel, Resnet20FineTunesOnAFewImagesWithoutForgetting) {
    SKIP_WITHOUT_DATA("cifar10/train.bin");
    SKIP_WITHOUT_DATA("cifar10/resnet20.pt");
    std::vector<std::pair<std::string, Setting>> members = {
        {"format", Setting::scalar("cifar10")},
        {"train", Setting::map({{"path", Setting::scalar(data_path("cifar10/train.bin").string())},
                                {"rows", [] {
                                     Setting rows;
                                     rows.kind = Setting::Kind::kList;
                                     rows.items = {Setting::scalar("0"), Setting::scalar("128")};
                                     return rows;
                                 }()}})}};
    const auto splits = open_data(Setting::map(members), ".");
    Context context;
    context.data = splits;
    const auto model = Model::load(data_path("cifar10/resnet20.pt"));
    const auto trained =
        stage({{"epochs", "1"}, {"lr", "0.001"}, {"crop_padding", "4"}, {"flip", "true"}})->apply(model, context);
    EXPECT_LT(context.facts["train_loss"][0].get<double>(), 0.4);  // random weights: 2.3
    EXPECT_GT(accuracy(*trainable(trained), *splits.train), 0.9);
}

}  // namespace coppice::testing
