// Weights drawn at random without repetition (Forgy).
#include <algorithm>
#include <random>

#include <coppice/quantize.h>

namespace coppice::quantize {
namespace {

class Random final : public CentroidInit {
public:
    std::vector<double> centroids(const std::vector<double>& sorted, int64_t count, uint64_t seed) const override {
        std::mt19937_64 random(seed);
        std::vector<double> pool = sorted, all;
        // The first steps of a Fisher-Yates shuffle: no weight is drawn twice.
        for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
            std::swap(pool[i], pool[i + random() % (pool.size() - i)]);
            all.push_back(pool[i]);
        }
        std::sort(all.begin(), all.end());
        return all;
    }
};

}  // namespace

std::unique_ptr<CentroidInit> random_init() {
    return std::make_unique<Random>();
}

}  // namespace coppice::quantize
