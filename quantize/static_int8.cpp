// Stage quantize.static: post-training quantization to int8 with ranges from calibration data (Jacob et al., arXiv
// 1712.05877; Wu et al., arXiv 2004.09602).
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>

#include <coppice/error.h>
#include <coppice/quantize.h>

#include "calibration/calibration.h"
#include "layers/layers.h"
#include "plan/plan.h"

namespace coppice::quantize {
namespace {

constexpr const char* kWhere = "quantize.static";

/// Converts for each and returns the fastest: the least time of a few rounds in which each has its turn, so that what
/// else the machine does meets all of them.
Kernels fastest_kernels(const StaticPlan& plan, const Inputs& inputs, Json& seconds) {
    constexpr int kRounds = 40, kLeastRounds = 2;
    constexpr double kEnoughSeconds = 0.5;  // what takes long varies less
    torch::NoGradGuard no_grad;
    const auto all = kernels_for(plan);
    if (all.size() == 1) return all.front();
    std::vector<Model> models;
    for (const auto& kernels : all) {
        models.push_back(convert(with_kernels(plan, kernels)));
        models.back().forward(inputs);
    }
    std::vector<double> least(all.size(), std::numeric_limits<double>::infinity());
    double spent = 0;
    for (int i = 0; i < kRounds && (i < kLeastRounds || spent < kEnoughSeconds); ++i) {
        for (size_t k = 0; k < all.size(); ++k) {
            const auto start = std::chrono::steady_clock::now();
            models[k].forward(inputs);
            const double time = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
            least[k] = std::min(least[k], time);
            spent += time;
        }
    }
    for (size_t k = 0; k < all.size(); ++k) seconds[all[k].name()] = least[k];
    return all[static_cast<size_t>(std::min_element(least.begin(), least.end()) - least.begin())];
}

std::string decibel(double value) {
    char text[48];
    std::snprintf(text, sizeof text, "SQNR %.1f dB", value);
    return text;
}

std::string figures(const LayerPlan& layer) {
    char text[112];
    std::snprintf(text, sizeof text, ", input %.4g ... %.4g, %.3g of it clipped", layer.range.low, layer.range.high,
                  layer.clipped_ratio);
    return text;
}

class StaticInt8 final : public Stage {
public:
    explicit StaticInt8(StaticOptions options) : options_(std::move(options)) {}

    void check(const Model& model, const Context& context) const override {
        refuse_other_methods(model, kWhere);
        check_calibration(model, context, kWhere);
    }

    Model apply(const Model& model, Context& context) const override {
        const auto calibration =
            calibration_of(model, context, options_.batches, options_.batch_size, options_.synthetic, kWhere);
        auto options = options_;
        options.progress = [&](const std::string& block, double done, double total) {
            context.log->progress("rounding weights", done, total, block);
            if (context.interrupted()) throw Interrupted(kWhere, "stopped while rounding weights", "");
        };
        auto plan = with_fallback(model, context, calibration, options);
        Json seconds = Json::object();
        auto kernels = fastest_kernels(plan, context.example, seconds);
        if (!seconds.empty()) context.log->info("int8 kernels: " + kernels.name() + " are the fastest here");
        auto result = convert(with_kernels(plan, kernels));
        if (options_.fallback.on() && options_.linear == "auto" && kernels.linear == "fused" &&
            context.evaluate(result) <
                context.facts["fallback"]["metric_before"].get<double>() - options_.fallback.max_drop) {
            kernels.linear = "packed";  // what max_drop was judged by
            result = convert(with_kernels(plan, kernels));
        }
        record(plan, context, calibration);
        add_layer_seconds(context, prepare(model, context.example, nullptr), result);
        context.facts["engine"] = kernels.engine;
        context.facts["linear"] = kernels.linear;
        if (!seconds.empty()) context.facts["engine_seconds"] = seconds;
        if (kernels.engine != "x86")
            context.log->warning(
                "stock LibTorch loads int8 models for engine x86; the program that loads this one has to call "
                "at::globalContext().setQEngine before, to run it on " +
                kernels.engine);
        return result;
    }

private:
    /// The plan, or that with the noisiest layers in float where the metric asks for it. Each try plans anew: borders
    /// move when a layer leaves.
    static StaticPlan with_fallback(const Model& model, Context& context, const std::vector<Inputs>& calibration,
                                    const StaticOptions& given) {
        auto first = plan_static(model, context.example, calibration, given);
        if (!given.fallback.on()) return first;
        std::vector<size_t> order;
        const auto& layers = first.layers();
        for (size_t i = 0; i < layers.size(); ++i)
            if (layers[i].int8 && layers[i].parameters > 0) order.push_back(i);
        std::stable_sort(order.begin(), order.end(),
                         [&](size_t a, size_t b) { return layers[a].sqnr_db < layers[b].sqnr_db; });
        if (!order.empty()) order.pop_back();  // with every layer in float nothing is left of the stage
        std::map<size_t, StaticPlan> plans{{0, first}};
        const auto plan_with = [&](size_t floats) {
            if (const auto found = plans.find(floats); found != plans.end()) return found->second;
            auto options = given;
            for (size_t i = 0; i < floats; ++i) options.ignore.push_back(exactly(layers[order[i]].layer));
            return plans.emplace(floats, plan_static(model, context.example, calibration, options)).first->second;
        };
        const auto best = fall_back(
            model, order.size(), [&](size_t floats) { return convert(plan_with(floats)); }, given.fallback, context,
            kWhere);
        return plan_with(best.second);
    }

    void record(const StaticPlan& plan, Context& context, const std::vector<Inputs>& calibration) const {
        for (const auto& change : plan.impl().folded) context.record(change);
        int64_t int8_layers = 0, float_layers = 0, int8_weights = 0, float_weights = 0;
        double worst = std::numeric_limits<double>::infinity();
        for (const auto& layer : plan.layers()) {
            if (layer.parameters > 0) {
                ++(layer.int8 ? int8_layers : float_layers);
                (layer.int8 ? int8_weights : float_weights) += layer.parameters;
            }
            if (layer.int8) {
                if (layer.sqnr_db != 0) worst = std::min(worst, layer.sqnr_db);
                context.record({layer.layer, "int8", "float32", "int8",
                                layer.sqnr_db != 0 ? decibel(layer.sqnr_db) + figures(layer) : ""});
            } else {
                context.record({layer.layer, "kept", "float32", "float32", layer.reason});
            }
        }
        auto& facts = context.facts;
        facts["layers"] = layer_rows(plan.layers());
        facts["weight_bits"] = options_.weight_bits;
        if (options_.weight_bits < 8) facts["simulated"] = true;  // stored and multiplied as int8
        facts["int8_layers"] = int8_layers;
        facts["float_layers"] = float_layers;
        facts["int8_weights"] = int8_weights;
        facts["float_weights"] = float_weights;
        if (std::isfinite(worst)) facts["worst_layer_sqnr_db"] = worst;
        facts["calibration_batches"] = calibration.size();
        facts["exact_int8_products"] = exact_int8_products();
        facts["batch_norms_folded"] =
            std::count_if(plan.impl().folded.begin(), plan.impl().folded.end(),
                          [](const LayerChange& change) { return change.action == "folded"; });
    }

    const StaticOptions options_;
};

}  // namespace

std::unique_ptr<Stage> static_int8(StaticOptions options) {
    const auto positive = [](const char* name, int64_t value) {
        if (value < 1)
            throw InvalidArgument(kWhere, std::string(name) + " is " + std::to_string(value) + ", must be at least 1",
                                  "");
    };
    positive("batches", options.batches);
    positive("batch_size", options.batch_size);
    if (options.weight_bits < 2 || options.weight_bits > 8)
        throw InvalidArgument(kWhere, "weight_bits is " + std::to_string(options.weight_bits) + ", must be in [2, 8]",
                              "Use 8, or 4.");
    if (options.rounding && options.rounding->scales_inputs())
        throw InvalidArgument(kWhere, "rounding awq scales a layer's input, which int8 inputs cannot follow",
                              "Use gptq or adaround, or awq in quantize.weight_only.");
    if (!(options.smooth >= 0 && options.smooth <= 1))
        throw InvalidArgument(kWhere, "smooth is " + std::to_string(options.smooth) + ", must be in [0, 1]",
                              "Use 0.5, or 0 to leave it out.");
    if (options.activation_levels != 0 && options.activation_levels != 128 && options.activation_levels != 256)
        throw InvalidArgument(kWhere, "activation_levels is " + std::to_string(options.activation_levels),
                              "Use 256, 128 for CPUs without VNNI, or 0 to choose by this CPU.");
    const auto known = engines();
    if (options.engine != "auto" && std::find(known.begin(), known.end(), options.engine) == known.end())
        throw_unknown(kWhere, "engine", options.engine, known);
    const std::vector<std::string> kinds = {"auto", "fused", "packed"};
    if (std::find(kinds.begin(), kinds.end(), options.linear) == kinds.end())
        throw_unknown(kWhere, "linear", options.linear, kinds);
    if (options.linear == "fused" && !exact_int8_products())
        throw InvalidArgument(kWhere, "linear is fused, whose sums saturate on a CPU without VNNI", "Use packed.");
    return std::make_unique<StaticInt8>(std::move(options));
}

}  // namespace coppice::quantize
