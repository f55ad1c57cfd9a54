#include "distill/losses/logits.h"
#include "reference/distillation.h"

namespace coppice::testing {
namespace {

using distill::dist;
using distill::DistOptions;

DistOptions with(double temperature, double beta, double gamma, double ce_weight) {
    DistOptions options;
    options.temperature = temperature;
    options.beta = beta;
    options.gamma = gamma;
    options.ce_weight = ce_weight;
    return options;
}

TEST(Dist, MatchesPlainLoops) {
    const LogitCase c;
    const auto s = reference::rows(c.student), t = reference::rows(c.teacher);
    const double expected = reference::dist(s, t, 4, 2, 3) + 0.5 * reference::cross_entropy(s, c.labels, 0);
    EXPECT_NEAR(value(*dist(with(4, 2, 3, 0.5)), c.student, c.teacher, c.batch()), expected, 1e-12);
}

TEST(Dist, GradientMatchesDifferences) {
    const LogitCase c;
    expect_gradient_by_differences(*dist(with(2, 2, 2, 1)), c.student, c.teacher, c.batch());
}

TEST(Dist, HasNothingToLearnFromAnEqualTeacher) {
    expect_nothing_to_learn_at_equality(*dist(with(1, 2, 2, 0)));
}

TEST(Dist, ForgivesAnExampleOfAnotherScale) {
    // Between classes only proportions count: probabilities mixed with the uniform distribution correlate perfectly.
    const LogitCase c;
    const auto p = c.teacher.softmax(1);
    const auto mixed = (p * 0.4 + 0.6 / 4).log();
    EXPECT_NEAR(value(*dist(with(1, 1, 0, 0)), mixed, c.teacher, Batch{}), 0, 1e-12);
    EXPECT_GT(reference::kd(reference::rows(mixed), reference::rows(c.teacher), 1), 0.01);
}

TEST(Dist, HasNoGradientFromAnOutputWithoutVariance) {
    const LogitCase c;
    const auto flat = at::zeros({5, 4}, at::kDouble);
    const auto loss = dist(with(1, 1, 1, 0));
    EXPECT_NEAR(value(*loss, flat, c.teacher, Batch{}), 2, 1e-12);  // no correlation, in either direction
    EXPECT_TRUE(gradient(*loss, flat, c.teacher, Batch{}).isfinite().all().item<bool>());
}

TEST(Dist, OfOneExampleComparesClassesOnly) {
    const LogitCase c;
    const auto s = c.student.slice(0, 0, 1), t = c.teacher.slice(0, 0, 1);
    const double expected = 1 - reference::pearson(reference::softmax(reference::rows(s)[0], 1),
                                                   reference::softmax(reference::rows(t)[0], 1));
    EXPECT_NEAR(value(*dist(with(1, 1, 1, 0)), s, t, Batch{}), expected, 1e-12);
}

TEST(Dist, SaysWhatIsWrong) {
    EXPECT_ERROR(dist(with(1, -2, 2, 1)), InvalidArgument, "beta is -2.0");
    EXPECT_ERROR(dist(with(1, 2, NAN, 1)), InvalidArgument, "gamma");
}

}  // namespace
}  // namespace coppice::testing
