// From plan to int8 model: every int8 unit becomes int8 operators, tensors are converted where the two sides meet.
#include <cmath>

#include <coppice/dataflow.h>
#include <coppice/error.h>

#include "emit/fused_conv.h"
#include "emit/operators.h"
#include "layers/layers.h"
#include "plan/plan.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

std::vector<const Unit*> islands_of(const StaticPlan::Impl& plan) {
    std::vector<const Unit*> islands;
    for (const auto& unit : plan.units)
        if (unit.island) islands.push_back(&unit);
    return islands;
}

/// Linear layers that linear: fused replaces: islands, and those that the plan has in int8 although nothing reads their
/// integers.
std::vector<const Unit*> fused_linear(const StaticPlan::Impl& plan) {
    std::set<const Value*> read_as_int8;
    for (const auto& unit : plan.units)
        if (unit.int8) read_as_int8.insert(unit.inputs.begin(), unit.inputs.end());
    std::vector<const Unit*> fused;
    for (const auto& unit : plan.units) {
        const bool to_float = unit.int8 && unit.kind == UnitKind::kLinear && !read_as_int8.count(unit.outputs[0]);
        if (unit.island || to_float) fused.push_back(&unit);
    }
    return fused;
}

/// Whether that can be worth it: only activations that the packed operators do not apply save anything.
bool worth_fusing(const StaticPlan::Impl& plan) {
    for (const auto* unit : fused_linear(plan)) {
        const Node* reader = only_reader(unit->outputs[0]);
        if (reader && fused_activation(reader) && !clamp_of(reader)) return true;
    }
    return false;
}

class Converter {
public:
    explicit Converter(const StaticPlan::Impl& plan)
        : plan_(plan),
          unit_of_(units_by_node(plan.units)),
          model_(plan.model.clone()),
          graph_(model_.graph()),
          emit_(*graph_) {
        // A clone has the same nodes in the same order.
        const auto old_nodes = all_nodes(*plan.model.graph()), new_nodes = all_nodes(*graph_);
        if (old_nodes.size() != new_nodes.size()) throw InternalError("quantize.convert", "a copy has other nodes", "");
        for (size_t i = 0; i < old_nodes.size(); ++i) {
            nodes_[old_nodes[i]] = new_nodes[i];
            for (size_t k = 0; k < old_nodes[i]->outputs().size(); ++k)
                values_[old_nodes[i]->outputs()[k]] = new_nodes[i]->outputs()[k];
        }
        for (size_t i = 0; i < graph_->inputs().size(); ++i)
            values_[plan.model.graph()->inputs()[i]] = graph_->inputs()[i];
    }

    Model run() {
        const bool fused = plan_.options.linear == "fused";
        for (const auto* unit : fused ? fused_linear(plan_) : islands_of(plan_)) islands_.insert(unit->node);
        if (plan_.options.conv != "packed" && plan_.options.conv != "auto") fused_convs_ = fused_convolutions(plan_);
        for (const auto& [node, conv] : fused_convs_) {
            if (conv.add) inside_.emplace(conv.add->node, &conv);
            if (conv.last != conv.unit->nodes.back() && !conv.add) inside_.emplace(conv.last, nullptr);
        }
        if (fused)
            for (const auto* unit : fused_linear(plan_))
                if (const Node* last = inside_island(*unit).first; last != unit->node) inside_.emplace(last, nullptr);
        for (const auto& unit : plan_.units) {
            const auto conv = fused_convs_.find(unit.node);
            const auto inside = inside_.find(unit.node);
            if (inside != inside_.end()) {
                // An addition is emitted where it stands, behind both of its operands.
                if (inside->second) emit_fused_conv(*inside->second);
            } else if (conv != fused_convs_.end()) {
                if (!conv->second.add) emit_fused_conv(conv->second);
            } else if (islands_.count(unit.node))
                fused ? emit_fused_island(unit) : emit_island(unit);
            else if (unit.int8)
                emit_unit(unit);
        }
        connect_float_readers();
        for (auto node = dead_.rbegin(); node != dead_.rend(); ++node) {
            for (Value* output : (*node)->outputs())
                if (output->hasUses()) throw InternalError("quantize.convert", "a float operator is still in use", "");
            (*node)->destroy();
        }
        relax_views(*graph_);
        restore_outputs();
        model_.refresh();
        remove_unused_attributes(model_);
        return model_;
    }

private:
    Value* as_int8(const Value* old) {
        auto& made = int8_[old];
        if (const auto found = integers_.find(old); !made && found != integers_.end()) {
            WithInsertPoint guard(found->second->node()->next());
            made = emit_.from_integers(found->second, plan_.parameters.at(old));
        }
        if (!made) {
            Value* value = values_.at(old);
            // Right behind its maker, so that every reader comes later.
            Node* maker = value->node();
            WithInsertPoint guard(maker->kind() == prim::Param ? *graph_->block()->nodes().begin() : maker->next());
            // Int8 convolutions want channels last; to turn floats takes less time than to turn integers.
            const bool image = maker->kind() == prim::Param && plan_.facts.shape(old).size() == 4 &&
                               std::any_of(old->uses().begin(), old->uses().end(),
                                           [](const Use& use) { return as_conv(use.user).has_value(); });
            made = emit_.quantize(image ? emit_.channels_last(value) : value, plan_.parameters.at(old));
        }
        return made;
    }

    /// The integers that oneDNN's operators read.
    Value* as_integers(const Value* old) {
        if (const auto found = integers_.find(old); found != integers_.end()) return found->second;
        Value* int8 = as_int8(old);
        WithInsertPoint guard(int8->node()->next());
        return integers_[old] = emit_.integers(int8);
    }

    /// Undefined where the layer has none.
    at::Tensor bias_of(const Unit& unit) const {
        if (const auto corrected = plan_.biases.find(unit.node); corrected != plan_.biases.end())
            return corrected->second;
        const auto conv = as_conv(unit.node);
        const auto linear = as_linear(unit.node);
        if (!(conv ? conv->has_bias : linear->has_bias)) return {};
        return parameter_of(plan_.model, conv ? conv->bias : linear->bias)->reshape({-1});
    }

    static std::string weight_name(const Unit& unit) {
        const auto conv = as_conv(unit.node);
        return attribute_name(conv ? conv->weight : as_linear(unit.node)->weight).value_or("weight");
    }

    Value* packed(const Unit& unit, Node* before) {
        const auto conv = as_conv(unit.node);
        const auto& weight = plan_.weights.at(unit.node);
        const auto content = conv ? pack_conv(weight, bias_of(unit), *geometry_of(*conv, weight.sizes().vec()))
                                  : pack_linear(weight, bias_of(unit));
        return store(model_, content, weight_name(unit), "packed", before);
    }

    /// A 1x1 convolution that moves channel i to place `front` + i and leaves the others zero.
    Value* pad_channels(const Unit& unit, Node* before, const Affine& parameters) {
        const auto& in = plan_.facts.shape(unit.inputs[0]);
        const auto& out = plan_.facts.shape(unit.outputs[0]);
        const auto pads = constant_of(unit.node->input(1))->toIntVector();
        ConvGeometry geometry{{1, 1}, {0, 0}, {1, 1}, 1};
        for (const Node* node : unit.nodes) {
            if (node->kind() != aten::slice) continue;
            int64_t dim = constant_of(node->input(1))->toInt();
            if (dim < 0) dim += 4;
            if (dim >= 2) geometry.stride[static_cast<size_t>(dim - 2)] *= constant_of(node->input(4))->toInt();
        }
        const auto weight = at::zeros({out[1], in[1], 1, 1});
        weight.slice(0, pads[4], pads[4] + in[1]).squeeze(3).squeeze(2).copy_(at::eye(in[1]));
        // Scale 1 and weight 1: the sum is the input's integer, the requantization factor is 1.
        const auto integers = at::quantize_per_channel(weight, at::ones({out[1]}, at::kDouble),
                                                       at::zeros({out[1]}, at::kLong), 0, at::kQInt8);
        Value* content = store(model_, pack_conv(integers, {}, geometry), "", "packed", before);
        WithInsertPoint guard(before);
        return emit_.conv(2, as_int8(unit.inputs[0]), content, parameters, false);
    }

    void emit_unit(const Unit& unit) {
        Node* before = nodes_.at(unit.node);
        for (const Node* node : unit.nodes) dead_.push_back(nodes_.at(node));
        std::vector<Value*> inputs;
        for (const auto* input : unit.inputs) inputs.push_back(as_int8(input));
        // LibTorch makes the output as large as the first operand, and warns where it has to grow.
        if (unit.kind == UnitKind::kAdd || unit.kind == UnitKind::kMul) {
            const auto smaller = [&](size_t i) {
                return plan_.facts.shape(unit.inputs[i]) != plan_.facts.shape(unit.node->output());
            };
            if (smaller(0) || (plan_.smaller_operands.count({unit.node, 0}) && !smaller(1)))
                std::swap(inputs[0], inputs[1]);
        }
        const auto& output = plan_.parameters.at(unit.outputs[0]);
        const auto bounds = unit.activation ? clamp_of(unit.activation) : std::nullopt;
        const bool relu = bounds && bounds->low == 0;
        WithInsertPoint guard(before);
        std::vector<Value*> results;
        switch (unit.kind) {
            case UnitKind::kConv:
                results = {emit_.conv(as_conv(unit.node)->dims, inputs[0], packed(unit, before), output, relu)};
                break;
            case UnitKind::kLinear:
                results = {emit_.linear(inputs[0], packed(unit, before), output, relu)};
                break;
            case UnitKind::kAdd:
                results = {emit_.add(inputs[0], inputs[1], output, relu)};
                break;
            case UnitKind::kMul:
                results = {emit_.mul(inputs[0], inputs[1], output, relu)};
                break;
            case UnitKind::kCat: {
                const int64_t dim = constant_of(unit.node->input(1))->toInt();
                results = {plan_.cats_with_one_scale.count(unit.node) ? emit_.cat_same(inputs, dim)
                                                                      : emit_.cat(inputs, dim, output)};
                break;
            }
            case UnitKind::kPointwise:
                results = {emit_.pointwise(Site{model_, plan_.facts, nodes_.at(unit.node)},
                                           static_cast<int64_t>(plan_.facts.shape(unit.inputs[0]).size()), inputs[0],
                                           output, relu)};
                break;
            case UnitKind::kPadChannels:
                results = {pad_channels(unit, before, output)};
                break;
            case UnitKind::kSame: {
                const auto* first = nodes_.at(unit.node)->input(0);
                results = emit_.same(Site{model_, plan_.facts, nodes_.at(unit.node)},
                                     [&](Value* value) { return value == first ? inputs[0] : value; });
                break;
            }
            case UnitKind::kSplit: {
                const auto* first = nodes_.at(unit.node)->input(0);
                results = emit_.same(Site{model_, plan_.facts, nodes_.at(unit.node)},
                                     [&](Value* value) { return value == first ? inputs[0] : value; });
                if (unit.nodes.size() > 1) {
                    Node* unpack = graph_->createListUnpack(results[0], unit.outputs.size());
                    graph_->insertNode(unpack);
                    results = unpack->outputs().vec();
                }
                break;
            }
        }
        if (bounds)
            if (const auto inside = integers_within(*bounds, output, relu)) {
                const auto end = [&](int64_t q) { return output.scale * static_cast<double>(q - output.zero_point); };
                results[0] = emit_.clamp(results[0], Range{end(inside->first), end(inside->second)});
            }
        if (unit.activation) forward_shape_questions(unit.node->output(), results[0]);
        for (size_t i = 0; i < unit.outputs.size(); ++i) int8_[unit.outputs[i]] = results[i];
        for (const auto* value : unit.outputs) made_int8_.push_back(value);
    }

    /// The integers that a clamp inside a layer leaves, where the output's range reaches beyond its bounds. Mostly it
    /// does not, having been observed behind the clamp: then it is the clamp. But concatenations join ranges, and
    /// training moves them.
    /// @param rectified  the layer's operator does the lower bound
    static std::optional<std::pair<int64_t, int64_t>> integers_within(const Range& bounds, const Affine& output,
                                                                      bool rectified) {
        const auto nearest = [&](double bound, int64_t otherwise) -> int64_t {
            if (!std::isfinite(bound)) return otherwise;
            const double q = std::nearbyint(bound / output.scale) + static_cast<double>(output.zero_point);
            return static_cast<int64_t>(std::clamp(q, 0.0, static_cast<double>(kActivationLevels - 1)));
        };
        const auto low = rectified ? int64_t{0} : nearest(bounds.low, 0);
        const auto high = nearest(bounds.high, kActivationLevels - 1);
        if (low == 0 && high == kActivationLevels - 1) return std::nullopt;
        return std::pair{low, high};
    }

    /// What asks for the size in front of an activation that is now inside asks behind it.
    void forward_shape_questions(const Value* old, Value* result) {
        for (const auto& use : std::vector<Use>(values_.at(old)->uses()))
            if (reads_no_values(use.user)) use.user->replaceInput(use.offset, result);
    }

    void emit_island(const Unit& unit) {
        const bool relu = unit.activation && unit.activation->kind() == aten::relu;
        const Node* last = relu ? unit.activation : unit.node;
        Node* before = nodes_.at(unit.node);
        dead_.push_back(before);
        if (relu) dead_.push_back(nodes_.at(last));
        const auto place = anchor_inputs(unit.node);
        Value* content = packed(unit, before);
        WithInsertPoint guard(before);
        Value* result = emit_.linear_float(nodes_.at(unit.node)->input(place.tensor), content,
                                           plan_.parameters.at(unit.inputs[0]), relu);
        if (relu) forward_shape_questions(unit.node->output(), result);
        Value* old = values_.at(last->output());
        old->replaceAllUsesWith(result);
        values_[last->output()] = result;
    }

    /// Once for a layer that runs several times.
    Value* packed_at_load(const Unit& unit, const at::Tensor& integers, const std::string& name,
                          const std::optional<ConvGeometry>& geometry, Node* before) {
        const auto& shape = plan_.facts.shape(unit.inputs[0]);
        std::string key = name;
        if (geometry)
            key += c10::str(" ", at::IntArrayRef(geometry->stride), at::IntArrayRef(geometry->padding),
                            at::IntArrayRef(geometry->dilation), geometry->groups, at::IntArrayRef(shape));
        for (const auto& [known, attribute] : packed_at_load_[key])
            if (at::equal(known, integers)) return read_attribute(model_, attribute, before);
        Value* made = store_packed_at_load(model_, integers, name, before, geometry ? &*geometry : nullptr, shape);
        packed_at_load_[key].emplace_back(integers, *attribute_name(made));
        return made;
    }

    Emitter::FusedWeights fused_weights(const Unit& unit, Node* before) {
        const auto& weight = plan_.weights.at(unit.node);
        const auto conv = as_conv(unit.node);
        const auto geometry = conv ? geometry_of(*conv, weight.sizes().vec()) : std::nullopt;
        const auto name = weight_name(unit);
        const bool per_channel = weight.qscheme() == at::kPerChannelAffine;
        const auto scales = per_channel
                                ? weight.q_per_channel_scales().to(at::kFloat)
                                : at::full({weight.size(0)}, weight.q_scale(), at::TensorOptions().dtype(at::kFloat));
        Emitter::FusedWeights made{};
        made.packed = packed_at_load(unit, weight.int_repr().contiguous(), name, geometry, before);
        made.scales = store(model_, scales, name, "scales", before, Role::kBuffer);
        made.zero_points =
            store(model_, at::zeros({weight.size(0)}, at::kLong), name, "zero_points", before, Role::kBuffer);
        if (const auto bias = bias_of(unit); bias.defined())
            made.bias =
                store(model_, bias.detach().to(at::kFloat).contiguous(), name, "int8_bias", before, Role::kBuffer);
        return made;
    }

    /// Whether a unit that reads a value has run before the addition does. It runs where its operator stands, whichever
    /// of its nodes it is that reads: the list of a concatenation and the slices in front of a padding stand further
    /// up. A convolution with an addition inside runs where that stands; the one of this addition reads while it is
    /// written.
    bool reads_before(const Unit& unit, const Node* add) const {
        const Node* reader = unit.node;
        const auto conv = fused_convs_.find(reader);
        if (conv != fused_convs_.end() && conv->second.add) reader = conv->second.add->node;
        return reader->owningBlock() == add->owningBlock() && reader->isBefore(add);
    }

    /// Whether what an int8 unit gives may be the memory of what it reads, as a view is.
    static bool may_share_memory(const Unit& unit) {
        if (unit.kind != UnitKind::kSame && unit.kind != UnitKind::kSplit) return false;
        return std::string(unit.node->kind().toUnqualString()).find("_pool") == std::string::npos;
    }

    /// The int8 unit that an operator is part of; null for operators on floats.
    const Unit* int8_unit(const Node* node) const {
        const auto found = unit_of_.find(node);
        return found != unit_of_.end() && (found->second->int8 || found->second->island) ? found->second : nullptr;
    }

    /// Whether an int8 tensor has memory of its own, and not that of what it was made from.
    bool owns_memory(const Value* old) const {
        const Unit* maker = int8_unit(old->node());
        return !maker || !may_share_memory(*maker);  // what no unit made was rounded from float
    }

    /// Whether nothing reads an int8 tensor once `add` has run. Behind a view of it anything may.
    bool is_last_reader(const Node* add, const Value* old) const {
        const auto& uses = old->uses();
        return std::all_of(uses.begin(), uses.end(), [&](const Use& use) {
            if (use.user == add || reads_no_values(use.user)) return true;
            const Unit* reader = int8_unit(use.user);
            // A float operator reads a copy, which is made at once.
            return !reader || (!may_share_memory(*reader) && reads_before(*reader, add));
        });
    }

    /// Whether what makes it is known to give strides of channels last: two-dimensional convolutions, sums inside of
    /// them, and what keeps their strides.
    bool is_channels_last(const Value* old) const {
        static const std::set<std::string> keeping = {"aten::relu", "aten::hardtanh", "aten::relu6",
                                                      "aten::max_pool2d"};
        const Unit* maker = int8_unit(old->node());
        while (maker && maker->kind == UnitKind::kSame && keeping.count(maker->node->kind().toQualString()))
            maker = int8_unit(maker->inputs[0]->node());
        if (!maker) return false;
        if (maker->kind == UnitKind::kConv) return as_conv(maker->node)->dims == 2;
        const auto sum = inside_.find(maker->node);
        return sum != inside_.end() && sum->second;
    }

    /// The integers of a residual, which the addition overwrites. oneDNN wants them channels last; they have the
    /// strides of what they were rounded from otherwise.
    Value* overwritten(const Value* old, const Node* add) {
        Value* integers = as_integers(old);
        if (!owns_memory(old) || !is_last_reader(add, old))
            return graph_->insert(aten::clone, {integers},
                                  {NamedValue("memory_format", static_cast<int64_t>(at::MemoryFormat::ChannelsLast))});
        return is_channels_last(old) ? integers : emit_.channels_last(integers);
    }

    void emit_fused_conv(const FusedConv& conv) {
        const Unit& unit = *conv.unit;
        Node* before = nodes_.at(conv.add ? conv.add->node : unit.node);
        for (const Node* node : unit.nodes) dead_.push_back(nodes_.at(node));
        if (conv.add)
            for (const Node* node : conv.add->nodes) dead_.push_back(nodes_.at(node));
        else if (conv.last != unit.nodes.back())
            dead_.push_back(nodes_.at(conv.last));
        const auto* output = conv.last->output();
        const auto rounded = plan_.parameters.find(output);
        const auto weights = fused_weights(unit, before);
        const auto geometry = *geometry_of(*as_conv(unit.node), plan_.weights.at(unit.node).sizes().vec());
        Value* integers = as_integers(unit.inputs[0]);
        WithInsertPoint guard(before);
        std::optional<Emitter::Residual> residual;
        if (conv.add)
            residual = Emitter::Residual{overwritten(conv.added, conv.add->node), plan_.parameters.at(conv.added)};
        Value* result =
            emit_.conv_fused(integers, plan_.parameters.at(unit.inputs[0]), weights, geometry, conv.activation,
                             residual ? &*residual : nullptr,
                             rounded == plan_.parameters.end() ? std::nullopt : std::optional<Affine>(rounded->second));
        const auto* activation = conv.add ? conv.add->activation : unit.activation;
        if (const auto bounds = activation ? clamp_of(activation) : std::nullopt)
            if (const auto inside = integers_within(*bounds, rounded->second, conv.activation.name == "relu"))
                result = graph_->insert(aten::clamp, {result, inside->first, inside->second});
        const Value* sum = conv.add ? conv.add->node->output() : output;
        for (const Value* inner : {static_cast<const Value*>(unit.node->output()), sum})
            if (inner != output) forward_shape_questions(inner, result);
        if (rounded == plan_.parameters.end()) {
            values_.at(output)->replaceAllUsesWith(result);
            values_[output] = result;
        } else {
            integers_[output] = result;
            made_int8_.push_back(output);
        }
    }

    /// Whether all that read the values of `old` are islands, which take the same integers.
    bool only_islands_read(const Value* old) const {
        bool any = false;
        for (const auto& use : old->uses()) {
            if (reads_no_values(use.user)) continue;
            if (!islands_.count(use.user) || anchor_inputs(use.user).tensor != use.offset) return false;
            any = true;
        }
        return any;
    }

    /// What comes out of an island under linear: fused, and the activation behind it that it applies.
    static std::pair<const Node*, FusedActivation> inside_island(const Unit& unit) {
        const Node* reader = only_reader(unit.node->output());
        if (reader && reader->owningBlock() == unit.node->owningBlock()) {
            const auto found = fused_activation(reader);
            // A clamp that is no part of the unit is a unit of its own.
            if (found && (!clamp_of(reader) || reader == unit.activation)) return {reader, *found};
        }
        return {unit.node, {}};
    }

    void emit_fused_island(const Unit& unit) {
        const auto [last, activation] = inside_island(unit);
        Node* before = nodes_.at(unit.node);
        dead_.push_back(before);
        if (last != unit.node) dead_.push_back(nodes_.at(last));
        const auto* input = unit.inputs[0];
        Value* integers = as_integers(input);
        const auto weights = fused_weights(unit, before);
        const auto* output = last->output();
        const bool stays_int8 = only_islands_read(output);
        WithInsertPoint guard(before);
        Value* result =
            emit_.linear_fused(integers, plan_.parameters.at(input), weights, activation,
                               stays_int8 ? std::optional<Affine>(plan_.parameters.at(output)) : std::nullopt);
        if (last != unit.node) forward_shape_questions(unit.node->output(), result);
        if (stays_int8) {
            forward_shape_questions(output, result);
            integers_[output] = result;
        } else {
            values_.at(output)->replaceAllUsesWith(result);
            values_[output] = result;
        }
    }

    void connect_float_readers() {
        const std::set<const Node*> dead(dead_.begin(), dead_.end());
        for (const auto* old : made_int8_) {
            Value* value = values_.at(old);
            const auto int8 = int8_.find(old);
            Value* rounded = int8 == int8_.end() ? integers_.at(old) : int8->second;
            Value* real = nullptr;
            for (const auto& use : std::vector<Use>(value->uses())) {
                if (dead.count(use.user)) continue;
                if (reads_no_values(use.user)) {
                    use.user->replaceInput(use.offset, rounded);
                    continue;
                }
                if (!real) {
                    Value* quantized = as_int8(old);
                    WithInsertPoint guard(quantized->node()->next());
                    real = emit_.dequantize(quantized);
                }
                use.user->replaceInput(use.offset, real);
            }
        }
    }

    /// Callers that read memory in order (data_ptr(), view()) find it as the float model gave it. Convolutions bring
    /// channels last, which what follows keeps, in float too.
    void restore_outputs() {
        const bool any = std::any_of(plan_.units.begin(), plan_.units.end(),
                                     [](const Unit& unit) { return unit.int8 && unit.kind == UnitKind::kConv; });
        if (!any) return;
        const auto dependent = dependent_values(*plan_.model.graph());
        for (const auto& place : plan_.contiguous_outputs) {
            const auto* old = place.user->input(place.offset);
            if (!dependent.count(old) || old->node()->kind() == prim::Param || !plan_.facts.has_shape(old) ||
                plan_.facts.shape(old).size() < 2)
                continue;
            // The usual end of a classifier is contiguous anyway.
            const auto maker = unit_of_.find(old->node());
            const bool linear = maker != unit_of_.end() && maker->second->kind == UnitKind::kLinear;
            if (linear && plan_.facts.shape(old).size() == 2) continue;
            Node* user =
                place.user == plan_.model.graph()->return_node() ? graph_->return_node() : nodes_.at(place.user);
            give_contiguous(*graph_, Use(user, place.offset));
        }
    }

    const StaticPlan::Impl& plan_;
    const std::unordered_map<const Node*, const Unit*> unit_of_;
    Model model_;
    std::shared_ptr<Graph> graph_;
    Emitter emit_;
    std::unordered_map<const Node*, Node*> nodes_;
    std::set<const Node*> islands_;
    std::unordered_map<const Node*, FusedConv> fused_convs_;
    std::unordered_map<const Node*, const FusedConv*>
        inside_;  ///< operators that a convolution takes in; of sums, which
    std::unordered_map<const Value*, Value*> values_, int8_, integers_;
    std::map<std::string, std::vector<std::pair<at::Tensor, std::string>>>
        packed_at_load_;  ///< integers and where they are, by weight and geometry
    std::vector<const Value*> made_int8_;
    std::vector<Node*> dead_;
};

}  // namespace

std::vector<Kernels> kernels_for(const StaticPlan& plan) {
    const auto& options = plan.impl().options;
    const bool islands = !islands_of(plan.impl()).empty();
    const auto kinds = [](const std::string& option, bool fusing, const char* fused) -> std::vector<std::string> {
        if (option != "auto") return {option};
        if (!fusing || !exact_int8_products()) return {"packed"};
        return {"packed", fused};
    };
    const auto linear = kinds(options.linear, worth_fusing(plan.impl()), "fused");
    const auto conv = kinds(options.conv, !fused_convolutions(plan.impl()).empty(), "fused_large");
    std::vector<Kernels> all;
    for (const auto& engine : options.engine == "auto" ? engines() : std::vector<std::string>{options.engine}) {
        if (options.engine == "auto" && engine == "qnnpack") continue;  // its kernels are for ARM
        for (const auto& kind : linear) {
            // Of the packed operators only these have float on both sides.
            const bool runs = !islands || kind == "fused" || engine == "x86" || engine == "fbgemm";
            if (!runs) continue;
            for (const auto& form : conv) all.push_back({engine, kind, form});
        }
    }
    if (all.empty())
        throw UnsupportedModel("quantize.static", "no int8 engine of this LibTorch can run it",
                               "Use a LibTorch with fbgemm, or quantize.dynamic.");
    return all;
}

StaticPlan with_kernels(const StaticPlan& plan, const Kernels& kernels) {
    auto impl = std::make_shared<StaticPlan::Impl>(plan.impl());
    impl->options.engine = kernels.engine;
    impl->options.linear = kernels.linear;
    impl->options.conv = kernels.conv;
    return StaticPlan(impl);
}

Model convert(const StaticPlan& plan) {
    torch::NoGradGuard no_grad;
    const auto& name = plan.impl().options.engine;
    const auto before = engine();
    if (name != "auto") set_engine(name);
    struct Restore {
        const std::string& name;
        ~Restore() { set_engine(name); }
    } restore{before};
    return Converter(plan.impl()).run();
}

}  // namespace coppice::quantize
