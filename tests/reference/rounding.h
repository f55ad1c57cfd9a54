// Rounding of weights in plain loops, in double.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace coppice::reference {

using Matrix = std::vector<std::vector<double>>;

inline Matrix matrix_of(const at::Tensor& tensor) {
    const auto wide = tensor.to(at::kDouble).contiguous();
    const auto values = wide.accessor<double, 2>();
    Matrix matrix(static_cast<size_t>(wide.size(0)), std::vector<double>(static_cast<size_t>(wide.size(1))));
    for (int64_t r = 0; r < wide.size(0); ++r)
        for (int64_t c = 0; c < wide.size(1); ++c) matrix[size_t(r)][size_t(c)] = values[r][c];
    return matrix;
}

/// x with A x = b, by Gaussian elimination with pivots.
inline std::vector<double> solve(Matrix a, std::vector<double> b) {
    const size_t n = b.size();
    for (size_t i = 0; i < n; ++i) {
        size_t pivot = i;
        for (size_t r = i + 1; r < n; ++r)
            if (std::abs(a[r][i]) > std::abs(a[pivot][i])) pivot = r;
        std::swap(a[i], a[pivot]);
        std::swap(b[i], b[pivot]);
        for (size_t r = i + 1; r < n; ++r) {
            const double factor = a[r][i] / a[i][i];
            for (size_t c = i; c < n; ++c) a[r][c] -= factor * a[i][c];
            b[r] -= factor * b[i];
        }
    }
    std::vector<double> x(n);
    for (size_t i = n; i-- > 0;) {
        double sum = b[i];
        for (size_t c = i + 1; c < n; ++c) sum -= a[i][c] * x[c];
        x[i] = sum / a[i][i];
    }
    return x;
}

/// d^T M d for d = w - q.
inline double quadratic_error(const std::vector<double>& w, const std::vector<double>& q, const Matrix& m) {
    double sum = 0;
    for (size_t i = 0; i < w.size(); ++i)
        for (size_t k = 0; k < w.size(); ++k) sum += (w[i] - q[i]) * m[i][k] * (w[k] - q[k]);
    return sum;
}

/// The least-squares answer of columns j ... to columns 0 ... j - 1 having become q.
inline std::vector<double> least_squares_of_free(const std::vector<double>& w, const Matrix& m,
                                                 const std::vector<double>& q, size_t j) {
    const size_t n = w.size();
    std::vector<double> free(w.begin() + static_cast<std::ptrdiff_t>(j), w.end());
    if (j == 0) return free;
    // M_FF (f - w_F) = M_FQ (w_Q - q_Q)
    Matrix a(n - j, std::vector<double>(n - j));
    std::vector<double> b(n - j, 0);
    for (size_t r = j; r < n; ++r) {
        for (size_t c = j; c < n; ++c) a[r - j][c - j] = m[r][c];
        for (size_t c = 0; c < j; ++c) b[r - j] += m[r][c] * (w[c] - q[c]);
    }
    const auto move = solve(a, b);
    for (size_t c = 0; c < free.size(); ++c) free[c] += move[c];
    return free;
}

/// Integers of one row rounded from left to right. Before each step the columns still free are the least-squares answer
/// to all that is rounded already: they minimise the quadratic error, found by solving for them from scratch.
inline std::vector<double> rounded_by_least_squares(const std::vector<double>& w, const Matrix& m, double scale,
                                                    double lowest, double highest) {
    const size_t n = w.size();
    std::vector<double> q(n), integers(n);
    for (size_t j = 0; j < n; ++j) {
        const auto free = least_squares_of_free(w, m, q, j);
        integers[j] = std::min(std::max(std::nearbyint(free[0] / scale), lowest), highest);
        q[j] = integers[j] * scale;
    }
    return integers;
}

struct GroupedRow {
    std::vector<double> integers, scale, offset;
};

/// The same with a grid per group of columns, which covers the group's weights as they are when its first column's turn
/// comes. @param highest  symmetric: of -highest ... highest, else of 0 ... highest with an offset
inline GroupedRow rounded_in_groups_by_least_squares(const std::vector<double>& w, const Matrix& m, size_t group,
                                                     double highest, bool symmetric) {
    const size_t n = w.size();
    GroupedRow row;
    std::vector<double> q(n);
    for (size_t j = 0; j < n; ++j) {
        const auto free = least_squares_of_free(w, m, q, j);
        if (j % group == 0) {
            double low = free[0], high = free[0];
            for (size_t c = 0; c < group; ++c) {
                low = std::min(low, free[c]);
                high = std::max(high, free[c]);
            }
            const double scale = symmetric ? std::max(high, -low) / highest : (high - low) / highest;
            row.scale.push_back(static_cast<float>(scale));
            row.offset.push_back(symmetric ? 0 : static_cast<float>(low));
        }
        const double integer = std::nearbyint((free[0] - row.offset.back()) / row.scale.back());
        row.integers.push_back(std::min(std::max(integer, symmetric ? -highest : 0.0), highest));
        q[j] = row.integers.back() * row.scale.back() + row.offset.back();
    }
    return row;
}

/// The least quadratic error of one row over all ways to round every weight up or down.
inline double least_error_of_all_roundings(const std::vector<double>& w, const Matrix& m, double scale, double lowest,
                                           double highest) {
    double least = INFINITY;
    for (size_t choice = 0; choice < size_t{1} << w.size(); ++choice) {
        std::vector<double> q(w.size());
        for (size_t i = 0; i < w.size(); ++i) {
            const double level = std::floor(w[i] / scale) + static_cast<double>(choice >> i & 1);
            q[i] = std::min(std::max(level, lowest), highest) * scale;
        }
        least = std::min(least, quadratic_error(w, q, m));
    }
    return least;
}

/// A group of weights on an affine grid: w' = scale * q + offset.
struct Group {
    std::vector<double> w, q;
    double scale = 1, offset = 0, highest = 15;

    void round() {
        for (size_t i = 0; i < w.size(); ++i)
            q[i] = std::min(std::max(std::nearbyint((w[i] - offset) / scale), 0.0), highest);
    }
    double error() const {
        double sum = 0;
        for (size_t i = 0; i < w.size(); ++i) sum += std::abs(w[i] - scale * q[i] - offset);
        return sum / static_cast<double>(w.size());
    }
};

inline Group group_of(std::vector<double> w, double highest) {
    Group group;
    const auto [low, high] = std::minmax_element(w.begin(), w.end());
    group.scale = (*high - *low) / highest;
    group.offset = *low;
    group.highest = highest;
    group.q.resize(w.size());
    group.w = std::move(w);
    group.round();
    return group;
}

/// Offsets by half-quadratic splitting with |x|^0.7, beta = 10 that grows by 1.01: of each group those with the least
/// mean error; ends when no group gets better.
inline void half_quadratic(std::vector<Group>& groups, int steps) {
    auto current = groups;
    double beta = 10;
    for (int step = 0; step < steps; ++step, beta *= 1.01) {
        bool any = false;
        for (size_t g = 0; g < groups.size(); ++g) {
            auto& group = current[g];
            double sum = 0;
            for (size_t i = 0; i < group.w.size(); ++i) {
                const double level = group.scale * group.q[i];
                const double x = (group.w[i] - level - group.offset) / group.scale, size = std::abs(x);
                const double kept = std::max(0.0, size - std::pow(std::max(size, 1e-8), -0.3) / beta);
                sum += group.w[i] - (x < 0 ? -kept : kept) * group.scale - level;
            }
            group.offset = sum / static_cast<double>(group.w.size());
            group.round();
            if (group.error() < groups[g].error()) {
                groups[g] = group;
                any = true;
            }
        }
        if (!any) return;
    }
}

/// Of the exponents i / (candidates - 1) that with the least sum over rows of d^T M d, d = w - Q(w f) / f, where f =
/// magnitude^exponent over its geometric mean and Q rounds rows to +-highest; the first of equals.
inline double best_exponent(const Matrix& rows, const Matrix& m, const std::vector<double>& magnitude, int candidates,
                            double highest, double* least = nullptr) {
    double log_sum = 0;
    for (const double x : magnitude) log_sum += std::log(x);
    const double mean = std::exp(log_sum / static_cast<double>(magnitude.size()));
    double best = 0, smallest = 0;
    for (int i = 0; i < candidates; ++i) {
        const double exponent = static_cast<double>(i) / (candidates - 1);
        double error = 0;
        for (const auto& row : rows) {
            double largest = 0;
            for (size_t c = 0; c < row.size(); ++c)
                largest = std::max(largest, std::abs(row[c]) * std::pow(magnitude[c] / mean, exponent));
            const double scale = largest / highest;
            std::vector<double> rounded(row.size());
            for (size_t c = 0; c < row.size(); ++c) {
                const double factor = std::pow(magnitude[c] / mean, exponent);
                rounded[c] = std::nearbyint(row[c] * factor / scale) * scale / factor;
            }
            error += quadratic_error(row, rounded, m);
        }
        if (i == 0 || error < smallest) {
            smallest = error;
            best = exponent;
        }
    }
    if (least) *least = smallest;
    return best;
}

}  // namespace coppice::reference
