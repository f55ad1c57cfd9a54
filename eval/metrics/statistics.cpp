// Intervals and tests behind the figures. Nothing here knows of models.
#include <coppice/eval.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

namespace coppice::eval {
namespace {

double normal_cdf(double z) {
    return 0.5 * std::erfc(-z / std::sqrt(2.0));
}

// Quantile of the standard normal by bisection: 60 halvings of [-9, 9] reach the last bits, and it is called rarely.
double normal_quantile(double p) {
    double low = -9, high = 9;
    for (int i = 0; i < 60; ++i) {
        const double middle = 0.5 * (low + high);
        (normal_cdf(middle) < p ? low : high) = middle;
    }
    return 0.5 * (low + high);
}

// Quantile of Student's t by Hill's expansion around the normal (CACM 13, 1970): within 1 % from 3 degrees of freedom.
double student_quantile(double p, double freedom) {
    const double z = normal_quantile(p), z3 = z * z * z, z5 = z3 * z * z, z7 = z5 * z * z;
    return z + (z3 + z) / (4 * freedom) + (5 * z5 + 16 * z3 + 3 * z) / (96 * freedom * freedom) +
           (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / (384 * freedom * freedom * freedom);
}

constexpr double kFewBlocks = 20;

// log of the binomial probability of k successes.
double log_binomial(int64_t k, int64_t n, double p) {
    return std::lgamma(n + 1.0) - std::lgamma(k + 1.0) - std::lgamma(n - k + 1.0) + k * std::log(p) +
           (n - k) * std::log1p(-p);
}

}  // namespace

Interval wilson_interval(int64_t successes, int64_t trials, double confidence) {
    if (trials <= 0 || successes < 0 || successes > trials)
        throw InvalidArgument("wilson_interval",
                              std::to_string(successes) + " successes of " + std::to_string(trials) + " trials", "");
    const double z = normal_quantile(0.5 + confidence / 2), n = static_cast<double>(trials), p = successes / n;
    const double centre = (p + z * z / (2 * n)) / (1 + z * z / n);
    const double half = z / (1 + z * z / n) * std::sqrt(p * (1 - p) / n + z * z / (4 * n * n));
    // At 0 and n the bound is the end itself; rounding would put it a hair off.
    return {successes == 0 ? 0 : centre - half, successes == trials ? 1 : centre + half};
}

double mcnemar_p_value(int64_t gained, int64_t lost) {
    const int64_t changed = gained + lost, fewer = std::min(gained, lost);
    if (changed == 0) return 1;
    double tail = 0;
    for (int64_t k = 0; k <= fewer; ++k) tail += std::exp(log_binomial(k, changed, 0.5));
    return std::min(1.0, 2 * tail);
}

double quantile(std::vector<double> values, double q) {
    if (values.empty() || !(q >= 0 && q <= 1)) throw InvalidArgument("quantile", "needs values and q in [0, 1]", "");
    const double place = q * static_cast<double>(values.size() - 1);
    const auto below = static_cast<size_t>(place);
    std::nth_element(values.begin(), values.begin() + below, values.end());
    const double low = values[below];
    if (below + 1 == values.size()) return low;
    const double high = *std::min_element(values.begin() + below + 1, values.end());
    return low + (place - static_cast<double>(below)) * (high - low);
}

int64_t minimum_queries(double q, double confidence) {
    // Smallest n at which at most one value above the q-quantile has probability <= 1 - confidence:
    // q^n + n (1 - q) q^(n-1).
    if (!(q > 0 && q < 1)) throw InvalidArgument("minimum_queries", "q must be in (0, 1)", "");
    for (int64_t n = 1;; ++n) {
        const double tail = std::exp(n * std::log(q)) + n * (1 - q) * std::exp((n - 1) * std::log(q));
        if (tail <= 1 - confidence) return n;
    }
}

std::optional<Interval> quantile_interval(std::vector<double> values, double q, double confidence) {
    const auto n = static_cast<int64_t>(values.size());
    const double tail = (1 - confidence) / 2;
    // The number of values below the q-quantile is binomial(n, q): low is the largest order statistic with at most
    // `tail` below it, high the smallest with at most `tail` above.
    int64_t low = -1, high = -1;
    double cumulative = 0;
    for (int64_t k = 0; k < n; ++k) {
        cumulative += std::exp(log_binomial(k, n, q));
        if (cumulative <= tail) low = k;
        if (high < 0 && cumulative >= 1 - tail) high = k;
    }
    if (low < 0 || high < 0) return std::nullopt;
    std::sort(values.begin(), values.end());
    return Interval{values[low], values[high]};
}

std::optional<Interval> block_bootstrap(int64_t count, int64_t block,
                                        const std::function<double(const std::vector<int64_t>&)>& statistic,
                                        int resamples, uint64_t seed, double confidence) {
    block = std::max<int64_t>(1, block);
    const double blocks = static_cast<double>(count) / static_cast<double>(block);
    if (blocks < 4) return std::nullopt;
    std::mt19937_64 engine(seed);
    std::vector<double> replicates(resamples);
    std::vector<int64_t> indices(count);
    for (auto& replicate : replicates) {
        for (int64_t filled = 0; filled < count;) {
            const auto start = static_cast<int64_t>(engine() % static_cast<uint64_t>(count));
            for (int64_t i = 0; i < block && filled < count; ++i) indices[filled++] = (start + i) % count;
        }
        replicate = statistic(indices);
    }
    // Few blocks make the spread of resamples too narrow by sqrt((n - 1) / n), and their tails those of a normal
    // instead of a t: the percentile is moved out by both (arXiv 1411.5279, section 3.3).
    const double t = student_quantile(0.5 + confidence / 2, blocks - 1), wider = std::sqrt(blocks / (blocks - 1));
    if (blocks < kFewBlocks) {
        // So few values have no tails that could be read off: the standard error of the resamples, with Student's t.
        std::iota(indices.begin(), indices.end(), int64_t{0});
        const double estimate = statistic(indices);
        double sum = 0, squares = 0;
        for (const double replicate : replicates) sum += replicate;
        for (const double replicate : replicates) squares += std::pow(replicate - sum / resamples, 2);
        const double half = t * wider * std::sqrt(squares / resamples);
        return Interval{estimate - half, estimate + half};
    }
    const double tail = normal_cdf(-wider * t);
    return Interval{quantile(replicates, tail), quantile(replicates, 1 - tail)};
}

PairedRatio paired_log_ratio(const std::vector<double>& baseline, const std::vector<double>& candidate, int64_t block,
                             uint64_t seed) {
    if (baseline.size() != candidate.size() || baseline.empty())
        throw InvalidArgument("paired_log_ratio", "needs two series of one length", "");
    std::vector<double> logs(baseline.size());
    for (size_t i = 0; i < logs.size(); ++i) logs[i] = std::log(candidate[i] / baseline[i]);
    // The median: a burst of another program's work hits one member of a few pairs by a factor, and would move a mean.
    std::vector<double> drawn(logs.size());
    const auto median_of = [&](const std::vector<int64_t>& indices) {
        for (size_t i = 0; i < indices.size(); ++i) drawn[i] = logs[indices[i]];
        return quantile(drawn, 0.5);
    };
    const int resamples = logs.size() > 2000 ? 400 : 1000;
    const auto interval = block_bootstrap(static_cast<int64_t>(logs.size()), block, median_of, resamples, seed);
    PairedRatio result;
    result.ratio = std::exp(quantile(logs, 0.5));
    if (interval) result.interval = Interval{std::exp(interval->low), std::exp(interval->high)};
    return result;
}

}  // namespace coppice::eval
