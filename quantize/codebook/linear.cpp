// Equal steps from the smallest to the largest weight: the rare large weights, which matter most, get centroids too.
#include <coppice/quantize.h>

namespace coppice::quantize {
namespace {

class Linear final : public CentroidInit {
public:
    std::vector<double> centroids(const std::vector<double>& sorted, int64_t count, uint64_t) const override {
        std::vector<double> all;
        const double low = sorted.front(), high = sorted.back();
        for (int64_t i = 0; i < count; ++i)
            all.push_back(low + (high - low) * static_cast<double>(i) / static_cast<double>(count - 1));
        return all;
    }
};

}  // namespace

std::unique_ptr<CentroidInit> linear_init() {
    return std::make_unique<Linear>();
}

}  // namespace coppice::quantize
