// AdaRound (Nagel et al., arXiv 2004.10568): q = floor(w / s) + h(V), see soft.h, learned by Adam on
//
//     sum over rows of d^T M d  +  lambda sum (1 - |2 h - 1|^beta),      d = w - s q - o,  M = E[x x^T]
//
// The paper samples d^T x; its mean square is the quadratic form, whose gradient 2 M d is exact and needs no samples.
// In the end h is rounded to 0 or 1, and every row keeps the better of this and nearest rounding. The paper takes
// 10,000 steps on samples; what fewer give is in tests/bench/results/quantize.md. Its inputs come from the layers
// rounded before (quantize.static's in_turn), and its loss is behind the activation function, which is not quadratic
// and left out here.
#include <cmath>

#include <coppice/error.h>

#include "rounding/grid.h"
#include "rounding/soft.h"

namespace coppice::quantize {
namespace {

constexpr const char* kWhere = "quantize.adaround";

class AdaRound final : public Rounding {
public:
    explicit AdaRound(int64_t steps) : steps_(steps) {}

    bool needs_moments() const override { return true; }

    RoundedWeight round(const at::Tensor& weight, const GridOptions& grid, const InputMoments* given) const override {
        torch::NoGradGuard no_grad;
        const auto& moments = required(given, weight, kWhere);
        auto rounded = grid_for(weight, grid);
        round_to_nearest(rounded, weight);
        const auto nearest_error = output_error(weight, rounded.values(), moments);
        const auto scale = expand_groups(rounded.scale, rounded.group);
        const auto offset = expand_groups(rounded.offset, rounded.group);
        const auto target = weight.detach() - offset;
        const auto floor = (target / scale).floor();
        // The loss in units of a row's mean error by nearest rounding: one lambda for all layers.
        const double unit = std::max(nearest_error.mean().item<double>(), 1e-30);
        const auto second = (moments.second / unit).to(at::kFloat);
        auto v = soft_start(target / scale - floor);
        auto first_moment = at::zeros_like(v), second_moment = at::zeros_like(v);
        const double lambda = 1.0 / static_cast<double>(weight.size(1));
        for (int64_t step = 0; step < steps_; ++step) {
            const auto sigmoid = v.sigmoid();
            const auto h = soft_rounding(v);
            const auto d = (floor + h).clamp(rounded.lowest, rounded.highest) * scale - target;
            auto gradient = d.mm(second).mul_(2).mul_(scale);  // of the first term by h
            if (const auto beta = sharpness(step, steps_)) {
                const auto centred = h * 2 - 1;
                gradient -= centred.abs().pow(*beta - 1).mul_(centred.sign()).mul_(2 * *beta * lambda);
            }
            const auto inside = (h > 0) & (h < 1);
            gradient = gradient.mul_(sigmoid).mul_(1 - sigmoid).mul_(kStretchHigh - kStretchLow).mul_(inside);
            first_moment.mul_(0.9).add_(gradient, 0.1);
            second_moment.mul_(0.999).addcmul_(gradient, gradient, 0.001);
            const double t = static_cast<double>(step + 1);
            const auto rate = kSoftRate / (1 - std::pow(0.9, t));
            v.addcdiv_(first_moment, (second_moment / (1 - std::pow(0.999, t))).sqrt_().add_(1e-8), -rate);
        }
        auto learned = rounded;
        learned.integers = (floor + (v >= 0)).clamp(rounded.lowest, rounded.highest).to(at::kLong);
        const auto better = output_error(weight, learned.values(), moments) < nearest_error;  // [rows]
        rounded.integers = at::where(better.unsqueeze(1), learned.integers, rounded.integers);
        return rounded;
    }

private:
    const int64_t steps_;
};

}  // namespace

std::unique_ptr<Rounding> adaround(int64_t steps) {
    if (steps < 1) throw InvalidArgument(kWhere, "steps is " + std::to_string(steps) + ", must be at least 1", "");
    return std::make_unique<AdaRound>(steps);
}

}  // namespace coppice::quantize
