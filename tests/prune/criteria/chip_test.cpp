#include "prune/criteria/criteria.h"
#include "reference/pruning.h"

namespace coppice::testing {
namespace {

void expect_matches_singular_values(const at::Tensor& x) {  // [N, C, H, W]
    const auto scores = only_scores(*prune::chip({1, 8}), copied_images(x.size(1)), calibrated_on({x}));
    for (int64_t c = 0; c < x.size(1); ++c) {
        double expected = 0;
        for (int64_t n = 0; n < x.size(0); ++n) {
            const auto whole = reference::matrix_of(x[n].flatten(1));
            auto masked = whole;
            std::fill(masked[c].begin(), masked[c].end(), 0.0);
            expected += (reference::nuclear_norm(whole) - reference::nuclear_norm(masked)) / x.size(0);
        }
        // Roots of eigenvalues near zero keep half of the digits of float64.
        EXPECT_NEAR(scores[c].item<double>(), expected, 1e-5) << c;
    }
}

TEST(PruneChip, IsTheChangeOfTheNuclearNormWithoutTheChannel) {
    expect_matches_singular_values(sine({3, 4, 3, 3}));
}

TEST(PruneChip, IsTheSameWhereThereAreMoreChannelsThanPositions) {
    expect_matches_singular_values(sine({2, 7, 2, 2}));
}

TEST(PruneChip, AMapThatRepeatsAnotherCountsLessThanOneOfItsOwn) {
    auto x = at::zeros({2, 3, 2, 2});
    x.select(1, 0).select(1, 0).fill_(1);
    x.select(1, 1).copy_(x.select(1, 0));
    x.select(1, 2).select(1, 1).fill_(1);  // as large, but orthogonal
    const auto scores = only_scores(*prune::chip(), copied_images(3), calibrated_on({x}));
    // By hand: rows a, a, b of norm sqrt(2). Whole: 2 + sqrt(2); without one a: 2 sqrt(2); without b: 2.
    EXPECT_NEAR(scores[0].item<double>(), 2 - std::sqrt(2.0), 1e-7);
    EXPECT_NEAR(scores[2].item<double>(), std::sqrt(2.0), 1e-7);
}

}  // namespace
}  // namespace coppice::testing
