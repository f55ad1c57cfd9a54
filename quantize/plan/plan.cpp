// plan_static: prepare the model, choose borders, observe ranges, measure each layer's noise, choose again without the
// layers that are too noisy.
#include "plan/plan.h"

#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/remove_mutation.h>

#include <cmath>
#include <cstdio>
#include <limits>
#include <regex>

#include <coppice/dataflow.h>
#include <coppice/deploy.h>
#include <coppice/error.h>

#include "calibration/calibration.h"
#include "emit/operators.h"
#include "layers/layers.h"
#include "plan/blocks.h"
#include "plan/in_turn.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

constexpr const char* kWhere = "quantize.static";
constexpr const char* kInsideBlock = "it runs inside a branch or a loop";
constexpr int64_t kNoiseBatches = 2;  // calibration batches on which each layer's noise is measured

/// Same-scale concatenation costs at most one bit of the narrowest part.
constexpr double kNarrowestPart = 0.5;

/// Chains every unit's output to the value whose observed range gives its parameters.
class Roots {
public:
    explicit Roots(const std::vector<Unit>& units) {
        for (const auto& unit : units)
            for (const auto* output : unit.outputs) maker_[output] = &unit;
    }
    const Unit* maker(const Value* value) const {
        const auto found = maker_.find(value);
        return found == maker_.end() ? nullptr : found->second;
    }
    const Value* root(const Value* value) const {
        for (;;) {
            const auto* unit = maker(value);
            if (!unit || !unit->int8 || own(*unit)) return value;
            value = unit->inputs[0];
        }
    }
    static bool own(const Unit& unit) {
        return unit.kind != UnitKind::kPadChannels && unit.row->scale == OutputScale::kOwn;
    }

private:
    std::unordered_map<const Value*, const Unit*> maker_;
};

class Planner {
public:
    Planner(StaticPlan::Impl& plan, const Calibration& calibration) : plan_(plan), calibration_(calibration) {
        plan_.weight_bits = std::min(plan_.options.weight_bits, widest_weight(plan_.options.reduce_range));
        if (!plan_.options.observer) plan_.options.observer = histogram();
        const auto& engine = plan_.options.engine;
        islands_ = engine == "x86" || engine == "fbgemm" || engine == "auto" || plan_.options.linear == "fused";
    }

    void run() {
        torch::NoGradGuard no_grad;
        plan_.units = find_units(plan_.model, plan_.facts);
        const LayerNames names(plan_.model);
        for (const auto& unit : plan_.units) plan_.unit_names.push_back(names.of(unit.node));
        apply_options();
        require_anchor();
        find_sums();
        const auto& options = plan_.options;
        if (options.in_turn && options.rounding && options.rounding->blocks())
            throw InvalidArgument(kWhere, "in_turn does not go with rounding of blocks",
                                  "Blocks are rounded in turn anyway: leave it out.");
        if (options.bias_correction || (options.rounding && options.rounding->needs_moments())) {
            std::set<const Node*> anchors;
            for (const auto& unit : plan_.units)
                if (unit.anchor() && unit.refusal.empty()) anchors.insert(unit.node);
            moments_ = collect_moments(
                plan_.model, calibration_, [&](const Node* node) { return anchors.count(node) > 0; }, options.progress);
        }
        for (;;) {
            choose_borders(plan_.units, plan_.facts, islands_);
            observe(needed_values());
            assign_parameters();
            round_weights();
            if (!refuse_noisy()) break;
            require_anchor();
        }
        drop_float_layers();
        // With the layers that stay in float known: others need not make up for them.
        if (options.in_turn) {
            round_in_turn(plan_, calibration_.read(),
                          [this](const Node* node, const at::Tensor& weight, const auto& moments) {
                              return rounded(const_cast<Node*>(node), weight, &moments);
                          });
            measured_.clear();
            measure_noise();
        } else if (options.rounding && options.rounding->blocks()) {
            reconstruct_blocks(plan_, calibration_.read(), *options.rounding->blocks());
            for (const auto& unit : plan_.units)
                if (plan_.weights.count(unit.node)) correct_bias(unit.node, anchor_weight(plan_.model, unit.node));
            measured_.clear();
            measure_noise();
        }
        plan_.layers = layer_plans(plan_.model, plan_.facts, plan_.units, [&](const Unit& unit) {
            return ends_of(plan_.parameters.at(unit.inputs[0]), kActivationLevels);
        });
        for (auto& layer : plan_.layers)
            if (layer.int8 && layer.parameters > 0)
                layer.precision = int8_precision(options.weight_bits, weight_bits_of(plan_, names.find(layer.layer)));
    }

private:
    void apply_options() {
        auto& units = plan_.units;
        for (const auto& pattern : plan_.options.ignore) {
            std::regex expression;
            try {
                expression = std::regex(pattern);
            } catch (const std::regex_error&) {
                throw InvalidArgument(kWhere, "ignore: \"" + pattern + "\" is no regular expression",
                                      "Write a layer's name, or an ECMAScript pattern such as layer1\\..*");
            }
            bool any = false;
            for (size_t i = 0; i < units.size(); ++i) {
                if (!std::regex_match(plan_.unit_names[i], expression)) continue;
                any = true;
                if (units[i].refusal.empty()) units[i].refusal = "ignore: " + pattern;
            }
            if (!any)
                throw InvalidArgument(kWhere, "ignore: \"" + pattern + "\" matches no layer",
                                      "`coppice inspect` lists the names; the pattern must match a whole name.");
        }
        if (!plan_.options.first_last) {
            Unit *first = nullptr, *last = nullptr;
            for (auto& unit : units) {
                if (!unit.anchor()) continue;
                if (!first) first = &unit;
                last = &unit;
            }
            for (Unit* unit : {first, last})
                if (unit && unit->refusal.empty()) unit->refusal = "first_last: float";
        }
    }

    /// Additions and products of tensors, and which of their operands the model's inputs do not reach.
    void find_sums() {
        const auto dependent = dependent_values(*plan_.model.graph());
        for (const auto& unit : plan_.units) {
            if ((unit.kind != UnitKind::kAdd && unit.kind != UnitKind::kMul) || !unit.refusal.empty()) continue;
            sums_.insert(unit.node);
            for (const size_t i : {0, 1})
                if (!dependent.count(unit.inputs[i]) && dependent.count(unit.inputs[1 - i]))
                    plan_.smaller_operands.emplace(unit.node, i);
        }
    }

    void require_anchor() const {
        std::string reasons;
        int shown = 0;
        for (size_t i = 0; i < plan_.units.size(); ++i) {
            const auto& unit = plan_.units[i];
            if (!unit.anchor()) continue;
            if (unit.refusal.empty()) return;
            if (++shown <= 5) reasons += "; " + plan_.unit_names[i] + ": " + unit.refusal;
        }
        const LayerNames names(plan_.model);
        for (Node* node : all_nodes(*plan_.model.graph()))
            if (node->owningBlock() != plan_.model.graph()->block() && (as_conv(node) || as_linear(node)) &&
                ++shown <= 5)
                reasons += "; " + names.of(node) + ": " + kInsideBlock;
        if (shown > 5) reasons += "; and " + std::to_string(shown - 5) + " more";
        const auto [hint, fix] = why_no_layer(plan_.model);
        if (!shown) reasons = hint.empty() ? "; the model has no convolution or linear layer" : "";
        throw UnsupportedModel(kWhere, "nothing can run in int8" + reasons + hint, fix);
    }

    std::vector<const Value*> needed_values() const {
        const Roots roots(plan_.units);
        std::vector<const Value*> values;
        const auto want = [&](const Value* value) {
            if (!observers_.count(value)) values.push_back(value);
        };
        for (const auto& unit : plan_.units) {
            if (!unit.int8 && !unit.island) continue;
            for (const auto* input : unit.inputs) want(roots.root(input));
            if (unit.int8)
                for (const auto* output : unit.outputs) want(roots.root(output));
        }
        return values;
    }

    void observe(const std::vector<const Value*>& values) {
        if (values.empty()) return;
        std::unordered_map<const Value*, Observer*> fresh;
        for (const auto* value : values) {
            auto& observer = observers_[value];
            if (!observer) observer = plan_.options.observer->fresh();
            fresh[value] = observer.get();
        }
        const auto see = [&](const Value* value, const c10::IValue& content) {
            const auto found = fresh.find(value);
            if (found == fresh.end() || !content.isTensor()) return;
            try {
                found->second->observe(content.toTensor());
            } catch (const UnsupportedModel& error) {
                const auto* maker = value->node();
                const auto place = maker->kind() == prim::Param ? "input " + value->debugName()
                                                                : "the output of " + LayerNames(plan_.model).of(maker);
                throw UnsupportedModel(std::string(kWhere) + " at " + place, error.problem(), error.fix());
            }
        };
        NodeHooks hooks;
        hooks.before = [&](const Node* node, std::vector<c10::IValue>& operands) {
            if (!sums_.count(node)) return;
            const auto left = operands[0].toTensor().sizes(), right = operands[1].toTensor().sizes();
            if (left == right) return;
            const auto whole = at::infer_size(left, right);
            if (left != at::IntArrayRef(whole)) plan_.smaller_operands.emplace(node, 0);
            if (right != at::IntArrayRef(whole)) plan_.smaller_operands.emplace(node, 1);
        };
        hooks.after = [&](const Node* node, std::vector<c10::IValue>& outputs) {
            for (size_t i = 0; i < outputs.size(); ++i) see(node->outputs()[i], outputs[i]);
        };
        const auto parameters = plan_.model.graph()->inputs();
        run_batches(plan_.model, calibration_, hooks, "observing ranges", plan_.options.progress, INT64_MAX,
                    [&](const Inputs& inputs) {
                        for (size_t i = 0; i < inputs.size() && i + 1 < parameters.size(); ++i)
                            see(parameters[i + 1], inputs[i]);
                    });
    }

    Range range_of(const Value* value) {
        const auto found = ranges_.find(value);
        if (found != ranges_.end()) return found->second;
        return ranges_[value] = observers_.at(value)->range(kActivationLevels);
    }

    /// Parts of a concatenation get one scale where none of them loses more than a bit by it: the copy is then many
    /// times faster than a concatenation that converts.
    std::unordered_map<const Value*, const Value*> join_cats(const Roots& roots) {
        std::unordered_map<const Value*, const Value*> parent;
        struct Group {
            Range range;
            double narrowest;
        };
        std::unordered_map<const Value*, Group> groups;
        const auto find = [&](const Value* value) {
            while (parent.count(value)) value = parent.at(value);
            return value;
        };
        const auto group_of = [&](const Value* value) {
            const auto found = groups.find(value);
            if (found != groups.end()) return found->second;
            const auto range = range_of(value);
            return Group{range, std::max(range.high, 0.0) - std::min(range.low, 0.0)};
        };
        plan_.cats_with_one_scale.clear();
        for (const auto& unit : plan_.units) {
            if (!unit.int8 || unit.kind != UnitKind::kCat) continue;
            std::set<const Value*> members{find(unit.outputs[0])};
            for (const auto* input : unit.inputs) members.insert(find(roots.root(input)));
            Group joined{{0, 0}, std::numeric_limits<double>::infinity()};
            for (const auto* member : members) {
                const auto group = group_of(member);
                joined.range.low = std::min(joined.range.low, group.range.low);
                joined.range.high = std::max(joined.range.high, group.range.high);
                joined.narrowest = std::min(joined.narrowest, group.narrowest);
            }
            if (joined.narrowest < kNarrowestPart * (joined.range.high - joined.range.low)) continue;
            const auto* head = *members.begin();
            for (const auto* member : members)
                if (member != head) parent[member] = head;
            groups[head] = joined;
            plan_.cats_with_one_scale.insert(unit.node);
        }
        std::unordered_map<const Value*, const Value*> head_of;
        for (const auto& [value, unused] : observers_) {
            const auto* head = find(value);
            if (groups.count(head)) {
                head_of[value] = head;
                joined_ranges_[head] = groups.at(head).range;
            }
        }
        return head_of;
    }

    /// With zero at 128: 127 steps above it and 128 below.
    static Range mirrored(const Range& range) {
        if (range.low >= 0) return range;
        const double end = std::max(-range.low, range.high);
        return {-end * 128 / 127, end};
    }

    void assign_parameters() {
        plan_.parameters.clear();
        plan_.roots.clear();
        joined_ranges_.clear();
        const Roots roots(plan_.units);
        const auto head_of = join_cats(roots);
        const auto assign = [&](const Value* value) {
            const auto* root = roots.root(value);
            const auto head = head_of.find(root);
            const auto range = head == head_of.end() ? range_of(root) : joined_ranges_.at(head->second);
            plan_.parameters[value] = affine(plan_.options.symmetric ? mirrored(range) : range, kActivationLevels);
            plan_.roots[value] = head == head_of.end() ? root : head->second;
        };
        for (const auto& unit : plan_.units) {
            if (!unit.int8 && !unit.island) continue;
            for (const auto* input : unit.inputs) assign(input);
            if (unit.int8)
                for (const auto* output : unit.outputs) assign(output);
        }
    }

    void round_weights() {
        for (size_t i = 0; i < plan_.units.size(); ++i) {
            const auto& unit = plan_.units[i];
            if (!unit.anchor() || !(unit.int8 || unit.island) || plan_.weights.count(unit.node)) continue;
            const auto weight = anchor_weight(plan_.model, unit.node);
            const auto found = moments_.find(unit.node);
            plan_.weights[unit.node] = rounded(unit.node, weight, found == moments_.end() ? nullptr : &found->second);
            correct_bias(unit.node, weight);
        }
    }

    /// Layers that were refused, or whose borders moved, after their weights had been rounded: only int8 layers have
    /// weights and biases in a plan.
    void drop_float_layers() {
        for (const auto& unit : plan_.units) {
            if (unit.int8 || unit.island) continue;
            plan_.weights.erase(unit.node);
            plan_.biases.erase(unit.node);
        }
    }

    /// qint8, channels in dimension 0. @param moments  for each group of a convolution; may be null
    at::Tensor rounded(Node* node, const at::Tensor& weight, const std::vector<InputMoments>* moments) {
        const auto& options = plan_.options;
        const int64_t bits = weight_bits_of(plan_, node);
        if (!options.rounding && bits == 8 && !options.fit_weights) return quantize_weight(weight, options.per_channel);
        const std::shared_ptr<const Rounding> rounding = options.rounding ? options.rounding : nearest();
        GridOptions grid;
        grid.bits = bits;
        grid.one_scale = !options.per_channel;
        grid.least_error = options.fit_weights;
        const auto matrix = weight.detach().reshape({weight.size(0), -1}).contiguous();
        const bool use = rounding->needs_moments() && moments;
        // Groups of a convolution see inputs of their own; a scale of all of them needs all weights at once.
        const size_t groups = use && options.per_channel ? moments->size() : 1;
        if (use && groups == 1 && moments->size() > 1)
            throw InvalidArgument(kWhere, "per_channel: false does not go with this rounding on grouped convolutions",
                                  "Use per_channel: true, or rounding nearest.");
        std::vector<at::Tensor> integers, scales;
        const auto parts = matrix.chunk(static_cast<int64_t>(groups), 0);
        for (size_t i = 0; i < parts.size(); ++i) {
            const auto part = rounding->round(parts[i].contiguous(), grid, use ? &(*moments)[i] : nullptr);
            integers.push_back(part.integers);
            scales.push_back(part.scale);
        }
        return at::_make_per_channel_quantized_tensor(
            at::cat(integers).to(at::kChar).reshape(weight.sizes()).contiguous(),
            at::cat(scales).reshape({-1}).to(at::kDouble), at::zeros({weight.size(0)}, at::kLong), 0);
    }

    /// b' = b + (W - W') E[x]: the rounded layer has the same mean output (arXiv 1906.04721, section 4.2).
    void correct_bias(const Node* node, const at::Tensor& weight) {
        const auto found = moments_.find(node);
        if (!plan_.options.bias_correction || found == moments_.end()) return;
        const auto difference = (weight - plan_.weights.at(node).dequantize()).reshape({weight.size(0), -1});
        std::vector<at::Tensor> parts;
        const auto chunks = difference.to(at::kDouble).chunk(static_cast<int64_t>(found->second.size()), 0);
        for (size_t i = 0; i < chunks.size(); ++i) parts.push_back(chunks[i].mv(found->second[i].mean));
        set_bias(plan_, node, at::cat(parts));
    }

    /// Measures each int8 layer by itself. @return those that had not been measured
    std::vector<Unit*> measure_noise() {
        std::vector<Unit*> units;
        for (auto& unit : plan_.units)
            if (unit.anchor() && (unit.int8 || unit.island) && measured_.insert(unit.node).second)
                units.push_back(&unit);
        AnchorRounding rounding;
        rounding.round = [&](const Unit& unit, auto& stack) { round_anchor(plan_, unit, stack); };
        rounding.bias_behind = [&](const Unit& unit) { return bias_behind(plan_, unit.node); };
        rounding.input = [&](const Unit& unit) {
            return std::make_pair(plan_.parameters.at(unit.inputs[0]), kActivationLevels);
        };
        quantize::measure_noise(plan_.model, units, calibration_, rounding, plan_.options.progress);
        return units;
    }

    /// Refuses layers below the limit. True if any was.
    bool refuse_noisy() {
        bool any = false;
        for (auto* unit : measure_noise()) {
            if (unit->sqnr_db >= plan_.options.min_sqnr_db) continue;
            char text[96];
            std::snprintf(text, sizeof text, "its signal-to-noise ratio in int8 is %.1f dB, min_sqnr_db is %g",
                          unit->sqnr_db, plan_.options.min_sqnr_db);
            unit->refusal = text;
            any = true;
        }
        return any;
    }

    StaticPlan::Impl& plan_;
    const Calibration& calibration_;
    bool islands_ = true;
    std::unordered_map<const Value*, std::unique_ptr<Observer>> observers_;
    std::unordered_map<const Value*, Range> ranges_, joined_ranges_;
    std::set<const Node*> measured_, sums_;
    std::unordered_map<const Node*, std::vector<InputMoments>> moments_;
};

/// An int8 model does not train: branches on `training` go, which scripted batch norms and dropouts bring along.
void settle_training(Model& model) {
    auto graph = model.graph();
    for (Node* node : all_nodes(*graph)) {
        if (node->kind() != prim::GetAttr || node->s(attr::name) != "training" ||
            node->output()->type()->kind() != c10::TypeKind::BoolType)
            continue;
        WithInsertPoint guard(node);
        node->output()->replaceAllUsesWith(graph->insertConstant(false));
    }
    ConstantPropagation(graph);
    model.refresh();
}

/// before  scripted nn.EmbeddingBag asks for its weight's type, whether it was given in the place of the indices
/// after   the weight itself, where it was
void settle_swapped_bags(Model& model) {
    auto graph = model.graph();
    const auto nodes = all_nodes(*graph);
    if (std::none_of(nodes.begin(), nodes.end(), [](Node* node) { return as_lookup(node) && !as_embedding(node); }))
        return;
    for (Node* node : nodes) {
        if (node->kind() != prim::dtype || !attribute_name(node->input())) continue;
        const auto parameter = parameter_of(model, node->input());
        if (!parameter) continue;
        WithInsertPoint guard(node);
        node->output()->replaceAllUsesWith(graph->insertConstant(static_cast<int64_t>(parameter->scalar_type())));
    }
    ConstantPropagation(graph);
    model.refresh();
}

/// Dropout does nothing in a model that does not train, but in place it counts as an operator that writes.
void drop_dropout(Model& model) {
    static const std::set<std::string> names = {
        "aten::dropout",       "aten::dropout_",       "aten::feature_dropout", "aten::feature_dropout_",
        "aten::alpha_dropout", "aten::alpha_dropout_", "aten::dropout2d",       "aten::dropout3d"};
    for (Node* node : all_nodes(*model.graph())) {
        if (!names.count(node->kind().toQualString())) continue;
        const auto trains = constant_of(node->input(2));
        if (!trains || !trains->isBool() || trains->toBool()) continue;
        node->output()->replaceAllUsesWith(node->input(0));
        node->destroy();
    }
}

std::string why_no_unit(Node* node) {
    const std::string op = node->kind().toUnqualString();
    if (op == "gru" || op == "lstm" || op.rfind("rnn_", 0) == 0) return "recurrent cells have no static int8 kernel";
    if (as_lookup(node)) return "embeddings stay in float";
    if (as_attention(node) || as_matmul(node))
        return "it multiplies two computed tensors, which takes LibTorch longer in int8";
    // Measured: dequantizing, the float operator and rounding again take less time than LibTorch's int8 operator.
    static const std::set<std::string> slower = {"elu",     "gelu", "instance_norm", "layer_norm",       "prelu",
                                                 "softmax", "tanh", "_prelu_kernel", "native_layer_norm"};
    if (slower.count(op)) return "LibTorch's int8 operator is slower than the one in float";
    return "no int8 operator of LibTorch stands for it";
}

/// Layers, and operators that turn float tensors into float tensors: what a reader may expect to run in int8.
bool worth_a_word(Node* node, const Facts& facts) {
    if (as_conv(node) || as_linear(node) || as_recurrent(node) || as_lookup(node)) return true;
    if (std::string(node->kind().toQualString()).rfind("aten::", 0) != 0 || node->outputs().empty()) return false;
    const auto is_float_matrix = [&](const Value* value) {
        const auto* fact = facts.find(value);
        return fact && fact->is_tensor && fact->dtype == at::kFloat && fact->shape.size() > 1;
    };
    // The transpose of a weight is no work of its own.
    return is_float_matrix(node->output(0)) &&
           std::any_of(node->inputs().begin(), node->inputs().end(),
                       [&](const Value* input) { return is_float_matrix(input) && !attribute_name(input); });
}

/// Where the model gives its caller contiguous tensors. All places where it cannot be told which tensor leaves where: a
/// list that is computed has no place of its own.
std::vector<Use> contiguous_outputs(const Model& model, const Inputs& example, const Model& prepared) {
    torch::NoGradGuard no_grad;
    Inputs inputs;  // copies: a model may write into its inputs
    for (const auto& input : example)
        inputs.push_back(input.isTensor() ? c10::IValue(input.toTensor().clone()) : input);
    Model quiet = model.clone();  // in training mode batch norms would learn
    quiet.eval();
    const auto tensors = all_tensors(quiet.forward(inputs));
    std::vector<Use> contiguous;
    const auto places = output_places(*prepared.graph());
    for (size_t i = 0; i < places.size(); ++i)
        if (tensors.size() != places.size() || tensors[i].is_contiguous()) contiguous.push_back(places[i]);
    return contiguous;
}

}  // namespace

AnchorInputs anchor_inputs(const Node* node) {
    if (node->kind() == aten::addmm) return {1, 2, true, 0};
    if (node->kind() == aten::mm || node->kind() == aten::matmul) return {0, 1, true, std::nullopt};
    return {0, 1, false, 2};
}

at::Tensor anchor_weight(const Model& model, Node* node) {
    const auto conv = as_conv(node);
    const auto linear = as_linear(node);
    const auto weight = parameter_of(model, conv ? conv->weight : linear->weight)->detach();
    return !conv && linear->weight_transposed ? weight.t() : weight;
}

at::Tensor rounded_weight(const Unit& unit, const at::Tensor& weight) {
    const auto values = weight.dequantize();
    return anchor_inputs(unit.node).weight_transposed ? values.t() : values;
}

void round_anchor(const StaticPlan::Impl& plan, const Unit& unit, std::vector<c10::IValue>& stack) {
    const auto place = anchor_inputs(unit.node);
    stack[place.tensor] = fake_quantize(stack[place.tensor].toTensor(), plan.parameters.at(unit.inputs[0]));
    stack[place.weight] = rounded_weight(unit, plan.weights.at(unit.node));
    if (const auto bias = plan.biases.find(unit.node); bias != plan.biases.end() && place.bias)
        stack[*place.bias] = bias->second;
}

at::Tensor bias_behind(const StaticPlan::Impl& plan, const Node* node) {
    const auto bias = plan.biases.find(node);
    return bias == plan.biases.end() || anchor_inputs(node).bias ? at::Tensor() : bias->second;
}

void set_bias(StaticPlan::Impl& plan, const Node* node, const at::Tensor& correction) {
    auto bias = correction;
    if (const auto place = anchor_inputs(node).bias)
        if (const auto tensor = parameter_of(plan.model, node->input(*place)))
            bias = bias + tensor->detach().reshape({-1});
    plan.biases[node] = bias.to(at::kFloat);
}

Range ends_of(const Affine& parameters, int64_t levels) {
    Range range;
    range.low = -parameters.scale * static_cast<double>(parameters.zero_point);
    range.high = range.low + parameters.scale * static_cast<double>(levels - 1);
    return range;
}

int64_t widest_weight(const std::string& reduce_range, bool exact_products) {
    require_known(kWhere, "reduce_range", reduce_range, {"auto", "off", "on"});
    return reduce_range == "on" || (reduce_range == "auto" && !exact_products) ? 7 : 8;
}

bool sums_in_16_bits(const Model& model, Node* node, const std::string& engine) {
    const auto conv = as_conv(node);
    const auto weight = conv && !conv->transposed ? parameter_of(model, conv->weight) : std::nullopt;
    return weight && fbgemm_depthwise(weight->sizes(), conv->groups, engine);
}

int64_t weight_bits_of(const StaticPlan::Impl& plan, Node* node) {
    // oneDNN's operator, which takes all depthwise convolutions of two dimensions then, sums in 32 bits.
    const bool by_onednn = plan.options.conv == "fused" && as_conv(node) && as_conv(node)->dims == 2;
    const bool narrow =
        plan.options.reduce_range != "off" && !by_onednn && sums_in_16_bits(plan.model, node, plan.options.engine);
    return std::min<int64_t>(plan.weight_bits, narrow ? 7 : 8);
}

std::string int8_precision(int64_t weight_bits, int64_t used_bits) {
    if (weight_bits < 8) return "int8 (simulated W" + std::to_string(weight_bits) + "A8)";
    return used_bits < 8 ? "int8 (" + std::to_string(used_bits) + "-bit weights)" : "int8";
}

void measure_noise(const Model& model, const std::vector<Unit*>& anchors, const Calibration& batches,
                   const AnchorRounding& rounding, const Progress& progress) {
    struct Power {
        double signal = 0, noise = 0, clipped = 0, values = 0;
    };
    if (anchors.empty()) return;
    std::unordered_map<const Node*, size_t> index;
    for (size_t i = 0; i < anchors.size(); ++i) index[anchors[i]->node] = i;
    std::vector<Power> powers(anchors.size());
    std::unordered_map<const Node*, at::Tensor> rounded;
    NodeHooks hooks;
    hooks.before = [&](const Node* node, std::vector<c10::IValue>& inputs) {
        const auto found = index.find(node);
        if (found == index.end()) return;
        const auto& unit = *anchors[found->second];
        auto stack = inputs;
        rounding.round(unit, stack);
        node->getOperation()(stack);
        rounded[node] = stack[0].toTensor();
        if (rounding.bias_behind)
            if (const auto bias = rounding.bias_behind(unit); bias.defined()) rounded[node] = rounded[node] + bias;
        const auto [parameters, levels] = rounding.input(unit);
        const auto ends = ends_of(parameters, levels);
        const auto x = inputs[anchor_inputs(node).tensor].toTensor();
        auto& count = powers[found->second];
        // Half a step beyond an end still rounds to the end.
        const double slack = parameters.scale / 2;
        count.clipped += ((x < ends.low - slack) | (x > ends.high + slack)).sum().item<double>();
        count.values += static_cast<double>(x.numel());
    };
    hooks.after = [&](const Node* node, std::vector<c10::IValue>& outputs) {
        const auto found = rounded.find(node);
        if (found == rounded.end()) return;
        const auto exact = outputs[0].toTensor();
        auto& power = powers[index.at(node)];
        power.signal += exact.pow(2).sum(at::kDouble).item<double>();
        power.noise += (exact - found->second).pow(2).sum(at::kDouble).item<double>();
        rounded.erase(found);
    };
    run_batches(model, batches, hooks, "measuring noise", progress, kNoiseBatches);
    for (size_t i = 0; i < anchors.size(); ++i) {
        const auto& power = powers[i];
        // No noise at all (an input of zeros) is as good as float.
        anchors[i]->sqnr_db = sqnr_db(power.signal, power.noise);
        anchors[i]->clipped_ratio = power.values > 0 ? power.clipped / power.values : 0;
    }
}

Model prepare(const Model& model, const Inputs& example, std::vector<LayerChange>* folded, const LayerFilter& split) {
    Model copy = model.clone();
    copy.eval();
    settle_training(copy);
    settle_swapped_bags(copy);
    fold_batch_norm(copy, example, folded);
    drop_dropout(copy);
    settle_dictionaries(copy);
    settle_lists(copy);
    // Networks add and rectify in place; the int8 operators do not.
    RemoveTensorMutation(copy.graph());
    fold_hard_sigmoid(copy);
    split_transposed_convolutions(copy, example, split);
    copy.refresh();
    return copy;
}

Json layer_rows(const std::vector<LayerPlan>& layers) {
    Json rows = Json::array();
    for (const auto& layer : layers) {
        if (layer.parameters == 0) continue;
        Json row = {
            {"layer", layer.layer}, {"op", layer.op}, {"parameters", layer.parameters}, {"precision", layer.precision}};
        if (layer.sqnr_db != 0) row["sqnr_db"] = layer.sqnr_db;
        if (layer.int8) {
            row["input_range"] = {layer.range.low, layer.range.high};
            row["clipped_ratio"] = layer.clipped_ratio;
        }
        if (!layer.reason.empty()) row["reason"] = layer.reason;
        rows.push_back(row);
    }
    return rows;
}

std::vector<LayerPlan> layer_plans(const Model& model, const Facts& facts, const std::vector<Unit>& units,
                                   const std::function<Range(const Unit& unit)>& input_range) {
    const LayerNames names(model);
    const auto unit_of = units_by_node(units);
    std::vector<LayerPlan> layers;
    for (Node* node : all_nodes(*model.graph())) {
        const auto found = unit_of.find(node);
        LayerPlan layer;
        layer.layer = names.of(node);
        layer.op = node->kind().toQualString();
        for (const auto* value : weight_values(node))
            if (const auto weight = parameter_of(model, value)) layer.parameters += weight->numel();
        if (found != unit_of.end()) {
            const auto& unit = *found->second;
            if (node != unit.node) continue;
            layer.int8 = unit.int8 || unit.island;
            layer.sqnr_db = unit.sqnr_db;
            layer.clipped_ratio = unit.clipped_ratio;
            if (layer.int8 && input_range) layer.range = input_range(unit);
            if (layer.int8) layer.precision = "int8";
            if (!layer.int8)
                layer.reason = !unit.refusal.empty() ? unit.refusal : "beside float operators it is no faster in int8";
        } else {
            if (!worth_a_word(node, facts)) continue;
            if (node->owningBlock() != model.graph()->block() && find_row(node))
                layer.reason = kInsideBlock;
            else
                layer.reason = why_no_unit(node);
        }
        layers.push_back(std::move(layer));
    }
    return layers;
}

StaticPlan plan_static(const Model& model, const Inputs& example, const std::vector<Inputs>& calibration,
                       const StaticOptions& options) {
    return plan_static(model, example, Calibration(calibration), options);
}

void check_options(const StaticOptions& options) {
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
    if (std::isnan(options.min_sqnr_db)) throw InvalidArgument(kWhere, "min_sqnr_db is no number", "Use 10.");
    if (options.rounding && options.rounding->scales_inputs())
        throw InvalidArgument(kWhere, "rounding awq scales a layer's input, which int8 inputs cannot follow",
                              "Use gptq or adaround, or awq in quantize.weight_only.");
    if (!(options.smooth >= 0 && options.smooth <= 1))
        throw InvalidArgument(kWhere, "smooth is " + std::to_string(options.smooth) + ", must be in [0, 1]",
                              "Use 0.5, or 0 to leave it out.");
    check_smooth_norms(kWhere, options.smooth_norms);
    check_relu6(kWhere, "equalize_relu6", options.equalize_relu6);
    if (options.smooth == 0 && options.smooth_norms != StaticOptions().smooth_norms)
        throw InvalidArgument(kWhere, "smooth_norms is " + options.smooth_norms + ", but smooth is off",
                              "Use smooth: 0.5 with it, or leave it out.");
    if (!options.equalize && options.equalize_relu6 != StaticOptions().equalize_relu6)
        throw InvalidArgument(kWhere, "equalize_relu6 is " + options.equalize_relu6 + ", but equalize is off",
                              "Use equalize: true with it, or leave it out.");
    if (options.rounding && options.rounding->moves_offsets())
        throw InvalidArgument(kWhere, "rounding hqq moves offsets, which int8 kernels' symmetric weights do not have",
                              "Use gptq or adaround, or hqq in quantize.weight_only.");
    widest_weight(options.reduce_range);
    if (options.engine != "auto") require_known(kWhere, "engine", options.engine, engines());
    require_known(kWhere, "linear", options.linear, {"auto", "fused", "packed"});
    require_known(kWhere, "conv", options.conv, {"auto", "fused", "fused_large", "packed"});
}

StaticPlan plan_static(const Model& model, const Inputs& example, const Calibration& calibration,
                       const StaticOptions& options) {
    check_options(options);
    if (calibration.size() == 0)
        throw InvalidArgument(kWhere, "there is no calibration data", "Give at least one batch of the model's inputs.");
    refuse_unusable(model, kWhere);
    auto plan = std::make_shared<StaticPlan::Impl>();
    plan->options = options;
    plan->model = prepare(model, example, &plan->folded);
    if (options.equalize)
        plan->equalized = equalize(plan->model, calibration, {options.equalize_relu6, options.progress}, &plan->folded);
    if (options.smooth > 0) {
        SmoothOptions smoothing;
        smoothing.alpha = options.smooth;
        smoothing.norms = options.smooth_norms;
        smoothing.observer = options.observer;
        smoothing.weight_bits = std::min(options.weight_bits, widest_weight(options.reduce_range));
        smoothing.per_channel = options.per_channel;
        smoothing.fit_weights = options.fit_weights;
        smoothing.progress = options.progress;
        plan->smoothed = smooth(plan->model, calibration, smoothing, &plan->folded);
    }
    plan->facts = Facts::observe(plan->model, example);
    plan->contiguous_outputs = contiguous_outputs(model, example, plan->model);
    Planner(*plan, calibration).run();
    return StaticPlan(plan);
}

std::vector<LayerPlan> explain(const Model& model, const Inputs& example) {
    const auto prepared = prepare(model, example, nullptr);
    const auto facts = Facts::observe(prepared, example);
    auto units = find_units(prepared, facts);
    choose_borders(units, facts, true);
    return layer_plans(prepared, facts, units);
}

const std::vector<LayerPlan>& StaticPlan::layers() const {
    return impl_->layers;
}
const Model& StaticPlan::model() const {
    return impl_->model;
}
const Affine* StaticPlan::parameters(const Value* value) const {
    const auto found = impl_->parameters.find(value);
    return found == impl_->parameters.end() ? nullptr : &found->second;
}

}  // namespace coppice::quantize
