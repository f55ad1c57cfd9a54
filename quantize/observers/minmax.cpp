#include <coppice/error.h>
#include <coppice/quantize.h>

#include "observers/extremes.h"

namespace coppice::quantize {
namespace {

class MinMax final : public Observer {
public:
    std::unique_ptr<Observer> fresh() const override { return std::make_unique<MinMax>(); }

    void observe(const at::Tensor& values) override {
        const auto seen = extremes(real_values(values));
        if (!seen) return;
        range_ = range_ ? Range{std::min(range_->low, seen->low), std::max(range_->high, seen->high)} : *seen;
    }

    Range range(int64_t) const override { return range_.value_or(Range{}); }

    at::Tensor state() const override { return at::tensor(at::ArrayRef<double>(range_state(range_)), at::kDouble); }

    void set_state(const at::Tensor& state) override {
        range_ = range_from(checked_state(state, kRangeState).const_data_ptr<double>());
    }

private:
    std::optional<Range> range_;
};

}  // namespace

std::unique_ptr<Observer> minmax() {
    return std::make_unique<MinMax>();
}

}  // namespace coppice::quantize
