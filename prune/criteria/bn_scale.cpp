// score[c] = mean over the batch norms of the group of |gamma[c]|: after a batch norm every channel has the same scale,
// gamma alone tells how much of it goes on (network slimming, Liu et al., arXiv 1708.06519). The mean, not the sum, so
// that groups along a residual trunk, which several batch norms scale, compare with groups that one scales.
#include "criteria/criteria.h"

#include <set>

namespace coppice::prune {
namespace {

constexpr const char* kWhere = "prune.bn_scale";

class BatchNormScale final : public Criterion {
public:
    explicit BatchNormScale(bool magnitude_elsewhere) : magnitude_elsewhere_(magnitude_elsewhere) {}

    std::vector<at::Tensor> scores(const Model& model, const Groups& groups, Context& context) const override {
        torch::NoGradGuard no_grad;
        std::set<std::string> gammas;
        if (model.defined())
            for (auto* node : all_nodes(*model.graph()))
                if (const auto view = as_batch_norm(node); view && view->affine)
                    if (const auto name = attribute_name(view->weight)) gammas.insert(*name);
        std::vector<at::Tensor> scores, elsewhere;
        PowerSums power_sum(1, kWhere);
        for (size_t g = 0; g < groups.all().size(); ++g) {
            const auto& group = groups.all()[g];
            auto sum = at::zeros({group.channels}, at::kDouble);
            int64_t count = 0;
            for (const auto& slice : group.slices) {
                if (!gammas.count(slice.name)) continue;
                sum += power_sum(slice, group.channels);
                ++count;
            }
            if (count > 0) {
                scores.push_back(sum / static_cast<double>(count));
                continue;
            }
            if (!magnitude_elsewhere_)
                throw UnsupportedModel(std::string(kWhere) + " at " + group.name, "no batch norm scales its channels",
                                       "Use elsewhere: magnitude to rank such layers by their weights, or another "
                                       "criterion.");
            if (elsewhere.empty()) elsewhere = magnitude()->scores(model, groups, context);
            scores.push_back(elsewhere[g]);
        }
        return scores;
    }

private:
    const bool magnitude_elsewhere_;
};

}  // namespace

std::unique_ptr<Criterion> bn_scale(bool magnitude_elsewhere) {
    return std::make_unique<BatchNormScale>(magnitude_elsewhere);
}

}  // namespace coppice::prune
