#include "distill/losses/logits.h"

namespace coppice::testing {
namespace {

using distill::mse;
using distill::MseOptions;

std::unique_ptr<Loss> with(double alpha) {
    MseOptions options;
    options.alpha = alpha;
    return mse(options);
}

TEST(DistillMse, IsTheMeanSquareOfTheDifference) {  // (1 + 4 + 9 + 0) / 4
    const auto student = at::tensor({1.0, 2.0, 3.0, 4.0}, at::kDouble).reshape({2, 2});
    const auto teacher = at::tensor({0.0, 0.0, 6.0, 4.0}, at::kDouble).reshape({2, 2});
    EXPECT_NEAR(value(*mse(), student, teacher, Batch{}), 3.5, 1e-12);
}

TEST(DistillMse, AddsTheLossOfTheTask) {
    const auto student = at::tensor({1.0, 3.0}, at::kDouble).reshape({2, 1});
    const auto teacher = at::tensor({0.0, 1.0}, at::kDouble).reshape({2, 1});
    Batch batch;
    batch.target = at::tensor({1.0, 1.0}, at::kDouble).reshape({2, 1});
    // teacher (1 + 4) / 2 = 2.5, target (0 + 4) / 2 = 2
    EXPECT_NEAR(value(*with(0.25), student, teacher, batch), 0.25 * 2.5 + 0.75 * 2, 1e-6);
    EXPECT_TRUE(with(0.25)->needs().labels);
    EXPECT_FALSE(with(0)->needs().teacher);
    EXPECT_FALSE(mse()->needs().labels);
}

TEST(DistillMse, GradientMatchesDifferences) {
    const LogitCase c;
    expect_gradient_by_differences(*mse(), c.student, c.teacher, Batch{});
}

TEST(DistillMse, HasNothingToLearnFromAnEqualTeacher) {
    expect_nothing_to_learn_at_equality(*mse());
}

TEST(DistillMse, SaysWhatIsWrong) {
    const LogitCase c;
    EXPECT_ERROR(with(2), InvalidArgument, "alpha is 2.0, must be in [0, 1]");
    EXPECT_ERROR((*mse())(c.student, {}, Batch{}), InvalidArgument, "teacher's output is missing");
    EXPECT_ERROR((*mse())(c.student, c.teacher.t(), Batch{}), InvalidArgument, "[4, 5]");
}

}  // namespace
}  // namespace coppice::testing
