#include "distill/losses/logits.h"
#include "reference/distillation.h"

namespace coppice::testing {
namespace {

using distill::kd;
using distill::KdOptions;

KdOptions with(double temperature, double alpha, double label_smoothing = 0) {
    KdOptions options;
    options.temperature = temperature;
    options.alpha = alpha;
    options.label_smoothing = label_smoothing;
    return options;
}

TEST(Kd, MatchesPlainLoops) {
    const LogitCase c;
    const auto s = reference::rows(c.student), t = reference::rows(c.teacher);
    const double expected = 0.3 * reference::cross_entropy(s, c.labels, 0.1) + 0.7 * reference::kd(s, t, 4);
    EXPECT_NEAR(value(*kd(with(4, 0.7, 0.1)), c.student, c.teacher, c.batch()), expected, 1e-12);
}

TEST(Kd, IsAHandComputedValueForTwoClasses) {
    // softmax of (0, 0) is (1/2, 1/2), of (log 3, 0) is (3/4, 1/4): KL = ln(2/3)/2 + ln(2)/2 = ln(4/3)/2.
    const auto student = at::tensor({std::log(3.0), 0.0}, at::kDouble).unsqueeze(0),
               teacher = at::zeros({1, 2}, at::kDouble);
    EXPECT_NEAR(value(*kd(with(1, 1)), student, teacher, Batch{}), std::log(4.0 / 3) / 2, 1e-12);
}

TEST(Kd, GradientMatchesDifferences) {
    const LogitCase c;
    expect_gradient_by_differences(*kd(with(3, 0.6, 0.05)), c.student, c.teacher, c.batch());
}

TEST(Kd, HasNothingToLearnFromAnEqualTeacher) {
    expect_nothing_to_learn_at_equality(*kd(with(4, 1)));
}

TEST(Kd, WithoutTeacherShareIsCrossEntropyAndNeedsNoTeacher) {
    const LogitCase c;
    const auto loss = kd(with(4, 0));
    EXPECT_FALSE(loss->needs().teacher);
    EXPECT_TRUE(loss->needs().labels);
    EXPECT_NEAR(value(*loss, c.student, {}, c.batch()),
                reference::cross_entropy(reference::rows(c.student), c.labels, 0), 1e-12);
}

TEST(Kd, OfTheTeacherAloneNeedsNoLabels) {
    const LogitCase c;
    const auto loss = kd(with(2, 1));
    EXPECT_FALSE(loss->needs().labels);
    EXPECT_NEAR(value(*loss, c.student, c.teacher, Batch{}),
                reference::kd(reference::rows(c.student), reference::rows(c.teacher), 2), 1e-12);
}

TEST(Kd, GradientKeepsItsSizeAtHighTemperature) {
    // The reason for T^2: towards T -> infinity the gradient tends to the difference of centred logits over C
    // (section 2.1).
    const LogitCase c;
    const auto centred = [](const at::Tensor& x) { return x - x.mean(1, true); };
    const auto limit = (centred(c.student) - centred(c.teacher)) / 4 / 5;
    EXPECT_LT(max_difference(gradient(*kd(with(1e4, 1)), c.student, c.teacher, Batch{}), limit), 1e-3);
}

TEST(Kd, SpeaksOfTheRowsOfTheBatch) {
    const LogitCase c;
    Batch batch;
    batch.rows = at::tensor({3, 1}, at::kLong);
    batch.target = at::tensor({1, 2}, at::kLong);
    const auto s = reference::rows(c.student), t = reference::rows(c.teacher);
    const double expected =
        0.5 * reference::cross_entropy({s[3], s[1]}, {1, 2}, 0) + 0.5 * reference::kd({s[3], s[1]}, {t[3], t[1]}, 4);
    EXPECT_NEAR(value(*kd(with(4, 0.5)), c.student, c.teacher, batch), expected, 1e-12);
}

TEST(Kd, TreatsEveryPixelAsAnExample) {  // [N, C, H, W] against the same numbers as rows
    const LogitCase c;
    const auto pixels = [](const at::Tensor& rows) { return rows.reshape({1, 5, 1, 4}).permute({0, 3, 1, 2}); };
    Batch batch;
    batch.target = c.batch().target.reshape({1, 5, 1});
    const auto loss = kd(with(4, 0.5));
    EXPECT_NEAR(value(*loss, pixels(c.student), pixels(c.teacher), batch),
                value(*loss, c.student, c.teacher, c.batch()), 1e-12);
}

TEST(Kd, TakesClassProbabilitiesAsTargets) {
    const LogitCase c;
    Batch batch;
    batch.target = at::one_hot(c.batch().target, 4).to(at::kFloat);
    const auto loss = kd(with(4, 0.5));
    EXPECT_NEAR(value(*loss, c.student, c.teacher, batch), value(*loss, c.student, c.teacher, c.batch()), 1e-12);
}

TEST(Kd, ComparesLowPrecisionInFloat32) {
    const LogitCase c;
    const auto student = c.student.to(at::kBFloat16), teacher = c.teacher.to(at::kBFloat16);
    const auto loss = (*kd())(student, teacher, c.batch());
    EXPECT_EQ(loss.scalar_type(), at::kFloat);
    EXPECT_NEAR(loss.item<double>(), value(*kd(), student.to(at::kDouble), teacher.to(at::kDouble), c.batch()), 1e-5);
}

TEST(Kd, GivesTheTeacherNoGradient) {
    const LogitCase c;
    auto student = c.student.clone().set_requires_grad(true), teacher = c.teacher.clone().set_requires_grad(true);
    (*kd())(student, teacher, c.batch()).backward();
    EXPECT_TRUE(student.grad().defined());
    EXPECT_FALSE(teacher.grad().defined());
}

TEST(Kd, StaysFiniteForASureTeacher) {
    const auto student = at::tensor({-300.0f, 300.0f}).unsqueeze(0),
               teacher = at::tensor({300.0f, -300.0f}).unsqueeze(0);
    Batch batch;
    batch.target = at::tensor({0}, at::kLong);
    EXPECT_TRUE(std::isfinite(value(*kd(with(1, 0.9)), student, teacher, batch)));
    EXPECT_TRUE(gradient(*kd(with(1, 0.9)), student, teacher, batch).isfinite().all().item<bool>());
}

TEST(Kd, SaysWhatIsWrong) {
    const LogitCase c;
    EXPECT_ERROR(kd(with(0, 0.5)), InvalidArgument, "temperature is 0.0, must be above 0");
    EXPECT_ERROR(kd(with(NAN, 0.5)), InvalidArgument, "temperature");
    EXPECT_ERROR(kd(with(4, 1.5)), InvalidArgument, "alpha is 1.5, must be in [0, 1]");
    EXPECT_ERROR(kd(with(4, 0.5, 1)), InvalidArgument, "label_smoothing");
    EXPECT_ERROR((*kd())(c.student, {}, c.batch()), InvalidArgument, "teacher's output is missing");
    EXPECT_ERROR((*kd())(c.student, c.teacher.slice(1, 0, 3), c.batch()), InvalidArgument, "[5, 4]");
    EXPECT_ERROR((*kd())(c.student, c.teacher, Batch{}), InvalidArgument, "no labels");
    Batch values;
    values.target = c.teacher;
    EXPECT_ERROR((*kd())(c.student, c.teacher, values), InvalidArgument, "distill.mse");
    EXPECT_ERROR((*kd())(c.student.select(1, 0), c.teacher.select(1, 0), values), InvalidArgument, "logits of classes");
}

}  // namespace
}  // namespace coppice::testing
