// CE + T^2 (alpha TCKD + beta NCKD), arXiv 2203.08679. With p = softmax(logits / T), q = p of the target class:
//   TCKD = KL((q_t, 1 - q_t) || (q_s, 1 - q_s)),  NCKD = KL(softmax over the other classes, teacher || student).
// Everything stays in logarithms: 1 - q underflows for a sure teacher, and log 0 would make the loss infinite.
#include <coppice/distill.h>

#include "losses/logits.h"

namespace coppice::distill {
namespace {

const char* const kWhere = "distill.dkd";

class Dkd final : public Loss {
public:
    explicit Dkd(DkdOptions options) : options_(options) {}

    Needs needs() const override {
        Needs needs;
        needs.teacher = needs.labels = true;
        return needs;
    }

    at::Tensor operator()(const at::Tensor& output, const at::Tensor& teacher, const Batch& batch) const override {
        const auto pair = logit_pair(kWhere, output, teacher, batch);
        if (!batch.target.defined() || batch.target.is_floating_point())
            throw InvalidArgument(kWhere, "the targets are not class indices, which decoupling needs",
                                  "Use distill.logits for class probabilities, distill.mse for values.");
        const double t = options_.temperature;
        const auto target = batch.target.reshape({-1, 1}).to(at::kLong);  // [M, 1]
        const auto student = split(pair.student / t, target), of_teacher = split(pair.teacher / t, target);
        const auto target_part = kl_divergence(student.target_or_not, of_teacher.target_or_not);
        const auto other_part = kl_divergence(student.others, of_teacher.others);
        auto loss = (target_part * options_.alpha + other_part * options_.beta) * (t * t);
        if (options_.ce_weight > 0)
            loss = loss + label_loss(kWhere, output, batch, options_.label_smoothing) * options_.ce_weight;
        return loss;
    }

private:
    struct Parts {
        at::Tensor target_or_not;  // [M, 2]: logits whose softmax is (q, 1 - q)
        at::Tensor others;         // [M, C - 1]
    };

    static Parts split(const at::Tensor& logits, const at::Tensor& target) {
        const auto classes = at::arange(logits.size(1), target.options());
        const auto others = logits.masked_select(classes != target).reshape({logits.size(0), logits.size(1) - 1});
        return {at::cat({logits.gather(1, target), others.logsumexp(1, /*keepdim=*/true)}, 1), others};
    }

    const DkdOptions options_;
};

}  // namespace

std::unique_ptr<Loss> dkd(DkdOptions options) {
    check_temperature(kWhere, options.temperature);
    check_weight(kWhere, "alpha", options.alpha);
    check_weight(kWhere, "beta", options.beta);
    check_weight(kWhere, "ce_weight", options.ce_weight);
    check_smoothing(kWhere, options.label_smoothing);
    return std::make_unique<Dkd>(options);
}

}  // namespace coppice::distill
