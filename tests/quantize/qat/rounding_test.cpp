// The loops that stand in for LibTorch's fake quantization in training.
#include "qat/rounding.h"

#include <cmath>

#include "support/support.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

/// Ties, both ends, far outside, minus zero, and what lies between; more than one row of one scale.
at::Tensor hard_values(double scale) {
    const auto halves = at::arange(-600, 600, at::kFloat) * 0.5 * scale;
    return at::cat({halves, at::tensor({-0.0f, 1e9f, -1e9f}), 40 * scale * at::arange(70000, at::kFloat).sin()});
}

TEST(RoundedValues, HaveTheBitsOfLibTorchsOperator) {
    for (const double scale : {0.25, 0.1, 0.0371}) {
        for (const int64_t zero : {0, 3, 200}) {
            QuantizerState state;
            state.lowest = zero == 0 ? -8 : 0;
            state.highest = zero == 0 ? 7 : 255;
            const auto values = hard_values(scale);
            const auto found =
                rounded_values(state, at::full({1}, scale, at::kFloat), at::full({1}, zero, at::kInt), values);
            EXPECT_TRUE(
                at::equal(found, at::fake_quantize_per_tensor_affine(values, scale, zero, state.lowest, state.highest)))
                << scale << " " << zero;
        }
    }
}

TEST(RoundedValues, AreLibTorchsPerChannelInAnyOrderInMemory) {
    const auto scale = at::tensor({0.2f, 0.07f, 1.0f}), values = sine({3, 3, 4, 5}, 2.0);
    for (const int64_t channel : {0, 1}) {
        QuantizerState state;
        state.lowest = -7;
        state.highest = 7;
        state.channel = channel;
        const auto zero = at::zeros({3}, at::kInt);
        const auto expected = at::fake_quantize_per_channel_affine(values, scale, zero, channel, -7, 7);
        for (const auto& given : {values, values.contiguous(at::MemoryFormat::ChannelsLast),
                                  values.transpose(2, 3).contiguous().transpose(2, 3)})
            EXPECT_TRUE(at::equal(rounded_values(state, scale, zero, given), expected)) << channel;
    }
}

TEST(RoundedValues, ANaNStaysSoThatTrainingStops) {
    QuantizerState state;
    const auto found =
        rounded_values(state, at::full({1}, 0.5f), at::zeros({1}, at::kInt), at::tensor({1.2f, std::nanf("")}));
    EXPECT_EQ(found[0].item<float>(), 1.0f);
    EXPECT_TRUE(found[1].isnan().item<bool>());
}

}  // namespace
}  // namespace coppice::quantize
