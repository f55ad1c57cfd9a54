// k-means of numbers. On a line a cluster is a run of the sorted weights, so a step of Lloyd's algorithm needs only the
// k - 1 borders (by bisection, at the midpoints of neighbouring centroids) and differences of prefix sums.
#include <algorithm>

#include <coppice/error.h>
#include <coppice/quantize.h>

namespace coppice::quantize {
namespace {

/// First index of each cluster, and the end: count + 1 of them.
std::vector<size_t> borders_of(const std::vector<double>& sorted, const std::vector<double>& centroids) {
    std::vector<size_t> borders = {0};
    for (size_t i = 0; i + 1 < centroids.size(); ++i) {
        const double middle = (centroids[i] + centroids[i + 1]) / 2;
        borders.push_back(static_cast<size_t>(std::lower_bound(sorted.begin(), sorted.end(), middle) - sorted.begin()));
    }
    borders.push_back(sorted.size());
    return borders;
}

std::vector<double> lloyd(const std::vector<double>& sorted, std::vector<double> centroids, int64_t iterations) {
    std::vector<double> sums = {0};
    for (const double value : sorted) sums.push_back(sums.back() + value);
    std::vector<size_t> known;
    for (int64_t step = 0; step < iterations; ++step) {
        const auto borders = borders_of(sorted, centroids);
        if (borders == known) break;
        for (size_t i = 0; i < centroids.size(); ++i) {
            const size_t first = borders[i], end = borders[i + 1];
            // A cluster without weights keeps its centroid.
            if (end > first) centroids[i] = (sums[end] - sums[first]) / static_cast<double>(end - first);
        }
        std::sort(centroids.begin(), centroids.end());
        known = borders;
    }
    return centroids;
}

}  // namespace

Codebook cluster(const at::Tensor& weight, int64_t count, const CentroidInit& init, int64_t iterations, uint64_t seed) {
    if (count < 2 || count > 256)
        throw InvalidArgument("quantize.codebook", "a codebook of " + std::to_string(count) + " entries",
                              "An index has 1 to 8 bits: use 2 to 256.");
    if (weight.numel() == 0) throw InvalidArgument("quantize.codebook", "a weight without elements", "");
    if (!weight.isfinite().all().item<bool>())
        throw UnsupportedModel("quantize.codebook", "a weight holds NaN or infinity", "Check the checkpoint.");
    const auto flat = weight.detach().to(at::kDouble).contiguous().view({-1});
    const auto* values = flat.data_ptr<double>();
    std::vector<double> all(values, values + flat.numel());
    std::sort(all.begin(), all.end());
    std::vector<double> centroids = all;
    centroids.erase(std::unique(centroids.begin(), centroids.end()), centroids.end());
    if (static_cast<int64_t>(centroids.size()) > count) {
        // Weights that pruning made zero stay zero, as in the paper; a few accidental zeros are weights like others.
        const auto zeros = std::equal_range(all.begin(), all.end(), 0.0);
        const bool pruned = (zeros.second - zeros.first) * count >= static_cast<int64_t>(all.size()) && count > 2;
        if (pruned) all.erase(zeros.first, zeros.second);
        centroids = lloyd(all, init.centroids(all, pruned ? count - 1 : count, seed), iterations);
        if (pruned) centroids.insert(std::lower_bound(centroids.begin(), centroids.end(), 0.0), 0.0);
    }
    // Weights are compared with the centroids as they are stored.
    Codebook book;
    book.values = at::tensor(centroids, at::kDouble).to(at::kFloat);
    const auto stored = book.values.to(at::kDouble);
    const auto middles = (stored.slice(0, 1) + stored.slice(0, 0, -1)) / 2;
    auto indices = at::bucketize(flat, middles, false, /*right=*/true);
    if (const auto zero = std::find(centroids.begin(), centroids.end(), 0.0); zero != centroids.end())
        indices.masked_fill_(flat == 0, static_cast<int64_t>(zero - centroids.begin()));
    book.indices = indices.to(at::kByte).view(weight.sizes());
    return book;
}

at::Tensor Codebook::weights() const {
    return values.index_select(0, indices.view({-1}).to(at::kInt)).view(indices.sizes());
}

}  // namespace coppice::quantize
