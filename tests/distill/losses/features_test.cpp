// Losses on what layers give: against plain loops, through a whole training stage, and what they refuse.
#include <torch/nn/modules/linear.h>

#include <coppice/graph.h>
#include <coppice/train.h>

#include "distill/losses/logits.h"

namespace coppice::testing {
namespace {

using distill::attention;
using distill::FeatureOptions;
using distill::hints;
using distill::kd;

FeatureOptions with(double weight, std::vector<std::string> layers = {}) {
    return {std::move(layers), weight};
}

double of_features(const Loss& loss, const at::Tensor& student, const at::Tensor& teacher) {
    return dynamic_cast<const FeatureLoss&>(loss).of_features({"layer"}, {student}, {teacher}).item<double>();
}

/// |q(s) - q(t)|^2 of one example, [C, H, W] in float64.
double attention_in_loops(const at::Tensor& student, const at::Tensor& teacher) {
    const auto map = [](const at::Tensor& x) {
        std::vector<double> energy;
        for (int64_t h = 0; h < x.size(1); ++h)
            for (int64_t w = 0; w < x.size(2); ++w) {
                double sum = 0;
                for (int64_t c = 0; c < x.size(0); ++c) sum += std::pow(x[c][h][w].item<double>(), 2);
                energy.push_back(sum);
            }
        double norm = 0;
        for (const double e : energy) norm += e * e;
        for (double& e : energy) e /= std::sqrt(norm);
        return energy;
    };
    const auto s = map(student), t = map(teacher);
    double sum = 0;
    for (size_t i = 0; i < s.size(); ++i) sum += (s[i] - t[i]) * (s[i] - t[i]);
    return sum;
}

TEST(DistillAttention, IsThatOfPlainLoopsForStudentsOfAnyWidth) {
    const auto student = sine({2, 3, 4, 5}, 1.3).to(at::kDouble), teacher = sine({2, 6, 4, 5}, 0.7).to(at::kDouble);
    const double mean = (attention_in_loops(student[0], teacher[0]) + attention_in_loops(student[1], teacher[1])) / 2;
    ASSERT_GT(mean, 0.001);
    EXPECT_NEAR(of_features(*attention(kd(), with(3)), student, teacher), 3 * mean, 1e-12);
    // Tokens: [N, T, C] is the same as [N, C, T, 1].
    const auto tokens = student.flatten(2), others = teacher.flatten(2);
    EXPECT_NEAR(of_features(*attention(kd(), with(3)), tokens.transpose(1, 2), others.transpose(1, 2)), 3 * mean,
                1e-12);
}

TEST(DistillAttention, DoesNotSeeTheScaleAndLearnsNothingFromDeadFeatures) {
    const auto teacher = sine({2, 6, 4, 5}, 0.7).to(at::kDouble);
    EXPECT_NEAR(of_features(*attention(kd(), with(1)), teacher * 3, teacher), 0, 1e-12);
    auto dead = at::zeros({2, 3, 4, 5}, at::kDouble).set_requires_grad(true);
    const auto loss = attention(kd(), with(1));
    dynamic_cast<const FeatureLoss&>(*loss).of_features({"layer"}, {dead}, {teacher}).backward();
    EXPECT_TRUE(dead.grad().isfinite().all().item<bool>());
}

TEST(DistillHints, AreTheSquaredErrorAsAShareOfTheTeachersEnergy) {  // (1 + 0 + 4) / (4 + 4 + 1)
    const auto student = at::tensor({1.0, 2.0, 3.0}, at::kDouble), teacher = at::tensor({2.0, 2.0, 1.0}, at::kDouble);
    EXPECT_NEAR(of_features(*hints(kd(), with(2)), student, teacher), 2 * 5.0 / 9, 1e-12);
}

TEST(DistillFeatures, RefuseWhatCannotBeComparedByName) {
    const auto wide = sine({2, 6, 4, 4}, 1), narrow = sine({2, 3, 4, 4}, 1), small = sine({2, 6, 2, 2}, 1);
    EXPECT_ERROR(of_features(*hints(kd()), narrow, wide), InvalidArgument,
                 "layer layer gives [2, 3, 4, 4] in the student and [2, 6, 4, 4]");
    EXPECT_ERROR(of_features(*attention(kd()), small, wide), InvalidArgument, "[2, 6, 2, 2]");
    EXPECT_ERROR(of_features(*attention(kd()), wide.flatten(1), wide.flatten(1)), InvalidArgument, "have positions");
    EXPECT_ERROR(hints(kd(), with(-1)), InvalidArgument, "weight is -1.0");
    EXPECT_ERROR(hints(kd(), with(1, {"("})), InvalidArgument, "\"(\" is no regular expression");
    EXPECT_ERROR(hints(hints(kd())), InvalidArgument, "compares features itself");
    EXPECT_ERROR(hints(nullptr), InvalidArgument, "the loss on the outputs is missing");
}

// Two layers with a branch around each; the sums are what is compared unless layers are named.
const char* const kResidual =
    "def forward(self, x):\n"
    "    a = x + torch.relu(torch.linear(x, self.first.weight, self.first.bias))\n"
    "    b = a + torch.relu(torch.linear(a, self.second.weight, self.second.bias))\n"
    "    return torch.linear(b, self.head.weight, self.head.bias)\n";

Model residual(double scale) {
    return build_model({{"first.weight", sine({6, 6}, 1.1) * scale},
                        {"first.bias", sine({6}, 0.4) * scale},
                        {"second.weight", sine({6, 6}, 1.7) * scale},
                        {"second.bias", sine({6}, 0.9) * scale},
                        {"head.weight", sine({3, 6}, 2)},
                        {"head.bias", sine({3})}},
                       kResidual);
}

TEST(WatchedLayers, AreThoseOfAWalkOverTheGraphAndLeaveTheOutputAlone) {
    const auto model = residual(0.5);
    const auto module = trainable(model);
    const auto x = sine({4, 6}, 1.5);
    const auto alone = module->forward({x});
    EXPECT_TRUE(module->watched().empty());
    const auto names = module->watch({});
    ASSERT_EQ(names.size(), 2u);
    EXPECT_TRUE(at::equal(module->forward({x}), alone));

    std::map<std::string, at::Tensor> seen;
    const LayerNames layers(model);
    NodeHooks hooks;
    hooks.after = [&](const torch::jit::Node* node, std::vector<c10::IValue>& outputs) {
        if (outputs.size() == 1 && outputs[0].isTensor()) seen[layers.of(node)] = outputs[0].toTensor();
    };
    run_nodes(model, {x}, hooks);
    for (size_t i = 0; i < 2; ++i) EXPECT_TRUE(at::equal(module->watched()[i], seen.at(names[i]))) << names[i];

    EXPECT_EQ(module->watch({"first"}), (std::vector<std::string>{"first"}));
    EXPECT_ERROR(module->watch({"first", "third"}), InvalidArgument, "no layer is called \"third\"");
    const auto net = std::make_shared<torch::nn::LinearImpl>(2, 2);
    EXPECT_ERROR(trainable(net, [net](const Inputs& i) { return net->forward(i[0].toTensor()); })->watch({}),
                 UnsupportedModel, "does not give the outputs of its layers");
}

TEST(DistillStages, HintsBringTheLayersInsideToTheTeachers) {
    const auto teacher = residual(0.5), student = residual(0.1);
    const auto x = sine({128, 6}, 1.5);
    const auto gap = [&](const Model& model) {
        const auto one = trainable(model), other = trainable(teacher);
        torch::NoGradGuard no_grad;
        one->watch({"first"});
        other->watch({"first"});
        one->forward({x});
        other->forward({x});
        return max_difference(one->watched()[0], other->watched()[0]);
    };
    const auto train = [&](const std::string& loss) {
        Context context;
        context.example = {x.slice(0, 0, 2)};
        context.baseline = &teacher;
        context.data.train = tensor_dataset({x}, at::zeros({128}, at::kLong), "sines");
        auto table = builtin_losses();
        table.insert(table.end(), distill::losses().begin(), distill::losses().end());
        Setting on_outputs = Setting::map({{"distill.logits", Setting::map({{"alpha", Setting::scalar("1")}})}});
        Setting whole = loss.empty() ? on_outputs : Setting::map({{loss, Setting::map({{"loss", on_outputs}})}});
        Options options("distill.logits", Setting::map({{"loss", whole},
                                                        {"epochs", Setting::scalar("60")},
                                                        {"batch_size", Setting::scalar("32")},
                                                        {"weight_decay", Setting::scalar("0")},
                                                        {"lr", Setting::scalar("0.05")}}));
        const auto trained = distill::stages(table).front().make(options)->apply(student, context);
        if (!loss.empty()) {
            EXPECT_EQ(context.facts.at("feature_layers").size(), 2u);
        }
        return gap(trained);
    };
    const double before = gap(student), by_outputs = train(""), by_hints = train("distill.hints");
    EXPECT_LT(by_hints, 0.3 * before) << by_outputs << " by outputs alone";
    EXPECT_LT(by_hints, 0.5 * by_outputs);  // what the outputs alone leave undetermined
}

TEST(DistillStages, FeaturesOfATeacherWithoutSuchLayersAreRefused) {
    const auto student = residual(0.1);
    const auto teacher =
        build_model({{"head.weight", sine({3, 6}, 2)}, {"head.bias", sine({3})}},
                    "def forward(self, x):\n    return torch.linear(x, self.head.weight, self.head.bias)\n");
    Context context;
    context.baseline = &teacher;
    context.data.train = tensor_dataset({sine({8, 6}, 1.5)}, at::zeros({8}, at::kLong), "sines");
    auto table = builtin_losses();
    table.insert(table.end(), distill::losses().begin(), distill::losses().end());
    Setting layers;
    layers.kind = Setting::Kind::kList;
    layers.items = {Setting::scalar("head"), Setting::scalar("first")};
    Options options("distill.logits",
                    Setting::map({{"loss", Setting::map({{"distill.hints", Setting::map({{"layers", layers}})}})}}));
    const auto stage = distill::stages(table).front().make(options);
    EXPECT_ERROR(stage->apply(student, context), InvalidArgument, "no layer is called \"first\"");
}

}  // namespace
}  // namespace coppice::testing
