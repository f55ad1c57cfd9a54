#include <coppice/quantize.h>

#include "plan/plan.h"

namespace coppice::quantize {

using namespace torch::jit;

c10::IValue fake_quantized(const StaticPlan& plan, const Inputs& inputs) {
    const auto& impl = plan.impl();
    std::unordered_map<const Node*, const Unit*> first, last;
    for (const auto& unit : impl.units) {
        if (!unit.int8 && !unit.island) continue;
        if (unit.anchor()) first[unit.node] = &unit;
        if (unit.kind == UnitKind::kCat || unit.kind == UnitKind::kAdd || unit.kind == UnitKind::kMul) {
            first[unit.node] = &unit;
        } else {
            first[unit.nodes.front()] = &unit;
        }
        if (unit.int8) last[unit.nodes.back()] = &unit;
    }
    NodeHooks hooks;
    hooks.before = [&](const Node* node, std::vector<c10::IValue>& stack) {
        const auto found = first.find(node);
        if (found == first.end()) return;
        const auto& unit = *found->second;
        const auto round = [&](c10::IValue& value, const Value* name) {
            value = fake_quantize(value.toTensor(), impl.parameters.at(name));
        };
        if (unit.anchor()) {
            round_anchor(impl, unit, stack);
        } else if (unit.kind == UnitKind::kCat) {
            std::vector<at::Tensor> parts;
            const auto list = stack[0].toTensorVector();
            for (size_t i = 0; i < list.size(); ++i)
                parts.push_back(fake_quantize(list[i], impl.parameters.at(unit.inputs[i])));
            stack[0] = parts;
        } else {
            for (size_t i = 0; i < unit.inputs.size(); ++i) round(stack[i], unit.inputs[i]);
        }
    };
    hooks.after = [&](const Node* node, std::vector<c10::IValue>& outputs) {
        if (const auto bias = bias_behind(impl, node); bias.defined()) outputs[0] = outputs[0].toTensor() + bias;
        const auto found = last.find(node);
        if (found == last.end()) return;
        for (size_t i = 0; i < outputs.size(); ++i)
            outputs[i] = fake_quantize(outputs[i].toTensor(), impl.parameters.at(found->second->outputs[i]));
    };
    torch::NoGradGuard no_grad;
    return run_nodes(impl.model, inputs, hooks);
}

}  // namespace coppice::quantize
