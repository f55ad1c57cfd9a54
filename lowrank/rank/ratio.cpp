// Largest r with r * cost_per_rank <= keep * cost: every layer gets the same share of what it cost.
#include <coppice/lowrank.h>

#include <cmath>

namespace coppice::lowrank {
namespace {

class Ratio final : public RankRule {
public:
    Ratio(double keep, bool of_macs) : keep_(keep), of_macs_(of_macs) {}

    int64_t rank(const RankQuestion& question) const override {
        const auto full = static_cast<int64_t>(question.singular_values.size());
        if (keep_ >= 1) return full;
        const double cost = of_macs_ ? question.macs : question.parameters;
        const double per_rank = of_macs_ ? question.macs_per_rank : question.parameters_per_rank;
        return std::clamp<int64_t>(static_cast<int64_t>(std::floor(keep_ * cost / per_rank)), 1, full);
    }

private:
    const double keep_;
    const bool of_macs_;
};

}  // namespace

std::unique_ptr<RankRule> ratio(double keep, const std::string& of) {
    if (!(keep > 0 && keep <= 1))
        throw InvalidArgument("lowrank.ratio", "keep is " + Json(keep).dump() + ", must be in (0, 1]",
                              "Use 0.5 to keep half.");
    if (of != "macs" && of != "parameters")
        throw InvalidArgument("lowrank.ratio", "of is \"" + of + "\", must be macs or parameters", "");
    return std::make_unique<Ratio>(keep, of == "macs");
}

}  // namespace coppice::lowrank
