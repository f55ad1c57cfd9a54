#include "schedule/rescore.h"

namespace coppice::prune {
namespace {

using Dimension = std::pair<std::string, int64_t>;  // of a parameter or buffer

/// Where the indices along every dimension that groups touch belong.
std::map<Dimension, std::vector<Groups::Place>> places_of(const Groups& groups) {
    std::map<Dimension, std::vector<Groups::Place>> places;
    for (size_t g = 0; g < groups.all().size(); ++g) {
        for (const auto& slice : groups.all()[g].slices) {
            auto& along = places[{slice.name, slice.dim}];
            along.resize(slice.channel_of.size());
            for (size_t i = 0; i < slice.channel_of.size(); ++i)
                if (slice.channel_of[i] >= 0) along[i] = {static_cast<int64_t>(g), slice.channel_of[i]};
        }
    }
    return places;
}

/// Moves the scores of `gone` below those of the other channels, keeping their order.
void rank_below(at::Tensor& scores, const std::vector<int64_t>& gone, const at::Tensor& last) {
    const int64_t channels = scores.size(0), count = static_cast<int64_t>(gone.size());
    const auto index = at::tensor(gone, at::kLong);
    const auto stays = at::ones({channels}, at::kBool).index_fill_(0, index, false);
    const auto left = scores.masked_select(stays);
    const double low = left.min().item<double>();
    // Scores are seldom negative. Below a positive one there is room down to zero; a thousandth of it leaves the scores
    // of channels that are gone clear of those that are left in any group of a similar scale.
    const double scale = std::max(left.abs().max().item<double>(), 1e-12) * 1e-3;
    const double bottom = low > 0 ? 0 : low - scale, top = low > 0 ? low * 1e-3 : low;
    const auto order = std::get<1>(last.index_select(0, index).sort(/*stable=*/true, /*dim=*/0, /*descending=*/false));
    const auto steps = bottom + (top - bottom) * at::arange(count, at::kDouble) / static_cast<double>(count);
    scores.index_copy_(0, index.index_select(0, order), steps);
}

}  // namespace

std::vector<std::vector<Groups::Place>> origins(const Groups& before, const Removal& removal, const Groups& after) {
    const auto places = places_of(before);
    std::vector<std::vector<char>> goes;
    for (size_t g = 0; g < before.all().size(); ++g) {
        goes.emplace_back(static_cast<size_t>(before.all()[g].channels), 0);
        for (const int64_t channel : removal[g]) goes.back()[static_cast<size_t>(channel)] = 1;
    }
    std::vector<std::vector<Groups::Place>> result;
    for (const auto& group : after.all()) {
        result.emplace_back(static_cast<size_t>(group.channels));
        for (const auto& slice : group.slices) {
            const auto found = places.find({slice.name, slice.dim});
            if (found == places.end())
                throw InternalError("prune", slice.name + " belongs to a group only after a cut", "");
            size_t index = 0;  // in the cut tensor
            for (const auto& place : found->second) {
                if (place.group >= 0 && goes[place.group][place.channel]) continue;
                if (index >= slice.channel_of.size())
                    throw InternalError("prune", slice.name + " is narrower than the cut left it", "");
                if (const int64_t channel = slice.channel_of[index]; channel >= 0) result.back()[channel] = place;
                ++index;
            }
        }
    }
    return result;
}

std::vector<at::Tensor> rescored(const Model& model, const Facts& facts, const Groups& groups, const Removal& removed,
                                 const std::vector<at::Tensor>& last, const Criterion& criterion,
                                 const std::function<void(Model&)>& prepare, Context& context,
                                 const GroupOptions& grouping) {
    Model smaller;
    Groups left;
    {
        torch::NoGradGuard no_grad;  // not around the criterion, which may need gradients
        smaller = cut(model, facts, groups, removed);
        smaller.eval();
        if (prepare) prepare(smaller);
        left = find_groups(smaller, Facts::observe(smaller, context.example), grouping);
    }
    const auto from = origins(groups, removed, left);
    const auto fresh = criterion.scores(smaller, left, context);
    std::vector<at::Tensor> scores;
    // A group of which one channel is left is no group any more: that channel keeps the score it had.
    for (const auto& score : last) scores.push_back(score.to(at::kDouble).clone());
    for (size_t g = 0; g < from.size(); ++g)
        for (size_t c = 0; c < from[g].size(); ++c) {
            const auto& place = from[g][c];
            if (place.group < 0) throw InternalError("prune", "a channel of " + left.all()[g].name + " is new", "");
            scores[place.group][place.channel] = fresh[g][static_cast<int64_t>(c)];
        }
    for (size_t g = 0; g < scores.size(); ++g)
        if (!removed[g].empty()) rank_below(scores[g], removed[g], last[g]);
    return scores;
}

}  // namespace coppice::prune
