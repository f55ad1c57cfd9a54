#include "distill/losses/logits.h"
#include "reference/distillation.h"

namespace coppice::testing {
namespace {

using distill::dkd;
using distill::DkdOptions;

DkdOptions with(double temperature, double alpha, double beta, double ce_weight) {
    DkdOptions options;
    options.temperature = temperature;
    options.alpha = alpha;
    options.beta = beta;
    options.ce_weight = ce_weight;
    return options;
}

TEST(Dkd, MatchesPlainLoops) {
    const LogitCase c;
    const auto s = reference::rows(c.student), t = reference::rows(c.teacher);
    const double expected = reference::dkd(s, t, c.labels, 4, 1.5, 6) + 0.5 * reference::cross_entropy(s, c.labels, 0);
    EXPECT_NEAR(value(*dkd(with(4, 1.5, 6, 0.5)), c.student, c.teacher, c.batch()), expected, 1e-11);
}

TEST(Dkd, GradientMatchesDifferences) {
    const LogitCase c;
    expect_gradient_by_differences(*dkd(with(3, 1, 2, 1)), c.student, c.teacher, c.batch());
}

TEST(Dkd, HasNothingToLearnFromAnEqualTeacher) {
    expect_nothing_to_learn_at_equality(*dkd(with(4, 1, 8, 0)));
}

TEST(Dkd,
     AddsUpToHintonsLoss) {  // equation 5 of the paper: KD = TCKD + (1 - p_target of the teacher) NCKD, per example
    const LogitCase c;
    for (int64_t i = 0; i < 5; ++i) {
        const auto s = c.student.slice(0, i, i + 1), t = c.teacher.slice(0, i, i + 1);
        Batch batch;
        batch.target = at::tensor({c.labels[size_t(i)]}, at::kLong);
        const double p = t.div(4).softmax(1)[0][c.labels[size_t(i)]].item<double>();
        EXPECT_NEAR(value(*dkd(with(4, 1, 1 - p, 0)), s, t, batch),
                    reference::kd(reference::rows(s), reference::rows(t), 4), 1e-12);
    }
}

TEST(Dkd, StaysFiniteForASureTeacher) {  // 1 - p underflows to 0 in float32
    const auto student = at::tensor({-200.0f, 200.0f, 0.0f}).unsqueeze(0),
               teacher = at::tensor({200.0f, -200.0f, 0.0f}).unsqueeze(0);
    Batch batch;
    batch.target = at::tensor({0}, at::kLong);
    EXPECT_TRUE(std::isfinite(value(*dkd(with(1, 1, 1, 1)), student, teacher, batch)));
    EXPECT_TRUE(gradient(*dkd(with(1, 1, 1, 1)), student, teacher, batch).isfinite().all().item<bool>());
}

TEST(Dkd, SaysWhatIsWrong) {
    const LogitCase c;
    EXPECT_ERROR(dkd(with(4, -1, 8, 1)), InvalidArgument, "alpha is -1.0, must be at least 0");
    EXPECT_ERROR(dkd(with(-4, 1, 8, 1)), InvalidArgument, "temperature");
    Batch probabilities;
    probabilities.target = at::one_hot(c.batch().target, 4).to(at::kFloat);
    EXPECT_ERROR((*dkd())(c.student, c.teacher, probabilities), InvalidArgument, "class indices");
}

}  // namespace
}  // namespace coppice::testing
