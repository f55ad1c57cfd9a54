// Cross-layer equalisation (Nagel et al., arXiv 1906.04721).
//
//     before  y = W2 f(W1 x + b1),                        f(c x) = c f(x) for c > 0
//     after   y = (W2 S) f(S^-1 W1 x + S^-1 b1),          s_i = sqrt(r1_i r2_i) / r2_i
//
// with r1_i = max |W1[i]| and r2_i = max |W2[:, i]|: both ranges become sqrt(r1_i r2_i). Repeated over all pairs until
// nothing moves. It fires where the second layer is the only reader of the first, directly or through relu, leaky relu,
// dropout or pooling, and no other operator reads their weights. A channel of zeros on either side keeps its scale.
#include <coppice/quantize.h>

#include "equalize/pairs.h"
#include "plan/units.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

constexpr int kSweeps = 40;
constexpr double kSettled = 1e-4;  // a sweep that moves no scale by more is the last

struct Side {
    Node* node;
    std::string weight, bias;            ///< attribute names; bias may be empty
    std::vector<int64_t> channel_first;  ///< permutation that brings the shared channels to dimension 0
};

struct Pair {
    Side first, second;
};

std::vector<int64_t> swap_first(int64_t dims, int64_t with) {
    std::vector<int64_t> order(static_cast<size_t>(dims));
    for (int64_t i = 0; i < dims; ++i) order[static_cast<size_t>(i)] = i;
    std::swap(order[0], order[static_cast<size_t>(with)]);
    return order;
}

std::optional<Side> as_side(const Model& model, Node* node, bool first, const SoleReaders& readers) {
    const auto conv = as_conv(node);
    const auto linear = as_linear(node);
    if (!conv && !linear) return std::nullopt;
    if (conv && conv->transposed) return std::nullopt;
    const auto* weight = conv ? conv->weight : linear->weight;
    const auto* bias = conv ? conv->bias : linear->bias;
    if (!readers.alone(model, weight)) return std::nullopt;
    const auto tensor = *parameter_of(model, weight);
    if (tensor.scalar_type() != at::kFloat || tensor.dim() < 2) return std::nullopt;
    Side side{node, *attribute_name(weight), "", {}};
    int64_t channel = first ? 0 : 1;
    if (linear && linear->weight_transposed) channel = 1 - channel;
    if (!first && conv && conv->groups != 1) {
        if (tensor.size(1) != 1) return std::nullopt;  // grouped, not depthwise
        channel = 0;
    }
    if (first && (conv ? conv->has_bias : linear->has_bias)) {
        if (!readers.alone(model, bias)) return std::nullopt;
        side.bias = *attribute_name(bias);
    }
    side.channel_first = swap_first(tensor.dim(), channel);
    return side;
}

bool homogeneous(const Node* node) {
    static const std::set<std::string> names = {"aten::relu",       "aten::leaky_relu", "aten::dropout",
                                                "aten::max_pool1d", "aten::max_pool2d", "aten::avg_pool1d",
                                                "aten::avg_pool2d"};
    return names.count(node->kind().toQualString()) > 0;
}

at::Tensor channels(const Model& model, const Side& side) {
    const auto weight = get_attribute(model, side.weight).toTensor().detach();
    return weight.permute(side.channel_first).reshape({weight.size(side.channel_first[0]), -1});
}

void scale_channels(Model& model, const Side& side, const at::Tensor& factor) {
    const auto weight = get_attribute(model, side.weight).toTensor().detach();
    std::vector<int64_t> shape(static_cast<size_t>(weight.dim()), 1);
    shape[static_cast<size_t>(side.channel_first[0])] = factor.numel();
    set_tensor(model, side.weight, (weight * factor.reshape(shape)).to(at::kFloat));
    if (side.bias.empty()) return;
    const auto bias = get_attribute(model, side.bias).toTensor().detach();
    set_tensor(model, side.bias, (bias * factor.reshape(bias.sizes())).to(at::kFloat));
}

}  // namespace

int equalize(Model& model, const Inputs&, std::vector<LayerChange>* changes) {
    torch::NoGradGuard no_grad;
    const SoleReaders readers(model);
    std::vector<Pair> pairs;
    for (Node* node : all_nodes(*model.graph())) {
        const auto first = as_side(model, node, true, readers);
        if (!first) continue;
        Node* next = only_reader(node->output());
        while (next && homogeneous(next)) next = only_reader(next->output());
        if (!next || (as_conv(next).has_value() != as_conv(node).has_value())) continue;
        const auto second = as_side(model, next, false, readers);
        if (!second) continue;
        if (channels(model, *first).size(0) != channels(model, *second).size(0)) continue;
        pairs.push_back({*first, *second});
    }
    for (int sweep = 0; sweep < kSweeps; ++sweep) {
        double moved = 0;
        for (const auto& [first, second] : pairs) {
            const auto r1 = channels(model, first).abs().amax(1).to(at::kDouble);
            const auto r2 = channels(model, second).abs().amax(1).to(at::kDouble);
            const auto alive = (r1 > 0) & (r2 > 0);
            const auto s = at::where(alive, (r1 / r2).sqrt(), at::ones_like(r1));
            const auto usable = at::where(s.isfinite() & (s > 0), s, at::ones_like(s));
            moved = std::max(moved, usable.log().abs().max().item<double>());
            scale_channels(model, first, usable.reciprocal());
            scale_channels(model, second, usable);
        }
        if (moved < kSettled) break;
    }
    if (changes) {
        const LayerNames names(model);
        for (const auto& pair : pairs)
            changes->push_back({names.of(pair.first.node), "equalized", "", "with " + names.of(pair.second.node), ""});
    }
    return static_cast<int>(pairs.size());
}

}  // namespace coppice::quantize
