#include "weights/weights.h"

namespace coppice::prune {
namespace {

class Unstructured final : public WeightPattern {
public:
    std::string name() const override { return "unstructured"; }
};

}  // namespace

std::unique_ptr<WeightPattern> unstructured() {
    return std::make_unique<Unstructured>();
}

}  // namespace coppice::prune
