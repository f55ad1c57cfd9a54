// Each operator of the table: it is emitted, and gives what the float operator gives on the same integers.
#include <torch/csrc/jit/testing/file_check.h>

#include <limits>

#include "../layer_check.h"
#include "layers/layers.h"
#include "plan/plan.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;
using testing::check_every_layer;

/// One more than the exact result's rounding: the sum may lie at a tie, and kernels round the scale to float32.
constexpr double kOneQuantum = 1.01;

const char* const kStem = "    x = torch.relu(torch.conv2d(x, self.stem.weight, None, [1, 1], [1, 1]))\n";

Model around(const std::string& body, std::vector<std::pair<std::string, at::Tensor>> more = {}) {
    more.emplace_back("stem.weight", sine({8, 3, 3, 3}, 0.3));
    more.emplace_back("head.weight", sine({4, 8, 1, 1}, 0.5));
    return build_model(more, std::string("def forward(self, x):\n") + kStem + body);
}

std::vector<Inputs> images(int batches, std::vector<int64_t> shape = {2, 3, 8, 8}) {
    std::vector<Inputs> all;
    for (int i = 0; i < batches; ++i) all.push_back({sine(shape, 1.0 + 0.2 * i) + 0.1 * i});
    return all;
}

StaticPlan plan_of(const Model& model, const std::vector<Inputs>& data, StaticOptions options = {}) {
    if (!options.observer) options.observer = minmax();
    return plan_static(model, data[0], data, options);
}

std::map<std::string, int> operators_of(const Model& model) {
    std::map<std::string, int> count;
    for (const auto* node : all_nodes(*model.graph())) ++count[node->kind().toQualString()];
    return count;
}

/// Same output up to `quanta` steps of what the simulation's largest value makes of 255 levels.
void expect_like_simulation(const StaticPlan& plan, const Model& int8, const Inputs& inputs, double quanta) {
    const auto simulated = all_tensors(fake_quantized(plan, inputs));
    const auto real = all_tensors(int8.forward(inputs));
    ASSERT_EQ(simulated.size(), real.size());
    for (size_t i = 0; i < real.size(); ++i) {
        const double span = (simulated[i].max() - simulated[i].min()).item<double>();
        EXPECT_LE(max_difference(real[i], simulated[i]), quanta * span / 255) << "output " << i;
    }
}

TEST(Convert, ConvolutionFusesReluAndRoundsOnce) {
    const auto model = around("    return torch.conv2d(x, self.head.weight)\n");
    const auto data = images(3);
    const auto plan = plan_of(model, data);
    const auto int8 = convert(plan);
    torch::jit::testing::FileCheck()
        .check("aten::quantize_per_tensor")
        ->check("quantized::conv2d_relu")
        ->check("quantized::conv2d")
        ->check("aten::dequantize")
        ->check("return")
        ->run(*int8.graph());
    const auto count = operators_of(int8);
    EXPECT_EQ(count.count("aten::relu"), 0u);
    EXPECT_EQ(count.at("aten::quantize_per_tensor"), 1);
    EXPECT_EQ(count.at("aten::dequantize"), 1);
    const auto checked = check_every_layer(int8, data[0]);
    EXPECT_EQ(checked["quantized::conv2d_relu"], 1);
    EXPECT_EQ(checked["quantized::conv2d"], 1);
    EXPECT_LE(checked.worst_quanta, kOneQuantum) << checked.worst;
    expect_like_simulation(plan, int8, data[1], 2);  // one quantum of each of two layers
}

TEST(Convert, Conv1dAnd3dHaveTheirOwnOperators) {
    const auto one = build_model({{"c.weight", sine({6, 2, 5}, 0.4)}, {"c.bias", sine({6})}},
                                 "def forward(self, x):\n"
                                 "    return torch.relu(torch.conv1d(x, self.c.weight, self.c.bias, [2], [2]))\n");
    const auto signal = images(2, {3, 2, 40});
    auto checked = check_every_layer(convert(plan_of(one, signal)), signal[0]);
    EXPECT_EQ(checked["quantized::conv1d_relu"], 1);
    EXPECT_LE(checked.worst_quanta, kOneQuantum);
    const auto three = build_model({{"c.weight", sine({4, 2, 3, 3, 3}, 0.2)}},
                                   "def forward(self, x):\n"
                                   "    return torch.conv3d(x, self.c.weight, None, [1, 2, 1], [1, 1, 1])\n");
    const auto video = images(2, {2, 2, 4, 6, 6});
    checked = check_every_layer(convert(plan_of(three, video)), video[0]);
    EXPECT_EQ(checked["quantized::conv3d"], 1);
    EXPECT_LE(checked.worst_quanta, kOneQuantum);
}

TEST(Convert, PoolingOfVolumesAndImagesIsInt8WhereLibTorchTakesManyChannelsAtOnce) {
    for (const int64_t dims : {2, 3})
        for (const int64_t channels : {32, 24}) {
            SCOPED_TRACE(std::to_string(dims) + "d, " + std::to_string(channels) + " channels");
            const auto d = std::to_string(dims) + "d";
            std::vector<int64_t> first{channels, 2}, second{4, channels}, shape{2, 2};
            for (int64_t i = 0; i < dims; ++i) {
                first.push_back(3);
                second.push_back(1);
                shape.push_back(dims == 2 ? 64 : 16);
            }
            const std::string padding = dims == 2 ? "[1, 1]" : "[1, 1, 1]";
            const auto model = build_model(
                {{"a.weight", sine(first, 0.3)}, {"b.weight", sine(second, 0.3)}},
                "def forward(self, x):\n"
                "    x = torch.conv" +
                    d + "(x, self.a.weight, None, " + padding + ", " + padding + ")\n    x = torch.max_pool" + d +
                    "(x, [3], [2], [1], [1], True)\n    return torch.conv" + d + "(x, self.b.weight)\n");
            const auto data = images(2, shape);
            const auto plan = plan_of(model, data);
            const auto int8 = convert(plan);
            const auto checked = check_every_layer(int8, data[0]);
            EXPECT_EQ(checked["aten::max_pool" + d], channels == 32 ? 1 : 0);
            EXPECT_EQ(checked["quantized::conv" + d], 2);
            EXPECT_LE(checked.worst_quanta, kOneQuantum) << checked.worst;
            expect_like_simulation(plan, int8, data[1], 3);
        }
}

TEST(Convert, GroupedDilatedAndSamePaddedConvolutionsKeepTheirGeometry) {
    const auto model = build_model({{"g.weight", sine({8, 2, 3, 3}, 0.4)},
                                    {"d.weight", sine({8, 1, 3, 3}, 0.4)},
                                    {"s.weight", sine({4, 8, 3, 5}, 0.2)}},
                                   "def forward(self, x):\n"
                                   "    x = torch.conv2d(x, self.g.weight, None, [1, 1], [2, 2], [2, 2], 4)\n"
                                   "    x = torch.conv2d(x, self.d.weight, None, [2, 2], [1, 1], [1, 1], 8)\n"
                                   "    return torch.conv2d(x, self.s.weight, None, [1, 1], 'same')\n");
    const auto data = images(2, {2, 8, 10, 10});
    const auto int8 = convert(plan_of(model, data));
    const auto checked = check_every_layer(int8, data[0]);
    EXPECT_EQ(checked["quantized::conv2d"], 3);
    EXPECT_LE(checked.worst_quanta, kOneQuantum);
    EXPECT_EQ(int8.forward(data[0]).toTensor().sizes(), model.forward(data[0]).toTensor().sizes());
}

TEST(Convert, ResidualAdditionIsInt8WithItsRelu) {
    const auto model = around(
        "    y = torch.conv2d(x, self.mid.weight, None, [1, 1], [1, 1])\n"
        "    z = torch.relu(y + x)\n"
        "    return torch.conv2d(z, self.head.weight)\n",
        {{"mid.weight", sine({8, 8, 3, 3}, 0.2)}});
    const auto data = images(3);
    const auto plan = plan_of(model, data);
    const auto int8 = convert(plan);
    const auto checked = check_every_layer(int8, data[0]);
    EXPECT_EQ(checked["quantized::add_relu"], 1);
    EXPECT_LE(checked.worst_quanta, kOneQuantum) << checked.worst;
    EXPECT_EQ(operators_of(int8).at("aten::dequantize"), 1);
    expect_like_simulation(plan, int8, data[2], 4);
}

TEST(Convert, InPlaceResidualBlocksAreInt8Too) {
    const auto model = around(
        "    y = torch.conv2d(x, self.mid.weight, None, [1, 1], [1, 1])\n"
        "    y += x\n"
        "    z = torch.relu_(y)\n"
        "    return torch.conv2d(z, self.head.weight)\n",
        {{"mid.weight", sine({8, 8, 3, 3}, 0.2)}});
    const auto data = images(2);
    const auto checked = check_every_layer(convert(plan_of(model, data)), data[0]);
    EXPECT_EQ(checked["quantized::add_relu"], 1);
    EXPECT_LE(checked.worst_quanta, kOneQuantum);
}

TEST(Convert, MultiplicationAndBroadcastGatesAreInt8) {
    const auto model = around(
        "    y = torch.conv2d(x, self.mid.weight)\n"
        "    z = y * x\n"
        "    return torch.conv2d(z, self.head.weight)\n",
        {{"mid.weight", sine({8, 8, 1, 1}, 0.2)}});
    const auto data = images(2);
    const auto checked = check_every_layer(convert(plan_of(model, data)), data[0]);
    EXPECT_EQ(checked["quantized::mul"], 1);
    EXPECT_LE(checked.worst_quanta, kOneQuantum);
}

TEST(Convert, ClampedActivationsEndTheRangeInsteadOfCostingAnOperator) {
    const auto model = build_model({{"a.weight", sine({8, 3, 3, 3}, 3)}, {"b.weight", sine({4, 8, 1, 1})}},
                                   "def forward(self, x):\n"
                                   "    x = torch.relu6(torch.conv2d(x, self.a.weight))\n"
                                   "    return torch.hardtanh(torch.conv2d(x, self.b.weight), -1., 1.)\n");
    const auto data = images(2);
    const auto plan = plan_of(model, data);
    const auto int8 = convert(plan);
    EXPECT_EQ(operators_of(int8).count("aten::hardtanh"), 0u);
    EXPECT_EQ(operators_of(int8).count("aten::relu6"), 0u);
    const auto output = int8.forward({data[0][0].toTensor() * 10}).toTensor();
    EXPECT_LE(output.abs().max().item<double>(), 1 + 1.001 / 255);  // half a step of 2/255, in float32
    expect_like_simulation(plan, int8, data[0], 3);
}

TEST(Convert, OperandsThatBothGrowAreAddedInFloat) {
    // LibTorch's int8 addition makes its result as large as the first operand, and warns in each call where it is not.
    const auto model = around(
        "    a = torch.conv2d(x, self.row.weight)\n"
        "    b = torch.conv2d(x, self.column.weight)\n"
        "    return torch.conv2d(torch.relu(a + b) * (a * b), self.head.weight)\n",
        {{"row.weight", sine({8, 8, 1, 8}, 0.2)}, {"column.weight", sine({8, 8, 8, 1}, 0.2)}});
    const auto data = images(2);
    const auto plan = plan_of(model, data);
    int refused = 0;
    for (const auto& layer : plan.layers()) refused += layer.reason == "neither operand has the shape of the result";
    EXPECT_EQ(refused, 2);
    const auto int8 = convert(plan);
    EXPECT_EQ(operators_of(int8).count("quantized::add") + operators_of(int8).count("quantized::add_relu"), 0u);
    expect_like_simulation(plan, int8, data[1], 4);
}

TEST(Convert, ALayerThatRunsSeveralTimesIsStoredOnce) {
    const auto model = build_model(
        {{"c.weight", sine({64, 64, 3, 3}, 0.03)}, {"f.weight", sine({256, 256}, 0.05)}, {"f.bias", sine({256}, 0.1)}},
        "def forward(self, x):\n"
        "    y = torch.silu(torch.conv2d(x, self.c.weight, None, [1, 1], [1, 1]))\n"
        "    y = torch.silu(torch.conv2d(y, self.c.weight, None, [1, 1], [1, 1]))\n"
        "    y = torch.silu(torch.conv2d(y, self.c.weight, None, [1, 1], [1, 1]))\n"
        "    y = y.flatten(1)\n"
        "    y = torch.gelu(torch.linear(y, self.f.weight, self.f.bias))\n"
        "    y = torch.gelu(torch.linear(y, self.f.weight, self.f.bias))\n"
        "    return torch.gelu(torch.linear(y, self.f.weight, self.f.bias))\n");
    const Inputs x{sine({2, 64, 2, 2})};
    const double bytes = 64 * 64 * 9 + 256 * 256;  // of int8 weights
    const auto stored = [&](const Model& result) {
        TemporaryFolder folder;
        result.save(folder / "model.pt");
        auto loaded = torch::jit::load((folder / "model.pt").string());
        EXPECT_TRUE(at::equal(loaded.forward(x).toTensor(), result.forward(x).toTensor()));
        return stored_bytes(result);
    };
    StaticOptions options;
    for (const std::string kind : {"packed", "fused"}) {
        if (kind == "fused" && !exact_int8_products()) continue;
        options.conv = options.linear = kind;
        const auto int8 = convert(plan_of(model, {x}, options));
        EXPECT_EQ(operators_of(int8).count("aten::conv2d") + operators_of(int8).count("aten::linear"), 0u) << kind;
        // Beside the weights scales and biases; oneDNN's layout is a second copy, in memory alone.
        EXPECT_LT(static_cast<double>(stored(int8)), kind == "fused" ? 2.2 * bytes : 1.2 * bytes) << kind;
    }
    Context context;
    context.example = x;
    EXPECT_LT(static_cast<double>(stored(dynamic_int8()->apply(model, context))), 4 * 64 * 64 * 9 + 1.2 * 256 * 256);
    EXPECT_LT(static_cast<double>(stored(weight_only()->apply(model, context))), 1.2 * bytes);
}

TEST(Convert, ZeroPaddedShortcutIsAConvolutionWithTheSameBits) {
    const auto model = build_model(
        {{"stem.weight", sine({8, 3, 3, 3}, 0.3)},
         {"mid.weight", sine({16, 8, 3, 3}, 0.2)},
         {"head.weight", sine({4, 16, 1, 1})}},
        "def forward(self, x):\n"
        "    x = torch.conv2d(x, self.stem.weight, None, [1, 1], [1, 1])\n"  // no relu: the zero point is not 0
        "    s = torch.constant_pad_nd(x[:, :, ::2, ::2], [0, 0, 0, 0, 3, 5], 0)\n"
        "    z = torch.relu(torch.conv2d(x, self.mid.weight, None, [2, 2], [1, 1]) + s)\n"
        "    return torch.conv2d(z, self.head.weight)\n");
    for (const int64_t side : {8, 9}) {
        const auto data = images(2, {2, 3, side, side});
        const auto int8 = convert(plan_of(model, data));
        const auto count = operators_of(int8);
        EXPECT_EQ(count.count("aten::constant_pad_nd"), 0u);
        EXPECT_EQ(count.count("aten::slice"), 0u);
        EXPECT_EQ(count.at("quantized::conv2d"), 4);
        // The shortcut's output has its input's integers where channels 3 to 10 are, and zero points elsewhere.
        at::Tensor input, output;
        NodeHooks hooks;
        std::vector<c10::IValue> stack;
        hooks.before = [&](const torch::jit::Node*, std::vector<c10::IValue>& inputs) { stack = inputs; };
        hooks.after = [&](const torch::jit::Node* node, std::vector<c10::IValue>& outputs) {
            if (std::string(node->kind().toQualString()) != "quantized::conv2d") return;
            const auto weight = testing::call("quantized::conv2d_unpack", {stack[1]})[0].toTensor();
            if (weight.size(2) != 1 || weight.size(0) != 16) return;
            input = stack[0].toTensor();
            output = outputs[0].toTensor();
        };
        run_nodes(int8, data[1], hooks);
        ASSERT_TRUE(output.defined());
        EXPECT_EQ(output.q_scale(), input.q_scale());
        EXPECT_EQ(output.q_zero_point(), input.q_zero_point());
        EXPECT_GT(input.q_zero_point(), 0);
        const auto expected = at::constant_pad_nd(input.int_repr().slice(2, 0, side, 2).slice(3, 0, side, 2),
                                                  {0, 0, 0, 0, 3, 5}, input.q_zero_point());
        EXPECT_TRUE(at::equal(output.int_repr(), expected));
    }
}

TEST(Convert, ASliceUpToAPlaceIsNotTakenForOneToTheEndWhereTheExampleEndsThere) {
    for (const std::string slices : {"x[:, :, 0:8:2, 0:8:2]", "x[:, :, ::2, ::2]", "x[0:2, 0:8, ::2, ::2]"}) {
        SCOPED_TRACE(slices);
        const auto model = around("    s = torch.constant_pad_nd(" + slices +
                                      ", [0, 0, 0, 0, 4, 4])\n"
                                      "    return torch.conv2d(s, self.last.weight)\n",
                                  {{"last.weight", sine({4, 16, 1, 1})}});
        const auto data = images(2);
        const auto int8 = convert(plan_of(model, data));
        for (const auto& inputs : {data[1], images(1, {3, 3, 12, 10})[0]}) {
            const auto exact = model.forward(inputs).toTensor();
            EXPECT_LE(max_difference(int8.forward(inputs).toTensor(), exact),
                      0.03 * exact.abs().max().item<double>());  // a few steps
        }
    }
}

TEST(Convert, ConcatenationOfLikeRangesIsACopyAndOfUnlikeOnesConverts) {
    for (const double other : {1.0, 30.0}) {
        const auto model = around(
            "    y = torch.conv2d(x, self.mid.weight)\n"
            "    z = torch.conv2d(x, self.low.weight)\n"
            "    c = torch.cat([y, z], 1)\n"
            "    return torch.conv2d(c, self.end.weight)\n",
            {{"mid.weight", sine({8, 8, 1, 1}, 0.3)},
             {"low.weight", sine({8, 8, 1, 1}, 0.3 * other).roll(1)},
             {"end.weight", sine({4, 16, 1, 1}, 0.3)}});
        const auto data = images(3);
        const auto plan = plan_of(model, data);
        const auto int8 = convert(plan);
        const auto count = operators_of(int8);
        EXPECT_EQ(count.count("aten::cat"), other == 1.0 ? 1u : 0u) << other;
        if (other == 1.0) {
            EXPECT_EQ(count.count("quantized::cat"), 0u);
            const auto checked = check_every_layer(int8, data[0]);
            EXPECT_EQ(checked["aten::cat"], 1);
            EXPECT_LE(checked.worst_quanta, kOneQuantum) << checked.worst;
        }
        expect_like_simulation(plan, int8, data[1], 4);
    }
}

TEST(Convert, OperatorsThatMoveOrAverageKeepTheirInputsScale) {
    for (const std::string body :
         {"torch.max_pool2d(x, [2, 2])", "torch.max_pool2d(x, [3], [2], [1])", "torch.avg_pool2d(x, [2, 2])",
          "torch.adaptive_avg_pool2d(x, [2, 2])", "torch.mean(x, [2, 3], True)", "torch.permute(x, [0, 1, 3, 2])",
          "torch.transpose(x, 2, 3)", "torch.reshape(x, [2, 8, 16, 4])", "x.view(2, 8, 4, 16)", "x[:, :, 1:5]",
          "torch.unsqueeze(torch.select(x, 2, 1), 2)", "torch.constant_pad_nd(x, [1, 1, 1, 1], 0)",
          "torch.dropout(x, 0.5, self.training)", "torch.clamp(x, -1., 2.)", "torch.contiguous(x)",
          "torch.upsample_nearest2d(x, [16, 16], None, None)",
          "torch.upsample_bilinear2d(x, [16, 16], False, None, None)",
          "torch.cat([torch.chunk(x, 2, 1)[1], torch.chunk(x, 2, 1)[0]], 1)"}) {
        SCOPED_TRACE(body);
        const auto model = around("    y = " + body + "\n    return torch.conv2d(y, self.head.weight)\n");
        const auto data = images(2);
        Model int8;
        StaticPlan plan;
        try {
            plan = plan_of(model, data);
            int8 = convert(plan);
        } catch (const std::exception& error) {
            ADD_FAILURE() << error.what();
            continue;
        }
        const auto count = operators_of(int8);
        // Two convolutions in int8, and nothing in between that goes through float unless that was cheaper.
        EXPECT_EQ(count.at("quantized::conv2d"), 1);
        EXPECT_EQ(count.at("quantized::conv2d_relu"), 1);
        const auto checked = check_every_layer(int8, data[0]);
        EXPECT_LE(checked.worst_quanta, kOneQuantum) << checked.worst;
        expect_like_simulation(plan, int8, data[1], 3);
    }
}

TEST(Convert, ActivationsAndNormsWithAnInt8OperatorStayInInt8) {
    for (const auto& [body, op] : std::vector<std::pair<std::string, std::string>>{
             {"torch.hardswish(x)", "quantized::hardswish"},
             {"torch.leaky_relu(x - 1, 0.2)", "quantized::leaky_relu"},
             {"torch.sigmoid(x)", "quantized::sigmoid"},
             {"torch.silu(x)", "quantized::sigmoid"},
             {"torch.group_norm(x, 2, self.gn.weight, self.gn.bias, 1e-5)", "quantized::group_norm"},
             {"torch.group_norm(x, 4, None, None, 1e-5)", "quantized::group_norm"},
             {"torch.batch_norm(x, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, False, "
              "0.1, 1e-5, False)",
              "quantized::batch_norm2d"},
             {"torch.relu(torch.batch_norm(x, self.bn.weight, self.bn.bias, self.bn.running_mean, "
              "self.bn.running_var, False, 0.1, 1e-5, False))",
              "quantized::batch_norm2d_relu"}}) {
        SCOPED_TRACE(body);
        // The pooling between keeps the batch norm out of the convolution.
        const auto model = around(
            "    x = torch.max_pool2d(x, [2, 2])\n    y = " + body + "\n    return torch.conv2d(y, self.head.weight)\n",
            {{"gn.weight", sine({8}) + 1.5},
             {"gn.bias", sine({8}, 0.3)},
             {"bn.weight", sine({8}) + 1.5},
             {"bn.bias", sine({8}, 0.3)},
             {"bn.running_mean", sine({8}, 0.2)},
             {"bn.running_var", sine({8}, 0.3) + 1}});
        const auto data = images(2);
        const auto plan = plan_of(model, data);
        const auto int8 = convert(plan);
        const auto checked = check_every_layer(int8, data[0]);
        if (body.find("x - 1") == std::string::npos) {
            EXPECT_EQ(checked[op], 1);
            EXPECT_EQ(operators_of(int8).at("aten::dequantize"), 1);
        }
        EXPECT_LE(checked.worst_quanta, kOneQuantum) << checked.worst;
        expect_like_simulation(plan, int8, data[1], 4);
    }
}

TEST(Convert, LeakyReluBehindAConvolutionStaysInInt8) {
    const auto model = around(
        "    y = torch.leaky_relu_(torch.conv2d(x, self.mid.weight), 0.2)\n"
        "    return torch.conv2d(y, self.head.weight)\n",
        {{"mid.weight", sine({8, 8, 1, 1}, 0.2)}});
    const auto data = images(2);
    const auto int8 = convert(plan_of(model, data));
    const auto checked = check_every_layer(int8, data[0]);
    EXPECT_EQ(checked["quantized::leaky_relu"], 1);
    EXPECT_EQ(operators_of(int8).at("aten::dequantize"), 1);
    EXPECT_LE(checked.worst_quanta, kOneQuantum);
}

TEST(Convert, ActivationsAndDropoutInPlaceKeepNoLayerFromInt8) {
    for (const std::string activation :
         {"silu_", "hardswish_", "sigmoid_", "relu6_", "hardsigmoid_", "tanh_", "mish_"}) {
        SCOPED_TRACE(activation);
        const auto model =
            around("    y = torch." + activation +
                       "(torch.conv2d(x, self.mid.weight))\n"
                       "    z = torch.dropout_(torch.flatten(torch.mean(y, [2, 3]), 1), 0.2, self.training)\n"
                       "    return torch.linear(z, self.out.weight)\n",
                   {{"mid.weight", sine({8, 8, 1, 1}, 0.2)}, {"out.weight", sine({5, 8}, 0.4)}});
        const auto data = images(2);
        const auto plan = plan_of(model, data);
        int layers = 0;
        for (const auto& layer : plan.layers()) {
            if (layer.parameters == 0) continue;
            ++layers;
            EXPECT_TRUE(layer.int8) << layer.layer << ": " << layer.reason;
        }
        EXPECT_EQ(layers, 3);
        expect_like_simulation(plan, convert(plan), data[1], 3);
    }
}

TEST(Convert, BlocksThatCollectTheirOutputsInAListAreInt8) {
    const auto model = around(
        "    outputs = [x]\n"
        "    outputs.append(torch.relu_(torch.conv2d(outputs[-1], self.mid.weight)))\n"
        "    outputs.append(torch.relu_(torch.conv2d(outputs[1], self.mid.weight)))\n"
        "    y = torch.cat(outputs, 1)\n"
        "    outputs.append(y)\n"
        "    return torch.conv2d(y, self.wide.weight) * float(len(outputs))\n",
        {{"mid.weight", sine({8, 8, 1, 1}, 0.4)}, {"wide.weight", sine({4, 24, 1, 1}, 0.2)}});
    const auto data = images(2);
    const auto plan = plan_of(model, data);
    const auto int8 = convert(plan);
    const auto checked = check_every_layer(int8, data[0]);
    EXPECT_EQ(checked["quantized::conv2d_relu"], 3);
    EXPECT_EQ(checked["aten::cat"] + checked["quantized::cat"], 1);
    EXPECT_LE(checked.worst_quanta, kOneQuantum) << checked.worst;
    expect_like_simulation(plan, int8, data[1], 4);
}

TEST(Convert, HardSigmoidGatesAreInTheWeightsOfTheirLayer) {
    // A squeeze-and-excite gate, with and without a bias.
    for (const bool bias : {true, false}) {
        const auto model =
            around(std::string("    g = torch.mean(x, [2, 3], True)\n") +
                       "    g = torch.hardsigmoid(torch.conv2d(g, self.gate.weight, " +
                       (bias ? "self.gate.bias" : "None") + "))\n    return torch.conv2d(x * g, self.head.weight), g\n",
                   {{"gate.weight", sine({8, 8, 1, 1}, 8)}, {"gate.bias", sine({8}, 2)}});
        const auto data = images(3);
        StaticOptions options;
        options.per_channel = false;
        const auto int8 = convert(plan_of(model, data, options));
        EXPECT_EQ(operators_of(int8).count("aten::hardsigmoid"), 0u);
        const auto checked = check_every_layer(int8, data[0]);
        EXPECT_EQ(checked["quantized::conv2d_relu"], 2);
        EXPECT_LE(checked.worst_quanta, kOneQuantum);
        const auto exact = all_tensors(model.forward(data[1])), rounded = all_tensors(int8.forward(data[1]));
        EXPECT_LT(max_difference(rounded[1], exact[1]), 0.05);
        EXPECT_LE(rounded[1].max().item<double>(), 1.0);
        EXPECT_GT(exact[1].max().item<double>(), 0.99);  // both ends of the clamp are reached
        EXPECT_LT(exact[1].min().item<double>(), 0.01);
    }
}

TEST(Convert, TransposedConvolutionsAreConvolutionsWithInterleavedOutputs) {
    struct Geometry {
        int64_t dims, in, out, groups, kernel, stride, padding, output_padding;
        bool bias;
    };
    for (const auto& g : std::vector<Geometry>{{2, 8, 4, 1, 2, 2, 0, 0, true},
                                               {2, 8, 8, 1, 4, 2, 1, 0, false},
                                               {2, 8, 6, 1, 3, 2, 1, 1, true},
                                               {2, 8, 4, 2, 3, 2, 0, 0, true},
                                               {2, 8, 8, 8, 5, 3, 2, 2, true},
                                               {2, 8, 4, 1, 3, 1, 1, 0, true},
                                               {2, 8, 4, 1, 1, 2, 0, 1, true},
                                               {2, 8, 4, 1, 2, 2, 0, 1, false},
                                               {1, 8, 6, 2, 4, 2, 1, 0, true},
                                               {3, 8, 2, 1, 3, 2, 1, 1, true}}) {
        const auto list = [&](int64_t value) {
            std::string text;
            for (int64_t i = 0; i < g.dims; ++i) text += (i ? ", " : "[") + std::to_string(value);
            return text + "]";
        };
        const auto dims = std::to_string(g.dims);
        std::vector<int64_t> shape{g.in, g.out / g.groups}, image{2, g.in};
        for (int64_t i = 0; i < g.dims; ++i) {
            shape.push_back(g.kernel);
            image.push_back(5 + i);
        }
        const auto body = "torch.conv_transpose" + dims + "d(x, self.up.weight, " +
                          (g.bias ? "self.up.bias, " : "None, ") + list(g.stride) + ", " + list(g.padding) + ", " +
                          list(g.output_padding) + ", " + std::to_string(g.groups) + ")";
        SCOPED_TRACE(body);
        const auto model = build_model({{"up.weight", sine(shape, 0.3)}, {"up.bias", sine({g.out}, 0.5)}},
                                       "def forward(self, x):\n    return torch.relu(" + body + ")\n");
        std::vector<Inputs> data{{sine(image)}, {sine(image, 1.3)}};
        auto split = model.clone();
        split_transposed_convolutions(split, data[0]);
        EXPECT_EQ(operators_of(split).count("aten::conv_transpose" + dims + "d"), 0u);
        const auto exact = model.forward(data[1]).toTensor();
        EXPECT_LT(max_difference(split.forward(data[1]).toTensor(), exact), 1e-5);
        const auto plan = plan_of(model, data);
        const auto int8 = convert(plan);
        const auto checked = check_every_layer(int8, data[0]);
        EXPECT_EQ(checked["quantized::conv" + dims + "d"] + checked["quantized::conv" + dims + "d_relu"], 1);
        EXPECT_LE(checked.worst_quanta, kOneQuantum) << checked.worst;
        EXPECT_LE(max_difference(int8.forward(data[0]).toTensor(), model.forward(data[0]).toTensor()),
                  0.05 * exact.max().item<double>());
    }
}

TEST(Convert, ShapeQuestionsAreAnsweredByTheInt8Tensor) {
    const auto model = around(
        "    y = x.reshape(x.size(0), x.size(1), x.size(3), x.size(2))\n"
        "    return torch.conv2d(y, self.head.weight)\n");
    const auto data = images(2);
    const auto int8 = convert(plan_of(model, data));
    EXPECT_EQ(operators_of(int8).at("aten::dequantize"), 1);
    const Inputs larger{sine({5, 3, 6, 9})};
    EXPECT_EQ(int8.forward(larger).toTensor().sizes(), model.forward(larger).toTensor().sizes());
}

TEST(Convert, LinearBetweenFloatOperatorsRoundsInside) {
    const auto model =
        build_model({{"up.weight", sine({12, 6}, 0.4)}, {"up.bias", sine({12})}, {"down.weight", sine({6, 12}, 0.4)}},
                    "def forward(self, x):\n"
                    "    y = torch.gelu(torch.linear(x, self.up.weight, self.up.bias))\n"
                    "    z = torch.relu(torch.linear(y, self.down.weight))\n"
                    "    return torch.softmax(z, -1)\n");
    const auto data = images(2, {3, 5, 6});
    const auto plan = plan_of(model, data);
    const auto int8 = convert(plan);
    const auto checked = check_every_layer(int8, data[0]);
    EXPECT_EQ(checked["quantized::linear_with_input_q_dq_qweight_dq_output_fp32"], 1);
    EXPECT_EQ(checked["quantized::linear_with_input_q_dq_qweight_dq_relu_output_fp32"], 1);
    EXPECT_LE(checked.worst_quanta, 1);  // 1e-4 of the largest output: float32 sums
    EXPECT_EQ(operators_of(int8).count("aten::dequantize"), 0u);
    expect_like_simulation(plan, int8, data[1], 0.05);  // nothing is rounded between
}

/// What a fused linear layer gives, by plain arithmetic on the integers that it reads.
at::Tensor plain_linear(const at::Tensor& x, const Affine& input, const at::Tensor& weight, const at::Tensor& bias) {
    const auto integers = (x.to(at::kDouble) / input.scale).round().add(input.zero_point).clamp(0, 255);
    const auto scale = weight.abs().amax(1, true).to(at::kDouble) / 127;
    const auto rounded = (weight.to(at::kDouble) / scale).round() * scale;
    return at::matmul((integers - input.zero_point) * input.scale, rounded.t()) + bias.to(at::kDouble);
}

TEST(Convert, FusedLinearAppliesTheActivationAndHandsIntegersOn) {
    if (!exact_int8_products()) GTEST_SKIP() << "fused linear layers need VNNI";
    const std::vector<std::pair<std::string, std::function<at::Tensor(const at::Tensor&)>>> activations = {
        {"torch.gelu(y)", [](const at::Tensor& y) { return at::gelu(y); }},
        {"torch.gelu(y, approximate='tanh')", [](const at::Tensor& y) { return at::gelu(y, "tanh"); }},
        {"torch.relu(y)", [](const at::Tensor& y) { return at::relu(y); }},
        {"torch.silu(y)", [](const at::Tensor& y) { return at::silu(y); }},
        {"torch.hardswish(y)", [](const at::Tensor& y) { return at::hardswish(y); }},
        {"torch.tanh(y)", [](const at::Tensor& y) { return at::tanh(y); }},
    };
    const auto up = sine({12, 6}, 0.4), bias = sine({12}), down = sine({6, 12}, 0.4);
    const auto data = images(2, {3, 5, 6});
    StaticOptions options;
    options.linear = "fused";
    for (const auto& [text, apply] : activations) {
        SCOPED_TRACE(text);
        const auto model = build_model({{"up.weight", up}, {"up.bias", bias}, {"down.weight", down}},
                                       "def forward(self, x):\n"
                                       "    y = torch.linear(x, self.up.weight, self.up.bias)\n"
                                       "    z = torch.linear(" +
                                           text +
                                           ", self.down.weight)\n"
                                           "    return torch.softmax(z, -1)\n");
        const auto plan = plan_of(model, data, options);
        const auto int8 = convert(plan);
        const auto count = operators_of(int8);
        EXPECT_EQ(count.at("onednn::qlinear_pointwise"), 2);
        EXPECT_EQ(count.at("aten::quantize_per_tensor"), 1);  // between the two it stays int8
        EXPECT_EQ(count.count("aten::dequantize"), 0u);
        std::vector<Affine> inputs;
        for (const auto* node : all_nodes(*plan.model().graph()))
            if (node->kind() == torch::jit::aten::linear) inputs.push_back(*plan.parameters(node->input(0)));
        const auto& x = data[1][0].toTensor();
        const auto hidden = apply(plain_linear(x, inputs[0], up, bias));
        const auto expected = at::softmax(plain_linear(hidden, inputs[1], down, at::zeros({6})), -1);
        // oneDNN's activations are float32 approximations: of 180 hidden numbers one or two may round the other way.
        const double quantum = inputs[1].scale * down.abs().max().item<double>();
        EXPECT_LE(max_difference(int8.forward(data[1]).toTensor().to(at::kDouble), expected), quantum);
    }
}

TEST(Convert, AnActivationInsideALinearLayerIsNotEmittedAgainWhereThePlanHasItInInt8) {
    if (!exact_int8_products()) GTEST_SKIP() << "fused linear layers need VNNI";
    const auto model = build_model({{"a.weight", sine({12, 6}, 0.4)}, {"b.weight", sine({4, 12}, 0.4)}},
                                   "def forward(self, x):\n"
                                   "    y = torch.silu(torch.linear(x, self.a.weight))\n"
                                   "    return torch.softmax(torch.linear(y, self.b.weight), -1)\n");
    const auto data = images(2, {3, 6});
    StaticOptions options;
    options.linear = "fused";
    const auto plan = plan_of(model, data, options);
    auto impl = std::make_shared<StaticPlan::Impl>(plan.impl());
    int changed = 0;
    for (auto& unit : impl->units)
        if (unit.node->kind() == torch::jit::aten::silu) {
            EXPECT_FALSE(unit.int8);
            unit.int8 = true;  // as it may be beside other int8 operators, whatever the costs say here
            impl->parameters[unit.inputs[0]] = Affine{0.02, 128};
            ++changed;
        }
    ASSERT_EQ(changed, 1);
    const auto int8 = convert(StaticPlan(impl));
    EXPECT_EQ(operators_of(int8).count("quantized::sigmoid"), 0u);
    EXPECT_EQ(operators_of(int8).at("onednn::qlinear_pointwise"), 2);
    EXPECT_TRUE(at::equal(int8.forward(data[1]).toTensor(), convert(plan).forward(data[1]).toTensor()));
}

TEST(Convert, FusedLinearBetweenFloatTensorsIsThePackedOne) {
    if (!exact_int8_products()) GTEST_SKIP() << "fused linear layers need VNNI";
    const auto model =
        build_model({{"a.weight", sine({12, 6}, 0.4)}, {"a.bias", sine({12})}, {"b.weight", sine({4, 6}, 0.4)}},
                    "def forward(self, x):\n"
                    "    return [torch.softmax(torch.linear(x, self.a.weight, self.a.bias), -1), torch.linear(x, "
                    "self.b.weight)]\n");
    const auto data = images(2, {3, 5, 6});
    for (const bool per_channel : {true, false}) {
        StaticOptions options;
        options.per_channel = per_channel;
        options.linear = "packed";
        const auto packed = convert(plan_of(model, data, options));
        options.linear = "fused";
        const auto fused = convert(plan_of(model, data, options));
        EXPECT_EQ(operators_of(fused).at("aten::set_"), 1);  // both read the same integers
        const auto left = all_tensors(packed.forward(data[1])), right = all_tensors(fused.forward(data[1]));
        for (size_t i = 0; i < left.size(); ++i)
            EXPECT_LE(max_difference(left[i], right[i]), 1e-5) << i;  // sums of integers are exact, scales float32
    }
}

TEST(Convert, FusedLinearLayersPackTheirWeightsWhenTheFileIsLoaded) {
    if (!exact_int8_products()) GTEST_SKIP() << "fused linear layers need VNNI";
    const auto model = build_model({{"fc.up.weight", sine({64, 32}, 0.4)}, {"fc.up.bias", sine({64})}},
                                   "def forward(self, x):\n"
                                   "    return torch.gelu(torch.linear(x, self.fc.up.weight, self.fc.up.bias))\n");
    const auto data = images(2, {3, 32});
    StaticOptions options;
    options.linear = "fused";
    const auto int8 = convert(plan_of(model, data, options));
    const auto exact = int8.forward(data[0]).toTensor();
    TemporaryFolder folder;
    int8.save(folder.path() / "model.pt");
    EXPECT_LT(std::filesystem::file_size(folder.path() / "model.pt"), 64u * 32 + 8192);  // one copy, int8
    auto plain = torch::jit::load((folder.path() / "model.pt").string());  // what any LibTorch program does
    plain.eval();
    EXPECT_TRUE(plain.forward(data[0]).toTensor().equal(exact));
    EXPECT_TRUE(plain.deepcopy().forward(data[0]).toTensor().equal(exact));
    EXPECT_TRUE(torch::jit::freeze(plain).forward(data[0]).toTensor().equal(exact));
    // Saved once more by LibTorch, and read, copied and saved by Coppice.
    plain.save((folder.path() / "again.pt").string());
    EXPECT_TRUE(torch::jit::load((folder.path() / "again.pt").string()).forward(data[0]).toTensor().equal(exact));
    auto loaded = Model::load(folder.path() / "model.pt").clone();
    remove_unused_attributes(loaded);
    loaded.save(folder.path() / "copy.pt");
    EXPECT_TRUE(torch::jit::load((folder.path() / "copy.pt").string()).forward(data[0]).toTensor().equal(exact));
    const auto costs = cost(loaded, data[0]);
    EXPECT_EQ(costs.macs, 3 * 32 * 64);
    EXPECT_EQ(costs.parameters, 64 * 32);
    EXPECT_EQ(costs.unknown_operators, std::vector<std::string>());
    const LayerNames names(loaded);
    ASSERT_NE(names.find("fc.up"), nullptr);
    EXPECT_EQ(names.find("fc.up")->kind(), c10::Symbol::fromQualString("onednn::qlinear_pointwise"));
}

TEST(Convert, SubmodulesThatSaveThemselvesSaveWhatTheyAreGiven) {
    torch::jit::Module layer("Layer");
    layer.register_parameter("weight", sine({12, 6}, 0.4), false);
    layer.register_attribute("bias", c10::OptionalType::create(c10::TensorType::get()), c10::IValue());
    layer.define(
        "def forward(self, x):\n    return torch.linear(x, self.weight, self.bias)\n"
        "def __getstate__(self):\n    return (self.weight, self.bias)\n"
        "def __setstate__(self, state: Tuple[Tensor, Optional[Tensor]]) -> None:\n"
        "    self.weight = state[0]\n    self.bias = state[1]\n");
    torch::jit::Module root("Root");
    root.register_attribute("training", c10::BoolType::get(), false);
    root.register_module("layer", layer);
    root.define("def forward(self, x):\n    return torch.relu(self.layer.forward(x))\n");
    const auto model = Model::from_module(root, "root");
    const auto data = images(2, {3, 6});
    TemporaryFolder folder;
    model.save(folder / "float.pt");
    EXPECT_TRUE(torch::jit::load((folder / "float.pt").string())
                    .forward(data[0])
                    .toTensor()
                    .equal(model.forward(data[0]).toTensor()));
    const auto int8 = convert(plan_of(model, data));
    int8.save(folder / "int8.pt");
    EXPECT_TRUE(torch::jit::load((folder / "int8.pt").string())
                    .forward(data[0])
                    .toTensor()
                    .equal(int8.forward(data[0]).toTensor()));
}

/// Like check_every_layer for onednn::qconv2d_pointwise: every one against a convolution in double of the plan's int8
/// weights on the integers that came in. @return number of operators with "swish", "hardswish", "sum" and others
std::map<std::string, int> check_fused_convolutions(const Model& int8, const Inputs& inputs) {
    torch::NoGradGuard no_grad;
    std::map<std::string, int> checked;
    std::vector<c10::IValue> stack;
    at::Tensor residual;  // before it is overwritten
    NodeHooks hooks;
    const auto is_fused = [](const torch::jit::Node* node) {
        return std::string(node->kind().toQualString()) == "onednn::qconv2d_pointwise";
    };
    hooks.before = [&](const torch::jit::Node* node, std::vector<c10::IValue>& arguments) {
        if (!is_fused(node)) return;
        stack = arguments;
        residual = arguments.size() == 22 ? arguments[6].toTensor().clone() : at::Tensor();
    };
    hooks.after = [&](const torch::jit::Node* node, std::vector<c10::IValue>& outputs) {
        if (!is_fused(node)) return;
        const size_t next = residual.defined() ? 7 : 6;  // the bias
        const auto* packed = node->input(3)->node();
        auto name = *attribute_name(packed->output());
        name.replace(name.rfind(".packed"), std::string::npos, ".weight");
        const auto weight = get_attribute(int8, name).toTensor().to(at::kDouble) *
                            stack[4].toTensor().to(at::kDouble).reshape({-1, 1, 1, 1});
        const auto real = [](const at::Tensor& integers, double scale, int64_t zero) {
            return (integers.to(at::kDouble) - static_cast<double>(zero)) * scale;
        };
        auto exact = at::conv2d(real(stack[0].toTensor(), stack[1].toDouble(), stack[2].toInt()), weight,
                                stack[next].isTensor() ? stack[next].toTensor().to(at::kDouble) : at::Tensor(),
                                stack[next + 1].toIntVector(), stack[next + 2].toIntVector(),
                                stack[next + 3].toIntVector(), stack[next + 4].toInt());
        std::string kind = stack[stack.size() - 3].toStringRef();
        if (residual.defined()) {
            exact = exact + real(residual, stack[next + 8].toDouble(), stack[next + 9].toInt());
            EXPECT_EQ(stack[next + 10].toStringRef(), "sum");
            ++checked["sum"];
        }
        if (kind == "relu") exact = exact.relu();
        if (kind == "swish") exact = at::silu(exact);
        if (kind == "hardswish") exact = at::hardswish(exact);
        ++checked[kind];
        const auto y = outputs[0].toTensor();
        const bool rounded = y.scalar_type() == at::kByte;
        const double scale = rounded ? stack[next + 5].toDouble() : 1e-4 * exact.abs().max().item<double>();
        const auto got = rounded ? real(y, scale, stack[next + 6].toInt()) : y.to(at::kDouble);
        if (rounded) {
            const double zero = static_cast<double>(stack[next + 6].toInt());
            exact = exact.clamp(-zero * scale, (255 - zero) * scale);
        }
        // Half a step of rounding, and what float32 makes of a tie.
        EXPECT_LE(max_difference(got, exact), (rounded ? 0.5 + 1e-3 : 1.0) * scale * (kind == "hardswish" ? 2 : 1))
            << kind;
    };
    run_nodes(int8, inputs, hooks);
    return checked;
}

TEST(Convert, FusedConvolutionsApplyTheActivationOrAddTheResidualBeforeTheyRound) {
    if (!exact_int8_products()) GTEST_SKIP() << "fused convolutions need VNNI";
    const std::vector<std::pair<std::string, at::Tensor>> weights = {{"a.weight", sine({8, 8, 3, 3}, 0.2)},
                                                                     {"a.bias", sine({8})},
                                                                     {"d.weight", sine({8, 1, 3, 3}, 0.4)},
                                                                     {"b.weight", sine({8, 8, 1, 1}, 0.4)},
                                                                     {"l.weight", sine({4, 512}, 0.4)}};
    struct Case {
        std::string body;
        std::map<std::string, int> operators;
        int conversions;  ///< views from or to quantized tensors
        int copies = 0;   ///< of residuals that are read once more
    };
    const std::string a = "torch.conv2d(x, self.a.weight, self.a.bias, [1, 1], [1, 1])";
    for (const auto& [body, operators, conversions, copies] : std::vector<Case>{
             // A chain of SiLUs stays in plain integers; the last one is read as float.
             {"    y = torch.silu(" + a +
                  ")\n    y = torch.silu_(torch.conv2d(y, self.d.weight, None, [1, 1], [1, 1], "
                  "[1, 1], 8))\n    return y * 2\n",
              {{"swish", 2}},
              1},
             {"    y = torch.hardswish(" + a + ")\n    return torch.conv2d(y, self.b.weight)\n", {{"hardswish", 1}}, 2},
             // A residual block: what is added is the stem's output, read by nobody later.
             {"    y = torch.relu(" + a +
                  ")\n    z = torch.relu(torch.conv2d(y, self.b.weight) + x)\n"
                  "    return torch.conv2d(z, self.head.weight)\n",
              {{"relu", 1}, {"sum", 1}},
              3},
             // It is read once more behind the sum: a copy is overwritten instead.
             {"    z = x + " + a +
                  "\n    w = z + torch.conv2d(x, self.b.weight)\n"
                  "    return torch.conv2d(w, self.head.weight)\n",
              {{"sum", 2}, {"none", 2}},
              2,
              1},
             // The convolution adds what it reads, the last that does: it must not write where it still reads.
             {"    y = torch.relu(" + a +
                  ")\n    z = y + torch.conv2d(y, self.a.weight, None, [1, 1], [1, 1])\n"
                  "    return torch.conv2d(z, self.head.weight)\n",
              {{"sum", 1}, {"none", 1}},
              2,
              1},
             // The first convolution runs at its addition, behind the second, which adds what the first reads.
             {"    y = torch.relu(" + a +
                  ")\n    u = torch.conv2d(y, self.b.weight)\n    v = torch.conv2d(x, self.b.weight) + y\n"
                  "    return torch.conv2d(torch.relu(u + v), self.head.weight)\n",
              {{"relu", 1}, {"sum", 2}, {"none", 1}},
              3,
              1},
             // Both operands are convolutions.
             {"    z = torch.relu(torch.conv2d(x, self.b.weight) + " + a +
                  ")\n"
                  "    return torch.conv2d(z, self.head.weight)\n",
              {{"relu", 1}, {"sum", 1}},
              3},
             // Pooling reads quantized tensors.
             {"    y = torch.silu(" + a +
                  ")\n    z = torch.max_pool2d(y, [2, 2])\n"
                  "    return torch.conv2d(z, self.head.weight), y.size(1)\n",
              {{"swish", 1}},
              2},
             // What pooling gives is memory of its own.
             {"    y = torch.max_pool2d(torch.conv2d(x, self.b.weight), [2, 2])\n"
              "    z = torch.relu(y + torch.conv2d(torch.max_pool2d(x, [2, 2]), self.b.weight))\n"
              "    return torch.conv2d(z, self.head.weight)\n",
              {{"relu", 1}, {"sum", 1}},
              3},
             // A view of the residual is read behind the sum.
             {"    y = torch.relu(" + a +
                  ")\n    v = torch.reshape(y, [2, 8, 4, 16])\n    z = y + torch.conv2d(x, self.b.weight)\n"
                  "    return torch.conv2d(z, self.head.weight), torch.conv2d(v, self.head.weight)\n",
              {{"sum", 1}, {"none", 1}},
              3,
              1},
             // And this residual is a view of what is read behind the sum.
             {"    y = torch.relu(" + a +
                  ")\n    v = torch.reshape(y, [2, 8, 4, 16])\n    w = torch.reshape(x, [2, 8, 4, 16])\n"
                  "    z = v + torch.conv2d(w, self.b.weight)\n"
                  "    return torch.conv2d(z, self.head.weight), torch.conv2d(y, self.head.weight)\n",
              {{"sum", 1}, {"none", 1}},
              3,
              1},
             // A sum that broadcasts stays an operator of its own.
             {"    y = torch.silu(" + a +
                  ")\n    z = torch.mean(y, [2, 3], True) + torch.conv2d(y, self.b.weight)\n"
                  "    return torch.conv2d(z, self.head.weight)\n",
              {{"swish", 1}},
              -1}}) {
        SCOPED_TRACE(body);
        const auto model = around(body, weights);
        const auto data = images(3);
        StaticOptions options;
        options.conv = "fused";
        const auto plan = plan_of(model, data, options);
        const auto int8 = convert(plan);
        EXPECT_EQ(check_fused_convolutions(int8, data[0]), operators);
        const auto count = operators_of(int8);
        const auto of = [&](const char* op) { return count.count(op) ? count.at(op) : 0; };
        if (conversions >= 0) {
            EXPECT_EQ(of("aten::set_"), conversions);
        }
        EXPECT_EQ(of("aten::clone"), copies);
        EXPECT_EQ(of("quantized::add"), conversions < 0 ? 1 : 0);
        expect_like_simulation(plan, int8, data[1], 4);
        // The same file in stock LibTorch, frozen too; a second run sees nothing of what the first overwrote.
        TemporaryFolder folder;
        int8.save(folder.path() / "model.pt");
        auto stock = torch::jit::load((folder.path() / "model.pt").string());
        stock.eval();
        const auto first = all_tensors(int8.forward(data[1]));
        for (int run = 0; run < 3; ++run) {
            const auto again = all_tensors(stock.forward(data[1]));
            const auto frozen = all_tensors(torch::jit::freeze(stock).forward(data[1]));
            for (size_t i = 0; i < first.size(); ++i) {
                EXPECT_TRUE(at::equal(again[i], first[i]));
                EXPECT_TRUE(at::equal(frozen[i], first[i]));
            }
        }
        const auto costs = cost(int8, data[0]);
        EXPECT_EQ(costs.macs, cost(model, data[0]).macs);
        EXPECT_EQ(costs.unknown_operators, std::vector<std::string>());
    }
}

TEST(Convert, FusedDepthwiseConvolutionsOfManyChannelsKeepEightBits) {
    if (!exact_int8_products()) GTEST_SKIP() << "fused convolutions need VNNI";
    const auto model = build_model({{"a.weight", sine({104, 3, 1, 1}, 0.5)}, {"d.weight", sine({104, 1, 3, 3}, 0.4)}},
                                   "def forward(self, x):\n"
                                   "    y = torch.relu(torch.conv2d(x, self.a.weight))\n"
                                   "    return torch.conv2d(y, self.d.weight, None, [1, 1], [1, 1], [1, 1], 104)\n");
    const auto data = images(3);
    StaticOptions options;
    for (const std::string conv : {"packed", "fused"}) {
        options.conv = conv;
        const auto plan = plan_of(model, data, options);
        for (const auto& unit : plan.impl().units)
            if (unit.kind == UnitKind::kConv)
                EXPECT_EQ(plan.impl().weights.at(unit.node).int_repr().abs().max().item<int64_t>(),
                          conv == "packed" && as_conv(unit.node)->groups == 104 ? 63 : 127);
        const auto int8 = convert(plan);
        EXPECT_EQ(operators_of(int8).count("onednn::qconv2d_pointwise"), conv == "fused" ? 1u : 0u);
        if (conv == "fused") {
            EXPECT_EQ(check_fused_convolutions(int8, data[0]), (std::map<std::string, int>{{"none", 1}}));
        }
    }
}

TEST(Convert, OnlyLargeConvolutionsAreFusedWhereThatIsAskedFor) {
    if (!exact_int8_products()) GTEST_SKIP() << "fused convolutions need VNNI";
    const auto model =
        around("    y = torch.silu(torch.conv2d(x, self.a.weight))\n    return torch.conv2d(y, self.head.weight)\n",
               {{"a.weight", sine({8, 8, 1, 1}, 0.4)}});
    StaticOptions options;
    for (const int64_t side : {8, 256}) {
        const auto data = images(2, {2, 3, side, side});
        for (const std::string conv : {"packed", "fused_large", "fused"}) {
            options.conv = conv;
            const auto count = operators_of(convert(plan_of(model, data, options)));
            EXPECT_EQ(count.count("onednn::qconv2d_pointwise"),
                      conv == "fused" || (conv == "fused_large" && side == 256) ? 1u : 0u)
                << conv << side;
        }
        options.conv = "auto";
        const auto kinds = kernels_for(plan_of(model, data, options));
        ASSERT_EQ(kinds.size(), side == 256 ? 2u : 1u);
        EXPECT_EQ(kinds.back().conv, side == 256 ? "fused_large" : "packed");
    }
}

TEST(Convert, NoiseThatIsNoNumberIsNotTakenForSilence) {
    EXPECT_NEAR(sqnr_db(100.0, 1.0), 20, 1e-9);
    EXPECT_EQ(sqnr_db(1.0, 0.0), 200);
    EXPECT_EQ(sqnr_db(1.0, std::numeric_limits<double>::quiet_NaN()), -200);
    EXPECT_EQ(sqnr_db(1.0, std::numeric_limits<double>::infinity()), -200);
}

TEST(Convert, MatrixProductsWithAParameterAreLinearLayers) {
    const auto model =
        build_model({{"a.weight", sine({6, 8}, 0.4)}, {"b.weight", sine({5, 8}, 0.4)}, {"b.bias", sine({5})}},
                    "def forward(self, x):\n"
                    "    y = torch.mm(x, self.a.weight)\n"
                    "    return torch.addmm(self.b.bias, y, torch.t(self.b.weight))\n");
    const auto data = images(2, {3, 6});
    const auto plan = plan_of(model, data);
    const auto int8 = convert(plan);
    EXPECT_EQ(operators_of(int8).count("aten::mm"), 0u);
    EXPECT_EQ(operators_of(int8).count("aten::addmm"), 0u);
    expect_like_simulation(plan, int8, data[1], 1);
}

TEST(Convert, LinearChainsOnOneEngineOnlyAreInt8Throughout) {
    const auto model =
        build_model({{"a.weight", sine({16, 8}, 0.4)}, {"a.bias", sine({16})}, {"b.weight", sine({4, 16}, 0.4)}},
                    "def forward(self, x):\n"
                    "    y = torch.relu(torch.linear(x, self.a.weight, self.a.bias))\n"
                    "    return torch.linear(y, self.b.weight)\n");
    const auto known = engines();
    if (std::find(known.begin(), known.end(), "onednn") == known.end()) GTEST_SKIP() << "needs the onednn engine";
    StaticOptions options;
    options.engine = "onednn";  // it has no linear layer with float on both sides
    const auto data = images(2, {3, 8});
    const auto before = engine();
    const auto int8 = convert(plan_of(model, data, options));
    EXPECT_EQ(engine(), before);
    const auto checked = check_every_layer(int8, data[0]);
    EXPECT_EQ(checked["quantized::linear_relu"], 1);
    EXPECT_EQ(checked["quantized::linear"], 1);
    EXPECT_LE(checked.worst_quanta, kOneQuantum);
}

TEST(Convert, AViewBehindAConvolutionBecomesAReshape) {
    const auto model = build_model({{"c.weight", sine({8, 3, 3, 3}, 0.3)}},
                                   "def forward(self, x):\n"
                                   "    y = torch.conv2d(x, self.c.weight)\n"
                                   "    return torch.sigmoid(y.view(y.size(0), -1))\n");
    const auto data = images(2);
    const auto int8 = convert(plan_of(model, data));
    EXPECT_EQ(operators_of(int8).count("aten::view"), 0u);
    const double step = 8.0 / 255;  // of the convolution's output, times the largest slope of the sigmoid, 1/4
    EXPECT_LE(max_difference(int8.forward(data[0]).toTensor(), model.forward(data[0]).toTensor()), step);
}

}  // namespace
}  // namespace coppice::quantize
