#include <coppice/quantize.h>

#include <cmath>

#include "support/support.h"

namespace coppice::quantize {
namespace {

using coppice::testing::sine;

TEST(QuantizeWeight, IsWithinHalfAStepOfEveryChannel) {
    const auto weight = sine({6, 3, 2, 2}) * at::tensor({1.0, 0.01, 100.0, 1e-6, 3.0, 0.5}).reshape({6, 1, 1, 1});
    const auto rounded = quantize_weight(weight.to(at::kFloat));
    const auto back = rounded.dequantize();
    for (int64_t channel = 0; channel < 6; ++channel) {
        double largest = 0;
        for (int64_t i = 0; i < 12; ++i)
            largest = std::max(largest, std::abs(weight[channel].reshape({-1})[i].item<double>()));
        const double scale = largest / 127;
        // 1e-5: scale and product are float32.
        EXPECT_NEAR(rounded.q_per_channel_scales()[channel].item<double>(), scale, 1e-5 * scale);
        for (int64_t i = 0; i < 12; ++i)
            EXPECT_LE(std::abs(back[channel].reshape({-1})[i].item<double>() -
                               weight[channel].reshape({-1})[i].item<double>()),
                      scale / 2 * (1 + 1e-5))
                << channel;
    }
    EXPECT_GE(rounded.int_repr().min().item<int64_t>(), -127);
}

TEST(QuantizeWeight, KeepsAChannelOfZeros) {
    auto weight = sine({3, 4});
    weight[1].zero_();
    const auto back = quantize_weight(weight).dequantize();
    EXPECT_TRUE(at::equal(back[1], at::zeros({4})));
    EXPECT_GT(back[0].abs().max().item<double>(), 0);
}

TEST(QuantizeWeight, HasOneScaleForAllWhenAsked) {
    const auto scales = quantize_weight(sine({3, 4}), false).q_per_channel_scales();
    EXPECT_EQ(scales[0].item<double>(), scales[1].item<double>());
    EXPECT_EQ(scales[0].item<double>(), scales[2].item<double>());
}

TEST(QuantizeWeight, RejectsNaN) {
    EXPECT_ERROR(quantize_weight(at::full({2, 2}, NAN)), UnsupportedModel, "NaN");
}

TEST(AffineParameters, CoverTheRangeAndHoldZeroExactly) {
    for (const Range range : {Range{-1, 3}, Range{0, 5}, Range{2, 5}, Range{-7, -2}, Range{-1e-3, 1e4}}) {
        const auto parameters = affine(range);
        const double low = -parameters.scale * static_cast<double>(parameters.zero_point);
        const double high = parameters.scale * static_cast<double>(255 - parameters.zero_point);
        EXPECT_GE(parameters.zero_point, 0);
        EXPECT_LE(parameters.zero_point, 255);
        // The zero point is rounded: each end moves by at most half a step.
        EXPECT_NEAR(low, std::min(range.low, 0.0), parameters.scale / 2 * 1.0001);
        EXPECT_NEAR(high, std::max(range.high, 0.0), parameters.scale / 2 * 1.0001);
    }
}

TEST(AffineParameters, UseTheLowHalfFor128Levels) {
    EXPECT_DOUBLE_EQ(affine({0, 127}, 128).scale, 1.0);
    EXPECT_EQ(affine({-127, 0}, 128).zero_point, 127);
}

TEST(AffineParameters, OfAnEmptyRangeAreFinite) {
    EXPECT_EQ(affine({0, 0}).scale, 1.0);
    EXPECT_EQ(affine({0, 1e-44}).scale, 1.0);  // below float32's normal numbers
}

TEST(FakeQuantize, IsWhatLibTorchsQuantizedTensorHolds) {
    const auto values = sine({1000}, 5.0);
    for (const Range range : {Range{-5, 5}, Range{-0.5, 3}, Range{0, 2}}) {
        const auto parameters = affine(range);
        const auto expected =
            at::quantize_per_tensor(values, parameters.scale, parameters.zero_point, at::kQUInt8).dequantize();
        EXPECT_LE(coppice::testing::max_difference(fake_quantize(values, parameters), expected), 1e-6);  // float32
    }
}

}  // namespace
}  // namespace coppice::quantize
