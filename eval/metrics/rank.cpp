// Spearman's rank correlation: Pearson's correlation of the ranks, ties sharing their mean rank.
#include <cmath>
#include <numeric>

#include "metrics/quality.h"

namespace coppice::eval {
namespace {

std::vector<double> plain(const at::Tensor& values) {
    const auto flat = values.to(at::kDouble).flatten().contiguous();
    return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

std::vector<double> ranks(const std::vector<double>& values) {
    std::vector<size_t> order(values.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return values[a] < values[b]; });
    std::vector<double> result(values.size());
    for (size_t first = 0; first < order.size();) {
        size_t end = first + 1;
        while (end < order.size() && values[order[end]] == values[order[first]]) ++end;
        for (size_t i = first; i < end; ++i) result[order[i]] = 0.5 * static_cast<double>(first + 1 + end);
        first = end;
    }
    return result;
}

double correlation(const std::vector<double>& a, const std::vector<double>& b) {
    const auto count = static_cast<double>(a.size());
    const double mean_a = std::accumulate(a.begin(), a.end(), 0.0) / count;
    const double mean_b = std::accumulate(b.begin(), b.end(), 0.0) / count;
    double ab = 0, aa = 0, bb = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        ab += (a[i] - mean_a) * (b[i] - mean_b);
        aa += (a[i] - mean_a) * (a[i] - mean_a);
        bb += (b[i] - mean_b) * (b[i] - mean_b);
    }
    return aa > 0 && bb > 0 ? ab / std::sqrt(aa * bb) : 0;
}

std::vector<double> picked(const std::vector<double>& values, const std::vector<int64_t>& indices) {
    std::vector<double> result(indices.size());
    for (size_t i = 0; i < indices.size(); ++i) result[i] = values[indices[i]];
    return result;
}

constexpr size_t kBootstrapLimit = 5000;  // 1000 resamples of more take too long; the normal law is close by then

class Spearman final : public Metric {
public:
    bool higher_is_better() const override { return true; }

    void add(const at::Tensor& output, const Batch& batch) override {
        const auto values = batch.pairs ? pair_similarities(output) : output.flatten();
        if (values.numel() != batch.target.numel())
            throw InvalidArgument(
                "metric spearman",
                std::to_string(values.numel()) + " values for " + std::to_string(batch.target.numel()) + " targets",
                "One output, or one pair of outputs, per target is expected.");
        if (values.isnan().any().item<bool>())
            throw InvalidArgument("metric spearman", "the output holds NaN", "NaN has no rank; check the model.");
        for (const double value : plain(values)) values_.push_back(value);
        for (const double target : plain(batch.target)) targets_.push_back(target);
    }

    Figure result() const override {
        if (values_.size() < 2)
            throw InvalidArgument("metric spearman", "there are fewer than 2 examples", "Give more data.");
        const double value = correlation(ranks(values_), ranks(targets_));
        const auto count = static_cast<double>(values_.size());
        std::optional<Interval> interval;
        std::string how = "bootstrap over examples";
        if (values_.size() <= kBootstrapLimit) {
            interval =
                block_bootstrap(static_cast<int64_t>(values_.size()), 1, [&](const std::vector<int64_t>& indices) {
                    return correlation(ranks(picked(values_, indices)), ranks(picked(targets_, indices)));
                });
        } else if (std::abs(value) < 1) {
            // Fisher's z with the variance of Bonett & Wright (Psychometrika 65, 2000).
            const double z = std::atanh(value), error = std::sqrt((1 + value * value / 2) / (count - 3));
            interval = Interval{std::tanh(z - 1.96 * error), std::tanh(z + 1.96 * error)};
            how = "interval by Fisher's z";
        }
        return Figure::measured(
            value, "1", "rank correlation over " + std::to_string(values_.size()) + " examples, " + how, interval);
    }

    Json paired(const Metric& baseline) const override {
        const auto* other = dynamic_cast<const Spearman*>(&baseline);
        if (!other || other->targets_ != targets_) return nullptr;
        Json json = {{"difference", correlation(ranks(values_), ranks(targets_)) -
                                        correlation(ranks(other->values_), ranks(targets_))}};
        if (values_.size() > kBootstrapLimit) return json;
        const auto interval =
            block_bootstrap(static_cast<int64_t>(values_.size()), 1, [&](const std::vector<int64_t>& indices) {
                const auto targets = ranks(picked(targets_, indices));
                return correlation(ranks(picked(values_, indices)), targets) -
                       correlation(ranks(picked(other->values_, indices)), targets);
            });
        if (interval) json["interval"] = {interval->low, interval->high};
        return json;
    }

private:
    std::vector<double> values_, targets_;
};

}  // namespace

at::Tensor pair_similarities(const at::Tensor& output) {
    if (output.dim() < 1 || output.size(0) % 2 != 0)
        throw InvalidArgument("pairs", "the output has an odd number of rows", "Two rows per pair are expected.");
    const auto rows = output.flatten(1).reshape({output.size(0) / 2, 2, -1});
    return (rows.select(1, 0) * rows.select(1, 1)).sum(1);
}

at::Tensor ranks_of(const at::Tensor& values) {
    return at::tensor(ranks(plain(values)), at::kDouble);
}

double correlation_of(const at::Tensor& a, const at::Tensor& b) {
    return correlation(plain(a), plain(b));
}

std::unique_ptr<Metric> spearman() {
    return std::make_unique<Spearman>();
}

}  // namespace coppice::eval
