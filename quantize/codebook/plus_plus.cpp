// k-means++ (Arthur and Vassilvitskii 2007): the first centroid is a random weight, each further one a weight drawn
// with a probability proportional to its squared distance from the nearest centroid so far.
#include <algorithm>
#include <limits>
#include <random>

#include <coppice/quantize.h>

namespace coppice::quantize {
namespace {

class PlusPlus final : public CentroidInit {
public:
    std::vector<double> centroids(const std::vector<double>& sorted, int64_t count, uint64_t seed) const override {
        std::mt19937_64 random(seed);
        // Draws by hand: the distributions of the standard library differ between implementations.
        const auto uniform = [&] { return static_cast<double>(random() >> 11) * 0x1p-53; };
        std::vector<double> all = {sorted[static_cast<size_t>(uniform() * static_cast<double>(sorted.size()))]};
        std::vector<double> distance(sorted.size(), std::numeric_limits<double>::infinity()), sums(sorted.size());
        while (static_cast<int64_t>(all.size()) < count) {
            double sum = 0;
            for (size_t i = 0; i < sorted.size(); ++i) {
                const double d = sorted[i] - all.back();
                distance[i] = std::min(distance[i], d * d);
                sums[i] = sum += distance[i];
            }
            const auto drawn = std::upper_bound(sums.begin(), sums.end(), uniform() * sum);
            all.push_back(sorted[static_cast<size_t>(std::min(drawn, sums.end() - 1) - sums.begin())]);
        }
        std::sort(all.begin(), all.end());
        return all;
    }
};

}  // namespace

std::unique_ptr<CentroidInit> plus_plus_init() {
    return std::make_unique<PlusPlus>();
}

}  // namespace coppice::quantize
