// score[c] = mean of |x[c]| over the calibration data, where x is what the next layers read (Molchanov et al., arXiv
// 1611.06440, section 2.2, by the mean absolute activation, as not every x comes from a ReLU).
#include "criteria/readers.h"

namespace coppice::prune {
namespace {

class MeanActivation final : public Criterion {
public:
    explicit MeanActivation(ObserveOptions options) : options_(options) {}

    Needs needs() const override {
        Needs needs;
        needs.calibration_data = true;
        return needs;
    }

    std::vector<at::Tensor> scores(const Model& model, const Groups& groups, Context& context) const override {
        return mean_over_maps(
            model, groups, {"prune.mean_activation", options_.batches, options_.batch_size}, context,
            [](const at::Tensor& maps) { return maps.abs().transpose(0, 1).flatten(1).to(at::kDouble).mean(1); });
    }

private:
    const ObserveOptions options_;
};

}  // namespace

std::unique_ptr<Criterion> mean_activation(ObserveOptions options) {
    check_observation("prune.mean_activation", options);
    return std::make_unique<MeanActivation>(options);
}

}  // namespace coppice::prune
