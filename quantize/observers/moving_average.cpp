#include <coppice/error.h>
#include <coppice/quantize.h>

#include "observers/extremes.h"

namespace coppice::quantize {
namespace {

class MovingAverage final : public Observer {
public:
    explicit MovingAverage(double momentum) : momentum_(momentum) {}

    std::unique_ptr<Observer> fresh() const override { return std::make_unique<MovingAverage>(momentum_); }

    void observe(const at::Tensor& values) override {
        const auto seen = extremes(real_values(values));
        if (!seen) return;
        if (range_) {
            range_->low += momentum_ * (seen->low - range_->low);
            range_->high += momentum_ * (seen->high - range_->high);
        } else {
            range_ = *seen;
        }
    }

    Range range(int64_t) const override { return range_.value_or(Range{}); }

    at::Tensor state() const override { return at::tensor(at::ArrayRef<double>(range_state(range_)), at::kDouble); }

    void set_state(const at::Tensor& state) override {
        range_ = range_from(checked_state(state, kRangeState).const_data_ptr<double>());
    }

private:
    const double momentum_;
    std::optional<Range> range_;
};

}  // namespace

std::unique_ptr<Observer> moving_average(double momentum) {
    if (!(momentum > 0 && momentum <= 1))
        throw InvalidArgument("quantize.moving_average",
                              "momentum is " + std::to_string(momentum) + ", must be in (0, 1]", "Use 0.1.");
    return std::make_unique<MovingAverage>(momentum);
}

}  // namespace coppice::quantize
