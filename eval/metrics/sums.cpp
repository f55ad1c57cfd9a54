#include "metrics/sums.h"

#include <cmath>
#include <numeric>

namespace coppice::eval {
namespace {

// A resample costs as much as there are rows: neighbours are merged into at most this many.
constexpr size_t kUnits = 4000;

int64_t block_of(size_t units) {
    // As for means: neighbours may overlap (windows of a series), so blocks of sqrt(N) are drawn together.
    return static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(units))));
}

}  // namespace

void throw_shapes(const std::string& metric, const at::Tensor& output, const at::Tensor& target,
                  const std::string& fix) {
    std::ostringstream problem;
    problem << "output " << output.sizes() << " and target " << target.sizes() << " (" << target.scalar_type()
            << ") do not fit";
    throw InvalidArgument("metric " + metric, problem.str(), fix);
}

std::pair<at::Tensor, at::Tensor> class_scores(const std::string& metric, const at::Tensor& output,
                                               const Batch& batch) {
    const std::string fix = "Scores [N, C, ...] and class indices [N, ...] or probabilities [N, C] are expected.";
    if (batch.pairs || output.dim() < 2) throw_shapes(metric, output, batch.target, fix);
    auto target = batch.target;
    if (target.is_floating_point() && target.sizes() == output.sizes()) target = target.argmax(1);
    const auto scores = output.movedim(1, -1).to(at::kDouble).contiguous();
    if (target.is_floating_point() || target.sizes() != scores.sizes().slice(0, scores.dim() - 1))
        throw_shapes(metric, output, batch.target, fix);
    target = target.to(at::kLong).contiguous();
    const auto classes = output.size(1);
    if (target.numel() > 0 && (target.min().item<int64_t>() < 0 || target.max().item<int64_t>() >= classes))
        throw InvalidArgument("metric " + metric,
                              "a target is outside [0, " + std::to_string(classes) + "), the model's classes",
                              "Check that data and model belong together.");
    return {scores, target};
}

void SumsMetric::keep(Row row) {
    for (const auto& [index, value] : row) width_ = std::max(width_, index + 1);
    rows_.push_back(std::move(row));
}

std::vector<SumsMetric::Row> SumsMetric::units() const {
    if (rows_.size() <= kUnits) return rows_;
    const size_t length = (rows_.size() + kUnits - 1) / kUnits;
    std::vector<Row> merged;
    for (size_t first = 0; first < rows_.size(); first += length) {
        std::map<int64_t, double> sums;
        for (size_t i = first; i < std::min(rows_.size(), first + length); ++i)
            for (const auto& [index, value] : rows_[i]) sums[index] += value;
        merged.emplace_back(sums.begin(), sums.end());
    }
    return merged;
}

std::vector<double> SumsMetric::sums_of(const std::vector<Row>& units, const std::vector<int64_t>& indices) const {
    std::vector<double> sums(width_);
    for (const auto unit : indices)
        for (const auto& [index, value] : units[unit]) sums[index] += value;
    return sums;
}

Figure SumsMetric::result() const {
    if (rows_.empty())
        throw InvalidArgument("metric " + name_, "there is no example", "Give a dataset that is not empty.");
    const auto all = units();
    std::vector<int64_t> every(all.size());
    std::iota(every.begin(), every.end(), int64_t{0});
    const double estimate = value(sums_of(all, every));
    if (!std::isfinite(estimate)) return Figure::unavailable(unit_, undefined());
    auto interval = block_bootstrap(
        static_cast<int64_t>(all.size()), block_of(all.size()), [&](const std::vector<int64_t>& indices) {
            const double resampled = value(sums_of(all, indices));
            return std::isfinite(resampled) ? resampled : estimate;  // a resample without some class
        });
    // Where resampling adds bias (calibration error), the estimate itself may lie outside.
    if (interval) interval = Interval{std::min(interval->low, estimate), std::max(interval->high, estimate)};
    return Figure::measured(estimate, unit_,
                            how() + ", " + std::to_string(rows_.size()) + " examples, bootstrap over blocks", interval);
}

Json SumsMetric::paired(const Metric& baseline) const {
    const auto* other = dynamic_cast<const SumsMetric*>(&baseline);
    if (!other || other->name_ != name_ || other->rows_.size() != rows_.size()) return nullptr;
    const auto own = units(), theirs = other->units();
    std::vector<int64_t> every(own.size());
    std::iota(every.begin(), every.end(), int64_t{0});
    const auto difference = [&](const std::vector<int64_t>& indices) {
        return value(sums_of(own, indices)) - other->value(other->sums_of(theirs, indices));
    };
    const double estimate = difference(every);
    if (!std::isfinite(estimate)) return nullptr;
    Json json = {{"difference", estimate}};
    const auto interval = block_bootstrap(static_cast<int64_t>(own.size()), block_of(own.size()),
                                          [&](const std::vector<int64_t>& indices) {
                                              const double resampled = difference(indices);
                                              return std::isfinite(resampled) ? resampled : estimate;
                                          });
    if (interval) json["interval"] = {interval->low, interval->high};
    return json;
}

}  // namespace coppice::eval
