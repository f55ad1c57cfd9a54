// s_t = s_f + (s_i - s_f) (1 - t)^3 (Zhu and Gupta, arXiv 1710.01878, equation 1).
#include <coppice/error.h>
#include <coppice/prune.h>

#include <cmath>

namespace coppice::prune {
namespace {

class Cubic final : public Schedule {
public:
    explicit Cubic(double initial) : initial_(initial) {}

    double removed(double time, double target) const override {
        return target + (initial_ * target - target) * std::pow(1 - time, 3);
    }

private:
    const double initial_;
};

}  // namespace

std::unique_ptr<Schedule> cubic(double initial) {
    if (!(initial >= 0 && initial <= 1))
        throw InvalidArgument("prune.cubic", "initial is " + Json(initial).dump() + ", must be in [0, 1]",
                              "0 starts from nothing.");
    return std::make_unique<Cubic>(initial);
}

}  // namespace coppice::prune
