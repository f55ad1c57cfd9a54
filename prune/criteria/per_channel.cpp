#include "criteria/criteria.h"

namespace coppice::prune {

at::Tensor per_channel(const at::Tensor& per_index, const Slice& slice, int64_t channels) {
    const auto channel_of = at::tensor(slice.channel_of, at::kLong);
    const auto belongs = channel_of.ge(0).nonzero().squeeze(1);
    return at::zeros({channels}, at::kDouble)
        .index_add(0, channel_of.index_select(0, belongs),
                   per_index.to(at::kDouble).to(at::kCPU).index_select(0, belongs));
}

}  // namespace coppice::prune
