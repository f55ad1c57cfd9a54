// Checks an int8 model operator by operator: what each int8 operator gave, against the float operator on the same
// integers, rounded. The reference knows nothing of the plan: weights and geometry are read back from the packed
// parameters.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <coppice/quantize.h>

#include <map>
#include <string>

#include "support/support.h"

namespace coppice::quantize::testing {

inline std::vector<c10::IValue> call(const std::string& name, std::vector<c10::IValue> stack) {
    c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "").callBoxed(&stack);
    return stack;
}

struct Checked {
    std::map<std::string, int> operators;  ///< by name: how many outputs were compared
    double worst_quanta = 0;               ///< largest difference, in steps of the output's scale
    std::string worst;
    int operator[](const std::string& name) const {
        const auto found = operators.find(name);
        return found == operators.end() ? 0 : found->second;
    }
};

inline at::Tensor reference(const torch::jit::Node* node, const std::string& op,
                            const std::vector<c10::IValue>& inputs) {
    const auto real = [](const c10::IValue& value) { return value.toTensor().dequantize(); };
    const auto rectify = [&](const at::Tensor& value) {
        return op.size() > 5 && op.substr(op.size() - 5) == "_relu" ? value.relu() : value;
    };
    const auto starts = [&](const char* head) { return op.rfind(head, 0) == 0; };
    if (starts("quantized::conv")) {
        const char dims = op[std::string("quantized::conv").size()];
        const std::string family = std::string("quantized::conv") + dims + "d";
        const auto unpacked = call(family + "_unpack", {inputs[1]});
        const std::string geometry = dims == '3' ? "quantized::conv3d" : "quantized::conv2d";
        auto stride = call(geometry + "_stride", {inputs[1]})[0].toIntVector();
        auto padding = call(geometry + "_padding", {inputs[1]})[0].toIntVector();
        auto dilation = call(geometry + "_dilation", {inputs[1]})[0].toIntVector();
        const auto groups = call(geometry + "_groups", {inputs[1]})[0].toInt();
        if (dims == '1')
            for (auto* list : {&stride, &padding, &dilation}) list->erase(list->begin());
        const auto bias = unpacked[1].isTensor() ? unpacked[1].toTensor() : at::Tensor();
        return rectify(at::convolution(real(inputs[0]).contiguous(), unpacked[0].toTensor().dequantize(), bias, stride,
                                       padding, dilation, false, std::vector<int64_t>(stride.size(), 0), groups));
    }
    if (starts("quantized::linear_with_input_q_dq")) {
        const auto unpacked = call("quantized::linear_unpack", {inputs[3]});
        const auto bias = unpacked[1].isTensor() ? unpacked[1].toTensor() : at::Tensor();
        const auto rounded =
            at::quantize_per_tensor(inputs[0].toTensor(), inputs[1].toDouble(), inputs[2].toInt(), at::kQUInt8);
        const auto y = at::linear(rounded.dequantize(), unpacked[0].toTensor().dequantize(), bias);
        return op.find("_relu_") != std::string::npos ? y.relu() : y;
    }
    if (starts("quantized::linear")) {
        const auto unpacked = call("quantized::linear_unpack", {inputs[1]});
        const auto bias = unpacked[1].isTensor() ? unpacked[1].toTensor() : at::Tensor();
        return rectify(at::linear(real(inputs[0]), unpacked[0].toTensor().dequantize(), bias));
    }
    if (starts("quantized::add")) return rectify(real(inputs[0]) + real(inputs[1]));
    if (starts("quantized::mul")) return rectify(real(inputs[0]) * real(inputs[1]));
    if (op == "quantized::hardswish") return at::hardswish(real(inputs[0]));
    if (op == "quantized::leaky_relu") return at::leaky_relu(real(inputs[0]), inputs[1].toScalar());
    if (op == "quantized::sigmoid") return at::sigmoid(real(inputs[0]));
    if (op == "quantized::group_norm") {
        const auto optional = [](const c10::IValue& value) {
            return value.isTensor() ? value.toTensor() : at::Tensor();
        };
        return at::group_norm(real(inputs[0]).contiguous(), inputs[1].toInt(), optional(inputs[2]), optional(inputs[3]),
                              inputs[4].toDouble());
    }
    if (starts("quantized::batch_norm"))
        return rectify(at::batch_norm(real(inputs[0]), inputs[1].toTensor(), inputs[2].toTensor(), inputs[3].toTensor(),
                                      inputs[4].toTensor(), false, 0, inputs[5].toDouble(), false));
    if (starts("quantized::cat") || starts("aten::cat")) {
        std::vector<at::Tensor> parts;
        for (const auto& part : inputs[0].toTensorVector()) parts.push_back(part.dequantize());
        return at::cat(parts, inputs[1].toInt());
    }
    std::vector<c10::IValue> stack = inputs;
    stack[0] = real(inputs[0]).contiguous();
    node->getOperation()(stack);
    return stack[0].toTensor();
}

/// Runs `model` and compares every operator with an int8 output, or an int8 layer with float output.
inline Checked check_every_layer(const Model& model, const Inputs& inputs) {
    torch::NoGradGuard no_grad;
    Checked checked;
    std::vector<c10::IValue> arguments;
    NodeHooks hooks;
    hooks.before = [&](const torch::jit::Node*, std::vector<c10::IValue>& stack) { arguments = stack; };
    hooks.after = [&](const torch::jit::Node* node, std::vector<c10::IValue>& outputs) {
        const std::string op = node->kind().toQualString();
        if (outputs.size() != 1 || !outputs[0].isTensor()) return;
        const auto output = outputs[0].toTensor();
        const bool island = op.rfind("quantized::linear_with_input_q_dq", 0) == 0;
        if ((!output.is_quantized() && !island) || op == "aten::quantize_per_tensor" ||
            node->kind() == torch::jit::prim::ListUnpack)
            return;
        const auto expected = reference(node, op, arguments);
        // A float output has no step of its own: rounding of the sum only, relative to the largest output.
        const double step = island ? std::max(1e-4 * expected.abs().max().item<double>(), 1e-6) : output.q_scale();
        const auto rounded = island ? expected
                                    : at::quantize_per_tensor(expected.contiguous(), output.q_scale(),
                                                              output.q_zero_point(), at::kQUInt8)
                                          .dequantize();
        const double quanta = coppice::testing::max_difference(island ? output : output.dequantize(), rounded) / step;
        ++checked.operators[op];
        if (quanta > checked.worst_quanta) {
            checked.worst_quanta = quanta;
            checked.worst = op;
        }
    };
    run_nodes(model, inputs, hooks);
    return checked;
}

}  // namespace coppice::quantize::testing
