/// The reference that a cut is held against: the original model, run with the removed channels set to zero after every
/// operator, so that whatever reads them next sees zero. Layer norms over removed channels are recomputed over those
/// that stay.
#pragma once

#include <coppice/prune.h>

#include "support/support.h"

namespace coppice::testing {

/// Output of `model` with the channels of `removal` masked.
c10::IValue run_masked(const Model& model, const Inputs& inputs, const prune::Groups& groups,
                       const prune::Removal& removal);

/// A share of the channels of every group, drawn by `seed`, at least one and never all.
prune::Removal random_removal(const prune::Groups& groups, double share, uint64_t seed);

struct CutCheck {
    prune::Groups groups;
    int64_t channels = 0, removed = 0;
    double difference = 0;  ///< largest, over all outputs, divided by the largest magnitude of an output
    Model smaller;
};

/// Cuts random channels of every group and compares with the masked model.
CutCheck check_cut(const Model& model, const Inputs& example, double share, uint64_t seed,
                   const prune::GroupOptions& options = {});

/// check_cut with seeds 1, 2, 3; expects equality up to `tolerance`, an untouched original and smaller parameters.
void expect_cut_equals_masked(const Model& model, const Inputs& example, double tolerance = 1e-4);

/// The group that produces `layer`'s outputs; fails the test when there is none.
const prune::ChannelGroup& group_of(const prune::Groups& groups, const std::string& layer);
const prune::PrunableInfo& info_of(const prune::Groups& groups, const std::string& layer);

/// Keeps every message.
class Messages final : public Log {
public:
    void write(const std::string&, const std::string& message) override { all.push_back(message); }
    int64_t containing(const std::string& text) const {
        return std::count_if(all.begin(), all.end(),
                             [&](const auto& message) { return message.find(text) != std::string::npos; });
    }
    std::vector<std::string> all;
};

/// Encoder layers of 12 channels (3 heads, 20 in the feed-forward part) in one fused operator each, as tracing leaves
/// them, between two linear layers: [N, L, 6] in, 5 classes out. The first layer is called "a", the second "b".
Model fused_encoder(int layers = 1);

/// Stage prune.channel with these settings, as a recipe would make it.
std::unique_ptr<Stage> make_stage(std::vector<std::pair<std::string, std::string>> settings);

}  // namespace coppice::testing
