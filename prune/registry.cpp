// The module's tables: one row per algorithm. Sorted.
#include <coppice/error.h>
#include <coppice/prune.h>

#include "allocation/allocation.h"
#include "depth/depth.h"
#include "weights/weights.h"

namespace coppice::prune {
namespace {

Normaliser read_normaliser(Options& options) {
    static const std::vector<std::pair<std::string, Normaliser>> kNames = {
        {"l2", Normaliser::kL2},     {"max", Normaliser::kMax}, {"mean", Normaliser::kMean},
        {"none", Normaliser::kNone}, {"sum", Normaliser::kSum}, {"standard", Normaliser::kStandard}};
    std::vector<std::string> names;
    for (const auto& [name, value] : kNames) names.push_back(name);
    const auto chosen =
        options.choice("normaliser", "mean", names, "what each group's scores are divided by before ranking");
    for (const auto& [name, value] : kNames)
        if (name == chosen) return value;
    throw InternalError(options.owner(), "normaliser without a value", "");
}

std::unique_ptr<Stage> make_channel_pruning(Options& o) {
    ChannelPruningOptions options;
    auto criterion =
        make<Criterion>(o, "criterion", "magnitude", criteria(), "what decides which channels matter least");
    auto allocation = make<Allocation>(o, "scope", "global", allocations(), "how the cut is spread over the layers");
    auto& target = options.target;
    const bool has_ratio = o.has("ratio"), has_macs = o.has("macs_ratio");
    target.ratio = o.number("ratio", 0.5, "share of the prunable channels to remove");
    target.macs_ratio = o.optional_number("macs_ratio", "share of the multiply-adds to keep; instead of ratio");
    if (has_macs) o.resolve("ratio", nullptr);  // so that a resolved recipe can be run again
    if (has_ratio && has_macs) throw o.error("ratio", "and macs_ratio are both given", "Give one of them.");
    if (!(target.ratio >= 0 && target.ratio < 1))
        throw o.error("ratio", "is " + Json(target.ratio).dump() + ", must be in [0, 1)",
                      "Use 0.5 to remove half of the channels.");
    if (target.macs_ratio && !(*target.macs_ratio > 0 && *target.macs_ratio <= 1))
        throw o.error("macs_ratio", "is " + Json(*target.macs_ratio).dump() + ", must be in (0, 1]",
                      "Use 0.5 to keep half of the multiply-adds.");
    target.round_to = o.integer("round_to", 8, 1, 1024, "widths that stay are multiples of this");
    target.min_channels = o.integer("min_channels", 1, 1, INT64_MAX, "least width of a layer");
    target.max_ratio = o.number("max_ratio", 0.9, "largest share removed of any one group");
    if (!(target.max_ratio > 0 && target.max_ratio < 1))
        throw o.error("max_ratio", "is " + Json(target.max_ratio).dump() + ", must be in (0, 1)",
                      "The default is 0.9.");
    options.ignore = o.texts("ignore", {}, "regular expressions on layer names whose outputs stay");
    options.bn_batches =
        o.integer("bn_batches", 0, 0, INT64_MAX, "batches to estimate batch-norm statistics anew; 0: keep them");
    options.bn_batch_size = o.integer("bn_batch_size", 128, 1, INT64_MAX, "examples per such batch");
    return channel_pruning(std::move(criterion), std::move(allocation), std::move(options));
}

}  // namespace

const std::vector<Entry<Criterion>>& criteria() {
    static const std::vector<Entry<Criterion>> kCriteria = {
        {"magnitude", "Lp norm of the weights (arXiv 1608.08710)",
         [](Options& o) { return magnitude(o.number("p", 2, "order of the norm, at least 1")); }},
        {"random", "baseline: uniform scores",
         [](Options& o) {
             return random_scores(static_cast<uint64_t>(o.integer("seed", 0, 0, INT64_MAX, "of the scores")));
         }},
        {"taylor", "squared first-order change of the loss (arXiv 1906.10771); needs labelled calibration data",
         [](Options& o) {
             TaylorOptions options;
             options.batches =
                 o.integer("batches", options.batches, 1, INT64_MAX, "batches of calibration data, at most");
             options.batch_size = o.integer("batch_size", options.batch_size, 1, INT64_MAX, "examples per batch");
             return taylor(options);
         }},
    };
    return kCriteria;
}

const std::vector<Entry<Allocation>>& allocations() {
    static const std::vector<Entry<Allocation>> kAllocations = {
        {"global", "one ranking over all layers", [](Options& o) { return global(read_normaliser(o)); }},
        {"uniform", "the same share of every layer", [](Options&) { return uniform(); }},
    };
    return kAllocations;
}

const std::vector<Entry<Stage>>& stages() {
    static const std::vector<Entry<Stage>> kStages = {
        {"prune.channel", "removes whole channels, with everything that hangs on them (arXiv 2301.12900)",
         make_channel_pruning},
        {"prune.depth", "removes whole residual blocks, those that matter least", make_depth_pruning},
        {"prune.weight", "sets single weights to zero: unstructured, n:m, blocks", make_weight_pruning},
    };
    return kStages;
}

}  // namespace coppice::prune
