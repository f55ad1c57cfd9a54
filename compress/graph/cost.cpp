// Multiply-adds from observed shapes. One rule per operator family; FLOPs are 2 x MACs for those, and one per element
// and elementary operation for the rest, as tfprof counts. What has no rule is listed, never guessed.
#include <ATen/core/dispatch/Dispatcher.h>

#include <coppice/clock.h>
#include <coppice/error.h>
#include <coppice/graph.h>

namespace coppice {
namespace {

using namespace torch::jit;

double product(const std::vector<int64_t>& shape) {
    double result = 1;
    for (const auto size : shape) result *= static_cast<double>(size);
    return result;
}

/// Tensors of one execution, with lists flattened; sizes are taken while they are alive.
struct Observed {
    std::vector<std::vector<int64_t>> inputs, outputs;
    int64_t output_bytes = 0;
};

const std::set<std::string>& free_operators() {  // views, shapes, constants, control: no arithmetic on elements
    static const std::set<std::string> kNames = {"aten::view",
                                                 "aten::reshape",
                                                 "aten::flatten",
                                                 "aten::unflatten",
                                                 "aten::permute",
                                                 "aten::transpose",
                                                 "aten::t",
                                                 "aten::unsqueeze",
                                                 "aten::squeeze",
                                                 "aten::expand",
                                                 "aten::expand_as",
                                                 "aten::contiguous",
                                                 "aten::slice",
                                                 "aten::select",
                                                 "aten::split",
                                                 "aten::split_with_sizes",
                                                 "aten::chunk",
                                                 "aten::unbind",
                                                 "aten::cat",
                                                 "aten::concat",
                                                 "aten::stack",
                                                 "aten::dropout",
                                                 "aten::dropout_",
                                                 "aten::feature_dropout",
                                                 "aten::alpha_dropout",
                                                 "aten::to",
                                                 "aten::type_as",
                                                 "aten::detach",
                                                 "aten::clone",
                                                 "aten::copy_",
                                                 "aten::narrow",
                                                 "aten::movedim",
                                                 "aten::roll",
                                                 "aten::pad",
                                                 "aten::constant_pad_nd",
                                                 "aten::reflection_pad2d",
                                                 "aten::embedding",
                                                 "aten::index",
                                                 "aten::index_select",
                                                 "aten::index_put_",
                                                 "aten::gather",
                                                 "aten::zeros",
                                                 "aten::ones",
                                                 "aten::full",
                                                 "aten::empty",
                                                 "aten::arange",
                                                 "aten::zeros_like",
                                                 "aten::ones_like",
                                                 "aten::new_zeros",
                                                 "aten::new_ones",
                                                 "aten::new_full",
                                                 "aten::full_like",
                                                 "aten::empty_like",
                                                 "aten::tensor",
                                                 "aten::scalar_tensor",
                                                 "aten::as_tensor",
                                                 "aten::size",
                                                 "aten::dim",
                                                 "aten::numel",
                                                 "aten::len",
                                                 "aten::Int",
                                                 "aten::Float",
                                                 "aten::Bool",
                                                 "aten::item",
                                                 "aten::meshgrid",
                                                 "aten::pixel_shuffle",
                                                 "aten::pixel_unshuffle",
                                                 "aten::channel_shuffle",
                                                 "aten::native_channel_shuffle",
                                                 "aten::unfold",
                                                 "aten::im2col",
                                                 "aten::repeat",
                                                 "aten::repeat_interleave",
                                                 "aten::tile",
                                                 "aten::flip",
                                                 "aten::alias",
                                                 "aten::view_as",
                                                 "aten::reshape_as",
                                                 "aten::masked_fill",
                                                 "aten::masked_fill_",
                                                 "aten::where",
                                                 "aten::tril",
                                                 "aten::triu",
                                                 "aten::broadcast_to",
                                                 "aten::broadcast_tensors",
                                                 "aten::_make_per_tensor_quantized_tensor",
                                                 "aten::int_repr",
                                                 "aten::_empty_affine_quantized",
                                                 "aten::set_",
                                                 "aten::quantize_per_tensor",
                                                 "aten::dequantize",
                                                 "aten::swapaxes",
                                                 "aten::swapdims",
                                                 "aten::feature_alpha_dropout",
                                                 "aten::moveaxis",
                                                 "aten::lift_fresh",
                                                 "aten::fill_",
                                                 "aten::zero_",
                                                 "aten::as_strided",
                                                 "aten::resolve_conj",
                                                 "aten::tensor_split",
                                                 "aten::hsplit",
                                                 "aten::vsplit",
                                                 "aten::IntImplicit",
                                                 "aten::ScalarImplicit",
                                                 "aten::ceil",
                                                 "aten::floor_divide",
                                                 "aten::is_grad_enabled",
                                                 "aten::is_floating_point",
                                                 "aten::is_autocast_enabled",
                                                 "aten::stride",
                                                 "aten::storage_offset",
                                                 "aten::is_contiguous",
                                                 "aten::one_hot",
                                                 "aten::append",  // lists of tensors
                                                 "aten::__getitem__",
                                                 "aten::diagonal"};
    return kNames;
}

/// Operations per output (or input) element of operators without multiply-adds.
const std::map<std::string, double>& elementwise_flops() {
    static const std::map<std::string, double> kFlops = {{"aten::add", 1},
                                                         {"aten::add_", 1},
                                                         {"aten::sub", 1},
                                                         {"aten::sub_", 1},
                                                         {"aten::rsub", 1},
                                                         {"aten::mul", 1},
                                                         {"aten::mul_", 1},
                                                         {"aten::div", 1},
                                                         {"aten::div_", 1},
                                                         {"aten::neg", 1},
                                                         {"aten::remainder", 1},
                                                         {"aten::diff", 1},
                                                         // product and sum of the norm, then the scale
                                                         {"aten::_weight_norm", 3},
                                                         {"aten::abs", 1},
                                                         {"aten::sqrt", 1},
                                                         {"aten::rsqrt", 1},
                                                         {"aten::reciprocal", 1},
                                                         {"aten::pow", 1},
                                                         {"aten::exp", 1},
                                                         {"aten::log", 1},
                                                         {"aten::erf", 1},
                                                         {"aten::sin", 1},
                                                         {"aten::cos", 1},
                                                         {"aten::relu", 1},
                                                         {"aten::relu_", 1},
                                                         {"aten::relu6", 2},
                                                         {"aten::relu6_", 2},
                                                         {"aten::hardtanh", 2},
                                                         {"aten::hardtanh_", 2},
                                                         {"aten::clamp", 2},
                                                         {"aten::clamp_", 2},
                                                         {"aten::clamp_min", 1},
                                                         {"aten::clamp_min_", 1},
                                                         {"aten::clamp_max", 1},
                                                         {"aten::leaky_relu", 2},
                                                         {"aten::leaky_relu_", 2},
                                                         {"aten::prelu", 2},
                                                         {"aten::sigmoid", 4},
                                                         {"aten::sigmoid_", 4},
                                                         {"aten::tanh", 4},
                                                         {"aten::tanh_", 4},
                                                         {"aten::silu", 5},
                                                         {"aten::silu_", 5},
                                                         {"aten::gelu", 8},
                                                         {"aten::gelu_", 8},
                                                         {"aten::elu", 4},
                                                         {"aten::elu_", 4},
                                                         {"aten::hardswish", 4},
                                                         {"aten::hardswish_", 4},
                                                         {"aten::hardsigmoid", 3},
                                                         {"aten::hardsigmoid_", 3},
                                                         {"aten::mish", 6},
                                                         {"aten::softplus", 4},
                                                         {"aten::square", 1},
                                                         {"aten::batch_norm", 2},
                                                         {"aten::layer_norm", 5},
                                                         {"aten::group_norm", 5},
                                                         {"aten::instance_norm", 5},
                                                         {"aten::rms_norm", 4},
                                                         {"aten::softmax", 5},
                                                         {"aten::log_softmax", 5},
                                                         {"aten::addcmul", 2},
                                                         {"aten::addcdiv", 2},
                                                         {"aten::maximum", 1},
                                                         {"aten::minimum", 1},
                                                         {"aten::eq", 1},
                                                         {"aten::ne", 1},
                                                         {"aten::lt", 1},
                                                         {"aten::le", 1},
                                                         {"aten::gt", 1},
                                                         {"aten::ge", 1},
                                                         {"aten::bitwise_not", 1},
                                                         {"aten::logical_not", 1},
                                                         {"aten::__and__", 1},
                                                         {"aten::logical_and", 1},
                                                         {"aten::bitwise_and", 1},
                                                         {"aten::__or__", 1},
                                                         {"aten::cumsum", 1},
                                                         {"aten::upsample_nearest2d", 1},
                                                         {"aten::upsample_nearest1d", 1},
                                                         {"aten::upsample_bilinear2d", 7},
                                                         {"aten::upsample_bicubic2d", 31},
                                                         {"aten::upsample_linear1d", 3},
                                                         {"aten::grid_sampler", 7},
                                                         {"quantized::add", 1},
                                                         {"quantized::add_relu", 2},
                                                         {"quantized::mul", 1},
                                                         {"quantized::mul_relu", 2},
                                                         {"quantized::relu6", 2},
                                                         {"quantized::hardswish", 4},
                                                         {"quantized::leaky_relu", 2},
                                                         {"quantized::sigmoid", 4},
                                                         {"quantized::layer_norm", 5},
                                                         {"quantized::batch_norm2d", 2},
                                                         {"quantized::embedding_bag_4bit_unpack", 2},
                                                         {"quantized::embedding_bag_byte_unpack", 2},
                                                         {"quantized::embedding_byte", 2},
                                                         {"quantized::cat", 0}};
    return kFlops;
}

/// Reductions and poolings: one operation per INPUT element.
const std::set<std::string>& reductions() {
    static const std::set<std::string> kNames = {"aten::sum",
                                                 "aten::mean",
                                                 "aten::max",
                                                 "aten::min",
                                                 "aten::amax",
                                                 "aten::amin",
                                                 "aten::var",
                                                 "aten::std",
                                                 "aten::var_mean",
                                                 "aten::norm",
                                                 "aten::linalg_vector_norm",
                                                 "aten::frobenius_norm",
                                                 "aten::max_pool1d",
                                                 "aten::max_pool2d",
                                                 "aten::max_pool3d",
                                                 "aten::avg_pool1d",
                                                 "aten::avg_pool2d",
                                                 "aten::avg_pool3d",
                                                 "aten::adaptive_avg_pool1d",
                                                 "aten::adaptive_avg_pool2d",
                                                 "aten::adaptive_avg_pool3d",
                                                 "aten::adaptive_max_pool2d",
                                                 "aten::argmax",
                                                 "aten::argmin",
                                                 "aten::topk",
                                                 "aten::cosine_similarity",
                                                 "aten::any",
                                                 "aten::all",
                                                 "aten::prod",
                                                 "aten::index_add",
                                                 "aten::index_add_",
                                                 "aten::scatter_add",
                                                 "aten::scatter_add_",
                                                 "aten::bucketize",
                                                 "aten::quantile",
                                                 "aten::logsumexp",
                                                 "aten::normalize"};
    return kNames;
}

/// Multiply-adds of one einsum: the product of the sizes of all distinct labels.
double einsum_macs(const std::string& equation, const std::vector<std::vector<int64_t>>& operands) {
    std::map<char, int64_t> sizes;
    size_t operand = 0, dim = 0;
    for (const char label : equation.substr(0, equation.find("->"))) {
        if (label == ' ') continue;
        if (label == ',') {
            ++operand;
            dim = 0;
            continue;
        }
        if (label == '.' || operand >= operands.size() || dim >= operands[operand].size()) return 0;
        sizes[label] = operands[operand][dim++];
    }
    double macs = 1;
    for (const auto& [label, size] : sizes) macs *= static_cast<double>(size);
    return macs;
}

/// [C_out, C_in/groups, k...] of packed int8 weights; [in, out] of those in oneDNN's layout.
std::optional<at::Tensor> unpacked_weight(const c10::IValue& packed) {
    if (packed.isTensor() && packed.toTensor().is_mkldnn()) return packed.toTensor().to_dense();
    if (!packed.isCustomClass()) return std::nullopt;
    const auto name = packed.type()->str();
    const char* unpack = name.find("Conv2d") != std::string::npos      ? "quantized::conv2d_unpack"
                         : name.find("Conv3d") != std::string::npos    ? "quantized::conv3d_unpack"
                         : name.find("Linear") != std::string::npos    ? "quantized::linear_unpack"
                         : name.find("Embedding") != std::string::npos ? "quantized::embedding_bag_unpack"
                                                                       : nullptr;
    if (!unpack) return std::nullopt;
    try {
        std::vector<c10::IValue> stack{packed};
        for (const auto& op : getAllOperatorsFor(c10::Symbol::fromQualString(unpack))) {
            op->getOperation()(stack);
            for (const auto& value : stack) {
                if (value.isTensor()) return value.toTensor();
                if (value.isTuple()) return value.toTupleRef().elements()[0].toTensor();
            }
        }
    } catch (const std::exception&) {
        return std::nullopt;  // another engine's packing: its weight cannot be read back here
    }
    return std::nullopt;
}

struct Rule {
    double macs = 0, flops = 0;
    bool known = true;
};

Rule rule_of(Node* node, const std::vector<c10::IValue>& inputs, const Observed& seen) {
    const std::string op = node->kind().toQualString();
    const auto in = [&](size_t i) -> const std::vector<int64_t>& {
        static const std::vector<int64_t> kNone;
        return i < seen.inputs.size() ? seen.inputs[i] : kNone;
    };
    const auto out = seen.outputs.empty() ? std::vector<int64_t>{} : seen.outputs[0];
    const auto shape_of = [](const c10::IValue& value) {
        return value.isTensor() && value.toTensor().defined() ? value.toTensor().sizes().vec() : std::vector<int64_t>{};
    };
    const auto with_macs = [](double macs) { return Rule{macs, 2 * macs, true}; };
    if (const auto conv = as_conv(node)) {
        const auto weight = shape_of(inputs[1]);
        // Each output (transposed: input) element takes one product per weight of its filter.
        const auto per_element = product(weight) / static_cast<double>(weight[0]);
        return with_macs((conv->transposed ? product(shape_of(inputs[0])) : product(out)) * per_element);
    }
    if (op == "aten::linear") return with_macs(product(out) * static_cast<double>(shape_of(inputs[1]).back()));
    if (op == "aten::matmul" || op == "aten::mm" || op == "aten::bmm" || op == "aten::mv" || op == "aten::dot")
        return with_macs(product(out) * static_cast<double>(shape_of(inputs[0]).back()));
    if (op == "aten::addmm" || op == "aten::baddbmm")
        return with_macs(product(out) * static_cast<double>(shape_of(inputs[1]).back()));
    if (op == "aten::einsum" && inputs[0].isString())
        return with_macs(einsum_macs(inputs[0].toStringRef(), seen.inputs));
    if (op == "aten::bilinear")
        return with_macs(product(out) * product(shape_of(inputs[2])) / static_cast<double>(shape_of(inputs[2])[0]));
    if (op == "aten::scaled_dot_product_attention") {
        const auto query = shape_of(inputs[0]), key = shape_of(inputs[1]), value = shape_of(inputs[2]);
        // q k^T and weights v, per query row: tokens x (width of q + width of v).
        const double rows = product(query) / static_cast<double>(query.back());
        const double keys = static_cast<double>(key[key.size() - 2]);
        const double macs = rows * keys * static_cast<double>(query.back() + value.back());
        return {macs, 2 * macs + 5 * rows * keys, true};
    }
    if (op == "aten::_native_multi_head_attention" || op == "aten::_transformer_encoder_layer_fwd") {
        const bool layer = op == "aten::_transformer_encoder_layer_fwd";
        const auto tokens = shape_of(inputs[0]);  // [N, T, E]
        if (tokens.size() != 3) return {0, 0, false};
        const double batch = tokens[0], length = tokens[1], width = tokens[2];
        double macs = batch * (4 * length * width * width + 2 * length * length * width);
        if (layer) {
            double feed_forward = 0;
            for (const auto& input : inputs)  // the two feed-forward matrices: the last 2-d weights
                if (input.isTensor() && input.toTensor().defined() && input.toTensor().dim() == 2)
                    feed_forward = input.toTensor().numel();
            macs += batch * length * 2 * feed_forward;
        }
        return with_macs(macs);
    }
    if (as_recurrent(node)) {
        double per_step = 0;  // multiply-adds of one time step: every matrix once
        for (const auto& weight : inputs[2].isTensorList() ? inputs[2].toTensorVector() : inputs[3].toTensorVector())
            if (weight.dim() == 2) per_step += static_cast<double>(weight.numel());
        const auto input = shape_of(inputs[0]);
        return with_macs(per_step * product(input) / static_cast<double>(input.back()));
    }
    if (op.rfind("quantized::conv", 0) == 0 || op.rfind("quantized::linear", 0) == 0) {
        for (const auto& input : inputs) {
            const auto weight = unpacked_weight(input);
            if (!weight) continue;
            return with_macs(product(out) * static_cast<double>(weight->numel()) /
                             static_cast<double>(weight->size(0)));
        }
        return {0, 0, false};
    }
    if (op.rfind("onednn::qlinear", 0) == 0) {  // weights [in, out]
        const auto weight = shape_of(inputs[3]);
        return with_macs(product(out) * static_cast<double>(weight[0]));
    }
    if (op.rfind("onednn::qconv", 0) == 0) {  // weights [out, in / groups, ...]
        const auto weight = shape_of(inputs[3]);
        return with_macs(product(out) * product(weight) / static_cast<double>(weight[0]));
    }
    if (const auto found = elementwise_flops().find(op); found != elementwise_flops().end())
        return {0, found->second * product(out), true};
    if (reductions().count(op)) return {0, product(in(0)), true};
    const bool touches_tensors = !seen.outputs.empty();
    const std::string space = op.substr(0, op.find(':'));
    const bool known = !touches_tensors || free_operators().count(op) > 0 || space == "prim";
    return {0, 0, known};
}

void flatten(const c10::IValue& value, std::vector<at::Tensor>& tensors) {
    if (value.isTensor()) {
        if (value.toTensor().defined()) tensors.push_back(value.toTensor());
    } else if (value.isTensorList()) {
        for (const auto& tensor : value.toTensorVector()) tensors.push_back(tensor);
    } else if (value.isTuple()) {
        for (const auto& item : value.toTupleRef().elements()) flatten(item, tensors);
    }
}

int64_t packed_parameters(const c10::IValue& packed, int64_t* bytes) {
    const auto weight = unpacked_weight(packed);
    if (!weight) return 0;
    *bytes += weight->numel() * static_cast<int64_t>(weight->element_size());
    return weight->numel();
}

}  // namespace

Cost cost(const Model& model, const Inputs& example) {
    torch::NoGradGuard no_grad;
    const LayerNames names(model);
    Cost total;
    std::unordered_map<const Node*, size_t> rows;
    std::vector<std::vector<c10::IValue>> pending;  // inputs of the operator that runs now
    std::set<std::string> counted_parameters;
    std::set<std::string> unknown;
    NodeHooks hooks;
    hooks.before = [&](const Node*, std::vector<c10::IValue>& inputs) { pending.assign(1, inputs); };
    hooks.after = [&](const Node* node, std::vector<c10::IValue>& outputs) {
        if (!node->blocks().empty()) return;
        auto* mutable_node = const_cast<Node*>(node);
        const auto inputs = std::move(pending.back());
        Observed seen;
        std::vector<at::Tensor> tensors;
        for (const auto& input : inputs) flatten(input, tensors);
        auto all = tensors;
        for (const auto& output : outputs) flatten(output, all);
        if (std::any_of(all.begin(), all.end(), [](const at::Tensor& tensor) { return tensor.is_nested(); })) {
            unknown.insert(node->kind().toQualString());  // rows of different lengths have no shape to count by
            return;
        }
        for (const auto& tensor : tensors) seen.inputs.push_back(tensor.sizes().vec());
        tensors.assign(all.begin() + static_cast<std::ptrdiff_t>(tensors.size()), all.end());
        for (const auto& tensor : tensors) {
            seen.outputs.push_back(tensor.sizes().vec());
            seen.output_bytes += tensor.numel() * static_cast<int64_t>(tensor.element_size());
        }
        if (seen.outputs.empty() && seen.inputs.empty()) return;
        const auto rule = rule_of(mutable_node, inputs, seen);
        auto [position, fresh] = rows.try_emplace(node, total.layers.size());
        if (fresh) {
            LayerCost layer;
            layer.name = names.of(node);
            layer.op = node->kind().toQualString();
            layer.node = node;
            if (!seen.inputs.empty()) layer.input_shape = seen.inputs[0];
            if (!seen.outputs.empty()) layer.output_shape = seen.outputs[0];
            const std::function<void(const Node*)> count = [&](const Node* reader) {
                for (const Value* input : reader->inputs()) {
                    const auto name = attribute_name(input);
                    if (name && !name->empty()) {
                        if (!has_attribute(model, *name)) continue;
                        const auto value = get_attribute(model, *name);
                        if (!counted_parameters.insert(*name).second) continue;
                        if (value.isTensor() && value.toTensor().requires_grad()) {
                            layer.parameters += value.toTensor().numel();
                            layer.parameter_bytes +=
                                value.toTensor().numel() * static_cast<int64_t>(value.toTensor().element_size());
                        } else {
                            layer.parameters += packed_parameters(value, &layer.parameter_bytes);
                        }
                    } else if (input->node()->kind() == prim::ListConstruct || input->node()->kind() == aten::t) {
                        count(input->node());
                    }
                }
            };
            // What only passes weights on, or asks for their type, is not the layer that they belong to.
            const bool passes_on = node->kind() == prim::ListConstruct || node->kind() == aten::t;
            if (!passes_on && !seen.outputs.empty()) count(node);
            total.layers.push_back(std::move(layer));
        }
        auto& layer = total.layers[position->second];
        layer.macs += rule.macs;
        layer.flops += rule.flops;
        layer.activation_bytes += seen.output_bytes;
        layer.known = rule.known;
        if (!rule.known) unknown.insert(layer.op);
    };
    run_nodes(model, example, hooks);
    for (const auto& layer : total.layers) {
        total.macs += layer.macs;
        total.flops += layer.flops;
        total.activation_bytes += layer.activation_bytes;
    }
    std::set<const void*> seen_tensors;
    std::set<std::string> packed_at_load;  // what they were packed from stands beside them, as "weight"
    for (const auto& [name, tensor, role] : named_tensors(model))
        if (const auto plain = name.substr(0, name.rfind('.') + 1) + "weight";
            tensor.is_mkldnn() && plain != name && has_attribute(model, plain))
            packed_at_load.insert({name, plain});
    for (const auto& [name, tensor, role] : named_tensors(model)) {
        if (packed_at_load.count(name)) continue;
        if (!seen_tensors.insert(tensor.unsafeGetTensorImpl()).second) continue;
        const bool csr = tensor.layout() == at::kSparseCsr;
        auto bytes = tensor.numel() * static_cast<int64_t>(tensor.element_size());
        if (csr)
            bytes = static_cast<int64_t>(tensor.values().nbytes() + tensor.crow_indices().nbytes() +
                                         tensor.col_indices().nbytes());
        if (role == Role::kParameter) {
            total.parameters += tensor.numel();
            total.nonzero_parameters += (csr ? tensor.values() : tensor).count_nonzero().item<int64_t>();
            total.parameter_bytes += bytes;
        } else {
            total.buffer_bytes += bytes;
        }
    }
    // Packed int8 weights are attributes of custom classes, or tensors in oneDNN's layout.
    for (const auto& layer : total.layers) {
        if (layer.op.rfind("quantized::", 0) != 0 && layer.op.rfind("onednn::", 0) != 0) continue;
        for (const Value* input : layer.node->inputs()) {
            const auto name = attribute_name(input);
            if (!name || name->empty() || !has_attribute(model, *name)) continue;
            const auto weight = unpacked_weight(get_attribute(model, *name));
            if (!weight) continue;
            total.parameters += weight->numel();
            const auto integers = weight->is_quantized() ? weight->int_repr() : *weight;
            total.nonzero_parameters += integers.count_nonzero().item<int64_t>();
            total.parameter_bytes += weight->numel() * static_cast<int64_t>(weight->element_size());
        }
    }
    total.unknown_operators.assign(unknown.begin(), unknown.end());
    return total;
}

std::vector<OperatorSpan> operator_timeline(const Model& model, const Inputs& example, int warm_up) {
    torch::NoGradGuard no_grad;
    for (int run = 0; run < warm_up; ++run) run_nodes(model, example, {});
    std::vector<OperatorSpan> spans;
    spans.reserve(1024);
    const double begin = wall_seconds();
    double start = 0, cpu_start = 0;
    NodeHooks hooks;
    hooks.before = [&](const Node*, std::vector<c10::IValue>&) {
        cpu_start = cpu_seconds(/*with_children=*/false);
        start = wall_seconds();
    };
    hooks.after = [&](const Node* node, std::vector<c10::IValue>&) {
        if (!node->blocks().empty()) return;
        const double end = wall_seconds();
        spans.push_back({node, start - begin, end - start, cpu_seconds(/*with_children=*/false) - cpu_start});
    };
    run_nodes(model, example, hooks);
    return spans;
}

}  // namespace coppice
