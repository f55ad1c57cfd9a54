// The module's tables: one row per algorithm.
#include <coppice/eval.h>

#include "energy/sources.h"
#include "metrics/quality.h"

namespace coppice::eval {

const std::vector<Entry<Metric>>& metrics() {
    static const std::vector<Entry<Metric>> table = {
        {"loss", "the task's loss: cross entropy, mean squared error or that of pair similarities", loss_metric},
        {"mae", "mean absolute error", [](Options&) { return mean_absolute_error(); }},
        {"mse", "mean squared error", [](Options&) { return mean_squared_error(); }},
        {"spearman", "rank correlation of the similarities of pairs, or of single outputs, with their targets",
         [](Options&) { return spearman(); }},
        {"top1", "share of examples whose highest score is the target", [](Options&) { return top_k(1); }},
        {"top5", "share of examples whose target is among the five highest scores", [](Options&) { return top_k(5); }},
    };
    return table;
}

// Best first: a counter before a model before nothing.
const std::vector<EnergySource>& energy_sources() {
    static const std::vector<EnergySource> table = {rapl_source(), cpu_time_source(), no_source()};
    return table;
}

}  // namespace coppice::eval
