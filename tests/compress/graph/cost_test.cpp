#include "support/support.h"
#include "zoo/models.h"

namespace coppice::testing {
namespace {

TEST(Cost, CountsAConvolutionByHand) {
    const auto model = build_model({{"conv.weight", sine({8, 2, 3, 5})}, {"conv.bias", sine({8})}},
                                   "def forward(self, x):\n    return torch.conv2d(x, self.conv.weight, "
                                   "self.conv.bias, [2, 1], [1, 2], [1, 1], 3)\n");
    EXPECT_ERROR(cost(model, {sine({1, 6, 9, 7})}), UnsupportedModel, "aten::conv2d");  // 8 filters in 3 groups
    const auto good = build_model(
        {{"conv.weight", sine({9, 2, 3, 5})}},
        "def forward(self, x):\n    return torch.conv2d(x, self.conv.weight, None, [2, 1], [1, 2], [1, 1], 3)\n");
    const auto total = cost(good, {sine({4, 6, 9, 7})});
    // 4 images x 9 filters x (5 x 7) pixels x (2 x 3 x 5) products
    EXPECT_EQ(total.macs, 4.0 * 9 * 5 * 7 * 2 * 3 * 5);
    EXPECT_EQ(total.flops, 2 * total.macs);
    EXPECT_EQ(total.parameters, 9 * 2 * 3 * 5);
    EXPECT_EQ(total.activation_bytes, 4 * 9 * 5 * 7 * 4);
    ASSERT_EQ(total.layers.size(), 1u);
    EXPECT_EQ(total.layers[0].name, "conv");
    EXPECT_EQ(total.layers[0].output_shape, (std::vector<int64_t>{4, 9, 5, 7}));
}

TEST(Cost, CountsATransposedConvolutionByItsInputs) {
    const auto model =
        build_model({{"up.weight", sine({6, 4, 2, 2})}},
                    "def forward(self, x):\n    return torch.conv_transpose2d(x, self.up.weight, None, [2, 2])\n");
    // every input element meets 4 filters of 2 x 2: 6 x 5 x 5 inputs
    EXPECT_EQ(cost(model, {sine({1, 6, 5, 5})}).macs, 6.0 * 5 * 5 * 4 * 2 * 2);
}

TEST(Cost, CountsMatrixProductsAttentionAndRecurrence) {
    const auto matmul = build_model({{"w", sine({1})}}, "def forward(self, x, y):\n    return torch.matmul(x, y)\n");
    EXPECT_EQ(cost(matmul, {sine({2, 3, 4}), sine({2, 4, 5})}).macs, 2.0 * 3 * 4 * 5);
    const auto einsum =
        build_model({{"w", sine({1})}}, "def forward(self, x, y):\n    return torch.einsum('bij,bjk->bik', [x, y])\n");
    EXPECT_EQ(cost(einsum, {sine({2, 3, 4}), sine({2, 4, 5})}).macs, 2.0 * 3 * 4 * 5);
    const auto attention = build_model(
        {{"w", sine({1})}}, "def forward(self, q, k, v):\n    return torch.scaled_dot_product_attention(q, k, v)\n");
    // 2 x 3 heads, 5 queries, 7 keys, widths 8 and 9
    EXPECT_EQ(cost(attention, {sine({2, 3, 5, 8}), sine({2, 3, 7, 8}), sine({2, 3, 7, 9})}).macs,
              2.0 * 3 * 5 * 7 * (8 + 9));
    const auto gru = build_model({{"gru.w_ih", sine({3 * 6, 4})},
                                  {"gru.w_hh", sine({3 * 6, 6})},
                                  {"gru.b_ih", sine({18})},
                                  {"gru.b_hh", sine({18})}},
                                 "def forward(self, x):\n    h = torch.zeros([1, x.size(0), 6])\n    return "
                                 "torch.gru(x, h, [self.gru.w_ih, self.gru.w_hh, self.gru.b_ih, "
                                 "self.gru.b_hh], True, 1, 0.0, False, False, True)\n");
    // 2 sequences of 5 steps: 3 gates of 6, each from 4 inputs and 6 states
    EXPECT_EQ(cost(gru, {sine({2, 5, 4})}).macs, 2.0 * 5 * 3 * 6 * (4 + 6));
}

TEST(Cost, WeightsBelongToTheLayerThatComputesWithThem) {
    const auto model = build_model({{"gru.w_ih", sine({18, 4})},
                                    {"gru.w_hh", sine({18, 6})},
                                    {"gru.b_ih", sine({18})},
                                    {"gru.b_hh", sine({18})},
                                    {"head.weight", sine({6, 5})}},
                                   R"(
def forward(self, x):
    h = torch.zeros([1, x.size(0), 6], dtype=self.gru.w_ih.dtype)
    y, h = torch.gru(x, h, [self.gru.w_ih, self.gru.w_hh, self.gru.b_ih, self.gru.b_hh], True, 1, 0.0, False, False, True)
    return torch.matmul(y, self.head.weight)
)");
    std::map<std::string, int64_t> parameters;
    for (const auto& layer : cost(model, {sine({2, 5, 4})}).layers)
        if (layer.parameters > 0) parameters[layer.op] += layer.parameters;
    EXPECT_EQ(parameters, (std::map<std::string, int64_t>{{"aten::gru", 18 * (4 + 6 + 2)}, {"aten::matmul", 30}}));
}

TEST(Cost, CountsFlopsOfOperatorsWithoutProductsByHand) {
    // x [2, 3, 4], y [4, 5]; per element: one operation for each sum, product or comparison of the textbook form.
    const struct {
        const char* expression;
        double flops;
    } cases[] = {
        {"torch.relu(x)", 24},                 // a comparison each
        {"x + x", 24},                         //
        {"torch.clamp(x, 0.0, 1.0)", 2 * 24},  // two comparisons
        {"torch.softmax(x, 2)", 5 * 24},       // maximum, difference, exponential, sum, quotient
        {"torch.layer_norm(x, [4])", 5 * 24},  // two sums, difference, quotient, scale
        {"torch.remainder(x, 0.5)", 24},
        {"torch.diff(x)", 18},                                     // of the result [2, 3, 3]
        {"torch._weight_norm(y, torch.ones([4, 1]), 0)", 3 * 20},  // product, sum, scale of each weight
        {"torch.sum(x)", 24},                                      // one addition per INPUT element
        {"torch.mean(x, [1])", 24},                                //
        {"torch.max_pool1d(x, [2])", 24},                          // one comparison per input element
        {"x.reshape([6, 4])", 0},                                  // moves nothing
        {"torch.cat([x, x], 1)", 0},                               // moves, does not compute
        {"torch.matmul(x, y)", 2 * 2 * 3 * 4 * 5},                 // a product and a sum for each of 2 x 3 x 5 x 4
        {"torch.addmm(y[:3], x[0], y)", 2 * 3 * 4 * 5},            // [3, 4] x [4, 5]; the sum is part of the product
        {"torch.relu(x) * 2 + 1", 3 * 24},                         // three operators
    };
    for (const auto& [expression, flops] : cases) {
        const auto model =
            build_model({{"w", sine({1})}}, std::string("def forward(self, x, y):\n    return ") + expression + "\n");
        const auto total = cost(model, {sine({2, 3, 4}), sine({4, 5})});
        EXPECT_EQ(total.flops, flops) << expression;
        EXPECT_TRUE(total.unknown_operators.empty()) << expression;
    }
}

TEST(Cost, CountsAnLstmCellByCell) {
    const auto model = build_model({{"lstm.w_ih", sine({4 * 6, 5})},
                                    {"lstm.w_hh", sine({4 * 6, 6})},
                                    {"lstm.b_ih", sine({24})},
                                    {"lstm.b_hh", sine({24})}},
                                   "def forward(self, x):\n    h = torch.zeros([1, x.size(0), 6])\n    return "
                                   "torch.lstm(x, [h, h], [self.lstm.w_ih, self.lstm.w_hh, self.lstm.b_ih, "
                                   "self.lstm.b_hh], True, 1, 0.0, False, False, True)[0]\n");
    // 3 sequences of 7 steps: four gates of 6, each from 5 inputs and 6 states
    EXPECT_EQ(cost(model, {sine({3, 7, 5})}).macs, 3.0 * 7 * 4 * 6 * (5 + 6));
}

TEST(Cost, TheTimelineHasEveryExecutionInOrder) {
    const auto model = build_model({{"w", sine({1})}},
                                   "def forward(self, x):\n    for i in range(3):\n        x = torch.tanh(x)\n"
                                   "    return torch.relu(x)\n");
    const auto timeline = operator_timeline(model, {sine({64})});
    std::string order;
    double end = 0;
    for (const auto& run : timeline) {
        EXPECT_GE(run.start_s, end);
        EXPECT_GE(run.seconds, 0);
        EXPECT_GE(run.cpu_s, 0);
        end = run.start_s + run.seconds;
        const std::string op = run.node->kind().toQualString();
        if (op == "aten::tanh" || op == "aten::relu") order += op.substr(6) + " ";
    }
    EXPECT_EQ(order, "tanh tanh tanh relu ");
}

TEST(Cost, ListsOperatorsItHasNoRuleFor) {
    const auto model = build_model({{"w", sine({1})}}, "def forward(self, x):\n    return torch.logcumsumexp(x, 1)\n");
    EXPECT_EQ(cost(model, {sine({2, 3})}).unknown_operators, std::vector<std::string>{"aten::logcumsumexp"});
}

TEST(Cost, NestedTensorsAreNamedAsNotCounted) {
    // As nn.TransformerEncoder makes them of padded input.
    const auto model = build_model({{"w", sine({4, 3})}},
                                   "def forward(self, x):\n"
                                   "    n = torch._nested_tensor_from_mask(x, x.sum(-1) < 1e9)\n"
                                   "    y = torch.to_padded_tensor(torch.relu(n), 0.0)\n"
                                   "    return torch.linear(y, self.w)\n");
    const Inputs example{sine({2, 5, 3})};
    const auto total = cost(model, example);
    EXPECT_THAT(total.unknown_operators, ::testing::UnorderedElementsAre("aten::_nested_tensor_from_mask", "aten::relu",
                                                                         "aten::to_padded_tensor"));
    EXPECT_EQ(total.macs, 2 * 5 * 3 * 4);
    const auto facts = Facts::observe(model, example);
    for (const auto* node : all_nodes(*model.graph()))
        if (std::string(node->kind().toQualString()) == "aten::relu") EXPECT_FALSE(facts.has_shape(node->output()));
}

struct Published {
    const char* file;
    double giga_macs;
};

class PublishedMacs : public ::testing::TestWithParam<Published> {};

TEST_P(PublishedMacs, AgreeAt224Pixels) {
    const auto& [file, giga_macs] = GetParam();
    const std::string path = std::string("zoo/") + file;
    SKIP_WITHOUT_DATA(path);
    const auto total = cost(Model::load(data_path(path)), {at::zeros({1, 3, 224, 224})});
    // The published figures have three digits; ViT-B/16's leaves out a part of the attention (0.3 %).
    EXPECT_NEAR(total.macs / 1e9, giga_macs, 0.01 * giga_macs);
    EXPECT_TRUE(total.unknown_operators.empty()) << c10::Join(", ", total.unknown_operators);
    for (const auto& model : zoo_models())
        if (model.file == file) {
            EXPECT_EQ(total.parameters, model.parameters);
        }
}

// torchvision's documentation of its models: GFLOPS, which are multiply-adds there.
INSTANTIATE_TEST_SUITE_P(
    Torchvision, PublishedMacs,
    ::testing::Values(Published{"tv_resnet18.script.pt", 1.81}, Published{"tv_resnet18.trace.pt", 1.81},
                      Published{"tv_resnet50.script.pt", 4.09}, Published{"tv_mobilenet_v2.script.pt", 0.30},
                      Published{"tv_vit_b_16.trace.pt", 17.6}, Published{"tv_vit_b_16.script.pt", 17.6}),
    [](const auto& info) { return test_name(info.param.file); });

}  // namespace
}  // namespace coppice::testing
