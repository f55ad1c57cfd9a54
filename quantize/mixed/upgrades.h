// Steps from cheap precisions to exact ones.
#pragma once

#include <coppice/quantize.h>

namespace coppice::quantize {

/// Of each layer the cheapest option, of equal ones the one with the least loss.
std::vector<size_t> cheapest(const std::vector<std::vector<PrecisionOption>>& layers);

/// The sums over the chosen options.
PrecisionOption sum_of(const std::vector<std::vector<PrecisionOption>>& layers, const std::vector<size_t>& chosen);

/// Choices after each step from `start`: every step takes the option of one layer that saves the most loss per cost
/// among those with which the sum of costs stays within `budget`, until none saves anything. Without a budget, from
/// cheapest(), these are the points of the Pareto front on its convex hull.
std::vector<std::vector<size_t>> upgrades(const std::vector<std::vector<PrecisionOption>>& layers,
                                          std::vector<size_t> start, double budget);

/// @throws InvalidArgument when there is a layer without options, or the cheapest exceed the budget
void check_budget(const std::vector<std::vector<PrecisionOption>>& layers, double budget);

}  // namespace coppice::quantize
