#include <coppice/quantize.h>

#include <cmath>
#include <limits>
#include <random>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "reference/observers.h"
#include "support/support.h"

namespace coppice::quantize {
namespace {

using coppice::testing::sine;

/// Mean squared error of rounding `values` by the parameters of `range`, in plain loops.
double squared_error(const std::vector<float>& values, Range range) {
    const double low = std::min(range.low, 0.0), high = std::max(range.high, 0.0), scale = (high - low) / 255;
    const double zero_point = std::nearbyint(-low / scale);
    double sum = 0;
    for (const double x : values) {
        const double q = std::min(std::max(std::nearbyint(x / scale) + zero_point, 0.0), 255.0);
        const double back = (q - zero_point) * scale;
        sum += (x - back) * (x - back);
    }
    return sum / static_cast<double>(values.size());
}

/// Two-sided bell with a few values far out, as activations before a ReLU have.
std::vector<float> bell_with_outliers(size_t count, double outlier) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal(0.3f, 1.0f);
    std::vector<float> values(count);
    for (auto& value : values) value = normal(random);
    for (size_t i = 0; i < count; i += 5000) values[i] = static_cast<float>(outlier);
    return values;
}

at::Tensor tensor_of(const std::vector<float>& values) {
    return at::tensor(values);
}

TEST(MinMax, IsTheSmallestAndLargestOverAllBatches) {
    const auto observer = minmax();
    double low = 1e9, high = -1e9;
    for (int batch = 0; batch < 3; ++batch) {
        const auto values = sine({5, 7}, batch + 1.0);
        observer->observe(values);
        for (int64_t i = 0; i < 5; ++i)
            for (int64_t k = 0; k < 7; ++k) {
                low = std::min(low, values[i][k].item<double>());
                high = std::max(high, values[i][k].item<double>());
            }
    }
    EXPECT_EQ(observer->range(256).low, low);
    EXPECT_EQ(observer->range(256).high, high);
}

TEST(MovingAverage, FollowsTheRecurrenceFromTheFirstBatch) {
    const auto observer = moving_average(0.25);
    observer->observe(at::tensor({-1.0f, 2.0f}));
    observer->observe(at::tensor({-3.0f, 6.0f}));
    observer->observe(at::tensor({0.0f, 1.0f}));
    // low: -1, then -1 + 0.25 * (-3 + 1) = -1.5, then -1.5 + 0.25 * 1.5; high: 2, 3, 2.5
    EXPECT_DOUBLE_EQ(observer->range(256).low, -1.125);
    EXPECT_DOUBLE_EQ(observer->range(256).high, 2.5);
}

TEST(MovingAverage, RejectsAMomentumThatIsNoShare) {
    EXPECT_ERROR(moving_average(0), InvalidArgument, "must be in (0, 1]");
    EXPECT_ERROR(moving_average(1.5), InvalidArgument, "must be in (0, 1]");
}

TEST(Histogram, HasLessErrorThanMinMaxAndAlmostTheLeastPossible) {
    const auto values = bell_with_outliers(20000, 30);
    const auto observer = histogram();
    observer->observe(tensor_of(values));
    const auto found = observer->range(256);
    const double error = squared_error(values, found);
    double least = std::numeric_limits<double>::infinity();
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    for (int i = 1; i <= 100; ++i)  // brute force over both ends
        for (int k = 1; k <= 100; k += 3)
            least = std::min(least, squared_error(values, {*low * k / 100.0, *high * i / 100.0}));
    EXPECT_LT(error, squared_error(values, {*low, *high}));
    // 10 %: bins of up to 1/1024 of the range and ends on a grid of 1/128.
    EXPECT_LT(error, 1.1 * least) << found.low << " " << found.high;
}

TEST(Histogram, ClipsAnOutlierWhoseErrorIsSmallerThanWhatItCosts) {
    constexpr double kCount = 200000, kOutlier = 400;
    auto values = bell_with_outliers(static_cast<size_t>(kCount), 0);
    values[17] = kOutlier;  // alone
    const auto observer = histogram();
    observer->observe(tensor_of(values));
    // An end at c costs c^2 / (12 * 255^2) for each value and (400 - c)^2 for the one outside: least at this c.
    const double best = kOutlier / (1 + kCount / (12 * 255.0 * 255.0));
    EXPECT_NEAR(observer->range(256).high, best, 0.03 * kOutlier);  // steps of 1/128 and bins of up to 1/1024 of 400
    EXPECT_LT(squared_error(values, observer->range(256)), 0.9 * squared_error(values, {-5, kOutlier}));
}

TEST(Histogram, GrowsWithBatchesOfAnyScaleWithoutForgetting) {
    std::vector<float> all;
    const auto stream = histogram();
    for (const double scale : {0.001, 1.0, -40.0, 3.0}) {
        const auto values = (sine({4000}) + 0.2) * scale;
        stream->observe(values);
        all.insert(all.end(), values.data_ptr<float>(), values.data_ptr<float>() + values.numel());
    }
    const auto once = histogram();
    once->observe(tensor_of(all));
    // The stream's bins are at most twice as wide as those of one batch.
    EXPECT_NEAR(squared_error(all, stream->range(256)), squared_error(all, once->range(256)),
                0.02 * squared_error(all, once->range(256)));
}

TEST(Histogram, CoversAConstantAndZeros) {
    const auto constant = histogram();
    constant->observe(at::full({64}, 2.5));
    EXPECT_LE(squared_error({2.5f}, constant->range(256)), 1e-6);  // 2.5 is an end of the range: float32 noise only
    const auto zeros = histogram();
    zeros->observe(at::zeros({64}));
    EXPECT_EQ(affine(zeros->range(256)).zero_point, 0);
    const auto negative = histogram();
    negative->observe(at::full({8}, -3.0));
    EXPECT_LE(squared_error({-3.0f}, negative->range(256)), 1e-6);
}

TEST(Histogram, RejectsTooFewBins) {
    EXPECT_ERROR(histogram(16), InvalidArgument, "at least 128");
}

TEST(Percentile, LeavesTheShareOutsideAndNeverCutsZero) {
    const auto values = bell_with_outliers(100000, 40);
    for (const double share : {0.0, 0.001, 0.02}) {
        const auto observer = percentile(share);
        observer->observe(tensor_of(values));
        const auto range = observer->range(256);
        double outside = 0;
        for (const double x : values) outside += x < range.low || x > range.high;
        EXPECT_LE(outside, share * 100000) << share;
        // What a bin at either end holds may stay inside: a bin is at most 44 / 1024 wide, the bell has 0.0018 of its
        // values in a width of 1 at the end of share 0.001 and 0.027 at that of 0.02.
        EXPECT_GE(outside, (share - 2 * (44.0 / 1024) * (share < 0.01 ? 0.0018 : 0.027) * 1.3) * 100000) << share;
        if (share > 0) EXPECT_LT(range.high, 5);
    }
    const auto rectified = percentile(0.01);
    rectified->observe(tensor_of(values).relu());
    EXPECT_EQ(rectified->range(256).low, 0);
    EXPECT_ERROR(percentile(0.5), InvalidArgument, "share");
}

TEST(Entropy, ClipsALongTailAndKeepsAUniformRange) {
    const auto tail = entropy();
    tail->observe(tensor_of(bell_with_outliers(100000, 60)));
    EXPECT_LT(tail->range(256).high, 20);
    EXPECT_GT(tail->range(256).high, 2);
    const auto flat = entropy();
    flat->observe(at::linspace(0, 4, 100001));
    EXPECT_GT(flat->range(256).high, 3.9);
    EXPECT_ERROR(entropy(100), InvalidArgument, "bins");
}

TEST(Entropy, FindsTheEndWithTheLeastDivergenceOfAllCandidatesInPlainLoops) {
    // Behind a ReLU only the upper end moves: 127 candidates, all of which the reference tries.
    auto values = bell_with_outliers(20000, 12);
    for (auto& value : values) value = std::max(value, 0.0f);
    const auto observer = entropy(512);
    observer->observe(tensor_of(values));
    const auto histogram = reference::histogram_of(values, 512);
    const double largest = *std::max_element(values.begin(), values.end());
    double best = largest, least = reference::divergence(histogram, 0, largest);
    for (int step = 1; step < 128; ++step) {
        const double value = reference::divergence(histogram, 0, largest * step / 128);
        if (value < least) {
            least = value;
            best = largest * step / 128;
        }
    }
    EXPECT_LT(best, 0.7 * largest);  // something was to be clipped
    EXPECT_DOUBLE_EQ(observer->range(256).high, best);
    EXPECT_EQ(observer->range(256).low, 0);
}

TEST(Entropy, IsNearTheLeastDivergenceOverBothEnds) {
    const auto values = bell_with_outliers(20000, 12);
    const auto observer = entropy(512);
    observer->observe(tensor_of(values));
    const auto found = observer->range(256);
    const auto histogram = reference::histogram_of(values, 512);
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    double least = std::numeric_limits<double>::infinity();
    for (int i = 8; i <= 128; i += 8)
        for (int k = 4; k <= 128; k += 4)
            least = std::min(least, reference::divergence(histogram, *low * i / 128.0, *high * k / 128.0));
    // One end after the other, on a grid four times as fine as the reference's: no worse but for a local optimum.
    EXPECT_LT(reference::divergence(histogram, found.low, found.high), 1.1 * least);
}

TEST(Observers, OfEveryRowTakeAnyRealTypeAndRefuseOthersByName) {
    const auto values = (sine({64}, 20.0)).round();
    for (const auto& row : observers()) {
        SCOPED_TRACE(row.name);
        const auto range_of = [&](const at::Tensor& seen) {
            Options options("test");
            const auto observer = row.make(options)->fresh();
            observer->observe(seen);
            return observer->range(256);
        };
        const auto expected = range_of(values);
        for (const auto type : {at::kDouble, at::kHalf, at::kBFloat16, at::kInt, at::kLong, at::kChar}) {
            const auto range = range_of(values.to(type));
            EXPECT_EQ(range.low, expected.low) << type;
            EXPECT_EQ(range.high, expected.high) << type;
        }
        EXPECT_ERROR(range_of(values.to(at::kComplexFloat)), UnsupportedModel, "ComplexFloat");
        EXPECT_ERROR(range_of(at::quantize_per_tensor(values, 1, 0, at::kQUInt8)), UnsupportedModel, "QUInt8");
    }
}

#if defined(__GLIBC__)
TEST(Observers, OfEveryRowKeepTheirSizeHoweverManyValuesTheySee) {
    const auto in_use = [] {
        const auto heap = mallinfo2();
        return static_cast<double>(heap.uordblks + heap.hblkhd);
    };
    const auto batch = sine({100000}, 3.0);
    for (const auto& row : observers()) {
        Options options("test");
        const auto observer = row.make(options)->fresh();
        observer->observe(batch);
        const double before = in_use();
        for (int i = 0; i < 30; ++i) observer->observe(batch * (1.0 + i));
        // 12 MB of values went by; 2048 bins of doubles are 16 kB.
        EXPECT_LT(in_use() - before, 200e3) << row.name;
        EXPECT_GT(observer->range(256).high, 3.0 * 10) << row.name;
    }
}
#endif

TEST(Observers, OfEveryRowIgnoreEmptyTensorsAndRejectNaN) {
    for (const auto& row : observers()) {
        Options options("test");
        const auto observer = row.make(options)->fresh();
        EXPECT_EQ(observer->range(256).high, 0) << row.name;
        observer->observe(at::empty({0}));
        EXPECT_EQ(observer->range(256).high, 0) << row.name;
        EXPECT_ERROR(observer->observe(at::full({3}, std::numeric_limits<float>::quiet_NaN())), UnsupportedModel,
                     "NaN");
        EXPECT_ERROR(observer->observe(at::full({3}, std::numeric_limits<float>::infinity())), UnsupportedModel,
                     "infinite");
    }
}

TEST(Observers, OfEveryRowGoOnFromTheStateOfAnother) {
    for (const auto& row : observers()) {
        SCOPED_TRACE(row.name);
        Options options("test");
        const auto made = row.make(options);
        const auto whole = made->fresh(), first = made->fresh(), second = made->fresh();
        second->observe(sine({10}, 9.0));  // is forgotten
        EXPECT_EQ(first->state().scalar_type(), at::kDouble);
        second->set_state(first->state());
        EXPECT_EQ(second->range(256).high, 0);
        for (const double size : {1.5, 4.0}) {
            whole->observe(sine({100}, size).relu());
            first->observe(sine({100}, size).relu());
        }
        second->set_state(first->state());
        whole->observe(sine({300}, 2.5));
        second->observe(sine({300}, 2.5));
        for (const int64_t levels : {16, 256}) {
            EXPECT_EQ(second->range(levels).low, whole->range(levels).low);
            EXPECT_EQ(second->range(levels).high, whole->range(levels).high);
        }
        EXPECT_TRUE(at::equal(second->state(), whole->state()));
        EXPECT_ERROR(second->set_state(at::zeros({2})), InvalidArgument, "a state of 2 numbers, must be");
    }
}

TEST(Observers, OfEveryRowStayWithinWhatWasSeenAndKeepTheirSettingsWhenFresh) {
    for (const auto& row : observers()) {
        Options options("test");
        const auto made = row.make(options);
        const auto observer = made->fresh();
        observer->observe(sine({100}, 2.0));
        EXPECT_GE(observer->range(256).low, -2.0) << row.name;
        EXPECT_LE(observer->range(256).high, 2.0) << row.name;
        EXPECT_GT(observer->range(256).high, 1.0) << row.name;
        EXPECT_EQ(made->range(256).high, 0) << row.name;  // fresh() did not share state
    }
}

}  // namespace
}  // namespace coppice::quantize
