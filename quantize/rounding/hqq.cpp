// Half-Quadratic Quantization (Badri and Shaji 2023): offsets that minimise |w - (s q + o)|^p, p = 0.7, by splitting
// off the error e, which the norm lets be sparse:
//
//     q = round((w - o) / s)
//     e = shrink(w - (s q + o)),  shrink(x) = sign(x) max(0, |x| - |x|^(p-1) / beta)
//     o = mean over the group of (w - e - s q)
//
// repeated with growing beta; the offsets with the least mean absolute error are kept. No data.
#include <coppice/error.h>

#include "rounding/grid.h"

namespace coppice::quantize {
namespace {

constexpr const char* kWhere = "quantize.hqq";
constexpr double kNorm = 0.7, kFirstBeta = 10, kGrowth = 1.01;  // the authors' settings

class Hqq final : public Rounding {
public:
    explicit Hqq(int64_t steps) : steps_(steps) {}

    bool moves_offsets() const override { return true; }

    RoundedWeight round(const at::Tensor& weight, const GridOptions& grid, const InputMoments*) const override {
        if (grid.symmetric)
            throw InvalidArgument(kWhere, "it moves offsets, which a symmetric grid does not have",
                                  "Use `symmetric: false`, or another rounding.");
        auto best = grid_for(weight, grid);
        round_to_nearest(best, weight);
        const int64_t rows = weight.size(0), group = best.group;
        const auto grouped = weight.detach().reshape({rows, -1, group});
        const auto error_of = [&](const RoundedWeight& rounded) {
            return (weight - rounded.values()).reshape({rows, -1, group}).abs().mean(2);  // [rows, groups]
        };
        auto least = error_of(best);
        auto current = best;
        double beta = kFirstBeta;
        for (int64_t step = 0; step < steps_; ++step, beta *= kGrowth) {
            const auto levels =
                (current.integers.to(at::kFloat) * expand_groups(current.scale, group)).reshape({rows, -1, group});
            // Errors are counted in steps of the grid, so that beta means the same for every layer.
            const auto scale = current.scale.unsqueeze(2);
            const auto x = (grouped - levels - current.offset.unsqueeze(2)) / scale;
            const auto magnitude = x.abs();
            const auto shrunk =
                x.sign() * (magnitude - magnitude.clamp_min(1e-8).pow(kNorm - 1) / beta).clamp_min(0) * scale;
            current.offset = (grouped - shrunk - levels).mean(2);
            if (grid.half) current.offset = current.offset.to(at::kHalf).to(at::kFloat);
            round_to_nearest(current, weight);
            const auto error = error_of(current);
            const auto better = error < least;
            if (!better.any().item<bool>()) break;
            best.offset = at::where(better, current.offset, best.offset);
            least = at::where(better, error, least);
        }
        round_to_nearest(best, weight);
        return best;
    }

private:
    const int64_t steps_;
};

}  // namespace

std::unique_ptr<Rounding> hqq(int64_t steps) {
    if (steps < 1) throw InvalidArgument(kWhere, "steps is " + std::to_string(steps) + ", must be at least 1", "");
    return std::make_unique<Hqq>(steps);
}

}  // namespace coppice::quantize
