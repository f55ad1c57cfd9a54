/// Private to train/: what a training costs while it runs, what it will have cost at its end, and its budgets.
#pragma once

#include <coppice/train.h>

#include <chrono>

namespace coppice {

/// A total at the end of a training, from its first epochs.
struct Prediction {
    double total = 0;
    std::optional<std::pair<double, double>> interval;  ///< 95 %
};
/// Sum of `values` and, for each epoch to come, their mean. The interval is that of independent epochs of one
/// distribution: for m epochs to come after n with standard deviation s, t x s x sqrt(m + m^2 / n), t of Student's
/// distribution with n - 1 degrees of freedom. Absent for n = 1. @param values  not empty
Prediction predict_total(const std::vector<double>& values, int64_t epochs);

/// Counts from its construction on; earlier attempts are added.
class Tracker {
public:
    /// @throws MeasurementError when there is a budget for what `spent` does not tell
    Tracker(const TrainOptions& options, std::function<Spent()> spent, const std::vector<EpochInfo>& earlier);

    /// Whether there is anything to look at within epochs.
    bool watches() const { return options_.max_time_s > 0 || static_cast<bool>(spent_); }
    /// Looks at clock and meter. @return the budget that is used up: "max_energy_j", ...; empty: none
    /// @throws MeasurementError as the constructor
    std::string look();
    /// "12.3 J, 1.5 mg CO2e" of the last look; empty without a meter.
    const std::string& text() const { return text_; }
    /// Ends an epoch: fills its energy and carbon since the last one ended.
    void end_epoch(EpochInfo& info);
    /// The "prediction" of the log from the epochs so far; null for fewer than two, or when none is to come.
    Json prediction(const std::vector<EpochInfo>& epochs) const;
    /// The "total" of the log at the end, with the errors of the prediction after `kFirstEpochs` epochs.
    Json total(const std::vector<EpochInfo>& epochs, const std::string& stopped_by) const;
    /// One line of it, and a warning where a budget will not last; empty: none.
    std::string prediction_text(const std::vector<EpochInfo>& epochs) const;
    std::string shortage_text(const std::vector<EpochInfo>& epochs) const;

    /// After so many epochs the prediction is told and later judged: the first one warms up caches.
    static constexpr size_t kFirstEpochs = 3;

private:
    void require(const Spent& now) const;

    const TrainOptions& options_;
    std::function<Spent()> spent_;
    std::chrono::steady_clock::time_point start_;
    double earlier_s_ = 0, earlier_j_ = 0, earlier_g_ = 0;
    Spent first_, last_epoch_;
    std::string text_;
};

}  // namespace coppice
