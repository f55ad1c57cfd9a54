/// Optimizers and losses in plain loops over float64.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace coppice::reference {

/// SGD with Nesterov momentum as PyTorch documents it: v <- momentum v + g, w <- w - lr (g + momentum v), g with decay.
struct Sgd {
    double momentum, weight_decay;
    std::vector<double> velocity;

    void step(std::vector<double>& weights, const std::vector<double>& gradient, double lr) {
        const bool first = velocity.empty();
        if (first) velocity.resize(weights.size());
        for (size_t i = 0; i < weights.size(); ++i) {
            const double g = gradient[i] + weight_decay * weights[i];
            velocity[i] = first ? g : momentum * velocity[i] + g;
            weights[i] -= lr * (momentum > 0 ? g + momentum * velocity[i] : g);
        }
    }
};

/// AdamW, arXiv 1711.05101 algorithm 2, with beta 0.9 and 0.999, epsilon 1e-8; decay is multiplied by lr as in PyTorch.
struct AdamW {
    double weight_decay;
    std::vector<double> average, square;
    int64_t steps = 0;

    void step(std::vector<double>& weights, const std::vector<double>& gradient, double lr) {
        average.resize(weights.size());
        square.resize(weights.size());
        ++steps;
        for (size_t i = 0; i < weights.size(); ++i) {
            weights[i] -= lr * weight_decay * weights[i];
            average[i] = 0.9 * average[i] + 0.1 * gradient[i];
            square[i] = 0.999 * square[i] + 0.001 * gradient[i] * gradient[i];
            const double a = average[i] / (1 - std::pow(0.9, static_cast<double>(steps)));
            const double s = square[i] / (1 - std::pow(0.999, static_cast<double>(steps)));
            weights[i] -= lr * a / (std::sqrt(s) + 1e-8);
        }
    }
};

/// Mean over rows of -sum_c q_c log softmax(scores)_c with q = (1 - smoothing) [c == label] + smoothing / C.
inline double cross_entropy(const std::vector<std::vector<double>>& scores, const std::vector<int64_t>& labels,
                            double smoothing) {
    double total = 0;
    for (size_t n = 0; n < scores.size(); ++n) {
        const auto classes = static_cast<double>(scores[n].size());
        double sum = 0;
        for (const double score : scores[n]) sum += std::exp(score);
        for (size_t c = 0; c < scores[n].size(); ++c) {
            const double q = (static_cast<int64_t>(c) == labels[n] ? 1 - smoothing : 0) + smoothing / classes;
            total -= q * (scores[n][c] - std::log(sum));
        }
    }
    return total / static_cast<double>(scores.size());
}

}  // namespace coppice::reference
