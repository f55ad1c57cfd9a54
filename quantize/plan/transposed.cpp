// A transposed convolution is a convolution whose outputs lie side by side:
//
//     y[q s + r - p] = sum_t V_r[t] x[q - t],   V_r[t] = W[t s + r],   0 <= r < s, 0 <= t < ceil(k / s)
//
// so that every phase r of the stride is a convolution of its own (Shi et al., arXiv 1609.07009, section 3). All phases
// are one convolution with s times as many outputs, which are interleaved and cropped. This is how int8 comes to
// transposed convolutions: LibTorch's own int8 operators for them have no scale per channel, and give wrong sums (2.15:
// oneDNN's where inputs and outputs differ in number, FBGEMM's for 2x2 kernels).
#include "equalize/pairs.h"
#include "layers/layers.h"
#include "plan/plan.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

/// The numbers of one transposed convolution, one entry per spatial dimension.
struct Phases {
    std::vector<int64_t> taps;           ///< kernel of the convolution that takes its place
    std::vector<int64_t> front, behind;  ///< outputs to leave out
    int64_t groups, channels;            ///< outputs of a group
    std::vector<int64_t> stride;
    int64_t count = 1;  ///< product of the strides
};

Phases phases_of(const ConvView& view, const at::Tensor& weight) {
    Phases phases;
    phases.groups = view.groups;
    phases.channels = weight.size(1);
    phases.stride = view.stride;
    for (size_t i = 0; i < view.stride.size(); ++i) {
        const int64_t kernel = weight.size(static_cast<int64_t>(i) + 2), s = view.stride[i], p = view.padding[i];
        const int64_t reach = kernel + std::max<int64_t>(view.output_padding[i] - p, 0);
        const int64_t taps = (reach + s - 1) / s;
        phases.taps.push_back(taps);
        phases.front.push_back(p);
        phases.behind.push_back(s * taps + p - kernel - view.output_padding[i]);
        phases.count *= s;
    }
    return phases;
}

/// [C_in, C_out / groups, k...] to [groups * phases * C_out / groups, C_in / groups, taps...].
at::Tensor phase_weight(const at::Tensor& weight, const Phases& phases) {
    const auto dims = static_cast<int64_t>(phases.stride.size());
    std::vector<int64_t> padding;  // from the last dimension to the first
    for (int64_t i = dims - 1; i >= 0; --i) {
        const auto at = static_cast<size_t>(i);
        padding.push_back(0);
        padding.push_back(phases.taps[at] * phases.stride[at] - weight.size(i + 2));
    }
    std::vector<int64_t> split{phases.groups, weight.size(0) / phases.groups, phases.channels}, flipped, order{0},
        shape;
    for (int64_t i = 0; i < dims; ++i) {
        split.push_back(phases.taps[static_cast<size_t>(i)]);
        split.push_back(phases.stride[static_cast<size_t>(i)]);
        flipped.push_back(3 + 2 * i);
        order.push_back(4 + 2 * i);
    }
    order.push_back(2);
    order.push_back(1);
    order.insert(order.end(), flipped.begin(), flipped.end());
    shape = {phases.groups * phases.count * phases.channels, weight.size(0) / phases.groups};
    shape.insert(shape.end(), phases.taps.begin(), phases.taps.end());
    return at::constant_pad_nd(weight, padding, 0)
        .reshape(split)
        .flip(flipped)
        .permute(order)
        .reshape(shape)
        .contiguous();
}

at::Tensor phase_bias(const at::Tensor& bias, const Phases& phases) {
    return bias.reshape({phases.groups, 1, phases.channels})
        .expand({phases.groups, phases.count, phases.channels})
        .reshape({-1})
        .contiguous();
}

/// [N, groups * phases * channels, Q...] to [N, C_out, Q s...]. Channels last in between: whole runs are copied.
Value* interleave(Graph& graph, Value* value, const Phases& phases) {
    const auto dims = static_cast<int64_t>(phases.stride.size());
    std::vector<int64_t> last{0}, split{phases.groups}, order{0}, first{0, dims + 1};
    for (int64_t i = 1; i <= dims; ++i) {
        last.push_back(i + 1);
        split.push_back(phases.stride[static_cast<size_t>(i - 1)]);
        order.push_back(i);
        order.push_back(dims + 1 + i);
        first.push_back(i);
    }
    last.push_back(1);
    split.push_back(phases.channels);
    order.push_back(dims + 1);
    order.push_back(2 * dims + 2);
    value = graph.insert(aten::permute, {value, last});
    value = graph.insert(aten::unflatten, {value, dims + 1, split});
    value = graph.insert(aten::permute, {value, order});
    for (int64_t i = 1; i <= dims + 1; ++i) value = graph.insert(aten::flatten, {value, i, i + 1});
    return graph.insert(aten::permute, {value, first});
}

/// The attribute's new content, in place where nothing else reads it.
Value* replaced(Model& model, const SoleReaders& readers, Value* value, const at::Tensor& content, Node* before) {
    const auto name = attribute_name(value).value_or("weight");
    if (!readers.alone(model, value)) return store(model, content, name, "weight", before, Role::kParameter);
    set_tensor(model, name, content);
    return value;
}

}  // namespace

void split_transposed_convolutions(Model& model, const Inputs& example, const LayerFilter& wanted) {
    torch::NoGradGuard no_grad;
    static constexpr const char* kNames[] = {"aten::conv1d", "aten::conv2d", "aten::conv3d"};
    auto graph = model.graph();
    const SoleReaders readers(model);
    const LayerNames names(model);
    // All are found before the first is replaced: facts are of the graph as it was.
    std::vector<Node*> chosen;
    std::optional<Facts> facts;
    for (Node* node : all_nodes(*graph)) {
        const auto view = as_conv(node);
        if (!view || !view->transposed || !view->padding_mode.empty() || (wanted && !wanted(names.of(node)))) continue;
        const auto weight = parameter_of(model, view->weight);
        const bool dense = std::all_of(view->dilation.begin(), view->dilation.end(), [](int64_t d) { return d == 1; });
        if (!weight || weight->scalar_type() != at::kFloat || !dense) continue;
        if (view->has_bias && !parameter_of(model, view->bias)) continue;
        if (!facts) facts = Facts::observe(model, example);
        if (facts->has_shape(view->input) && static_cast<int64_t>(facts->shape(view->input).size()) == view->dims + 2)
            chosen.push_back(node);
    }
    for (Node* node : chosen) {
        const auto view = as_conv(node);
        const auto weight = parameter_of(model, view->weight);
        const auto bias = view->has_bias ? parameter_of(model, view->bias) : std::optional<at::Tensor>();
        const auto phases = phases_of(*view, *weight);
        std::vector<int64_t> padding;
        for (const int64_t taps : phases.taps) padding.push_back(taps - 1);
        const std::vector<int64_t> ones(phases.taps.size(), 1);
        Value* new_weight = replaced(model, readers, view->weight, phase_weight(weight->detach(), phases), node);
        Value* new_bias =
            bias ? replaced(model, readers, view->bias, phase_bias(bias->detach(), phases), node) : view->bias;
        WithInsertPoint guard(node);
        Value* value = graph->insert(Symbol::fromQualString(kNames[view->dims - 1]),
                                     {view->input, new_weight, new_bias, ones, padding, ones, phases.groups});
        value->node()->setScope(node->scope());
        value->node()->setSourceRange(node->sourceRange());
        if (phases.count > 1) value = interleave(*graph, value, phases);
        for (size_t i = 0; i < phases.taps.size(); ++i) {
            if (phases.front[i] == 0 && phases.behind[i] == 0) continue;
            const auto end = phases.behind[i] == 0 ? c10::IValue() : c10::IValue(-phases.behind[i]);
            value = graph->insert(aten::slice, {value, static_cast<int64_t>(i) + 2, phases.front[i], end, int64_t{1}});
        }
        node->output()->replaceAllUsesWith(value);
        node->destroy();
    }
    model.refresh();
}

}  // namespace coppice::quantize
