#include <limits>

#include <coppice/error.h>

#include "mixed/upgrades.h"

namespace coppice::quantize {

namespace {

using Layers = std::vector<std::vector<PrecisionOption>>;

class Greedy final : public PrecisionAllocation {
public:
    std::vector<size_t> choose(const Layers& layers, double budget) const override {
        check_budget(layers, budget);
        const auto start = cheapest(layers);
        const auto steps = upgrades(layers, start, budget);
        return steps.empty() ? start : steps.back();
    }
};

}  // namespace

std::vector<size_t> cheapest(const Layers& layers) {
    std::vector<size_t> chosen;
    for (const auto& options : layers) {
        size_t best = 0;
        for (size_t i = 1; i < options.size(); ++i)
            if (std::pair(options[i].cost, options[i].loss) < std::pair(options[best].cost, options[best].loss))
                best = i;
        chosen.push_back(best);
    }
    return chosen;
}

PrecisionOption sum_of(const Layers& layers, const std::vector<size_t>& chosen) {
    PrecisionOption sum;
    for (size_t i = 0; i < layers.size(); ++i) {
        sum.cost += layers[i][chosen[i]].cost;
        sum.loss += layers[i][chosen[i]].loss;
    }
    return sum;
}

std::vector<std::vector<size_t>> upgrades(const Layers& layers, std::vector<size_t> start, double budget) {
    std::vector<std::vector<size_t>> steps;
    auto chosen = std::move(start);
    double cost = sum_of(layers, chosen).cost;
    for (;;) {
        // Rate, and what is saved: of several that cost nothing the one saving most.
        std::pair<double, double> best{0, 0};
        size_t best_layer = layers.size(), best_option = 0;
        for (size_t layer = 0; layer < layers.size(); ++layer) {
            const auto& now = layers[layer][chosen[layer]];
            for (size_t i = 0; i < layers[layer].size(); ++i) {
                const auto& option = layers[layer][i];
                const double saved = now.loss - option.loss, added = option.cost - now.cost;
                if (!(saved > 0) || cost + added > budget) continue;
                const double rate = added > 0 ? saved / added : std::numeric_limits<double>::infinity();
                if (std::pair(rate, saved) > best) {
                    best = {rate, saved};
                    best_layer = layer;
                    best_option = i;
                }
            }
        }
        if (best_layer == layers.size()) return steps;
        cost += layers[best_layer][best_option].cost - layers[best_layer][chosen[best_layer]].cost;
        chosen[best_layer] = best_option;
        steps.push_back(chosen);
    }
}

void check_budget(const Layers& layers, double budget) {
    for (const auto& options : layers)
        if (options.empty()) throw InvalidArgument("quantize.mixed", "a layer has no precision", "Give it float.");
    const double least = sum_of(layers, cheapest(layers)).cost;
    if (!(budget >= least))
        throw InvalidArgument("quantize.mixed",
                              c10::str("the budget is ", budget, ", the cheapest precisions cost ", least),
                              "Raise the budget, or allow precisions that cost less.");
}

std::unique_ptr<PrecisionAllocation> greedy_allocation() {
    return std::make_unique<Greedy>();
}

}  // namespace coppice::quantize
