#include "distill/losses/logits.h"
#include "reference/distillation.h"

namespace coppice::testing {
namespace {

using distill::kd_zscore;
using distill::KdZscoreOptions;

KdZscoreOptions with(double temperature, double kd_weight, double ce_weight) {
    KdZscoreOptions options;
    options.temperature = temperature;
    options.kd_weight = kd_weight;
    options.ce_weight = ce_weight;
    return options;
}

TEST(KdZscore, MatchesPlainLoops) {
    const LogitCase c;
    const auto s = reference::rows(c.student), t = reference::rows(c.teacher);
    const double expected = 9 * reference::kd_zscore(s, t, 2) + 0.1 * reference::cross_entropy(s, c.labels, 0);
    EXPECT_NEAR(value(*kd_zscore(), c.student, c.teacher, c.batch()), expected, 1e-11);
}

TEST(KdZscore, GradientMatchesDifferences) {
    const LogitCase c;
    expect_gradient_by_differences(*kd_zscore(with(2, 3, 0.2)), c.student, c.teacher, c.batch());
}

TEST(KdZscore, HasNothingToLearnFromAnEqualTeacher) {
    expect_nothing_to_learn_at_equality(*kd_zscore(with(2, 9, 0)));
}

TEST(KdZscore, IgnoresScaleAndShiftOfLogits) {
    const LogitCase c;
    // 1e-6: the 1e-7 in the denominator weighs differently at another scale.
    EXPECT_NEAR(value(*kd_zscore(with(2, 9, 0)), c.student * 5 + 3, c.teacher, Batch{}),
                value(*kd_zscore(with(2, 9, 0)), c.student, c.teacher, Batch{}), 1e-6);
}

TEST(KdZscore, StaysFiniteWhereAllLogitsAreEqual) {
    const LogitCase c;
    const auto flat = at::ones({5, 4}, at::kDouble);
    EXPECT_TRUE(std::isfinite(value(*kd_zscore(), flat, c.teacher, c.batch())));
    EXPECT_TRUE(gradient(*kd_zscore(), flat, c.teacher, c.batch()).isfinite().all().item<bool>());
}

TEST(KdZscore, SaysWhatIsWrong) {
    EXPECT_ERROR(kd_zscore(with(2, -1, 0.1)), InvalidArgument, "kd_weight is -1.0, must be at least 0");
}

}  // namespace
}  // namespace coppice::testing
