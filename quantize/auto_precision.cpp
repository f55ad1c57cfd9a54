// Stage quantize.auto: every layer in the fastest precision whose error is allowed.
//
// Layers are taken out of the model and timed alone, on the input that the example gives them; their noise is measured
// on calibration data. Static int8 does not fit this: its gain lies in the operators between layers, which stay int8
// too. So it competes as a whole: static int8 with the chosen forms on what it leaves in float, against the chosen
// forms alone, against float.
#include <cmath>
#include <cstdio>
#include <regex>
#include <set>

#include <coppice/error.h>
#include <coppice/judging.h>
#include <coppice/quantize.h>

#include "calibration/calibration.h"
#include "layers/layers.h"
#include "plan/plan.h"

namespace coppice::quantize {
namespace {

constexpr const char* kWhere = "quantize.auto";
constexpr int kRounds = 3;  // of timing whole models
constexpr const char* kLosesTooMuch = "it loses more than max_drop of the metric";

struct NamedForm {
    std::string name;
    std::unique_ptr<Form> form;
};

class Auto final : public Stage {
public:
    explicit Auto(AutoOptions options) : options_(std::move(options)) {
        if (!options_.timer) options_.timer = fastest_seconds;
    }

    void check(const Model& model, const Context& context) const override {
        check_layers(model, context, options_.fallback, kWhere);
    }

    Model apply(const Model& model, Context& context) const override {
        torch::NoGradGuard no_grad;
        check_layers(model, context, options_.fallback, kWhere);
        const auto forms = make_forms();
        const auto batches = batches_of(context, options_.batches, options_.batch_size, kWhere);
        context.facts["measured_on"] = batches.empty() ? "the example input" : "calibration data";
        std::vector<LayerChange> folded;
        const auto prepared = prepare(model, context.example, &folded);
        auto layers = choose(prepared, forms, batches, context, /*all_match=*/true);
        const auto order = order_of(layers);

        struct Candidate {
            std::string name;
            Model model;
            std::vector<Layer> layers;
            std::vector<std::string> details;
            std::optional<StaticPlan> plan;
            double seconds = 0;
        };
        std::vector<Candidate> candidates;
        std::string why_no_layers;
        Json layers_fallback;
        if (!order.empty()) {
            Candidate layerwise{"layers", {}, layers, {}, {}};
            auto judging = with_facts_of_its_own(context);
            layerwise.model = emit_within(model, prepared, layerwise.layers, order, options_.fallback, judging, kWhere,
                                          layerwise.details);
            if (judging.facts.contains("fallback")) layers_fallback = judging.facts.at("fallback");
            // Judged before anything is timed: what does not hold is no candidate, however fast.
            if (!layers_fallback.is_null() && !layers_fallback.at("holds").get<bool>()) {
                why_no_layers = kLosesTooMuch;
            } else {
                const auto base = restore_transposed(model, context.example, prepared, layerwise.layers);
                if (base.graph() != prepared.graph()) {
                    layerwise.details.clear();
                    layerwise.model = emit_forms(base, layerwise.layers, &layerwise.details);
                }
                candidates.push_back(std::move(layerwise));
            }
        }
        {
            Candidate floating{"float", {}, {}, {}, {}};
            floating.layers = kept(layers, why_no_layers.empty() ? "the whole model is not" : "it loses too much");
            floating.model = restore_transposed(model, context.example, prepared, floating.layers);
            candidates.insert(candidates.begin(), std::move(floating));
        }
        std::string why_no_static;
        std::optional<StaticPlan> plan;
        Json static_fallback;
        if (wants("static") && !batches.empty()) {
            try {
                StaticOptions options;
                options.min_sqnr_db = options_.min_sqnr_db;
                options.ignore = for_static(layers);
                // Ranges want more examples than noise does.
                const auto calibration = calibration_of(model, context, std::max(options.batches, options_.batches),
                                                        std::max(options.batch_size, options_.batch_size), {}, kWhere);
                options.progress = progress_of(context, kWhere);
                const bool judged = options_.fallback.on() && context.evaluate;
                if (judged) options.fallback = options_.fallback;
                auto planning = with_facts_of_its_own(context);
                plan = plan_within(model, planning, calibration, options, kWhere);
                if (judged) static_fallback = planning.facts.at("fallback");
                if (judged && !static_fallback.at("holds").get<bool>())
                    throw UnsupportedModel(kWhere, kLosesTooMuch, "");
                const double least =
                    judged ? static_fallback.at("metric_before").get<double>() - options_.fallback.max_drop : 0;
                for (const auto& kernels : kernels_for(*plan)) {
                    Candidate mixed{"static" + kernels.suffix(), {}, {}, {}, plan};
                    const auto int8 = convert(with_kernels(*plan, kernels));
                    mixed.layers = choose(int8, forms, batches, context, /*all_match=*/false);
                    mixed.model = emit_forms(int8, mixed.layers, &mixed.details);
                    if (judged && !(context.evaluate(mixed.model) >= least)) {
                        // The plan was judged with packed kernels and the rest in float.
                        if (kernels.fused()) continue;
                        mixed.layers = kept(mixed.layers, "the metric needs it in float");
                        mixed.details.clear();
                        mixed.model = int8;
                    }
                    candidates.push_back(std::move(mixed));
                }
            } catch (const UnsupportedModel& error) {
                why_no_static = error.problem();
            }
        } else if (wants("static")) {
            why_no_static = "there is no calibration data";
        }
        // In turns, so that what else the machine does meets all of them.
        for (int round = 0; round < kRounds; ++round)
            for (auto& candidate : candidates) {
                const double seconds = options_.timer(candidate.model, context.example);
                candidate.seconds = round == 0 ? seconds : std::min(candidate.seconds, seconds);
                if (context.interrupted()) throw Interrupted(kWhere, "stopped while timing models", "");
            }
        size_t best = 0;
        Json seconds = Json::object();
        for (size_t i = 0; i < candidates.size(); ++i) {
            seconds[candidates[i].name] = candidates[i].seconds;
            if (candidates[i].seconds < candidates[best].seconds) best = i;
        }
        auto chosen = std::move(candidates[best]);
        const bool as_it_is = chosen.name == "float";
        if (!as_it_is)
            for (const auto& change : folded) context.record(change);
        if (chosen.plan) {
            for (const auto& layer : chosen.plan->layers())
                if (layer.int8)
                    context.record({layer.layer, "int8", "float32", "int8 static",
                                    layer.sqnr_db != 0 ? formatted("SQNR %.1f dB", layer.sqnr_db) : ""});
        }
        if (chosen.details.empty()) chosen.details.resize(chosen.layers.size());
        record_layers(context, chosen.layers, chosen.details);
        if (chosen.plan) {
            // What the plan left in float may have got another form since, whose row is there.
            auto& rows = context.facts["layers"];
            std::set<std::string> known;
            for (const auto& row : rows) known.insert(row.at("layer").get<std::string>());
            for (const auto& row : layer_rows(chosen.plan->layers()))
                if (!known.count(row.at("layer").get<std::string>())) rows.push_back(row);
        }
        if (!as_it_is) {
            keep_outputs_contiguous(chosen.model, model, context.example);
            add_layer_seconds(context, prepared, chosen.model);
            tell_output_noise(context, model, chosen.model, kWhere);
        }
        context.facts["chosen"] = chosen.name;
        if (chosen.plan && !static_fallback.is_null()) context.facts["fallback"] = static_fallback;
        if (chosen.name == "layers" && !layers_fallback.is_null()) context.facts["fallback"] = layers_fallback;
        context.facts["model_seconds"] = seconds;
        if (!why_no_static.empty()) context.facts["why_not_static"] = why_no_static;
        if (!why_no_layers.empty()) context.facts["why_not_layers"] = why_no_layers;
        if (!as_it_is) return chosen.model;
        const bool lost = why_no_layers == kLosesTooMuch || why_no_static == kLosesTooMuch;
        context.log->warning(std::string(kWhere) + ": nothing " + (lost ? "that holds max_drop " : "") +
                             "is faster than float here; the model stays as it is");
        return model.clone();
    }

private:
    /// For what is judged beside other candidates.
    Context with_facts_of_its_own(Context& context) const {
        if (options_.fallback.on() && context.evaluate)
            note_choice_by_evaluation(kWhere, "the layers' precisions", context);
        auto copy = context;
        copy.facts = Json::object();
        if (context.facts.contains("chosen_on")) copy.facts["chosen_on"] = context.facts["chosen_on"];
        return copy;
    }

    bool wants(const std::string& form) const {
        return std::find(options_.forms.begin(), options_.forms.end(), form) != options_.forms.end();
    }

    std::vector<NamedForm> make_forms() const {
        std::vector<NamedForm> forms;
        for (const auto& name : options_.forms) {
            if (name == "static") continue;
            if (name == "dynamic") {
                forms.push_back({name, dynamic_form({})});
                continue;
            }
            WeightOnlyOptions options;
            options.type = name;
            options.kernel = "auto";
            options.symmetric = name == "int8";  // what the packed int8 kernel takes
            forms.push_back({name, weight_form(options)});
        }
        return forms;
    }

    static std::vector<Layer> kept(std::vector<Layer> layers, const char* why) {
        for (auto& layer : layers) {
            if (!layer.form) continue;
            layer.reason = layer.form->name() + " is faster alone, but " + why;
            layer.form = nullptr;
        }
        return layers;
    }

    static std::vector<size_t> order_of(const std::vector<Layer>& layers) {
        std::vector<size_t> order;
        for (size_t i = 0; i < layers.size(); ++i)
            if (layers[i].form) order.push_back(i);
        std::stable_sort(order.begin(), order.end(),
                         [&](size_t a, size_t b) { return layers[a].sqnr_db < layers[b].sqnr_db; });
        return order;
    }

    /// The patterns of `ignore` that a plan of static int8 knows layers for: not those of attention or embeddings
    /// alone.
    std::vector<std::string> for_static(const std::vector<Layer>& layers) const {
        std::vector<std::string> patterns;
        for (const auto& pattern : options_.ignore) {
            const std::regex expression(pattern);
            if (std::any_of(layers.begin(), layers.end(), [&](const Layer& layer) {
                    return (as_conv(layer.node) || as_linear(layer.node)) &&
                           std::regex_match(layer.facts.name, expression);
                }))
                patterns.push_back(pattern);
        }
        return patterns;
    }

    /// Gives every layer its form, or a reason why it stays float.
    /// @param all_match  whether every pattern of `ignore` has to match a layer
    std::vector<Layer> choose(const Model& prepared, const std::vector<NamedForm>& forms,
                              const std::vector<Inputs>& batches, Context& context, bool all_match) const {
        const auto facts = Facts::observe(prepared, context.example);
        auto layers = layers_of(prepared, facts, /*attention=*/true);
        apply_ignore(layers, options_.ignore, kWhere, all_match);
        std::unordered_map<const torch::jit::Node*, Layer*> open;
        for (auto& layer : layers)
            if (layer.reason.empty()) open[layer.node] = &layer;
        struct Trial {
            std::string why_not;
            double signal = 0, noise = 0, sqnr = 0;
        };
        std::map<const Layer*, std::vector<Trial>> trials;
        const auto once =
            [&](const Inputs& inputs,
                const std::function<void(const torch::jit::Node*, Layer&, const std::vector<c10::IValue>&)>& look) {
                std::set<const torch::jit::Node*> seen;
                NodeHooks hooks;
                hooks.before = [&](const torch::jit::Node* node, std::vector<c10::IValue>& stack) {
                    const auto found = open.find(node);
                    if (found != open.end() && seen.insert(node).second) look(node, *found->second, stack);
                    if (context.interrupted()) throw Interrupted(kWhere, "stopped while measuring layers", "");
                };
                run_nodes(prepared, inputs, hooks);
            };
        const auto compare = [&](const torch::jit::Node* node, Layer& layer, const std::vector<c10::IValue>& stack) {
            auto copy = stack;
            node->getOperation()(copy);
            const auto exact = first_tensor(copy[0]);
            auto& tried = trials[&layer];
            layer.range = tried.empty() ? input_range(node, stack) : union_of(layer.range, input_range(node, stack));
            if (tried.empty())
                for (const auto& [name, form] : forms)
                    tried.push_back({form->refuse(Site{prepared, facts, layer.node})});
            for (size_t i = 0; i < forms.size(); ++i) {
                if (!tried[i].why_not.empty()) continue;
                const auto rounded = run_isolated(isolated(prepared, node, stack, *forms[i].form, layer.facts));
                tried[i].signal += power(exact);
                tried[i].noise += power(exact - rounded);
            }
        };
        if (batches.empty()) once(context.example, compare);
        for (const auto& batch : batches) once(batch, compare);
        for (auto& [layer, tried] : trials)
            for (auto& trial : tried) {
                if (!trial.why_not.empty()) continue;
                trial.sqnr = sqnr_db(trial.signal, trial.noise);
                if (!(trial.sqnr >= options_.min_sqnr_db)) trial.why_not = formatted("SQNR %.1f dB", trial.sqnr);
            }
        once(context.example, [&](const torch::jit::Node* node, Layer& layer, const std::vector<c10::IValue>& stack) {
            const auto tried = trials.find(&layer);
            if (tried == trials.end()) {
                layer.reason = "the calibration data does not reach it";
                return;
            }
            const double exact = options_.timer(isolated(prepared, node, stack), {});
            double least = exact * (1 - options_.least_gain);
            std::string reasons;
            for (size_t i = 0; i < forms.size(); ++i) {
                const auto& trial = tried->second[i];
                std::string reason = trial.why_not;
                if (reason.empty()) {
                    const double seconds =
                        options_.timer(isolated(prepared, node, stack, *forms[i].form, layer.facts), {});
                    reason = formatted("%.2f of float's time", seconds / exact);
                    if (seconds < least) {
                        least = seconds;
                        layer.form = forms[i].form.get();
                        layer.sqnr_db = trial.sqnr;
                    }
                }
                reasons += (reasons.empty() ? "" : "; ") + forms[i].name + ": " + reason;
            }
            layer.reason = reasons;
        });
        return layers;
    }

    AutoOptions options_;
};

}  // namespace

std::unique_ptr<Stage> auto_precision(AutoOptions options) {
    for (const auto& form : options.forms)
        require_known(kWhere, "form", form, {"bf16", "dynamic", "fp16", "int4", "int8", "static"});
    if (options.forms.empty()) throw InvalidArgument(kWhere, "forms is empty", "Name at least one, such as dynamic.");
    if (!(options.least_gain >= 0 && options.least_gain < 1))
        throw InvalidArgument(kWhere, "least_gain is " + std::to_string(options.least_gain) + ", must be in [0, 1)",
                              "Use 0.05.");
    return std::make_unique<Auto>(std::move(options));
}

}  // namespace coppice::quantize
