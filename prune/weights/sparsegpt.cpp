// SparseGPT (Frantar and Alistarh, arXiv 2301.00774, algorithm 1): each row w of a layer keeps ||w X - w' X||^2 small.
//
//   H = X X^T + damping * mean(diag) * I,   H^-1 = U^T U with U upper triangular
//   from left to right over the columns j:  score[i, j] = (W[i, j] / U[j, j])^2
//   a weight that goes moves its error on:  W[i, j:] -= W[i, j] / U[j, j] * U[j, j:]
//
// U[j, j]^2 is the j-th diagonal element of the inverse of H restricted to the columns from j on, so that a column,
// once decided, is never touched again (optimal brain surgeon on a fixed order). Masks are chosen for a block of
// columns at once, from weights that took all earlier errors. A column whose input is always zero has H[j, j] = the
// damping alone: its score is the smallest, and it needs no rule of its own.
#include "weights/weights.h"

namespace coppice::prune {
namespace {

// Gram matrix, its factor and inverse are in memory at once: 3 x 2 GiB.
constexpr int64_t kMostColumns = 16384;

class SparseGpt final : public WeightCriterion {
public:
    explicit SparseGpt(SparseGptOptions options) : options_(options) {}

    Needs needs() const override {
        Needs needs;
        needs.calibration_data = true;
        return needs;
    }
    InputStatistic inputs() const override { return InputStatistic::kGram; }

    at::Tensor scores(const WeightMatrix& matrix) const override {
        const auto diagonal = factor(matrix).diagonal(0, 1, 2);  // [groups, columns]
        return (matrix.weight / diagonal.unsqueeze(1)).square();
    }

    at::Tensor prune(const WeightMatrix& matrix, const WeightPattern& pattern, double sparsity,
                     bool per_row) const override {
        const auto upper = factor(matrix);
        auto weight = matrix.weight.clone();  // [groups, rows, columns]
        const int64_t columns = weight.size(2);
        // A fixed pattern decides each of its units alone, and then from weights that took the errors inside the block.
        const int64_t unit = pattern.columns();
        const int64_t block = std::max(unit, options_.block_columns / unit * unit);
        const int64_t step = pattern.sparsity() ? unit : block;
        for (int64_t begin = 0; begin < columns; begin += block) {
            const int64_t end = std::min(begin + block, columns), width = end - begin;
            auto part = weight.slice(2, begin, end);                             // a view: updated in place
            const auto local = upper.slice(1, begin, end).slice(2, begin, end);  // [groups, width, width]
            const auto diagonal = local.diagonal(0, 1, 2);                       // [groups, width]
            auto errors = at::zeros({weight.size(0), weight.size(1), width}, weight.options());
            at::Tensor keep;
            for (int64_t j = 0; j < width; ++j) {
                if (j % step == 0) {
                    const int64_t last = std::min(j + step, width);
                    const auto scores = (part.slice(2, j, last) / diagonal.slice(1, j, last).unsqueeze(1)).square();
                    keep = pattern.keep(scores, sparsity, per_row);
                }
                auto column = part.select(2, j);  // [groups, rows]
                const auto kept = column * keep.select(2, j % step);
                const auto error = (column - kept) / diagonal.select(1, j).unsqueeze(1);
                // The column itself becomes 0 up to rounding; it is set to be exact.
                part.slice(2, j, width) -= error.unsqueeze(2) * local.select(1, j).slice(1, j, width).unsqueeze(1);
                column.copy_(kept);
                errors.select(2, j).copy_(error);
            }
            if (end < columns)
                weight.slice(2, end, columns) -= at::bmm(errors, upper.slice(1, begin, end).slice(2, end, columns));
        }
        return weight;
    }

private:
    /// U of H^-1 = U^T U, [groups, columns, columns].
    at::Tensor factor(const WeightMatrix& matrix) const {
        const auto& gram = matrix.gram;
        const int64_t columns = gram.size(1);
        if (columns > kMostColumns)
            throw UnsupportedModel("prune.weight at " + matrix.layer,
                                   "sparsegpt would need a matrix of " + std::to_string(columns) + " x " +
                                       std::to_string(columns) + " numbers",
                                   "Put the layer into `ignore`, or use criterion wanda.");
        auto damping = options_.damping * gram.diagonal(0, 1, 2).mean(1);   // [groups]
        damping = at::where(damping > 0, damping, at::ones_like(damping));  // no input at all: plain magnitude
        const auto damped = gram + at::diag_embed(damping.unsqueeze(1).expand({-1, columns}));
        const auto [lower, failed] = at::linalg_cholesky_ex(damped);
        if (failed.any().item<bool>()) fail(matrix);
        const auto inverse = at::cholesky_inverse(lower);
        const auto [root, failed_inverse] = at::linalg_cholesky_ex(inverse);
        if (failed_inverse.any().item<bool>()) fail(matrix);
        return root.transpose(1, 2).contiguous();
    }

    [[noreturn]] void fail(const WeightMatrix& matrix) const {
        throw UnsupportedModel("prune.weight at " + matrix.layer,
                               "the Gram matrix of its inputs is not positive definite in float64",
                               "Raise damping, or give more calibration data.");
    }

    const SparseGptOptions options_;
};

}  // namespace

std::unique_ptr<WeightCriterion> sparsegpt(SparseGptOptions options) {
    if (!(options.damping > 0 && options.damping <= 1) || options.block_columns < 1)
        throw InvalidArgument("prune.weight", "damping must be in (0, 1] and block_columns at least 1",
                              "The defaults are 0.01 and 128.");
    return std::make_unique<SparseGpt>(options);
}

}  // namespace coppice::prune
