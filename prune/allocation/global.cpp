// One ranking over the channels of all groups, scores made comparable first (arXiv 2301.12900, section 3.3).
#include "allocation/allocation.h"

namespace coppice::prune {
namespace {

class Global final : public Allocation {
public:
    explicit Global(Normaliser normaliser) : normaliser_(normaliser) {}

    Removal allocate(const Groups& groups, const std::vector<at::Tensor>& scores, const CostModel& cost,
                     const Target& target) const override {
        check_scores(groups, scores);
        const auto wanted = ranked(normalised(scores, normaliser_), allowed_widths(groups, target),
                                   std::vector<size_t>(scores.size(), 0));
        return lowest(groups, scores, meet(groups, cost, target, wanted));
    }

private:
    const Normaliser normaliser_;
};

}  // namespace

std::unique_ptr<Allocation> global(Normaliser normaliser) {
    return std::make_unique<Global>(normaliser);
}

}  // namespace coppice::prune
