// At most n of m neighbours along the inputs of an output differ from zero: 2:4 is what sparse tensor cores take
// (Mishra et al., arXiv 2104.08378). In a convolution the neighbours are m input channels at one tap.
#include "weights/weights.h"

namespace coppice::prune {
namespace {

class NOfM final : public WeightPattern {
public:
    NOfM(int64_t n, int64_t m) : n_(n), m_(m) {}

    std::string name() const override { return std::to_string(n_) + ":" + std::to_string(m_); }
    int64_t columns() const override { return m_; }
    std::optional<double> sparsity() const override { return 1 - static_cast<double>(n_) / static_cast<double>(m_); }
    at::Tensor keep(const at::Tensor& scores, double, bool) const override {
        return lowest_mask(scores.reshape({-1, m_}), m_ - n_).logical_not().reshape(scores.sizes());
    }

private:
    const int64_t n_, m_;
};

}  // namespace

std::unique_ptr<WeightPattern> n_of_m(int64_t n, int64_t m) {
    if (n < 1 || m < 2 || n >= m)
        throw InvalidArgument("prune.weight",
                              "pattern " + std::to_string(n) + ":" + std::to_string(m) +
                                  " must keep at least one weight of each group and not all",
                              "2:4 keeps two of four.");
    return std::make_unique<NOfM>(n, m);
}

}  // namespace coppice::prune
