#include <coppice/eval.h>

#include <cmath>
#include <fstream>
#include <random>

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

// 2026-01-01T00:00Z is 1767225600.
constexpr double kNewYear = 1767225600;

class GridFile : public ::testing::Test {
protected:
    std::string write(const std::string& text) {
        std::ofstream(folder / "grid.csv") << text;
        return (folder / "grid.csv").string();
    }
    testing::TemporaryFolder folder;
};

TEST_F(GridFile, IsAveragedOverTheTimeInWhichEnergyWasSpent) {
    // An hour at 100, an hour at 300, an hour at 200 g/kWh, in three ways to write the time.
    const auto grid =
        grid_of(write("time,g_per_kwh,source\n2026-01-01T00:00:00Z,100,a\n2026-01-01 02:00:00+01:00,300,b\n" +
                      std::to_string(static_cast<int64_t>(kNewYear) + 7200) + ",200,c\n"));
    ASSERT_EQ(grid.series.size(), 3);
    EXPECT_NEAR(grid.g_per_kwh, 200, 1e-9);
    EXPECT_EQ(grid.zone, "grid.csv");
    EXPECT_NEAR(grid.during(kNewYear + 1800, kNewYear + 5400), 200, 1e-9);
    EXPECT_NEAR(grid.during(kNewYear + 3600, kNewYear + 3700), 300, 1e-9);
    EXPECT_NEAR(grid.during(kNewYear + 2700, kNewYear + 6300), (100 * 900 + 300 * 2700) / 3600.0, 1e-9);
    const auto energy = Figure::measured(3.6e6, "J", "counter");
    EXPECT_NEAR(*carbon_g(energy, grid, 1.5, kNewYear + 3600, kNewYear + 7200).value, 450, 1e-9);
    // Without a time: the mean, and how far it may be off.
    const auto mean = carbon_g(energy, grid, 1);
    EXPECT_NEAR(*mean.value, 200, 1e-9);
    EXPECT_NEAR(mean.systematic_ratio->low, 0.5, 1e-9);
    EXPECT_NEAR(mean.systematic_ratio->high, 1.5, 1e-9);
    EXPECT_THAT(carbon_g(energy, grid, 1, kNewYear - 10, kNewYear + 10).reason, ::testing::HasSubstr("asked for is"));
    EXPECT_THAT(carbon_g(energy, grid, 1, kNewYear, kNewYear + 20000).reason, ::testing::HasSubstr("reaches from"));
    EXPECT_TRUE(grid.to_json(1).contains("series"));
}

TEST_F(GridFile, RefusesWhatIsNoSeriesWithItsLine) {
    EXPECT_ERROR(grid_of("/no/such.csv"), IoError, "cannot be opened");
    EXPECT_ERROR(grid_of(write("date,g\n")), InvalidArgument, "no columns time and g_per_kwh");
    EXPECT_ERROR(grid_of(write("time,g_per_kwh\n")), InvalidArgument, "holds no row");
    EXPECT_ERROR(grid_of(write("time,g_per_kwh\n5,1\n4,1\n")), InvalidArgument, "line 3: times must ascend");
    EXPECT_ERROR(grid_of(write("time,g_per_kwh\n5,-1\n")), InvalidArgument, "line 2: \"-1\" is no number");
    EXPECT_ERROR(grid_of(write("time,g_per_kwh\nnoon,1\n")), InvalidArgument, "\"noon\" is no time");
}

TEST(RegionSweep, IsTheSameEnergyInEveryZoneLeastFirst) {
    const auto rows = region_sweep(Figure::measured(3.6e6, "J", "counter"), 1.2);
    ASSERT_EQ(rows.size(), grid_zones().size());
    for (size_t i = 0; i < rows.size(); ++i) {
        EXPECT_NEAR(*rows[i].second.value, 1.2 * rows[i].first.g_per_kwh, 1e-9);
        if (i > 0) EXPECT_LE(rows[i - 1].first.g_per_kwh, rows[i].first.g_per_kwh);
    }
}

TEST(Sci, IsOperationalPlusEmbodiedPerUnit) {
    // 1 kWh at 120 g x PUE 1.5 = 180 g; a machine of 1,000 kg over four years, a tenth of it for an hour; 50 units.
    const double year = 365.25 * 24 * 3600;
    const auto embodied = embodied_share_g(1e6, 3600, 4 * year, 0.1);
    EXPECT_NEAR(*embodied.value, 1e6 * 3600 / (4 * year) * 0.1, 1e-9);
    EXPECT_EQ(embodied.provenance, Provenance::kAssumed);
    const auto energy = Figure::measured(3.6e6, "J", "counter");
    EXPECT_NEAR(*sci_g(energy, grid_of("120"), 1.5, embodied, 50, "requests").value, (180 + *embodied.value) / 50,
                1e-9);
    const auto without = sci_g(energy, grid_of("120"), 1.5, Figure::unavailable("g", "no"), 50, "requests");
    EXPECT_NEAR(*without.value, 3.6, 1e-9);
    EXPECT_THAT(without.method, ::testing::HasSubstr("M not declared"));
    EXPECT_ERROR(embodied_share_g(1, 1, 0), InvalidArgument, "lifetime");
    EXPECT_ERROR(sci_g(energy, grid_of("120"), 1, embodied, 0, "requests"), InvalidArgument, "above 0");
}

TEST(GreenAlgorithms, GivesThePublishedFootprintOfBert) {
    // Lannelongue et al., Advanced Science 2021, on BERT: 64 Tesla V100 (300 W each) used to 62.7 % for 79 hours,
    // PUE 1.67, the world's 475 g/kWh: 754,407 g.
    GreenAlgorithms bert;
    bert.hours = 79;
    bert.gpus = 64;
    bert.watts_per_gpu = 300;
    bert.gpu_usage = 0.627;
    EXPECT_NEAR(*bert.carbon_g().value, 754407, 1);
    EXPECT_EQ(bert.carbon_g().provenance, Provenance::kAssumed);
}

TEST(GreenAlgorithms, AddsCoresAndMemoryByHand) {
    GreenAlgorithms job;
    job.hours = 12;
    job.cores = 12;
    job.watts_per_core = 7.5;
    job.memory_gb = 64;
    job.psf = 2;
    EXPECT_NEAR(*job.energy_j().value, 12 * (90 + 64 * 0.3725) * 1.67 * 2 * 3600, 1e-3);
    job.core_usage = 1.5;
    EXPECT_ERROR(job.energy_j(), InvalidArgument, "core_usage is 1.5, must be in [0, 1]");
    job.core_usage = 1;
    job.pue = 0.9;
    EXPECT_ERROR(job.carbon_g(), InvalidArgument, "pue is 0.9");
}

TEST(Payback, IsSpentOverSavedWithItsInterval) {
    const auto spent = Figure::measured(1000, "J", "m", Interval{900, 1100});
    const auto baseline = Figure::measured(5, "J", "m", Interval{4.7, 5.3});
    const auto candidate = Figure::measured(3, "J", "m", Interval{2.6, 3.4});
    const auto inferences = payback(spent, baseline, candidate);
    EXPECT_NEAR(*inferences.value, 500, 1e-9);
    EXPECT_NEAR(inferences.interval->low, 900 / 2.5, 1e-9);  // the saving is 2 +- hypot(0.3, 0.4)
    EXPECT_NEAR(inferences.interval->high, std::ceil(1100 / 1.5), 1e-9);
    EXPECT_EQ(inferences.provenance, Provenance::kDerived);
    EXPECT_NEAR(*payback_days(inferences, 100).value, 5, 1e-9);
    EXPECT_NEAR(payback_days(inferences, 100).interval->low, 3.6, 1e-9);
    EXPECT_ERROR(payback_days(inferences, 0), InvalidArgument, "above 0");
    EXPECT_THAT(payback(spent, candidate, baseline).reason, ::testing::HasSubstr("no less than"));
    const auto unsure = payback(spent, baseline, Figure::measured(4.9, "J", "m", Interval{4.5, 5.3}));
    EXPECT_TRUE(unsure.available());
    EXPECT_FALSE(unsure.interval);
    EXPECT_THAT(unsure.method, ::testing::HasSubstr("may never be earned back"));
    EXPECT_FALSE(payback(Figure::unavailable("J", "none"), baseline, candidate).available());
}

TEST(Payback, TakesThePairedRatioBeforeTwoFiguresOfDifferentTimes) {
    const auto spent = Figure::measured(1000, "J", "m");
    const auto baseline = Figure::measured(5, "J", "m", Interval{4, 6});
    const auto candidate = Figure::measured(4.8, "J", "m", Interval{4.7, 4.9});  // taken while the machine was busy
    const auto ratio = Figure::derived(0.6, "ratio", "m", Interval{0.54, 0.66});
    const auto inferences = payback(spent, baseline, candidate, ratio);
    EXPECT_EQ(*inferences.value, 500);  // a saving of 5 x 0.4
    // Half widths 1 x 0.4 and 5 x 0.06: 0.5 together.
    EXPECT_EQ(inferences.interval->low, 400);
    EXPECT_EQ(inferences.interval->high, std::ceil(1000 / 1.5));
    EXPECT_THAT(inferences.method, ::testing::HasSubstr("paired ratio"));
    EXPECT_EQ(*payback(spent, baseline, candidate, Figure::unavailable("ratio", "none")).value, 5000);
    EXPECT_FALSE(payback(spent, Figure::measured(5, "J", "m"), candidate, ratio).interval);
    EXPECT_FALSE(payback(spent, baseline, candidate, Figure::derived(1.1, "ratio", "m")).available());
    EXPECT_EQ(
        *payback(Figure::measured(1, "J", "m"), Figure::measured(3, "J", "m"), Figure::measured(0, "J", "m")).value,
        1);  // a third of an inference is one
}

// The interval of the saving against drawing its two terms 20,000 times.
TEST(Payback, ItsIntervalIsThatOfIndependentTerms) {
    std::mt19937_64 engine(7);
    std::normal_distribution<double> baseline(5, 0.15), candidate(3, 0.2);
    std::vector<double> inferences;
    for (int i = 0; i < 20000; ++i) inferences.push_back(1000 / (baseline(engine) - candidate(engine)));
    const auto figure = payback(Figure::measured(1000, "J", "m"),
                                Figure::measured(5, "J", "m", Interval{5 - 1.96 * 0.15, 5 + 1.96 * 0.15}),
                                Figure::measured(3, "J", "m", Interval{3 - 1.96 * 0.2, 3 + 1.96 * 0.2}));
    // 1 %: the quantiles of 20,000 draws scatter by half of that.
    EXPECT_NEAR(figure.interval->low, quantile(inferences, 0.025), 0.01 * figure.interval->low);
    EXPECT_NEAR(figure.interval->high, quantile(inferences, 0.975), 0.01 * figure.interval->high);
}

TEST(Cost, IsEnergyAndCarbonAtTheirPrices) {
    const auto energy = Figure::measured(3.6e6, "J", "counter"), carbon = Figure::assumed(5e5, "g", "grid");
    EXPECT_NEAR(*cost(energy, 1.5, 0.30, carbon, 80, "EUR").value, 0.45 + 40, 1e-9);
    EXPECT_NEAR(*cost(energy, 1, 0.30, Figure::unavailable("g", "no"), 0, "EUR").value, 0.30, 1e-9);
    EXPECT_EQ(cost(energy, 1, 0.3, carbon, 80, "EUR").unit, "EUR");
    EXPECT_ERROR(cost(energy, 1, -1, carbon, 0, "EUR"), InvalidArgument, "price of a kWh");
}

}  // namespace
}  // namespace coppice::eval
