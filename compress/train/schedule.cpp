#include "train/schedule.h"

#include <cmath>
#include <numbers>

namespace coppice {

double learning_rate(const TrainOptions& options, int64_t step, int64_t steps_per_epoch) {
    const double t = static_cast<double>(step), total = static_cast<double>(options.epochs * steps_per_epoch);
    const double warmup = std::round(options.warmup_epochs * static_cast<double>(steps_per_epoch));
    // A line from 0 before the first step to lr at the last step of the warm-up.
    if (t < warmup) return options.lr * (t + 1) / warmup;
    if (options.schedule == "cosine")  // arXiv 1608.03983, equation 5, one period; it would reach 0 at step `total`
        return options.lr * 0.5 * (1 + std::cos(std::numbers::pi * (t - warmup) / std::max(1.0, total - warmup)));
    double lr = options.lr;
    if (options.schedule == "step")
        for (const int64_t milestone : options.milestones)
            if (step >= milestone * steps_per_epoch) lr *= options.gamma;
    return lr;
}

}  // namespace coppice
