// score[c] = sum over the other channels d of |f[c] - f[d]|, where f[c] is the filter that makes channel c: a filter
// near the geometric median of its layer is what the others can stand in for (He et al., arXiv 1811.00250, equation 4).
// Where several layers make the channel, f is their filters one behind the other; biases and norms do not count.
#include "criteria/criteria.h"

namespace coppice::prune {
namespace {

/// The filters of a slice by channel: [C, indices per channel * elements per index].
at::Tensor by_channel(const Slice& slice, int64_t channels) {
    const auto filters = slice.tensor.detach().to(at::kDouble).movedim(slice.dim, 0);  // [n, ...]
    if (!filters.isfinite().all().item<bool>())
        throw UnsupportedModel("prune.fpgm", slice.name + " holds NaN or infinity", "Check the checkpoint.");
    std::vector<std::vector<int64_t>> indices(static_cast<size_t>(channels));
    for (size_t i = 0; i < slice.channel_of.size(); ++i)
        if (slice.channel_of[i] >= 0) indices[slice.channel_of[i]].push_back(static_cast<int64_t>(i));
    std::vector<at::Tensor> rows;
    for (const auto& list : indices) rows.push_back(filters.index_select(0, at::tensor(list, at::kLong)).flatten());
    return at::stack(rows);
}

class Fpgm final : public Criterion {
public:
    std::vector<at::Tensor> scores(const Model&, const Groups& groups, Context&) const override {
        torch::NoGradGuard no_grad;
        std::vector<at::Tensor> scores;
        for (const auto& group : groups.all()) {
            std::vector<at::Tensor> filters;
            for (const auto& slice : group.slices)
                if (slice.parameter && slice.produces && slice.tensor.dim() > 1)
                    filters.push_back(by_channel(slice, group.channels));
            if (filters.empty())
                throw UnsupportedModel("prune.fpgm at " + group.name, "no layer's weights make its channels",
                                       "Use criterion magnitude.");
            const auto all = at::cat(filters, 1);  // [C, features]
            // By inner products: in float64 wrong by 1e-8 of a filter's norm at most, and quick for wide layers.
            scores.push_back(at::cdist(all, all, 2.0, /*compute_mode=*/1).sum(1));
        }
        return scores;
    }
};

}  // namespace

std::unique_ptr<Criterion> fpgm() {
    return std::make_unique<Fpgm>();
}

}  // namespace coppice::prune
