// What the losses on logits share: checked pairs of student and teacher, the labels' part, checks of options.
#pragma once

#include <string>

#include <coppice/stage.h>

namespace coppice::distill {

struct LogitPair {
    at::Tensor student, teacher;  // [M, C], float32 or wider; the teacher's without gradient
};

// Rows that the batch speaks of, classes last, everything else flattened into rows.
LogitPair logit_pair(const std::string& where, const at::Tensor& output, const at::Tensor& teacher, const Batch& batch);

// Cross entropy of the rows that the batch speaks of.
at::Tensor label_loss(const std::string& where, const at::Tensor& output, const Batch& batch, double label_smoothing);

// KL(softmax(teacher) || softmax(student)), the mean over rows; both [M, C], already divided by the temperature.
at::Tensor kl_divergence(const at::Tensor& student, const at::Tensor& teacher);

// In bfloat16 and half a loss has too few digits; float64 stays.
at::Tensor widened(const at::Tensor& tensor);

// Throw InvalidArgument when an option is out of range; NaN always is.
void check_temperature(const std::string& where, double temperature);
void check_share(const std::string& where, const std::string& name, double value);   // [0, 1]
void check_weight(const std::string& where, const std::string& name, double value);  // >= 0
void check_smoothing(const std::string& where, double label_smoothing);              // [0, 1)

}  // namespace coppice::distill
