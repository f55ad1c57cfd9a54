// Stage prune.weight: layers as matrices, sums over their inputs, a share of zeros for each, the criterion's choice.
#include <cmath>

#include "messages.h"
#include "weights/weights.h"

namespace coppice::prune {
namespace {

constexpr const char* kWhere = "prune.weight";
// Gram matrices that are in memory at once.
constexpr int64_t kGramBytes = int64_t{2} << 30;

class WeightPruning final : public Stage {
public:
    WeightPruning(std::unique_ptr<WeightCriterion> criterion, std::unique_ptr<WeightPattern> pattern,
                  WeightPruningOptions options)
        : criterion_(std::move(criterion)), pattern_(std::move(pattern)), options_(std::move(options)) {
        ignore_patterns(kWhere, options_.ignore);  // early, for the message
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
        auto layers = layers_of(result);
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
        if (options_.scope == "global" && !pattern_->sparsity())
            rank_globally(model, layers, chosen, sparsity, context);

        std::map<size_t, ZeroCount> zeros;
        double done = 0;
        for (const auto& piece : pieces(layers, chosen, options_.sequential)) {
            auto sums = sums_of(options_.sequential ? result : model, layers, piece, context);
            for (const size_t i : piece) {
                context.log->progress(kWhere, done++, static_cast<double>(chosen.size()), layers[i].name);
                const auto matrix = matrix_of(layers[i], sums);
                if (!layers[i].reason.empty()) continue;
                const auto fresh =
                    from_matrix(layers[i], criterion_->prune(matrix, *pattern_, sparsity[i], options_.scope == "row"));
                zeros[i] = {zeros_in(layers[i].weight), zeros_in(fresh)};
                set_tensor(result, layers[i].attribute, fresh);
            }
        }
        result.refresh();
        verify(result, context.example, kWhere);
        report_zeros(kWhere, layers, zeros, *pattern_, context);
        return result;
    }

private:
    std::vector<WeightLayer> layers_of(const Model& model) const {
        return choose_layers(kWhere, model, options_, *pattern_, criterion_->inputs());
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

    /// A layer that the data does not reach gets a reason.
    WeightMatrix matrix_of(WeightLayer& layer, const std::map<std::string, InputSums>& sums) const {
        WeightMatrix matrix{layer.name, to_matrix(layer), {}, {}};
        if (criterion_->inputs() == InputStatistic::kNone) return matrix;
        const auto found = sums.find(layer.attribute);
        if (found == sums.end()) {
            layer.reason = "the calibration data does not reach it";
            return matrix;
        }
        matrix.squares = found->second.squares;
        matrix.gram = found->second.gram;
        return matrix;
    }

    /// One ranking over the units of all layers decides how many of each go; which ones, each layer decides.
    void rank_globally(const Model& model, std::vector<WeightLayer>& layers, const std::vector<size_t>& chosen,
                       std::vector<double>& sparsity, Context& context) const {
        std::vector<at::Tensor> scores;
        std::vector<size_t> owners;
        for (const auto& piece : pieces(layers, chosen, false)) {
            const auto sums = sums_of(model, layers, piece, context);
            for (const size_t i : piece) {
                const auto matrix = matrix_of(layers[i], sums);
                if (!layers[i].reason.empty()) continue;
                scores.push_back(pattern_->units(criterion_->scores(matrix)));
                owners.push_back(i);
            }
        }
        const auto shares = shares_of_lowest(scores, options_.sparsity);
        for (size_t k = 0; k < owners.size(); ++k) sparsity[owners[k]] = shares[k];
    }

    std::unique_ptr<WeightCriterion> criterion_;
    std::unique_ptr<WeightPattern> pattern_;
    WeightPruningOptions options_;
};

}  // namespace

std::unique_ptr<Stage> weight_pruning(std::unique_ptr<WeightCriterion> criterion,
                                      std::unique_ptr<WeightPattern> pattern, WeightPruningOptions options) {
    if (!(options.sparsity >= 0 && options.sparsity < 1))
        throw InvalidArgument(kWhere, "sparsity is " + text_of(options.sparsity, 4) + ", must be in [0, 1)",
                              "Use 0.5 to set half of the weights to zero.");
    require_known(kWhere, "scope", options.scope, {"global", "layer", "row"});
    if (options.samples < 1 || options.batch_size < 1 || options.min_size < 0)
        throw InvalidArgument(kWhere, "samples and batch_size must be at least 1, min_size at least 0",
                              "The defaults are 128, 32 and 0.");
    return std::make_unique<WeightPruning>(std::move(criterion), std::move(pattern), std::move(options));
}

}  // namespace coppice::prune
