// CE + T^2 (beta (1 - mean_i r(s_i., t_i.)) + gamma (1 - mean_c r(s_.c, t_.c))), arXiv 2205.10536, where r is Pearson's
// correlation and s, t are softmax outputs [M, C]. T^2 is not in the paper but in its authors' program.
#include <coppice/distill.h>

#include "losses/logits.h"

namespace coppice::distill {
namespace {

const char* const kWhere = "distill.dist";

// 1 - mean over rows of Pearson's correlation. The product of the norms is bounded from below (the authors add 1e-8
// instead) so that equal rows give exactly 0 up to rounding, and rows without variance 1 and no gradient.
at::Tensor unlikeness(const at::Tensor& a, const at::Tensor& b) {
    const auto x = a - a.mean(1, /*keepdim=*/true), y = b - b.mean(1, /*keepdim=*/true);
    const auto norms =
        at::linalg_vector_norm(x, 2, at::IntArrayRef{1}) * at::linalg_vector_norm(y, 2, at::IntArrayRef{1});
    return 1 - ((x * y).sum(1) / norms.clamp_min(1e-12)).mean();
}

class Dist final : public Loss {
public:
    explicit Dist(DistOptions options) : options_(options) {}

    Needs needs() const override {
        Needs needs;
        needs.teacher = true;
        needs.labels = options_.ce_weight > 0;
        return needs;
    }

    at::Tensor operator()(const at::Tensor& output, const at::Tensor& teacher, const Batch& batch) const override {
        const double t = options_.temperature;
        const auto pair = logit_pair(kWhere, output, teacher, batch);
        const auto s = (pair.student / t).softmax(1), q = (pair.teacher / t).softmax(1);
        auto loss = unlikeness(s, q) * (options_.beta * t * t);
        // Between examples there is nothing to compare in a batch of one.
        if (s.size(0) > 1) loss = loss + unlikeness(s.t(), q.t()) * (options_.gamma * t * t);
        if (options_.ce_weight > 0)
            loss = loss + label_loss(kWhere, output, batch, options_.label_smoothing) * options_.ce_weight;
        return loss;
    }

private:
    const DistOptions options_;
};

}  // namespace

std::unique_ptr<Loss> dist(DistOptions options) {
    check_temperature(kWhere, options.temperature);
    check_weight(kWhere, "beta", options.beta);
    check_weight(kWhere, "gamma", options.gamma);
    check_weight(kWhere, "ce_weight", options.ce_weight);
    check_smoothing(kWhere, options.label_smoothing);
    return std::make_unique<Dist>(options);
}

}  // namespace coppice::distill
