// Fake quantization and its gradients as plain loops over one scale's values, from the papers' formulas.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

namespace coppice::testing {

struct FakeQuantized {
    std::vector<double> values, by_value;
    double by_scale = 0, by_offset = 0;  ///< by_scale: by the clipping value for pact
};

/// Eq. 3 of arXiv 1902.08153; with an offset eq. 3 and 4 of arXiv 2004.09576. @param count  values of the gradient
/// scale
inline FakeQuantized step_loop(const std::vector<double>& x, const std::vector<double>& g, double s, double b,
                               double lowest, double highest, double count) {
    FakeQuantized result;
    for (size_t i = 0; i < x.size(); ++i) {
        const double v = (x[i] - b) / s;
        const bool below = v<lowest, above = v> highest;
        const double q = below ? lowest : above ? highest : std::nearbyint(v);
        result.values.push_back(q * s + b);
        result.by_value.push_back(below || above ? 0 : g[i]);
        result.by_scale += g[i] * (below || above ? q : q - v);
        result.by_offset += below || above ? g[i] : 0;
    }
    result.by_scale /= std::sqrt(count * highest);
    result.by_offset /= std::sqrt(count * highest);
    return result;
}

/// Eq. 1 to 3 of arXiv 1805.06085; with `both`, the clipping value bounds negative values as well.
inline FakeQuantized pact_loop(const std::vector<double>& x, const std::vector<double>& g, double a, double highest,
                               bool both) {
    FakeQuantized result;
    for (size_t i = 0; i < x.size(); ++i) {
        const double clipped = std::clamp(x[i], both ? -a : 0, a);
        result.values.push_back(std::nearbyint(clipped * highest / a) * a / highest);
        const bool above = x[i] >= a, below = both ? x[i] <= -a : x[i] < 0;
        result.by_value.push_back(above || below ? 0 : g[i]);
        result.by_scale += above ? g[i] : both && below ? -g[i] : 0;
    }
    return result;
}

}  // namespace coppice::testing
