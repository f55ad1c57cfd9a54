// The least score per unit of cost saved goes first. The loss of a group at a width is the sum of the (comparable)
// scores of the channels that are gone, as in the knapsack of HALP (arXiv 2110.10811), solved greedily here.
#include "allocation/allocation.h"

namespace coppice::prune {
namespace {

class Greedy final : public Allocation {
public:
    explicit Greedy(Normaliser normaliser) : normaliser_(normaliser) {}

    Removal allocate(const Groups& groups, const std::vector<at::Tensor>& scores, const CostModel& cost,
                     const Target& target) const override {
        check_scores(groups, scores);
        std::vector<std::vector<double>> lost;  // [group][channels gone]
        for (const auto& score : normalised(scores, normaliser_)) {
            const auto sums = std::get<0>(score.sort()).cumsum(0).contiguous();
            lost.push_back({0});
            lost.back().insert(lost.back().end(), sums.data_ptr<double>(), sums.data_ptr<double>() + sums.numel());
        }
        const auto kept = descend(groups, cost, target, [&](size_t g, int64_t width) {
            return lost[g][static_cast<size_t>(groups.all()[g].channels - width)];
        });
        return lowest(groups, scores, kept);
    }

private:
    const Normaliser normaliser_;
};

}  // namespace

std::unique_ptr<Allocation> greedy(Normaliser normaliser) {
    return std::make_unique<Greedy>(normaliser);
}

}  // namespace coppice::prune
