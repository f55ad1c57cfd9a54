// The weight that two low-rank factors stand for, by plain loops in double.
#pragma once

#include <torch/types.h>

namespace coppice::reference {

/// W[o, i] = sum_r U[o, r] V[r, i]
inline at::Tensor linear_of_factors(const at::Tensor& v, const at::Tensor& u) {
    auto w = at::zeros({u.size(0), v.size(1)}, at::kDouble);
    const auto first = v.to(at::kDouble), second = u.to(at::kDouble);
    const auto f = first.accessor<double, 2>(), s = second.accessor<double, 2>();
    auto result = w.accessor<double, 2>();
    for (int64_t o = 0; o < u.size(0); ++o)
        for (int64_t i = 0; i < v.size(1); ++i)
            for (int64_t r = 0; r < v.size(0); ++r) result[o][i] += s[o][r] * f[r][i];
    return w;
}

/// The kernel of conv(conv(x, v), u): kernels of v and u may have any size.
/// W[o, i, y1 + y2, x1 + x2] += sum_r U[o, r, y2, x2] V[r, i, y1, x1]
inline at::Tensor conv_of_factors(const at::Tensor& v, const at::Tensor& u) {
    auto w = at::zeros({u.size(0), v.size(1), v.size(2) + u.size(2) - 1, v.size(3) + u.size(3) - 1}, at::kDouble);
    const auto first = v.to(at::kDouble), second = u.to(at::kDouble);
    const auto f = first.accessor<double, 4>(), s = second.accessor<double, 4>();
    auto result = w.accessor<double, 4>();
    for (int64_t o = 0; o < u.size(0); ++o)
        for (int64_t i = 0; i < v.size(1); ++i)
            for (int64_t r = 0; r < v.size(0); ++r)
                for (int64_t y1 = 0; y1 < v.size(2); ++y1)
                    for (int64_t x1 = 0; x1 < v.size(3); ++x1)
                        for (int64_t y2 = 0; y2 < u.size(2); ++y2)
                            for (int64_t x2 = 0; x2 < u.size(3); ++x2)
                                result[o][i][y1 + y2][x1 + x2] += s[o][r][y2][x2] * f[r][i][y1][x1];
    return w;
}

inline double squared_norm(const at::Tensor& tensor) {
    double sum = 0;
    const auto flat = tensor.to(at::kDouble).flatten();
    for (int64_t i = 0; i < flat.numel(); ++i) sum += flat[i].item<double>() * flat[i].item<double>();
    return sum;
}

}  // namespace coppice::reference
