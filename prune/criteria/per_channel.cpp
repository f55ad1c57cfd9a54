#include "criteria/criteria.h"

namespace coppice::prune {

at::Tensor per_channel(const at::Tensor& per_index, const Slice& slice, int64_t channels) {
    const auto channel_of = at::tensor(slice.channel_of, at::kLong);
    const auto belongs = channel_of.ge(0).nonzero().squeeze(1);
    return at::zeros({channels}, at::kDouble)
        .index_add(0, channel_of.index_select(0, belongs),
                   per_index.to(at::kDouble).to(at::kCPU).index_select(0, belongs));
}

at::Tensor power_sum(const Slice& slice, double p, int64_t channels, const char* where) {
    const auto weights = slice.tensor.detach().to(at::kDouble).movedim(slice.dim, 0);  // [n, ...]
    if (!weights.isfinite().all().item<bool>())
        throw UnsupportedModel(where, slice.name + " holds NaN or infinity", "Check the checkpoint.");
    return per_channel(weights.abs().pow(p).reshape({weights.size(0), -1}).sum(1), slice, channels);
}

bool makes_channel(const Slice& slice) {
    return slice.parameter && (slice.produces || slice.tensor.dim() == 1);
}

void warn_about_ties(const char* where, const Groups& groups, const std::vector<at::Tensor>& scores, Context& context) {
    for (size_t g = 0; g < scores.size(); ++g)
        if (scores[g].eq(scores[g][0]).all().item<bool>())
            context.log->warning(std::string(where) + " at " + groups.all()[g].name +
                                 ": all channels have the same score and would go by their number; use another "
                                 "criterion for this layer");
}

}  // namespace coppice::prune
