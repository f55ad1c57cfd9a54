// Sums of the inputs that a layer's weights meet. For y = W x the inputs are the rows of x; for a convolution they are
// the patches under the kernel, one per output position (im2col), in the column order of to_matrix().
#include "weights/weights.h"

namespace coppice::prune {

using namespace torch::jit;

namespace {

// Elements of the patches of one piece: 128 MiB in float64.
constexpr int64_t kPieceElements = int64_t{1} << 24;

struct Tap {
    std::string attribute;
    size_t input = 0;  // which input of the node is x
    std::optional<ConvView> conv;
};

/// x [N, C, L...] -> [groups, N * positions, taps * C / groups], float64.
at::Tensor patches(const at::Tensor& x, const ConvView& conv, const std::vector<int64_t>& kernel) {
    const int64_t dims = conv.dims;
    std::vector<int64_t> padding;  // last dimension first
    for (int64_t d = dims - 1; d >= 0; --d) {
        const int64_t reach = conv.dilation[static_cast<size_t>(d)] * (kernel[static_cast<size_t>(d)] - 1);
        const int64_t given = conv.padding[static_cast<size_t>(d)];
        padding.push_back(conv.padding_mode == "same" ? reach / 2 : given);
        padding.push_back(conv.padding_mode == "same" ? reach - reach / 2 : given);
    }
    auto windows = at::constant_pad_nd(x.to(at::kDouble), padding);
    for (int64_t d = 0; d < dims; ++d) {
        const auto i = static_cast<size_t>(d);
        const int64_t span = conv.dilation[i] * (kernel[i] - 1) + 1;
        windows = windows.unfold(2 + d, span, conv.stride[i]).slice(-1, 0, c10::nullopt, conv.dilation[i]);
    }
    // [N, C, positions..., taps...] -> [groups, N, positions..., taps..., C / groups]
    std::vector<int64_t> shape = {windows.size(0), conv.groups, windows.size(1) / conv.groups};
    for (int64_t d = 2; d < windows.dim(); ++d) shape.push_back(windows.size(d));
    std::vector<int64_t> order = {1, 0};
    for (int64_t d = 3; d < static_cast<int64_t>(shape.size()); ++d) order.push_back(d);
    order.push_back(2);
    const int64_t columns = shape[2] * c10::multiply_integers(kernel);
    return windows.reshape(shape).permute(order).reshape({conv.groups, -1, columns});
}

void add(InputSums& sums, const at::Tensor& x, InputStatistic statistic) {  // [groups, positions, columns]
    sums.positions += x.size(1);
    const auto squares = x.square().sum(1);
    sums.squares = sums.squares.defined() ? sums.squares + squares : squares;
    if (statistic != InputStatistic::kGram) return;
    if (sums.gram.defined())
        sums.gram.baddbmm_(x.transpose(1, 2), x);
    else
        sums.gram = at::bmm(x.transpose(1, 2), x);
}

void add(InputSums& sums, at::Tensor x, const Tap& tap, const std::vector<int64_t>& kernel, InputStatistic statistic) {
    if (!tap.conv) {
        const auto rows = x.reshape({-1, x.size(-1)});
        const int64_t piece = std::max<int64_t>(1, kPieceElements / rows.size(1));
        for (const auto& some : rows.split(piece)) add(sums, some.to(at::kDouble).unsqueeze(0), statistic);
        return;
    }
    if (x.dim() == tap.conv->dims + 1) x = x.unsqueeze(0);
    const int64_t each = x[0].numel() * c10::multiply_integers(kernel);
    for (const auto& some : x.split(std::max<int64_t>(1, kPieceElements / std::max<int64_t>(each, 1))))
        add(sums, patches(some, *tap.conv, kernel), statistic);
}

struct Enough {};  // every layer asked for was seen: the rest of the run has nothing to tell

}  // namespace

std::map<std::string, InputSums> sum_inputs(const Model& model, const std::set<std::string>& attributes,
                                            InputStatistic statistic, int64_t samples, int64_t batch_size,
                                            Context& context) {
    torch::NoGradGuard no_grad;
    std::map<const void*, std::string> wanted;  // by tensor: shared weights have several names
    std::map<std::string, std::vector<int64_t>> kernels;
    for (const auto& name : attributes) {
        const auto weight = get_attribute(model, name).toTensor();
        wanted[weight.unsafeGetTensorImpl()] = name;
        kernels[name] = weight.sizes().slice(std::min<size_t>(2, weight.sizes().size())).vec();
    }
    std::map<const Node*, Tap> taps;
    const Node* last = nullptr;
    for (Node* node : all_nodes(*model.graph())) {
        const auto conv = as_conv(node);
        const auto linear = conv ? std::nullopt : as_linear(node);
        if (!conv && !linear) continue;
        const auto weight = parameter_of(model, conv ? conv->weight : linear->weight);
        if (!weight) continue;
        const auto found = wanted.find(weight->unsafeGetTensorImpl());
        if (found == wanted.end()) continue;
        Tap tap{found->second, 0, conv};
        const Value* input = conv ? conv->input : linear->input;
        while (node->input(tap.input) != input) ++tap.input;
        taps.emplace(node, tap);
        last = node;
    }
    if (last && last->owningBlock() != model.graph()->block()) last = nullptr;  // may run again
    std::map<std::string, InputSums> sums;
    NodeHooks hooks;
    hooks.before = [&](const Node* node, std::vector<c10::IValue>& inputs) {
        const auto found = taps.find(node);
        if (found == taps.end()) return;
        const auto& tap = found->second;
        add(sums[tap.attribute], inputs[tap.input].toTensor(), tap, kernels[tap.attribute], statistic);
        if (node == last) throw Enough();
    };
    BatchIterator batches(*context.data.calibration, std::min(batch_size, samples), /*shuffle=*/true, context.seed);
    for (int64_t seen = 0; seen < samples;) {
        if (context.interrupted()) throw Interrupted("prune.weight", "stopped by request", "");
        const auto batch = batches.next();
        if (!batch) break;
        seen += batch_size;
        try {
            run_nodes(model, batch->inputs, hooks);
        } catch (const Enough&) {
        }
    }
    for (const auto& [name, sum] : sums)
        if (!sum.squares.isfinite().all().item<bool>())
            throw UnsupportedModel("prune.weight at " + name, "its input on the calibration data is not finite",
                                   "Check the data and the checkpoint.");
    return sums;
}

}  // namespace coppice::prune
