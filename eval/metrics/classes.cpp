// Metrics of classification and segmentation beyond the share of hits.
#include <cmath>
#include <limits>

#include "metrics/quality.h"
#include "metrics/sums.h"

namespace coppice::eval {
namespace {

constexpr double kUndefined = std::numeric_limits<double>::quiet_NaN();

// Sums 3c, 3c + 1, 3c + 2: true positives, false positives and false negatives of class c.
class ConfusionMetric : public SumsMetric {
public:
    bool higher_is_better() const override { return true; }
    double points(double value) const override { return 100 * value; }

    void add(const at::Tensor& output, const Batch& batch) override {
        const auto [scores, target] = class_scores(name_, output, batch);
        const auto predicted = scores.argmax(-1).contiguous();
        const auto* p = predicted.const_data_ptr<int64_t>();
        const auto* t = target.const_data_ptr<int64_t>();
        const int64_t count = target.size(0), positions = count ? target.numel() / count : 0;
        for (int64_t i = 0; i < count; ++i) {
            std::map<int64_t, double> sums;
            for (int64_t j = i * positions; j < (i + 1) * positions; ++j) {
                if (p[j] == t[j]) {
                    sums[3 * t[j]] += 1;
                } else {
                    sums[3 * p[j] + 1] += 1;
                    sums[3 * t[j] + 2] += 1;
                }
            }
            keep({sums.begin(), sums.end()});
        }
    }

protected:
    explicit ConfusionMetric(const std::string& name) : SumsMetric(name, "ratio") {}
    std::string undefined() const override { return "no class has an example"; }
    /// Mean of `of(tp, fp, fn)` over the classes for which it is defined.
    template <typename Of>
    static double mean_over_classes(const std::vector<double>& sums, const Of& of) {
        double total = 0;
        int64_t classes = 0;
        for (size_t i = 0; i < sums.size(); i += 3) {
            const auto at = [&](size_t k) { return i + k < sums.size() ? sums[i + k] : 0; };
            const double value = of(at(0), at(1), at(2));
            if (std::isnan(value)) continue;
            total += value;
            ++classes;
        }
        return classes ? total / static_cast<double>(classes) : kUndefined;
    }
};

class BalancedAccuracy final : public ConfusionMetric {
public:
    BalancedAccuracy() : ConfusionMetric("balanced_accuracy") {}

protected:
    std::string how() const override { return "mean over classes of the share of their examples that hit"; }
    double value(const std::vector<double>& sums) const override {
        return mean_over_classes(sums, [](double tp, double, double fn) { return tp / (tp + fn); });
    }
};

class F1 final : public ConfusionMetric {
public:
    F1() : ConfusionMetric("f1") {}

protected:
    std::string how() const override { return "macro F1: mean over classes of 2 TP / (2 TP + FP + FN)"; }
    double value(const std::vector<double>& sums) const override {
        return mean_over_classes(sums, [](double tp, double fp, double fn) { return 2 * tp / (2 * tp + fp + fn); });
    }
};

class MeanIou final : public ConfusionMetric {
public:
    MeanIou() : ConfusionMetric("mean_iou") {}

protected:
    std::string how() const override { return "mean over classes of intersection / union, all positions together"; }
    double value(const std::vector<double>& sums) const override {
        return mean_over_classes(sums, [](double tp, double fp, double fn) { return tp / (tp + fp + fn); });
    }
};

// Expected calibration error (Naeini et al., AAAI 2015; Guo et al., arXiv 1706.04599): the examples are put into 15
// bins of equal width by the confidence of their prediction; the error is the mean over examples of |share of hits -
// mean confidence| of their bin.
class CalibrationError final : public SumsMetric {
public:
    CalibrationError() : SumsMetric("ece", "ratio") {}
    bool higher_is_better() const override { return false; }
    double points(double value) const override { return -100 * value; }

    void add(const at::Tensor& output, const Batch& batch) override {
        auto [scores, target] = class_scores(name_, output, batch);
        const bool distributions = scores.numel() > 0 && scores.min().item<double>() >= 0 &&
                                   at::allclose(scores.sum(-1), at::ones({}, at::kDouble), 1e-4, 1e-4);
        if (!distributions) scores = scores.softmax(-1);
        softmax_ = softmax_ || !distributions;
        const auto best = scores.max(-1);
        const auto confidence = std::get<0>(best).flatten(), hit = (std::get<1>(best) == target).flatten();
        const int64_t count = target.size(0), positions = count ? target.numel() / count : 0;
        for (int64_t i = 0; i < count; ++i) {
            std::map<int64_t, double> sums;
            for (int64_t j = i * positions; j < (i + 1) * positions; ++j) {
                const double sure = confidence.const_data_ptr<double>()[j];
                const auto bin = std::min(kBins - 1, static_cast<int64_t>(sure * kBins));
                sums[2 * bin] += 1;
                sums[2 * bin + 1] += (hit.const_data_ptr<bool>()[j] ? 1 : 0) - sure;
            }
            keep({sums.begin(), sums.end()});
        }
    }

protected:
    std::string how() const override {
        return std::string("expected calibration error in 15 bins of ") +
               (softmax_ ? "the softmax of the outputs" : "the probabilities");
    }
    double value(const std::vector<double>& sums) const override {
        double count = 0, error = 0;
        for (size_t i = 0; i < sums.size(); i += 2) {
            count += sums[i];
            error += i + 1 < sums.size() ? std::abs(sums[i + 1]) : 0;
        }
        return count > 0 ? error / count : kUndefined;
    }

private:
    static constexpr int64_t kBins = 15;
    bool softmax_ = false;
};

// exp of the mean cross entropy in nats over all positions.
class Perplexity final : public SumsMetric {
public:
    Perplexity() : SumsMetric("perplexity", "1") {}
    bool higher_is_better() const override { return false; }

    void add(const at::Tensor& output, const Batch& batch) override {
        const auto [scores, target] = class_scores(name_, output, batch);
        const auto nats =
            -scores.log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1).flatten(1 < target.dim() ? 1 : 0);
        for (int64_t i = 0; i < target.size(0); ++i)
            keep({{0, nats[i].sum().item<double>()}, {1, static_cast<double>(nats[i].numel())}});
    }

protected:
    std::string how() const override { return "exp of the mean cross entropy per position"; }
    double value(const std::vector<double>& sums) const override { return std::exp(sums[0] / sums[1]); }
};

// Area under the ROC curve, one class against the others, mean over the classes that have both: the probability that an
// example of the class scores above another one, ties half. Its interval is DeLong's (Biometrics 44, 1988), whose
// components per example are here those of the mean over classes.
class Auc final : public Metric {
public:
    bool higher_is_better() const override { return true; }

    void add(const at::Tensor& output, const Batch& batch) override {
        auto [scores, target] = class_scores("auc", output, batch);
        if (target.dim() != 1) throw_shapes("auc", output, batch.target, "One label per example is expected.");
        if (scores.isnan().any().item<bool>())
            throw InvalidArgument("metric auc", "the output holds NaN", "NaN has no rank; check the model.");
        // Rows of several outputs are only comparable as probabilities; two logits differ by a shift of their own.
        scores_.push_back(scores.log_softmax(-1));
        targets_.push_back(target);
    }

    Figure result() const override {
        if (scores_.empty()) throw InvalidArgument("metric auc", "there is no example", "Give more data.");
        const auto parts = components();
        if (!parts.defined()) return Figure::unavailable("ratio", "all examples are of one class");
        const double value = parts.mean().item<double>();
        const double half = 1.96 * error_of(parts);
        return Figure::measured(value, "ratio",
                                "area under the ROC curve, mean over classes against the others, DeLong's interval",
                                Interval{std::max(0.0, value - half), std::min(1.0, value + half)});
    }

    Json paired(const Metric& baseline) const override {
        const auto* other = dynamic_cast<const Auc*>(&baseline);
        if (!other || scores_.empty() || other->scores_.empty() ||
            !at::equal(at::cat(targets_), at::cat(other->targets_)))
            return nullptr;
        const auto own = components(), theirs = other->components();
        if (!own.defined() || !theirs.defined()) return nullptr;
        const auto change = own - theirs;
        const double value = change.mean().item<double>(), half = 1.96 * error_of(change);
        return {{"difference", value}, {"interval", {value - half, value + half}}};
    }

private:
    static double error_of(const at::Tensor& parts) {
        return parts.numel() > 1 ? parts.std().item<double>() / std::sqrt(static_cast<double>(parts.numel())) : 0;
    }

    // [N], whose mean is the metric and whose variance / N is that of the metric: AUC_c + N (V_i - AUC_c) / n(i) with
    // V_i the share of the other side that example i beats (or that is beaten by), n(i) the size of its own side.
    at::Tensor components() const {
        const auto scores = at::cat(scores_), target = at::cat(targets_);
        const int64_t count = target.size(0);
        at::Tensor total = at::zeros({count}, at::kDouble);
        int64_t classes = 0;
        for (int64_t c = 0; c < scores.size(1); ++c) {
            const auto positive = target == c;
            const auto n = positive.sum().item<int64_t>();
            if (n == 0 || n == count) continue;
            ++classes;
            const auto column = scores.select(1, c).contiguous();
            const auto own = column.masked_select(positive), others = column.masked_select(positive.logical_not());
            const auto sorted_own = std::get<0>(own.sort()), sorted_others = std::get<0>(others.sort());
            const auto below = [](const at::Tensor& sorted, const at::Tensor& values) {  // ties half
                return 0.5 * (at::searchsorted(sorted, values).to(at::kDouble) +
                              at::searchsorted(sorted, values, false, /*right=*/true).to(at::kDouble));
            };
            const auto beats = below(sorted_others, own) / static_cast<double>(count - n);  // [n]
            const auto beaten = 1 - below(sorted_own, others) / static_cast<double>(n);     // [N - n]
            const double area = beats.mean().item<double>();
            at::Tensor part = at::zeros({count}, at::kDouble);
            const auto scale = static_cast<double>(count);
            part.masked_scatter_(positive, area + (beats - area) * (scale / static_cast<double>(n)));
            part.masked_scatter_(positive.logical_not(),
                                 area + (beaten - area) * (scale / static_cast<double>(count - n)));
            total += part;
        }
        return classes ? total / static_cast<double>(classes) : at::Tensor();
    }

    std::vector<at::Tensor> scores_, targets_;
};

}  // namespace

std::unique_ptr<Metric> auc() {
    return std::make_unique<Auc>();
}
std::unique_ptr<Metric> balanced_accuracy() {
    return std::make_unique<BalancedAccuracy>();
}
std::unique_ptr<Metric> calibration_error() {
    return std::make_unique<CalibrationError>();
}
std::unique_ptr<Metric> f1() {
    return std::make_unique<F1>();
}
std::unique_ptr<Metric> mean_iou() {
    return std::make_unique<MeanIou>();
}
std::unique_ptr<Metric> perplexity() {
    return std::make_unique<Perplexity>();
}

}  // namespace coppice::eval
