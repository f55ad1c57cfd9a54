// The module's tables: one row per algorithm.
#include <coppice/eval.h>

#include "energy/sources.h"
#include "metrics/quality.h"

namespace coppice::eval {

const std::vector<Entry<Metric>>& metrics() {
    static const std::vector<Entry<Metric>> table = {
        {"auc", "area under the ROC curve, mean over classes against the others", [](Options&) { return auc(); }},
        {"balanced_accuracy", "mean over classes of the share of their examples that hit",
         [](Options&) { return balanced_accuracy(); }},
        {"ece", "expected calibration error in 15 bins of confidence", [](Options&) { return calibration_error(); }},
        {"f1", "macro F1", [](Options&) { return f1(); }},
        {"log_loss", "cross entropy of class scores", [](Options&) { return log_loss(); }},
        {"loss", "the task's loss: cross entropy, mean squared error or that of pair similarities", loss_metric},
        {"mae", "mean absolute error", [](Options&) { return mean_absolute_error(); }},
        {"mape", "mean of |error / target|", [](Options&) { return mape(); }},
        {"mean_iou", "mean over classes of intersection / union", [](Options&) { return mean_iou(); }},
        {"mse", "mean squared error", [](Options&) { return mean_squared_error(); }},
        {"pearson", "correlation with the targets", [](Options&) { return pearson(); }},
        {"perplexity", "exp of the mean cross entropy per position", [](Options&) { return perplexity(); }},
        {"r2", "share of the targets' variance that is explained", [](Options&) { return r2(); }},
        {"spearman", "rank correlation of the similarities of pairs, or of single outputs, with their targets",
         [](Options&) { return spearman(); }},
        {"top1", "share of examples whose highest score is the target", [](Options&) { return top_k(1); }},
        {"top5", "share of examples whose target is among the five highest scores", [](Options&) { return top_k(5); }},
    };
    return table;
}

// Best first: a counter before a model before nothing.
const std::vector<EnergySource>& energy_sources() {
    static const std::vector<EnergySource> table = {perf_source(),      rapl_source(),     nvml_source(),
                                                    amd_smi_source(),   hwmon_source(),    battery_source(),
                                                    meter_csv_source(), cpu_time_source(), no_source()};
    return table;
}

}  // namespace coppice::eval
