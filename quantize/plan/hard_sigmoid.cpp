// Hard sigmoid behind a layer becomes the layer itself and a clamp:
//
//     hardsigmoid(W x + b) = min(max((W x + b) / 6 + 1/2, 0), 1) = clamp(W/6 x + (b/6 + 1/2), 0, 1)
//
// which int8 layers do without an operator of their own. LibTorch's int8 hard sigmoid is slower and has one fixed
// scale.
#include "equalize/pairs.h"
#include "layers/layers.h"
#include "plan/plan.h"

namespace coppice::quantize {

using namespace torch::jit;

void fold_hard_sigmoid(Model& model) {
    torch::NoGradGuard no_grad;
    const SoleReaders readers(model);
    auto graph = model.graph();
    for (Node* gate : all_nodes(*graph)) {
        if (gate->kind() != aten::hardsigmoid) continue;
        Node* layer = gate->input(0)->node();
        const auto conv = as_conv(layer);
        const auto linear = as_linear(layer);
        if ((!conv && !linear) || only_reader(layer->output()) != gate) continue;
        const auto place = anchor_inputs(layer);
        const auto* weight = layer->input(place.weight);
        if (!place.bias || !readers.alone(model, weight)) continue;
        const bool has_bias = conv ? conv->has_bias : linear->has_bias;
        const auto* bias = layer->input(*place.bias);
        if (has_bias && !readers.alone(model, bias)) continue;
        const auto name = *attribute_name(weight);
        const auto values = get_attribute(model, name).toTensor().detach();
        if (values.scalar_type() != at::kFloat) continue;
        if (has_bias) {
            const auto old = get_attribute(model, *attribute_name(bias)).toTensor().detach();
            set_tensor(model, *attribute_name(bias), old / 6 + 0.5);
        } else {
            const int64_t features = linear && linear->weight_transposed ? values.size(1)
                                     : conv && conv->transposed          ? values.size(1) * conv->groups
                                                                         : values.size(0);
            layer->replaceInput(*place.bias,
                                store(model, at::full({features}, 0.5), name, "bias", layer, Role::kParameter));
        }
        set_tensor(model, name, values / 6);
        WithInsertPoint guard(gate);
        Value* clamped = graph->insert(aten::hardtanh, {layer->output(), 0.0, 1.0});
        clamped->copyMetadata(gate->output());
        gate->output()->replaceAllUsesWith(clamped);
        gate->destroy();
    }
    model.refresh();
}

}  // namespace coppice::quantize
