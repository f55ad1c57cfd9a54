#include <algorithm>
#include <map>
#include <set>

#include "layers/layers.h"

namespace coppice::quantize {
namespace {

constexpr int kRuns = 5;

// Seconds of one run by layer. What runs between two layers counts to the earlier one, what runs before the first to
// that: an activation that int8 fused, or a conversion that it needs, is on neither side left out.
std::map<std::string, double> by_layer(const Model& model, const LayerNames& names, const Inputs& example,
                                       const std::string& first, const std::set<std::string>& layers) {
    std::map<std::string, double> seconds;
    std::string current = first;
    for (const auto& span : operator_timeline(model, example, 0)) {
        const auto& name = names.of(span.node);
        if (layers.count(name)) current = name;
        seconds[current] += span.seconds;
    }
    return seconds;
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

}  // namespace

void add_layer_seconds(Context& context, const Model& before, const Model& after) {
    auto& rows = context.facts["layers"];
    const LayerNames names_before(before), names_after(after);
    std::string first;
    std::set<std::string> layers;
    for (const auto& row : rows) {
        const auto name = row.at("layer").get<std::string>();
        if (!names_before.find(name) || !names_after.find(name)) continue;
        if (layers.empty()) first = name;
        layers.insert(name);
    }
    if (layers.empty()) return;
    operator_timeline(before, context.example);
    operator_timeline(after, context.example);
    std::map<std::string, std::vector<double>> times_before, times_after;
    for (int run = 0; run < kRuns; ++run) {  // in turns, so that a busy moment hits both
        for (const auto& [name, seconds] : by_layer(before, names_before, context.example, first, layers))
            times_before[name].push_back(seconds);
        for (const auto& [name, seconds] : by_layer(after, names_after, context.example, first, layers))
            times_after[name].push_back(seconds);
    }
    for (auto& row : rows) {
        const auto name = row.at("layer").get<std::string>();
        if (!times_before.count(name) || !times_after.count(name)) continue;
        row["seconds_before"] = median(times_before[name]);
        row["seconds_after"] = median(times_after[name]);
    }
}

}  // namespace coppice::quantize
