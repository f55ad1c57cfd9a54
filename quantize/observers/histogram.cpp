// The range with the least mean squared error over a histogram,
//
//     sum over bins of count * (centre - dequantize(quantize(centre)))^2
//
// for affine parameters that represent zero exactly.
#include <coppice/error.h>
#include <coppice/quantize.h>

#include "observers/bins.h"

namespace coppice::quantize {
namespace {

class Histogram final : public Observer {
public:
    explicit Histogram(int64_t bins) : bins_(bins) {}

    std::unique_ptr<Observer> fresh() const override { return std::make_unique<Histogram>(bins_.size()); }

    void observe(const at::Tensor& values) override { bins_.observe(values); }
    at::Tensor state() const override { return bins_.state(); }
    void set_state(const at::Tensor& state) override { bins_.set_state(state); }

    Range range(int64_t levels) const override {
        if (!bins_.seen()) return {};
        return bins_.search([&](const Range& range) { return error(range, levels); });
    }

private:
    double error(const Range& range, int64_t levels) const {
        const auto parameters = affine(range, levels);
        const double lowest = -static_cast<double>(parameters.zero_point);
        const double highest = static_cast<double>(levels - 1) + lowest;
        const double inverse = 1 / parameters.scale;
        double sum = 0, centre = bins_.low() + bins_.width() / 2;
        for (const double count : bins_.counts()) {
            if (count > 0) {
                const double level = std::min(std::max(std::nearbyint(centre * inverse), lowest), highest);
                const double difference = centre - level * parameters.scale;
                sum += count * difference * difference;
            }
            centre += bins_.width();
        }
        return sum;
    }

    Bins bins_;
};

}  // namespace

std::unique_ptr<Observer> histogram(int64_t bins) {
    if (bins < 128 || bins % 2 != 0)
        throw InvalidArgument("quantize.histogram",
                              "bins is " + std::to_string(bins) + ", must be even and at least 128", "Use 2048.");
    return std::make_unique<Histogram>(bins);
}

}  // namespace coppice::quantize
