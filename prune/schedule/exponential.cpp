// What is left shrinks by the same factor in equal times: (1 - target)^t.
#include <coppice/prune.h>

#include <cmath>

namespace coppice::prune {
namespace {

class Exponential final : public Schedule {
public:
    double removed(double time, double target) const override {
        // The end is met exactly, whatever pow() rounds.
        return time >= 1 ? target : 1 - std::pow(1 - target, time);
    }
};

}  // namespace

std::unique_ptr<Schedule> exponential() {
    return std::make_unique<Exponential>();
}

}  // namespace coppice::prune
