#include "prune/criteria/criteria.h"
#include "reference/pruning.h"

namespace coppice::testing {
namespace {

TEST(PruneHRank, IsTheMeanRankOfTheFeatureMaps) {
    // Channel 0: outer products (rank 1); channel 1: sums of two; channel 2: the identity (rank 4).
    auto x = at::zeros({3, 3, 4, 4});
    for (int64_t n = 0; n < 3; ++n) {
        const auto u = sine({4}) + n, v = sine({4}, 0.5) - 1;
        x[n][0] = at::outer(u, v);
        x[n][1] = at::outer(u, v) + at::outer(at::arange(4.0), at::ones({4}));
        x[n][2] = at::eye(4);
    }
    x[2][2] = at::diag(at::tensor({1.0, 1.0, 0.0, 0.0}));  // mean (4 + 4 + 2) / 3
    const auto scores = only_scores(*prune::hrank({2, 2}), copied_images(3), calibrated_on({x}));
    EXPECT_NEAR(scores[0].item<double>(), 1, 1e-12);
    EXPECT_NEAR(scores[1].item<double>(), 2, 1e-12);
    EXPECT_NEAR(scores[2].item<double>(), 10.0 / 3, 1e-12);
}

TEST(PruneHRank, AgreesWithGaussianElimination) {
    auto x = sine({2, 4, 5, 6});
    x.select(1, 1).relu_();
    x.select(1, 2).round_();
    x.select(1, 3).slice(2, 0, 4).zero_();
    const auto scores = only_scores(*prune::hrank(), copied_images(4), calibrated_on({x}));
    for (int64_t c = 0; c < 4; ++c) {
        double mean = 0;
        for (int64_t n = 0; n < 2; ++n)
            mean += static_cast<double>(reference::rank(reference::matrix_of(x[n][c]), 1e-4)) / 2;
        EXPECT_EQ(scores[c].item<double>(), mean) << c;
    }
}

TEST(PruneHRank, TokensOfABatchAreTheRowsOfOneMatrix) {
    const auto model = build_model({{"a.weight", at::eye(2)}, {"b.weight", sine({3, 2})}}, R"(
def forward(self, x):
    return torch.linear(torch.linear(x, self.a.weight), self.b.weight)
)");
    auto x = at::zeros({5, 3, 2});                                         // [N, T, C]
    x.select(2, 0).copy_(at::outer(sine({5}) + 2, at::arange(1.0, 4.0)));  // rank 1
    x.select(2, 1).slice(0, 0, 3).copy_(at::eye(3));                       // rank 3
    const auto scores = only_scores(*prune::hrank(), model, calibrated_on({x}));
    EXPECT_EQ(scores[0].item<double>(), 1);
    EXPECT_EQ(scores[1].item<double>(), 3);
}

}  // namespace
}  // namespace coppice::testing
