// Stage prune.weight: layers as matrices, sums over their inputs, a share of zeros for each, the criterion's choice.
#include <cmath>

#include "messages.h"
#include "weights/weights.h"

namespace coppice::prune {
namespace {

constexpr const char* kWhere = "prune.weight";
// Gram matrices that are in memory at once.
constexpr int64_t kGramBytes = int64_t{2} << 30;

int64_t zeros_in(const at::Tensor& tensor) {
    return tensor.numel() - tensor.count_nonzero().item<int64_t>();
}

class WeightPruning final : public Stage {
public:
    WeightPruning(std::unique_ptr<WeightCriterion> criterion, std::unique_ptr<WeightPattern> pattern,
                  WeightPruningOptions options)
        : criterion_(std::move(criterion)), pattern_(std::move(pattern)), options_(std::move(options)) {
        ignore_ = ignore_patterns(kWhere, options_.ignore);
    }

    Needs needs() const override { return criterion_->needs(); }

    void check(const Model& model, const Context&) const override {
        refuse_other_methods(model, kWhere);
        layers_of(model);
    }

    Model apply(const Model& model, Context& context) const override {
        torch::NoGradGuard no_grad;
        refuse_other_methods(model, kWhere);
        auto result = model.clone();
        result.eval();
        const auto layers = layers_of(result);
        std::vector<size_t> chosen;
        for (size_t i = 0; i < layers.size(); ++i) {
            if (!layers[i].reason.empty()) continue;
            if (!layers[i].weight.isfinite().all().item<bool>())
                throw UnsupportedModel(std::string(kWhere) + " at " + layers[i].name,
                                       "the weight holds NaN or infinity", "Check the checkpoint.");
            chosen.push_back(i);
        }
        if (criterion_->inputs() != InputStatistic::kNone &&
            (!context.data.calibration || context.data.calibration->size() == 0))
            throw InvalidArgument(kWhere, "there is no calibration data",
                                  "Give `calibration` in `data:`, or use criterion magnitude.");
        std::vector<double> sparsity(layers.size(), pattern_->sparsity().value_or(options_.sparsity));
        std::vector<std::string> unreached(layers.size());
        if (options_.scope == "global" && !pattern_->sparsity())
            rank_globally(model, layers, chosen, sparsity, unreached, context);

        std::map<size_t, std::pair<int64_t, int64_t>> zeros;  // before, after
        double done = 0;
        for (const auto& piece : pieces(layers, chosen, options_.sequential)) {
            auto sums = sums_of(options_.sequential ? result : model, layers, piece, context);
            for (const size_t i : piece) {
                context.log->progress(kWhere, done++, static_cast<double>(chosen.size()), layers[i].name);
                const auto matrix = matrix_of(layers[i], sums, unreached[i]);
                if (!unreached[i].empty()) continue;
                const auto fresh =
                    from_matrix(layers[i], criterion_->prune(matrix, *pattern_, sparsity[i], options_.scope == "row"));
                zeros[i] = {zeros_in(layers[i].weight), zeros_in(fresh)};
                set_tensor(result, layers[i].attribute, fresh);
            }
        }
        result.refresh();
        verify(result, context.example, kWhere);
        report(layers, zeros, unreached, context);
        return result;
    }

private:
    /// All layers; a reason for each that is kept.
    std::vector<WeightLayer> layers_of(const Model& model) const {
        auto layers = find_weight_layers(model);
        std::vector<char> used(ignore_.size(), 0);
        for (auto& layer : layers) {
            for (size_t i = 0; i < ignore_.size(); ++i)
                if (std::regex_search(layer.name, ignore_[i])) {
                    used[i] = 1;
                    layer.reason = "matches `ignore`";
                }
            if (layer.reason.empty()) layer.reason = refuse(layer);
        }
        for (size_t i = 0; i < ignore_.size(); ++i) {
            if (used[i]) continue;
            std::vector<std::string> names;
            for (const auto& layer : layers) names.push_back(layer.name);
            const auto nearest = nearest_name(options_.ignore[i], names);
            throw InvalidArgument(
                kWhere, "ignore \"" + options_.ignore[i] + "\" matches no layer",
                nearest ? "Did you mean \"" + *nearest + "\"?" : "See `coppice inspect` for the names.");
        }
        std::string reasons;
        int named = 0;
        for (const auto& layer : layers) {
            if (layer.reason.empty()) return layers;
            if (named < 3) reasons += (named++ ? "; " : ": ") + layer.name + ": " + layer.reason;
        }
        throw UnsupportedModel(kWhere,
                               layers.empty() ? "the model has no convolution, linear layer or embedding"
                                              : "no weight can be set to zero" + reasons,
                               "See `coppice inspect` for all layers.");
    }

    std::string refuse(const WeightLayer& layer) const {
        if (layer.embedding && !options_.embeddings) return "embeddings are not asked for";
        if (criterion_->inputs() != InputStatistic::kNone) {
            if (layer.embedding) return "an embedding has no inputs to weigh by";
            if (layer.transposed && layer.weight.dim() > 2)
                return "inputs of transposed convolutions are not weighed; use criterion magnitude";
        }
        if (layer.weight.numel() < options_.min_size)
            return "has fewer weights than min_size (" + std::to_string(layer.weight.numel()) + ")";
        const auto& weight = layer.weight;
        const int64_t out = layer.transposed ? weight.size(1) : weight.size(0) / layer.groups;
        const int64_t in = layer.transposed ? weight.size(0) / layer.groups : weight.size(1);
        if (out % pattern_->rows() != 0)
            return std::to_string(out) + " outputs are no multiple of the pattern's " +
                   std::to_string(pattern_->rows());
        if (in % pattern_->columns() != 0)
            return std::to_string(in) + " inputs are no multiple of the pattern's " +
                   std::to_string(pattern_->columns());
        return {};
    }

    /// Layers whose sums are taken in one run over the data: one by one, or as many as fit into memory.
    std::vector<std::vector<size_t>> pieces(const std::vector<WeightLayer>& layers, const std::vector<size_t>& chosen,
                                            bool one_by_one) const {
        std::vector<std::vector<size_t>> pieces;
        int64_t bytes = 0;
        for (const size_t i : chosen) {
            int64_t own = 0;
            if (criterion_->inputs() == InputStatistic::kGram) {
                const int64_t columns = to_matrix(layers[i]).size(2);
                own = layers[i].groups * columns * columns * 8;
            }
            const bool always_fits = criterion_->inputs() == InputStatistic::kNone;
            if (pieces.empty() || (!always_fits && (one_by_one || bytes + own > kGramBytes))) {
                pieces.emplace_back();
                bytes = 0;
            }
            bytes += own;
            pieces.back().push_back(i);
        }
        return pieces;
    }

    std::map<std::string, InputSums> sums_of(const Model& model, const std::vector<WeightLayer>& layers,
                                             const std::vector<size_t>& piece, Context& context) const {
        if (criterion_->inputs() == InputStatistic::kNone) return {};
        std::set<std::string> attributes;
        for (const size_t i : piece) attributes.insert(layers[i].attribute);
        return sum_inputs(model, attributes, criterion_->inputs(), options_.samples, options_.batch_size, context);
    }

    WeightMatrix matrix_of(const WeightLayer& layer, const std::map<std::string, InputSums>& sums,
                           std::string& unreached) const {
        WeightMatrix matrix{layer.name, to_matrix(layer), {}, {}};
        if (criterion_->inputs() == InputStatistic::kNone) return matrix;
        const auto found = sums.find(layer.attribute);
        if (found == sums.end()) {
            unreached = "the calibration data does not reach it";
            return matrix;
        }
        matrix.squares = found->second.squares;
        matrix.gram = found->second.gram;
        return matrix;
    }

    /// One ranking over the units of all layers decides how many of each go; which ones, each layer decides.
    void rank_globally(const Model& model, const std::vector<WeightLayer>& layers, const std::vector<size_t>& chosen,
                       std::vector<double>& sparsity, std::vector<std::string>& unreached, Context& context) const {
        std::vector<at::Tensor> scores;
        std::vector<size_t> owners;
        for (const auto& piece : pieces(layers, chosen, false)) {
            const auto sums = sums_of(model, layers, piece, context);
            for (const size_t i : piece) {
                const auto matrix = matrix_of(layers[i], sums, unreached[i]);
                if (!unreached[i].empty()) continue;
                scores.push_back(pattern_->units(criterion_->scores(matrix)).flatten());
                owners.push_back(i);
            }
        }
        if (scores.empty()) return;
        const auto all = at::cat(scores).unsqueeze(0);
        const auto gone = lowest_mask(all, std::llround(options_.sparsity * static_cast<double>(all.numel())))[0];
        int64_t begin = 0;
        for (size_t k = 0; k < owners.size(); ++k) {
            const int64_t count = scores[k].numel();
            const auto part = gone.slice(0, begin, begin + count).sum().item<int64_t>();
            sparsity[owners[k]] = static_cast<double>(part) / static_cast<double>(count);
            begin += count;
        }
    }

    void report(const std::vector<WeightLayer>& layers, const std::map<size_t, std::pair<int64_t, int64_t>>& zeros,
                const std::vector<std::string>& unreached, Context& context) const {
        int64_t weights = 0, before = 0, after = 0;
        for (size_t i = 0; i < layers.size(); ++i) {
            const auto& layer = layers[i];
            const auto found = zeros.find(i);
            if (found == zeros.end()) {
                context.record({layer.name, "kept", "", "", layer.reason.empty() ? unreached[i] : layer.reason});
                continue;
            }
            const auto [was, is] = found->second;
            const auto share = [&](int64_t count) {
                return "sparsity " + text_of(static_cast<double>(count) / static_cast<double>(layer.weight.numel()), 4);
            };
            context.record({layer.name, is > was ? "sparsified" : "kept", share(was), share(is),
                            is > was ? "" : "the target leaves it as it is"});
            if (is == layer.weight.numel())
                context.log->warning(std::string(kWhere) + " at " + layer.name +
                                     ": every weight is zero now; use scope layer, or put it into `ignore`");
            weights += layer.weight.numel();
            before += was;
            after += is;
        }
        context.facts["pattern"] = pattern_->name();
        context.facts["weights"] = weights;
        context.facts["zeros_before"] = before;
        context.facts["zeros_after"] = after;
        context.facts["sparsity"] = weights ? static_cast<double>(after) / static_cast<double>(weights) : 0.0;
        const std::string note =
            "zeros make the deflated file smaller; LibTorch's dense kernels multiply by them and run no faster (linear "
            "layers with very many: see prune.csr)";
        context.facts["note"] = note;
        context.log->info(std::string(kWhere) + ": " + text_of(context.facts["sparsity"].get<double>(), 4) + " of " +
                          std::to_string(weights) + " weights are zero; " + note);
    }

    std::unique_ptr<WeightCriterion> criterion_;
    std::unique_ptr<WeightPattern> pattern_;
    WeightPruningOptions options_;
    std::vector<std::regex> ignore_;
};

}  // namespace

std::unique_ptr<Stage> weight_pruning(std::unique_ptr<WeightCriterion> criterion,
                                      std::unique_ptr<WeightPattern> pattern, WeightPruningOptions options) {
    if (!(options.sparsity >= 0 && options.sparsity < 1))
        throw InvalidArgument(kWhere, "sparsity is " + text_of(options.sparsity, 4) + ", must be in [0, 1)",
                              "Use 0.5 to set half of the weights to zero.");
    if (options.scope != "global" && options.scope != "layer" && options.scope != "row")
        throw_unknown(kWhere, "scope", options.scope, {"global", "layer", "row"});
    if (options.samples < 1 || options.batch_size < 1 || options.min_size < 0)
        throw InvalidArgument(kWhere, "samples and batch_size must be at least 1, min_size at least 0",
                              "The defaults are 128, 32 and 0.");
    return std::make_unique<WeightPruning>(std::move(criterion), std::move(pattern), std::move(options));
}

}  // namespace coppice::prune
