// Cross-layer equalisation (Nagel et al., arXiv 1906.04721).
//
//     before  y = W2 f(W1 x + b1),                        f(c x) = c f(x) for c > 0
//     after   y = (W2 S) f(S^-1 W1 x + S^-1 b1),          s_i = sqrt(r1_i r2_i) / r2_i
//
// with r1_i = max |W1[i]| and r2_i = max |W2[:, i]|: both ranges become sqrt(r1_i r2_i). Repeated over all pairs until
// nothing moves. It fires where the second layer is the only reader of the first, directly or through relu, leaky relu,
// dropout or pooling, and no other operator reads their weights. A channel of zeros on either side keeps its scale.
//
// ReLU6 is no such f: relu6(z) = s relu6(z / s) only while neither side is cut. The exact form is a clamp with a bound
// per channel, 6 / s_i, which no int8 operator of LibTorch takes in, so pairs around a ReLU6 are left unless
// EqualizeOptions::relu6 says
//
//     relu        relu6 becomes relu (the paper): another function where values exceed 6
//     calibrated  relu6 stays, and scales are held where it cuts none of the calibration data anew: s_i = 1 where
//                 m_i = max z_i >= 6, else s_i >= m_i / 6. On these data the function is the same.
#include <algorithm>
#include <cmath>

#include <coppice/error.h>
#include <coppice/quantize.h>

#include "calibration/calibration.h"
#include "emit/operators.h"
#include "equalize/pairs.h"
#include "layers/layers.h"
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

/// A clamp from 0 to a bound between two layers.
struct Bound {
    Node* node;
    double high;
    double beyond = 0, values = 0;  ///< how many of its inputs exceed the bound, of how many
};

struct Pair {
    Side first, second;
    std::vector<Bound> bounds;
    at::Tensor largest;  ///< of each output channel of the first layer, float64; where there are bounds
    at::Tensor scale;    ///< of the first layer's output by now: it was divided by so much
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

/// Runs the calibration data for what pairs with bounds have to know.
void observe(const Model& model, const Calibration& calibration, const Progress& progress, std::vector<Pair>& pairs) {
    std::unordered_map<const Node*, Pair*> firsts;
    std::unordered_map<const Node*, Bound*> bounds;
    for (auto& pair : pairs) {
        if (pair.bounds.empty()) continue;
        firsts[pair.first.node] = &pair;
        for (auto& bound : pair.bounds) bounds[bound.node] = &bound;
    }
    if (firsts.empty()) return;
    NodeHooks hooks;
    hooks.before = [&](const Node* node, std::vector<c10::IValue>& inputs) {
        const auto found = bounds.find(node);
        if (found == bounds.end()) return;
        found->second->beyond += (inputs[0].toTensor() > found->second->high).sum().item<double>();
        found->second->values += static_cast<double>(inputs[0].toTensor().numel());
    };
    hooks.after = [&](const Node* node, std::vector<c10::IValue>& outputs) {
        const auto found = firsts.find(node);
        if (found == firsts.end()) return;
        const auto output = outputs[0].toTensor();
        if (output.numel() == 0) return;
        const auto conv = as_conv(found->second->first.node);
        const int64_t channel = output.dim() - 1 - (conv ? conv->dims : 0);
        const auto seen = output.movedim(channel, 0).reshape({output.size(channel), -1}).amax(1).to(at::kDouble);
        auto& largest = found->second->largest;
        largest = largest.defined() ? at::maximum(largest, seen) : seen;
    };
    run_batches(model, calibration, hooks, "equalizing", progress);
}

/// The factor nearest to `factor` that cuts no calibration data.
at::Tensor within_bounds(const Pair& pair, const at::Tensor& factor) {
    auto high = pair.bounds.front().high;
    for (const auto& bound : pair.bounds) high = std::min(high, bound.high);
    const auto scale = at::maximum(pair.scale * factor, pair.largest / high);
    return at::where(pair.largest < high, scale, at::ones_like(scale)) / pair.scale;
}

}  // namespace

int equalize(Model& model, const Inputs&, std::vector<LayerChange>* changes) {
    return equalize(model, Calibration(std::vector<Inputs>()), {}, changes).pairs;
}

int equalize(Model& model, const Inputs&, const Calibration& calibration, const EqualizeOptions& options,
             std::vector<LayerChange>* changes) {
    return equalize(model, calibration, options, changes).pairs;
}

Equalized equalize(Model& model, const Calibration& calibration, const EqualizeOptions& options,
                   std::vector<LayerChange>* changes) {
    check_relu6("quantize.equalize", "relu6", options.relu6);
    const bool keep = options.relu6 == "keep";
    if (!keep && calibration.size() == 0)
        throw InvalidArgument("quantize.equalize", "there is no calibration data for relu6: " + options.relu6,
                              "Give at least one batch, or relu6: keep.");
    torch::NoGradGuard no_grad;
    const SoleReaders readers(model);
    std::vector<Pair> pairs;
    Equalized result;
    for (Node* node : all_nodes(*model.graph())) {
        const auto first = as_side(model, node, true, readers);
        if (!first) continue;
        std::vector<Bound> bounds;
        Node* next = only_reader(node->output());
        for (; next; next = only_reader(next->output())) {
            const auto clamp = clamp_of(next);
            if (clamp && clamp->low == 0 && std::isfinite(clamp->high) && clamp->high > 0)
                bounds.push_back({next, clamp->high});
            else if (!homogeneous(next) && !(clamp && clamp->low == 0 && clamp->high > 0))
                break;
        }
        if (!next || (as_conv(next).has_value() != as_conv(node).has_value())) continue;
        const auto second = as_side(model, next, false, readers);
        if (!second) continue;
        const auto count = channels(model, *first).size(0);
        if (count != channels(model, *second).size(0)) continue;
        if (keep && !bounds.empty())
            ++result.bounded;
        else
            pairs.push_back({*first, *second, bounds, at::Tensor(), at::ones({count}, at::kDouble)});
    }
    observe(model, calibration, options.progress, pairs);
    if (options.relu6 == "calibrated")  // what no batch reaches is not known
        std::erase_if(pairs, [](const Pair& pair) { return !pair.bounds.empty() && !pair.largest.defined(); });
    for (int sweep = 0; sweep < kSweeps; ++sweep) {
        double moved = 0;
        for (auto& pair : pairs) {
            const auto r1 = channels(model, pair.first).abs().amax(1).to(at::kDouble);
            const auto r2 = channels(model, pair.second).abs().amax(1).to(at::kDouble);
            const auto alive = (r1 > 0) & (r2 > 0);
            const auto s = at::where(alive, (r1 / r2).sqrt(), at::ones_like(r1));
            auto usable = at::where(s.isfinite() & (s > 0), s, at::ones_like(s));
            if (!pair.bounds.empty() && options.relu6 == "calibrated") usable = within_bounds(pair, usable);
            moved = std::max(moved, usable.log().abs().max().item<double>());
            pair.scale = pair.scale * usable;
            scale_channels(model, pair.first, usable.reciprocal());
            scale_channels(model, pair.second, usable);
        }
        if (moved < kSettled) break;
    }
    const LayerNames names(model);
    for (const auto& pair : pairs) {
        ++result.pairs;
        const auto second = names.of(pair.second.node);
        if (changes) changes->push_back({names.of(pair.first.node), "equalized", "", "with " + second, ""});
        if (pair.bounds.empty()) continue;
        ++result.bounded;
        for (const auto& bound : pair.bounds) {
            const double share = bound.values > 0 ? bound.beyond / bound.values : 0;
            result.beyond_ratio = std::max(result.beyond_ratio, share);
            if (options.relu6 != "relu") continue;
            if (changes)
                changes->push_back({names.of(pair.first.node), "replaced", "clamp at " + formatted("%g", bound.high),
                                    "relu",
                                    formatted("%.3g", 100 * share) +
                                        " % of its calibration values lie beyond: the function changes there"});
            WithInsertPoint guard(bound.node);
            Value* relu = model.graph()->insert(aten::relu, {bound.node->input(0)});
            relu->setType(bound.node->output()->type());
            bound.node->output()->replaceAllUsesWith(relu);
            bound.node->destroy();
        }
    }
    if (options.relu6 == "relu") model.refresh();
    return result;
}

void check_relu6(const char* where, const char* option, const std::string& relu6) {
    require_known(where, option, relu6, {"calibrated", "keep", "relu"});
}

}  // namespace coppice::quantize
