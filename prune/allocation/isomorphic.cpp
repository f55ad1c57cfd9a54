// Isomorphic pruning (Fang et al., arXiv 2407.04616). Scores of a layer norm's channels, an attention head's and a
// depthwise convolution's come from distributions of their own; a ranking over all of them prunes one kind first. So
// groups are sorted into classes by the structure that vanishes with a channel, each class has a ranking of its own,
// and all classes lose the same share.
#include <set>

#include "allocation/allocation.h"

namespace coppice::prune {
namespace {

/// True where a channel stands for several indices of the slice: a head of packed queries, keys and values.
bool is_block(const Slice& slice) {
    std::set<int64_t> channels;
    int64_t indices = 0;
    for (const int64_t channel : slice.channel_of) {
        if (channel < 0) continue;
        channels.insert(channel);
        ++indices;
    }
    return indices > static_cast<int64_t>(channels.size());
}

/// What vanishes with a channel of the group, without sizes: the slices as a sorted list of operator, rank of the
/// tensor, dimension, whether the operator produces the channel, and whether a block of indices goes. Layers outside of
/// Groups::layers() are the norms.
std::string structure_of(const ChannelGroup& group, const std::map<std::string, std::string>& op_of) {
    std::vector<std::string> slices;
    for (const auto& slice : group.slices) {
        const auto op = op_of.find(slice.layer);
        slices.push_back((op == op_of.end() ? "norm" : op->second) + " " + std::to_string(slice.tensor.dim()) + " " +
                         std::to_string(slice.dim) + (slice.produces ? " out" : " in") +
                         (is_block(slice) ? " block" : "") + (slice.parameter ? "" : " buffer"));
    }
    std::sort(slices.begin(), slices.end());
    std::string structure;
    for (const auto& slice : slices) structure += slice + "\n";
    return structure;
}

class Isomorphic final : public Allocation {
public:
    explicit Isomorphic(Normaliser normaliser) : normaliser_(normaliser) {}

    Removal allocate(const Groups& groups, const std::vector<at::Tensor>& scores, const CostModel& cost,
                     const Target& target) const override {
        check_scores(groups, scores);
        std::map<std::string, std::string> op_of;
        for (const auto& layer : groups.layers()) op_of[layer.layer] = layer.op;
        std::map<std::string, size_t> classes;
        std::vector<size_t> class_of;
        for (const auto& group : groups.all())
            class_of.push_back(classes.emplace(structure_of(group, op_of), classes.size()).first->second);
        const auto wanted = ranked(normalised(scores, normaliser_), allowed_widths(groups, target), class_of);
        return lowest(groups, scores, meet(groups, cost, target, wanted));
    }

private:
    const Normaliser normaliser_;
};

}  // namespace

std::unique_ptr<Allocation> isomorphic(Normaliser normaliser) {
    return std::make_unique<Isomorphic>(normaliser);
}

}  // namespace coppice::prune
