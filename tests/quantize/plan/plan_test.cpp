#include <cmath>

#include "../layer_check.h"
#include "plan/plan.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

std::vector<Inputs> images(int batches) {
    std::vector<Inputs> all;
    for (int i = 0; i < batches; ++i) all.push_back({sine({4, 3, 8, 8}, 1.0 + 0.2 * i) + 0.1 * i});
    return all;
}

const LayerPlan& layer(const std::vector<LayerPlan>& layers, const std::string& name) {
    for (const auto& plan : layers)
        if (plan.layer == name) return plan;
    throw std::runtime_error("no layer " + name);
}

StaticOptions with_minmax() {
    StaticOptions options;
    options.observer = minmax();
    return options;
}

TEST(Plan, MeasuresTheNoiseOfALayerByItself) {
    const auto weight = sine({6, 3, 3, 3}, 0.5);
    const auto model =
        build_model({{"c.weight", weight}}, "def forward(self, x):\n    return torch.conv2d(x, self.c.weight)\n");
    const auto data = images(1);
    auto options = with_minmax();
    options.reduce_range = "off";  // on any CPU
    const auto plan = plan_static(model, data[0], data, options);
    // By hand: range of the input, largest weight per channel.
    const auto x = data[0][0].toTensor();
    const double scale = (x.max() - x.min()).item<double>() / 255;
    const double zero_point = std::nearbyint(-x.min().item<double>() / scale);
    const auto rounded_x = ((x / scale).round() + zero_point).clamp(0, 255).sub(zero_point) * scale;
    const auto step = weight.abs().amax({1, 2, 3}, true) / 127;
    const auto rounded_w = (weight / step).round() * step;
    const auto exact = at::conv2d(x, weight), noisy = at::conv2d(rounded_x, rounded_w);
    const double expected =
        10 * std::log10((exact.pow(2).sum(at::kDouble) / (exact - noisy).pow(2).sum(at::kDouble)).item<double>());
    EXPECT_NEAR(layer(plan.layers(), "c").sqnr_db, expected, 0.01);  // float32 sums, ties
    EXPECT_TRUE(layer(plan.layers(), "c").int8);
    EXPECT_EQ(layer(plan.layers(), "c").parameters, 6 * 27);
}

TEST(Plan, KeepsTheNoisierLayerInFloatWhenTheLimitLiesBetween) {
    const auto model = residual_model();
    const auto data = images(2);
    const auto all = plan_static(model, data[0], data, with_minmax());
    double worst = 1e9, second = 1e9;
    std::string worst_layer;
    for (const auto& plan : all.layers()) {
        if (plan.parameters == 0) continue;
        if (plan.sqnr_db < worst) {
            second = worst;
            worst = plan.sqnr_db;
            worst_layer = plan.layer;
        } else {
            second = std::min(second, plan.sqnr_db);
        }
    }
    auto options = with_minmax();
    options.min_sqnr_db = (worst + second) / 2;
    const auto some = plan_static(model, data[0], data, options);
    for (const auto& plan : some.layers()) {
        if (plan.parameters == 0) continue;
        EXPECT_EQ(plan.int8, plan.layer != worst_layer) << plan.layer;
    }
    EXPECT_THAT(layer(some.layers(), worst_layer).reason, ::testing::HasSubstr("signal-to-noise"));
    const auto checked = testing::check_every_layer(convert(some), data[0]);
    EXPECT_LE(checked.worst_quanta, 1.01) << checked.worst;
}

TEST(Plan, SymmetricActivationsHaveZeroInTheMiddleOrAtTheEnd) {
    const auto model = residual_model();
    std::vector<Inputs> data;
    for (const auto& batch : images(2)) data.push_back({batch[0].toTensor() + 0.7});  // more above zero than below
    auto options = with_minmax();
    const auto affine_plan = plan_static(model, data[0], data, options);
    options.symmetric = true;
    const auto plan = plan_static(model, data[0], data, options);
    int mirrored = 0, moved = 0;
    for (const auto& [value, parameters] : plan.impl().parameters) {
        EXPECT_TRUE(parameters.zero_point == 0 || parameters.zero_point == 128) << parameters.zero_point;
        mirrored += parameters.zero_point == 128;
    }
    for (const auto& [value, parameters] : affine_plan.impl().parameters)
        moved += parameters.zero_point != 0 && parameters.zero_point != 128;
    EXPECT_GT(mirrored, 0);
    EXPECT_GT(moved, 0);
    // The largest value either side of zero is still covered: nothing but rounding is lost.
    const auto checked = testing::check_every_layer(convert(plan), data[0]);
    EXPECT_LE(checked.worst_quanta, 1.01) << checked.worst;
    for (const auto& each : plan.layers())
        if (each.int8) EXPECT_EQ(each.clipped_ratio, 0) << each.layer;
}

/// Two products with a parameter, which have no place for a bias: `a` has the noisier output.
Model products() {
    auto outlier = sine({6, 8}, 0.3);
    outlier[0][0] = 40;  // with one scale for all, the others are left few steps
    return build_model({{"a", outlier.t().contiguous()}, {"b", sine({6, 5}, 0.4)}},
                       "def forward(self, x):\n"
                       "    return torch.mm(torch.tanh(torch.mm(x, self.a)), self.b)\n");
}

/// With a limit between the noise of `worst` and the others.
StaticOptions refusing(const Model& model, const std::vector<Inputs>& data, StaticOptions options, std::string& worst) {
    const auto plan = plan_static(model, data[0], data, options);
    double least = 1e9, second = 1e9;
    for (const auto& layer : plan.layers()) {
        if (layer.parameters == 0) continue;
        if (layer.sqnr_db < least) {
            second = least;
            least = layer.sqnr_db;
            worst = layer.layer;
        } else {
            second = std::min(second, layer.sqnr_db);
        }
    }
    options.min_sqnr_db = (least + second) / 2;
    return options;
}

TEST(Plan, ALayerRefusedForItsNoiseIsLeftAloneByEveryRounding) {
    const auto data = images(2);
    const std::vector<std::tuple<std::string, bool, std::shared_ptr<const Rounding>>> ways{
        {"gptq in turn", true, gptq()},
        {"nearest in turn", true, nullptr},
        {"gptq", false, gptq()},
        {"brecq", false, brecq({5, 4, "mse"})}};
    for (const auto& [name, in_turn, rounding] : ways)
        for (const bool corrected : {false, true}) {
            SCOPED_TRACE(name + (corrected ? ", bias corrected" : ""));
            auto options = with_minmax();
            options.rounding = rounding;
            options.bias_correction = corrected;
            std::string worst;
            options = refusing(residual_model(), data, options, worst);
            options.in_turn = in_turn;
            const auto plan = plan_static(residual_model(), data[0], data, options);
            EXPECT_FALSE(layer(plan.layers(), worst).int8);
            EXPECT_THAT(layer(plan.layers(), worst).reason, ::testing::HasSubstr("signal-to-noise"));
            for (const auto& unit : plan.impl().units) {
                if (!unit.anchor()) continue;
                const bool int8 = unit.int8 || unit.island;
                EXPECT_EQ(plan.impl().weights.count(unit.node), int8 ? 1u : 0u);
                EXPECT_EQ(plan.impl().biases.count(unit.node), int8 && corrected ? 1u : 0u);
            }
            const auto int8 = convert(plan);
            const auto checked = testing::check_every_layer(int8, data[0]);
            EXPECT_LE(checked.worst_quanta, 1.01) << checked.worst;
        }
}

TEST(Plan, TheBiasCorrectionOfARefusedLayerIsNotAddedToItsFloatOutput) {
    const auto model = products();
    std::vector<Inputs> data{{sine({32, 8}, 1.1) + 0.5}};
    auto options = with_minmax();
    options.per_channel = false;
    options.bias_correction = true;
    options.linear = "packed";
    std::string worst;
    options = refusing(model, data, options, worst);
    const auto plan = plan_static(model, data[0], data, options);
    ASSERT_FALSE(layer(plan.layers(), worst).int8);
    const auto simulated = fake_quantized(plan, data[0]).toTensor(), real = convert(plan).forward(data[0]).toTensor();
    EXPECT_LE(max_difference(simulated, real), 1e-4 * real.abs().max().item<double>());  // float32 sums
}

TEST(Plan, LayersOfSevenBitsAreCalledSo) {
    const auto model = build_model({{"a.weight", sine({104, 3, 1, 1}, 0.5)}, {"d.weight", sine({104, 1, 3, 3}, 0.4)}},
                                   "def forward(self, x):\n"
                                   "    y = torch.relu(torch.conv2d(x, self.a.weight))\n"
                                   "    return torch.conv2d(y, self.d.weight, None, [1, 1], [1, 1], [1, 1], 104)\n");
    const auto data = images(1);
    for (const std::string reduce : {"auto", "off", "on"}) {
        auto options = with_minmax();
        options.reduce_range = reduce;
        const auto plan = plan_static(model, data[0], data, options);
        for (const std::string name : {"a", "d"}) {
            const bool seven = reduce != "off" && (name == "d" || reduce == "on" || !exact_int8_products());
            EXPECT_EQ(layer(plan.layers(), name).precision, seven ? "int8 (7-bit weights)" : "int8") << name << reduce;
        }
    }
}

TEST(Plan, TransposedConvolutionsInARowAreAllInt8) {
    const auto model = build_model({{"a.weight", sine({8, 6, 2, 2}, 0.3)},
                                    {"b.weight", sine({6, 4, 4, 4}, 0.2)},
                                    {"c.weight", sine({4, 4, 3, 3}, 0.3)}},
                                   "def forward(self, x):\n"
                                   "    y = torch.conv_transpose2d(x, self.a.weight, None, [2, 2])\n"
                                   "    y = torch.conv_transpose2d(y, self.b.weight, None, [2, 2], [1, 1])\n"
                                   "    return torch.conv_transpose2d(torch.relu(y), self.c.weight)\n");
    const std::vector<Inputs> data{{sine({2, 8, 4, 4})}};
    const auto plan = plan_static(model, data[0], data, with_minmax());
    for (const char* name : {"a", "b", "c"}) EXPECT_TRUE(layer(plan.layers(), name).int8) << name;
    const auto checked = testing::check_every_layer(convert(plan), data[0]);
    EXPECT_EQ(checked["quantized::conv2d"] + checked["quantized::conv2d_relu"], 3);
    EXPECT_LE(checked.worst_quanta, 1.01) << checked.worst;
    EXPECT_LE(max_difference(plan.model().forward(data[0]).toTensor(), model.forward(data[0]).toTensor()), 1e-6);
}

TEST(Plan, SimulationOfAResidualNetworkAgreesWithItsInt8Model) {
    const auto model = residual_model();
    const auto data = images(3);
    for (const bool per_channel : {true, false}) {
        auto options = with_minmax();
        options.per_channel = per_channel;
        const auto plan = plan_static(model, data[0], data, options);
        const auto simulated = fake_quantized(plan, data[1]).toTensor();
        const auto real = convert(plan).forward(data[1]).toTensor();
        const auto exact = model.forward(data[1]).toTensor();
        const auto noise = [](const at::Tensor& a, const at::Tensor& b) { return (a - b).pow(2).sum().item<double>(); };
        // Both round; they differ only where a sum lies at a tie, so far less than either differs from float.
        EXPECT_LT(noise(real, simulated), 0.1 * noise(real, exact)) << per_channel;
        EXPECT_GT(noise(real, exact), 0);
    }
}

/// Notes tasks and how far they were; asks to stop after `patience` reports.
class Watching final : public Log {
public:
    void write(const std::string&, const std::string&) override {}
    void progress(const std::string& task, double done, double total, const std::string&) override {
        auto& last = done_[task];
        monotone = monotone && done >= last && done <= total;
        last = done;
        total_[task] = total;
        ++reports;
    }
    bool finished(const std::string& task) const { return done_.count(task) && done_.at(task) == total_.at(task); }
    bool monotone = true;
    int reports = 0;

private:
    std::map<std::string, double> done_, total_;
};

/// Sine images that count how many batches are alive when the next one is read.
class OneAtATime final : public Dataset {
public:
    int64_t size() const override { return 24; }
    Batch batch(const std::vector<int64_t>& indices) const override {
        size_t alive = 0;
        for (const auto& earlier : given_) alive += !earlier.expired();
        most_alive = std::max(most_alive, alive);
        Batch batch;
        const auto images = sine({static_cast<int64_t>(indices.size()), 3, 8, 8}, 1.0 + 0.1 * double(indices[0]));
        given_.emplace_back(images.getIntrusivePtr());
        batch.inputs = {images};
        batch.target = at::zeros({images.size(0)}, at::kLong);
        return batch;
    }
    std::string description() const override { return "sine"; }
    std::string fingerprint() const override { return "sine"; }
    mutable size_t most_alive = 0;
    size_t batches() const { return given_.size(); }

private:
    mutable std::vector<c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>> given_;
};

TEST(Plan, CalibrationShowsItsProgressAndEndsWhenAsked) {
    const auto data = std::make_shared<OneAtATime>();
    Watching log;
    Context context;
    context.example = {sine({1, 3, 8, 8})};
    context.data.calibration = data;
    context.log = &log;
    StaticOptions options;
    options.batch_size = 4;
    options.bias_correction = true;
    static_int8(options)->apply(residual_model(), context);
    EXPECT_TRUE(log.finished("collecting moments"));
    EXPECT_TRUE(log.finished("observing ranges"));
    EXPECT_TRUE(log.finished("measuring noise"));
    EXPECT_TRUE(log.monotone);
    const int all = log.reports;
    EXPECT_GT(all, 3 * 6 * 5);  // more often than once per pass, batch and layer
    for (const int patience : {1, all / 2, all - 2}) {
        Watching again;
        context.log = &again;
        context.interrupted = [&] { return again.reports > patience; };
        EXPECT_THROW(static_int8(options)->apply(residual_model(), context), Interrupted) << patience;
        EXPECT_EQ(again.reports, patience + 1);  // at once
    }
}

TEST(Plan, CalibrationHoldsOneBatchAtATime) {
    const auto data = std::make_shared<OneAtATime>();
    Context context;
    context.example = {sine({1, 3, 8, 8})};
    context.data.calibration = data;
    StaticOptions options;
    options.batch_size = 4;
    options.rounding = gptq();
    static_int8(options)->apply(residual_model(), context);
    EXPECT_GE(data->batches(), 2 * 6u);  // moments and ranges
    EXPECT_LE(data->most_alive, 1u);
}

TEST(Plan, BatchesReadFromADatasetAreThoseHeldInMemory) {
    const auto data = std::make_shared<OneAtATime>();
    const Calibration streamed(data, 4, 5, /*seed=*/3), held(streamed.read());
    EXPECT_EQ(streamed.size(), 4);
    EXPECT_EQ(Calibration(data, 9, 5, 3).size(), 5);  // 24 examples
    const auto a = plan_static(residual_model(), {sine({1, 3, 8, 8})}, streamed, with_minmax()),
               b = plan_static(residual_model(), {sine({1, 3, 8, 8})}, held, with_minmax());
    ASSERT_EQ(a.layers().size(), b.layers().size());
    for (size_t i = 0; i < a.layers().size(); ++i) {
        EXPECT_EQ(a.layers()[i].range.high, b.layers()[i].range.high);
        EXPECT_EQ(a.layers()[i].sqnr_db, b.layers()[i].sqnr_db);
    }
}

TEST(Plan, TensorsThatAreWrittenInPlaceStayFloat) {
    // The slice shares memory with y: the convolution behind reads what was added.
    const auto model =
        build_model({{"a.weight", sine({4, 3, 1, 1})}, {"b.weight", sine({2, 4, 1, 1}, 0.5)}},
                    "def forward(self, x):\n"
                    "    y = torch.conv2d(x, self.a.weight)\n"
                    "    part = y[:, 1:3]\n"
                    "    part.add_(5)\n"
                    "    return torch.conv2d(torch.sigmoid(x), self.a.weight), torch.conv2d(y, self.b.weight)\n");
    const auto data = images(1);
    const auto int8 = convert(plan_static(model, data[0], data, with_minmax()));
    const auto before = all_tensors(model.forward(data[0])), after = all_tensors(int8.forward(data[0]));
    for (size_t i = 0; i < before.size(); ++i)
        EXPECT_LE(max_difference(after[i], before[i]), 0.03 * before[i].abs().max().item<double>())
            << i;  // a few steps
}

TEST(Plan, SharedWeightsAreQuantizedInEveryPlace) {
    const auto model = build_model({{"c.weight", sine({3, 3, 3, 3}, 0.3)}},
                                   "def forward(self, x):\n"
                                   "    y = torch.conv2d(x, self.c.weight, None, [1, 1], [1, 1])\n"
                                   "    return torch.conv2d(torch.sigmoid(y), self.c.weight)\n");
    const auto data = images(1);
    const auto checked = testing::check_every_layer(convert(plan_static(model, data[0], data, with_minmax())), data[0]);
    EXPECT_EQ(checked["quantized::conv2d"], 2);
    EXPECT_LE(checked.worst_quanta, 1.01);
}

TEST(Plan, WhatCannotRunInInt8SaysWhy) {
    const auto model = build_model({{"up.weight", sine({3, 4, 2, 2})},
                                    {"c.weight", sine({4, 4, 1, 1})},
                                    {"b.weight", sine({4, 4, 1, 1})},
                                    {"e.weight", sine({10, 8})}},
                                   "def forward(self, x):\n"
                                   "    y = torch.conv_transpose2d(x, self.up.weight, None, [1, 1], [0, 0], [0, 0], "
                                   "1, [2, 2])\n"
                                   "    if bool(y.sum() > 0):\n"
                                   "        y = torch.conv2d(y, self.b.weight)\n"
                                   "    z = torch.conv2d(y, self.c.weight)\n"
                                   "    g = torch.layer_norm(z, [6], None, None, 1e-5)\n"
                                   "    w = torch.conv2d(g, torch.abs(self.c.weight))\n"
                                   "    return torch.matmul(w, torch.transpose(w, -1, -2))\n");
    const auto layers = explain(model, {sine({1, 3, 4, 4}) + 1});
    EXPECT_THAT(layer(layers, "up").reason, ::testing::HasSubstr("transposed"));
    EXPECT_THAT(layer(layers, "b").reason, ::testing::HasSubstr("branch or a loop"));
    EXPECT_TRUE(layer(layers, "c").int8);
    EXPECT_EQ(layer(layers, "c").reason, "");
    bool layer_norm = false, computed = false, product = false;
    for (const auto& plan : layers) {
        layer_norm |=
            plan.op == "aten::layer_norm" && plan.reason == "LibTorch's int8 operator is slower than the one in float";
        computed |= plan.op == "aten::conv2d" && plan.reason == "its weight is computed while running";
        product |= plan.op == "aten::matmul" &&
                   plan.reason == "it multiplies two computed tensors, which takes LibTorch longer in int8";
    }
    EXPECT_TRUE(layer_norm);
    EXPECT_TRUE(computed);
    EXPECT_TRUE(product);
}

TEST(Plan, RefusesAModelWhoseOtherMethodsReadItsWeights) {
    auto module = build_module({{"c.weight", sine({3, 3, 1, 1})}},
                               "def forward(self, x):\n    return torch.conv2d(x, self.c.weight)\n");
    module.define("def features(self, x):\n    return torch.conv2d(x, self.c.weight) * 2\n");
    const auto model = Model::from_module(module);
    const auto data = images(1);
    EXPECT_ERROR(plan_static(model, data[0], data, with_minmax()), UnsupportedModel, "features");
}

TEST(Plan, NeedsDataAndFiniteActivations) {
    const auto model = residual_model();
    EXPECT_ERROR(plan_static(model, images(1)[0], {}, with_minmax()), InvalidArgument, "no calibration data");
    std::vector<Inputs> bad{{at::full({1, 3, 8, 8}, NAN)}};
    EXPECT_ERROR(plan_static(model, images(1)[0], bad, with_minmax()), UnsupportedModel, "NaN");
}

}  // namespace
}  // namespace coppice::quantize
