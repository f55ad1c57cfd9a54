// The module's tables: one row per algorithm. Sorted.
#include <coppice/error.h>
#include <coppice/prune.h>

#include "allocation/allocation.h"
#include "depth/depth.h"
#include "options.h"
#include "weights/weights.h"

namespace coppice::prune {
namespace {

/// The value of the name that option `name` chooses.
template <typename T>
T read_choice(Options& options, const std::string& name, const std::string& default_name,
              const std::vector<std::pair<std::string, T>>& values, const std::string& help) {
    std::vector<std::string> names;
    for (const auto& [known, value] : values) names.push_back(known);
    const auto chosen = options.choice(name, default_name, names, help);
    for (const auto& [known, value] : values)
        if (known == chosen) return value;
    throw InternalError(options.owner(), name + " without a value", "");
}

Normaliser read_normaliser(Options& options, const std::string& default_name = "mean") {
    static const std::vector<std::pair<std::string, Normaliser>> kNames = {
        {"l2", Normaliser::kL2},     {"max", Normaliser::kMax}, {"mean", Normaliser::kMean},
        {"none", Normaliser::kNone}, {"sum", Normaliser::kSum}, {"standard", Normaliser::kStandard}};
    std::vector<std::string> names;
    for (const auto& [name, value] : kNames) names.push_back(name);
    const auto chosen =
        options.choice("normaliser", default_name, names, "what each group's scores are divided by before ranking");
    for (const auto& [name, value] : kNames)
        if (name == chosen) return value;
    throw InternalError(options.owner(), "normaliser without a value", "");
}

std::vector<LayerRatio> read_layers(Options& o) {
    const auto* setting = o.raw("layers");
    o.remember({"layers", "map", "none",
                "regular expressions on layer names, each with the share that such a layer loses; 0: nothing"});
    o.resolve("layers", nullptr);
    if (!setting) return {};
    if (setting->kind != Setting::Kind::kMap)
        throw o.error("layers", "must be a map", "Write \"layers: {conv1: 0, layer4: 0.7}\".");
    std::vector<LayerRatio> layers;
    Json resolved = Json::object();
    Options ratios(o.owner() + ".layers", *setting);
    for (const auto& [pattern, value] : setting->members) {
        const double ratio = ratios.number(pattern, 0);
        if (!(ratio >= 0 && ratio < 1))
            throw ratios.error(pattern, "is " + Json(ratio).dump() + ", must be in [0, 1)",
                               "Use 0.5 to remove half of the channels, 0 to keep them.");
        layers.push_back({pattern, ratio});
        resolved[pattern] = ratio;
    }
    o.resolve("layers", std::move(resolved));
    return layers;
}

ObserveOptions read_observation(Options& o, ObserveOptions options = {}) {
    options.batches = o.integer("batches", options.batches, 1, INT64_MAX, "batches of calibration data, at most");
    options.batch_size = o.integer("batch_size", options.batch_size, 1, INT64_MAX, "examples per batch");
    return options;
}

/// `round_to`, into the target. True for auto.
bool read_round_to(Options& o, Target& target) {
    const auto* round_to = o.raw("round_to");
    o.remember({"round_to", "integer or auto", "8",
                "widths that stay are multiples of this; auto: of what this machine's kernels step by, measured"});
    const bool measured = round_to && round_to->text == "auto";
    if (round_to && !measured && round_to->text.find_first_not_of("0123456789-") != std::string::npos)
        throw o.error("round_to", "is \"" + round_to->text + "\", must be a whole number or auto", "The default is 8.");
    if (measured)
        o.resolve("round_to", "auto");
    else
        target.round_to = o.integer("round_to", 8, 1, 1024);
    return measured;
}

/// The allocations that go by scores alone.
const std::vector<Entry<Allocation>>& without_evaluation() {
    static const std::vector<Entry<Allocation>> kAllocations = [] {
        std::vector<Entry<Allocation>> rows;
        for (const auto& row : allocations()) {
            Options defaults(row.name);
            if (row.make(defaults)->sensitivity_ratios().empty()) rows.push_back(row);
        }
        return rows;
    }();
    return kAllocations;
}

/// Null: none.
std::unique_ptr<RefitOptions> read_refit(Options& options) {
    static const std::vector<Entry<RefitOptions>> kRefits = {
        {"least_squares", "to the outputs of the uncut model (arXiv 1707.06168); needs calibration data",
         [](Options& o) {
             auto refit = std::make_unique<RefitOptions>();
             refit->observe = read_observation(o);
             refit->positions =
                 o.integer("positions", refit->positions, 1, INT64_MAX, "of a feature map or sequence, per example");
             refit->ridge = o.number_in("ridge", refit->ridge, 0, 1e6,
                                        "pull towards the weights as they were, as a share of the inputs' mean square");
             return refit;
         }},
        {"none", "the weights that stay keep their values", [](Options&) { return std::unique_ptr<RefitOptions>(); }},
    };
    return make<RefitOptions>(options, "refit", "none", kRefits, "of the layers that read what was removed");
}

std::unique_ptr<Stage> make_channel_pruning(Options& o) {
    auto [criterion, allocation, options] = read_channel_pruning(o);
    options.schedule = make<Schedule>(o, "schedule", "one_shot", schedules(), "how the cut is spread over `steps`");
    options.steps = o.integer("steps", 1, 1, 10000, "the channels are scored anew after each");
    options.rewind_to = o.text("rewind_to", "",
                               "TorchScript file of the model earlier in its training: the weights that stay get its "
                               "values (arXiv 1803.03635)");
    return channel_pruning(std::move(criterion), std::move(allocation), std::move(options));
}

}  // namespace

ChannelPruningParts read_channel_pruning(Options& o, While at) {
    const bool at_rest = at == While::kAtRest;
    ChannelPruningOptions options;
    auto criterion =
        make<Criterion>(o, "criterion", "magnitude", criteria(), "what decides which channels matter least");
    auto allocation = make<Allocation>(o, "scope", "global", at_rest ? allocations() : without_evaluation(),
                                       "how the cut is spread over the layers");
    auto& target = options.target;
    read_goal(o, target, at_rest);
    if (at_rest)
        options.round_to_measured = read_round_to(o, target);
    else
        target.round_to = o.integer("round_to", 8, 1, 1024, "widths that stay are multiples of this");
    options.layers = read_layers(o);
    if (at_rest)
        options.only_faster = o.boolean(
            "only_faster", is_timed(target),
            "leave cuts that do not make the operators around them faster, measured; with a timed target: true");
    target.min_channels = o.integer("min_channels", 1, 1, INT64_MAX, "least width of a layer");
    target.max_ratio = o.number("max_ratio", 0.9, "largest share removed of any one group");
    if (!(target.max_ratio > 0 && target.max_ratio < 1))
        throw o.error("max_ratio", "is " + Json(target.max_ratio).dump() + ", must be in (0, 1)",
                      "The default is 0.9.");
    options.ignore = o.texts("ignore", {}, "regular expressions on layer names whose outputs stay");
    options.groups.head_width =
        o.choice("attention", "heads", {"heads", "width"},
                 "what shrinks in attention: whole heads, or the width of every head") == "width";
    if (const auto refit = read_refit(o)) options.refit = *refit;
    options.bn_batches =
        o.integer("bn_batches", 0, 0, INT64_MAX, "batches to estimate batch-norm statistics anew; 0: keep them");
    options.bn_batch_size = o.integer("bn_batch_size", 128, 1, INT64_MAX, "examples per such batch");
    return {std::move(criterion), std::move(allocation), std::move(options)};
}

void read_goal(Options& o, Target& target, bool timed) {
    std::string given;  // the one target
    if (o.has("ratio")) given = "ratio";
    target.ratio = o.number("ratio", 0.5, "share of the prunable channels to remove");
    if (!(target.ratio >= 0 && target.ratio < 1))
        throw o.error("ratio", "is " + Json(target.ratio).dump() + ", must be in [0, 1)",
                      "Use 0.5 to remove half of the channels.");
    for (const auto& budget : budget_options()) {
        if (budget.timed && !timed) {
            if (o.has(budget.name))
                throw o.error(budget.name, "needs a model at rest: nothing is timed while it trains",
                              "Use macs_ratio, or prune.channel with it after the training.");
            continue;
        }
        auto& share = target.*budget.share;
        share = o.optional_number(budget.name, budget.help);
        if (!share) continue;
        if (!given.empty())
            throw o.error(given, std::string("and ") + budget.name + " are both given", "Give one of them.");
        given = budget.name;
        if (!(*share > 0 && *share <= 1))
            throw o.error(budget.name, "is " + Json(*share).dump() + ", must be in (0, 1]",
                          std::string("Use 0.5 to keep half of the ") + budget.unit + ".");
    }
    if (has_budget(target)) o.resolve("ratio", nullptr);  // so that a resolved recipe can be run again
}

const std::vector<Entry<Criterion>>& criteria() {
    static const std::vector<Entry<Criterion>> kCriteria = {
        {"apoz", "share of activations that are not zero (arXiv 1607.03250); needs calibration data",
         [](Options& o) { return apoz(read_observation(o)); }},
        {"bn_scale", "absolute scale of the batch norm (arXiv 1708.06519)",
         [](Options& o) {
             return bn_scale(o.choice("elsewhere", "refuse", {"magnitude", "refuse"},
                                      "layers without batch norm: refuse by name, or rank by magnitude") ==
                             "magnitude");
         }},
        {"chip", "change of the nuclear norm without the channel (arXiv 2110.13981); needs calibration data, slow",
         [](Options& o) {
             return chip(read_observation(o, {1, 64}));
         }},
        {"fisher", "diagonal second-order change of the loss, w^2 E[g^2] / 2; needs labelled calibration data",
         [](Options& o) {
             FisherOptions options;
             options.batches =
                 o.integer("batches", options.batches, 1, INT64_MAX, "batches of calibration data, at most");
             options.batch_size = o.integer("batch_size", options.batch_size, 1, INT64_MAX,
                                            "examples per batch; 1: gradients of single examples");
             return fisher(options);
         }},
        {"fpgm", "distance to the other filters (arXiv 1811.00250)", [](Options&) { return fpgm(); }},
        {"hrank", "mean rank of the feature maps (arXiv 2002.10179); needs calibration data",
         [](Options& o) { return hrank(read_observation(o)); }},
        {"lamp", "squared norm over those not smaller (arXiv 2010.07611); for scope global, normaliser none",
         [](Options&) { return lamp(); }},
        {"magnitude", "Lp norm of the weights (arXiv 1608.08710)",
         [](Options& o) {
             const double p = o.number("p", 2, "order of the norm, at least 1");
             return magnitude(p, read_choice<Reduce>(o, "reduce", "sum",
                                                     {{"first", Reduce::kFirst},
                                                      {"max", Reduce::kMax},
                                                      {"mean", Reduce::kMean},
                                                      {"prod", Reduce::kProduct},
                                                      {"sum", Reduce::kSum}},
                                                     "how the norms of layers that share a channel become one"));
         }},
        {"mean_activation", "mean absolute activation (arXiv 1611.06440); needs calibration data",
         [](Options& o) { return mean_activation(read_observation(o)); }},
        {"random", "baseline: uniform scores",
         [](Options& o) {
             return random_scores(static_cast<uint64_t>(o.integer("seed", 0, 0, INT64_MAX, "of the scores")));
         }},
        {"reconstruction",
         "error of the layers that read the channel, chosen greedily (ThiNet, arXiv 1707.06342); needs calibration "
         "data",
         [](Options& o) {
             ReconstructionOptions options;
             options.observe = read_observation(o);
             options.positions = o.integer("positions", options.positions, 1, INT64_MAX,
                                           "of a feature map or sequence, drawn per example");
             options.refit =
                 o.boolean("refit", options.refit, "the error after the weights of the other channels are fitted anew");
             options.ridge = o.number_in("ridge", options.ridge, 0, 1e6,
                                         "for refit: added to the inputs' moments, as a share of their mean diagonal");
             return reconstruction(options);
         }},
        {"taylor", "squared first-order change of the loss (arXiv 1906.10771); needs labelled calibration data",
         [](Options& o) {
             TaylorOptions options;
             options.batches =
                 o.integer("batches", options.batches, 1, INT64_MAX, "batches of calibration data, at most");
             options.batch_size = o.integer("batch_size", options.batch_size, 1, INT64_MAX, "examples per batch");
             options.form = read_choice<TaylorForm>(o, "form", "squared",
                                                    {{"absolute", TaylorForm::kAbsolute},
                                                     {"elementwise", TaylorForm::kElementwise},
                                                     {"squared", TaylorForm::kSquared}},
                                                    "of the sum over w * dL/dw: squared, absolute, or absolute "
                                                    "before adding up");
             options.at = read_choice<TaylorAt>(
                 o, "at", "parameters", {{"gates", TaylorAt::kGates}, {"parameters", TaylorAt::kParameters}},
                 "w: the parameters that make or scale the channel, or a gate where it is read");
             return taylor(options);
         }},
        {"wanda", "|weight| x norm of its input (arXiv 2306.11695); needs calibration data",
         [](Options& o) {
             WandaOptions options;
             options.observe = read_observation(o);
             options.weights = read_choice<WandaWeights>(
                 o, "weights", "read",
                 {{"both", WandaWeights::kBoth}, {"made", WandaWeights::kMade}, {"read", WandaWeights::kRead}},
                 "that count: those that read the channel, those that make it");
             return wanda(options);
         }},
    };
    return kCriteria;
}

const std::vector<Entry<Allocation>>& allocations() {
    static const std::vector<Entry<Allocation>> kAllocations = {
        {"global", "one ranking over all layers", [](Options& o) { return global(read_normaliser(o)); }},
        {"greedy", "the least score per millisecond, multiply-add or byte saved goes first (arXiv 2110.10811)",
         [](Options& o) { return greedy(read_normaliser(o)); }},
        {"isomorphic", "one ranking per kind of structure, the same share of each (arXiv 2407.04616)",
         [](Options& o) { return isomorphic(read_normaliser(o, "none")); }},
        {"sensitivity", "the least measured drop in quality per unit saved goes first; needs data to evaluate by",
         [](Options& o) {
             return sensitivity(
                 o.numbers("ratios", {0.25, 0.5, 0.75}, "shares of a group at which the quality is measured"));
         }},
        {"uniform", "the same share of every layer", [](Options&) { return uniform(); }},
    };
    return kAllocations;
}

const std::vector<Entry<Stage>>& stages() {
    static const std::vector<Entry<Stage>> kStages = {
        {"prune.channel", "removes whole channels, with everything that hangs on them (arXiv 2301.12900)",
         make_channel_pruning},
        {"prune.csr", "sparse linear layers as compressed sparse rows, where measured faster", make_sparse_rows},
        {"prune.depth", "removes whole residual blocks, those that matter least", make_depth_pruning},
        {"prune.weight", "sets single weights to zero: unstructured, n:m, blocks", make_weight_pruning},
    };
    return kStages;
}

}  // namespace coppice::prune
