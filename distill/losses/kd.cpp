// (1 - alpha) CE(s, y) + alpha T^2 KL(softmax(t/T) || softmax(s/T)), arXiv 1503.02531. The paper minimises the cross
// entropy with the teacher's softened probabilities, which differs from KL by the teacher's entropy, a constant: KL is
// 0 at equality.
#include <coppice/distill.h>

#include "losses/logits.h"

namespace coppice::distill {
namespace {

const char* const kWhere = "distill.logits";

class Kd final : public Loss {
public:
    explicit Kd(KdOptions options) : options_(options) {}

    Needs needs() const override {
        Needs needs;
        needs.teacher = options_.alpha > 0;
        needs.labels = options_.alpha < 1;
        return needs;
    }

    at::Tensor operator()(const at::Tensor& output, const at::Tensor& teacher, const Batch& batch) const override {
        const double t = options_.temperature;
        at::Tensor loss;
        if (options_.alpha > 0) {
            const auto pair = logit_pair(kWhere, output, teacher, batch);
            loss = kl_divergence(pair.student / t, pair.teacher / t) * (options_.alpha * t * t);
        }
        if (options_.alpha < 1) {
            const auto labels = label_loss(kWhere, output, batch, options_.label_smoothing) * (1 - options_.alpha);
            loss = loss.defined() ? loss + labels : labels;
        }
        return loss;
    }

private:
    const KdOptions options_;
};

}  // namespace

std::unique_ptr<Loss> kd(KdOptions options) {
    check_temperature(kWhere, options.temperature);
    check_share(kWhere, "alpha", options.alpha);
    check_smoothing(kWhere, options.label_smoothing);
    return std::make_unique<Kd>(options);
}

}  // namespace coppice::distill
