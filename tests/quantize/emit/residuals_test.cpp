// Additions inside fused convolutions write over what they add: who else reads it, which strides it has, whether it
// grows with the batch.
#include "../layer_check.h"
#include "plan/plan.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

std::vector<Inputs> images(int batches, int64_t examples = 2) {
    std::vector<Inputs> all;
    for (int i = 0; i < batches; ++i) all.push_back({sine({examples, 3, 8, 8}, 1.0 + 0.2 * i) + 0.1 * i});
    return all;
}

/// `x` is [N, 8, 8, 8], behind a convolution and a relu.
Model around(const std::string& body) {
    return build_model({{"stem.weight", sine({8, 3, 3, 3}, 0.3)},
                        {"a.weight", sine({8, 8, 3, 3}, 0.2)},
                        {"a.bias", sine({8})},
                        {"b.weight", sine({8, 8, 1, 1}, 0.4)},
                        {"head.weight", sine({4, 8, 1, 1}, 0.5)},
                        {"wide.weight", sine({4, 16, 1, 1}, 0.45)},
                        {"queries", sine({1, 8, 8, 8}, 0.7)},
                        {"scale.weight", sine({8}, 0.3) + 1}},
                       "def forward(self, x):\n"
                       "    x = torch.relu(torch.conv2d(x, self.stem.weight, None, [1, 1], [1, 1]))\n" +
                           body);
}

StaticPlan plan_of(const Model& model, const std::vector<Inputs>& data, const std::string& conv,
                   const Inputs* example = nullptr) {
    StaticOptions options;
    options.observer = minmax();
    options.conv = conv;
    return plan_static(model, example ? *example : data[0], data, options);
}

int count(const Model& model, const std::string& op) {
    int found = 0;
    for (const auto* node : all_nodes(*model.graph())) found += op == node->kind().toQualString();
    return found;
}

/// Sums inside a convolution.
int fused_sums(const Model& model) {
    int found = 0;
    for (const auto* node : all_nodes(*model.graph()))
        found += std::string(node->kind().toQualString()) == "onednn::qconv2d_pointwise" && node->inputs().size() == 22;
    return found;
}

/// Noise of an output against the float model's.
double noise(const Model& exact, const Model& rounded, const Inputs& inputs, size_t output) {
    const auto a = all_tensors(exact.forward(inputs)).at(output), b = all_tensors(rounded.forward(inputs)).at(output);
    return (a - b).pow(2).sum(at::kDouble).item<double>();
}

/// The fused model rounds at fewer places than the packed one: it is no noisier but for ties.
void expect_as_exact_as_packed(const Model& model, const Model& fused, const Model& packed, const Inputs& inputs) {
    const auto outputs = all_tensors(model.forward(inputs)).size();
    for (size_t i = 0; i < outputs; ++i)
        EXPECT_LE(noise(model, fused, inputs, i), 1.5 * noise(model, packed, inputs, i)) << "output " << i;
}

TEST(FusedResiduals, WhatAUnitStillReadsIsNotOverwritten) {
    if (!exact_int8_products()) GTEST_SKIP() << "fused convolutions need VNNI";
    const std::string sum =
        "    y = torch.relu(torch.conv2d(x, self.a.weight, self.a.bias, [1, 1], [1, 1]))\n"
        "    z = torch.relu(torch.conv2d(y, self.b.weight) + x)\n";
    struct Case {
        std::string body;
        int copies;
    };
    for (const auto& [body, copies] :
         std::vector<Case>{// A concatenation behind the sum reads the residual through a list.
                           {sum + "    return torch.conv2d(torch.cat([z, x], 1), self.wide.weight)\n", 1},
                           // The list is made in front of the sum, the concatenation behind it.
                           {"    y = torch.relu(torch.conv2d(x, self.a.weight, self.a.bias, [1, 1], [1, 1]))\n"
                            "    parts = [y, x]\n"
                            "    z = torch.relu(torch.conv2d(y, self.b.weight) + x)\n"
                            "    w = torch.cat(parts, 1)\n"
                            "    return torch.conv2d(z, self.head.weight), torch.conv2d(w, self.wide.weight)\n",
                            1},
                           // Done before the sum.
                           {"    y = torch.relu(torch.conv2d(x, self.a.weight, self.a.bias, [1, 1], [1, 1]))\n"
                            "    w = torch.conv2d(torch.cat([y, x], 1), self.wide.weight)\n"
                            "    z = torch.relu(torch.conv2d(y, self.b.weight) + x)\n"
                            "    return torch.conv2d(z, self.head.weight), w\n",
                            0},
                           // Slices in front of the sum belong to a padding behind it, which reads what they read.
                           {"    s = x[:, :, ::2, ::2]\n" + sum +
                                "    p = torch.constant_pad_nd(s, [0, 0, 0, 0, 4, 4])\n"
                                "    return torch.conv2d(z, self.head.weight), torch.conv2d(p, self.wide.weight)\n",
                            1}}) {
        SCOPED_TRACE(body);
        const auto model = around(body);
        const auto data = images(3);
        const auto fused = convert(plan_of(model, data, "fused"));
        EXPECT_EQ(fused_sums(fused), 1);
        EXPECT_EQ(count(fused, "aten::clone"), copies);
        EXPECT_EQ(count(fused, "aten::cat") + count(fused, "quantized::cat"), body.find("cat(") == body.npos ? 0 : 1);
        for (const auto& inputs : {data[1], images(1, 5)[0]})
            expect_as_exact_as_packed(model, fused, convert(plan_of(model, data, "packed")), inputs);
    }
}

TEST(FusedResiduals, ThoseOfConvolutionsSumsAndPoolingAreNotReordered) {
    if (!exact_int8_products()) GTEST_SKIP() << "fused convolutions need VNNI";
    const auto model = around(
        "    x = torch.max_pool2d(x, [2, 2])\n"
        "    x = torch.relu(torch.conv2d(torch.relu(torch.conv2d(x, self.b.weight)), self.a.weight, None, [1, 1], "
        "[1, 1]) + x)\n"
        "    x = torch.relu(torch.conv2d(torch.relu(torch.conv2d(x, self.b.weight)), self.a.weight, None, [1, 1], "
        "[1, 1]) + x)\n"
        "    return torch.conv2d(x, self.head.weight).mean([2, 3])\n");
    const auto data = images(3);
    const auto fused = convert(plan_of(model, data, "fused"));
    EXPECT_EQ(fused_sums(fused), 2);
    EXPECT_EQ(count(fused, "aten::clone"), 0);
    int reordered = 0;  // but for the image
    for (const auto* node : all_nodes(*fused.graph()))
        reordered += node->kind() == torch::jit::aten::contiguous &&
                     node->input(0)->node()->kind() != torch::jit::prim::Param &&
                     node->output()->uses()[0].user->kind() != torch::jit::prim::Return;
    EXPECT_EQ(reordered, 0);
    expect_as_exact_as_packed(model, fused, convert(plan_of(model, data, "packed")), images(1, 5)[0]);
}

TEST(FusedResiduals, OfAnyStridesAreAdded) {
    if (!exact_int8_products()) GTEST_SKIP() << "fused convolutions need VNNI";
    const std::string sum =
        "    z = torch.relu(torch.conv2d(x, self.a.weight, self.a.bias, [1, 1], [1, 1]) + y)\n"
        "    return torch.conv2d(z, self.head.weight)";
    for (const std::string& body :
         {"    y = torch.layer_norm(x, [8], self.scale.weight)\n" + sum + "\n",     // contiguous, read by the sum alone
          "    y = torch.layer_norm(x, [8], self.scale.weight)\n" + sum + ", y\n",  // its floats are read elsewhere too
          "    y = torch.layer_norm(x, [8], self.scale.weight)\n" + sum + ", torch.conv2d(y, self.head.weight)\n",
          "    y = x.transpose(2, 3)\n" + sum + "\n"}) {
        SCOPED_TRACE(body);
        const auto model = around(body);
        const auto data = images(3);
        const auto fused = convert(plan_of(model, data, "fused"));
        EXPECT_EQ(fused_sums(fused), 1);
        for (const auto& inputs : {data[1], images(1, 5)[0]})
            expect_as_exact_as_packed(model, fused, convert(plan_of(model, data, "packed")), inputs);
    }
}

TEST(FusedResiduals, ThatDoNotGrowWithTheBatchAreAddedByAnOperatorOfTheirOwn) {
    if (!exact_int8_products()) GTEST_SKIP() << "fused convolutions need VNNI";
    const std::string conv = "torch.conv2d(x, self.a.weight, self.a.bias, [1, 1], [1, 1])";
    // Of a parameter: the same for every image, and of the size of one.
    const std::string fixed = "    y = torch.relu(torch.conv2d(self.queries * 2, self.b.weight))\n";
    // Of all images.
    const std::string mean = "    y = torch.relu(torch.conv2d(x.mean([0], True), self.b.weight))\n";
    struct Case {
        std::string body;
        bool one_by_one;  ///< calibration data show one image at a time
    };
    for (const auto& [body, one_by_one] : std::vector<Case>{{fixed + "    z = torch.relu(" + conv + " + y)\n", true},
                                                            {fixed + "    z = torch.relu(y + " + conv + ")\n", true},
                                                            {mean + "    z = torch.relu(" + conv + " + y)\n", false},
                                                            {mean + "    z = torch.relu(y + " + conv + ")\n", false}}) {
        SCOPED_TRACE(body);
        const auto model = around(body + "    return torch.conv2d(z, self.head.weight)\n");
        const auto data = images(3, one_by_one ? 1 : 4);
        const Inputs example{data[0][0].toTensor().slice(0, 0, 1)};
        for (const std::string kind : {"fused", "packed"}) {
            const auto int8 = convert(plan_of(model, data, kind, &example));
            EXPECT_EQ(fused_sums(int8), 0);
            EXPECT_EQ(count(int8, "quantized::add_relu"), 1);
            NodeHooks hooks;
            hooks.before = [](const torch::jit::Node* node, std::vector<c10::IValue>& stack) {
                if (std::string(node->kind().toQualString()) == "quantized::add_relu")
                    EXPECT_EQ(stack[0].toTensor().size(0), 4) << "LibTorch makes the result as large as the first";
            };
            run_nodes(int8, images(1, 4)[0], hooks);
            for (const auto& inputs : {example, images(1, 4)[0]}) {
                const auto exact = model.forward(inputs).toTensor();
                EXPECT_LE(max_difference(int8.forward(inputs).toTensor(), exact),
                          0.1 * exact.abs().max().item<double>());  // rounding of four layers, ranges of other batches
            }
        }
    }
}

}  // namespace
}  // namespace coppice::quantize
