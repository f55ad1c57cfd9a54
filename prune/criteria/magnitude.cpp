// score[c] = (sum over slices s and parameters w in s[c] of |w|^p)^(1/p). Power sums are added before the root, so that
// cutting one layer into two never changes a score; averaging the layers' norms would. Buffers (running statistics) do
// not count.
#include "criteria/criteria.h"

namespace coppice::prune {
namespace {

class Magnitude final : public Criterion {
public:
    explicit Magnitude(double p) : p_(p) {}

    std::vector<at::Tensor> scores(const Model&, const Groups& groups, Context&) const override {
        torch::NoGradGuard no_grad;
        std::vector<at::Tensor> scores;
        for (const auto& group : groups.all()) {
            auto power_sum = at::zeros({group.channels}, at::kDouble);
            for (const auto& slice : group.slices) {
                if (!slice.parameter) continue;
                const auto weights = slice.tensor.detach().to(at::kDouble).movedim(slice.dim, 0);  // [n, ...]
                if (!weights.isfinite().all().item<bool>())
                    throw UnsupportedModel("prune.magnitude", slice.name + " holds NaN or infinity",
                                           "Check the checkpoint.");
                power_sum +=
                    per_channel(weights.abs().pow(p_).reshape({weights.size(0), -1}).sum(1), slice, group.channels);
            }
            scores.push_back(power_sum.pow(1.0 / p_));
        }
        return scores;
    }

private:
    const double p_;
};

}  // namespace

std::unique_ptr<Criterion> magnitude(double p) {
    if (!(p >= 1.0))  // in this form NaN is rejected too
        throw InvalidArgument("prune.magnitude", "p is " + Json(p).dump() + ", must be >= 1", "Use 1 or 2.");
    return std::make_unique<Magnitude>(p);
}

}  // namespace coppice::prune
