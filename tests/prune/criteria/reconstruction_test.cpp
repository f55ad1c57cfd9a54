#include <cmath>
#include <functional>

#include "prune/criteria/criteria.h"
#include "reference/pruning.h"

namespace coppice::testing {
namespace {

/// y = b(a x): 5 hidden channels that overlap, so that removals interact.
Model linear_pair() {
    return build_model({{"a.weight", sine({5, 4}, 0.9)}, {"b.weight", sine({3, 5}, 0.8)}}, R"(
def forward(self, x):
    return torch.linear(torch.linear(x, self.a.weight), self.b.weight)
)");
}

/// The greedy order by trying every channel in every step, and the relative error after each.
/// @param error  of what is left of the channels
void expect_greedy(const at::Tensor& scores, const std::function<double(const std::vector<bool>& kept)>& error,
                   double tolerance) {
    const int64_t channels = scores.size(0);
    const double energy = error(std::vector<bool>(static_cast<size_t>(channels), false));
    std::vector<bool> kept(static_cast<size_t>(channels), true);
    double last = 0;
    for (int64_t step = 0; step < channels; ++step) {
        int64_t best = -1;
        double least = INFINITY;
        for (int64_t c = 0; c < channels; ++c) {
            if (!kept[c]) continue;
            kept[c] = false;
            const double tried = error(kept);
            kept[c] = true;
            if (tried < least) least = tried, best = c;
        }
        kept[best] = false;
        last = std::max(last, least / energy);
        EXPECT_NEAR(scores[best].item<double>(), last, tolerance) << "step " << step << ", channel " << best;
    }
}

TEST(PruneReconstruction, MatchesTheGreedySearchByTryingEveryChannel) {
    const auto x = sine({30, 4}) + 0.2;
    const auto scores = only_scores(*prune::reconstruction(), linear_pair(), calibrated_on({x}));
    const auto hidden = at::linear(x, sine({5, 4}, 0.9));
    const auto weight = sine({3, 5}, 0.8);
    // Float32 activations.
    expect_greedy(
        scores, [&](const auto& kept) { return reference::output_error(hidden, weight, kept); }, 1e-6);
}

TEST(PruneReconstruction, WithRefitTheErrorIsWhatTheOtherChannelsCannotMake) {
    // Five independent hidden features, correlated.
    const auto a = at::eye(5) + sine({5, 5}, 0.4);
    const auto model = build_model({{"a.weight", a}, {"b.weight", sine({3, 5}, 0.8)}}, R"(
def forward(self, x):
    return torch.linear(torch.linear(x, self.a.weight), self.b.weight)
)");
    const auto x = sine({40, 5}) + 0.2;
    prune::ReconstructionOptions options;
    options.refit = true;
    options.ridge = 1e-9;
    const auto scores = only_scores(*prune::reconstruction(options), model, calibrated_on({x}));
    const auto hidden = at::linear(x, a), weight = sine({3, 5}, 0.8);
    // Float32 activations.
    expect_greedy(
        scores, [&](const auto& kept) { return reference::fitted_error(hidden, weight, kept); }, 1e-5);
}

TEST(PruneReconstruction, PatchesOfAConvolutionAreItsInputs) {
    const auto model = copied_images(3);
    const auto x = sine({2, 3, 4, 5});
    prune::ReconstructionOptions options;
    options.positions = 1000;  // all
    const auto scores = only_scores(*prune::reconstruction(options), model, calibrated_on({x}));
    // The error of each removal by running the convolution on what is left.
    const auto weight = get_attribute(model, "b.weight").toTensor();
    const auto run = [&](const at::Tensor& input) { return at::conv2d(input, weight, {}, 1, 1); };
    torch::NoGradGuard no_grad;
    const auto error = [&](const std::vector<bool>& kept) {
        auto left = x.clone();
        for (int64_t c = 0; c < 3; ++c)
            if (!kept[c]) left.select(1, c).zero_();
        return (run(x) - run(left)).square().sum().item<double>();
    };
    expect_greedy(scores, error, 1e-5);  // float32 outputs
}

TEST(PruneReconstruction, WithRefitAChannelThatAnotherRepeatsCostsNothing) {
    auto a = at::eye(4);
    a[3] = 2 * a[1];
    const auto model = build_model({{"a.weight", a}, {"b.weight", sine({3, 4}, 0.8) + 1}}, R"(
def forward(self, x):
    return torch.linear(torch.linear(x, self.a.weight), self.b.weight)
)");
    prune::ReconstructionOptions options;
    options.refit = true;
    options.ridge = 1e-9;
    const auto scores = only_scores(*prune::reconstruction(options), model, calibrated_on({sine({50, 4})}));
    EXPECT_LT(std::min(scores[1].item<double>(), scores[3].item<double>()), 1e-6);
    EXPECT_GT(std::max(scores[1].item<double>(), scores[3].item<double>()), 1e-2);
    EXPECT_GT(scores[0].item<double>(), 1e-2);
}

TEST(PruneReconstruction, RejectsWhatIsNoSetting) {
    prune::ReconstructionOptions options;
    options.positions = 0;
    EXPECT_ERROR(prune::reconstruction(options), InvalidArgument, "positions must be at least 1");
}

}  // namespace
}  // namespace coppice::testing
