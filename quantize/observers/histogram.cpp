// A histogram whose range grows by doubling: pairs of bins merge, so that counts stay exact and memory fixed, and
// between half and all of the bins cover what was seen. The range is then the one with the least mean squared error
//
//     sum over bins of count * (centre - dequantize(quantize(centre)))^2
//
// for affine parameters that represent zero exactly. Values that are zero have no error in any candidate and are
// counted apart: half of an activation behind a ReLU would otherwise sit in a bin whose centre is not zero.
#include <ATen/Parallel.h>

#include <cmath>
#include <limits>
#include <mutex>

#include <coppice/error.h>
#include <coppice/quantize.h>

#include "observers/extremes.h"

namespace coppice::quantize {
namespace {

constexpr int64_t kSteps = 128;  // candidates for one end of the range
constexpr int kRounds = 4;       // of shrinking the one end, then the other

class Histogram final : public Observer {
public:
    explicit Histogram(int64_t bins) : counts_(static_cast<size_t>(bins), 0.0) {}

    std::unique_ptr<Observer> fresh() const override {
        return std::make_unique<Histogram>(static_cast<int64_t>(counts_.size()));
    }

    void observe(const at::Tensor& values) override {
        const auto seen = extremes(values);
        if (!seen) return;
        cover(*seen);
        add(values.contiguous());
    }

    Range range(int64_t levels) const override {
        if (!seen_) return {};
        Range best{std::min(seen_->low, 0.0), std::max(seen_->high, 0.0)};
        const Range full = best;
        double least = error(best, levels);
        for (int round = 0; round < kRounds; ++round) {
            const double before = least;
            for (const bool upper : {true, false}) {
                Range candidate = best;
                for (int64_t step = 1; step < kSteps; ++step) {
                    const double share = static_cast<double>(step) / kSteps;
                    (upper ? candidate.high : candidate.low) = share * (upper ? full.high : full.low);
                    const double value = error(candidate, levels);
                    if (value < least) {
                        least = value;
                        best = candidate;
                    }
                }
            }
            if (!(least < before)) break;
        }
        return best;
    }

private:
    void cover(const Range& range) {
        const auto bins = static_cast<double>(counts_.size());
        if (!seen_) {
            seen_ = range;
            low_ = range.low;
            // A constant gets bins that are narrow beside it; they double soon when other values follow.
            const double width = std::max(range.high - range.low, std::max(std::abs(range.low), 1e-20) * 1e-6);
            width_ = width / bins * (1 + 1e-9);
            return;
        }
        seen_ = Range{std::min(seen_->low, range.low), std::max(seen_->high, range.high)};
        while (seen_->high > low_ + width_ * bins) merge(/*upwards=*/true);
        while (seen_->low < low_) merge(/*upwards=*/false);
    }

    /// Doubles the width of the bins. The range grows at its upper end, or at its lower one.
    void merge(bool upwards) {
        const size_t half = counts_.size() / 2;
        std::vector<double> merged(counts_.size(), 0.0);
        for (size_t i = 0; i < half; ++i) merged[upwards ? i : i + half] = counts_[2 * i] + counts_[2 * i + 1];
        if (!upwards) low_ -= width_ * static_cast<double>(counts_.size());
        width_ *= 2;
        counts_ = std::move(merged);
    }

    void add(const at::Tensor& values) {
        const float* data = values.const_data_ptr<float>();
        const double inverse = 1 / width_, low = low_;
        const auto last = static_cast<int64_t>(counts_.size()) - 1;
        std::mutex mutex;
        at::parallel_for(0, values.numel(), 1 << 16, [&](int64_t begin, int64_t end) {
            std::vector<int64_t> local(counts_.size(), 0);
            int64_t zeros = 0;
            for (int64_t i = begin; i < end; ++i) {
                if (data[i] == 0) {
                    ++zeros;
                    continue;
                }
                const auto bin = static_cast<int64_t>((static_cast<double>(data[i]) - low) * inverse);
                ++local[static_cast<size_t>(std::clamp<int64_t>(bin, 0, last))];
            }
            const std::lock_guard<std::mutex> lock(mutex);
            zeros_ += static_cast<double>(zeros);
            for (size_t i = 0; i < local.size(); ++i) counts_[i] += static_cast<double>(local[i]);
        });
    }

    double error(const Range& range, int64_t levels) const {
        const auto parameters = affine(range, levels);
        const double lowest = -static_cast<double>(parameters.zero_point);
        const double highest = static_cast<double>(levels - 1) + lowest;
        const double inverse = 1 / parameters.scale;
        double sum = 0, centre = low_ + width_ / 2;
        for (const double count : counts_) {
            if (count > 0) {
                const double level = std::min(std::max(std::nearbyint(centre * inverse), lowest), highest);
                const double difference = centre - level * parameters.scale;
                sum += count * difference * difference;
            }
            centre += width_;
        }
        return sum;
    }

    std::vector<double> counts_;
    double low_ = 0, width_ = 0, zeros_ = 0;
    std::optional<Range> seen_;
};

}  // namespace

std::unique_ptr<Observer> histogram(int64_t bins) {
    if (bins < 128 || bins % 2 != 0)
        throw InvalidArgument("quantize.histogram",
                              "bins is " + std::to_string(bins) + ", must be even and at least 128", "Use 2048.");
    return std::make_unique<Histogram>(bins);
}

}  // namespace coppice::quantize
