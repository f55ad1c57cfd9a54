// From plan to int8 model: every int8 unit becomes int8 operators, tensors are converted where the two sides meet.
#include <coppice/error.h>

#include "emit/operators.h"
#include "plan/plan.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

class Converter {
public:
    explicit Converter(const StaticPlan::Impl& plan)
        : plan_(plan), model_(plan.model.clone()), graph_(model_.graph()), emit_(*graph_) {
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
        for (const auto& unit : plan_.units) {
            if (unit.int8) emit_unit(unit);
            if (unit.island) emit_island(unit);
        }
        connect_float_readers();
        for (auto node = dead_.rbegin(); node != dead_.rend(); ++node) {
            for (Value* output : (*node)->outputs())
                if (output->hasUses()) throw InternalError("quantize.convert", "a float operator is still in use", "");
            (*node)->destroy();
        }
        relax_views(*graph_);
        model_.refresh();
        remove_unused_attributes(model_);
        return model_;
    }

private:
    Value* as_int8(const Value* old) {
        auto& made = int8_[old];
        if (!made) {
            Value* value = values_.at(old);
            // Right behind its maker, so that every reader comes later.
            Node* maker = value->node();
            WithInsertPoint guard(maker->kind() == prim::Param ? *graph_->block()->nodes().begin() : maker->next());
            made = emit_.quantize(value, plan_.parameters.at(old));
        }
        return made;
    }

    Value* packed(const Unit& unit, Node* before) {
        const auto conv = as_conv(unit.node);
        const auto linear = as_linear(unit.node);
        const auto* weight_value = conv ? conv->weight : linear->weight;
        const auto* bias_value = conv ? conv->bias : linear->bias;
        at::Tensor bias;
        if (conv ? conv->has_bias : linear->has_bias) bias = parameter_of(plan_.model, bias_value)->reshape({-1});
        if (const auto corrected = plan_.biases.find(unit.node); corrected != plan_.biases.end())
            bias = corrected->second;
        const auto& weight = plan_.weights.at(unit.node);
        const auto content =
            conv ? pack_conv(weight, bias, *geometry_of(*conv, weight.sizes().vec())) : pack_linear(weight, bias);
        return store(content, attribute_name(weight_value).value_or("weight"), before);
    }

    Value* store(const c10::IValue& content, const std::string& beside, Node* before) {
        const auto dot = beside.rfind('.');
        const auto name = (dot == std::string::npos ? std::string() : beside.substr(0, dot + 1)) + "packed";
        return read_attribute(model_, add_attribute(model_, name, content, Role::kAttribute), before);
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
        Value* content = store(pack_conv(integers, {}, geometry), "shortcut", before);
        WithInsertPoint guard(before);
        return emit_.conv(2, as_int8(unit.inputs[0]), content, parameters, false);
    }

    void emit_unit(const Unit& unit) {
        Node* before = nodes_.at(unit.node);
        for (const Node* node : unit.nodes) dead_.push_back(nodes_.at(node));
        std::vector<Value*> inputs;
        for (const auto* input : unit.inputs) inputs.push_back(as_int8(input));
        const auto& output = plan_.parameters.at(unit.outputs[0]);
        const auto bounds = unit.activation ? clamp_of(unit.activation) : std::nullopt;
        // A clamp's other bounds need no operator: the output's range, observed behind it, ends there.
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
            case UnitKind::kIdentity:
                results = inputs;
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
        if (unit.activation) forward_shape_questions(unit.node->output(), results[0]);
        for (size_t i = 0; i < unit.outputs.size(); ++i) int8_[unit.outputs[i]] = results[i];
        for (const auto* value : unit.outputs) made_int8_.push_back(value);
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

    void connect_float_readers() {
        const std::set<const Node*> dead(dead_.begin(), dead_.end());
        for (const auto* old : made_int8_) {
            Value* value = values_.at(old);
            Value* integers = int8_.at(old);
            Value* real = nullptr;
            for (const auto& use : std::vector<Use>(value->uses())) {
                if (dead.count(use.user)) continue;
                if (reads_no_values(use.user)) {
                    use.user->replaceInput(use.offset, integers);
                    continue;
                }
                if (!real) {
                    WithInsertPoint guard(integers->node()->next());
                    real = emit_.dequantize(integers);
                }
                use.user->replaceInput(use.offset, real);
            }
        }
    }

    const StaticPlan::Impl& plan_;
    Model model_;
    std::shared_ptr<Graph> graph_;
    Emitter emit_;
    std::unordered_map<const Node*, Node*> nodes_;
    std::unordered_map<const Value*, Value*> values_, int8_;
    std::vector<const Value*> made_int8_;
    std::vector<Node*> dead_;
};

}  // namespace

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
