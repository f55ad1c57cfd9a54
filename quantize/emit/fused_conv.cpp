#include "emit/fused_conv.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

class Search {
public:
    explicit Search(const StaticPlan::Impl& plan) : plan_(plan) {
        for (const auto& unit : plan.units)
            for (const auto* node : unit.nodes) unit_of_[node] = &unit;
    }

    std::unordered_map<const Node*, FusedConv> run() {
        // From the end: of two convolutions that meet in a sum, the later one adds.
        for (auto unit = plan_.units.rbegin(); unit != plan_.units.rend(); ++unit) {
            if (!unit->int8 || unit->kind != UnitKind::kConv || as_conv(unit->node)->dims != 2) continue;
            const auto& conv = all_.emplace(unit->node, fused(*unit)).first->second;
            makers_[conv.last->output()] = unit->node;
            if (conv.saves()) chosen_.insert(unit->node);
        }
        for (bool more = !chosen_.empty(); more;) {
            more = false;
            for (const auto& [node, conv] : all_)
                if (!chosen_.count(node) && (reads_integers(conv) || only_integers_wanted(conv)))
                    more = chosen_.insert(node).second;
        }
        std::unordered_map<const Node*, FusedConv> result;
        for (const auto* node : chosen_) result.emplace(node, all_.at(node));
        return result;
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
        // Integers of another operator's quantized tensor are a copy that takes as long as the convolution.
        const auto maker = unit_of_.find(unit.inputs[0]->node());
        if (maker == unit_of_.end() || !maker->second->int8 || maker->second->kind != UnitKind::kConv) return conv;
        const Unit& add = *found->second;
        if (add.kind != UnitKind::kAdd || !add.int8 || adders_.count(add.node) || add.inputs[0] == add.inputs[1])
            return conv;
        const bool first = add.inputs[0] == unit.node->output();
        const auto* other = add.inputs[first ? 1 : 0];
        if (plan_.facts.shape(other) != plan_.facts.shape(unit.node->output())) return conv;
        adders_[add.node] = unit.node;
        conv.add = &add;
        conv.added = other;
        conv.last = add.nodes.back();
        if (add.activation && clamp_of(add.activation)->low == 0) conv.activation.name = "relu";
        return conv;
    }

    bool reads_integers(const FusedConv& conv) const {
        const auto maker = makers_.find(conv.unit->inputs[0]);
        return maker != makers_.end() && chosen_.count(maker->second) && plan_.parameters.count(maker->first);
    }

    bool only_integers_wanted(const FusedConv& conv) const {
        bool any = false;
        for (const auto& use : conv.last->output()->uses()) {
            if (reads_no_values(use.user)) continue;
            const bool conv_reads = chosen_.count(use.user) && use.offset == anchor_inputs(use.user).tensor;
            const auto adder = adders_.find(use.user);
            const bool adds = adder != adders_.end() && all_.at(adder->second).added == conv.last->output();
            if (!conv_reads && !adds) return false;
            any = true;
        }
        return any;
    }

    const StaticPlan::Impl& plan_;
    std::unordered_map<const Node*, const Unit*> unit_of_;
    std::unordered_map<const Node*, FusedConv> all_;
    std::unordered_map<const Value*, const Node*> makers_;  ///< convolutions by what comes out
    std::unordered_map<const Node*, const Node*> adders_;   ///< convolutions by the addition inside
    std::set<const Node*> chosen_;
};

}  // namespace

std::unordered_map<const Node*, FusedConv> fused_convolutions(const StaticPlan::Impl& plan) {
    return Search(plan).run();
}

}  // namespace coppice::quantize
