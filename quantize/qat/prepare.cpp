// A plan's model with fake quantizations at the plan's borders, and back: to int8, or to the simulated model.
#include <coppice/error.h>

#include "calibration/calibration.h"
#include "emit/operators.h"
#include "equalize/pairs.h"
#include "layers/layers.h"
#include "plan/plan.h"
#include "qat/batch_norm.h"
#include "qat/converting.h"
#include "qat/rounding.h"

namespace coppice::quantize {

using namespace torch::jit;

struct QatModel::Impl {
    StaticPlan plan;
    Model model;  ///< the plan's, shared
    QatOptions options;
    std::unordered_map<const Value*, FakeQuantize> values;  ///< by the value whose range is used
    std::unordered_map<const Node*, FakeQuantize> weights;  ///< by anchor; a shared parameter has one
    std::unordered_map<const Node*, int64_t> weight_bits;   ///< asked for, by anchor
    std::vector<std::pair<std::string, FakeQuantize>> named;
    std::unordered_map<const Node*, const Unit*> first, last;  ///< by the node where a unit reads, and where it gives
    std::set<const Value*> made;                               ///< outputs of int8 units: rounded where they are made
    std::vector<std::shared_ptr<LiveNorm>> norms;              ///< those that train; empty: all are folded
    std::vector<LayerChange> norm_changes;                     ///< with train_norms: of each batch norm
    std::unordered_map<const Node*, LiveNorm*> norm_of;        ///< by anchor
    at::Tensor batches = at::zeros({1}, at::kLong);            ///< training batches seen
    bool training = false;

    /// Normalised by the batch's own statistics: `norm_batches` batches long.
    bool by_batch() const {
        return training && (options.norm_batches == 0 || batches.item<int64_t>() < options.norm_batches);
    }

    /// Brings the folded layers up to date with their batch norms: what is converted.
    void fold() const {
        torch::NoGradGuard no_grad;
        for (const auto& norm : norms) {
            get_attribute(model, norm->folded_weight).toTensor().detach().copy_(norm->scaled_weight());
            get_attribute(model, norm->folded_bias).toTensor().detach().copy_(norm->bias());
        }
    }

    /// True when the result computes in float.
    bool in_float() const {
        return std::any_of(values.begin(), values.end(),
                           [](const auto& entry) { return entry.second->options().bits < 8; });
    }

    /// Sets the precision of layers with rounded weights.
    void name_precisions(std::vector<LayerPlan>& layers) {
        const LayerNames names(model);
        std::unordered_map<std::string, std::string> precision_of;
        for (const auto& unit : plan.impl().units) {
            const auto bits = weight_bits.find(unit.node);
            if (bits == weight_bits.end()) continue;
            precision_of[names.of(unit.node)] = in_float()
                                                    ? "float32, simulated W" + std::to_string(bits->second) + "A" +
                                                          std::to_string(of(unit.inputs[0])->options().bits)
                                                    : int8_precision(bits->second);
        }
        for (auto& layer : layers)
            if (const auto found = precision_of.find(layer.layer); found != precision_of.end())
                layer.precision = found->second;
    }

    FakeQuantize& of(const Value* value) { return values.at(plan.impl().roots.at(value)); }
    Range input_range(const Unit& unit) {
        const auto& quantizer = of(unit.inputs[0]);
        return ends_of(quantizer->affine(), quantizer->levels());
    }

    NodeHooks hooks() {
        NodeHooks hooks;
        hooks.before = [this](const Node* node, std::vector<c10::IValue>& stack) {
            const auto found = first.find(node);
            if (found == first.end()) return;
            const auto& unit = *found->second;
            const auto round = [&](c10::IValue& value, const Value* name) {
                if (!made.count(name)) value = of(name)->forward(value.toTensor());
            };
            if (unit.anchor()) {
                const auto place = anchor_inputs(node);
                round(stack[place.tensor], unit.inputs[0]);
                const auto norm = norm_of.find(node);
                if (norm != norm_of.end()) {
                    stack[place.weight] = norm->second->scaled_weight();
                    stack[*place.bias] = by_batch() ? c10::IValue() : c10::IValue(norm->second->bias());
                }
                stack[place.weight] = weights.at(node)->forward(stack[place.weight].toTensor());
            } else if (unit.kind == UnitKind::kCat) {
                const auto list = stack[0].toTensorVector();
                std::vector<at::Tensor> parts;
                for (size_t i = 0; i < list.size(); ++i)
                    parts.push_back(made.count(unit.inputs[i]) ? list[i] : of(unit.inputs[i])->forward(list[i]));
                stack[0] = parts;
            } else {
                for (size_t i = 0; i < unit.inputs.size(); ++i) round(stack[i], unit.inputs[i]);
            }
        };
        hooks.after = [this](const Node* node, std::vector<c10::IValue>& outputs) {
            if (const auto norm = norm_of.find(node); norm != norm_of.end() && by_batch())
                outputs[0] = norm->second->normalise(outputs[0].toTensor());
            const auto found = last.find(node);
            if (found == last.end()) return;
            for (size_t i = 0; i < outputs.size(); ++i)
                outputs[i] = of(found->second->outputs[i])->forward(outputs[i].toTensor());
        };
        return hooks;
    }
};

namespace {

/// While it lives, ranges stay as they are: models are measured and converted in the middle of a training, too.
class Settled {
public:
    explicit Settled(const QatModel::Impl& qat) {
        for (const auto& [name, quantizer] : qat.named) {
            training_.emplace_back(quantizer, quantizer->is_training());
            training_.back().first->eval();
        }
    }
    ~Settled() {
        for (auto& [quantizer, training] : training_) quantizer->train(training);
    }
    Settled(const Settled&) = delete;
    Settled& operator=(const Settled&) = delete;

private:
    std::vector<std::pair<FakeQuantize, bool>> training_;
};

class QatTrainable final : public Trainable {
public:
    explicit QatTrainable(std::shared_ptr<QatModel::Impl> impl)
        : impl_(std::move(impl)), model_(coppice::trainable(impl_->model)), hooks_(impl_->hooks()) {}

    at::Tensor forward(const Inputs& inputs) override {
        auto result = first_tensor(run_nodes(impl_->model, inputs, hooks_));
        if (impl_->training) {
            impl_->batches += 1;
            freeze_when_due();
        }
        return result;
    }

    void train(bool on) override {
        impl_->training = on;
        model_->train(on);
        for (auto& [name, quantizer] : impl_->named) quantizer->train(on);
    }

    std::vector<std::pair<std::string, at::Tensor>> parameters() override {
        auto all = without_folded(model_->parameters());
        for (const auto& norm : impl_->norms) all.insert(all.end(), norm->parameters.begin(), norm->parameters.end());
        for (auto& [name, quantizer] : impl_->named)
            for (const auto& own : quantizer->named_parameters())
                all.emplace_back("quantizer." + name + "." + own.key(), own.value());
        return all;
    }

    std::vector<std::pair<std::string, at::Tensor>> buffers() override {
        auto all = model_->buffers();
        for (const auto& norm : impl_->norms) all.insert(all.end(), norm->buffers.begin(), norm->buffers.end());
        for (auto& [name, quantizer] : impl_->named)
            for (const auto& own : quantizer->named_buffers())
                all.emplace_back("quantizer." + name + "." + own.key(), own.value());
        all.emplace_back("quantizer.batches", impl_->batches);
        return all;
    }

private:
    using Named = std::vector<std::pair<std::string, at::Tensor>>;

    /// Folded layers follow from their batch norms and do not train.
    Named without_folded(Named all) const {
        std::set<std::string> folded;
        for (const auto& norm : impl_->norms) folded.insert({norm->folded_weight, norm->folded_bias});
        all.erase(
            std::remove_if(all.begin(), all.end(), [&](const auto& entry) { return folded.count(entry.first) > 0; }),
            all.end());
        return all;
    }

    void freeze_when_due() {
        if (impl_->options.watch_batches == 0 || impl_->batches.item<int64_t>() != impl_->options.watch_batches) return;
        for (auto& [name, quantizer] : impl_->named) quantizer->freeze();
    }

    const std::shared_ptr<QatModel::Impl> impl_;
    const std::unique_ptr<Trainable> model_;
    const NodeHooks hooks_;
};

void check(const QatOptions& options) {
    const auto bits = [](const char* name, int64_t value) {
        if (value < 2 || value > 8)
            throw InvalidArgument("quantize.qat",
                                  std::string(name) + " is " + std::to_string(value) + ", must be in [2, 8]",
                                  "Use 8, 4, 3 or 2.");
    };
    bits("weight_bits", options.weight_bits);
    bits("activation_bits", options.activation_bits);
    bits("first_last_bits", options.first_last_bits);
    if (options.watch_batches < 0 || options.norm_batches < 0)
        throw InvalidArgument("quantize.qat", "watch_batches and norm_batches must not be negative", "0 means all.");
    if (options.watch_batches > 0 && (!options.quantizer || options.quantizer->learns()))
        throw InvalidArgument("quantize.qat", "watch_batches has no ranges to end: this quantizer learns its scales",
                              "Use minmax_range(), or leave watch_batches at 0.");
    if (options.norm_batches > 0 && !options.train_norms)
        throw InvalidArgument("quantize.qat", "norm_batches has nothing to freeze without train_norms",
                              "Set train_norms, or leave norm_batches at 0.");
}

class Preparer {
public:
    explicit Preparer(QatModel::Impl& qat) : qat_(qat), plan_(qat.plan.impl()), names_(plan_.model) {
        const auto& options = qat.options;
        quantizer_ = options.quantizer ? options.quantizer : std::shared_ptr<const Quantizer>(lsq());
        // Sums of two products of full 8-bit integers saturate in 16 bits, where the CPU has no other instruction.
        widest_weight_ = options.activation_bits == 8 && !exact_int8_products() ? 7 : 8;
        for (const auto& unit : plan_.units) {
            if (!unit.anchor() || !(unit.int8 || unit.island)) continue;
            if (!first_) first_ = &unit;
            last_ = &unit;
        }
        for (const auto& unit : plan_.units) {
            if (!unit.anchor() || !(unit.int8 || unit.island)) continue;
            const bool wide = &unit == first_ || &unit == last_;
            auto& bits = bits_[anchor_weight(plan_.model, unit.node).data_ptr()];
            bits = std::max(bits, wide ? options.first_last_bits : options.weight_bits);
        }
        wide_.insert(plan_.roots.at(first_->inputs[0]));
        wide_.insert(plan_.roots.at(last_->inputs[0]));
        if (last_->int8) wide_.insert(plan_.roots.at(last_->outputs[0]));
    }

    void run() {
        for (const auto& unit : plan_.units) {
            if (!unit.int8 && !unit.island) continue;
            const bool own_node = unit.anchor() || unit.kind == UnitKind::kCat || unit.kind == UnitKind::kAdd ||
                                  unit.kind == UnitKind::kMul;
            qat_.first[own_node ? unit.node : unit.nodes.front()] = &unit;
            for (const auto* input : unit.inputs) add_value(input);
            if (unit.anchor()) add_weight(unit);
            if (!unit.int8) continue;
            qat_.last[unit.nodes.back()] = &unit;
            for (const auto* output : unit.outputs) {
                add_value(output);
                qat_.made.insert(output);
            }
        }
    }

private:
    void add_value(const Value* value) {
        const auto* root = plan_.roots.at(value);
        if (qat_.values.count(root)) return;
        FakeQuantizeOptions options;
        options.bits = wide_.count(root) ? qat_.options.first_last_bits : qat_.options.activation_bits;
        options.symmetric = !quantizer_->offsets();
        options.negative = plan_.parameters.at(value).zero_point != 0;
        options.quantizer = quantizer_;
        FakeQuantize module(options);
        qat_.values.emplace(root, module);
        const auto* maker = root->node();
        std::string name = maker->kind() == prim::Param ? root->debugName() : names_.of(maker) + ".output";
        if (maker->outputs().size() > 1 && maker->kind() != prim::Param) name += std::to_string(root->offset());
        qat_.named.emplace_back(name, module);
    }

    void add_weight(const Unit& unit) {
        const auto weight = anchor_weight(plan_.model, unit.node);
        const int64_t bits = bits_.at(weight.data_ptr());
        qat_.weight_bits.emplace(unit.node, bits);
        // Scales of the one way to read it are no scales of the other.
        const auto key = std::make_tuple(static_cast<const void*>(weight.data_ptr()),
                                         anchor_inputs(unit.node).weight_transposed, weight.stride(0));
        if (const auto shared = by_storage_.find(key); shared != by_storage_.end()) {
            qat_.weights.emplace(unit.node, shared->second);
            return;
        }
        const bool narrow = qat_.options.activation_bits == 8 && sums_in_16_bits(plan_.model, unit.node, "x86");
        const int64_t widest = narrow ? 7 : widest_weight_;
        auto options = weights_of(std::min(bits, widest), qat_.options.per_channel ? weight.size(0) : 0);
        if (qat_.options.per_channel && anchor_inputs(unit.node).weight_transposed) options.channel = 1;
        options.quantizer = quantizer_;
        FakeQuantize module(options);
        by_storage_.emplace(key, module);
        qat_.weights.emplace(unit.node, module);
        qat_.named.emplace_back(names_.of(unit.node) + ".weight", module);
    }

    QatModel::Impl& qat_;
    const StaticPlan::Impl& plan_;
    const LayerNames names_;
    std::shared_ptr<const Quantizer> quantizer_;
    int64_t widest_weight_ = 8;
    const Unit *first_ = nullptr, *last_ = nullptr;
    std::set<const Value*> wide_;
    std::map<std::tuple<const void*, bool, int64_t>, FakeQuantize> by_storage_;
    std::unordered_map<const void*, int64_t> bits_;  ///< of each weight; of what several layers share, the most
};

/// Scales of activations start where options.observer finds their ranges, in the float model.
void start_at_observed(QatModel::Impl& qat, const std::vector<Inputs>& calibration) {
    const auto& plan = qat.plan.impl();
    std::set<const Value*> same;  // what is seen already: operators that only move values
    for (const auto& unit : plan.units) {
        const bool moves = unit.kind == UnitKind::kPadChannels || unit.row->scale == OutputScale::kInput ||
                           plan.cats_with_one_scale.count(unit.node) > 0;
        if (unit.int8 && moves) same.insert(unit.outputs.begin(), unit.outputs.end());
    }
    std::unordered_map<const Value*, std::unique_ptr<Observer>> observers;  // by root
    const auto see = [&](const Value* value, const c10::IValue& content) {
        const auto root = plan.roots.find(value);
        if (root == plan.roots.end() || same.count(value) || !content.isTensor()) return;
        auto& observer = observers[root->second];
        if (!observer) observer = qat.options.observer->fresh();
        observer->observe(content.toTensor());
    };
    NodeHooks hooks;
    hooks.after = [&](const Node* node, std::vector<c10::IValue>& outputs) {
        for (size_t i = 0; i < outputs.size(); ++i) see(node->outputs()[i], outputs[i]);
    };
    const auto arguments = qat.model.graph()->inputs();
    run_batches(qat.model, calibration, hooks, "observing where scales start", qat.options.progress, INT64_MAX,
                [&](const Inputs& batch) {
                    for (size_t i = 0; i < batch.size() && i + 1 < arguments.size(); ++i)
                        see(arguments[i + 1], batch[i]);
                });
    for (auto& [root, quantizer] : qat.values)
        if (const auto found = observers.find(root); found != observers.end())
            quantizer->start(found->second->range(int64_t{1} << quantizer->options().bits));
}

/// The model with rounded weights and LibTorch's fake quantization where tensors are rounded.
class Simulator {
public:
    explicit Simulator(const QatModel::Impl& qat)
        : qat_(qat), plan_(qat.plan.impl()), model_(qat.model.clone()), graph_(model_.graph()), readers_(model_) {
        const auto old_nodes = all_nodes(*plan_.model.graph()), new_nodes = all_nodes(*graph_);
        for (size_t i = 0; i < old_nodes.size(); ++i) {
            nodes_[old_nodes[i]] = new_nodes[i];
            for (size_t k = 0; k < old_nodes[i]->outputs().size(); ++k)
                values_[old_nodes[i]->outputs()[k]] = new_nodes[i]->outputs()[k];
        }
        for (size_t i = 0; i < graph_->inputs().size(); ++i)
            values_[plan_.model.graph()->inputs()[i]] = graph_->inputs()[i];
    }

    Model run() {
        // Readers first: what reads a rounded output must not be found under its new name.
        for (const auto& unit : plan_.units)
            if (unit.int8 || unit.island) round_inputs(unit);
        for (const auto& unit : plan_.units) {
            if (unit.anchor() && (unit.int8 || unit.island)) round_weight(unit);
            if (!unit.int8) continue;
            for (const auto* output : unit.outputs) {
                Value* value = values_.at(output);
                Value* rounded = insert(value, output, nodes_.at(unit.nodes.back()));
                value->replaceAllUsesAfterNodeWith(rounded->node(), rounded);
            }
        }
        model_.refresh();
        remove_unused_attributes(model_);
        return model_;
    }

private:
    /// @param behind  null: at the beginning
    Value* insert(Value* value, const Value* old, Node* behind) {
        const auto& quantizer = qat_.values.at(plan_.roots.at(old));
        const auto parameters = quantizer->affine();
        WithInsertPoint guard(behind ? behind->next() : *graph_->block()->nodes().begin());
        return graph_->insert(aten::fake_quantize_per_tensor_affine,
                              {value, parameters.scale, parameters.zero_point, int64_t{0}, quantizer->levels() - 1});
    }

    void round_inputs(const Unit& unit) {
        for (const auto* input : unit.inputs) {
            if (qat_.made.count(input)) continue;
            Value* value = values_.at(input);
            auto& rounded = rounded_[input];
            if (!rounded) {
                const bool argument = value->node()->kind() == prim::Param;
                rounded = insert(value, input, argument ? nullptr : value->node());
            }
            const auto replace = [&](Node* node) { node->replaceInputWith(value, rounded); };
            for (const auto* node : unit.nodes) replace(nodes_.at(node));
            if (unit.kind == UnitKind::kCat) replace(nodes_.at(unit.node)->input(0)->node());
        }
    }

    void round_weight(const Unit& unit) {
        torch::NoGradGuard no_grad;
        Node* node = nodes_.at(unit.node);
        const auto conv = as_conv(node);
        const auto linear = as_linear(node);
        const auto* weight = conv ? conv->weight : linear->weight;
        const auto place = anchor_inputs(node).weight;
        const bool turned = !conv && linear->weight_transposed != anchor_inputs(node).weight_transposed;
        const auto stored = parameter_of(model_, weight)->detach();
        auto quantizer = qat_.weights.at(unit.node);
        const auto values = quantizer->forward(turned ? stored.t() : stored).contiguous();  // as the operator reads it
        const auto name = attribute_name(weight);
        if (!name) {
            WithInsertPoint guard(node);
            node->replaceInput(place, graph_->insertConstant(values));
            return;
        }
        // Through a transpose of its own, or directly, and nothing else reads it.
        if (readers_.alone(model_, weight) && node->input(place)->uses().size() == 1) {
            set_tensor(model_, *name, turned ? values.t().contiguous() : values);
            return;
        }
        // What else reads it, an embedding say, reads it as it is; layers that share it share the rounded one.
        auto& rounded = rounded_weights_[{quantizer.get(), turned}];
        if (rounded.empty()) {
            const auto dot = name->rfind('.');
            const auto owner = dot == std::string::npos ? std::string() : name->substr(0, dot + 1);
            rounded = add_attribute(model_, owner + "rounded_weight", values, Role::kParameter);
        }
        node->replaceInput(place, read_attribute(model_, rounded, node));
    }

    const QatModel::Impl& qat_;
    const StaticPlan::Impl& plan_;
    Model model_;
    std::shared_ptr<Graph> graph_;
    std::unordered_map<const Node*, Node*> nodes_;
    std::unordered_map<const Value*, Value*> values_, rounded_;
    const SoleReaders readers_;
    std::map<std::pair<const void*, bool>, std::string> rounded_weights_;  ///< by quantizer and whether turned
};

}  // namespace

std::unique_ptr<Trainable> QatModel::trainable() const {
    return std::make_unique<QatTrainable>(impl_);
}

c10::IValue QatModel::forward(const Inputs& inputs) const {
    return run_nodes(impl_->model, inputs, impl_->hooks());
}

Model QatModel::model() const {
    return impl_->model;
}

const StaticPlan& QatModel::plan() const {
    return impl_->plan;
}

std::vector<LayerChange> QatModel::norms() const {
    return impl_->norm_changes;
}

bool QatModel::simulated() const {
    return impl_->in_float();
}

std::vector<std::pair<std::string, FakeQuantize>> QatModel::quantizers() const {
    return impl_->named;
}

StaticPlan QatModel::trained_plan() const {
    if (simulated())
        throw InvalidArgument("quantize.qat", "activations of fewer than 8 bits have no int8 kernels",
                              "Use convert(), which gives the simulated model.");
    torch::NoGradGuard no_grad;
    const Settled settled(*impl_);
    impl_->fold();
    auto trained = std::make_shared<StaticPlan::Impl>(impl_->plan.impl());
    for (auto& [value, parameters] : trained->parameters) parameters = impl_->of(value)->affine();
    for (auto& unit : trained->units) {
        unit.sqnr_db = unit.clipped_ratio = 0;  // those were of the model before
        if (!unit.anchor() || !(unit.int8 || unit.island)) continue;
        auto quantizer = impl_->weights.at(unit.node);
        const auto weight = anchor_weight(impl_->model, unit.node);
        const bool turned = anchor_inputs(unit.node).weight_transposed;
        const auto read = turned ? weight.t() : weight;
        quantizer->forward(read);  // ranges that follow the weights are of these
        const auto integers = turned ? quantizer->integers(read).t() : quantizer->integers(read);
        trained->weights[unit.node] = at::_make_per_channel_quantized_tensor(
            integers.contiguous(), quantizer->scale().expand({weight.size(0)}).to(at::kDouble).contiguous(),
            at::zeros({weight.size(0)}, at::kLong), 0);
    }
    trained->layers = layer_plans(trained->model, trained->facts, trained->units,
                                  [this](const Unit& unit) { return impl_->input_range(unit); });
    impl_->name_precisions(trained->layers);
    return StaticPlan(trained);
}

std::vector<LayerPlan> QatModel::layers(const std::vector<Inputs>& batches) const {
    torch::NoGradGuard no_grad;
    const Settled settled(*impl_);
    impl_->fold();
    const auto& plan = impl_->plan.impl();
    auto units = plan.units;
    std::vector<Unit*> anchors;
    for (auto& unit : units) {
        unit.sqnr_db = unit.clipped_ratio = 0;
        if (unit.anchor() && (unit.int8 || unit.island)) anchors.push_back(&unit);
    }
    AnchorRounding rounding;
    rounding.round = [this](const Unit& unit, std::vector<c10::IValue>& stack) {
        const auto place = anchor_inputs(unit.node);
        stack[place.tensor] = impl_->of(unit.inputs[0])->forward(stack[place.tensor].toTensor());
        stack[place.weight] = impl_->weights.at(unit.node)->forward(stack[place.weight].toTensor());
    };
    rounding.input = [this](const Unit& unit) {
        const auto& quantizer = impl_->of(unit.inputs[0]);
        return std::make_pair(quantizer->affine(), quantizer->levels());
    };
    measure_noise(impl_->model, anchors, batches, rounding, impl_->options.progress);
    auto layers =
        layer_plans(impl_->model, plan.facts, units, [this](const Unit& unit) { return impl_->input_range(unit); });
    impl_->name_precisions(layers);
    return layers;
}

QatModel prepare(const Model& model, const Inputs& example, const std::vector<Inputs>& calibration,
                 const QatOptions& options) {
    check(options);
    StaticOptions planning;
    planning.per_channel = options.per_channel;
    planning.observer = options.observer;
    planning.ignore = options.ignore;
    planning.progress = options.progress;
    planning.reduce_range = "off";  // these weights are replaced by trained ones
    auto impl = std::make_shared<QatModel::Impl>();
    impl->plan = plan_static(model, example, calibration, planning);
    impl->model = impl->plan.model();
    impl->options = options;
    if (options.train_norms) {
        auto live = live_norms(model, impl->plan);
        impl->norms = std::move(live.norms);
        impl->norm_changes = std::move(live.changes);
    }
    for (const auto& norm : impl->norms) impl->norm_of[norm->anchor] = norm.get();
    Preparer(*impl).run();
    for (auto& [name, quantizer] : impl->named) quantizer->eval();
    QatModel prepared(impl);
    torch::NoGradGuard no_grad;
    if (options.observer) start_at_observed(*impl, calibration);
    prepared.forward(calibration.front());  // every scale starts, if it has not
    return prepared;
}

QatModel prepare(const std::shared_ptr<torch::nn::Module>& module,
                 const std::function<c10::IValue(const Inputs&)>& forward, const Inputs& example,
                 const std::vector<Inputs>& calibration, const QatOptions& options, const TraceOptions& tracing) {
    return prepare(trace(module, forward, example, tracing), example, calibration, options);
}

void refuse_diverged(const QatModel& model) {
    const auto refuse = [](const std::string& where, const std::string& problem) {
        throw Error("quantize.qat at " + where, problem + ": training diverged, or the data are that large",
                    "Lower lr, set clip_norm: 1 or a longer warmup_epochs, or keep: best with data to judge by.");
    };
    for (const auto& [name, tensor] : model.trainable()->parameters())
        if (!tensor.isfinite().all().item<bool>()) refuse(name, "it holds NaN or infinity");
    for (const auto& [name, quantizer] : model.quantizers()) {
        const double scale = quantizer->scale().max().item<double>();
        if (!(scale < kLargestScale))
            refuse(name, formatted("its scale is %.3g, ", scale) + formatted("must be below %.0e", kLargestScale));
    }
}

Model convert(const QatModel& model) {
    refuse_diverged(model);
    return converted(model);
}

Model converted(const QatModel& model) {
    if (!model.simulated()) return convert(model.trained_plan());
    const Settled settled(model.impl());
    model.impl().fold();
    return Simulator(model.impl()).run();
}

}  // namespace coppice::quantize
