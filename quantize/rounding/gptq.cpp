// GPTQ (Frantar et al., arXiv 2210.17323). Columns are rounded from first to last. With M the damped second moments of
// the inputs and U the upper Cholesky factor of its inverse (M^-1 = U^T U), rounding column j leaves an error
//
//     e = (w[:, j] - q[:, j]) / U[j, j]
//
// that the columns behind make up for: w[:, k] -= e U[j, k] for k > j. That is the exact least-squares answer for the
// columns that are still free. A group's scale is found when its first column's turn comes, from the weights as they
// are then.
#include <coppice/error.h>

#include "rounding/grid.h"

namespace coppice::quantize {
namespace {

constexpr const char* kWhere = "quantize.gptq";

class Gptq final : public Rounding {
public:
    explicit Gptq(double damping) : damping_(damping) {}

    bool needs_moments() const override { return true; }

    RoundedWeight round(const at::Tensor& weight, const GridOptions& grid, const InputMoments* given) const override {
        const auto& moments = required(given, weight, kWhere);
        auto rounded = grid_for(weight, grid);
        const int64_t columns = weight.size(1), group = rounded.group;
        auto second = moments.second.clone();
        auto diagonal = second.diagonal();
        auto w = weight.detach().to(at::kDouble).clone();  // [rows, columns]
        const double mean = diagonal.mean().item<double>();
        diagonal.add_(std::max(damping_ * mean, 1e-12));
        const auto factor = [](const at::Tensor& matrix, bool upper) {
            const auto [result, info] = at::linalg_cholesky_ex(matrix, upper);
            if (info.item<int>() != 0 || !result.isfinite().all().item<bool>())
                throw UnsupportedModel(kWhere, "the second moments of its input cannot be factorised",
                                       "Use a larger damping, or more calibration data.");
            return result;
        };
        const auto upper = factor(at::cholesky_inverse(factor(second, false)), true).contiguous();
        const auto factors = upper.accessor<double, 2>();
        auto integers = at::empty({weight.size(0), columns}, at::kDouble);
        for (int64_t j = 0; j < columns; ++j) {
            if (j % group == 0 && columns != group) {
                auto part = grid;
                part.group = group;
                const auto fresh = grid_for(w.slice(1, j, j + group).to(at::kFloat), part);
                rounded.scale.select(1, j / group).copy_(fresh.scale.select(1, 0));
                rounded.offset.select(1, j / group).copy_(fresh.offset.select(1, 0));
            }
            const auto scale = rounded.scale.select(1, j / group).to(at::kDouble);
            const auto offset = rounded.offset.select(1, j / group).to(at::kDouble);
            const auto column = w.select(1, j);
            const auto q = ((column - offset) / scale).round_().clamp_(rounded.lowest, rounded.highest);
            integers.select(1, j).copy_(q);
            if (j + 1 == columns) break;
            const auto error = (column - (q * scale + offset)) / factors[j][j];  // [rows]
            w.slice(1, j + 1).addr_(error, upper[j].slice(0, j + 1), 1, -1);
        }
        rounded.integers = integers.to(at::kLong);
        return rounded;
    }

private:
    const double damping_;
};

}  // namespace

std::unique_ptr<Rounding> gptq(double damping) {
    if (!(damping > 0 && damping <= 1))
        throw InvalidArgument(kWhere, "damping is " + std::to_string(damping) + ", must be in (0, 1]", "Use 0.01.");
    return std::make_unique<Gptq>(damping);
}

}  // namespace coppice::quantize
