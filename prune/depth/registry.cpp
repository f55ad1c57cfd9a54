// The table of block criteria, and how a recipe asks for prune.depth. Sorted.
#include "depth/depth.h"

namespace coppice::prune {

std::unique_ptr<Stage> make_depth_pruning(Options& o) {
    DepthPruningOptions options;
    auto criterion =
        make<BlockCriterion>(o, "criterion", "similarity", block_criteria(), "what decides which blocks matter least");
    const bool has_blocks = o.has("blocks"), has_macs = o.has("macs_ratio");
    if (has_blocks && has_macs) throw o.error("blocks", "and macs_ratio are both given", "Give one of them.");
    options.blocks = o.integer("blocks", options.blocks, 0, INT64_MAX, "residual blocks to remove");
    options.macs_ratio = o.optional_number("macs_ratio", "share of the multiply-adds to keep; instead of blocks");
    if (has_macs) o.resolve("blocks", nullptr);  // so that a resolved recipe can be run again
    if (options.macs_ratio && !(*options.macs_ratio > 0 && *options.macs_ratio <= 1))
        throw o.error("macs_ratio", "is " + Json(*options.macs_ratio).dump() + ", must be in (0, 1]",
                      "Use 0.8 to keep 80 % of the multiply-adds.");
    options.ignore = o.texts("ignore", {}, "regular expressions on block names that stay");
    return depth_pruning(std::move(criterion), std::move(options));
}

const std::vector<Entry<BlockCriterion>>& block_criteria() {
    static const std::vector<Entry<BlockCriterion>> kCriteria = {
        {"evaluate", "drop of the metric without the block", [](Options&) { return block_evaluation(); }},
        {"random", "baseline: uniform scores",
         [](Options& o) {
             return random_blocks(static_cast<uint64_t>(o.integer("seed", 0, 0, INT64_MAX, "0: the recipe's")));
         }},
        {"similarity", "1 - cosine similarity of input and output (arXiv 2403.03853)",
         [](Options& o) {
             const auto samples = o.integer("samples", 128, 1, INT64_MAX, "calibration examples, at most");
             return block_similarity(samples, o.integer("batch_size", 32, 1, INT64_MAX, "of those at once"));
         }},
    };
    return kCriteria;
}

}  // namespace coppice::prune
