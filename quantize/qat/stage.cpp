// Stage quantize.qat and the table of quantizers.
#include <coppice/error.h>
#include <coppice/training_task.h>

#include "calibration/calibration.h"
#include "layers/layers.h"
#include "plan/plan.h"
#include "qat/converting.h"
#include "qat/rounding.h"

namespace coppice::quantize {
namespace {

constexpr const char* kWhere = "quantize.qat";
constexpr int64_t kCalibrationBatches = 8, kCalibrationBatchSize = 64;
constexpr double kNoisyDb = 3;  // the noise has half of the signal's energy

/// Folded batch norms no longer hold activations to one size, and steps are rounded: without these ResNet-20 diverges
/// at the trainer's own defaults, in 8 bits and whatever the quantizer (tests/bench/results/qat.md).
TrainOptions defaults() {
    TrainOptions options;
    options.lr = 0.005;
    options.clip_norm = 1;
    options.warmup_epochs = 0.1;
    return options;
}

class Qat final : public Stage {
public:
    /// From when on something stays as it is, in epochs; 0: never.
    struct Freeze {
        double observers = 0, norms = 0;
    };

    Qat(TrainingTask task, QatOptions options, Json quantizer, Freeze freeze)
        : task_(std::move(task)), options_(std::move(options)), quantizer_(std::move(quantizer)), freeze_(freeze) {}

    Needs needs() const override {
        auto needs = task_.needs();
        needs.calibration_data = true;
        return needs;
    }

    void check(const Model& model, const Context& context) const override {
        refuse_unusable(model, kWhere);
        task_.check(model, context);
    }

    Model apply(const Model& model, Context& context) const override {
        if (!context.data.train) throw InvalidArgument(kWhere, "there is no training data", "Give data a train split.");
        const auto calibration = batches_of(context, kCalibrationBatches, kCalibrationBatchSize, kWhere);
        if (calibration.empty())
            throw InvalidArgument(kWhere, "there is no calibration data", "Give data a calibration or train split.");
        auto options = options_;
        options.progress = progress_of(context, kWhere);
        const auto batch = task_.options().batch_size, size = context.data.train->size();
        const auto steps = task_.options().drop_last ? size / batch : (size + batch - 1) / batch;
        const auto batches_until = [&](double epoch) -> int64_t {
            return epoch > 0 ? std::max<int64_t>(1, std::llround(epoch * static_cast<double>(steps))) : 0;
        };
        options.watch_batches = batches_until(freeze_.observers);
        options.norm_batches = batches_until(freeze_.norms);
        const auto training = prepare(model, context.example, calibration, options);
        if (training.simulated())
            context.log->warning(
                "quantize.qat: the result is simulated: it computes in float what integers of so few bits would give, "
                "and is neither smaller nor faster for them");
        else if (options.weight_bits < 8 || options.first_last_bits < 8)
            context.log->warning(
                "quantize.qat: weights of so few bits are simulated: they are stored and multiplied as int8, no faster "
                "for them");
        {
            EvaluateConverted evaluating(context, training);
            Model trained = training.model();
            std::optional<double> start;
            if (task_.evaluates() && context.evaluate) start = context.evaluate(trained);
            const auto module = training.trainable();
            const auto result = task_.run(trained, *module, context);
            module->train(false);
            judge(start, result, context);
        }
        auto result = convert(training);
        if (training.simulated()) keep_outputs_contiguous(result, model, context.example);
        record(training, calibration, context);
        add_layer_seconds(context, training.model(), result);
        return result;
    }

private:
    /// While it lives, the metric after each epoch is that of the quantized model, diverged or not: a better epoch may
    /// be kept.
    class EvaluateConverted {
    public:
        EvaluateConverted(Context& context, const QatModel& training) : context_(context), before_(context.evaluate) {
            if (before_)
                context.evaluate = [evaluate = before_, training](const Model&) {
                    return evaluate(converted(training));
                };
        }
        ~EvaluateConverted() { context_.evaluate = before_; }
        EvaluateConverted(const EvaluateConverted&) = delete;

    private:
        Context& context_;
        const std::function<double(const Model&)> before_;
    };

    /// Training that did harm is said to have.
    static void judge(const std::optional<double>& start, const TrainResult& result, Context& context) {
        context.facts["metric_at_start"] = start ? Json(*start) : Json();
        if (!start) return;
        for (const auto& epoch : result.epochs)
            if (epoch.epoch == result.kept_epoch && epoch.metric && *epoch.metric < *start)
                context.log->warning(
                    std::string(kWhere) + ": training made the quantized model worse, from " +
                    formatted("%.4g", *start) + " to " + formatted("%.4g", *epoch.metric) +
                    " of the metric. Try a lower lr or clip_norm, a longer warmup_epochs, or more epochs.");
    }

    static void warn_of_noise(const std::vector<LayerPlan>& layers, Context& context) {
        const LayerPlan* worst = nullptr;
        int64_t noisy = 0;
        for (const auto& layer : layers) {
            if (!layer.int8 || layer.parameters == 0 || layer.sqnr_db >= kNoisyDb) continue;
            ++noisy;
            if (!worst || layer.sqnr_db < worst->sqnr_db) worst = &layer;
        }
        if (!worst) return;
        context.log->warning(
            std::string(kWhere) + ": " + std::to_string(noisy) + (noisy == 1 ? " layer is" : " layers are") +
            " mostly noise where each is rounded by itself; worst " + worst->layer + ", " +
            formatted("%.1f", worst->sqnr_db) + " dB with " + formatted("%.0f", 100 * worst->clipped_ratio) +
            " % of its input clipped. Did training diverge? Try a lower lr, or more bits.");
    }

    /// Batch norms with why they did not train, where they should have.
    void record_norms(const QatModel& training, Context& context) const {
        const auto norms = training.norms();
        std::map<std::string, std::string> reasons;
        int64_t trained = 0;
        for (const auto& norm : norms) {
            trained += norm.action == "trained";
            if (norm.action == "folded") reasons[norm.layer] = "it did not train: " + norm.reason;
        }
        for (auto change : training.plan().impl().folded) {
            if (const auto why = reasons.find(change.layer); why != reasons.end()) change.reason = why->second;
            context.record(change);
        }
        context.facts["bn"] = trained > 0 ? "trained" : "folded";
        if (!options_.train_norms) return;
        context.facts["trained_norms"] = trained;
        context.facts["folded_norms"] = reasons.size();
        if (trained == 0)
            context.log->warning(std::string(kWhere) + ": bn is trained, and " +
                                 (norms.empty() ? "there is no batch norm to train"
                                                : "none of " + std::to_string(norms.size()) + " batch norms trains; " +
                                                      norms.front().layer + ": " + norms.front().reason));
    }

    void record(const QatModel& training, const std::vector<Inputs>& calibration, Context& context) const {
        const bool in_float = training.simulated();
        record_norms(training, context);
        Json rows = Json::array();
        for (const auto& [name, quantizer] : training.quantizers()) {
            const auto scale = quantizer->scale();
            rows.push_back({{"name", name},
                            {"bits", quantizer->options().bits},
                            {"least_scale", scale.min().item<double>()},
                            {"largest_scale", scale.max().item<double>()}});
        }
        int64_t layers = 0, float_layers = 0;
        const auto plans = training.layers(calibration);
        for (const auto& layer : plans) {
            if (!layer.int8) {
                context.record({layer.layer, "kept", "float32", "float32", layer.reason});
                float_layers += layer.parameters > 0;
                continue;
            }
            layers += layer.parameters > 0;
            context.record({layer.layer, in_float ? "simulated" : "int8", "float32", layer.precision, ""});
        }
        warn_of_noise(plans, context);
        auto& facts = context.facts;
        // Weights of few bits are stored and multiplied as int8 where activations have 8.
        facts["simulated"] = in_float || options_.weight_bits < 8 || options_.first_last_bits < 8;
        facts["quantizer"] = quantizer_;
        facts["weight_bits"] = options_.weight_bits;
        facts["activation_bits"] = options_.activation_bits;
        facts["first_last_bits"] = options_.first_last_bits;
        facts["quantizers"] = rows;
        facts["layers"] = layer_rows(plans);
        facts["quantized_layers"] = layers;
        facts["float_layers"] = float_layers;
        if (!in_float) facts["engine"] = "x86";
    }

    const TrainingTask task_;
    const QatOptions options_;
    const Json quantizer_;
    const Freeze freeze_;
};

std::unique_ptr<Stage> make_qat(Options& o, const std::vector<Entry<Loss>>& losses) {
    TrainingTask task(o, losses, defaults());
    QatOptions options;
    options.weight_bits = o.integer("weight_bits", options.weight_bits, 2, 8,
                                    "of weights; below 8 with 8-bit activations: stored as int8");
    options.activation_bits = o.integer("activation_bits", options.activation_bits, 2, 8,
                                        "8: the result is int8; fewer: it is simulated in float, no gain in speed");
    options.first_last_bits =
        o.integer("first_last_bits", options.first_last_bits, 2, 8, "of the first and last layer's weights and inputs");
    options.quantizer = make(o, "quantizer", "lsq", quantizers(), "how scales are found");
    Json quantizer = o.resolved().at("quantizer");
    constexpr const char* kObserver =
        "finds the ranges at which scales of activations start, on all calibration data; default: each quantizer's way";
    if (o.raw("observer", kObserver))
        options.observer = make(o, "observer", "histogram", observers(), kObserver);
    else
        o.remember({"observer", "name", "", kObserver});
    options.per_channel = o.boolean("per_channel", options.per_channel, "one scale per output channel of a weight");
    options.ignore = o.texts("ignore", {}, "regular expressions: layers that stay in float");
    options.train_norms =
        o.choice("bn", "folded", {"folded", "trained"},
                 "batch norms: folded before training, or by each batch's statistics and folded after it") == "trained";
    const double epochs = static_cast<double>(task.options().epochs);
    Qat::Freeze freeze;
    freeze.observers =
        o.number_in("freeze_observer_epoch", 0, 0, epochs, "when ranges of minmax stop following the values; 0: never");
    freeze.norms = o.number_in("freeze_bn_epoch", 0, 0, epochs,
                               "bn: trained: when running statistics replace each batch's and stay; 0: never");
    if (freeze.observers > 0 && options.quantizer->learns())
        throw o.error("freeze_observer_epoch", "has no ranges to end: this quantizer learns its scales",
                      "Use quantizer: minmax, or leave freeze_observer_epoch out.");
    if (freeze.norms > 0 && !options.train_norms)
        throw InvalidArgument(kWhere, "freeze_bn_epoch has nothing to freeze with bn: folded", "Add bn: trained.");
    return std::make_unique<Qat>(std::move(task), std::move(options), std::move(quantizer), freeze);
}

}  // namespace

const std::vector<Entry<Quantizer>>& quantizers() {
    static const std::vector<Entry<Quantizer>> table = {
        {"lsq", "learned scales (arXiv 1902.08153)", [](Options&) { return lsq(); }},
        {"lsq_plus", "learned scales and offsets of activations (arXiv 2004.09576)",
         [](Options&) { return lsq_plus(); }},
        {"minmax", "ranges follow the values (arXiv 1712.05877)",
         [](Options& o) { return minmax_range(o.number("momentum", 0.01, "weight of the newest batch")); }},
        {"pact", "learned clipping of activations, minmax weights (arXiv 1805.06085)", [](Options&) { return pact(); }},
    };
    return table;
}

std::vector<Entry<Stage>> training_stages(std::vector<Entry<Loss>> losses) {
    return {{"quantize.qat", "trains with rounding: int8 at 8 bits, simulated in float below (arXiv 1902.08153)",
             [losses](Options& o) { return make_qat(o, losses); }}};
}

}  // namespace coppice::quantize
