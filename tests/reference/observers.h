// Calibration by divergence in plain loops, from the values themselves.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace coppice::reference {

/// Counts of the values that are not zero in equal bins from the smallest to the largest.
struct Histogram {
    double low = 0, width = 0;
    std::vector<double> counts;
    double centre(size_t i) const { return low + width * (static_cast<double>(i) + 0.5); }
};

inline Histogram histogram_of(const std::vector<float>& values, size_t bins) {
    Histogram histogram;
    histogram.low = *std::min_element(values.begin(), values.end());
    histogram.width = (*std::max_element(values.begin(), values.end()) - histogram.low) / double(bins);
    histogram.counts.assign(bins, 0);
    for (const double x : values)
        if (x != 0) ++histogram.counts[std::min(bins - 1, size_t((x - histogram.low) / histogram.width))];
    return histogram;
}

/// sum of P log(P / Q): P is the histogram with what lies outside [low, high] moved into the outermost bins inside, Q
/// spreads what was inside over each integer's bins that hold anything, both with sum 1.
inline double divergence(const Histogram& histogram, double low, double high, int levels = 256) {
    low = std::min(low, 0.0);
    high = std::max(high, 0.0);
    const double scale = (high - low) / (levels - 1), zero = std::nearbyint(-low / scale);
    std::vector<size_t> inside;
    for (size_t i = 0; i < histogram.counts.size(); ++i)
        if (histogram.centre(i) >= low - histogram.width / 2 && histogram.centre(i) <= high + histogram.width / 2)
            inside.push_back(i);
    std::vector<double> p, q;
    std::vector<int> integer;
    double outside_low = 0, outside_high = 0, sum_p = 0, sum_q = 0;
    for (size_t i = 0; i < inside.front(); ++i) outside_low += histogram.counts[i];
    for (size_t i = inside.back() + 1; i < histogram.counts.size(); ++i) outside_high += histogram.counts[i];
    for (const size_t i : inside) {
        p.push_back(histogram.counts[i]);
        const double rounded = std::nearbyint(histogram.centre(i) / scale) + zero;
        integer.push_back(int(std::min(std::max(rounded, 0.0), levels - 1.0)));
    }
    for (size_t i = 0; i < p.size(); ++i) {
        double mass = 0, used = 0;
        for (size_t k = 0; k < p.size(); ++k)
            if (integer[k] == integer[i] && p[k] > 0) {
                mass += p[k];
                ++used;
            }
        // A bin that gets mass from outside alone stands for one value.
        q.push_back(p[i] > 0 ? mass / used : 1);
        sum_q += p[i];
    }
    p.front() += outside_low;
    p.back() += outside_high;
    for (const double x : p) sum_p += x;
    double sum = 0;
    for (size_t i = 0; i < p.size(); ++i)
        if (p[i] > 0) sum += p[i] / sum_p * std::log(p[i] / sum_p / (q[i] / sum_q));
    return sum;
}

}  // namespace coppice::reference
