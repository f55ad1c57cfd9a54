#include "criteria/criteria.h"

namespace coppice::prune {

at::Tensor per_channel(const at::Tensor& per_index, const Slice& slice, int64_t channels) {
    const auto channel_of = at::tensor(slice.channel_of, at::kLong);
    const auto belongs = channel_of.ge(0).nonzero().squeeze(1);
    return at::zeros({channels}, at::kDouble)
        .index_add(0, channel_of.index_select(0, belongs),
                   per_index.to(at::kDouble).to(at::kCPU).index_select(0, belongs));
}

at::Tensor PowerSums::operator()(const Slice& slice, int64_t channels) {
    auto& sums = sums_[{slice.tensor.unsafeGetTensorImpl(), slice.dim}];
    if (!sums.defined()) {
        const auto weights = slice.tensor.detach();
        std::vector<int64_t> others;
        for (int64_t dim = 0; dim < weights.dim(); ++dim)
            if (dim != slice.dim) others.push_back(dim);
        // One pass over the weights: a model has tens of millions, and every further copy of them shows.
        const auto norms = others.empty() ? weights.to(at::kDouble).abs()
                                          : at::linalg_vector_norm(weights, p_, others, /*keepdim=*/false, at::kDouble);
        if (!norms.isfinite().all().item<bool>())  // as every sum that has such a term
            throw UnsupportedModel(where_, slice.name + " holds NaN or infinity", "Check the checkpoint.");
        sums = norms.pow(p_);
    }
    return per_channel(sums, slice, channels);
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
