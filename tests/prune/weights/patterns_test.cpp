#include <coppice/prune.h>

#include "reference/sparsity.h"
#include "support/support.h"

namespace coppice::testing {
namespace {

using namespace prune;

at::Tensor scores_of(at::IntArrayRef shape) {
    return sine(shape).to(at::kDouble).abs();
}

TEST(WeightPattern, UnstructuredKeepsTheHighestOfTheLayerOrOfEachRow) {
    const auto scores = scores_of({1, 6, 10});
    EXPECT_TRUE(at::equal(unstructured()->keep(scores, 0.35, false)[0], reference::keep_highest(scores[0], 21)));
    const auto rows = unstructured()->keep(scores, 0.3, true)[0];
    for (int64_t i = 0; i < 6; ++i) EXPECT_TRUE(at::equal(rows[i], reference::keep_highest(scores[0][i], 3))) << i;
}

TEST(WeightPattern, AmongEqualScoresTheFirstGo) {
    const auto scores = at::tensor({2.0, 1.0, 1.0, 1.0, 1.0, 3.0}).reshape({1, 2, 3});
    EXPECT_TRUE(at::equal(unstructured()->keep(scores, 0.5, false)[0],
                          at::tensor({1, 0, 0, 0, 1, 1}).to(at::kBool).reshape({2, 3})));
}

TEST(WeightPattern, TheNeutralShareKeepsEverything) {
    const auto scores = scores_of({2, 4, 8});
    for (const auto& pattern : {unstructured(), block(4, 1)})
        EXPECT_TRUE(pattern->keep(scores, 0, false).all().item<bool>()) << pattern->name();
}

TEST(WeightPattern, TwoOfFourKeepsTheTwoHighestOfEveryFour) {
    const auto scores = scores_of({1, 3, 8});
    const auto keep = n_of_m(2, 4)->keep(scores, 0.9, false)[0];  // the share is fixed
    for (int64_t i = 0; i < 3; ++i)
        for (int64_t j = 0; j < 8; j += 4)
            EXPECT_TRUE(
                at::equal(keep[i].slice(0, j, j + 4), reference::keep_highest(scores[0][i].slice(0, j, j + 4), 2)));
    EXPECT_EQ(n_of_m(2, 4)->sparsity(), 0.5);
    EXPECT_EQ(n_of_m(1, 4)->sparsity(), 0.75);
    EXPECT_EQ(n_of_m(4, 8)->name(), "4:8");
}

TEST(WeightPattern, BlocksGoTogetherByTheirMean) {
    const auto scores = scores_of({1, 8, 6});
    auto means = at::zeros({2, 3}, at::kDouble);
    for (int64_t i = 0; i < 8; ++i)
        for (int64_t j = 0; j < 6; ++j) means[i / 4][j / 2] += scores[0][i][j] / 8;
    const auto expected = reference::keep_highest(means, 3);
    const auto keep = block(4, 2)->keep(scores, 0.5, false)[0];
    for (int64_t i = 0; i < 8; ++i)
        for (int64_t j = 0; j < 6; ++j)
            EXPECT_EQ(keep[i][j].item<bool>(), expected[i / 4][j / 2].item<bool>()) << i << " " << j;
}

TEST(WeightPattern, RejectsWhatKeepsNothingOrEverything) {
    EXPECT_ERROR(n_of_m(4, 4), InvalidArgument, "pattern 4:4");
    EXPECT_ERROR(n_of_m(0, 4), InvalidArgument, "pattern 0:4");
    EXPECT_ERROR(block(1, 1), InvalidArgument, "block 1x1 is no block");
}

}  // namespace
}  // namespace coppice::testing
