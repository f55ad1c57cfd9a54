#include <cmath>

#include "prune/criteria/criteria.h"

namespace coppice::testing {
namespace {

TEST(PruneWanda, WeighsWeightsByTheNormOfTheirInputs) {
    const auto x = sine({6, 4}) + 0.1;
    const auto context = calibrated_on({x});
    const auto a = sine({3, 4}, 0.9), b = sine({2, 3}, 0.8);
    const auto hidden = at::relu(at::linear(x, a, sine({3}, 0.3)));
    const auto norm = [](const at::Tensor& values) { return std::sqrt(values.square().mean().item<double>()); };
    const auto with = [&](prune::WandaWeights weights) {
        prune::WandaOptions options;
        options.observe = {4, 2};  // the mean is over all batches
        options.weights = weights;
        return only_scores(*prune::wanda(options), hidden_layer(), context);
    };
    const auto read = with(prune::WandaWeights::kRead), made = with(prune::WandaWeights::kMade),
               both = with(prune::WandaWeights::kBoth);
    for (int64_t c = 0; c < 3; ++c) {
        double reads = 0, makes = 0;
        for (int64_t o = 0; o < 2; ++o) reads += std::abs(b[o][c].item<double>()) * norm(hidden.select(1, c));
        for (int64_t i = 0; i < 4; ++i) makes += std::abs(a[c][i].item<double>()) * norm(x.select(1, i));
        EXPECT_NEAR(read[c].item<double>(), reads, 1e-6);  // float32 activations
        EXPECT_NEAR(made[c].item<double>(), makes, 1e-6);
        EXPECT_NEAR(both[c].item<double>(), reads + makes, 1e-6);
    }
}

TEST(PruneWanda, AddsUpTheKernelAndAllLayersThatRead) {
    const auto model = build_model({{"a.weight", at::eye(2).reshape({2, 2, 1, 1})},
                                    {"b.weight", sine({3, 2, 3, 3}, 0.4)},
                                    {"c.weight", sine({1, 2, 1, 1}, 0.7)}},
                                   R"(
def forward(self, x):
    x = torch.conv2d(x, self.a.weight)
    return torch.conv2d(x, self.b.weight, None, [1, 1], [1, 1]), torch.conv2d(x, self.c.weight)
)");
    const auto x = sine({2, 2, 4, 4});
    const auto scores = only_scores(*prune::wanda(), model, calibrated_on({x}));
    for (int64_t c = 0; c < 2; ++c) {
        const double norm = std::sqrt(x.select(1, c).square().mean().item<double>());
        const double weights = get_attribute(model, "b.weight").toTensor().select(1, c).abs().sum().item<double>() +
                               get_attribute(model, "c.weight").toTensor().select(1, c).abs().sum().item<double>();
        EXPECT_NEAR(scores[c].item<double>(), norm * weights, 1e-5);  // float32 sums of 28 terms
    }
}

}  // namespace
}  // namespace coppice::testing
