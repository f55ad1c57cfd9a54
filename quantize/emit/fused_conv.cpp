#include "emit/fused_conv.h"

#include <ATen/Parallel.h>

#include <chrono>
#include <limits>

namespace coppice::quantize {

using namespace torch::jit;

namespace {

/// What a call of oneDNN's operator costs more than one of quantized::conv2d, with a view of a quantized tensor in
/// front of it and one behind, measured on a convolution that has next to nothing to do: 16 us with tcmalloc, 38 with
/// glibc (Zen 4), because its descriptors are made on the heap.
double measure_call_ns() {
    torch::NoGradGuard no_grad;
    const auto options = at::TensorOptions().memory_format(at::MemoryFormat::ChannelsLast);
    const auto x = at::quantize_per_tensor(at::zeros({1, 16, 4, 4}, options), 0.1, 0, at::kQUInt8);
    const auto weight = at::quantize_per_tensor(at::ones({16, 16, 1, 1}), 0.1, 0, at::kQInt8);
    const ConvGeometry geometry{{1, 1}, {0, 0}, {1, 1}, 1};
    const auto pair = [](const std::vector<int64_t>& values) { return c10::List<int64_t>(values); };
    const auto packed = pack_conv(weight, {}, geometry);
    const auto scales = at::full({16}, 0.1), zeros = at::zeros({16}, at::kLong);
    const auto prepacked =
        call_operator("onednn::qconv_prepack",
                      {weight.int_repr(), scales, 1.0, int64_t{0}, pair(geometry.stride), pair(geometry.padding),
                       pair(geometry.dilation), geometry.groups, pair({1, 16, 4, 4})});
    const auto over = [](const at::Tensor& tensor, const at::Tensor& empty) {
        return at::Tensor(empty).set_(tensor.as_strided({0}, {1}), 0, tensor.sizes(), tensor.strides());
    };
    const auto plain = [&] { call_operator("quantized::conv2d", {x, packed, 0.1, int64_t{0}}, "new"); };
    const auto fused = [&] {
        const auto y = call_operator(
            "onednn::qconv2d_pointwise",
            {over(x, at::empty({0}, at::kByte)), 0.1, int64_t{0}, prepacked, scales, zeros, c10::IValue(),
             pair(geometry.stride), pair(geometry.padding), pair(geometry.dilation), geometry.groups, 0.1, int64_t{0},
             static_cast<int64_t>(at::kByte), "none", c10::List<std::optional<at::Scalar>>(), "none"});
        over(y.toTensor(), at::_empty_affine_quantized({0}, at::TensorOptions().dtype(at::kQUInt8), 0.1, 0));
    };
    double least[2] = {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::infinity()};
    for (int round = 0; round < 50; ++round) {
        for (const int which : {0, 1}) {
            const auto start = std::chrono::steady_clock::now();
            which == 0 ? plain() : fused();
            const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - start;
            least[which] = std::min(least[which], taken.count());
        }
    }
    return std::max(0.0, least[1] - least[0]);
}

double call_ns() {
    static const double ns = measure_call_ns();
    return ns;
}

class Search {
public:
    explicit Search(const StaticPlan::Impl& plan)
        : plan_(plan), all_(plan.options.conv == "fused"), unit_of_(units_by_node(plan.units)) {}

    std::unordered_map<const Node*, FusedConv> run() {
        std::unordered_map<const Node*, FusedConv> chosen;
        // From the end: of two convolutions that meet in a sum, the later one adds.
        for (auto unit = plan_.units.rbegin(); unit != plan_.units.rend(); ++unit) {
            if (!unit->int8 || unit->kind != UnitKind::kConv || as_conv(unit->node)->dims != 2) continue;
            const auto conv = fused(*unit);
            const double saved_ns = saved_ns_per_element(conv);
            if (saved_ns == 0) continue;
            const auto elements = static_cast<double>(c10::multiply_integers(plan_.facts.shape(conv.last->output())));
            if (all_ || saved_ns * elements / at::get_num_threads() > call_ns())
                chosen.emplace(unit->node, conv);
            else if (conv.add)
                adders_.erase(conv.add->node);  // the other convolution has the same size, but may save more
        }
        return chosen;
    }

private:
    FusedConv fused(const Unit& unit) {
        FusedConv conv{&unit, unit.activation ? unit.activation : unit.node, {}, nullptr, nullptr};
        if (unit.activation) {
            // Other bounds follow behind it where the output's range does not end there.
            if (clamp_of(unit.activation)->low == 0) conv.activation.name = "relu";
            return conv;
        }
        const Node* reader = only_reader(unit.node->output());
        if (!reader || reader->owningBlock() != unit.node->owningBlock()) return conv;
        if (reader->kind() == aten::silu || reader->kind() == aten::hardswish) {
            conv.activation = *fused_activation(reader);
            conv.last = reader;
            return conv;
        }
        const auto found = unit_of_.find(reader);
        if (found == unit_of_.end()) return conv;
        const Unit& add = *found->second;
        if (add.kind != UnitKind::kAdd || !add.int8 || adders_.count(add.node) || add.inputs[0] == add.inputs[1])
            return conv;
        const bool first = add.inputs[0] == unit.node->output();
        const auto* other = add.inputs[first ? 1 : 0];
        // oneDNN adds what has the size of the result, for every batch and not for the example's alone.
        const auto& smaller = plan_.smaller_operands;
        if (plan_.facts.shape(other) != plan_.facts.shape(unit.node->output()) || smaller.count({add.node, 0}) ||
            smaller.count({add.node, 1}))
            return conv;
        adders_.insert(add.node);
        conv.add = &add;
        conv.added = other;
        conv.last = add.nodes.back();
        if (add.activation && clamp_of(add.activation)->low == 0) conv.activation.name = "relu";
        return conv;
    }

    /// What oneDNN's operator saves over quantized::conv2d and what stands behind it, on one thread; 0: nothing. Fitted
    /// to tests/bench/results/quantize_peers.md.
    double saved_ns_per_element(const FusedConv& conv) const {
        if (conv.activation.name == "swish") return 0.78;
        if (conv.activation.name == "hardswish") return 0.23;
        return (conv.add ? 0.18 : 0) + (depthwise(*conv.unit) ? 0.11 : 0);
    }

    /// Whether the engine would take FBGEMM's kernel, which is slower than oneDNN's, and for whose sums in 16 bits
    /// these weights may be too wide: see weight_bits_of().
    bool depthwise(const Unit& unit) const {
        return fbgemm_depthwise(plan_.weights.at(unit.node).sizes(), as_conv(unit.node)->groups, plan_.options.engine);
    }

    const StaticPlan::Impl& plan_;
    const bool all_;
    const std::unordered_map<const Node*, const Unit*> unit_of_;
    std::set<const Node*> adders_;  ///< additions inside a convolution
};

}  // namespace

std::unordered_map<const Node*, FusedConv> fused_convolutions(const StaticPlan::Impl& plan) {
    return Search(plan).run();
}

}  // namespace coppice::quantize
