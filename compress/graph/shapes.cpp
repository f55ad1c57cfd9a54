#include <coppice/error.h>
#include <coppice/graph.h>

namespace coppice {
namespace {

ValueFact fact_of(const c10::IValue& value) {
    ValueFact fact;
    if (value.isTensor() && value.toTensor().defined()) {
        fact.is_tensor = true;
        fact.shape = value.toTensor().sizes().vec();
        fact.dtype = value.toTensor().scalar_type();
    } else if (value.isInt() || value.isDouble() || value.isBool() || value.isNone() || value.isString() ||
               value.isIntList() || value.isDoubleList() || value.isBoolList()) {
        fact.constant = value.deepcopy();
    }
    return fact;
}

}  // namespace

Facts Facts::observe(const Model& model, const Inputs& example) {
    torch::NoGradGuard no_grad;
    Facts facts;
    const auto graph = model.graph();
    for (size_t i = 0; i < example.size() && i + 1 < graph->inputs().size(); ++i)
        facts.values_[graph->inputs()[i + 1]] = fact_of(example[i]);
    NodeHooks hooks;
    hooks.before = [&](const torch::jit::Node* node, std::vector<c10::IValue>& inputs) {
        for (size_t i = 0; i < inputs.size(); ++i) {
            const auto* value = node->inputs()[i];
            // Constants, parameters and parameters of blocks are not outputs that `after` sees.
            const auto kind = value->node()->kind();
            if (kind == torch::jit::prim::Constant || kind == torch::jit::prim::GetAttr ||
                kind == torch::jit::prim::Param)
                facts.values_[value] = fact_of(inputs[i]);
        }
    };
    hooks.after = [&](const torch::jit::Node* node, std::vector<c10::IValue>& outputs) {
        ++facts.runs_[node];
        for (size_t i = 0; i < outputs.size(); ++i) facts.values_[node->outputs()[i]] = fact_of(outputs[i]);
    };
    run_nodes(model, example, hooks);
    return facts;
}

const ValueFact* Facts::find(const torch::jit::Value* value) const {
    const auto found = values_.find(value);
    return found == values_.end() ? nullptr : &found->second;
}

bool Facts::has_shape(const torch::jit::Value* value) const {
    const auto* fact = find(value);
    return fact && fact->is_tensor;
}

const std::vector<int64_t>& Facts::shape(const torch::jit::Value* value) const {
    const auto* fact = find(value);
    if (!fact || !fact->is_tensor)
        throw InternalError("facts", "value %" + value->debugName() + " was not reached or is no tensor", "");
    return fact->shape;
}

int64_t Facts::runs(const torch::jit::Node* node) const {
    const auto found = runs_.find(node);
    return found == runs_.end() ? 0 : found->second;
}

}  // namespace coppice
