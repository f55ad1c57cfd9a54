#include <coppice/quantize.h>

#include <cmath>

#include "support/support.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

Model two_convolutions() {
    auto first = sine({6, 3, 3, 3}, 0.3);
    // Channels of very unequal range, one of zeros.
    first = first * at::tensor({1.0f, 100.0f, 0.01f, 3.0f, 0.0f, 0.5f}).reshape({6, 1, 1, 1});
    return build_model({{"a.weight", first}, {"a.bias", sine({6}, 0.2)}, {"b.weight", sine({4, 6, 3, 3}, 0.2)}},
                       "def forward(self, x):\n"
                       "    y = torch.relu(torch.conv2d(x, self.a.weight, self.a.bias))\n"
                       "    return torch.conv2d(torch.max_pool2d(y, [2, 2]), self.b.weight)\n");
}

at::Tensor weight(const Model& model, const std::string& name) {
    return get_attribute(model, name).toTensor().detach();
}

TEST(Equalize, LeavesTheFloatFunctionUnchanged) {
    torch::NoGradGuard no_grad;
    const auto before = two_convolutions();
    auto after = before.clone();
    EXPECT_EQ(equalize(after, {}), 1);
    const auto x = sine({2, 3, 12, 12});
    const auto exact = before.forward({x}).toTensor();
    EXPECT_LE(max_difference(after.forward({x}).toTensor(), exact),
              1e-5 * exact.abs().max().item<double>());  // float32
    EXPECT_GT(max_difference(weight(before, "a.weight"), weight(after, "a.weight")), 0.1);
}

TEST(Equalize, GivesBothSidesOfAChannelTheGeometricMeanOfTheirRanges) {
    const auto before = two_convolutions();
    auto after = before.clone();
    equalize(after, {});
    for (int64_t channel = 0; channel < 6; ++channel) {
        const auto range = [&](const Model& model) {
            return std::make_pair(weight(model, "a.weight")[channel].abs().max().item<double>(),
                                  weight(model, "b.weight").select(1, channel).abs().max().item<double>());
        };
        const auto [r1, r2] = range(before);
        const auto [s1, s2] = range(after);
        if (r1 == 0) {
            EXPECT_EQ(s1, 0);
            EXPECT_DOUBLE_EQ(s2, r2);
            continue;
        }
        EXPECT_NEAR(s1, std::sqrt(r1 * r2), 1e-5 * s1) << channel;
        EXPECT_NEAR(s2, std::sqrt(r1 * r2), 1e-5 * s2) << channel;
    }
}

TEST(Equalize, TreatsDepthwiseChainsAndLinearLayers) {
    torch::NoGradGuard no_grad;
    const auto before =
        build_model({{"a.weight", sine({4, 3, 1, 1}) * at::tensor({1.f, 9.f, 0.1f, 30.f}).reshape({4, 1, 1, 1})},
                     {"d.weight", sine({4, 1, 3, 3}, 0.4)},
                     {"c.weight", sine({5, 4, 1, 1}, 0.7)},
                     {"f.weight", sine({6, 5}) * 4},
                     {"g.weight", sine({2, 6}, 0.1)}},
                    "def forward(self, x):\n"
                    "    y = torch.relu(torch.conv2d(x, self.a.weight))\n"
                    "    y = torch.relu(torch.conv2d(y, self.d.weight, None, [1, 1], [1, 1], [1, 1], 4))\n"
                    "    y = torch.mean(torch.conv2d(y, self.c.weight), [2, 3])\n"
                    "    return torch.linear(torch.relu(torch.linear(y, self.f.weight)), self.g.weight)\n");
    auto after = before.clone();
    EXPECT_EQ(equalize(after, {}), 3);  // a-d, d-c, f-g; the mean over pixels parts c and f
    const auto x = sine({2, 3, 6, 6});
    const auto exact = before.forward({x}).toTensor();
    EXPECT_LE(max_difference(after.forward({x}).toTensor(), exact), 1e-5 * exact.abs().max().item<double>());
}

TEST(Equalize, LeavesPairsThatSomethingElseReadsAndBoundedActivations) {
    auto shared = build_model({{"a.weight", sine({3, 3, 1, 1})}, {"b.weight", sine({3, 3, 1, 1}, 5)}},
                              "def forward(self, x):\n"
                              "    y = torch.conv2d(x, self.a.weight)\n"
                              "    return y + torch.conv2d(y, self.b.weight)\n");
    EXPECT_EQ(equalize(shared, {}), 0);
    auto clipped =
        build_model({{"a.weight", sine({3, 3, 1, 1})}, {"b.weight", sine({3, 3, 1, 1}, 5)}},
                    "def forward(self, x):\n"
                    "    return torch.conv2d(torch.hardtanh(torch.conv2d(x, self.a.weight), 0., 6.), self.b.weight)\n");
    EXPECT_EQ(equalize(clipped, {}), 0);
}

Model pre_norm_block() {
    return build_model(
        {{"n.weight", sine({8}, 0.5) + 1.5},
         {"n.bias", sine({8}, 0.3)},
         {"q.weight", sine({6, 8}, 0.3)},
         {"q.bias", sine({6}, 0.1)},
         {"k.weight", sine({5, 8}, 0.6)}},
        "def forward(self, x):\n"
        "    y = torch.layer_norm(x, [8], self.n.weight, self.n.bias)\n"
        "    return torch.cat([torch.linear(y, self.q.weight, self.q.bias), torch.linear(y, self.k.weight)], 1)\n");
}

TEST(Smooth, LeavesTheFloatFunctionUnchangedAndBalancesInputAndWeight) {
    torch::NoGradGuard no_grad;
    const auto before = pre_norm_block();
    auto after = before.clone();
    const auto x = sine({16, 8}) * at::tensor({1.f, 1.f, 40.f, 1.f, 1.f, 1.f, 1.f, 1.f});
    EXPECT_EQ(smooth(after, {x}, {{x}}, 0.5), 1);
    const auto exact = before.forward({x}).toTensor();
    EXPECT_LE(max_difference(after.forward({x}).toTensor(), exact),
              1e-5 * exact.abs().max().item<double>());  // float32
    // By hand: with alpha 1/2 both get the geometric mean of max |x_j| and max |w_j|.
    const auto y = at::layer_norm(x, {8}, weight(after, "n.weight"), weight(after, "n.bias"));
    const auto w = at::maximum(weight(after, "q.weight").abs().amax(0), weight(after, "k.weight").abs().amax(0));
    EXPECT_LE(max_difference(y.abs().amax(0), w), 1e-4);
}

TEST(Smooth, LeavesANormThatTheResidualReads) {
    auto model = build_model({{"n.weight", sine({4}) + 2}, {"n.bias", sine({4})}, {"q.weight", sine({4, 4})}},
                             "def forward(self, x):\n"
                             "    y = torch.layer_norm(x, [4], self.n.weight, self.n.bias)\n"
                             "    return y + torch.linear(y, self.q.weight)\n");
    std::vector<LayerChange> changes;
    const auto x = sine({3, 4});
    EXPECT_EQ(smooth(model, {x}, {{x}}, 0.5, &changes), 0);
    ASSERT_EQ(changes.size(), 1u);
    EXPECT_THAT(changes[0].reason, ::testing::HasSubstr("not only linear layers"));
    EXPECT_ERROR(smooth(model, {x}, {{x}}, 0), InvalidArgument, "alpha");
    EXPECT_ERROR(smooth(model, {x}, {}, 0.5), InvalidArgument, "no calibration data");
}

}  // namespace
}  // namespace coppice::quantize
