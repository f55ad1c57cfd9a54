// score[c] = mean over examples of |A|_* - |A without row c|_*, where A [C, length] holds one flattened feature map per
// row and |.|_* is the nuclear norm: how much of the layer's information is in no other channel (Sui et al., arXiv
// 2110.13981, equation 4). Where a channel is a single number per example, the rows are over the examples of a batch.
//
// The nuclear norm comes from the smaller Gram matrix in float64. With C <= length that is A A^T, of which row and
// column c go; else A^T A, from which the outer product of row c is taken away.
#include "criteria/readers.h"

namespace coppice::prune {
namespace {

/// Sum of the square roots of the eigenvalues of symmetric matrices [..., n, n]; rounding may leave them below zero.
at::Tensor sum_of_roots(const at::Tensor& gram) {
    return at::linalg_eigvalsh(gram).clamp_min(0).sqrt().sum(-1);
}

/// Change of the nuclear norm without each row of a [C, length]: [C].
at::Tensor independence(const at::Tensor& a) {
    const int64_t channels = a.size(0), length = a.size(1);
    if (channels <= length) {
        const auto gram = at::matmul(a, a.t());
        const auto keep = 1 - at::eye(channels, at::kDouble);  // [c, row]
        const auto masked = gram.unsqueeze(0) * keep.unsqueeze(1) * keep.unsqueeze(2);
        return sum_of_roots(gram) - sum_of_roots(masked);
    }
    const auto gram = at::matmul(a.t(), a);
    auto change = at::empty({channels}, at::kDouble);
    constexpr int64_t kAtOnce = 64;  // Gram matrices in memory
    for (int64_t begin = 0; begin < channels; begin += kAtOnce) {
        const auto part = a.slice(0, begin, begin + kAtOnce);
        change.slice(0, begin, begin + kAtOnce)
            .copy_(sum_of_roots(gram) - sum_of_roots(gram - part.unsqueeze(2) * part.unsqueeze(1)));
    }
    return change;
}

class Chip final : public Criterion {
public:
    explicit Chip(ObserveOptions options) : options_(options) {}

    Needs needs() const override {
        Needs needs;
        needs.calibration_data = true;
        return needs;
    }

    std::vector<at::Tensor> scores(const Model& model, const Groups& groups, Context& context) const override {
        return mean_over_maps(model, groups, {"prune.chip", options_.batches, options_.batch_size}, context,
                              [](const at::Tensor& maps) {
                                  const auto rows = maps.flatten(2).to(at::kDouble);  // [N, C, length]
                                  if (rows.size(2) == 1)
                                      return independence(rows.squeeze(2).t()) / static_cast<double>(rows.size(0));
                                  auto sum = at::zeros({rows.size(1)}, at::kDouble);
                                  for (int64_t n = 0; n < rows.size(0); ++n) sum += independence(rows[n]);
                                  return sum / static_cast<double>(rows.size(0));
                              });
    }

private:
    const ObserveOptions options_;
};

}  // namespace

std::unique_ptr<Criterion> chip(ObserveOptions options) {
    check_observation("prune.chip", options);
    return std::make_unique<Chip>(options);
}

}  // namespace coppice::prune
