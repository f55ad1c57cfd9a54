// score[c] = 1 - APoZ[c], where APoZ is the average percentage of zeros among the channel's activations: a unit that is
// mostly silent says little (Hu et al., arXiv 1607.03250, equation 1). The activations are those that the next layers
// read. Made for networks with ReLU: where nothing is ever exactly zero all channels score 1, and a warning says so.
#include "criteria/readers.h"

namespace coppice::prune {
namespace {

class Apoz final : public Criterion {
public:
    explicit Apoz(ObserveOptions options) : options_(options) {}

    Needs needs() const override {
        Needs needs;
        needs.calibration_data = true;
        return needs;
    }

    std::vector<at::Tensor> scores(const Model& model, const Groups& groups, Context& context) const override {
        auto scores = mean_over_maps(model, groups, {"prune.apoz", options_.batches, options_.batch_size}, context,
                                     [](const at::Tensor& maps) {
                                         return maps.ne(0).transpose(0, 1).flatten(1).to(at::kDouble).mean(1);  // [C]
                                     });
        warn_about_ties("prune.apoz", groups, scores, context);
        return scores;
    }

private:
    const ObserveOptions options_;
};

}  // namespace

std::unique_ptr<Criterion> apoz(ObserveOptions options) {
    check_observation("prune.apoz", options);
    return std::make_unique<Apoz>(options);
}

}  // namespace coppice::prune
