// Pruning criteria and least squares by plain loops in double.
#pragma once

#include <torch/types.h>

#include <cmath>
#include <vector>

namespace coppice::reference {

using Matrix = std::vector<std::vector<double>>;

inline Matrix matrix_of(const at::Tensor& tensor) {
    Matrix m(static_cast<size_t>(tensor.size(0)), std::vector<double>(static_cast<size_t>(tensor.size(1))));
    for (int64_t i = 0; i < tensor.size(0); ++i)
        for (int64_t j = 0; j < tensor.size(1); ++j) m[i][j] = tensor[i][j].item<double>();
    return m;
}

/// Rank by Gaussian elimination with full pivoting; pivots below `tolerance` are zero.
inline int64_t rank(Matrix m, double tolerance = 1e-6) {
    int64_t rank = 0;
    const size_t rows = m.size(), columns = m[0].size();
    std::vector<bool> used(rows, false);
    for (size_t step = 0; step < std::min(rows, columns); ++step) {
        size_t r = 0, c = 0;
        double best = 0;
        for (size_t i = 0; i < rows; ++i)
            for (size_t j = 0; j < columns; ++j)
                if (!used[i] && std::abs(m[i][j]) > best) best = std::abs(m[i][j]), r = i, c = j;
        if (best < tolerance) break;
        used[r] = true;
        ++rank;
        for (size_t i = 0; i < rows; ++i) {
            if (used[i]) continue;
            const double factor = m[i][c] / m[r][c];
            for (size_t j = 0; j < columns; ++j) m[i][j] -= factor * m[r][j];
        }
    }
    return rank;
}

/// Sum of the singular values by one-sided Jacobi rotations of the rows.
inline double nuclear_norm(Matrix m) {
    for (int sweep = 0; sweep < 60; ++sweep)
        for (size_t p = 0; p + 1 < m.size(); ++p)
            for (size_t q = p + 1; q < m.size(); ++q) {
                double pp = 0, qq = 0, pq = 0;
                for (size_t j = 0; j < m[p].size(); ++j)
                    pp += m[p][j] * m[p][j], qq += m[q][j] * m[q][j], pq += m[p][j] * m[q][j];
                if (std::abs(pq) <= 1e-15 * std::sqrt(pp * qq)) continue;
                const double angle = 0.5 * std::atan2(2 * pq, pp - qq);
                for (size_t j = 0; j < m[p].size(); ++j) {
                    const double a = m[p][j], b = m[q][j];
                    m[p][j] = std::cos(angle) * a + std::sin(angle) * b;
                    m[q][j] = std::cos(angle) * b - std::sin(angle) * a;
                }
            }
    double sum = 0;
    for (const auto& row : m) {
        double square = 0;
        for (const double value : row) square += value * value;
        sum += std::sqrt(square);
    }
    return sum;
}

/// Score of LAMP from its definition: p[c] over the sum of all p[d] that come no earlier when sorted.
inline std::vector<double> lamp(const std::vector<double>& p) {
    std::vector<double> scores;
    for (size_t c = 0; c < p.size(); ++c) {
        double sum = 0;
        for (size_t d = 0; d < p.size(); ++d)
            if (p[d] > p[c] || (p[d] == p[c] && d >= c)) sum += p[d];
        scores.push_back(sum > 0 ? p[c] / sum : 0);
    }
    return scores;
}

/// Mean over the rows of |x W^T - x' W'^T|^2, where x' holds the columns `kept` of x and W' those of `weight`.
inline double output_error(const at::Tensor& x, const at::Tensor& weight, const std::vector<bool>& kept) {
    const auto rows = matrix_of(x), w = matrix_of(weight);
    double error = 0;
    for (const auto& row : rows)
        for (const auto& out : w) {
            double missing = 0;
            for (size_t i = 0; i < out.size(); ++i)
                if (!kept[i]) missing += out[i] * row[i];
            error += missing * missing;
        }
    return error / static_cast<double>(rows.size());
}

/// The same with W' fitted anew, by Gram-Schmidt: what of y = x W^T is not in the span of the kept columns.
inline double fitted_error(const at::Tensor& x, const at::Tensor& weight, const std::vector<bool>& kept) {
    const auto rows = matrix_of(x), w = matrix_of(weight);
    const size_t n = rows.size();
    Matrix basis;
    for (size_t i = 0; i < kept.size(); ++i) {
        if (!kept[i]) continue;
        std::vector<double> column(n);
        for (size_t r = 0; r < n; ++r) column[r] = rows[r][i];
        for (int twice = 0; twice < 2; ++twice)
            for (const auto& unit : basis) {
                double dot = 0;
                for (size_t r = 0; r < n; ++r) dot += unit[r] * column[r];
                for (size_t r = 0; r < n; ++r) column[r] -= dot * unit[r];
            }
        double norm = 0;
        for (const double value : column) norm += value * value;
        if (norm < 1e-18) continue;
        for (double& value : column) value /= std::sqrt(norm);
        basis.push_back(column);
    }
    double error = 0;
    for (const auto& out : w) {
        std::vector<double> y(n, 0.0);
        for (size_t r = 0; r < n; ++r)
            for (size_t i = 0; i < out.size(); ++i) y[r] += out[i] * rows[r][i];
        for (const auto& unit : basis) {
            double dot = 0;
            for (size_t r = 0; r < n; ++r) dot += unit[r] * y[r];
            for (size_t r = 0; r < n; ++r) y[r] -= dot * unit[r];
        }
        for (const double value : y) error += value * value;
    }
    return error / static_cast<double>(n);
}

}  // namespace coppice::reference
