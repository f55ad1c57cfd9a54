// score[i, j] = |W[i, j]| * ||x_j||_2 (Sun et al., arXiv 2306.11695, equation 1), where x_j are the values of input j
// over the calibration data; for a convolution, of input channel and tap j over all output positions. Weights that stay
// are not changed.
#include "weights/weights.h"

namespace coppice::prune {
namespace {

class Wanda final : public WeightCriterion {
public:
    Needs needs() const override {
        Needs needs;
        needs.calibration_data = true;
        return needs;
    }
    InputStatistic inputs() const override { return InputStatistic::kSquares; }
    at::Tensor scores(const WeightMatrix& matrix) const override {
        return matrix.weight.abs() * matrix.squares.sqrt().unsqueeze(1);
    }
};

}  // namespace

std::unique_ptr<WeightCriterion> weight_wanda() {
    return std::make_unique<Wanda>();
}

}  // namespace coppice::prune
