#include <cmath>

#include "weights/weights.h"

namespace coppice::prune {

at::Tensor lowest_mask(const at::Tensor& scores, int64_t count) {
    if (count <= 0) return at::zeros_like(scores, at::kBool);
    if (count >= scores.size(1)) return at::ones_like(scores, at::kBool);
    // Selection instead of sorting: linear in the number of weights.
    const auto threshold = std::get<0>(scores.kthvalue(count, 1, /*keepdim=*/true));
    const auto below = scores < threshold;
    const auto ties = scores == threshold;
    const auto missing = count - below.sum(1, /*keepdim=*/true);
    return below.logical_or(ties.logical_and(ties.cumsum(1) <= missing));
}

std::vector<double> shares_of_lowest(const std::vector<at::Tensor>& scores, double sparsity) {
    if (scores.empty()) return {};
    std::vector<at::Tensor> flat;
    for (const auto& tensor : scores) flat.push_back(tensor.flatten());
    const auto all = at::cat(flat).unsqueeze(0);
    const auto gone = lowest_mask(all, std::llround(sparsity * static_cast<double>(all.numel())))[0];
    std::vector<double> shares;
    int64_t begin = 0;
    for (const auto& tensor : flat) {
        const int64_t count = tensor.numel();
        shares.push_back(static_cast<double>(gone.slice(0, begin, begin + count).sum().item<int64_t>()) /
                         static_cast<double>(count));
        begin += count;
    }
    return shares;
}

at::Tensor WeightPattern::keep(const at::Tensor& scores, double sparsity, bool per_row) const {
    const auto units = this->units(scores);  // [groups, rows, columns] of units
    const auto flat = per_row ? units.reshape({-1, units.size(2)}) : units.reshape({1, -1});
    const auto count = std::llround(sparsity * static_cast<double>(flat.size(1)));
    return expand(lowest_mask(flat, count).logical_not().reshape(units.sizes()), scores);
}

at::Tensor WeightPattern::units(const at::Tensor& scores) const {
    return scores;
}

at::Tensor WeightPattern::expand(const at::Tensor& units, const at::Tensor&) const {
    return units;
}

at::Tensor WeightCriterion::prune(const WeightMatrix& matrix, const WeightPattern& pattern, double sparsity,
                                  bool per_row) const {
    return matrix.weight * pattern.keep(scores(matrix), sparsity, per_row);
}

}  // namespace coppice::prune
