// Smallest r with sum_{i <= r} s_i^2 >= keep * sum_i s_i^2: the squared error is at most 1 - keep of the weight's
// squared norm.
#include <coppice/lowrank.h>

namespace coppice::lowrank {
namespace {

class Energy final : public RankRule {
public:
    explicit Energy(double keep) : keep_(keep) {}

    int64_t rank(const RankQuestion& question) const override {
        const auto& values = question.singular_values;
        const auto full = static_cast<int64_t>(values.size());
        if (keep_ >= 1) return full;  // a sum of rounded squares could stop short of it
        double total = 0, kept = 0;
        for (const double value : values) total += value * value;
        int64_t rank = 0;
        while (rank < full && (rank == 0 || kept < keep_ * total)) {
            kept += values[static_cast<size_t>(rank)] * values[static_cast<size_t>(rank)];
            ++rank;
        }
        return rank;
    }

private:
    const double keep_;
};

}  // namespace

std::unique_ptr<RankRule> energy(double keep) {
    if (!(keep > 0 && keep <= 1))
        throw InvalidArgument("lowrank.energy", "keep is " + Json(keep).dump() + ", must be in (0, 1]",
                              "Use 0.9 to keep nine tenths of the squared singular values.");
    return std::make_unique<Energy>(keep);
}

}  // namespace coppice::lowrank
