// Stage prune.movement.
#include "prune/masking.h"

namespace coppice::testing {
namespace {

std::unique_ptr<Stage> movement(const std::vector<std::pair<std::string, std::string>>& settings) {
    Options options("prune.movement", settings);
    const auto stages = prune::training_stages(builtin_losses());
    auto stage = find_entry(stages, "stage", "prune.movement", "test").make(options);
    options.done();
    return stage;
}

int64_t zeros_of(const at::Tensor& tensor) {
    return tensor.eq(0).sum().item<int64_t>();
}

constexpr int64_t kExamples = 8, kIn = 5, kOut = 4;

Model linear_model() {
    return build_model({{"fc.weight", sine({kOut, kIn}, 0.5)}}, R"(
def forward(self, x):
    return torch.linear(x, self.fc.weight)
)");
}

Context regression() {
    Context context;
    context.task = Task::kRegression;
    context.example = {sine({2, kIn})};
    context.data.train = tensor_dataset(
        {(at::arange(kExamples * kIn, at::kDouble) * 1.7).sin().to(at::kFloat).reshape({kExamples, kIn})},
        (at::arange(kExamples * kOut, at::kDouble) * 0.9).cos().to(at::kFloat).reshape({kExamples, kOut}), "waves");
    return context;
}

/// The whole training in plain loops, one step an epoch.
struct Reference {
    std::vector<double> weight, hidden, scores;
    std::vector<char> mask;

    void step(const Dataset& data, double lr) {
        const auto batch = data.batch([] {
            std::vector<int64_t> all(kExamples);
            std::iota(all.begin(), all.end(), 0);
            return all;
        }());
        const auto x = batch.inputs[0].toTensor(), target = batch.target;
        std::vector<double> gradient(weight.size(), 0);
        for (int64_t n = 0; n < kExamples; ++n)
            for (int64_t o = 0; o < kOut; ++o) {
                double y = 0;
                for (int64_t i = 0; i < kIn; ++i) y += weight[o * kIn + i] * x[n][i].item<double>();
                const double error = 2 * (y - target[n][o].item<double>()) / (kExamples * kOut);
                for (int64_t i = 0; i < kIn; ++i) gradient[o * kIn + i] += error * x[n][i].item<double>();
            }
        for (size_t k = 0; k < weight.size(); ++k) {
            scores[k] -= gradient[k] * (mask[k] ? weight[k] : hidden[k]);
            if (mask[k]) weight[k] -= lr * gradient[k];
        }
    }

    void choose(int64_t count) {
        std::vector<size_t> order(weight.size());
        std::iota(order.begin(), order.end(), 0);
        std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] < scores[b]; });
        for (size_t rank = 0; rank < order.size(); ++rank) {
            const size_t k = order[rank];
            if (mask[k]) hidden[k] = weight[k];
            mask[k] = static_cast<int64_t>(rank) >= count;
            weight[k] = mask[k] ? hidden[k] : 0;
        }
    }
};

TEST(PruneMovement, MatchesPlainLoops) {
    auto context = regression();
    const auto model = linear_model();
    const auto pruned = movement({{"epochs", "12"},
                                  {"batch_size", "8"},
                                  {"autocast", "off"},
                                  {"lr", "0.3"},
                                  {"momentum", "0"},
                                  {"weight_decay", "0"},
                                  {"schedule", "constant"},
                                  {"loss", "mse"},
                                  {"evaluate", "false"},
                                  {"sparsity", "0.5"},
                                  {"pruning_schedule", "cubic"},
                                  {"end_epoch", "9"},
                                  {"every_steps", "2"}})
                            ->apply(model, context);
    Reference reference;
    const auto before = get_attribute(model, "fc.weight").toTensor().flatten();
    for (int64_t k = 0; k < before.numel(); ++k) reference.weight.push_back(before[k].item<double>());
    reference.hidden.assign(reference.weight.size(), 0);
    reference.scores.assign(reference.weight.size(), 0);
    reference.mask.assign(reference.weight.size(), 1);
    bool came_back = false;
    for (int64_t step = 1; step <= 12; ++step) {
        reference.step(*context.data.train, 0.3);
        if (step > 9 || ((step - 1) % 2 != 0 && step != 9)) continue;  // the masks begin after the first step
        const double left = 1 - static_cast<double>(step - 1) / 8;
        const auto old = reference.mask;
        reference.choose(std::llround(0.5 * (1 - left * left * left) * 20));
        for (size_t k = 0; k < old.size(); ++k) came_back |= !old[k] && reference.mask[k];
    }
    EXPECT_TRUE(came_back) << "a case in which no weight comes back shows half of the rule";
    const auto after = get_attribute(pruned, "fc.weight").toTensor().flatten();
    for (int64_t k = 0; k < after.numel(); ++k)  // 1e-5: twelve steps in float32
        EXPECT_NEAR(after[k].item<double>(), reference.weight[static_cast<size_t>(k)], 1e-5) << k;
    EXPECT_EQ(zeros_of(after), 10);
    EXPECT_EQ(context.facts["zeros_after"], 10);
    EXPECT_EQ(context.facts["sparsity"], 0.5);
}

TEST(PruneMovement, PatternsThatFixTheShareHold) {
    auto context = regression();
    const auto model = build_model({{"fc.weight", sine({4, 8}, 0.5)}, {"head.weight", sine({4, 4}, 0.5)}}, R"(
def forward(self, x):
    return torch.linear(torch.linear(torch.cat([x, x[:, :3]], 1), self.fc.weight), self.head.weight)
)");
    const auto pruned = movement({{"epochs", "3"},
                                  {"batch_size", "4"},
                                  {"autocast", "off"},
                                  {"loss", "mse"},
                                  {"evaluate", "false"},
                                  {"pattern", "2:4"}})
                            ->apply(model, context);
    for (const char* name : {"fc.weight", "head.weight"}) {
        const auto zeros = get_attribute(pruned, name).toTensor().eq(0).reshape({-1, 4}).sum(1);
        EXPECT_TRUE(zeros.eq(2).all().item<bool>()) << name << zeros;
    }
}

TEST(PruneMovement, OneRankingSpreadsTheZerosOverTheLayers) {
    auto context = regression();
    const auto model = build_model({{"fc.weight", sine({16, 5}, 0.5)}, {"head.weight", sine({4, 16}, 2.0)}}, R"(
def forward(self, x):
    return torch.linear(torch.relu(torch.linear(x, self.fc.weight)), self.head.weight)
)");
    const auto pruned = movement({{"epochs", "4"},
                                  {"batch_size", "4"},
                                  {"autocast", "off"},
                                  {"loss", "mse"},
                                  {"evaluate", "false"},
                                  {"every_steps", "1"},
                                  {"scope", "global"},
                                  {"sparsity", "0.25"}})
                            ->apply(model, context);
    const auto first = zeros_of(get_attribute(pruned, "fc.weight").toTensor());
    const auto second = zeros_of(get_attribute(pruned, "head.weight").toTensor());
    EXPECT_EQ(first + second, 36);  // a quarter of 80 + 64
    EXPECT_NE(first, 20);           // which scope layer would have taken
}

TEST(PruneMovement, RefusesMasksThatGrowBackwards) {
    EXPECT_ERROR(movement({{"epochs", "2"}, {"begin_epoch", "1.5"}, {"end_epoch", "1"}}), InvalidArgument,
                 "Give 0 <= begin_epoch <= end_epoch <= epochs");
}

}  // namespace
}  // namespace coppice::testing
