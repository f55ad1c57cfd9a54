// A histogram whose range grows by doubling: pairs of bins merge, so that counts stay exact and memory fixed, and
// between half and all of the bins cover what was seen. Values that are zero are counted apart: they have no error in
// any range that holds zero, and half of an activation behind a ReLU would otherwise sit in a bin whose centre is not.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <mutex>

#include "observers/extremes.h"

namespace coppice::quantize {

class Bins {
public:
    explicit Bins(int64_t bins) : counts_(static_cast<size_t>(bins), 0.0) {}

    void observe(const at::Tensor& given) {
        const auto values = real_values(given);
        const auto seen = extremes(values);
        if (!seen) return;
        cover(*seen);
        add(values.contiguous());
    }

    const std::optional<Range>& seen() const { return seen_; }
    const std::vector<double>& counts() const { return counts_; }
    double low() const { return low_; }
    double width() const { return width_; }
    double zeros() const { return zeros_; }
    int64_t size() const { return static_cast<int64_t>(counts_.size()); }

    /// float64 [kRangeState + 3 + bins]: what was seen, where the bins lie, zeros, counts.
    at::Tensor state() const {
        std::vector<double> all;
        for (const double value : range_state(seen_)) all.push_back(value);
        all.insert(all.end(), {low_, width_, zeros_});
        all.insert(all.end(), counts_.begin(), counts_.end());
        return at::tensor(all, at::kDouble);
    }

    void set_state(const at::Tensor& given) {
        const auto state = checked_state(given, kRangeState + 3 + size());
        const auto* values = state.const_data_ptr<double>();
        seen_ = range_from(values);
        low_ = values[kRangeState];
        width_ = values[kRangeState + 1];
        zeros_ = values[kRangeState + 2];
        std::copy_n(values + kRangeState + 3, counts_.size(), counts_.begin());
    }

    /// The best range that `error` finds: either end shrinks on a grid of steps, alternately, until none is better.
    template <typename Error>
    Range search(const Error& error) const {
        constexpr int64_t kSteps = 128;  // candidates for one end of the range
        constexpr int kRounds = 4;       // of shrinking the one end, then the other
        Range best{std::min(seen_->low, 0.0), std::max(seen_->high, 0.0)};
        const Range full = best;
        double least = error(best);
        for (int round = 0; round < kRounds; ++round) {
            const double before = least;
            for (const bool upper : {true, false}) {
                Range candidate = best;
                for (int64_t step = 1; step < kSteps; ++step) {
                    const double share = static_cast<double>(step) / kSteps;
                    (upper ? candidate.high : candidate.low) = share * (upper ? full.high : full.low);
                    const double value = error(candidate);
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
            // Without branches on the value, which after a ReLU is zero half of the time at random; several tables, so
            // that neighbours of one bin do not wait for one another.
            constexpr int64_t kTables = 4;
            std::vector<int64_t> local(kTables * counts_.size(), 0);
            std::array<int64_t*, kTables> table;
            for (size_t k = 0; k < kTables; ++k) table[k] = local.data() + k * counts_.size();
            int64_t zeros = 0;
            const auto count = [&](int64_t i, int64_t* of) {
                const int64_t zero = data[i] == 0;
                const auto bin = static_cast<int64_t>((static_cast<double>(data[i]) - low) * inverse);
                zeros += zero;
                of[std::clamp<int64_t>(bin, 0, last)] += 1 - zero;
            };
            int64_t i = begin;
            for (; i + kTables <= end; i += kTables)
                for (size_t k = 0; k < kTables; ++k) count(i + static_cast<int64_t>(k), table[k]);
            for (; i < end; ++i) count(i, table[0]);
            const std::lock_guard<std::mutex> lock(mutex);
            zeros_ += static_cast<double>(zeros);
            for (size_t k = 0; k < kTables; ++k)
                for (size_t bin = 0; bin < counts_.size(); ++bin) counts_[bin] += static_cast<double>(table[k][bin]);
        });
    }

    std::vector<double> counts_;
    double low_ = 0, width_ = 0, zeros_ = 0;
    std::optional<Range> seen_;
};

}  // namespace coppice::quantize
