#include "criteria/criteria.h"

namespace coppice::prune {

at::Tensor per_channel(const at::Tensor& per_index, const Slice& slice, int64_t channels) {
    const auto channel_of = at::tensor(slice.channel_of, at::kLong);
    const auto belongs = channel_of.ge(0).nonzero().squeeze(1);
    return at::zeros({channels}, at::kDouble)
        .index_add(0, channel_of.index_select(0, belongs),
                   per_index.to(at::kDouble).to(at::kCPU).index_select(0, belongs));
}

// The first two dimensions in one pass, in blocks that stay in the cache as float64: a model has tens of millions of
// weights, and both the layer that makes a channel and the one that reads it ask.
std::array<at::Tensor, 2> PowerSums::sums_of(const at::Tensor& weights) const {
    constexpr int64_t kBlock = 1 << 15;                                       // elements; 256 KiB as float64
    const auto matrix = weights.dim() == 1 ? weights.unsqueeze(1) : weights;  // [A, B, ...]
    const int64_t count = matrix.size(0);
    auto first = at::zeros({count}, at::kDouble), second = at::zeros({matrix.size(1)}, at::kDouble);
    const int64_t rows = std::max<int64_t>(1, kBlock / std::max<int64_t>(1, matrix.numel() / count));
    for (int64_t begin = 0; begin < count; begin += rows) {
        auto powers = matrix.narrow(0, begin, std::min(rows, count - begin))
                          .to(at::kDouble, /*non_blocking=*/false, /*copy=*/true);
        powers = p_ == 2 ? powers.square_() : p_ == 1 ? powers.abs_() : powers.abs_().pow_(p_);
        if (powers.dim() > 2) powers = powers.flatten(2).sum(2);
        second += powers.sum(0);
        first.narrow(0, begin, powers.size(0)).copy_(powers.sum(1));
    }
    return {first, second};
}

at::Tensor PowerSums::operator()(const Slice& slice, int64_t channels) {
    const auto* impl = slice.tensor.unsafeGetTensorImpl();
    auto& sums = sums_[{impl, slice.dim}];
    if (!sums.defined()) {
        const auto weights = slice.tensor.detach().to(at::kCPU);
        if (slice.dim < 2) {
            const auto both = sums_of(weights);
            for (int64_t dim = 0; dim < std::min<int64_t>(weights.dim(), 2); ++dim) sums_[{impl, dim}] = both[dim];
        } else {
            sums = sums_of(weights.movedim(slice.dim, 0))[0];
        }
        if (!sums.isfinite().all().item<bool>())  // as every sum that has such a term
            throw UnsupportedModel(where_, slice.name + " holds NaN or infinity", "Check the checkpoint.");
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
