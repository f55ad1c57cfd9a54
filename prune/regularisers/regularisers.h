/// What the regularisers share. Private to prune.
#pragma once

#include <coppice/error.h>
#include <coppice/prune.h>

namespace coppice::prune {

/// The parameters that vanish with the channels of one group, for arithmetic by channel.
class GroupParameters {
public:
    explicit GroupParameters(const ChannelGroup& group);

    int64_t channels() const { return channels_; }
    /// Sum over all parameters of a channel of w^2: float64 [channels].
    at::Tensor squares() const;
    /// Adds factor[c] * w to the gradient of every parameter w of channel c. @param factor  float64 [channels]
    void add_to_gradients(const at::Tensor& factor) const;

private:
    struct Part {
        Slice slice;
        at::Tensor channel_of;  // int64 [size of slice.dim], `channels` where an index belongs to no channel
    };
    int64_t channels_;
    std::vector<Part> parts_;
};

/// One entry per group.
std::vector<GroupParameters> parameters_of(const Groups& groups);

/// Adds `amount` to the gradient of `parameter`, which may have none yet.
void add_gradient(at::Tensor parameter, const at::Tensor& amount);

/// @throws InvalidArgument unless `value` is finite and not negative
void check_strength(const std::string& where, const std::string& name, double value);

}  // namespace coppice::prune
