// Rankings of channels over several groups. Scores of different groups live on different scales (layers differ in size
// and in the number of slices), so each group's are divided by a figure of the group first.
#include "allocation/allocation.h"

#include <cmath>

namespace coppice::prune {

std::vector<at::Tensor> normalised(const std::vector<at::Tensor>& scores, Normaliser normaliser) {
    const auto figure = [&](const at::Tensor& score) -> at::Tensor {
        switch (normaliser) {
            case Normaliser::kNone:
            case Normaliser::kStandard:
                return at::ones({}, at::kDouble);
            case Normaliser::kMean:
                return score.mean();
            case Normaliser::kMax:
                return score.max();
            case Normaliser::kSum:
                return score.sum();
            case Normaliser::kL2:
                return score.norm();
        }
        throw InternalError("prune.channel", "unknown normaliser", "");
    };
    std::vector<at::Tensor> result;
    for (const auto& score : scores) {
        const auto by = figure(score);
        if (normaliser == Normaliser::kStandard)
            result.push_back((score - score.min()) / (score.max() - score.min()).clamp_min(1e-12));
        else  // a group whose scores are all zero has nothing to compare: it stays at zero and goes first
            result.push_back(by.item<double>() == 0 ? score : score / by);
    }
    return result;
}

Wanted ranked(const std::vector<at::Tensor>& scores, const std::vector<Widths>& widths,
              const std::vector<size_t>& class_of) {
    /// All channels of a class that may go, the least important first, with the group each belongs to.
    struct Class {
        std::vector<std::pair<double, size_t>> ranking;
        int64_t channels = 0;
    };
    std::map<size_t, Class> classes;
    for (size_t g = 0; g < scores.size(); ++g) {
        if (!widths[g].free()) continue;
        auto& entry = classes[class_of[g]];
        entry.channels += widths[g].channels;
        const auto sorted = std::get<0>(scores[g].sort());
        for (int64_t c = 0; c < widths[g].high - widths[g].low; ++c)
            entry.ranking.emplace_back(sorted[c].item<double>(), g);
    }
    for (auto& [id, entry] : classes)
        std::stable_sort(entry.ranking.begin(), entry.ranking.end(),
                         [](const auto& a, const auto& b) { return a.first < b.first; });
    return [classes, widths](double share) {
        std::vector<double> ideal;
        for (const auto& width : widths) ideal.push_back(static_cast<double>(width.high));
        for (const auto& [id, entry] : classes) {
            const auto gone =
                std::min<size_t>(entry.ranking.size(), std::llround(share * static_cast<double>(entry.channels)));
            for (size_t i = 0; i < gone; ++i) ideal[entry.ranking[i].second] -= 1;
        }
        return ideal;
    };
}

}  // namespace coppice::prune
