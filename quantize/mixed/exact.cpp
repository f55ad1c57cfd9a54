// The multiple-choice knapsack, solved exactly: one option per layer, least loss within the budget.
//
// Dynamic programming over undominated pairs (cost, loss) of the layers so far, as Nemhauser and Ullmann (1969), with
// what branch and bound adds: a pair goes when it cannot beat the greedy solution even if the layers to come were
// chosen by the linear relaxation, whose optimum walks along the layers' convex hulls (Sinha and Zoltners 1979). Costs
// and losses stay real numbers: nothing is rounded to a grid.
#include <cmath>
#include <limits>

#include <coppice/error.h>

#include "mixed/upgrades.h"

namespace coppice::quantize {
namespace {

constexpr const char* kWhere = "quantize.mixed";

using Layers = std::vector<std::vector<PrecisionOption>>;

/// Least loss of the layers from `first` on when options may be mixed in fractions.
class Relaxation {
public:
    Relaxation(const Layers& layers, size_t first) {
        struct Step {
            double cost, loss;
        };
        std::vector<Step> steps;
        for (size_t layer = first; layer < layers.size(); ++layer) {
            const auto hull = lower_hull(layers[layer]);
            least_cost_ += hull[0].cost;
            loss_ += hull[0].loss;
            for (size_t i = 1; i < hull.size(); ++i)
                steps.push_back({hull[i].cost - hull[i - 1].cost, hull[i - 1].loss - hull[i].loss});
        }
        std::sort(steps.begin(), steps.end(),
                  [](const Step& a, const Step& b) { return a.loss * b.cost > b.loss * a.cost; });
        costs_.push_back(0);
        savings_.push_back(0);
        for (const auto& step : steps) {
            costs_.push_back(costs_.back() + step.cost);
            savings_.push_back(savings_.back() + step.loss);
        }
    }

    double least_loss(double budget) const {
        double left = budget - least_cost_;
        // The sums were made in another order than the budget's.
        if (left < -1e-9 * least_cost_) return std::numeric_limits<double>::infinity();
        left = std::max(left, 0.0);
        const auto above = std::upper_bound(costs_.begin(), costs_.end(), left);
        const auto i = static_cast<size_t>(above - costs_.begin()) - 1;
        double saved = savings_[i];
        if (i + 1 < costs_.size())
            saved += (savings_[i + 1] - savings_[i]) * (left - costs_[i]) / (costs_[i + 1] - costs_[i]);
        return loss_ - saved;
    }

    /// Options that are best for some price of cost, from cheap to exact.
    static std::vector<PrecisionOption> lower_hull(std::vector<PrecisionOption> options) {
        std::sort(options.begin(), options.end(), [](const PrecisionOption& a, const PrecisionOption& b) {
            return std::pair(a.cost, a.loss) < std::pair(b.cost, b.loss);
        });
        std::vector<PrecisionOption> hull;
        for (const auto& option : options) {
            if (!hull.empty() && option.loss >= hull.back().loss) continue;
            while (hull.size() > 1) {
                const auto &a = hull[hull.size() - 2], &b = hull.back();
                if ((a.loss - b.loss) * (option.cost - b.cost) > (b.loss - option.loss) * (b.cost - a.cost)) break;
                hull.pop_back();
            }
            hull.push_back(option);
        }
        return hull;
    }

private:
    double least_cost_ = 0, loss_ = 0;
    std::vector<double> costs_, savings_;  // sums over the steps taken, most saving per cost first
};

class Exact final : public PrecisionAllocation {
public:
    explicit Exact(int64_t states) : states_(states) {}

    std::vector<size_t> choose(const Layers& layers, double budget) const override {
        check_budget(layers, budget);
        const auto known = greedy_allocation()->choose(layers, budget);
        const double to_beat = sum_of(layers, known).loss;
        struct State {
            double cost, loss;
            size_t parent, option;
        };
        std::vector<std::vector<State>> all(1);
        all[0].push_back({0, 0, 0, 0});
        int64_t made = 0;
        for (size_t layer = 0; layer < layers.size(); ++layer) {
            const Relaxation rest(layers, layer + 1);
            std::vector<State> next;
            for (size_t parent = 0; parent < all[layer].size(); ++parent)
                for (size_t option = 0; option < layers[layer].size(); ++option) {
                    const auto& add = layers[layer][option];
                    const State state{all[layer][parent].cost + add.cost, all[layer][parent].loss + add.loss, parent,
                                      option};
                    if (state.cost <= budget && state.loss + rest.least_loss(budget - state.cost) < to_beat)
                        next.push_back(state);
                }
            std::sort(next.begin(), next.end(), [](const State& a, const State& b) {
                return std::pair(a.cost, a.loss) < std::pair(b.cost, b.loss);
            });
            auto& kept = all.emplace_back();
            for (const auto& state : next)
                if (kept.empty() || state.loss < kept.back().loss) kept.push_back(state);
            made += static_cast<int64_t>(kept.size());
            if (made > states_)
                throw UnsupportedModel(kWhere,
                                       "the exact allocation needs more than " + std::to_string(states_) + " states",
                                       "Use allocation greedy, fewer precisions, or more states.");
            if (kept.empty()) return known;
        }
        std::vector<size_t> chosen(layers.size());
        size_t at = all.back().size() - 1;  // the costliest has the least loss
        for (size_t layer = layers.size(); layer-- > 0;) {
            chosen[layer] = all[layer + 1][at].option;
            at = all[layer + 1][at].parent;
        }
        return chosen;
    }

private:
    const int64_t states_;
};

}  // namespace

std::unique_ptr<PrecisionAllocation> exact_allocation(int64_t states) {
    if (states < 1)
        throw InvalidArgument(kWhere, "states is " + std::to_string(states) + ", must be at least 1", "Use 5000000.");
    return std::make_unique<Exact>(states);
}

}  // namespace coppice::quantize
