#include <coppice/prune.h>

namespace coppice::prune {
namespace {

class Linear final : public Schedule {
public:
    double removed(double time, double target) const override { return target * time; }
};

}  // namespace

std::unique_ptr<Schedule> linear() {
    return std::make_unique<Linear>();
}

}  // namespace coppice::prune
