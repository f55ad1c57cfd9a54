// Logits and checks that the tests of all losses share.
#pragma once

#include <coppice/distill.h>

#include <cmath>

#include "support/support.h"

namespace coppice::testing {

/// Five examples of four classes in float64, student and teacher different.
struct LogitCase {
    at::Tensor student = (at::arange(20, at::kDouble) * 0.7).sin().reshape({5, 4}) * 3;
    at::Tensor teacher = (at::arange(20, at::kDouble) * 1.3).cos().reshape({5, 4}) * 4;
    std::vector<int64_t> labels = {0, 2, 3, 1, 2};

    Batch batch() const {
        Batch batch;
        batch.target = at::tensor(labels, at::kLong);
        return batch;
    }
};

inline double value(const Loss& loss, const at::Tensor& student, const at::Tensor& teacher, const Batch& batch) {
    const auto result = loss(student, teacher, batch);
    EXPECT_EQ(result.dim(), 0);
    return result.item<double>();
}

inline at::Tensor gradient(const Loss& loss, const at::Tensor& student, const at::Tensor& teacher, const Batch& batch) {
    auto leaf = student.detach().clone().set_requires_grad(true);
    loss(leaf, teacher, batch).backward();
    return leaf.grad();
}

/// Autograd against central differences. Step 1e-5 in float64: truncation about 1e-10, cancellation about 1e-11.
inline void expect_gradient_by_differences(const Loss& loss, const at::Tensor& student, const at::Tensor& teacher,
                                           const Batch& batch) {
    const auto by_autograd = gradient(loss, student, teacher, batch).flatten();
    for (int64_t i = 0; i < student.numel(); ++i) {
        auto up = student.clone(), down = student.clone();
        up.view(-1)[i] += 1e-5;
        down.view(-1)[i] -= 1e-5;
        const double slope = (value(loss, up, teacher, batch) - value(loss, down, teacher, batch)) / 2e-5;
        EXPECT_NEAR(by_autograd[i].item<double>(), slope, 1e-7) << "element " << i;
    }
}

/// A student that equals its teacher has nothing to learn from it. 1e-12: rounding of float64 terms of order 1.
inline void expect_nothing_to_learn_at_equality(const Loss& loss_of_teacher_alone) {
    const LogitCase c;
    EXPECT_NEAR(value(loss_of_teacher_alone, c.teacher, c.teacher, c.batch()), 0, 1e-12);
    EXPECT_LT(gradient(loss_of_teacher_alone, c.teacher, c.teacher, c.batch()).abs().max().item<double>(), 1e-12);
}

}  // namespace coppice::testing
