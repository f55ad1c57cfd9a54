#include "emit/fused_conv.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

class Search {
public:
    explicit Search(const StaticPlan::Impl& plan) : plan_(plan), all_(plan.options.conv == "fused") {
        for (const auto& unit : plan.units)
            for (const auto* node : unit.nodes) unit_of_[node] = &unit;
    }

    std::unordered_map<const Node*, FusedConv> run() {
        std::unordered_map<const Node*, FusedConv> chosen;
        // From the end: of two convolutions that meet in a sum, the later one adds.
        for (auto unit = plan_.units.rbegin(); unit != plan_.units.rend(); ++unit) {
            if (!unit->int8 || unit->kind != UnitKind::kConv || as_conv(unit->node)->dims != 2) continue;
            const auto conv = fused(*unit);
            const double saved_ns = saved_ns_per_element(conv);
            if (saved_ns == 0) continue;
            const auto elements = static_cast<double>(c10::multiply_integers(plan_.facts.shape(conv.last->output())));
            if (all_ || saved_ns * elements / at::get_num_threads() > kCallNs)
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
        if (plan_.facts.shape(other) != plan_.facts.shape(unit.node->output())) return conv;
        adders_.insert(add.node);
        conv.add = &add;
        conv.added = other;
        conv.last = add.nodes.back();
        if (add.activation && clamp_of(add.activation)->low == 0) conv.activation.name = "relu";
        return conv;
    }

    /// What oneDNN's operator saves over quantized::conv2d and what stands behind it, on one thread; 0: nothing. These
    /// and kCallNs are fitted to tests/bench/results/quantize_peers.md.
    double saved_ns_per_element(const FusedConv& conv) const {
        if (conv.activation.name == "swish") return 0.78;
        if (conv.activation.name == "hardswish") return 0.23;
        return (conv.add ? 0.18 : 0) + (depthwise(*conv.unit) ? 0.11 : 0);
    }

    /// Whether engine x86 would take FBGEMM's kernel, which is slower than oneDNN's.
    bool depthwise(const Unit& unit) const {
        const auto& weight = plan_.weights.at(unit.node);
        const auto groups = as_conv(unit.node)->groups;
        return groups > kOnednnGroups && fbgemm_depthwise(weight.sizes(), groups);
    }

    /// What a call costs more, with a view of a quantized tensor in front of it and one behind.
    static constexpr double kCallNs = 16e3;

    const StaticPlan::Impl& plan_;
    const bool all_;
    std::unordered_map<const Node*, const Unit*> unit_of_;
    std::set<const Node*> adders_;  ///< additions inside a convolution
};

}  // namespace

std::unordered_map<const Node*, FusedConv> fused_convolutions(const StaticPlan::Impl& plan) {
    return Search(plan).run();
}

}  // namespace coppice::quantize
