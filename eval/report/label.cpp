#include "report/label.h"

#include <algorithm>
#include <iterator>

namespace coppice::eval::report {

char class_of_ratio(double ratio) {
    const auto found = std::lower_bound(std::begin(kClassBounds), std::end(kClassBounds), ratio);
    return static_cast<char>('A' + (found - std::begin(kClassBounds)));
}

std::optional<EnergyClass> energy_class(const Stage& stage) {
    Measure energy;
    energy.key = "energy_per_inference_j";
    EnergyClass result;
    result.ratio = relative(stage, energy);
    if (!result.ratio.value || !(*result.ratio.value > 0)) return std::nullopt;
    const auto interval = result.ratio.interval.value_or(std::pair(*result.ratio.value, *result.ratio.value));
    result.best = class_of_ratio(std::min(interval.first, *result.ratio.value));
    result.worst = class_of_ratio(std::max(interval.second, *result.ratio.value));
    return result;
}

std::string class_text(const EnergyClass& energy) {
    std::string text(1, energy.best);
    if (energy.worst != energy.best) text += std::string(" to ") + energy.worst;
    return text;
}

std::string class_bands_text() {
    std::string text;
    char name = 'A';
    for (const double bound : kClassBounds) text += std::string(1, name++) + " to " + fixed(100 * bound, 0) + " %, ";
    return text + name + " above";
}

Json to_json(const EnergyClass& energy) {
    return {{"best", std::string(1, energy.best)},
            {"worst", std::string(1, energy.worst)},
            {"bands", "energy-class-" + std::to_string(kClassVersion)},
            {"ratio", to_json(energy.ratio)}};
}

}  // namespace coppice::eval::report
