// strength * sum of |gamma| over the batch-norm scales of channels that can go (arXiv 1708.06519, equation 1, with the
// subgradient sign(gamma)). Scales of channels that must stay are left alone.
#include "regularisers/regularisers.h"

namespace coppice::prune {
namespace {

class SlimmingPenalty final : public Penalty {
public:
    struct Scale {
        at::Tensor parameter;
        at::Tensor belongs;  // 1 where the index is a channel that can go, else 0
    };

    SlimmingPenalty(std::vector<Scale> scales, double strength) : scales_(std::move(scales)), strength_(strength) {}

    void add_gradients() override {
        torch::NoGradGuard no_grad;
        for (const auto& scale : scales_)
            add_gradient(scale.parameter, strength_ * scale.parameter.detach().sign() * scale.belongs);
    }

    double value() const override {
        torch::NoGradGuard no_grad;
        double sum = 0;
        for (const auto& scale : scales_)
            sum += (scale.parameter.detach().abs() * scale.belongs).sum(at::kDouble).item<double>();
        return strength_ * sum;
    }

private:
    const std::vector<Scale> scales_;
    const double strength_;
};

class Slimming final : public Regulariser {
public:
    explicit Slimming(double strength) : strength_(strength) {}

    std::unique_ptr<Penalty> bind(const Model& model, const Groups& groups, Context&) const override {
        std::set<std::string> names;
        for (auto* node : all_nodes(*model.graph()))
            if (const auto view = as_batch_norm(node); view && view->affine)
                if (const auto name = attribute_name(view->weight)) names.insert(*name);
        std::map<std::string, SlimmingPenalty::Scale> scales;
        for (const auto& group : groups.all())
            for (const auto& slice : group.slices) {
                if (!names.count(slice.name) || !slice.parameter) continue;
                auto& scale = scales[slice.name];
                if (!scale.belongs.defined()) {
                    scale.parameter = slice.tensor;
                    scale.belongs = at::zeros_like(slice.tensor.detach());
                }
                const auto here = at::tensor(slice.channel_of, at::kLong).ge(0);
                scale.belongs.masked_fill_(here.to(scale.belongs.device()), 1);
            }
        if (scales.empty())
            throw UnsupportedModel("prune.bn_slimming", "no channel that can go is scaled by a batch norm",
                                   "Use regulariser group_norm or group_lasso.");
        std::vector<SlimmingPenalty::Scale> list;
        for (auto& [name, scale] : scales) list.push_back(std::move(scale));
        return std::make_unique<SlimmingPenalty>(std::move(list), strength_);
    }

private:
    const double strength_;
};

}  // namespace

std::unique_ptr<Regulariser> bn_slimming(double strength) {
    check_strength("prune.bn_slimming", "strength", strength);
    return std::make_unique<Slimming>(strength);
}

}  // namespace coppice::prune
