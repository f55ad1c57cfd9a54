// One ranking over the channels of all groups. Scores of different groups live on different scales (layers differ in
// size and in the number of slices), so each group's are divided by a figure of the group first (arXiv 2301.12900,
// section 3.3).
#include "allocation/allocation.h"

#include <cmath>

namespace coppice::prune {
namespace {

class Global final : public Allocation {
public:
    explicit Global(Normaliser normaliser) : normaliser_(normaliser) {}

    Removal allocate(const Groups& groups, const std::vector<at::Tensor>& scores, const CostModel& cost,
                     const Target& target) const override {
        check_scores(groups, scores);
        std::vector<at::Tensor> comparable;
        for (const auto& score : scores) comparable.push_back(normalised(score));
        const auto widths = allowed_widths(groups, target);
        // All channels that may go, the least important first, with the group each belongs to.
        std::vector<std::pair<double, size_t>> ranking;
        for (size_t g = 0; g < comparable.size(); ++g) {
            const auto sorted = std::get<0>(comparable[g].sort());
            const int64_t free = widths[g].channels - widths[g].low;
            for (int64_t c = 0; c < free; ++c) ranking.emplace_back(sorted[c].item<double>(), g);
        }
        std::stable_sort(ranking.begin(), ranking.end(),
                         [](const auto& a, const auto& b) { return a.first < b.first; });
        int64_t channels = 0;
        for (size_t g = 0; g < widths.size(); ++g)
            if (widths[g].low < widths[g].channels) channels += widths[g].channels;
        const auto kept = meet(groups, cost, target, [&](double share) {
            const auto gone = std::min<size_t>(ranking.size(), std::llround(share * static_cast<double>(channels)));
            std::vector<double> ideal;
            for (const auto& width : widths) ideal.push_back(static_cast<double>(width.channels));
            for (size_t i = 0; i < gone; ++i) ideal[ranking[i].second] -= 1;
            return ideal;
        });
        return lowest(groups, scores, kept);
    }

private:
    at::Tensor normalised(const at::Tensor& score) const {
        const auto divided = [&](const at::Tensor& by) {
            // A group whose scores are all zero has nothing to compare: it stays at zero and goes first.
            return by.item<double>() == 0 ? score : score / by;
        };
        switch (normaliser_) {
            case Normaliser::kNone:
                return score;
            case Normaliser::kMean:
                return divided(score.mean());
            case Normaliser::kMax:
                return divided(score.max());
            case Normaliser::kSum:
                return divided(score.sum());
            case Normaliser::kL2:
                return divided(score.norm());
            case Normaliser::kStandard:
                return (score - score.min()) / (score.max() - score.min()).clamp_min(1e-12);
        }
        throw InternalError("prune.channel", "unknown normaliser", "");
    }

    const Normaliser normaliser_;
};

}  // namespace

std::unique_ptr<Allocation> global(Normaliser normaliser) {
    return std::make_unique<Global>(normaliser);
}

}  // namespace coppice::prune
