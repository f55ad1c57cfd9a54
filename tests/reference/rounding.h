// Rounding of weights in plain loops, in double.
#pragma once

#include <torch/torch.h>

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

/// Integers of one row rounded from left to right. Before each step the columns still free are the least-squares answer
/// to all that is rounded already: they minimise the quadratic error, found by solving for them from scratch.
inline std::vector<double> rounded_by_least_squares(const std::vector<double>& w, const Matrix& m, double scale,
                                                    double lowest, double highest) {
    const size_t n = w.size();
    std::vector<double> q(n), integers(n);
    for (size_t j = 0; j < n; ++j) {
        std::vector<double> free(w.begin() + static_cast<std::ptrdiff_t>(j), w.end());
        if (j > 0) {
            // M_FF (f - w_F) = M_FQ (w_Q - q_Q)
            Matrix a(n - j, std::vector<double>(n - j));
            std::vector<double> b(n - j, 0);
            for (size_t r = j; r < n; ++r) {
                for (size_t c = j; c < n; ++c) a[r - j][c - j] = m[r][c];
                for (size_t c = 0; c < j; ++c) b[r - j] += m[r][c] * (w[c] - q[c]);
            }
            const auto move = solve(a, b);
            for (size_t c = 0; c < free.size(); ++c) free[c] += move[c];
        }
        integers[j] = std::min(std::max(std::nearbyint(free[0] / scale), lowest), highest);
        q[j] = integers[j] * scale;
    }
    return integers;
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

}  // namespace coppice::reference
