#include <coppice/eval.h>

#include <fstream>

#include "metrics/grid_table.h"
#include "support/support.h"

namespace coppice::eval {
namespace {

TEST(Grid, KnowsZonesInAnyCase) {
    const auto germany = grid_of("DE"), again = grid_of("de");
    EXPECT_EQ(germany.zone, "DE");
    EXPECT_EQ(again.g_per_kwh, germany.g_per_kwh);
    EXPECT_GE(*germany.year, 2023);
    EXPECT_THAT(germany.basis, ::testing::HasSubstr("life-cycle"));
}

TEST(Grid, DefaultsToTheWorld) {
    EXPECT_EQ(grid_of(MeasureOptions().grid).zone, "WORLD");
    EXPECT_NEAR(grid_of("WORLD").g_per_kwh, 458.29, 1e-9);
}

TEST(Grid, TakesANumber) {
    const auto grid = grid_of("120.5");
    EXPECT_EQ(grid.zone, "custom");
    EXPECT_EQ(grid.g_per_kwh, 120.5);
    EXPECT_FALSE(grid.year);
    EXPECT_EQ(grid.basis, "given by the user");
}

TEST(Grid, RefusesAnUnknownZoneWithTheNearest) {
    EXPECT_ERROR(grid_of("WORD"), InvalidArgument, "Did you mean \"WORLD\"?");
    EXPECT_ERROR(grid_of("Atlantis"), InvalidArgument, "unknown zone \"ATLANTIS\"");
    EXPECT_ERROR(grid_of("-3"), InvalidArgument, "must not be negative");
}

TEST(Grid, AlwaysCarriesTheAttribution) {
    const auto json = grid_of("FR").to_json(1.2);
    EXPECT_EQ(json["attribution"], "Ember (2026), with major processing by Our World in Data, CC BY 4.0");
    EXPECT_EQ(json["grid"], "FR");
    EXPECT_EQ(json["pue"], 1.2);
    for (const char* key : {"grid_g_per_kwh", "year", "basis"}) EXPECT_TRUE(json.contains(key)) << key;
}

TEST(Grid, TableIsSortedAndPlausible) {
    const auto& rows = grid_rows();
    ASSERT_EQ(rows.size(), 214);
    for (size_t i = 0; i < rows.size(); ++i) {
        if (i > 0) EXPECT_LT(std::string(rows[i - 1].zone), rows[i].zone);
        EXPECT_GE(rows[i].g_per_kwh, 0) << rows[i].zone;
        EXPECT_LT(rows[i].g_per_kwh, 1500) << rows[i].zone;
        EXPECT_GE(rows[i].year, 2005) << rows[i].zone;  // two zones ended their reports years ago
    }
}

TEST(Grid, TableIsTheOneOfTheSource) {
    SKIP_WITHOUT_DATA("facts/grid-intensity.csv");
    std::ifstream file(testing::data_path("facts/grid-intensity.csv"));
    std::string line;
    std::getline(file, line);
    size_t count = 0;
    for (; std::getline(file, line); ++count) {
        const auto first = line.find(','), second = line.find(',', first + 1);
        const auto grid = grid_of(line.substr(0, first));
        EXPECT_DOUBLE_EQ(grid.g_per_kwh, std::stod(line.substr(first + 1, second - first - 1))) << line;
        EXPECT_EQ(*grid.year, std::stoi(line.substr(second + 1))) << line;
    }
    EXPECT_EQ(count, grid_rows().size());
}

TEST(Carbon, IsEnergyTimesPueTimesGridFactor) {
    // 1 kWh at 120 g/kWh with a PUE of 1.5 is 180 g.
    const auto carbon = carbon_g(Figure::measured(3.6e6, "J", "counter", Interval{3.2e6, 4e6}), grid_of("120"), 1.5);
    EXPECT_NEAR(*carbon.value, 180, 1e-9);
    EXPECT_NEAR(carbon.interval->low, 160, 1e-9);
    EXPECT_NEAR(carbon.interval->high, 200, 1e-9);
    EXPECT_EQ(carbon.unit, "g");
    EXPECT_EQ(carbon.provenance, Provenance::kAssumed) << "the grid factor is";
    EXPECT_FALSE(carbon_g(Figure::unavailable("J", "no counter"), grid_of("DE")).available());
}

}  // namespace
}  // namespace coppice::eval
