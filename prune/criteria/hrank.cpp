// score[c] = mean rank of the channel's feature map over the calibration examples (Lin et al., arXiv 2002.10179): a map
// of low rank carries little. The rank is numerical, of float32 with LibTorch's default tolerance.
// A map is a matrix: height x width of a convolution's output, indices x positions where a channel stands for several
// indices (the head of an attention layer: width x tokens). Where one example gives no more than a vector (tokens of a
// transformer, samples of a one-dimensional convolution), the vectors of a batch are the rows of one matrix; a single
// number per example has rank 1 and tells nothing, which a warning says.
#include "criteria/readers.h"

namespace coppice::prune {
namespace {

class HRank final : public Criterion {
public:
    explicit HRank(ObserveOptions options) : options_(options) {}

    Needs needs() const override {
        Needs needs;
        needs.calibration_data = true;
        return needs;
    }

    std::vector<at::Tensor> scores(const Model& model, const Groups& groups, Context& context) const override {
        auto scores = mean_over_maps(model, groups, {"prune.hrank", options_.batches, options_.batch_size}, context,
                                     [](const at::Tensor& maps) { return ranks(maps); });
        warn_about_ties("prune.hrank", groups, scores, context);
        return scores;
    }

private:
    /// maps [N, C, m, ...] -> [C]
    static at::Tensor ranks(const at::Tensor& maps) {
        auto sizes = maps.sizes().vec();
        sizes.erase(std::remove(sizes.begin() + 2, sizes.end(), 1), sizes.end());
        const std::optional<double> tolerance;  // LibTorch's default
        auto matrices = maps.to(at::kFloat);
        matrices = sizes.size() < 4 ? matrices.transpose(0, 1).flatten(2)  // [C, N, length]
                                    : matrices.reshape({sizes[0], sizes[1], -1, sizes.back()});
        const auto rank = at::linalg_matrix_rank(matrices, tolerance, tolerance).to(at::kDouble);
        return rank.dim() == 1 ? rank : rank.mean(0);
    }

    const ObserveOptions options_;
};

}  // namespace

std::unique_ptr<Criterion> hrank(ObserveOptions options) {
    check_observation("prune.hrank", options);
    return std::make_unique<HRank>(options);
}

}  // namespace coppice::prune
