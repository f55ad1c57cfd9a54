// The same share of every group. With a target in multiply-adds, the share that meets it.
#include "allocation/allocation.h"

namespace coppice::prune {
namespace {

class Uniform final : public Allocation {
public:
    Removal allocate(const Groups& groups, const std::vector<at::Tensor>& scores, const CostModel& cost,
                     const Target& target) const override {
        check_scores(groups, scores);
        const auto kept = meet(groups, cost, target, [&](double share) {
            std::vector<double> ideal;
            for (const auto& group : groups.all()) ideal.push_back((1 - share) * static_cast<double>(group.channels));
            return ideal;
        });
        return lowest(groups, scores, kept);
    }
};

}  // namespace

std::unique_ptr<Allocation> uniform() {
    return std::make_unique<Uniform>();
}

}  // namespace coppice::prune
