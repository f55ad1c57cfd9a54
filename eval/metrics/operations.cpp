// Sparse and low-bit work told apart. A multiply-add with a weight of 0 does nothing, and one of int8 is cheaper than
// one of float32: multiply-adds alone tell neither. Bit operations are multiply-adds x bits of one operand x bits of
// the other, as in "Bayesian Bits" (arXiv 2005.07093).
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/jit/ir/ir.h>

#include <coppice/eval.h>

#include <algorithm>
#include <map>
#include <set>
#include <unordered_map>

#include "metrics/packed.h"

namespace coppice::eval {
namespace {

using torch::jit::Node;
using torch::jit::Value;

struct Weight {
    int64_t numel = 0, nonzero = 0;
    void add(const at::Tensor& tensor) {
        numel += tensor.numel();
        const auto plain = tensor.layout() == at::kSparseCsr ? tensor.values()
                           : tensor.is_quantized()           ? tensor.dequantize()
                                                             : tensor;
        nonzero += plain.count_nonzero().item<int64_t>();
    }
};

// Weights among a node's inputs, those behind a transpose or in a list of a recurrent layer included; biases have one
// dimension and take part in no product.
void add_weights(const Model& model, const Node* node, Weight& weight) {
    for (const Value* input : node->inputs()) {
        const auto kind = input->node()->kind();
        if (kind == c10::prim::ListConstruct || kind == c10::aten::t) {
            add_weights(model, input->node(), weight);
        } else if (const auto tensor = parameter_of(model, input);
                   tensor && tensor->dim() > 1 && !tensor->is_mkldnn()) {
            weight.add(*tensor);
        }
    }
}

std::optional<at::ScalarType> first_type(const std::vector<c10::IValue>& inputs) {
    for (const auto& input : inputs) {
        if (input.isTensor() && input.toTensor().defined()) return input.toTensor().scalar_type();
        if (input.isTensorList() && input.toTensorList().size() > 0)
            return static_cast<at::Tensor>(input.toTensorList().get(0)).scalar_type();
    }
    return std::nullopt;
}

struct Operand {
    std::string name;
    double bits = 0;
};

Operand operand_of(at::ScalarType type) {
    switch (type) {
        case at::kFloat:
            return {"float32", 32};
        case at::kDouble:
            return {"float64", 64};
        case at::kHalf:
            return {"float16", 16};
        case at::kBFloat16:
            return {"bfloat16", 16};
        case at::kQInt8:
        case at::kQUInt8:
        case at::kChar:
        case at::kByte:
            return {"int8", 8};
        default:
            return {c10::toString(type), 8.0 * static_cast<double>(c10::elementSize(type))};
    }
}

}  // namespace

Operations operations(const Model& model, const Inputs& example, const Cost& costs) {
    const torch::NoGradGuard no_grad;
    std::unordered_map<const Node*, double> macs;
    for (const auto& layer : costs.layers)
        if (layer.macs > 0) macs[layer.node] += layer.macs;
    Operations result;
    std::map<std::string, double> by_precision;
    std::set<const Node*> seen;
    NodeHooks hooks;
    hooks.before = [&](const Node* node, std::vector<c10::IValue>& inputs) {
        const auto found = macs.find(node);
        if (found == macs.end() || !seen.insert(node).second) return;
        const double count = found->second;
        Weight weight;
        add_weights(model, node, weight);
        const auto type = first_type(inputs);
        Operand one = operand_of(type.value_or(at::kFloat)), other = one;
        for (const auto& input : inputs)
            if (const auto tensor = unpacked(input)) {
                weight.add(*tensor);
                other = operand_of(tensor->scalar_type());
                // Kernels of packed int8 weights quantize a float32 input on their way.
                if (tensor->is_quantized()) one = other;
            }
        result.macs += count;
        result.nonzero_macs +=
            weight.numel > 0 ? count * static_cast<double>(weight.nonzero) / static_cast<double>(weight.numel) : count;
        result.bit_operations += count * one.bits * other.bits;
        by_precision[one.name + " x " + other.name] += count;
    };
    run_nodes(model, example, hooks);
    result.by_precision.assign(by_precision.begin(), by_precision.end());
    std::stable_sort(result.by_precision.begin(), result.by_precision.end(),
                     [](const auto& a, const auto& b) { return a.second > b.second; });
    return result;
}

}  // namespace coppice::eval
