#include <coppice/prune.h>

namespace coppice::prune {
namespace {

class OneShot final : public Schedule {
public:
    double removed(double, double target) const override { return target; }
    bool at_once() const override { return true; }
};

}  // namespace

std::unique_ptr<Schedule> one_shot() {
    return std::make_unique<OneShot>();
}

}  // namespace coppice::prune
