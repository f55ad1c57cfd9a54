#include <cmath>

#include "prune/criteria/criteria.h"

namespace coppice::testing {
namespace {

TEST(PruneFisher, MatchesGradientsOfSingleExamplesByPlainLoops) {
    const auto x = sine({5, 4}) + 0.3;
    const auto target = at::tensor({0, 1, 1, 0, 1}, at::kLong);
    const auto scores = only_scores(*prune::fisher(), hidden_layer(), calibrated_on({x}, target));
    // By hand, per example: g = dL/d(pre-activation); the gradient of a weight is g * x, of the bias g.
    const auto value = [](double index) { return std::sin(index); };
    std::vector<double> expected(3, 0.0);
    for (int64_t n = 0; n < 5; ++n) {
        double pre[3], logits[2] = {0, 0};
        for (int64_t h = 0; h < 3; ++h) {
            pre[h] = 0.3 * value(h);
            for (int64_t i = 0; i < 4; ++i) pre[h] += 0.9 * value(h * 4 + i) * (value(n * 4 + i) + 0.3);
            for (int64_t o = 0; o < 2; ++o) logits[o] += 0.8 * value(o * 3 + h) * std::max(pre[h], 0.0);
        }
        const double sum = std::exp(logits[0]) + std::exp(logits[1]);
        for (int64_t h = 0; h < 3; ++h) {
            double g = 0;
            for (int64_t o = 0; o < 2; ++o)
                g += (std::exp(logits[o]) / sum - (target[n].item<int64_t>() == o ? 1 : 0)) * 0.8 * value(o * 3 + h);
            if (pre[h] <= 0) g = 0;
            for (int64_t i = 0; i < 4; ++i)
                expected[h] += std::pow(0.9 * value(h * 4 + i) * g * (value(n * 4 + i) + 0.3), 2) / 2 / 5;
            expected[h] += std::pow(0.3 * value(h) * g, 2) / 2 / 5;
        }
    }
    for (int64_t h = 0; h < 3; ++h) EXPECT_NEAR(scores[h].item<double>(), expected[h], 1e-6);  // float32 gradients
}

TEST(PruneFisher, GradientsOfBatchesCancelWithinTheBatch) {
    // Twice the same input with opposite labels: the mean gradient nearly vanishes, single ones do not.
    const auto x = at::cat({sine({1, 4}) + 0.5, sine({1, 4}) + 0.5});
    const auto context = calibrated_on({x}, at::tensor({0, 1}, at::kLong));
    const auto single = only_scores(*prune::fisher(), hidden_layer(), context);
    const auto batch = only_scores(*prune::fisher({1, 2}), hidden_layer(), context);
    EXPECT_LT(batch.sum().item<double>(), 0.5 * single.sum().item<double>());
}

TEST(PruneFisher, NeedsLabelledData) {
    EXPECT_TRUE(prune::fisher()->needs().labels);
    Context context;
    EXPECT_ERROR(prune::fisher()->scores(hidden_layer(), prune::Groups(std::vector<prune::ChannelGroup>{}), context),
                 InvalidArgument, "prune.fisher: there is no calibration data");
    EXPECT_ERROR(prune::fisher({0, 1}), InvalidArgument, "at least 1");
}

}  // namespace
}  // namespace coppice::testing
