// With the default reduction score[c] = (sum over slices s and parameters w in s[c] of |w|^p)^(1/p). Power sums are
// added before the root, so that cutting one layer into two never changes a score; averaging the layers' norms would.
// Buffers (running statistics) do not count.
#include "criteria/criteria.h"

namespace coppice::prune {
namespace {

class Magnitude final : public Criterion {
public:
    Magnitude(double p, Reduce reduce) : p_(p), reduce_(reduce) {}

    std::vector<at::Tensor> scores(const Model&, const Groups& groups, Context&) const override {
        torch::NoGradGuard no_grad;
        std::vector<at::Tensor> scores;
        PowerSums power_sum(p_, "prune.magnitude");
        for (const auto& group : groups.all()) {
            std::vector<at::Tensor> sums;  // [C] per slice
            for (const auto& slice : group.slices)
                if (slice.parameter && counts(slice, group)) sums.push_back(power_sum(slice, group.channels));
            scores.push_back(reduced(sums, group).pow(1.0 / p_));
        }
        return scores;
    }

private:
    bool counts(const Slice& slice, const ChannelGroup& group) const {
        if (reduce_ != Reduce::kFirst) return true;
        const auto first = std::find_if(group.slices.begin(), group.slices.end(),
                                        [](const Slice& other) { return other.parameter && other.produces; });
        return first == group.slices.end() || (slice.produces && slice.layer == first->layer);
    }

    at::Tensor reduced(const std::vector<at::Tensor>& sums, const ChannelGroup& group) const {
        if (sums.empty()) return at::zeros({group.channels}, at::kDouble);
        const auto all = at::stack(sums);  // [slices, C]
        switch (reduce_) {
            case Reduce::kSum:
            case Reduce::kFirst:
                return all.sum(0);
            case Reduce::kMean:
                return all.mean(0);
            case Reduce::kMax:
                return all.amax(0);
            case Reduce::kProduct:
                return all.prod(0);
        }
        throw InternalError("prune.magnitude", "unknown reduction", "");
    }

    const double p_;
    const Reduce reduce_;
};

}  // namespace

std::unique_ptr<Criterion> magnitude(double p, Reduce reduce) {
    if (!(p >= 1.0))  // in this form NaN is rejected too
        throw InvalidArgument("prune.magnitude", "p is " + Json(p).dump() + ", must be >= 1", "Use 1 or 2.");
    return std::make_unique<Magnitude>(p, reduce);
}

}  // namespace coppice::prune
