// ce_weight CE + kd_weight T^2 KL(softmax(z(t)/T) || softmax(z(s)/T)), z(v) = (v - mean(v)) / (1e-7 + std(v)) per
// example, arXiv 2403.01427. The paper's standard deviation is the population's; its authors' program divides by C - 1,
// which is a slightly higher T.
#include <coppice/distill.h>

#include "losses/logits.h"

namespace coppice::distill {
namespace {

const char* const kWhere = "distill.kd_zscore";

at::Tensor standardised(const at::Tensor& logits) {
    const auto centred = logits - logits.mean(1, /*keepdim=*/true);
    // The norm, not std(): its gradient is 0 rather than NaN where all logits are equal.
    const auto deviation =
        at::linalg_vector_norm(centred, 2, at::IntArrayRef{1}, /*keepdim=*/true) / std::sqrt(double(logits.size(1)));
    return centred / (deviation + 1e-7);
}

class KdZscore final : public Loss {
public:
    explicit KdZscore(KdZscoreOptions options) : options_(options) {}

    Needs needs() const override {
        Needs needs;
        needs.teacher = true;
        needs.labels = options_.ce_weight > 0;
        return needs;
    }

    at::Tensor operator()(const at::Tensor& output, const at::Tensor& teacher, const Batch& batch) const override {
        const double t = options_.temperature;
        const auto pair = logit_pair(kWhere, output, teacher, batch);
        auto loss = kl_divergence(standardised(pair.student) / t, standardised(pair.teacher) / t) *
                    (options_.kd_weight * t * t);
        if (options_.ce_weight > 0)
            loss = loss + label_loss(kWhere, output, batch, options_.label_smoothing) * options_.ce_weight;
        return loss;
    }

private:
    const KdZscoreOptions options_;
};

}  // namespace

std::unique_ptr<Loss> kd_zscore(KdZscoreOptions options) {
    check_temperature(kWhere, options.temperature);
    check_weight(kWhere, "kd_weight", options.kd_weight);
    check_weight(kWhere, "ce_weight", options.ce_weight);
    check_smoothing(kWhere, options.label_smoothing);
    return std::make_unique<KdZscore>(options);
}

}  // namespace coppice::distill
