// The tables of single weights: criteria and patterns, one row each. Sorted.
#include <regex>

#include "weights/weights.h"

namespace coppice::prune {
namespace {

constexpr const char* kPatternHelp =
    "which weights go together: unstructured; n:m, such as 2:4; blocks of outputs x inputs, such as 4x1";

/// `pattern: 2:4` and `pattern: 4x1` are short for the rows n_of_m and block.
std::unique_ptr<WeightPattern> read_pattern(Options& o) {
    static const std::regex kPair("([0-9]{1,4})([:x])([0-9]{1,4})");
    const auto* setting = o.raw("pattern", kPatternHelp);
    std::smatch match;
    if (setting && setting->kind == Setting::Kind::kScalar && std::regex_search(setting->text, std::regex("^[0-9]")) &&
        !std::regex_match(setting->text, kPair))
        throw o.error("pattern", "is \"" + setting->text + "\", must be n:m or outputs x inputs",
                      "2:4 keeps two of four, 4x1 takes four outputs of one input together.");
    if (!setting || setting->kind != Setting::Kind::kScalar || !std::regex_match(setting->text, match, kPair))
        return make<WeightPattern>(o, "pattern", "unstructured", weight_patterns(), kPatternHelp);
    o.remember({"pattern", "name", "unstructured", kPatternHelp});
    o.resolve("pattern", setting->text);
    const int64_t first = std::stoll(match[1]), second = std::stoll(match[3]);
    return match[2] == ":" ? n_of_m(first, second) : block(first, second);
}

}  // namespace

std::unique_ptr<WeightPattern> read_weights(Options& o, WeightPruningOptions& options) {
    auto pattern = read_pattern(o);
    const bool has_sparsity = o.has("sparsity");
    options.sparsity =
        o.number("sparsity", options.sparsity, "share of the weights to set to zero; n:m patterns fix it");
    if (!(options.sparsity >= 0 && options.sparsity < 1))
        throw o.error("sparsity", "is " + Json(options.sparsity).dump() + ", must be in [0, 1)",
                      "Use 0.5 to set half of the weights to zero.");
    if (pattern->sparsity()) {
        if (has_sparsity)
            throw o.error("sparsity",
                          "is fixed by pattern " + pattern->name() + ": " + Json(*pattern->sparsity()).dump(),
                          "Leave it out.");
        o.resolve("sparsity", nullptr);  // so that a resolved recipe can be run again
    }
    options.scope = o.choice("scope", options.scope, {"global", "layer", "row"},
                             "layer: the same share of each; row: of each output; global: one ranking over all");
    options.ignore = o.texts("ignore", {}, "regular expressions on layer names that keep all weights");
    options.min_size = o.integer("min_size", 0, 0, INT64_MAX, "layers with fewer weights are kept");
    options.embeddings = o.boolean("embeddings", false, "also zeros in embeddings");
    return pattern;
}

std::unique_ptr<Stage> make_weight_pruning(Options& o) {
    WeightPruningOptions options;
    auto criterion = make<WeightCriterion>(o, "criterion", "magnitude", weight_criteria(),
                                           "what decides which weights matter least");
    auto pattern = read_weights(o, options);
    options.samples = o.integer("samples", options.samples, 1, INT64_MAX, "calibration examples, at most");
    options.batch_size = o.integer("batch_size", options.batch_size, 1, INT64_MAX, "of those at once");
    options.sequential = o.boolean("sequential", options.sequential,
                                   "inputs come from a model whose earlier layers are pruned; slower, better");
    return weight_pruning(std::move(criterion), std::move(pattern), std::move(options));
}

const std::vector<Entry<WeightCriterion>>& weight_criteria() {
    static const std::vector<Entry<WeightCriterion>> kCriteria = {
        {"magnitude", "absolute value", [](Options&) { return weight_magnitude(); }},
        {"sparsegpt", "least change of the layer's outputs, the others make up for it (arXiv 2301.00774)",
         [](Options& o) {
             SparseGptOptions options;
             options.damping = o.number_in("damping", options.damping, 1e-12, 1,
                                           "share of the mean diagonal added to the diagonal of X X^T");
             options.block_columns =
                 o.integer("block_columns", options.block_columns, 1, 1 << 20, "columns whose mask is chosen at once");
             return sparsegpt(options);
         }},
        {"wanda",
         "absolute value times the norm of its input (arXiv 2306.11695, which compares within outputs: scope row)",
         [](Options&) { return weight_wanda(); }},
    };
    return kCriteria;
}

const std::vector<Entry<WeightPattern>>& weight_patterns() {
    static const std::vector<Entry<WeightPattern>> kPatterns = {
        {"block", "blocks of outputs x inputs; short: 4x1",
         [](Options& o) {
             const auto rows = o.integer("rows", 4, 1, 1 << 20, "outputs of a block");
             return block(rows, o.integer("columns", 1, 1, 1 << 20, "inputs of a block"));
         }},
        {"n_of_m", "at most n of m neighbouring inputs stay (arXiv 2104.08378); short: 2:4",
         [](Options& o) {
             const auto n = o.integer("n", 2, 1, 1 << 20, "weights that stay");
             return n_of_m(n, o.integer("m", 4, 2, 1 << 20, "neighbours they are chosen from"));
         }},
        {"unstructured", "each weight on its own", [](Options&) { return unstructured(); }},
    };
    return kPatterns;
}

}  // namespace coppice::prune
