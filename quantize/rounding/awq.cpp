// AWQ (Lin et al., arXiv 2306.00978): y = Q(W diag(f)) (x / f) with f = (E|x| / mean)^a. Large inputs get finer steps.
// The exponent with the least output error on the calibration data is searched on a grid that starts at 0, so that the
// result is never worse than rounding to the nearest.
#include <coppice/error.h>

#include "rounding/grid.h"

namespace coppice::quantize {
namespace {

constexpr const char* kWhere = "quantize.awq";

class Awq final : public Rounding {
public:
    explicit Awq(int64_t candidates) : candidates_(candidates) {}

    bool needs_moments() const override { return true; }
    bool scales_inputs() const override { return true; }

    RoundedWeight round(const at::Tensor& weight, const GridOptions& grid, const InputMoments* given) const override {
        const auto& moments = required(given, weight, kWhere);
        // Channels that are always zero say nothing; they keep a small positive factor.
        const auto magnitude = moments.magnitude.clamp_min(1e-4 * moments.magnitude.mean().item<double>() + 1e-30);
        const auto relative = magnitude / magnitude.log().mean().exp();  // geometric mean 1
        std::optional<RoundedWeight> best;
        double least = 0;
        for (int64_t i = 0; i < candidates_; ++i) {
            const double exponent = static_cast<double>(i) / static_cast<double>(candidates_ - 1);
            const auto factor = relative.pow(exponent).to(at::kFloat);
            auto rounded = grid_for(weight * factor, grid);
            round_to_nearest(rounded, weight * factor);
            if (i > 0) rounded.input_factor = factor.reciprocal();
            const double error = output_error(weight, rounded.values(), moments).sum().item<double>();
            if (best && !(error < least)) continue;
            best = rounded;
            least = error;
        }
        return *best;
    }

private:
    const int64_t candidates_;
};

}  // namespace

std::unique_ptr<Rounding> awq(int64_t candidates) {
    if (candidates < 2)
        throw InvalidArgument(kWhere, "candidates is " + std::to_string(candidates) + ", must be at least 2",
                              "Use 20.");
    return std::make_unique<Awq>(candidates);
}

}  // namespace coppice::quantize
