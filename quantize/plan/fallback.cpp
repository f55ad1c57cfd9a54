#include "layers/layers.h"
#include "plan/plan.h"

namespace coppice::quantize {

StaticPlan plan_within(const Model& model, Context& context, const Calibration& calibration, const StaticOptions& given,
                       const char* where) {
    auto first = plan_static(model, context.example, calibration, given);
    if (!given.fallback.on()) return first;
    std::vector<size_t> order;
    const auto& layers = first.layers();
    for (size_t i = 0; i < layers.size(); ++i)
        if (layers[i].int8 && layers[i].parameters > 0) order.push_back(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return layers[a].sqnr_db < layers[b].sqnr_db; });
    if (!order.empty()) order.pop_back();  // with every layer in float nothing is left of the stage
    std::map<size_t, StaticPlan> plans{{0, first}};
    const auto plan_with = [&](size_t floats) {
        if (const auto found = plans.find(floats); found != plans.end()) return found->second;
        auto options = given;
        for (size_t i = 0; i < floats; ++i) options.ignore.push_back(exactly(layers[order[i]].layer));
        return plans.emplace(floats, plan_static(model, context.example, calibration, options)).first->second;
    };
    const auto best = fall_back(
        model, order.size(), [&](size_t floats) { return convert(plan_with(floats)); }, given.fallback, context, where);
    return plan_with(best.second);
}

}  // namespace coppice::quantize
