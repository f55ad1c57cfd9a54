/// Choosing single weights, by plain loops in float64.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace coppice::reference {

/// Mask of a matrix: false for the `count` lowest scores, the first among equals, by sorting.
inline at::Tensor keep_highest(const at::Tensor& scores, int64_t count) {
    const auto flat = scores.contiguous().reshape({-1}).to(at::kDouble);
    std::vector<int64_t> order(static_cast<size_t>(flat.numel()));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return flat[a].item<double>() < flat[b].item<double>(); });
    auto keep = at::ones({flat.numel()}, at::kBool);
    for (int64_t i = 0; i < count; ++i) keep[order[static_cast<size_t>(i)]] = false;
    return keep.reshape(scores.sizes());
}

/// SparseGPT with one block of columns, as the paper derives it (arXiv 2301.00774, section 3.1): for column j the
/// inverse of the damped Hessian over the columns from j on is formed anew, instead of read from a Cholesky factor.
/// @param weight [rows, columns], @param hessian damped, [columns, columns], @param keep decides the mask from scores
template <typename Keep>
at::Tensor sparsegpt(at::Tensor weight, const at::Tensor& hessian, const Keep& keep) {
    weight = weight.clone();
    const int64_t rows = weight.size(0), columns = weight.size(1);
    const auto inverse_from = [&](int64_t j) { return at::linalg_inv(hessian.slice(0, j).slice(1, j)); };
    auto scores = at::zeros_like(weight);
    for (int64_t j = 0; j < columns; ++j) {
        const auto inverse = inverse_from(j);
        for (int64_t i = 0; i < rows; ++i) scores[i][j] = weight[i][j] * weight[i][j] / inverse[0][0];
    }
    const at::Tensor mask = keep(scores);
    for (int64_t j = 0; j < columns; ++j) {
        const auto inverse = inverse_from(j);
        for (int64_t i = 0; i < rows; ++i) {
            if (mask[i][j].item<bool>()) continue;
            const auto error = weight[i][j].clone() / inverse[0][0];
            for (int64_t k = j; k < columns; ++k) weight[i][k] -= error * inverse[0][k - j];
            weight[i][j] = 0;
        }
    }
    return weight;
}

}  // namespace coppice::reference
