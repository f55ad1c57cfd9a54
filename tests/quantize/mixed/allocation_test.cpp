// Allocations against trying everything.
#include <coppice/quantize.h>

#include <cmath>
#include <random>

#include "mixed/upgrades.h"
#include "support/support.h"

namespace coppice::quantize {
namespace {

using Layers = std::vector<std::vector<PrecisionOption>>;

/// Least loss within the budget over all combinations; infinity when none fits.
double least_loss(const Layers& layers, double budget, size_t layer = 0, double cost = 0, double loss = 0) {
    if (cost > budget) return std::numeric_limits<double>::infinity();
    if (layer == layers.size()) return loss;
    double best = std::numeric_limits<double>::infinity();
    for (const auto& option : layers[layer])
        best = std::min(best, least_loss(layers, budget, layer + 1, cost + option.cost, loss + option.loss));
    return best;
}

PrecisionOption sums(const Layers& layers, const std::vector<size_t>& chosen) {
    PrecisionOption sum;
    for (size_t i = 0; i < layers.size(); ++i) {
        sum.cost += layers[i].at(chosen.at(i)).cost;
        sum.loss += layers[i][chosen[i]].loss;
    }
    return sum;
}

/// Options in no order; equal costs, equal losses and dominated ones happen.
Layers random_layers(std::mt19937& random, size_t count) {
    std::uniform_int_distribution<int> options(1, 5), cost(0, 20), loss(0, 12);
    Layers layers(count);
    for (auto& layer : layers)
        for (int i = options(random); i > 0; --i)
            layer.push_back({cost(random) * 1.5, std::pow(2.0, loss(random)) / 64});
    return layers;
}

double cheapest_cost(const Layers& layers) {
    double sum = 0;
    for (const auto& options : layers) {
        double least = options[0].cost;
        for (const auto& option : options) least = std::min(least, option.cost);
        sum += least;
    }
    return sum;
}

TEST(ExactAllocation, FindsTheLeastLossOfAllCombinations) {
    std::mt19937 random(3);
    const auto exact = exact_allocation();
    for (int trial = 0; trial < 200; ++trial) {
        const auto layers = random_layers(random, 6);
        const double least = cheapest_cost(layers);
        for (const double more : {0.0, 3.0, 20.0, 60.0, 1000.0}) {
            const auto sum = sums(layers, exact->choose(layers, least + more));
            EXPECT_LE(sum.cost, least + more);
            // Multiples of 1.5 and of 1/64: sums are exact.
            EXPECT_EQ(sum.loss, least_loss(layers, least + more)) << trial << " " << more;
        }
    }
}

TEST(ExactAllocation, IsNeverWorseThanGreedyAndSometimesBetter) {
    std::mt19937 random(5);
    int better = 0;
    for (int trial = 0; trial < 50; ++trial) {
        const auto layers = random_layers(random, 30);
        const double budget = cheapest_cost(layers) + 120;
        const auto exact = sums(layers, exact_allocation()->choose(layers, budget));
        const auto greedy = sums(layers, greedy_allocation()->choose(layers, budget));
        EXPECT_LE(greedy.cost, budget);
        EXPECT_LE(exact.loss, greedy.loss);
        better += exact.loss < greedy.loss;
    }
    EXPECT_GT(better, 0);
}

TEST(ExactAllocation, SolvesTheKnapsackThatMisleadsGreedy) {
    // Greedy takes the step with 2 saved per cost first and has no room for the one that saves 10.
    const Layers layers = {{{0, 2}, {1, 0}}, {{0, 10}, {10, 0}}};
    EXPECT_EQ(greedy_allocation()->choose(layers, 10), (std::vector<size_t>{1, 0}));
    EXPECT_EQ(exact_allocation()->choose(layers, 10), (std::vector<size_t>{0, 1}));
}

TEST(GreedyAllocation, OfStepsThatCostNothingTakesTheOneThatSavesMost) {
    // All three options of the second layer cost the same; the first layer's step costs.
    const Layers layers = {{{0, 2}, {1, 0}}, {{3, 9}, {3, 6}, {3, 1}, {3, 4}}};
    const auto steps = upgrades(layers, {0, 0}, 100);
    ASSERT_EQ(steps.size(), 2u);
    EXPECT_EQ(steps[0], (std::vector<size_t>{0, 2}));
    EXPECT_EQ(steps[1], (std::vector<size_t>{1, 2}));
}

TEST(Allocations, SayWhatTheCheapestCostsWhenTheBudgetIsTooSmall) {
    const Layers layers = {{{4, 0}, {2, 1}}, {{3, 0}}};
    for (const auto& row : precision_allocations()) {
        Options options(row.name);
        const auto allocation = row.make(options);
        EXPECT_EQ(allocation->choose(layers, 5), (std::vector<size_t>{1, 0})) << row.name;
        EXPECT_ERROR(allocation->choose(layers, 4.5), InvalidArgument, "cheapest precisions cost 5");
        EXPECT_ERROR(allocation->choose(layers, std::nan("")), InvalidArgument, "Raise the budget");
    }
    EXPECT_ERROR(exact_allocation(0), InvalidArgument, "at least 1");
}

TEST(ExactAllocation, GivesUpInsteadOfGuessingWhenItNeedsTooManyStates) {
    std::mt19937 random(7);
    const auto layers = random_layers(random, 40);
    EXPECT_ERROR(exact_allocation(3)->choose(layers, cheapest_cost(layers) + 100), UnsupportedModel,
                 "more than 3 states");
}

}  // namespace
}  // namespace coppice::quantize
