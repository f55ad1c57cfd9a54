// Carbon is energy x PUE x grid factor (the operational part, E x I, of the SCI of ISO/IEC 21031). No network, no guess
// of where the machine stands: without a zone the world's average is used and named.
#include <coppice/eval.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>

#include "metrics/grid_table.h"

namespace coppice::eval {
namespace {

constexpr double kJoulesPerKwh = 3.6e6;

std::string shortest(double value) {
    return Json(value).dump();
}

}  // namespace

std::vector<std::string> grid_zones() {
    std::vector<std::string> zones;
    for (const auto& row : grid_rows()) zones.emplace_back(row.zone);
    return zones;
}

Grid grid_of(const std::string& text) {
    Grid grid;
    grid.attribution = kGridAttribution;
    char* end = nullptr;
    const double number = std::strtod(text.c_str(), &end);
    if (!text.empty() && *end == '\0' && std::isfinite(number)) {
        if (number < 0)
            throw InvalidArgument("grid", "is " + text + " g/kWh, must not be negative", "The world's average is 458.");
        grid.zone = "custom";
        grid.g_per_kwh = number;
        grid.basis = "given by the user";
        return grid;
    }
    std::string zone = text;
    for (auto& c : zone) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    for (const auto& row : grid_rows()) {
        if (zone != row.zone) continue;
        grid.zone = row.zone;
        grid.g_per_kwh = row.g_per_kwh;
        grid.year = row.year;
        grid.basis = kGridBasis;
        return grid;
    }
    throw_unknown("grid", "zone", zone, grid_zones());
}

Json Grid::to_json(double pue) const {
    return {{"grid", zone},   {"grid_g_per_kwh", g_per_kwh}, {"year", year ? Json(*year) : Json(nullptr)},
            {"basis", basis}, {"attribution", attribution},  {"pue", pue}};
}

Figure carbon_g(const Figure& energy_j, const Grid& grid, double pue) {
    const std::string method = "energy x PUE " + shortest(pue) + " x " + shortest(grid.g_per_kwh) + " g/kWh (" +
                               grid.zone + (grid.year ? " " + std::to_string(*grid.year) : "") + ")";
    const auto factor = Figure::assumed(pue * grid.g_per_kwh / kJoulesPerKwh, "g/J", method);
    return product(energy_j, factor, "g", method);
}

}  // namespace coppice::eval
