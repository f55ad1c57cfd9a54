// score[i, j] = |W[i, j]|: what is small changes little when it goes, if all inputs are alike.
#include "weights/weights.h"

namespace coppice::prune {
namespace {

class WeightMagnitude final : public WeightCriterion {
public:
    at::Tensor scores(const WeightMatrix& matrix) const override { return matrix.weight.abs(); }
};

}  // namespace

std::unique_ptr<WeightCriterion> weight_magnitude() {
    return std::make_unique<WeightMagnitude>();
}

}  // namespace coppice::prune
