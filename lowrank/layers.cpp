#include "layers.h"

#include <coppice/error.h>

namespace coppice::lowrank {

using namespace torch::jit;

namespace {

double product(const std::vector<int64_t>& shape, size_t begin, size_t end) {
    double result = 1;
    for (size_t i = begin; i < end && i < shape.size(); ++i) result *= static_cast<double>(shape[i]);
    return result;
}

bool starts_with(const std::string& text, const char* start) {
    return text.rfind(start, 0) == 0;
}

// Fills what is common to both kinds; a reason when the weight is not one that can be replaced.
std::string take_weight(Layer& layer, const Model& model, const Value* value) {
    const auto name = attribute_name(value);
    if (!name || name->empty()) return "the weight is computed or a constant, not a parameter";
    const auto weight = parameter_of(model, value);
    if (!weight) return "the weight is not a tensor attribute";
    if (!weight->is_floating_point()) return "the weight is not floating point";
    if (weight->layout() != at::kStrided) return "the weight is sparse";
    layer.weight_name = *name;
    layer.weight = *weight;
    return {};
}

std::string analyse(Layer& layer, const Model& model, const Facts& facts, const ConvView& conv) {
    if (conv.transposed) return "transposed convolutions are not factorised";
    if (conv.groups != 1) return "grouped convolution (" + std::to_string(conv.groups) + " groups)";
    if (auto reason = take_weight(layer, model, conv.weight); !reason.empty()) return reason;
    if (!facts.has_shape(conv.node->output()) || !facts.has_shape(conv.input))
        return "the example input does not reach it";
    const auto& in = facts.shape(conv.input);
    const auto& out = facts.shape(conv.node->output());
    const auto dims = static_cast<size_t>(conv.dims);
    if (out.size() < dims + 1 || in.size() != out.size()) return "its shapes are not those of a convolution";
    const double runs = static_cast<double>(facts.runs(conv.node));
    const double images = out.size() == dims + 2 ? static_cast<double>(out[0]) : 1;
    layer.positions = runs * images * product(out, out.size() - dims, out.size());
    if (conv.dims == 2)
        layer.middle_positions =
            runs * images * static_cast<double>(in[in.size() - 2]) * static_cast<double>(out.back());
    layer.conv = conv;
    return {};
}

std::string analyse(Layer& layer, const Model& model, const Facts& facts, const LinearView& linear) {
    if (auto reason = take_weight(layer, model, linear.weight); !reason.empty()) return reason;
    if (layer.weight.dim() != 2) return "the weight is not a matrix";
    if (!facts.has_shape(linear.node->output())) return "the example input does not reach it";
    // addmm takes a bias that is added to every row, or a matrix; only the former is the bias of a linear layer.
    if (linear.has_bias && linear.node->kind() != aten::linear) {
        const auto bias = parameter_of(model, linear.bias);
        if (!bias || bias->dim() != 1) return "what it adds is not a bias vector";
    }
    if (linear.weight_transposed) layer.weight = layer.weight.t();
    layer.positions = static_cast<double>(facts.runs(linear.node)) *
                      product(facts.shape(linear.node->output()), 0, 64) /
                      static_cast<double>(std::max<int64_t>(layer.weight.size(0), 1));
    layer.linear = linear;
    return {};
}

int64_t break_even(const Layer& layer) {
    int64_t best = 0;
    for (const Form form : {Form::kChannel, Form::kSpatial}) {
        if (!layer.has_form(form) || layer.macs_per_rank(form) <= 0) continue;
        // strictly fewer
        best = std::max(best, static_cast<int64_t>(std::ceil(layer.macs() / layer.macs_per_rank(form))) - 1);
    }
    return best;
}

// The tensor object behind a name: shared attributes hold the same one.
const void* identity(const Model& model, const std::string& name) {
    return get_attribute(model, name).toTensor().unsafeGetTensorImpl();
}

}  // namespace

bool Layer::has_form(Form form) const {
    return form == Form::kChannel || (conv && conv->dims == 2 && weight.size(2) > 1 && weight.size(3) > 1);
}

double Layer::macs_per_rank(Form form) const {
    const double out = static_cast<double>(weight.size(0));
    if (form == Form::kSpatial)
        return middle_positions * static_cast<double>(weight.size(1) * weight.size(3)) +
               positions * out * static_cast<double>(weight.size(2));
    return positions * (static_cast<double>(weight.numel()) / out + out);
}

double Layer::parameters_per_rank(Form form) const {
    const double out = static_cast<double>(weight.size(0));
    if (form == Form::kSpatial)
        return static_cast<double>(weight.size(1) * weight.size(3)) + out * static_cast<double>(weight.size(2));
    return static_cast<double>(weight.numel()) / out + out;
}

std::vector<Layer> find_layers(const Model& model, const Inputs& example) {
    const auto facts = Facts::observe(model, example);
    const LayerNames names(model);
    std::vector<Layer> layers;
    for (Node* node : all_nodes(*model.graph())) {
        Layer layer;
        layer.node = node;
        layer.op = node->kind().toQualString();
        if (const auto conv = as_conv(node)) {
            layer.reason = analyse(layer, model, facts, *conv);
        } else if (const auto linear = as_linear(node)) {
            layer.reason = analyse(layer, model, facts, *linear);
        } else if (as_recurrent(node)) {
            layer.reason = "recurrent weights are not factorised";
        } else if (as_embedding(node)) {
            layer.reason = "embeddings are not factorised";
        } else if (const auto product = as_matmul(node)) {
            const auto name = attribute_name(product->right);
            if (!name || name->empty()) continue;
            layer.reason = "a matrix product whose parameter is not known to be a layer's weight";
        } else if (starts_with(layer.op, "aten::conv") || layer.op == "aten::_convolution") {
            layer.reason = "its stride, padding or groups are computed";
        } else if (starts_with(layer.op, "aten::lstm") || starts_with(layer.op, "aten::gru") ||
                   starts_with(layer.op, "aten::rnn_")) {
            layer.reason = "recurrent weights are not factorised";
        } else if (starts_with(layer.op, "quantized::conv") || starts_with(layer.op, "quantized::linear")) {
            layer.reason = "it is quantized already; factorise before quantizing";
        } else {
            continue;
        }
        layer.name = names.of(node);
        layers.push_back(std::move(layer));
    }

    // Whoever else reads a weight would lose it, or would compute with the old one.
    std::map<const void*, std::set<const Node*>> users;  // by tensor
    for (const auto& layer : layers)
        if (layer.reason.empty()) users[identity(model, layer.weight_name)].insert(layer.node);
    std::map<const void*, std::string> foreign;
    for (Node* node : all_nodes(*model.graph())) {
        for (const Value* input : node->inputs()) {
            const auto name = attribute_name(input);
            if (!name || name->empty() || !get_attribute(model, *name).isTensor()) continue;
            const auto found = users.find(identity(model, *name));
            if (found == users.end() || found->second.count(node)) continue;
            bool through_transpose = node->kind() == aten::t || node->kind() == aten::transpose;
            if (through_transpose)
                for (const auto& use : node->output()->uses()) through_transpose &= found->second.count(use.user) > 0;
            if (!through_transpose) foreign[found->first] = names.of(node);
        }
    }
    for (auto& layer : layers) {
        if (!layer.reason.empty()) continue;
        if (const auto found = foreign.find(identity(model, layer.weight_name)); found != foreign.end())
            layer.reason = "its weight is also read by " + found->second;
        else if (break_even(layer) < 1)
            layer.reason = "no rank would need fewer multiply-adds";
    }
    return layers;
}

std::vector<std::vector<size_t>> groups_by_weight(const std::vector<Layer>& layers, const Model& model) {
    std::vector<std::vector<size_t>> groups;
    std::map<const void*, size_t> group_of;
    for (size_t i = 0; i < layers.size(); ++i) {
        if (!layers[i].reason.empty()) continue;
        const auto [found, fresh] = group_of.emplace(identity(model, layers[i].weight_name), groups.size());
        if (fresh) groups.emplace_back();
        groups[found->second].push_back(i);
    }
    return groups;
}

std::vector<Explanation> explain(const Model& model, const Inputs& example) {
    std::vector<Explanation> result;
    for (const auto& layer : find_layers(model, example)) {
        Explanation row;
        row.layer = layer.name;
        row.op = layer.op;
        row.factorisable = layer.reason.empty();
        row.reason = layer.reason;
        if (layer.weight.defined() && layer.weight.dim() >= 2)
            row.full_rank =
                std::min(layer.weight.size(0), layer.weight.numel() / std::max<int64_t>(layer.weight.size(0), 1));
        if (layer.conv || layer.linear) row.break_even_rank = break_even(layer);
        result.push_back(std::move(row));
    }
    return result;
}

}  // namespace coppice::lowrank
