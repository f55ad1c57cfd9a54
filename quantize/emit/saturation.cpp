// Whether a loaded int8 model's sums can saturate. Without VNNI the kernels multiply by vpmaddubsw, which adds two
// products of an unsigned and a signed byte in 16 bits and clips the sum: 2 * 255 * |w| stays below 2^15 up to |w|
// = 64.
#include <coppice/quantize.h>

#include "emit/operators.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

constexpr int64_t kWidest = 64;

bool starts(const std::string& text, const char* head) {
    return text.rfind(head, 0) == 0;
}

/// The int8 weights of a packed convolution or linear layer; none where they are float16.
std::vector<at::Tensor> unpacked(const std::string& unpack, const c10::IValue& packed) {
    const auto weight = call_operator(unpack.c_str(), {packed}).toTensor();
    if (!weight.is_quantized()) return {};
    return {weight.int_repr()};
}

bool is_true(const Value* value) {
    const auto constant = toIValue(value);
    return constant && constant->isBool() && constant->toBool();
}

/// The weights of the cell of a dynamic LSTM or GRU; none where it rounds its inputs to 7 bits.
std::vector<at::Tensor> cell_weights(const c10::IValue& cell) {
    const auto state = cell.toObjectRef().type()->getMethod("__getstate__")(std::vector<c10::IValue>{cell});
    const auto& parts = state.toTupleRef().elements();
    // (kind, biases, scales, [reduce_range], packed weights)
    if (parts[0].toStringRef() != "quantized_dynamic") return {};
    const auto& flags = parts[3].toListRef();
    if (!flags.empty() && flags[0].toInt() != 0) return {};
    std::vector<at::Tensor> weights;
    for (const auto& packed : parts[4].toListRef())
        for (const auto& weight : unpacked("quantized::linear_unpack", packed)) weights.push_back(weight);
    return weights;
}

/// The int8 weights that `node` multiplies by unsigned bytes of full range; empty where it does no such thing.
std::vector<at::Tensor> weights_of(const Model& model, const Node* node) {
    const std::string op = node->kind().toQualString();
    const auto read = [&](const Value* value) {
        const auto name = attribute_name(value);
        return name ? get_attribute(model, *name) : c10::IValue();
    };
    if (starts(op, "quantized::conv")) {
        const auto dims = op.find("d", op.find_first_of("123"));  // conv2d_relu, conv_transpose2d
        const auto packed = read(node->input(1));
        if (dims != std::string::npos && packed.isCustomClass())
            return unpacked(op.substr(0, dims + 1) + "_unpack", packed);
    } else if (starts(op, "quantized::linear")) {
        if (op.find("_dynamic") != std::string::npos && node->inputs().size() > 2 && is_true(node->input(2))) return {};
        const auto packed = read(node->input(starts(op, "quantized::linear_with_input_q_dq") ? 3 : 1));
        if (packed.isCustomClass()) return unpacked("quantized::linear_unpack", packed);
    } else if (op == "onednn::qlinear_pointwise" || op == "onednn::qconv2d_pointwise") {
        // Packed when the file is loaded, from integers that stand beside.
        const auto name = attribute_name(node->input(3));
        const auto dot = name ? name->rfind('.') : std::string::npos;
        if (dot == std::string::npos) return {};
        return {get_attribute(model, name->substr(0, dot) + ".weight").toTensor()};
    } else if (op == "aten::quantized_lstm" || op == "aten::quantized_gru") {
        std::vector<at::Tensor> all;
        for (const auto* cell : node->input(2)->node()->inputs())
            if (const auto content = read(cell); content.isCustomClass())
                for (const auto& weight : cell_weights(content)) all.push_back(weight);
        return all;
    }
    return {};
}

bool is_wide(const at::Tensor& weight) {
    return weight.numel() > 0 && weight.to(at::kInt).abs().max().item<int64_t>() > kWidest;
}

/// "conv1, conv2, conv3 and 2 more"
class Names {
public:
    void add(const std::string& name) {
        if (++count_ <= 3) text_ += (text_.empty() ? "" : ", ") + name;
    }
    bool empty() const { return count_ == 0; }
    std::string text() const { return text_ + (count_ > 3 ? " and " + std::to_string(count_ - 3) + " more" : ""); }

private:
    std::string text_;
    int64_t count_ = 0;
};

}  // namespace

std::vector<std::string> int8_warnings(const Model& model, bool exact_products) {
    const LayerNames names(model);
    Names wide, depthwise;
    for (const Node* node : all_nodes(*model.graph())) {
        const std::string op = node->kind().toQualString();
        for (const auto& weight : weights_of(model, node)) {
            if (!is_wide(weight)) continue;
            const int64_t groups = weight.size(0);  // at most
            const bool conv = starts(op, "quantized::conv2d") || starts(op, "quantized::conv3d");
            if (conv && fbgemm_depthwise(weight.sizes(), groups, engine()))
                depthwise.add(names.of(node));
            else if (!exact_products)
                wide.add(names.of(node));
        }
    }
    std::vector<std::string> warnings;
    if (!wide.empty())
        warnings.push_back("it was made for a CPU with VNNI: 8-bit weights of " + wide.text() +
                           " can make sums of int8 products saturate on this one, and outputs wrong; quantize again on "
                           "this machine, or with reduce_range: on");
    if (!depthwise.empty())
        warnings.push_back("8-bit weights of the depthwise convolutions " + depthwise.text() +
                           " can make sums of int8 products saturate in LibTorch's kernel for them, on every CPU, and "
                           "outputs wrong; 7 bits cannot: quantize the float model anew");
    return warnings;
}

}  // namespace coppice::quantize
