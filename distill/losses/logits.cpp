#include "losses/logits.h"

#include <cmath>

namespace coppice::distill {
namespace {

std::string text_of(const at::Tensor& tensor) {
    std::ostringstream text;
    text << tensor.sizes();
    return text.str();
}

std::string text_of(double value) {
    return Json(value).dump();
}

// [N, C, ...] -> [M, C]
at::Tensor rows_of(const at::Tensor& logits) {
    return logits.movedim(1, -1).reshape({-1, logits.size(1)});
}

}  // namespace

at::Tensor widened(const at::Tensor& tensor) {
    return tensor.scalar_type() == at::kDouble ? tensor : tensor.to(at::kFloat);
}

LogitPair logit_pair(const std::string& where, const at::Tensor& output, const at::Tensor& teacher,
                     const Batch& batch) {
    if (!teacher.defined())
        throw InvalidArgument(where, "the teacher's output is missing",
                              "Give the training stage a teacher, for example \"teacher: baseline\".");
    if (batch.pairs || output.dim() < 2 || output.size(1) < 2)
        throw InvalidArgument(where, "the output " + text_of(output) + " does not hold logits of classes",
                              "Use distill.mse for values and embeddings.");
    if (output.sizes() != teacher.sizes())
        throw InvalidArgument(where, "the student gives " + text_of(output) + " and the teacher " + text_of(teacher),
                              "Use a teacher with the same classes.");
    return {rows_of(widened(selected(output, batch))), rows_of(widened(selected(teacher.detach(), batch)))};
}

at::Tensor label_loss(const std::string& where, const at::Tensor& output, const Batch& batch, double label_smoothing) {
    const auto logits = widened(selected(output, batch));
    auto target = batch.target;
    if (!target.defined())
        throw InvalidArgument(where, "the batch has no labels", "Set the weight of the labels to 0, or give labels.");
    if (target.is_floating_point()) {
        // Values of a regression have the shape of probabilities too; only the numbers tell them apart.
        const auto sums = target.dim() == logits.dim() ? target.sum(1) : at::Tensor();
        if (target.sizes() != logits.sizes() || (target < 0).any().item<bool>() ||
            ((sums - 1).abs() > 1e-3).any().item<bool>())
            throw InvalidArgument(where,
                                  "the targets " + text_of(target) + " are neither class indices nor probabilities",
                                  "Use distill.mse for values and embeddings.");
        target = target.to(logits.scalar_type());
    }
    return at::cross_entropy_loss(logits, target, {}, at::Reduction::Mean, -100, label_smoothing);
}

at::Tensor kl_divergence(const at::Tensor& student, const at::Tensor& teacher) {
    const auto log_s = student.log_softmax(1), log_t = teacher.log_softmax(1);
    return (log_t.exp() * (log_t - log_s)).sum(1).mean();
}

void check_temperature(const std::string& where, double temperature) {
    if (!(temperature > 0) || !std::isfinite(temperature))
        throw InvalidArgument(where, "temperature is " + text_of(temperature) + ", must be above 0", "Use 1 to 8.");
}

void check_share(const std::string& where, const std::string& name, double value) {
    if (!(value >= 0 && value <= 1))
        throw InvalidArgument(where, name + " is " + text_of(value) + ", must be in [0, 1]",
                              "It is the share of the teacher's term.");
}

void check_weight(const std::string& where, const std::string& name, double value) {
    if (!(value >= 0) || !std::isfinite(value))
        throw InvalidArgument(where, name + " is " + text_of(value) + ", must be at least 0", "Use 0 to leave it out.");
}

void check_smoothing(const std::string& where, double label_smoothing) {
    if (!(label_smoothing >= 0 && label_smoothing < 1))
        throw InvalidArgument(where, "label_smoothing is " + text_of(label_smoothing) + ", must be in [0, 1)",
                              "Use 0.1, or 0 for none.");
}

}  // namespace coppice::distill
