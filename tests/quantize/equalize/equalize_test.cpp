#include <coppice/quantize.h>

#include <cmath>
#include <cstdio>

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

/// Channels of unequal size around a ReLU6, some of which reach 6 and some of which do not.
Model around_relu6() {
    const auto spread = at::tensor({1.f, 20.f, 0.02f, 3.f, 0.f, 0.2f}).reshape({6, 1, 1, 1});
    return build_model({{"a.weight", sine({6, 3, 3, 3}, 0.3) * spread},
                        {"a.bias", sine({6}, 0.2)},
                        {"b.weight", sine({4, 6, 3, 3}, 0.2)}},
                       "def forward(self, x):\n"
                       "    y = torch.hardtanh(torch.conv2d(x, self.a.weight, self.a.bias), 0., 6.)\n"
                       "    return torch.conv2d(y, self.b.weight)\n");
}

TEST(Equalize, ReplacesReLU6ByReLUWhereAsked) {
    torch::NoGradGuard no_grad;
    const auto x = sine({2, 3, 12, 12}, 2);
    const auto before = around_relu6();
    auto after = before.clone();
    EqualizeOptions options;
    options.relu6 = "relu";
    std::vector<LayerChange> changes;
    EXPECT_EQ(equalize(after, {x}, std::vector<Inputs>{{x}}, options, &changes), 1);
    // The function is that of the same model with ReLU, and not that with ReLU6.
    const auto z = at::conv2d(x, weight(before, "a.weight"), weight(before, "a.bias"));
    const auto with_relu = at::conv2d(z.relu(), weight(before, "b.weight"));
    const double largest = with_relu.abs().max().item<double>();
    EXPECT_LE(max_difference(after.forward({x}).toTensor(), with_relu), 1e-5 * largest);
    EXPECT_GT(max_difference(before.forward({x}).toTensor(), with_relu), 0.1 * largest);
    ASSERT_EQ(changes.size(), 2u);
    EXPECT_EQ(changes[1].action, "replaced");
    const double share = (z > 6).to(at::kDouble).mean().item<double>();
    EXPECT_GT(share, 0.01);
    char text[32];
    std::snprintf(text, sizeof text, "%.3g %% of its", 100 * share);
    EXPECT_THAT(changes[1].reason, ::testing::HasSubstr(text));
}

TEST(Equalize, KeepsTheOutputsOfTheCalibrationDataWithReLU6WhereAsked) {
    torch::NoGradGuard no_grad;
    const auto x = sine({2, 3, 12, 12}, 2);
    const auto before = around_relu6();
    auto after = before.clone();
    EqualizeOptions options;
    options.relu6 = "calibrated";
    EXPECT_EQ(equalize(after, {x}, std::vector<Inputs>{{x}}, options), 1);
    const auto exact = before.forward({x}).toTensor();
    EXPECT_LE(max_difference(after.forward({x}).toTensor(), exact), 1e-5 * exact.abs().max().item<double>());
    const auto largest = at::conv2d(x, weight(before, "a.weight"), weight(before, "a.bias")).amax({0, 2, 3});
    const auto now = at::conv2d(x, weight(after, "a.weight"), weight(after, "a.bias")).amax({0, 2, 3});
    int cut = 0, moved = 0;
    for (int64_t channel = 0; channel < 6; ++channel) {
        const double m = largest[channel].item<double>(), n = now[channel].item<double>();
        if (m >= 6) {
            EXPECT_NEAR(n, m, 1e-4) << channel;
            ++cut;
        } else {
            EXPECT_LE(n, 6 * (1 + 1e-5)) << channel;
            moved += std::abs(n - m) > 0.01;
        }
    }
    EXPECT_GE(cut, 1);
    EXPECT_GE(moved, 2);
}

TEST(Equalize, LeavesReLU6UnlessAskedAndRefusesWhatItDoesNotKnow) {
    const auto x = sine({2, 3, 12, 12}, 2);
    auto model = around_relu6();
    EXPECT_EQ(equalize(model, {x}, std::vector<Inputs>{{x}}, EqualizeOptions{}), 0);
    EqualizeOptions options;
    options.relu6 = "relu";
    EXPECT_ERROR(equalize(model, {x}, std::vector<Inputs>(), options), InvalidArgument, "no calibration data");
    options.relu6 = "relu7";
    EXPECT_ERROR(equalize(model, {x}, std::vector<Inputs>{{x}}, options), InvalidArgument, "relu6");
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
    SmoothOptions options;
    options.norms = "free";
    EXPECT_EQ(smooth(after, {x}, std::vector<Inputs>{{x}}, options), 1);
    const auto exact = before.forward({x}).toTensor();
    EXPECT_LE(max_difference(after.forward({x}).toTensor(), exact),
              1e-5 * exact.abs().max().item<double>());  // float32
    // By hand: with alpha 1/2 both get the geometric mean of max |x_j| and max |w_j|.
    const auto y = at::layer_norm(x, {8}, weight(after, "n.weight"), weight(after, "n.bias"));
    const auto w = at::maximum(weight(after, "q.weight").abs().amax(0), weight(after, "k.weight").abs().amax(0));
    EXPECT_LE(max_difference(y.abs().amax(0), w), 1e-4);
}

/// Two layers of a post-norm encoder without attention: the residual sums and the output read the norms too.
Model post_norm_block() {
    const auto outlier = at::tensor({1.f, 1.f, 60.f, 1.f, 1.f, 0.02f, 1.f, 1.f});
    return build_model(
        {{"n.weight", (sine({8}, 0.5) + 1.5) * outlier},
         {"n.bias", sine({8}, 0.3) * outlier},
         {"q.weight", sine({6, 8}, 0.3)},
         {"k.weight", sine({6, 8}, 0.6)},
         {"o.weight", sine({8, 6}, 0.3)},
         {"m.weight", sine({8}, 0.2) + 1},
         {"m.bias", sine({8}, 0.1)},
         {"u.weight", sine({12, 8}, 0.2)},
         {"u.bias", sine({12}, 0.2)},
         {"d.weight", sine({8, 12}, 0.2)}},
        "def forward(self, x):\n"
        "    y = torch.layer_norm(x, [8], self.n.weight, self.n.bias)\n"
        "    a = torch.linear(torch.linear(y, self.q.weight) * torch.linear(y, self.k.weight), self.o.weight)\n"
        "    z = torch.layer_norm(y + a, [8], self.m.weight, self.m.bias)\n"
        "    f = torch.linear(torch.gelu(torch.linear(z, self.u.weight, self.u.bias)), self.d.weight)\n"
        "    return z + f, y.mean(0), y.size(1)\n");
}

SmoothOptions smoothing(const std::string& norms) {
    SmoothOptions options;
    options.norms = norms;
    return options;
}

TEST(Smooth, OtherReadersOfANormGetItsOutputTimesTheFactors) {
    torch::NoGradGuard no_grad;
    const auto before = post_norm_block();
    const auto x = sine({32, 8}, 2);
    for (const char* norms : {"all", "gain", "free"}) {
        SCOPED_TRACE(norms);
        auto after = before.clone();
        std::vector<LayerChange> changes;
        const int treated = smooth(after, {x}, std::vector<Inputs>{{x}}, smoothing(norms), &changes);
        EXPECT_EQ(treated, norms == std::string("free") ? 0 : 2);  // both are read by a residual sum
        ASSERT_EQ(changes.size(), 2u);
        int products = 0;
        for (const auto* node : all_nodes(*after.graph()))
            products += node->kind() == torch::jit::aten::mul && attribute_name(node->input(1));
        EXPECT_EQ(products, treated);  // one, however many read it
        const auto exact = all_tensors(before.forward({x})), same = all_tensors(after.forward({x}));
        for (size_t i = 0; i < exact.size(); ++i)
            EXPECT_LE(max_difference(same[i], exact[i]), 1e-5 * exact[i].abs().max().item<double>()) << i;  // float32
        if (treated == 0) {
            EXPECT_THAT(changes[0].reason, ::testing::HasSubstr("not only linear layers"));
            continue;
        }
        EXPECT_THAT(changes[0].reason, ::testing::HasSubstr("multiplied back"));
        // By hand, as without other readers: what linear layers read has the range of their weights.
        const auto y = at::layer_norm(x, {8}, weight(after, "n.weight"), weight(after, "n.bias"));
        const auto w = at::maximum(weight(after, "q.weight").abs().amax(0), weight(after, "k.weight").abs().amax(0));
        EXPECT_LE(max_difference(y.abs().amax(0), w), 1e-4 * w.max().item<double>());
    }
}

TEST(Smooth, AMultiplicationIsWorthADecibelAndAFreeSmoothingAnyGain) {
    torch::NoGradGuard no_grad;
    const auto x = sine({64, 8}, 2);
    for (const auto& [outlier, elsewhere, treated] :
         {std::tuple{1.2f, false, 0}, {2.f, false, 1}, {8.f, false, 1}, {2.f, true, 0}, {8.f, true, 1}}) {
        SCOPED_TRACE(std::to_string(outlier) + (elsewhere ? " with a residual" : ""));
        const auto g = at::tensor({1.f, 1.f, outlier, 1.f, 1.f, 1.f, 1.f, 1.f});
        const auto build = [&, elsewhere = elsewhere] {
            return build_model({{"n.weight", g}, {"q.weight", sine({8, 8}, 5).sign() * 0.3}},
                               std::string("def forward(self, x):\n    y = torch.layer_norm(x, [8], self.n.weight)\n"
                                           "    z = torch.linear(y, self.q.weight)\n    return ") +
                                   (elsewhere ? "y + z\n" : "z\n"));
        };
        // Another road: the layer with everything rounded here, in both forms.
        const auto noise = [&](bool smoothed) {
            auto form = build();
            if (smoothed) smooth(form, {x}, std::vector<Inputs>{{x}}, smoothing("all"));
            const auto y = at::layer_norm(x, {8}, weight(form, "n.weight")), w = weight(form, "q.weight");
            const double step = (y.max() - y.min()).item<double>() / 255;
            const auto scale = w.abs().amax(1, true) / 127;
            return (at::linear(y, w) - at::linear((y / step).round() * step, (w / scale).round() * scale))
                .square()
                .sum()
                .item<double>();
        };
        const double gain = 10 * std::log10(noise(false) / noise(true));
        EXPECT_EQ(gain > (elsewhere ? 1 : 0), treated == 1) << gain;
        auto model = build();
        auto options = smoothing("gain");
        options.observer = minmax();
        EXPECT_EQ(smooth(model, {x}, std::vector<Inputs>{{x}}, options), treated) << gain;
    }
}

TEST(Smooth, LowersTheNoiseOfThePlanAndOfTheModelAndLeavesTheResidualInFloat) {
    torch::NoGradGuard no_grad;
    const auto model = post_norm_block();
    std::vector<Inputs> data;
    for (int i = 0; i < 4; ++i) data.push_back({sine({32, 8}, 2.0 + 0.1 * i) + 0.01 * i});
    const auto exact = all_tensors(model.forward(data[0]));
    double noise[2], layer[2];
    for (const bool smoothed : {false, true}) {
        StaticOptions options;
        options.smooth = smoothed ? 0.5 : 0;
        options.ignore = {"o", "d"};  // no norm stands before them
        const auto plan = plan_static(model, data[0], data, options);
        for (const auto& unit : plan.layers())
            if (unit.layer == "q") layer[smoothed] = unit.sqnr_db;
        int products = 0;
        for (const auto& unit : plan.layers())
            if (unit.op == "aten::mul" && unit.reason == "its input is a parameter") {
                EXPECT_FALSE(unit.int8);
                ++products;
            }
        EXPECT_EQ(products, smoothed ? 2 : 0);
        const auto after = all_tensors(convert(plan).forward(data[0]));
        noise[smoothed] = (after[0] - exact[0]).square().sum().item<double>();
        // What reads the norm besides linear layers gets float: no step of int8 lies between.
        EXPECT_LE(max_difference(after[1], exact[1]), 1e-5 * exact[1].abs().max().item<double>());
    }
    EXPECT_GT(layer[1], layer[0] + 3);  // dB
    EXPECT_LT(noise[1], 0.5 * noise[0]);
}

TEST(Smooth, TellsWhyANormIsLeft) {
    const auto x = sine({3, 4});
    const std::vector<Inputs> data{{x}};
    const auto reason = [&](const std::string& body, const std::string& norms) {
        auto model = build_model({{"n.weight", sine({4}) + 2}, {"n.bias", sine({4})}, {"q.weight", sine({4, 4})}},
                                 "def forward(self, x):\n"
                                 "    y = torch.layer_norm(x, [4], self.n.weight, self.n.bias)\n" +
                                     body);
        std::vector<LayerChange> changes;
        EXPECT_EQ(smooth(model, {x}, data, smoothing(norms), &changes), 0);
        return changes.size() == 1 ? changes[0].reason : "";
    };
    const std::string residual = "    return y + torch.linear(y, self.q.weight)\n";
    EXPECT_THAT(reason(residual, "free"), ::testing::HasSubstr("not only linear layers"));
    EXPECT_THAT(reason(residual, "gain"), ::testing::HasSubstr("dB"));
    EXPECT_THAT(reason("    return y + 1.0\n", "all"), ::testing::HasSubstr("no linear layer"));
    EXPECT_THAT(reason("    z = torch.linear(y, self.q.weight)\n    return z, y.add_(1.0)\n", "all"),
                ::testing::HasSubstr("in place"));
    EXPECT_THAT(reason("    return torch.linear(y, self.q.weight) + self.n.weight\n", "all"),
                ::testing::HasSubstr("weight of its own"));
    auto model = pre_norm_block();
    SmoothOptions options;
    options.alpha = 0;
    EXPECT_ERROR(smooth(model, {x}, data, options), InvalidArgument, "alpha");
    EXPECT_ERROR(smooth(model, {x}, data, smoothing("some")), InvalidArgument, "smooth_norms");
    EXPECT_ERROR(smooth(model, {x}, std::vector<Inputs>(), {}), InvalidArgument, "no calibration data");
}

TEST(Smooth, AtFewBitsWeightsThatWouldGetNoisierStay) {
    // Inputs are even, weights are not: what flattens the weights' neighbours of an outlier costs 4-bit weights more.
    torch::NoGradGuard no_grad;
    const auto x = sine({64, 8}, 2);
    auto weights = sine({6, 8}, 0.3);
    const auto build = [&] {
        return build_model({{"n.weight", at::tensor({1.f, 1.f, 4.f, 1.f, 1.f, 1.f, 1.f, 1.f})}, {"q.weight", weights}},
                           "def forward(self, x):\n"
                           "    return torch.linear(torch.layer_norm(x, [8], self.n.weight), self.q.weight)\n");
    };
    for (const int64_t bits : {8, 2}) {
        auto model = build();
        auto options = smoothing("gain");
        options.weight_bits = bits;
        options.observer = minmax();
        const int treated = smooth(model, {x}, std::vector<Inputs>{{x}}, options);
        // Another road: noise of the layer with everything rounded here, in both forms.
        const auto noise = [&](bool smoothed) {
            auto form = build();
            if (smoothed) smooth(form, {x}, std::vector<Inputs>{{x}}, smoothing("all"));
            const auto y = at::layer_norm(x, {8}, weight(form, "n.weight"));
            const auto w = weight(form, "q.weight");
            const double step = (y.max() - y.min()).item<double>() / 255;
            const auto rounded = (y / step).round() * step;
            const auto scale = w.abs().amax(1, true) / ((1 << (bits - 1)) - 1);
            return (at::linear(y, w) - at::linear(rounded, (w / scale).round() * scale)).square().sum().item<double>();
        };
        EXPECT_EQ(treated, noise(true) < noise(false) ? 1 : 0) << bits;
    }
}

}  // namespace
}  // namespace coppice::quantize
