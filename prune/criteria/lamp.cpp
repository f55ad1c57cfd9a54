// score[c] = p[c] / sum over channels d with p[d] >= p[c] of p[d], where p is the squared norm of what vanishes with a
// channel: the score of Lee et al. (arXiv 2010.07611, equation 3) with channels in the place of weights. Channels of
// equal p are taken in their order, as the paper does, so that scores are distinct. The largest channel of every group
// scores 1: a global ranking never empties a layer.
#include "criteria/criteria.h"

namespace coppice::prune {
namespace {

class Lamp final : public Criterion {
public:
    std::vector<at::Tensor> scores(const Model&, const Groups& groups, Context&) const override {
        torch::NoGradGuard no_grad;
        std::vector<at::Tensor> scores;
        PowerSums power_sum(2, "prune.lamp");
        for (const auto& group : groups.all()) {
            auto power = at::zeros({group.channels}, at::kDouble);
            for (const auto& slice : group.slices)
                if (slice.parameter) power += power_sum(slice, group.channels);
            const auto [sorted, order] = power.sort(/*stable=*/true, /*dim=*/0, /*descending=*/false);
            const auto not_smaller = sorted.flip(0).cumsum(0).flip(0);  // of itself and all behind it
            // A group of zeros: nothing of it matters, 0 / 0 is 0.
            const auto share = at::where(not_smaller > 0, sorted / not_smaller, at::zeros_like(sorted));
            scores.push_back(at::zeros_like(power).index_copy(0, order, share));
        }
        return scores;
    }
};

}  // namespace

std::unique_ptr<Criterion> lamp() {
    return std::make_unique<Lamp>();
}

}  // namespace coppice::prune
