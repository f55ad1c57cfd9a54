#include "messages.h"
#include "weights/weights.h"

namespace coppice::prune {
namespace {

std::string refuse(const WeightLayer& layer, const WeightPruningOptions& options, const WeightPattern& pattern,
                   InputStatistic inputs) {
    if (layer.embedding && !options.embeddings) return "embeddings are not asked for";
    if (inputs != InputStatistic::kNone) {
        if (layer.embedding) return "an embedding has no inputs to weigh by";
        if (layer.transposed && layer.weight.dim() > 2)
            return "inputs of transposed convolutions are not weighed; use criterion magnitude";
    }
    if (layer.weight.numel() < options.min_size)
        return "has fewer weights than min_size (" + std::to_string(layer.weight.numel()) + ")";
    const auto& weight = layer.weight;
    const int64_t out = layer.transposed ? weight.size(1) : weight.size(0) / layer.groups;
    const int64_t in = layer.transposed ? weight.size(0) / layer.groups : weight.size(1);
    if (out % pattern.rows() != 0)
        return std::to_string(out) + " outputs are no multiple of the pattern's " + std::to_string(pattern.rows());
    if (in % pattern.columns() != 0)
        return std::to_string(in) + " inputs are no multiple of the pattern's " + std::to_string(pattern.columns());
    return {};
}

}  // namespace

std::vector<WeightLayer> choose_layers(const char* where, const Model& model, const WeightPruningOptions& options,
                                       const WeightPattern& pattern, InputStatistic inputs) {
    auto layers = find_weight_layers(model);
    const auto ignore = ignore_patterns(where, options.ignore);
    std::vector<char> used(ignore.size(), 0);
    for (auto& layer : layers) {
        for (size_t i = 0; i < ignore.size(); ++i)
            if (std::regex_search(layer.name, ignore[i])) {
                used[i] = 1;
                layer.reason = "matches `ignore`";
            }
        if (layer.reason.empty()) layer.reason = refuse(layer, options, pattern, inputs);
    }
    for (size_t i = 0; i < ignore.size(); ++i) {
        if (used[i]) continue;
        std::vector<std::string> names;
        for (const auto& layer : layers) names.push_back(layer.name);
        const auto nearest = nearest_name(options.ignore[i], names);
        throw InvalidArgument(where, "ignore \"" + options.ignore[i] + "\" matches no layer",
                              nearest ? "Did you mean \"" + *nearest + "\"?" : "See `coppice inspect` for the names.");
    }
    std::string reasons;
    int named = 0;
    for (const auto& layer : layers) {
        if (layer.reason.empty()) return layers;
        if (named < 3) reasons += (named++ ? "; " : ": ") + layer.name + ": " + layer.reason;
    }
    throw UnsupportedModel(where,
                           layers.empty() ? "the model has no convolution, linear layer or embedding"
                                          : "no weight can be set to zero" + reasons,
                           "See `coppice inspect` for all layers.");
}

int64_t zeros_in(const at::Tensor& tensor) {
    return tensor.numel() - tensor.count_nonzero().item<int64_t>();
}

void report_zeros(const char* where, const std::vector<WeightLayer>& layers, const std::map<size_t, ZeroCount>& zeros,
                  const WeightPattern& pattern, Context& context) {
    int64_t weights = 0, before = 0, after = 0;
    for (size_t i = 0; i < layers.size(); ++i) {
        const auto& layer = layers[i];
        const auto found = zeros.find(i);
        if (found == zeros.end()) {
            context.record({layer.name, "kept", "", "", layer.reason});
            continue;
        }
        const auto [was, is] = found->second;
        const auto share = [&](int64_t count) {
            return "sparsity " + text_of(static_cast<double>(count) / static_cast<double>(layer.weight.numel()), 4);
        };
        context.record({layer.name, is > was ? "sparsified" : "kept", share(was), share(is),
                        is > was ? "" : "the target leaves it as it is"});
        if (is == layer.weight.numel())
            context.log->warning(std::string(where) + " at " + layer.name +
                                 ": every weight is zero now; use scope layer, or put it into `ignore`");
        weights += layer.weight.numel();
        before += was;
        after += is;
    }
    context.facts["pattern"] = pattern.name();
    context.facts["weights"] = weights;
    context.facts["zeros_before"] = before;
    context.facts["zeros_after"] = after;
    context.facts["sparsity"] = weights ? static_cast<double>(after) / static_cast<double>(weights) : 0.0;
    const std::string note =
        "zeros make the deflated file smaller; LibTorch's dense kernels multiply by them and run no faster (linear "
        "layers with very many: see prune.csr)";
    context.facts["note"] = note;
    context.log->info(std::string(where) + ": " + text_of(context.facts["sparsity"].get<double>(), 4) + " of " +
                      std::to_string(weights) + " weights are zero; " + note);
}

}  // namespace coppice::prune
