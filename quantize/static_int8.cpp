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
        check_layers(model, context, options_.fallback, kWhere);
        check_calibration(model, context, kWhere);
    }

    Model apply(const Model& model, Context& context) const override {
        const auto calibration =
            calibration_of(model, context, options_.batches, options_.batch_size, options_.synthetic, kWhere);
        auto options = options_;
        options.progress = progress_of(context, kWhere);
        if (options.weight_bits < 8)
            context.log->warning(std::string(kWhere) +
                                 ": weights of so few bits are simulated: they are stored and multiplied as int8, no "
                                 "faster for them");
        const auto widest = widest_weight(options.reduce_range);
        if (widest < options.weight_bits)
            context.log->info(std::string("weights get 7 bits") +
                              (options.reduce_range == "auto" ? ": this CPU has no VNNI" : "") +
                              ", so that sums of int8 products cannot saturate");
        auto plan = plan_within(model, context, calibration, options, kWhere);
        if (const auto narrow = narrowed(plan); narrow > 0)
            context.log->info(
                std::to_string(narrow) +
                " depthwise convolutions get weights of 7 bits: FBGEMM, which LibTorch runs them by, adds "
                "two products in 16 bits");
        if (options.equalize) tell_equalized(plan.impl().equalized, *context.log);
        if (options.smooth > 0) tell_smoothed(plan.impl().smoothed, *context.log);
        Json seconds = Json::object();
        auto kernels = fastest_kernels(
            kernels_for(plan), [&](const Kernels& which) { return convert(with_kernels(plan, which)); },
            context.example, seconds, *context.log);
        if (!seconds.empty()) context.log->info("int8 kernels: " + kernels.name() + " are the fastest here");
        auto result = convert(with_kernels(plan, kernels));
        if (options_.fallback.on() && kernels.fused() &&
            context.evaluate(result) <
                context.facts["fallback"]["metric_before"].get<double>() - options_.fallback.max_drop) {
            // What max_drop was judged by.
            if (options_.linear == "auto") kernels.linear = "packed";
            if (options_.conv == "auto") kernels.conv = "packed";
            result = convert(with_kernels(plan, kernels));
        }
        record(plan, context, calibration);
        add_layer_seconds(context, prepare(model, context.example, nullptr), result);
        tell_output_noise(context, model, result, kWhere);
        context.facts["engine"] = kernels.engine;
        context.facts["linear"] = kernels.linear;
        context.facts["conv"] = kernels.conv;
        if (!seconds.empty()) context.facts["engine_seconds"] = seconds;
        if (kernels.engine != "x86")
            context.log->warning(
                "stock LibTorch loads int8 models for engine x86; the program that loads this one has to call "
                "at::globalContext().setQEngine before, to run it on " +
                kernels.engine);
        return result;
    }

private:
    /// Layers with fewer bits than the others.
    static int64_t narrowed(const StaticPlan& plan) {
        const auto& impl = plan.impl();
        return std::count_if(impl.units.begin(), impl.units.end(), [&](const Unit& unit) {
            return impl.weights.count(unit.node) && weight_bits_of(impl, unit.node) < impl.weight_bits;
        });
    }

    void tell_equalized(const Equalized& equalized, Log& log) const {
        const auto pairs = std::to_string(equalized.pairs) + (equalized.pairs == 1 ? " pair" : " pairs") + " of layers";
        if (options_.equalize_relu6 == "relu" && equalized.bounded > 0)
            log.warning(std::string(kWhere) + ": equalize replaced ReLU6 by ReLU in " +
                        std::to_string(equalized.bounded) + " of " + pairs +
                        ", which changes the function where values exceed the bound: at most " +
                        formatted("%.3g", 100 * equalized.beyond_ratio) + " % of a layer's calibration values.");
        else if (options_.equalize_relu6 == "keep" && equalized.bounded > 0)
            log.warning(std::string(kWhere) + ": equalize treats " + pairs + " and leaves " +
                        std::to_string(equalized.bounded) +
                        " with a ReLU6 between them. equalize_relu6: calibrated or relu treats them, for a function "
                        "that is no longer the same on all inputs.");
        else
            log.info("equalize treats " + pairs);
    }

    static void tell_smoothed(const Smoothed& smoothed, Log& log) {
        const auto of_all = std::to_string(smoothed.norms) + " of " + std::to_string(smoothed.of) + " layer norms";
        if (smoothed.norms == 0)
            log.warning(std::string(kWhere) + ": smooth did nothing: it treats " + of_all +
                        ". The changes of the stage give the reason for each.");
        else
            log.info("smooth treats " + of_all +
                     (smoothed.multiplied == 0
                          ? ""
                          : ", " + std::to_string(smoothed.multiplied) +
                                " of them with a multiplication for what reads them besides linear layers"));
    }

    void record(const StaticPlan& plan, Context& context, const Calibration& calibration) const {
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
                context.record({layer.layer, "int8", "float32", layer.precision,
                                layer.sqnr_db != 0 ? formatted("SQNR %.1f dB", layer.sqnr_db) + figures(layer) : ""});
            } else {
                context.record({layer.layer, "kept", "float32", "float32", layer.reason});
            }
        }
        auto& facts = context.facts;
        facts["layers"] = layer_rows(plan.layers());
        facts["weight_bits"] = plan.impl().weight_bits;
        facts["reduced_range"] = plan.impl().weight_bits < options_.weight_bits;
        if (const auto narrow = narrowed(plan); narrow > 0) facts["depthwise_layers_of_7_bits"] = narrow;
        if (options_.weight_bits < 8) facts["simulated"] = true;  // stored and multiplied as int8
        facts["int8_layers"] = int8_layers;
        facts["float_layers"] = float_layers;
        facts["int8_weights"] = int8_weights;
        facts["float_weights"] = float_weights;
        if (std::isfinite(worst)) facts["worst_layer_sqnr_db"] = worst;
        if (options_.equalize) {
            facts["equalized_pairs"] = plan.impl().equalized.pairs;
            facts["pairs_around_relu6"] = plan.impl().equalized.bounded;
        }
        if (options_.smooth > 0) {
            facts["smoothed_norms"] = plan.impl().smoothed.norms;
            facts["smoothed_norms_multiplied_back"] = plan.impl().smoothed.multiplied;
            facts["norms"] = plan.impl().smoothed.of;
        }
        facts["calibration_batches"] = calibration.size();
        facts["exact_int8_products"] = exact_int8_products();
        facts["batch_norms_folded"] =
            std::count_if(plan.impl().folded.begin(), plan.impl().folded.end(),
                          [](const LayerChange& change) { return change.action == "folded"; });
    }

    const StaticOptions options_;
};

}  // namespace

Kernels fastest_kernels(const std::vector<Kernels>& candidates, const std::function<Model(const Kernels&)>& build,
                        const Inputs& inputs, Json& seconds, Log& log) {
    constexpr int kRounds = 40, kLeastRounds = 2;
    constexpr double kEnoughSeconds = 0.5;  // what takes long varies less
    constexpr double kGain = 0.97;          // less is noise, and the same kernels in every run are worth something
    torch::NoGradGuard no_grad;
    if (candidates.size() == 1) return candidates.front();
    std::vector<Kernels> all;
    std::vector<Model> models;
    std::exception_ptr failure;
    for (const auto& kernels : candidates) {
        try {
            auto model = build(kernels);
            model.forward(inputs);
            all.push_back(kernels);
            models.push_back(std::move(model));
        } catch (const std::exception& error) {
            failure = std::current_exception();
            log.warning(std::string(kWhere) + ": int8 kernels " + kernels.name() +
                        " do not run this model and are left out: " + message_of(error));
        }
    }
    if (all.empty()) std::rethrow_exception(failure);
    if (all.size() == 1) return all.front();
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
    size_t best = 0;
    for (size_t k = 1; k < all.size(); ++k)
        if (least[k] < kGain * least[best]) best = k;
    return all[best];
}

std::unique_ptr<Stage> static_int8(StaticOptions options) {
    check_options(options);
    return std::make_unique<StaticInt8>(std::move(options));
}

}  // namespace coppice::quantize
