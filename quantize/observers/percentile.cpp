// The range without a share of the values at each end, counted on a growing histogram.
#include <coppice/error.h>
#include <coppice/quantize.h>

#include "observers/bins.h"

namespace coppice::quantize {
namespace {

class Percentile final : public Observer {
public:
    Percentile(double share, int64_t bins) : share_(share), bins_(bins) {}

    std::unique_ptr<Observer> fresh() const override { return std::make_unique<Percentile>(share_, bins_.size()); }

    void observe(const at::Tensor& values) override { bins_.observe(values); }
    at::Tensor state() const override { return bins_.state(); }
    void set_state(const at::Tensor& state) override { bins_.set_state(state); }

    Range range(int64_t) const override {
        if (!bins_.seen()) return {};
        double total = bins_.zeros();
        for (const double count : bins_.counts()) total += count;
        const double cut = total * share_ / 2;
        Range range{std::min(bins_.seen()->low, 0.0), std::max(bins_.seen()->high, 0.0)};
        const auto size = static_cast<size_t>(bins_.size());
        // From either end inwards, never across zero.
        double left = 0;
        for (size_t i = 0; i < size && range.low < 0; ++i) {
            left += bins_.counts()[i];
            if (left > cut) break;
            range.low = std::max(range.low, std::min(0.0, bins_.low() + bins_.width() * static_cast<double>(i + 1)));
        }
        left = 0;
        for (size_t i = size; i-- > 0 && range.high > 0;) {
            left += bins_.counts()[i];
            if (left > cut) break;
            range.high = std::min(range.high, std::max(0.0, bins_.low() + bins_.width() * static_cast<double>(i)));
        }
        return range;
    }

private:
    const double share_;
    Bins bins_;
};

}  // namespace

std::unique_ptr<Observer> percentile(double share, int64_t bins) {
    if (!(share >= 0 && share < 0.5))
        throw InvalidArgument("quantize.percentile", "share is " + std::to_string(share) + ", must be in [0, 0.5)",
                              "Use 0.0001.");
    if (bins < 128 || bins % 2 != 0)
        throw InvalidArgument("quantize.percentile",
                              "bins is " + std::to_string(bins) + ", must be even and at least 128", "Use 2048.");
    return std::make_unique<Percentile>(share, bins);
}

}  // namespace coppice::quantize
