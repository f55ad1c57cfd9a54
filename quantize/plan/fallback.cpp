#include <optional>

#include "layers/blame.h"
#include "layers/layers.h"
#include "plan/plan.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

/// One int8 layer rounded as the plan rounds it.
NodeHooks only(const StaticPlan::Impl& plan, const std::string& layer) {
    NodeHooks hooks;
    for (size_t i = 0; i < plan.units.size(); ++i) {
        const auto& unit = plan.units[i];
        if (plan.unit_names[i] != layer || !unit.anchor()) continue;
        hooks.before = [&plan, &unit](const Node* node, std::vector<c10::IValue>& stack) {
            if (node == unit.node) round_anchor(plan, unit, stack);
        };
        hooks.after = [&plan, &unit](const Node* node, std::vector<c10::IValue>& outputs) {
            if (node != unit.node) return;
            if (const auto bias = bias_behind(plan, node); bias.defined()) outputs[0] = outputs[0].toTensor() + bias;
        };
    }
    return hooks;
}

}  // namespace

StaticPlan plan_within(const Model& model, Context& context, const Calibration& calibration, const StaticOptions& given,
                       const char* where) {
    auto first = plan_static(model, context.example, calibration, given);
    if (!given.fallback.on()) return first;
    std::vector<size_t> candidates;
    const auto& layers = first.layers();
    for (size_t i = 0; i < layers.size(); ++i)
        if (layers[i].int8 && layers[i].parameters > 0) candidates.push_back(i);
    std::optional<std::vector<size_t>> order;  // known when it is needed
    bool by_output = false;
    const auto blame = [&] {
        Inputs inputs = context.example;
        calibration.each([&](const Inputs& batch) { inputs = batch; }, 1);
        Suspects suspects;
        suspects.count = candidates.size();
        suspects.alone = [&](size_t i) { return only(first.impl(), layers[candidates[i]].layer); };
        suspects.sqnr_db = [&](size_t i) { return layers[candidates[i]].sqnr_db; };
        return by_blame(first.model(), suspects, inputs, given.fallback.seconds / 4, context, where, &by_output);
    };
    std::map<size_t, StaticPlan> plans{{0, first}};
    const auto plan_with = [&](size_t floats) {
        if (const auto found = plans.find(floats); found != plans.end()) return found->second;
        if (!order) order = blame();
        auto options = given;
        for (size_t i = 0; i < floats; ++i) options.ignore.push_back(exactly(layers[candidates[(*order)[i]]].layer));
        return plans.emplace(floats, plan_static(model, context.example, calibration, options)).first->second;
    };
    // With every layer in float nothing is left of the stage.
    const auto best = fall_back(
        model, candidates.empty() ? 0 : candidates.size() - 1,
        [&](size_t floats) { return convert(plan_with(floats)); }, given.fallback, context, where);
    if (order) context.facts["fallback"]["order"] = by_output ? "noise of the output" : "noise of the layer";
    return plan_with(best.second);
}

}  // namespace coppice::quantize
