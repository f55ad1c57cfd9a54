// Interleaved timing of several models that compute the same.
#pragma once

#include <functional>
#include <vector>

#include <coppice/model.h>

namespace coppice {

struct Interval {
    double median = 0, low = 0, high = 0;  // 95 %, from order statistics: no assumption on the distribution
};

// @param values at least 6, below which no 95 % interval of the median exists
Interval median_interval(std::vector<double> values);

// seconds[model][inputs][round]: one call each
using RoundTimes = std::vector<std::vector<std::vector<double>>>;

// Calls every model on every input set once per round, in a new random order each round, so that drift of the machine
// hits all alike. A sample is as many calls as take about 5 ms. Stops after `seconds`, but not before 6 rounds, and at
// 101.
// @param interrupted polled between rounds; true ends measuring with what there is
RoundTimes interleaved_times(std::vector<torch::jit::Module>& models, const std::vector<Inputs>& input_sets,
                             double seconds, uint64_t seed, const std::function<bool()>& interrupted);

// The model to keep.
struct Choice {
    size_t best = 0;
    std::vector<Interval> ratio;       // of each model's time to the first one's, the geometric mean over input sets
    std::vector<std::string> reasons;  // "slower than", "not faster beyond noise than"; empty for the best
    std::vector<size_t> rivals;        // whom a reason speaks of
};

// From first (simplest) to last: a model replaces the best so far when the interval of the paired ratio of their times
// lies below 1 - least_gain. Ratios are taken within a round, so that what slows the machine for a while cancels.
Choice choose_fastest(const RoundTimes& times, double least_gain);

// Seconds of one call after one warm-up call.
double seconds_of_call(torch::jit::Module& model, const Inputs& inputs);

}  // namespace coppice
