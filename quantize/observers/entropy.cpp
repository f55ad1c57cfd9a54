// The clipping with the least Kullback-Leibler divergence (Migacz, "8-bit inference with TensorRT", 2017), for affine
// grids: P is the histogram with what lies outside moved into the outermost bins inside, Q spreads the mass of each
// integer evenly over its bins that hold anything, and the range with the least sum of P log(P / Q) is taken. Zeros are
// exact in every candidate and count on neither side.
#include <coppice/error.h>
#include <coppice/quantize.h>

#include "observers/bins.h"

namespace coppice::quantize {
namespace {

class Entropy final : public Observer {
public:
    explicit Entropy(int64_t bins) : bins_(bins) {}

    std::unique_ptr<Observer> fresh() const override { return std::make_unique<Entropy>(bins_.size()); }

    void observe(const at::Tensor& values) override { bins_.observe(values); }
    at::Tensor state() const override { return bins_.state(); }
    void set_state(const at::Tensor& state) override { bins_.set_state(state); }

    Range range(int64_t levels) const override {
        if (!bins_.seen()) return {};
        return bins_.search([&](const Range& range) { return divergence(range, levels); });
    }

private:
    double divergence(const Range& range, int64_t levels) const {
        const auto parameters = affine(range, levels);
        const auto level_of = [&](double value) {
            const double level = std::nearbyint(value / parameters.scale) + static_cast<double>(parameters.zero_point);
            return static_cast<size_t>(std::clamp(level, 0.0, static_cast<double>(levels - 1)));
        };
        const auto& counts = bins_.counts();
        const auto centre = [&](size_t i) { return bins_.low() + bins_.width() * (static_cast<double>(i) + 0.5); };
        size_t first = counts.size(), last = 0;
        for (size_t i = 0; i < counts.size(); ++i) {
            if (centre(i) < range.low - bins_.width() / 2 || centre(i) > range.high + bins_.width() / 2) continue;
            first = std::min(first, i);
            last = i;
        }
        if (first > last) return std::numeric_limits<double>::infinity();
        std::vector<double> mass(static_cast<size_t>(levels), 0), used(static_cast<size_t>(levels), 0);
        double total = 0, inside = 0;
        for (size_t i = 0; i < counts.size(); ++i) total += counts[i];
        for (size_t i = first; i <= last; ++i) {
            if (counts[i] == 0) continue;
            const auto level = level_of(centre(i));
            mass[level] += counts[i];
            used[level] += 1;
            inside += counts[i];
        }
        if (!(inside > 0)) return std::numeric_limits<double>::infinity();
        double below = 0, above = 0;
        for (size_t i = 0; i < first; ++i) below += counts[i];
        for (size_t i = last + 1; i < counts.size(); ++i) above += counts[i];
        double sum = 0;
        for (size_t i = first; i <= last; ++i) {
            double p = counts[i];
            if (i == first) p += below;
            if (i == last) p += above;
            if (p == 0) continue;
            const auto level = level_of(centre(i));
            // Mass moved to an empty bin has nothing to stand for it: as good as one value there.
            const double q = counts[i] > 0 ? mass[level] / used[level] : 1;
            sum += p / total * std::log((p / total) / (q / inside));
        }
        return sum;
    }

    Bins bins_;
};

}  // namespace

std::unique_ptr<Observer> entropy(int64_t bins) {
    if (bins < 512 || bins % 2 != 0)
        throw InvalidArgument("quantize.entropy", "bins is " + std::to_string(bins) + ", must be even and at least 512",
                              "Use 2048.");
    return std::make_unique<Entropy>(bins);
}

}  // namespace coppice::quantize
