#include "weights/weights.h"

namespace coppice::prune {

using namespace torch::jit;

namespace {

std::string refuse_tensor(const at::Tensor& weight) {
    if (!weight.is_floating_point()) return "the weight is not floating point";
    if (weight.layout() != at::kStrided) return "the weight is stored sparse already";
    if (weight.numel() == 0) return "the weight is empty";
    return {};
}

}  // namespace

std::vector<WeightLayer> find_weight_layers(const Model& model) {
    const LayerNames names(model);
    std::vector<WeightLayer> layers;
    std::map<const void*, size_t> known;  // by tensor
    for (Node* node : all_nodes(*model.graph())) {
        WeightLayer layer;
        Value* weight = nullptr;
        size_t least_dims = 2;
        if (const auto conv = as_conv(node)) {
            weight = conv->weight;
            layer.groups = conv->groups;
            layer.transposed = conv->transposed;
            least_dims = static_cast<size_t>(conv->dims) + 2;
        } else if (const auto linear = as_linear(node)) {
            weight = linear->weight;
            layer.transposed = linear->weight_transposed;
        } else if (const auto embedding = as_embedding(node)) {
            weight = embedding->weight;
            layer.embedding = true;
        } else if (as_recurrent(node)) {
            layer.name = names.of(node);
            layer.reason = "recurrent weights are not pruned one by one";
            layers.push_back(std::move(layer));
            continue;
        } else {
            continue;
        }
        layer.name = names.of(node);
        const auto attribute = attribute_name(weight);
        const auto tensor = parameter_of(model, weight);
        if (!attribute || attribute->empty() || !tensor) {
            layer.reason = "the weight is computed or a constant, not a parameter";
        } else {
            if (!known.emplace(tensor->unsafeGetTensorImpl(), layers.size()).second) continue;
            layer.attribute = *attribute;
            layer.weight = tensor->detach();
            layer.reason = refuse_tensor(layer.weight);
            if (layer.reason.empty() && static_cast<size_t>(layer.weight.dim()) != least_dims)
                layer.reason = "the weight has " + std::to_string(layer.weight.dim()) + " dimensions";
        }
        layers.push_back(std::move(layer));
    }
    return layers;
}

at::Tensor to_matrix(const WeightLayer& layer) {
    const auto weight = layer.weight.to(at::kDouble);
    const int64_t groups = layer.groups;
    // [g, out / g, in / g, taps] or, transposed, [g, in / g, out / g, taps]
    const auto split = weight.reshape({groups, weight.size(0) / groups, weight.size(1), -1});
    const auto ordered = layer.transposed ? split.permute({0, 2, 3, 1}) : split.permute({0, 1, 3, 2});
    return ordered.reshape({groups, ordered.size(1), -1});
}

at::Tensor from_matrix(const WeightLayer& layer, const at::Tensor& matrix) {
    const auto& weight = layer.weight;
    const int64_t groups = layer.groups, rows = matrix.size(1);
    const int64_t in = layer.transposed ? weight.size(0) / groups : weight.size(1);
    const auto ordered = matrix.reshape({groups, rows, -1, in});  // [g, out / g, taps, in / g]
    const auto back = layer.transposed ? ordered.permute({0, 3, 1, 2}) : ordered.permute({0, 1, 3, 2});
    return at::empty_like(weight).copy_(back.reshape(weight.sizes()));
}

}  // namespace coppice::prune
