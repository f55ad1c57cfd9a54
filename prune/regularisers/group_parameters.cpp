#include <cmath>

#include "criteria/criteria.h"
#include "regularisers/regularisers.h"

namespace coppice::prune {

GroupParameters::GroupParameters(const ChannelGroup& group) : channels_(group.channels) {
    for (const auto& slice : group.slices) {
        if (!slice.parameter || !slice.tensor.is_floating_point()) continue;
        const auto channel_of = at::tensor(slice.channel_of, at::kLong);
        parts_.push_back({slice, channel_of.masked_fill(channel_of.lt(0), channels_)});
    }
}

at::Tensor GroupParameters::squares() const {
    torch::NoGradGuard no_grad;
    auto sum = at::zeros({channels_}, at::kDouble);
    for (const auto& [slice, channel_of] : parts_) {
        const auto rows = slice.tensor.detach().movedim(slice.dim, 0).reshape({slice.tensor.size(slice.dim), -1});
        sum += per_channel(rows.square().sum(1, /*keepdim=*/false, at::kDouble), slice, channels_);
    }
    return sum;
}

void GroupParameters::add_to_gradients(const at::Tensor& factor) const {
    torch::NoGradGuard no_grad;
    const auto with_rest = at::cat({factor, at::zeros({1}, at::kDouble)});  // the last: no channel
    for (const auto& [slice, channel_of] : parts_) {
        std::vector<int64_t> shape(static_cast<size_t>(slice.tensor.dim()), 1);
        shape[static_cast<size_t>(slice.dim)] = channel_of.size(0);
        const auto weights = slice.tensor.detach();
        add_gradient(slice.tensor, weights * with_rest.index_select(0, channel_of).reshape(shape).to(weights));
    }
}

std::vector<GroupParameters> parameters_of(const Groups& groups) {
    std::vector<GroupParameters> all;
    for (const auto& group : groups.all()) all.emplace_back(group);
    return all;
}

void add_gradient(at::Tensor parameter, const at::Tensor& amount) {
    if (!parameter.requires_grad()) return;  // it does not train
    if (parameter.grad().defined())
        parameter.mutable_grad().add_(amount);
    else
        parameter.mutable_grad() = amount.clone();
}

void check_strength(const std::string& where, const std::string& name, double value) {
    if (!(value >= 0 && std::isfinite(value)))
        throw InvalidArgument(where, name + " is " + Json(value).dump() + ", must be at least 0", "Try 1e-4 to 1e-2.");
}

}  // namespace coppice::prune
