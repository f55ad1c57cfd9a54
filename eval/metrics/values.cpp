// Metrics of regression beyond mean errors.
#include <cmath>
#include <limits>

#include "metrics/quality.h"
#include "metrics/sums.h"

namespace coppice::eval {
namespace {

constexpr double kUndefined = std::numeric_limits<double>::quiet_NaN();

// Output and target as float64 [N, values per example].
std::pair<at::Tensor, at::Tensor> value_rows(const std::string& metric, const at::Tensor& output, const Batch& batch) {
    const auto values = batch.pairs ? pair_similarities(output) : output;
    if (values.dim() < 1 || batch.target.dim() < 1 || values.size(0) != batch.target.size(0) ||
        values.numel() != batch.target.numel())
        throw_shapes(metric, output, batch.target, "One value per target is expected.");
    const int64_t count = values.size(0);
    return {values.to(at::kDouble).reshape({count, -1}), batch.target.to(at::kDouble).reshape({count, -1})};
}

// Share of the targets' variance that the outputs explain, over all values together: 1 - sum e^2 / sum (t - mean t)^2.
class R2 final : public SumsMetric {
public:
    R2() : SumsMetric("r2", "1") {}
    bool higher_is_better() const override { return true; }

    void add(const at::Tensor& output, const Batch& batch) override {
        const auto [values, target] = value_rows(name_, output, batch);
        // Squares of values far from 0 would cancel: all are taken from the first batch's mean.
        if (!centre_) centre_ = target.mean().item<double>();
        const auto shifted = target - *centre_;
        const auto errors = (values - target).square().sum(1), sums = shifted.sum(1), squares = shifted.square().sum(1);
        for (int64_t i = 0; i < target.size(0); ++i)
            keep({{0, static_cast<double>(target.size(1))},
                  {1, errors[i].item<double>()},
                  {2, sums[i].item<double>()},
                  {3, squares[i].item<double>()}});
    }

protected:
    std::string how() const override { return "1 - squared error / variance of the targets"; }
    std::string undefined() const override { return "the targets are all equal"; }
    double value(const std::vector<double>& sums) const override {
        const double spread = sums[3] - sums[2] * sums[2] / sums[0];
        return spread > 0 ? 1 - sums[1] / spread : kUndefined;
    }

private:
    std::optional<double> centre_;
};

// Mean of |error / target|, as a ratio.
class Mape final : public SumsMetric {
public:
    Mape() : SumsMetric("mape", "ratio") {}
    bool higher_is_better() const override { return false; }
    double points(double value) const override { return -100 * value; }

    void add(const at::Tensor& output, const Batch& batch) override {
        const auto [values, target] = value_rows(name_, output, batch);
        const auto ratios = ((values - target) / target).abs().sum(1);
        for (int64_t i = 0; i < target.size(0); ++i)
            keep({{0, static_cast<double>(target.size(1))}, {1, ratios[i].item<double>()}});
    }

protected:
    std::string how() const override { return "mean of |error / target|"; }
    std::string undefined() const override { return "a target is 0, from which no error is a share"; }
    double value(const std::vector<double>& sums) const override { return sums[1] / sums[0]; }
};

class Pearson final : public SumsMetric {
public:
    Pearson() : SumsMetric("pearson", "1") {}
    bool higher_is_better() const override { return true; }

    void add(const at::Tensor& output, const Batch& batch) override {
        auto [values, target] = value_rows(name_, output, batch);
        if (!centre_) centre_ = {values.mean().item<double>(), target.mean().item<double>()};
        values = values - centre_->first;
        target = target - centre_->second;
        const at::Tensor parts[] = {values, target, values.square(), target.square(), values * target};
        for (int64_t i = 0; i < target.size(0); ++i) {
            Row row = {{0, static_cast<double>(target.size(1))}};
            for (int64_t k = 0; k < 5; ++k) row.emplace_back(k + 1, parts[k][i].sum().item<double>());
            keep(std::move(row));
        }
    }

protected:
    std::string how() const override { return "Pearson's correlation"; }
    std::string undefined() const override { return "outputs or targets are all equal"; }
    double value(const std::vector<double>& sums) const override {
        const double n = sums[0], x = sums[1] / n, y = sums[2] / n;
        const double xx = sums[3] / n - x * x, yy = sums[4] / n - y * y;
        return xx > 0 && yy > 0 ? (sums[5] / n - x * y) / std::sqrt(xx * yy) : kUndefined;
    }

private:
    std::optional<std::pair<double, double>> centre_;
};

}  // namespace

std::unique_ptr<Metric> mape() {
    return std::make_unique<Mape>();
}
std::unique_ptr<Metric> pearson() {
    return std::make_unique<Pearson>();
}
std::unique_ptr<Metric> r2() {
    return std::make_unique<R2>();
}

}  // namespace coppice::eval
