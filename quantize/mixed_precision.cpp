// Stage quantize.mixed: how exact each layer has to be, under a budget.
//
//     least sum of losses over layers l and their precisions p, one each, so that the sum of costs stays in the budget
//
// Losses come from a Sensitivity, costs are bytes, bit operations or seconds. That losses add up is an assumption, so
// the metric can be asked in the end (max_drop), and a budget of time is checked on the whole model.
#include <cmath>
#include <limits>

#include <coppice/error.h>

#include "calibration/calibration.h"
#include "layers/layers.h"
#include "mixed/table.h"
#include "mixed/upgrades.h"

namespace coppice::quantize {
namespace {

constexpr const char* kWhere = "quantize.mixed";
constexpr int kTimingRounds = 4;  // of tightening, when the whole model is slower than its layers promised

class Mixed final : public Stage {
public:
    explicit Mixed(MixedOptions options) : options_(std::move(options)) {
        if (!options_.sensitivity) options_.sensitivity = output_divergence();
        if (!options_.allocation) options_.allocation = exact_allocation();
        if (!options_.timer) options_.timer = fastest_seconds;
    }

    Needs needs() const override { return options_.sensitivity->needs(); }

    void check(const Model& model, const Context& context) const override {
        check_layers(model, context, options_.fallback, kWhere);
        if (calibrates()) check_calibration(model, context, kWhere);
    }

    Model apply(const Model& model, Context& context) const override {
        refuse_unusable(model, kWhere);
        PrecisionTable table(model,
                             {kWhere, options_.precisions, options_.rounding, options_.ignore, options_.min_sqnr_db,
                              options_.batches, options_.batch_size, options_.examples, calibrates()},
                             context);
        const bool timed = options_.budget == "latency";
        if (timed) table.measure_seconds(options_.timer, context);
        const auto losses = options_.sensitivity->measure(table, context);
        check(losses, table);
        Layers layers;
        double float_cost = 0;
        for (size_t row = 0; row < table.rows().size(); ++row) {
            auto& options = layers.emplace_back();
            const auto& trials = table.rows()[row].trials;
            for (size_t i = 0; i < trials.size(); ++i) options.push_back({cost_of(trials[i]), losses[row][i]});
            float_cost += options[0].cost;
        }
        torch::NoGradGuard no_grad;
        if (const double least = sum_of(layers, cheapest(layers)).cost;
            !timed && options_.ratio > 0 && options_.ratio * float_cost < least)
            throw InvalidArgument(
                kWhere,
                c10::str("ratio ", options_.ratio, " leaves ", std::llround(options_.ratio * float_cost),
                         options_.budget == "size" ? " bytes" : " bit operations", "; the cheapest precisions cost ",
                         std::llround(least)),
                c10::str("Use a ratio of at least ", std::ceil(1000 * least / float_cost) / 1000,
                         ", 0 for the cheapest, or allow precisions that cost less."));
        auto chosen =
            timed ? within_time(table, layers, float_cost, context) : within(layers, options_.ratio * float_cost);
        const auto front = upgrades(layers, cheapest(layers), std::numeric_limits<double>::infinity());
        auto steps = upgrades(layers, chosen, std::numeric_limits<double>::infinity());
        steps.insert(steps.begin(), chosen);
        // The last step has no loss left in it: usually that is float, which needs no stage.
        if (steps.size() > 1) steps.pop_back();
        std::map<size_t, PrecisionTable::Built> built;
        const auto build = [&](size_t step) {
            auto& known = built[step];
            if (!known.model.defined()) known = table.build(steps[step]);
            return known.model;
        };
        auto best = fall_back(model, steps.size() - 1, build, options_.fallback, context, kWhere, "steps");
        chosen = steps[best.second];
        record(table, layers, chosen, built.at(best.second).details, context);
        keep_outputs_contiguous(best.first, model, context.example);
        add_layer_seconds(context, table.prepared(), best.first);
        tell_output_noise(context, model, best.first, kWhere);
        auto& facts = context.facts;
        facts["budget"] = options_.budget;
        facts["ratio"] = options_.ratio;
        facts["loss_unit"] = options_.sensitivity->unit();
        facts["float_cost"] = float_cost;
        facts["cost"] = sum_of(layers, chosen).cost;
        facts["loss"] = sum_of(layers, chosen).loss;
        Json points = Json::array();
        const auto add = [&](const std::vector<size_t>& point) {
            const auto sum = sum_of(layers, point);
            points.push_back({{"cost", sum.cost}, {"loss", sum.loss}});
        };
        add(cheapest(layers));
        for (const auto& point : front) add(point);
        facts["front"] = points;
        if (best.second > 0)
            context.log->info(std::string(kWhere) + ": max_drop took " + std::to_string(best.second) +
                              " steps beyond the budget");
        return best.first;
    }

private:
    using Layers = std::vector<std::vector<PrecisionOption>>;

    /// Losses are compared and added: one that is no number would decide for nothing, and unnoticed.
    static void check(const std::vector<std::vector<double>>& losses, const PrecisionTable& table) {
        for (size_t row = 0; row < losses.size(); ++row)
            for (size_t trial = 0; trial < losses[row].size(); ++trial) {
                if (std::isfinite(losses[row][trial])) continue;
                const auto& layer = table.rows()[row];
                throw UnsupportedModel(std::string(kWhere) + " at " + layer.layer.facts.name,
                                       "its loss in precision " + layer.trials[trial].precision + " is " +
                                           formatted("%g", losses[row][trial]),
                                       "Ignore this layer, leave the precision out, or use sensitivity: sqnr.");
            }
    }

    bool calibrates() const {
        const auto& wanted = options_.precisions;
        return std::find(wanted.begin(), wanted.end(), "static") != wanted.end() ||
               (options_.rounding && options_.rounding->needs_moments());
    }

    double cost_of(const Trial& trial) const {
        if (options_.budget == "size") return static_cast<double>(trial.bytes);
        return options_.budget == "bops" ? trial.bops : trial.seconds;
    }

    std::vector<size_t> within(const Layers& layers, double budget) const {
        if (options_.ratio == 0) return cheapest(layers);
        return options_.allocation->choose(layers, budget);
    }

    /// Layers alone do not tell what conversions between them cost: the whole model is timed, and what it takes too
    /// long goes off the layers' budget.
    std::vector<size_t> within_time(const PrecisionTable& table, const Layers& layers, double float_cost,
                                    Context& context) const {
        const double before = options_.timer(table.prepared(), context.example);
        const double limit = options_.ratio * before;
        const double least = sum_of(layers, cheapest(layers)).cost;
        double budget = limit - std::max(0.0, before - float_cost);  // what is no layer takes its time in any case
        std::vector<size_t> best;
        double best_seconds = std::numeric_limits<double>::infinity();
        Json tried = Json::array();
        for (int round = 0; round < kTimingRounds; ++round) {
            const auto chosen = within(layers, std::max(budget, least));
            const double seconds = options_.timer(table.build(chosen).model, context.example);
            tried.push_back({{"layers_budget_seconds", budget}, {"seconds", seconds}});
            if (seconds < best_seconds) {
                best = chosen;
                best_seconds = seconds;
            }
            if (seconds <= limit || budget <= least || options_.ratio == 0) break;
            budget -= seconds - limit;
            if (context.interrupted()) throw Interrupted(kWhere, "stopped while timing models", "");
        }
        context.facts["latency"] = {{"float_seconds", before},
                                    {"limit_seconds", limit},
                                    {"seconds", best_seconds},
                                    {"holds", best_seconds <= limit || options_.ratio == 0},
                                    {"tried", tried}};
        if (best_seconds > limit && options_.ratio > 0)
            context.log->warning(std::string(kWhere) + ": no choice of precisions reached " +
                                 std::to_string(limit * 1e3) + " ms; the fastest one found takes " +
                                 std::to_string(best_seconds * 1e3) + " ms");
        return best;
    }

    void record(const PrecisionTable& table, const Layers& layers, const std::vector<size_t>& chosen,
                const std::vector<std::string>& details, Context& context) const {
        for (const auto& change : table.folded()) context.record(change);
        Json rows = Json::array();
        Json counts = Json::object();
        int64_t float_bytes = 0, bytes = 0;
        double float_bops = 0, bops = 0;
        for (size_t i = 0; i < table.rows().size(); ++i) {
            const auto& row = table.rows()[i];
            const auto& trial = row.trials[chosen[i]];
            float_bytes += row.trials[0].bytes;
            bytes += trial.bytes;
            float_bops += row.trials[0].bops;
            bops += trial.bops;
            counts[trial.precision] = counts.value(trial.precision, 0) + 1;
            Json trials = Json::array();
            std::string reason;
            for (size_t k = 0; k < row.trials.size(); ++k) {
                trials.push_back(
                    {{"precision", row.trials[k].precision}, {"cost", layers[i][k].cost}, {"loss", layers[i][k].loss}});
                if (k > 0) trials.back()["sqnr_db"] = row.trials[k].sqnr_db();
            }
            for (const auto& [precision, why] : row.refused)
                reason += (reason.empty() ? "" : "; ") + precision + ": " + why;
            Json entry = {{"layer", row.layer.facts.name},
                          {"op", row.layer.op},
                          {"parameters", row.layer.parameters},
                          {"precision", trial.precision},
                          {"trials", trials}};
            if (chosen[i] > 0) {
                entry["sqnr_db"] = trial.sqnr_db();
                if (trial.range.low != 0 || trial.range.high != 0)
                    entry["input_range"] = {trial.range.low, trial.range.high};
                if (trial.clipped_ratio) entry["clipped_ratio"] = *trial.clipped_ratio;
            }
            if (!reason.empty()) entry["refused"] = reason;
            rows.push_back(entry);
            char text[96];
            std::snprintf(text, sizeof text, "SQNR %.1f dB, loss %.3g", trial.sqnr_db(), layers[i][chosen[i]].loss);
            if (chosen[i] > 0)
                context.record({row.layer.facts.name, trial.precision, "float32", details[i], text});
            else
                context.record({row.layer.facts.name, "kept", "float32", "float32",
                                row.trials.size() > 1 ? "the budget goes round with it in float" : reason});
        }
        context.facts["layers"] = rows;
        context.facts["precisions"] = counts;
        context.facts["float_weight_bytes"] = float_bytes;
        context.facts["weight_bytes"] = bytes;
        context.facts["float_bops"] = float_bops;
        context.facts["bops"] = bops;
        context.facts["examples"] = table.sample().target.defined() ? table.sample().examples() : 0;
    }

    MixedOptions options_;
};

}  // namespace

std::unique_ptr<Stage> mixed_precision(MixedOptions options) {
    for (const auto& precision : options.precisions)
        require_known(kWhere, "precision", precision, {"bf16", "dynamic", "fp16", "int4", "int8", "static"});
    if (options.precisions.empty())
        throw InvalidArgument(kWhere, "precisions is empty", "Name at least one beside float, such as static.");
    require_known(kWhere, "budget", options.budget, {"bops", "latency", "size"});
    if (!(options.ratio >= 0 && options.ratio <= 1))
        throw InvalidArgument(kWhere, "ratio is " + std::to_string(options.ratio) + ", must be in [0, 1]", "Use 0.3.");
    if (options.rounding && options.rounding->scales_inputs())
        throw InvalidArgument(kWhere, "rounding awq scales a layer's input, which not every precision can follow",
                              "Use gptq, or awq in quantize.weight_only.");
    if (options.rounding && options.rounding->blocks())
        throw InvalidArgument(kWhere, "rounding brecq treats layers together, this stage one by one",
                              "Use adaround or gptq, or brecq in quantize.static.");
    if (options.rounding && options.rounding->moves_offsets() &&
        std::find(options.precisions.begin(), options.precisions.end(), "static") != options.precisions.end())
        throw InvalidArgument(kWhere, "rounding hqq moves offsets, which the weights of precision static do not have",
                              "Use gptq or adaround, or precisions without static.");
    if (options.batches < 1 || options.batch_size < 1 || options.examples < 1)
        throw InvalidArgument(kWhere, "batches, batch_size and examples must be at least 1", "");
    return std::make_unique<Mixed>(std::move(options));
}

}  // namespace coppice::quantize
