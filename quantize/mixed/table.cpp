#include "mixed/table.h"

#include <cmath>
#include <limits>

#include <coppice/error.h>

#include "calibration/calibration.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

/// Static layers must be those that were asked for, however noisy: the table knows their error.
constexpr double kAnyNoise = -1e9;

bool is_anchor(Node* node) {
    return as_conv(node) || as_linear(node);
}

Batch first_batch(const Context& context, int64_t examples) {
    const auto& data = context.data.calibration ? context.data.calibration : context.data.train;
    Batch batch;
    if (data) {
        BatchIterator iterator(*data, examples, /*shuffle=*/true, context.seed);
        if (auto first = iterator.next()) return *first;
    }
    batch.inputs = context.example;
    return batch;
}

}  // namespace

double Trial::sqnr_db() const {
    return quantize::sqnr_db(signal, noise);
}

PrecisionTable::PrecisionTable(const Model& model, Settings settings, Context& context)
    : settings_(std::move(settings)),
      model_(model),
      example_(context.example),
      calibration_(settings_.calibrates
                       ? calibration_of(model, context, settings_.batches, settings_.batch_size, {}, settings_.where)
                       : Calibration(std::vector<Inputs>())) {
    torch::NoGradGuard no_grad;
    sample_ = first_batch(context, settings_.examples);
    if (context.facts.contains("synthetic_inputs"))
        calibration_.each([this](const Inputs& batch) { sample_.inputs = batch; }, 1);
    static_options_.min_sqnr_db = kAnyNoise;
    static_options_.rounding = settings_.rounding;
    static_options_.progress = progress_of(context, settings_.where);
    for (const auto& name : settings_.precisions) {
        if (name == "static") {
            try {
                plan_ = plan_static(model, example_, calibration_, static_options_);
            } catch (const UnsupportedModel& error) {
                why_no_static_ = error.problem();
            }
        } else if (name == "dynamic") {
            forms_.emplace_back(name, dynamic_form({}));
        } else {
            WeightOnlyOptions options;
            options.type = name;
            options.rounding = settings_.rounding;
            forms_.emplace_back(name, weight_form(options));
        }
    }
    if (plan_) {
        prepared_ = plan_->model();
        folded_ = plan_->impl().folded;
    } else {
        prepared_ = prepare(model, example_, &folded_);
    }
    find_precisions(context);
    measure_errors(context);
    std::string reasons;
    size_t shown = 0;
    for (auto& row : rows_) {
        if (row.trials.size() > 1) return;
        for (const auto& [precision, reason] : row.refused)
            if (++shown <= 5) reasons += "; " + row.layer.facts.name + " in " + precision + ": " + reason;
    }
    throw UnsupportedModel(settings_.where,
                           "no layer has another precision than float" +
                               (shown ? reasons : ": the model has no layer with weights of its own"),
                           "");
}

const Unit* PrecisionTable::static_unit(const Layer& layer) const {
    if (!plan_) return nullptr;
    for (const auto& unit : plan_->impl().units)
        if (unit.node == layer.node && unit.anchor() && (unit.int8 || unit.island)) return &unit;
    return nullptr;
}

void PrecisionTable::find_precisions(Context& context) {
    const auto facts = Facts::observe(prepared_, example_);
    auto layers = layers_of(prepared_, facts);
    apply_ignore(layers, settings_.ignore, settings_.where);
    std::unordered_map<const Node*, double> macs;
    for (const auto& layer : cost(prepared_, example_).layers) macs[layer.node] = layer.macs;
    std::set<const Node*> treated;
    for (const auto& [name, form] : forms_)
        for (auto& layer : layers)
            if (form->needs_moments() && layer.reason.empty() &&
                form->refuse(Site{prepared_, facts, layer.node}).empty())
                treated.insert(layer.node);
    if (!treated.empty()) {
        auto moments = collect_moments(
            prepared_, calibration_, [&](const Node* node) { return treated.count(node) > 0; },
            static_options_.progress);
        for (auto& layer : layers) layer.facts.moments = std::move(moments[layer.node]);
    }
    for (auto& layer : layers) {
        TableRow row;
        row.macs = macs[layer.node];
        row.trials.push_back({"float", nullptr});
        row.trials[0].bops = row.macs * 32 * 32;
        const Site site{prepared_, facts, layer.node};
        for (const auto& precision : settings_.precisions) {
            if (!layer.reason.empty()) {
                row.refused.emplace_back(precision, layer.reason);
                continue;
            }
            Trial trial{precision, nullptr};
            std::string refusal;
            int64_t bits = 8;
            if (precision == "static") {
                if (!static_unit(layer))
                    refusal = !why_no_static_.empty() ? why_no_static_
                              : is_anchor(layer.node) ? "quantize.static cannot treat it"
                                                      : "it is no convolution or linear layer";
            } else {
                const auto& form = std::find_if(forms_.begin(), forms_.end(), [&](const auto& known) {
                                       return known.first == precision;
                                   })->second;
                refusal = form->refuse(site);
                if (refusal.empty()) bits = form->product_bits(site);
                trial.form = form.get();
            }
            trial.bops = row.macs * static_cast<double>(bits * bits);
            if (refusal.empty())
                row.trials.push_back(trial);
            else
                row.refused.emplace_back(precision, refusal);
        }
        row.layer = std::move(layer);
        rows_.push_back(std::move(row));
    }
    if (context.interrupted()) throw Interrupted(settings_.where, "stopped by request", "");
}

void PrecisionTable::measure_errors(Context& context) {
    std::unordered_map<const Node*, TableRow*> open;
    for (auto& row : rows_) open[row.layer.node] = &row;
    const auto all = open.size();
    NodeHooks hooks;
    hooks.before = [&](const Node* node, std::vector<c10::IValue>& stack) {
        const auto found = open.find(node);
        if (found == open.end()) return;
        auto& row = *found->second;
        open.erase(found);  // the first run of a layer in a loop stands for it
        auto copy = stack;
        node->getOperation()(copy);
        const auto exact = first_tensor(copy[0]);
        const auto seen = input_range(node, stack);
        for (auto& trial : row.trials) {
            at::Tensor output = exact;
            trial.range = seen;
            if (trial.form) {
                auto alone = isolated(prepared_, node, stack, *trial.form, row.layer.facts);
                output = run_isolated(alone);
                trial.bytes = stored_bytes(alone);
            } else if (trial.precision == "static") {
                const auto& unit = *static_unit(row.layer);
                copy = stack;
                round_anchor(plan_->impl(), unit, copy);
                node->getOperation()(copy);
                output = first_tensor(copy[0]);
                trial.range = ends_of(plan_->impl().parameters.at(unit.inputs[0]), kActivationLevels);
                trial.clipped_ratio = unit.clipped_ratio;
                const auto bias = as_conv(unit.node) ? as_conv(unit.node)->has_bias : as_linear(unit.node)->has_bias;
                const auto& weight = plan_->impl().weights.at(node);
                trial.bytes = stored_bytes(weight) + (bias ? weight.size(0) * 4 : 0);
            } else {
                trial.bytes = stored_bytes(isolated(prepared_, node, stack));
            }
            trial.signal = exact.pow(2).sum(at::kDouble).item<double>();
            trial.noise = (exact - output).pow(2).sum(at::kDouble).item<double>();
            trial.values = static_cast<double>(exact.numel());
        }
        context.log->progress(settings_.where, static_cast<double>(all - open.size()), static_cast<double>(all),
                              "errors of " + row.layer.facts.name);
        if (context.interrupted()) throw Interrupted(settings_.where, "stopped while measuring layers", "");
    };
    run_nodes(prepared_, sample_.inputs, hooks);
    for (auto& row : rows_) {
        const bool reached = !open.count(row.layer.node);
        for (size_t i = row.trials.size(); i-- > 1;) {
            const auto& trial = row.trials[i];
            if (reached && trial.sqnr_db() >= settings_.min_sqnr_db) continue;
            char text[112] = "the sample does not reach it";
            if (reached)
                std::snprintf(text, sizeof text, "its signal-to-noise ratio is %.1f dB, min_sqnr_db is %g",
                              trial.sqnr_db(), settings_.min_sqnr_db);
            row.refused.emplace_back(trial.precision, text);
            row.trials.erase(row.trials.begin() + static_cast<std::ptrdiff_t>(i));
        }
    }
}

c10::IValue PrecisionTable::model_output(size_t row, size_t trial) const {
    torch::NoGradGuard no_grad;
    const auto& layer = rows_[row].layer;
    const auto& chosen = rows_[row].trials[trial];
    if (chosen.precision == "static") {
        const auto& unit = *static_unit(layer);
        NodeHooks hooks;
        hooks.before = [&](const Node* node, std::vector<c10::IValue>& stack) {
            if (node == unit.node) round_anchor(plan_->impl(), unit, stack);
        };
        return run_nodes(prepared_, sample_.inputs, hooks);
    }
    if (!chosen.form) return prepared_.forward(sample_.inputs);
    auto one = layer;
    one.form = chosen.form;
    return emit_forms(prepared_, {one}).forward(sample_.inputs);
}

std::vector<at::Tensor> PrecisionTable::weights(size_t row, size_t trial) const {
    torch::NoGradGuard no_grad;
    const auto& layer = rows_[row].layer;
    const auto& chosen = rows_[row].trials[trial];
    if (chosen.form) return chosen.form->weights(prepared_, layer.node, layer.facts);
    if (chosen.precision == "static") {
        const auto values = plan_->impl().weights.at(layer.node).dequantize();
        const auto linear = as_linear(layer.node);
        return {linear && linear->weight_transposed ? values.t() : values};
    }
    std::vector<at::Tensor> all;
    for (const auto* value : weight_values(layer.node)) all.push_back(parameter_of(prepared_, value)->detach());
    return all;
}

void PrecisionTable::measure_seconds(const Timer& timer, Context& context) {
    torch::NoGradGuard no_grad;
    std::unordered_map<const Node*, TableRow*> open;
    for (auto& row : rows_) open[row.layer.node] = &row;
    const auto check = [&] {
        if (context.interrupted()) throw Interrupted(settings_.where, "stopped while timing layers", "");
    };
    NodeHooks hooks;
    hooks.before = [&](const Node* node, std::vector<c10::IValue>& stack) {
        const auto found = open.find(node);
        if (found == open.end()) return;
        auto& row = *found->second;
        open.erase(found);
        for (auto& trial : row.trials) {
            if (trial.precision == "static") continue;
            trial.seconds = timer(trial.form ? isolated(prepared_, node, stack, *trial.form, row.layer.facts)
                                             : isolated(prepared_, node, stack),
                                  {});
        }
        check();
    };
    run_nodes(prepared_, example_, hooks);
    if (!plan_) return;
    // An int8 layer among int8 layers: what it costs to convert at its borders depends on its neighbours.
    const auto int8 = convert(*plan_);
    const LayerNames names(int8);
    std::map<std::string, Trial*> statics;
    for (auto& row : rows_)
        for (auto& trial : row.trials)
            if (trial.precision == "static") statics[row.layer.facts.name] = &trial;
    hooks.before = [&](const Node* node, std::vector<c10::IValue>& stack) {
        const std::string op = node->kind().toQualString();
        if (op.rfind("quantized::conv", 0) != 0 && op.rfind("quantized::linear", 0) != 0) return;
        const auto found = statics.find(names.of(node));
        if (found == statics.end()) return;
        found->second->seconds = timer(isolated(int8, node, stack), {});
        statics.erase(found);
        check();
    };
    run_nodes(int8, example_, hooks);
    if (!statics.empty())
        throw InternalError(settings_.where, "the int8 model has no layer " + statics.begin()->first, "");
}

PrecisionTable::Built PrecisionTable::build(const std::vector<size_t>& trials) const {
    torch::NoGradGuard no_grad;
    std::map<std::string, size_t> row_of;
    std::set<std::string> statics;
    for (size_t i = 0; i < rows_.size(); ++i) {
        const auto& name = rows_[i].layer.facts.name;
        row_of[name] = i;
        if (rows_[i].trials[trials[i]].precision == "static") statics.insert(name);
    }
    Built built;
    built.details.resize(rows_.size());
    Model base = prepared_;
    std::vector<Layer> layers;
    if (statics.empty()) {
        for (const auto& row : rows_) layers.push_back(row.layer);
    } else {
        auto options = static_options_;
        const auto& impl = plan_->impl();
        for (size_t i = 0; i < impl.units.size(); ++i)
            if (impl.units[i].anchor() && !statics.count(impl.unit_names[i]))
                options.ignore.push_back(exactly(impl.unit_names[i]));
        const auto plan = plan_static(model_, example_, calibration_, options);
        for (const auto& layer : plan.layers())
            if (layer.int8 && statics.count(layer.layer)) built.details[row_of.at(layer.layer)] = "int8 static";
        for (const auto& name : statics)
            if (built.details[row_of.at(name)].empty())
                throw InternalError(settings_.where, name + " cannot be int8 beside these neighbours", "");
        base = convert(plan);
        layers = layers_of(base, Facts::observe(base, example_));
    }
    std::vector<size_t> places;
    for (auto& layer : layers) {
        const auto found = row_of.find(layer.facts.name);
        if (found == row_of.end())
            throw InternalError(settings_.where, "a layer " + layer.facts.name + " appeared in the int8 model", "");
        const auto& row = rows_[found->second];
        layer.facts = row.layer.facts;
        layer.form = row.trials[trials[found->second]].form;
        places.push_back(found->second);
    }
    std::vector<std::string> details;
    built.model = emit_forms(base, layers, &details);
    for (size_t i = 0; i < places.size(); ++i)
        if (!details[i].empty()) built.details[places[i]] = details[i];
    return built;
}

}  // namespace coppice::quantize
