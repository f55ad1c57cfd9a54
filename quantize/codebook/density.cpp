// Quantiles: the cumulative distribution is cut into equal steps, centroids lie where most weights do.
#include <coppice/quantize.h>

namespace coppice::quantize {
namespace {

class Density final : public CentroidInit {
public:
    std::vector<double> centroids(const std::vector<double>& sorted, int64_t count, uint64_t) const override {
        std::vector<double> all;
        for (int64_t i = 0; i < count; ++i) {
            const double place = (static_cast<double>(i) + 0.5) / static_cast<double>(count);
            all.push_back(sorted[static_cast<size_t>(place * static_cast<double>(sorted.size()))]);
        }
        return all;
    }
};

}  // namespace

std::unique_ptr<CentroidInit> density_init() {
    return std::make_unique<Density>();
}

}  // namespace coppice::quantize
