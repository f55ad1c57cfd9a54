/// The grid table as it is shipped.
#pragma once

#include <vector>

namespace coppice::eval {

/// The licence asks for this line wherever the table is shown.
inline constexpr const char* kGridAttribution = "Ember (2026), with major processing by Our World in Data, CC BY 4.0";
inline constexpr const char* kGridBasis = "life-cycle emissions of generation, without imports, before grid losses";

struct GridRow {
    const char* zone;
    double g_per_kwh;
    int year;
};

/// 214 zones (ISO 3166 alpha-2, and WORLD), sorted by name.
const std::vector<GridRow>& grid_rows();

}  // namespace coppice::eval
