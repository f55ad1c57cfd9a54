/// Metrics that are a function of sums over examples: of hits per class, of squares, of confidence per bin. Sums can be
/// taken again over any resample, so all of these get their interval, and the one of a difference, by one bootstrap.
#pragma once

#include <coppice/eval.h>

namespace coppice::eval {

class SumsMetric : public Metric {
public:
    Figure result() const override;
    Json paired(const Metric& baseline) const override;

protected:
    explicit SumsMetric(std::string name, std::string unit) : name_(std::move(name)), unit_(std::move(unit)) {}

    /// What one example adds, as (index of the sum, value) pairs; others get 0.
    using Row = std::vector<std::pair<int64_t, double>>;
    void keep(Row row);
    /// The metric from its sums; NaN where it is not defined, with undefined() as the reason.
    virtual double value(const std::vector<double>& sums) const = 0;
    virtual std::string undefined() const { return "it is not defined on these examples"; }
    virtual std::string how() const = 0;

    const std::string name_, unit_;

private:
    std::vector<double> sums_of(const std::vector<Row>& units, const std::vector<int64_t>& indices) const;
    std::vector<Row> units() const;
    std::vector<Row> rows_;
    int64_t width_ = 0;
};

/// @throws InvalidArgument naming the metric and both shapes
[[noreturn]] void throw_shapes(const std::string& metric, const at::Tensor& output, const at::Tensor& target,
                               const std::string& fix);
/// Scores with classes last [N, ..., C], and class indices [N, ...] in [0, C).
std::pair<at::Tensor, at::Tensor> class_scores(const std::string& metric, const at::Tensor& output, const Batch& batch);

}  // namespace coppice::eval
