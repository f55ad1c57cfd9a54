// Losses of distillation by plain loops in double, straight from the formulas of the papers.
#pragma once

#include <torch/types.h>

#include <cmath>
#include <vector>

namespace coppice::reference {

using Row = std::vector<double>;
using Rows = std::vector<Row>;

inline Rows rows(const at::Tensor& matrix) {
    Rows result;
    for (int64_t i = 0; i < matrix.size(0); ++i) {
        result.emplace_back();
        for (int64_t j = 0; j < matrix.size(1); ++j) result.back().push_back(matrix[i][j].item<double>());
    }
    return result;
}

inline Row softmax(const Row& logits, double temperature) {
    Row p;
    double sum = 0;
    for (const double value : logits) p.push_back(std::exp(value / temperature)), sum += p.back();
    for (double& value : p) value /= sum;
    return p;
}

inline double kl(const Row& p, const Row& q) {
    double sum = 0;
    for (size_t i = 0; i < p.size(); ++i) sum += p[i] * std::log(p[i] / q[i]);
    return sum;
}

/// -sum_c y_c log softmax(s)_c with y = (1 - smoothing) onehot + smoothing / C, the mean over rows.
inline double cross_entropy(const Rows& s, const std::vector<int64_t>& target, double smoothing) {
    double sum = 0;
    for (size_t i = 0; i < s.size(); ++i) {
        const Row p = softmax(s[i], 1);
        for (size_t c = 0; c < p.size(); ++c) {
            const double y = (int64_t(c) == target[i] ? 1 - smoothing : 0) + smoothing / double(p.size());
            sum -= y * std::log(p[c]);
        }
    }
    return sum / double(s.size());
}

inline double kd(const Rows& s, const Rows& t, double temperature) {
    double sum = 0;
    for (size_t i = 0; i < s.size(); ++i) sum += kl(softmax(t[i], temperature), softmax(s[i], temperature));
    return temperature * temperature * sum / double(s.size());
}

inline double dkd(const Rows& s, const Rows& t, const std::vector<int64_t>& target, double temperature, double alpha,
                  double beta) {
    double sum = 0;
    for (size_t i = 0; i < s.size(); ++i) {
        const Row p = softmax(t[i], temperature), q = softmax(s[i], temperature);
        const size_t y = size_t(target[i]);
        sum += alpha * kl({p[y], 1 - p[y]}, {q[y], 1 - q[y]});
        Row other_p, other_q;
        for (size_t c = 0; c < p.size(); ++c)
            if (c != y) other_p.push_back(p[c] / (1 - p[y])), other_q.push_back(q[c] / (1 - q[y]));
        sum += beta * kl(other_p, other_q);
    }
    return temperature * temperature * sum / double(s.size());
}

inline double pearson(const Row& a, const Row& b) {
    double mean_a = 0, mean_b = 0, ab = 0, aa = 0, bb = 0;
    for (size_t i = 0; i < a.size(); ++i) mean_a += a[i] / double(a.size()), mean_b += b[i] / double(b.size());
    for (size_t i = 0; i < a.size(); ++i) {
        ab += (a[i] - mean_a) * (b[i] - mean_b);
        aa += (a[i] - mean_a) * (a[i] - mean_a);
        bb += (b[i] - mean_b) * (b[i] - mean_b);
    }
    return ab / std::sqrt(aa * bb);
}

inline double dist(const Rows& s, const Rows& t, double temperature, double beta, double gamma) {
    Rows p, q;
    for (size_t i = 0; i < s.size(); ++i)
        p.push_back(softmax(s[i], temperature)), q.push_back(softmax(t[i], temperature));
    double between_classes = 0, between_examples = 0;
    for (size_t i = 0; i < p.size(); ++i) between_classes += (1 - pearson(p[i], q[i])) / double(p.size());
    for (size_t c = 0; c < p[0].size(); ++c) {
        Row a, b;
        for (size_t i = 0; i < p.size(); ++i) a.push_back(p[i][c]), b.push_back(q[i][c]);
        between_examples += (1 - pearson(a, b)) / double(p[0].size());
    }
    return temperature * temperature * (beta * between_classes + gamma * between_examples);
}

inline Row zscore(const Row& v) {
    double mean = 0, variance = 0;
    for (const double x : v) mean += x / double(v.size());
    for (const double x : v) variance += (x - mean) * (x - mean) / double(v.size());
    Row z;
    for (const double x : v) z.push_back((x - mean) / (1e-7 + std::sqrt(variance)));
    return z;
}

inline double kd_zscore(const Rows& s, const Rows& t, double temperature) {
    Rows a, b;
    for (size_t i = 0; i < s.size(); ++i) a.push_back(zscore(s[i])), b.push_back(zscore(t[i]));
    return kd(a, b, temperature);
}

}  // namespace coppice::reference
