// Pareto front, hypervolume and knee against plain definitions on random points.
#include <cmath>
#include <random>

#include <coppice/report.h>

#include "support/support.h"

namespace coppice::eval {
namespace {

// Coordinates from a small grid, so that ties and equal points are common.
std::vector<ParetoPoint> random_points(std::mt19937& random, size_t count, size_t axes, bool uncertain) {
    std::vector<ParetoPoint> points(count);
    for (auto& point : points)
        for (size_t a = 0; a < axes; ++a) {
            const double value = static_cast<double>(random() % 8);
            const double below = uncertain ? static_cast<double>(random() % 3) : 0,
                         above = uncertain ? static_cast<double>(random() % 3) : 0;
            point.push_back(Uncertain(value, value - below, value + above));
        }
    return points;
}

bool as_good_everywhere(const ParetoPoint& a, const ParetoPoint& b) {
    for (size_t i = 0; i < a.size(); ++i)
        if (a[i].value > b[i].value) return false;
    return true;
}

TEST(Pareto, ExactPointsAreOnTheFrontOrDominatedAsByDefinition) {
    std::mt19937 random(1);
    for (int round = 0; round < 300; ++round) {
        const auto points = random_points(random, 1 + random() % 12, 1 + random() % 4, false);
        const auto status = pareto_status(points);
        for (size_t b = 0; b < points.size(); ++b) {
            bool beaten = false;
            for (const auto& a : points)
                beaten |= as_good_everywhere(a, points[b]) && !as_good_everywhere(points[b], a);
            EXPECT_EQ(status[b], beaten ? ParetoStatus::kDominated : ParetoStatus::kFront)
                << "round " << round << ", point " << b;
        }
    }
}

TEST(Pareto, APointIsDominatedOnlyWhenEveryCornerOfTheIntervalsAgrees) {
    std::mt19937 random(2);
    for (int round = 0; round < 300; ++round) {
        const auto points = random_points(random, 2 + random() % 8, 2, true);
        const auto status = pareto_status(points);
        for (size_t b = 0; b < points.size(); ++b) {
            bool surely = false, in_value = false;
            for (const auto& a : points) {
                // Whatever the true values within the intervals, a is as good as b on both axes; and surely better on
                // one.
                bool always = true, strictly = false;
                for (int axis = 0; axis < 2; ++axis) {
                    bool axis_better = true;
                    for (const double true_a : {a[axis].low, a[axis].high})
                        for (const double true_b : {points[b][axis].low, points[b][axis].high}) {
                            always = always && true_a <= true_b;
                            axis_better = axis_better && true_a < true_b;
                        }
                    strictly = strictly || axis_better;
                }
                surely |= always && strictly;
                in_value |= as_good_everywhere(a, points[b]) && !as_good_everywhere(points[b], a);
            }
            const auto expected = surely     ? ParetoStatus::kDominated
                                  : in_value ? ParetoStatus::kTied
                                             : ParetoStatus::kFront;
            EXPECT_EQ(status[b], expected) << "round " << round << ", point " << b;
        }
    }
}

TEST(Pareto, OverlappingIntervalsMakeATieAndSeparateOnesDominance) {
    const ParetoPoint small = {{1, 0.9, 1.1}, {5, 4, 6}};
    EXPECT_EQ(pareto_status({small, {{2, 1.9, 2.1}, {5.5, 5, 6}}})[1], ParetoStatus::kTied);
    EXPECT_EQ(pareto_status({small, {{2, 1.9, 2.1}, {8, 7, 9}}})[1], ParetoStatus::kDominated);
    EXPECT_EQ(pareto_status({small, {{2, 1.9, 2.1}, {4.5, 4, 5}}})[1], ParetoStatus::kFront);
}

TEST(Pareto, EqualPointsAreAllOnTheFront) {
    for (const auto status : pareto_status({{1, 2}, {1, 2}, {1, 2}})) EXPECT_EQ(status, ParetoStatus::kFront);
}

TEST(Pareto, RejectsNumbersThatCannotBeCompared) {
    EXPECT_ERROR(pareto_status({{1, 2}, {1}}), InvalidArgument, "axes");
    EXPECT_ERROR(pareto_status({{std::nan(""), 2}}), InvalidArgument, "Leave out");
    EXPECT_ERROR(pareto_status({{Uncertain(1, 2, 3), 2}}), InvalidArgument, "interval");
}

TEST(Hypervolume, CountsTheUnitCellsThatAPointDominates) {
    std::mt19937 random(3);
    for (int round = 0; round < 200; ++round) {
        const size_t axes = 1 + random() % 4;
        const std::vector<double> reference(axes, 6.0);  // beyond some points: those add nothing
        std::vector<std::vector<double>> points;
        for (const auto& point : random_points(random, random() % 8, axes, false)) {
            points.emplace_back();
            for (const auto& axis : point) points.back().push_back(axis.value);
        }
        size_t cells = 1, counted = 0;
        for (size_t a = 0; a < axes; ++a) cells *= 6;
        for (size_t cell = 0; cell < cells; ++cell) {
            bool inside = false;
            for (const auto& point : points) {
                bool below = true;
                size_t rest = cell;
                for (size_t a = 0; a < axes; ++a, rest /= 6) below = below && point[a] <= static_cast<double>(rest % 6);
                inside |= below;
            }
            counted += inside;
        }
        EXPECT_EQ(hypervolume(points, reference), static_cast<double>(counted))
            << "round " << round;  // integers: exact
    }
}

TEST(Hypervolume, OfTwoStepsIsTheSumOfTwoRectangles) {
    EXPECT_DOUBLE_EQ(hypervolume({{1, 3}, {2, 1}}, {4, 4}), 1 * 1 + 2 * 3);
    EXPECT_EQ(hypervolume({}, {1, 1}), 0);
}

TEST(Knee, IsTheFrontPointFarthestBelowTheLineBetweenTheEnds) {
    EXPECT_EQ(knee({{0, 10}, {1, 3}, {5, 2}, {10, 0}}), std::optional<size_t>(1));
    std::mt19937 random(4);
    std::uniform_real_distribution<double> uniform(0.01, 0.99);
    for (int round = 0; round < 100; ++round) {
        // Points of a convex curve in random order, ends (0, 7) and (3, 0).
        std::vector<std::pair<double, double>> front = {{0, 7}, {3, 0}};
        for (int i = 0; i < 6; ++i) {
            const double t = uniform(random);
            front.emplace_back(3 * t, 7 * (1 - t) * (1 - t));
        }
        std::shuffle(front.begin(), front.end(), random);
        size_t best = 0;
        double farthest = 0;
        for (size_t i = 0; i < front.size(); ++i) {
            // Distance of (x/3, y/7) from the line x + y = 1.
            const double distance = (1 - front[i].first / 3 - front[i].second / 7) / std::sqrt(2.0);
            if (distance > farthest) farthest = distance, best = i;
        }
        EXPECT_EQ(knee(front), std::optional<size_t>(best));
    }
}

TEST(Knee, IsNoneOnALineAndOnAFrontThatBulgesOutwards) {
    EXPECT_FALSE(knee({{0, 2}, {1, 1}, {2, 0}}));
    EXPECT_FALSE(knee({{0, 2}, {1.5, 1.5}, {2, 0}}));
    EXPECT_FALSE(knee({{0, 2}, {2, 0}}));
    EXPECT_FALSE(knee({}));
}

}  // namespace
}  // namespace coppice::eval
