// Every rounding against plain loops: least squares from scratch, all ways to round, errors by hand.
#include <ATen/CPUGeneratorImpl.h>
#include <coppice/quantize.h>

#include "reference/rounding.h"
#include "support/support.h"

namespace coppice::quantize {
namespace {

using coppice::testing::max_difference;
using coppice::testing::sine;

/// Correlated inputs of unequal size: 200 rows.
at::Tensor inputs(int64_t n) {
    const auto base = (at::arange(200 * n, at::kDouble) * 1.7).sin().reshape({200, n});
    const auto size = at::arange(1, n + 1, at::kDouble).sqrt();
    return (base + 0.8 * base.roll(1, 1)) * size + 0.3;
}

InputMoments moments_of(const at::Tensor& x) {
    InputMoments moments;
    moments.rows = x.size(0);
    moments.second = x.t().mm(x) / static_cast<double>(x.size(0));
    moments.mean = x.mean(0);
    moments.magnitude = x.abs().mean(0);
    return moments;
}

at::Tensor weights(int64_t rows, int64_t n) {
    return (at::arange(rows * n, at::kDouble) * 2.3).cos().mul(0.4).to(at::kFloat).reshape({rows, n});
}

double error_of(const at::Tensor& w, const RoundedWeight& rounded, const InputMoments& moments, int64_t row) {
    const auto m = reference::matrix_of(moments.second);
    return reference::quadratic_error(reference::matrix_of(w)[size_t(row)],
                                      reference::matrix_of(rounded.values())[size_t(row)], m);
}

GridOptions four_bits(int64_t group = 0, bool symmetric = true) {
    GridOptions grid;
    grid.bits = 4;
    grid.group = group;
    grid.symmetric = symmetric;
    return grid;
}

TEST(Nearest, IsWithinHalfAStepOnEveryGrid) {
    const auto w = weights(6, 64);
    for (const int64_t bits : {2, 3, 4, 8})
        for (const int64_t group : {0, 16, 32})
            for (const bool symmetric : {true, false}) {
                GridOptions grid;
                grid.bits = bits;
                grid.group = group;
                grid.symmetric = symmetric;
                const auto rounded = nearest()->round(w, grid, nullptr);
                const auto error = (rounded.values() - w).abs().reshape({6, -1, rounded.group}).amax(2);
                EXPECT_TRUE((error <= rounded.scale * 0.5 * (1 + 1e-4)).all().item<bool>())  // float32
                    << bits << " " << group << " " << symmetric;
                EXPECT_GE(rounded.integers.min().item<int64_t>(), rounded.lowest);
                EXPECT_LE(rounded.integers.max().item<int64_t>(), rounded.highest);
            }
}

TEST(Nearest, KeepsARowOfZeros) {
    auto w = weights(3, 32);
    w[1].zero_();
    for (const bool symmetric : {true, false}) {
        const auto values = nearest()->round(w, four_bits(0, symmetric), nullptr).values();
        EXPECT_EQ(values[1].abs().max().item<double>(), 0) << symmetric;
    }
}

TEST(LeastErrorGrid, FindsTheScaleOfAFineSearchAndUsesTheLowestIntegerToo) {
    auto w = weights(4, 48);
    w[1][5] = 2.5;  // outliers that a scale over the whole range would follow
    w[2][7] = -2.5;
    for (const int64_t bits : {2, 3, 4, 8}) {
        GridOptions grid;
        grid.bits = bits;
        const auto covered = nearest()->round(w, grid, nullptr);
        grid.least_error = true;
        const auto fitted = nearest()->round(w, grid, nullptr);
        const double highest = static_cast<double>((int64_t{1} << (bits - 1)) - 1);
        EXPECT_GE(fitted.integers.min().item<double>(), -highest - 1);
        EXPECT_LE(fitted.integers.max().item<double>(), highest);
        const auto rows = reference::matrix_of(w), values = reference::matrix_of(fitted.values()),
                   wide = reference::matrix_of(covered.values());
        for (size_t r = 0; r < rows.size(); ++r) {
            const auto squares = [&](const std::vector<double>& rounded) {
                double sum = 0;
                for (size_t c = 0; c < rounded.size(); ++c) sum += std::pow(rounded[c] - rows[r][c], 2);
                return sum;
            };
            double largest = 0, least = 1e30;
            for (const double value : rows[r]) largest = std::max(largest, std::abs(value));
            for (int i = 0; i < 4000; ++i) {  // fifty times as fine
                const double scale = largest / highest * (1 - 0.8 * i / 4000);
                auto rounded = rows[r];
                for (auto& value : rounded)
                    value = scale * std::clamp(std::nearbyint(value / scale), -highest - 1, highest);
                least = std::min(least, squares(rounded));
            }
            // Its steps are 1 % of the range: for a few values that 8 bits nearly hit, that is much.
            if (bits < 8) EXPECT_LE(squares(values[r]), 1.1 * least) << bits << " " << r;
            EXPECT_LE(squares(values[r]), squares(wide[r]) * (1 + 1e-6)) << bits << " " << r;
        }
    }
}

TEST(LeastErrorGrid, GivesOneScaleForAllRowsAndOffsetsWhereAsked) {
    auto w = weights(4, 32);
    w[1][5] = 1.5;
    GridOptions grid;
    grid.bits = 3;
    grid.one_scale = grid.least_error = true;
    const auto same = nearest()->round(w, grid, nullptr);
    EXPECT_EQ(same.scale.max().item<double>(), same.scale.min().item<double>());
    grid.one_scale = grid.symmetric = false;
    const auto fitted = nearest()->round(w, grid, nullptr);
    grid.least_error = false;
    const auto covered = nearest()->round(w, grid, nullptr);
    EXPECT_LT((fitted.values() - w)[1].square().sum().item<double>(),
              (covered.values() - w)[1].square().sum().item<double>());
}

TEST(Gptq, RoundsAsLeastSquaresFromScratchDoes) {
    const auto w = weights(5, 12);
    const auto moments = moments_of(inputs(12));
    constexpr double kDamping = 0.01;
    const auto rounded = gptq(kDamping)->round(w, four_bits(), &moments);
    auto damped = moments.second.clone();
    damped.diagonal().add_(kDamping * moments.second.diagonal().mean());
    const auto m = reference::matrix_of(damped);
    const auto rows = reference::matrix_of(w), integers = reference::matrix_of(rounded.integers);
    for (size_t r = 0; r < rows.size(); ++r) {
        const auto scale = static_cast<double>(rounded.scale[static_cast<int64_t>(r)][0].item<float>());
        EXPECT_EQ(integers[r], reference::rounded_by_least_squares(rows[r], m, scale, -7, 7)) << r;
    }
}

TEST(Gptq, RoundsAsLeastSquaresFromScratchDoesOnGridsWithOffsetsAndGroups) {
    const auto w = weights(5, 12);
    const auto moments = moments_of(inputs(12));
    auto damped = moments.second.clone();
    damped.diagonal().add_(0.01 * moments.second.diagonal().mean());
    const auto m = reference::matrix_of(damped), rows = reference::matrix_of(w);
    for (const bool symmetric : {true, false})
        for (const int64_t group : {0, 4}) {
            SCOPED_TRACE((symmetric ? "symmetric " : "affine ") + std::to_string(group));
            const auto rounded = gptq(0.01)->round(w, four_bits(group, symmetric), &moments);
            for (size_t r = 0; r < rows.size(); ++r) {
                const auto expected = reference::rounded_in_groups_by_least_squares(
                    rows[r], m, static_cast<size_t>(group ? group : 12), symmetric ? 7 : 15, symmetric);
                const auto row = static_cast<int64_t>(r);
                EXPECT_EQ(reference::matrix_of(rounded.integers)[r], expected.integers) << r;
                for (size_t g = 0; g < expected.scale.size(); ++g) {
                    // The library has scales in float32.
                    EXPECT_NEAR(rounded.scale[row][int64_t(g)].item<double>(), expected.scale[g], 1e-6);
                    EXPECT_NEAR(rounded.offset[row][int64_t(g)].item<double>(), expected.offset[g], 1e-6);
                }
            }
        }
}

TEST(Gptq, SaysWhereMomentsOrTheirInverseCannotBeFactorised) {
    // Far fewer inputs than columns and next to no damping: the moments, or only their inverse, are singular in
    // float64.
    int refused = 0, rounded = 0;
    for (uint64_t seed = 0; seed < 60; ++seed) {
        const int64_t n = std::vector<int64_t>{8, 16, 40, 64}[seed % 4];
        const auto x = at::randn({n / 4, n}, at::make_generator<at::CPUGeneratorImpl>(seed), at::kDouble) * 1e4;
        const auto moments = moments_of(x);
        for (const double damping : {1e-2, 1e-15, 5e-16, 3e-16}) {
            try {
                const auto values = gptq(damping)->round(weights(2, n), four_bits(), &moments).values();
                EXPECT_TRUE(values.isfinite().all().item<bool>());
                ++rounded;
            } catch (const UnsupportedModel& error) {
                EXPECT_THAT(std::string(error.what()), ::testing::HasSubstr("Use a larger damping"));
                EXPECT_LT(damping, 1e-2);
                ++refused;
            }
        }
    }
    EXPECT_GT(refused, 0);
    EXPECT_GE(rounded, 60);
}

TEST(Gptq, HasLessOutputErrorThanNearestOverAllRows) {
    const auto w = weights(16, 64);
    const auto moments = moments_of(inputs(64));
    for (const int64_t group : {0, 16}) {
        double before = 0, after = 0;
        const auto plain = nearest()->round(w, four_bits(group), nullptr);
        const auto better = gptq()->round(w, four_bits(group), &moments);
        for (int64_t row = 0; row < 16; ++row) {
            before += error_of(w, plain, moments, row);
            after += error_of(w, better, moments, row);
        }
        EXPECT_LT(after, before) << group;
    }
}

TEST(AdaRound, IsNeverWorseThanNearestAndNearTheBestOfAllRoundings) {
    const auto w = weights(6, 8);
    const auto moments = moments_of(inputs(8));
    const auto plain = nearest()->round(w, four_bits(), nullptr);
    const auto learned = adaround(400)->round(w, four_bits(), &moments);
    const auto m = reference::matrix_of(moments.second), rows = reference::matrix_of(w);
    double sum = 0, least = 0, before = 0;
    for (int64_t row = 0; row < 6; ++row) {
        const double error = error_of(w, learned, moments, row);
        EXPECT_LE(error, error_of(w, plain, moments, row) * (1 + 1e-6)) << row;  // float32 values
        before += error_of(w, plain, moments, row);
        sum += error;
        least += reference::least_error_of_all_roundings(rows[size_t(row)], m,
                                                         static_cast<double>(plain.scale[row][0].item<float>()), -7, 7);
    }
    // Of the gap between nearest rounding and the best of 2^8 choices, most is closed.
    EXPECT_LT(sum - least, 0.5 * (before - least));
}

TEST(AdaRound, MovesNoWeightByMoreThanAStep) {
    const auto w = weights(6, 32);
    const auto moments = moments_of(inputs(32));
    const auto learned = adaround(100)->round(w, four_bits(), &moments);
    const auto error = (learned.values() - w).abs().amax(1);
    EXPECT_TRUE((error <= learned.scale.squeeze(1) * (1 + 1e-4)).all().item<bool>());
}

TEST(Hqq, HasLessMeanErrorThanNearestOnWeightsWithOutliers) {
    auto w = weights(8, 64);
    w.select(1, 3).mul_(6);
    const auto plain = nearest()->round(w, four_bits(32, false), nullptr);
    const auto better = hqq()->round(w, four_bits(32, false), nullptr);
    const auto error = [&](const RoundedWeight& rounded) { return (rounded.values() - w).abs().mean().item<double>(); };
    EXPECT_LT(error(better), error(plain));
    // Group by group, not on average alone.
    const auto per_group = [&](const RoundedWeight& rounded) {
        return (rounded.values() - w).abs().reshape({8, -1, 32}).mean(2);
    };
    EXPECT_TRUE((per_group(better) <= per_group(plain) + 1e-6).all().item<bool>());
}

TEST(Hqq, FindsTheOffsetsOfPlainLoops) {
    constexpr int64_t kGroup = 16;
    auto w = weights(6, 64);
    w.select(1, 3).mul_(6);
    w.select(1, 40).add_(2);
    for (const int steps : {1, 5, 20}) {
        const auto rounded = hqq(steps)->round(w, four_bits(kGroup, false), nullptr);
        std::vector<reference::Group> groups;
        for (const auto& row : reference::matrix_of(w))
            for (size_t g = 0; g < row.size(); g += kGroup)
                groups.push_back(reference::group_of({row.begin() + long(g), row.begin() + long(g + kGroup)}, 15));
        const auto plain = groups;
        reference::half_quadratic(groups, steps);
        const auto errors = (rounded.values() - w).abs().reshape({6, -1, kGroup}).mean(2);  // [rows, groups]
        int moved = 0, same = 0;
        for (size_t g = 0; g < groups.size(); ++g) {
            const auto row = static_cast<int64_t>(g) / 4, column = static_cast<int64_t>(g) % 4;
            // float32: a hundredth of a per mille of a step.
            EXPECT_NEAR(errors[row][column].item<double>(), groups[g].error(), 1e-5 * groups[g].scale) << g;
            moved += groups[g].offset != plain[g].offset;
            same += std::abs(rounded.offset[row][column].item<double>() - groups[g].offset) < 1e-4 * groups[g].scale;
        }
        EXPECT_GT(moved, 6) << steps;
        // Offsets of equal error, where as many weights lie above their level as below: either may be taken.
        EXPECT_GT(same, 12) << steps;
    }
}

TEST(Hqq, NeedsAnOffset) {
    EXPECT_ERROR(hqq()->round(weights(2, 8), four_bits(), nullptr), InvalidArgument, "symmetric: false");
}

TEST(Awq, GivesLargeInputsFinerStepsAndIsNeverWorseThanNearest) {
    const auto w = weights(16, 32);
    auto x = inputs(32);
    x.select(1, 5).mul_(50);  // one channel dominates
    const auto moments = moments_of(x);
    const auto plain = nearest()->round(w, four_bits(), nullptr);
    const auto better = awq()->round(w, four_bits(), &moments);
    double before = 0, after = 0;
    for (int64_t row = 0; row < 16; ++row) {
        before += error_of(w, plain, moments, row);
        after += error_of(w, better, moments, row);
    }
    EXPECT_LT(after, 0.8 * before);
    ASSERT_TRUE(better.input_factor.defined());
    EXPECT_EQ(better.input_factor.argmin().item<int64_t>(), 5);
}

TEST(Awq, TakesTheExponentThatPlainLoopsFindOnTheSameGrid) {
    for (const double outlier : {1.0, 8.0, 50.0}) {
        const auto w = weights(8, 24);
        auto x = inputs(24);
        x.select(1, 5).mul_(outlier);
        const auto moments = moments_of(x);
        const auto rounded = awq(12)->round(w, four_bits(), &moments);
        std::vector<double> magnitude;
        for (int64_t i = 0; i < 24; ++i) magnitude.push_back(moments.magnitude[i].item<double>());
        double least = 0;
        const double exponent = reference::best_exponent(reference::matrix_of(w), reference::matrix_of(moments.second),
                                                         magnitude, 12, 7, &least);
        const auto expected = (moments.magnitude / moments.magnitude.log().mean().exp()).pow(-exponent);
        ASSERT_EQ(rounded.input_factor.defined(), exponent > 0) << outlier;
        if (exponent > 0) EXPECT_LT(max_difference(rounded.input_factor, expected.to(at::kFloat)), 1e-4) << outlier;
        double error = 0;
        for (int64_t row = 0; row < 8; ++row) error += error_of(w, rounded, moments, row);
        EXPECT_NEAR(error, least, 1e-3 * least) << outlier;  // float32
    }
}

TEST(Roundings, OfEveryRowStayOnTheirGridAndRepeat) {
    const auto w = weights(4, 32);
    const auto moments = moments_of(inputs(32));
    for (const auto& row : roundings()) {
        SCOPED_TRACE(row.name);
        Options options(row.name);
        const auto rounding = row.make(options);
        const auto grid = four_bits(16, false);
        const auto* given = rounding->needs_moments() ? &moments : nullptr;
        const auto first = rounding->round(w, grid, given), second = rounding->round(w, grid, given);
        EXPECT_TRUE(at::equal(first.integers, second.integers));
        EXPECT_GE(first.integers.min().item<int64_t>(), 0);
        EXPECT_LE(first.integers.max().item<int64_t>(), 15);
        EXPECT_EQ(first.scale.sizes(), (std::vector<int64_t>{4, 2}));
        EXPECT_EQ(first.input_factor.defined() && !rounding->scales_inputs(), false);
        EXPECT_LT(max_difference(first.values(), w), 0.2);  // the widest step is 0.8 / 15
        if (rounding->needs_moments())
            EXPECT_ERROR(rounding->round(w, grid, nullptr), InvalidArgument, "second moments");
    }
}

TEST(Roundings, RejectGroupsThatDoNotDivideTheRowAndTooManyBits) {
    EXPECT_ERROR(nearest()->round(weights(2, 30), four_bits(16), nullptr), InvalidArgument, "groups of 16");
    GridOptions grid;
    grid.bits = 9;
    EXPECT_ERROR(nearest()->round(weights(2, 8), grid, nullptr), InvalidArgument, "bits is 9");
    EXPECT_ERROR(gptq(0), InvalidArgument, "damping");
    EXPECT_ERROR(adaround(0), InvalidArgument, "steps");
    EXPECT_ERROR(awq(1), InvalidArgument, "candidates");
}

}  // namespace
}  // namespace coppice::quantize
