#include <coppice/eval.h>

#include <cmath>

#include "support/support.h"

namespace coppice::eval {
namespace {

TEST(Figure, SurvivesJson) {
    auto figure = Figure::modelled(0.25, "J", "CPU seconds x 8 W per core", Interval{0.2, 0.3}, Interval{0.5, 3});
    const auto again = Figure::from_json(figure.to_json());
    EXPECT_EQ(again.to_json().dump(), figure.to_json().dump());
    EXPECT_EQ(figure.to_json().dump(),
              R"({"value":0.25,"unit":"J","provenance":"modelled","method":"CPU seconds x 8 W per core",)"
              R"("interval":[0.2,0.3],"systematic_ratio":[0.5,3.0]})");
}

TEST(Figure, UnavailableIsNullWithAReasonNeverZero) {
    const auto json = Figure::unavailable("J", "no counter in this machine").to_json();
    EXPECT_TRUE(json["value"].is_null());
    EXPECT_EQ(json["provenance"], "unavailable");
    EXPECT_EQ(json["reason"], "no counter in this machine");
    EXPECT_TRUE(json["interval"].is_null());
}

TEST(Figure, WritesCountsAsCounts) {
    EXPECT_EQ(Figure::measured(269722, "1", "count").to_json()["value"].dump(), "269722");
    EXPECT_EQ(Figure::measured(2, "s", "clock").to_json()["value"].dump(), "2.0");
}

TEST(Figure, RefusesAValueWithoutASource) {
    EXPECT_ERROR(Figure::from_json(Json{{"value", 3}}), IoError, "no provenance");
    EXPECT_ERROR(Figure::from_json(Json{{"value", 3}, {"provenance", "unavailable"}}), IoError,
                 "cannot be unavailable");
    EXPECT_ERROR(Figure::from_json(Json{{"value", nullptr}, {"provenance", "measured"}}), IoError,
                 "cannot be measured");
    EXPECT_ERROR(Figure::from_json(Json{{"value", 3}, {"provenance", "guessed"}}), IoError, "\"guessed\"");
    EXPECT_ERROR(Figure::from_json(Json{{"value", 3}, {"provenance", "measured"}, {"interval", 3}}), IoError,
                 "interval");
}

TEST(Figure, NotFiniteIsUnavailable) {
    EXPECT_FALSE(Figure::derived(std::nan(""), "s", "clock").available());
    EXPECT_FALSE(Figure::derived(INFINITY, "s", "clock").available());
}

TEST(Figure, CarriesTheWeakestProvenance) {
    const auto measured = Figure::measured(2, "s", "clock"), modelled = Figure::modelled(3, "W", "model"),
               assumed = Figure::assumed(5, "g/J", "table"), missing = Figure::unavailable("J", "no counter");
    EXPECT_EQ(product(measured, measured, "s2", "").provenance, Provenance::kDerived);
    EXPECT_EQ(product(measured, modelled, "J", "").provenance, Provenance::kModelled);
    EXPECT_EQ(product(modelled, assumed, "g", "").provenance, Provenance::kAssumed);
    EXPECT_EQ(quotient(assumed, measured, "1", "").provenance, Provenance::kAssumed);
    EXPECT_EQ(sum(measured, Figure::assumed(1, "s", "user"), "").provenance, Provenance::kAssumed);
    EXPECT_EQ(product(measured, missing, "1", "").provenance, Provenance::kUnavailable);
    EXPECT_EQ(product(missing, measured, "1", "").reason, "no counter");
    EXPECT_DOUBLE_EQ(*product(measured, modelled, "J", "").value, 6);
    EXPECT_DOUBLE_EQ(*quotient(modelled, measured, "1", "").value, 1.5);
}

TEST(Figure, CombinesIndependentRelativeErrorsInQuadrature) {
    // Factors exp(+-0.3) and exp(+-0.4) around 2 and 5 make exp(+-0.5) around 10 and around 0.4.
    const auto a = Figure::measured(2, "s", "", Interval{2 * std::exp(-0.3), 2 * std::exp(0.3)});
    const auto b = Figure::measured(5, "s", "", Interval{5 * std::exp(-0.4), 5 * std::exp(0.4)});
    const auto ab = product(a, b, "s2", ""), ratio = quotient(a, b, "1", "");
    EXPECT_NEAR(ab.interval->low, 10 * std::exp(-0.5), 1e-12);
    EXPECT_NEAR(ab.interval->high, 10 * std::exp(0.5), 1e-12);
    EXPECT_NEAR(ratio.interval->low, 0.4 * std::exp(-0.5), 1e-12);
    EXPECT_NEAR(ratio.interval->high, 0.4 * std::exp(0.5), 1e-12);
    const auto total =
        sum(Figure::measured(10, "s", "", Interval{7, 13}), Figure::measured(20, "s", "", Interval{16, 24}), "");
    EXPECT_NEAR(total.interval->low, 25, 1e-12);  // 3-4-5
    EXPECT_NEAR(total.interval->high, 35, 1e-12);
}

TEST(Figure, DividesAsymmetricIntervalsTheRightWayRound) {
    const auto exact = Figure::measured(6, "s", ""), other = Figure::measured(2, "s", "", Interval{1, 3});
    const auto ratio = quotient(exact, other, "1", "");
    EXPECT_NEAR(ratio.interval->low, 2, 1e-12);
    EXPECT_NEAR(ratio.interval->high, 6, 1e-12);
}

TEST(Figure, MultipliesSystematicErrorsByTheirExtremes) {
    const auto energy = Figure::modelled(4, "J", "", std::nullopt, Interval{0.5, 3});
    EXPECT_EQ(product(energy, Figure::measured(2, "1", ""), "J", "").systematic_ratio->high, 3);
    EXPECT_EQ(quotient(energy, energy, "1", "").systematic_ratio->high, 6);
    EXPECT_FALSE(product(Figure::measured(1, "1", ""), Figure::measured(1, "1", ""), "1", "").systematic_ratio);
}

TEST(Figure, DoesNotDivideByZeroOrAddUnlikeUnits) {
    EXPECT_FALSE(quotient(Figure::measured(1, "J", ""), Figure::measured(0, "1", ""), "J", "").available());
    EXPECT_ERROR(sum(Figure::measured(1, "J", ""), Figure::measured(1, "s", ""), ""), InternalError, "adds J to s");
}

}  // namespace
}  // namespace coppice::eval
