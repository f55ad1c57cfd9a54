#include "modules.h"

#include <coppice/deploy.h>
#include <coppice/distill.h>
#include <coppice/eval.h>
#include <coppice/lowrank.h>
#include <coppice/prune.h>
#include <coppice/qat.h>
#include <coppice/quantize.h>
#include <coppice/train.h>

#include <algorithm>

namespace coppice::cli {
namespace {

template <typename T>
void append(std::vector<Entry<T>>& all, const std::vector<Entry<T>>& rows) {
    all.insert(all.end(), rows.begin(), rows.end());
}

template <typename T>
std::vector<Entry<T>> sorted(std::vector<Entry<T>> rows) {
    std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
    return rows;
}

template <typename T>
Family family(const std::string& name, const std::string& place, const std::vector<Entry<T>>& table) {
    Family result{name, place, {}};
    for (const auto& row : table) {
        const auto options = [make = row.make, owner = row.name](std::string& note) {
            Options options(owner);
            try {
                make(options);
            } catch (const std::exception& error) {
                // A factory that cannot do without an option still said which ones it knows.
                note = message_of(error);
            }
            return options.asked();
        };
        result.rows.push_back({row.name, row.summary, options});
    }
    return result;
}

}  // namespace

const std::vector<Entry<Loss>>& all_losses() {
    static const auto losses = [] {
        std::vector<Entry<Loss>> all = builtin_losses();
        append(all, distill::losses());
        return sorted(std::move(all));
    }();
    return losses;
}

const std::vector<Entry<Stage>>& all_stages() {
    static const auto stages = [] {
        std::vector<Entry<Stage>> all = train_stages(all_losses());
        append(all, prune::stages());
        append(all, prune::training_stages(all_losses()));
        append(all, lowrank::stages());
        append(all, quantize::stages());
        append(all, quantize::training_stages(all_losses()));
        append(all, distill::stages(all_losses()));
        append(all, deploy_stages());
        return sorted(std::move(all));
    }();
    return stages;
}

std::vector<Family> all_families() {
    return {family("stage", "stages: [NAME: {...}]", all_stages()),
            family("loss", "train.finetune: {loss: NAME}", all_losses()),
            family("metric", "task: {metric: NAME}, measure: {metrics: [NAME]}", eval::metrics()),
            family("data format", "data: {format: NAME, ...}", dataset_formats()),
            family("criterion", "prune.channel: {criterion: NAME}", prune::criteria()),
            family("allocation", "prune.channel: {scope: NAME}", prune::allocations()),
            family("block criterion", "prune.depth: {criterion: NAME}", prune::block_criteria()),
            family("weight criterion", "prune.weight: {criterion: NAME}", prune::weight_criteria()),
            family("weight pattern", "prune.weight: {pattern: NAME}", prune::weight_patterns()),
            family("pruning schedule", "prune.channel: {schedule: NAME}, prune.gradual: {pruning_schedule: NAME}",
                   prune::schedules()),
            family("regulariser", "prune.sparse_learning: {regulariser: NAME}", prune::regularisers()),
            family("rank rule", "lowrank.svd: {rank: NAME}", lowrank::rank_rules()),
            family("observer", "quantize.static: {observer: NAME}", quantize::observers()),
            family("quantizer", "quantize.qat: {quantizer: NAME}", quantize::quantizers()),
            family("rounding", "quantize.static: {rounding: NAME}", quantize::roundings()),
            family("centroid init", "quantize.codebook: {init: NAME}", quantize::centroid_inits()),
            family("sensitivity", "quantize.mixed: {sensitivity: NAME}", quantize::sensitivities()),
            family("precision allocation", "quantize.mixed: {allocation: NAME}", quantize::precision_allocations())};
}

}  // namespace coppice::cli
