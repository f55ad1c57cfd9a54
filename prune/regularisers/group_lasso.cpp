// strength * sum over groups and channels of |w_c|, with w_c all parameters of channel c as one vector; its gradient is
// strength * w_c / |w_c|, and zero (a subgradient) where the channel is zero already.
#include "regularisers/regularisers.h"

namespace coppice::prune {
namespace {

class GroupLassoPenalty final : public Penalty {
public:
    GroupLassoPenalty(const Groups& groups, double strength) : groups_(parameters_of(groups)), strength_(strength) {}

    void add_gradients() override {
        for (const auto& group : groups_) {
            const auto norms = group.squares().sqrt();
            group.add_to_gradients(at::where(norms.gt(0), strength_ / norms, 0.0));
        }
    }

    double value() const override {
        double sum = 0;
        for (const auto& group : groups_) sum += group.squares().sqrt().sum().item<double>();
        return strength_ * sum;
    }

private:
    const std::vector<GroupParameters> groups_;
    const double strength_;
};

class GroupLasso final : public Regulariser {
public:
    explicit GroupLasso(double strength) : strength_(strength) {}
    std::unique_ptr<Penalty> bind(const Model&, const Groups& groups, Context&) const override {
        return std::make_unique<GroupLassoPenalty>(groups, strength_);
    }

private:
    const double strength_;
};

}  // namespace

std::unique_ptr<Regulariser> group_lasso(double strength) {
    check_strength("prune.group_lasso", "strength", strength);
    return std::make_unique<GroupLasso>(strength);
}

}  // namespace coppice::prune
