// strength / 2 * sum over groups and channels of gamma_c I_c, I_c = |w_c|^2 over all parameters of channel c and
// gamma_c = 2^(alpha (I_max - I_c) / (I_max - I_min)), extremes within the group (arXiv 2301.12900, equation 5). gamma
// counts as a constant, so the gradient is strength * gamma_c w_c: weight decay that is stronger on weaker channels.
#include <cmath>

#include "regularisers/regularisers.h"

namespace coppice::prune {
namespace {

class GroupNormPenalty final : public Penalty {
public:
    GroupNormPenalty(const Groups& groups, double strength, double alpha)
        : groups_(parameters_of(groups)), strength_(strength), alpha_(alpha) {}

    void add_gradients() override {
        for (const auto& group : groups_) group.add_to_gradients(strength_ * growth(group.squares()));
    }

    double value() const override {
        double sum = 0;
        for (const auto& group : groups_) {
            const auto importance = group.squares();
            sum += (growth(importance) * importance).sum().item<double>();
        }
        return strength_ / 2 * sum;
    }

private:
    at::Tensor growth(const at::Tensor& importance) const {
        const auto largest = importance.max(), range = largest - importance.min();
        if (range.item<double>() == 0) return at::ones_like(importance);  // no channel is weaker than another
        return at::exp2(alpha_ * (largest - importance) / range);
    }

    const std::vector<GroupParameters> groups_;
    const double strength_, alpha_;
};

class GroupNorm final : public Regulariser {
public:
    GroupNorm(double strength, double alpha) : strength_(strength), alpha_(alpha) {}
    std::unique_ptr<Penalty> bind(const Model&, const Groups& groups, Context&) const override {
        return std::make_unique<GroupNormPenalty>(groups, strength_, alpha_);
    }

private:
    const double strength_, alpha_;
};

}  // namespace

std::unique_ptr<Regulariser> group_norm(double strength, double alpha) {
    check_strength("prune.group_norm", "strength", strength);
    check_strength("prune.group_norm", "alpha", alpha);
    return std::make_unique<GroupNorm>(strength, alpha);
}

}  // namespace coppice::prune
