#include <coppice/deploy.h>
#include <coppice/graph.h>

#include <torch/csrc/jit/testing/file_check.h>

#include "support/support.h"

namespace coppice::testing {
namespace {

using torch::jit::testing::FileCheck;

at::Tensor output(const Model& model, const Inputs& inputs) {
    torch::NoGradGuard no_grad;
    return first_tensor(model.forward(inputs));
}

std::string text(const Model& model) {
    return model.graph()->toString(/*print_source_locations=*/false);
}

int count(const Model& model, const std::string& op) {
    int found = 0;
    for (const auto* node : all_nodes(*model.graph())) found += node->kind().toQualString() == op;
    return found;
}

const Inputs kImage = {sine({2, 3, 8, 8})};

// -------------------------------------------------------------------------------------------------- channels last

TEST(ChannelsLast, ReordersInputAndWeightsAndKeepsValues) {
    auto model = residual_model();
    const auto before = output(model, kImage);
    EXPECT_EQ(to_channels_last(model, kImage), 4);
    FileCheck().check("aten::contiguous")->check("aten::conv2d")->run(text(model));
    EXPECT_EQ(count(model, "aten::contiguous"), 1);
    EXPECT_TRUE(get_attribute(model, "conv2.weight").toTensor().is_contiguous(at::MemoryFormat::ChannelsLast));
    // 1e-4 of outputs of order 1: another order of summation
    EXPECT_LT(max_difference(output(model, kImage), before), 1e-4);
}

TEST(ChannelsLast, SurvivesSavingAndLoading) {
    auto model = residual_model();
    to_channels_last(model, kImage);
    const TemporaryFolder folder;
    model.save(folder / "model.pt");
    auto stock = torch::jit::load((folder / "model.pt").string());
    EXPECT_TRUE(stock.attr("conv2").toModule().attr("weight").toTensor().is_contiguous(at::MemoryFormat::ChannelsLast));
    EXPECT_TRUE(at::equal(stock.forward(kImage).toTensor(), output(model, kImage)));
}

TEST(ChannelsLast, TurnsViewsIntoReshapesAndOutputsBack) {
    auto model = build_model({{"conv.weight", sine({4, 3, 3, 3})}},
                             "def forward(self, x):\n"
                             "    y = torch.conv2d(x, self.conv.weight)\n"
                             "    return y, y.view([y.size(0), -1])\n");
    const auto before = all_tensors(model.forward(kImage));
    EXPECT_EQ(to_channels_last(model, kImage), 1);
    const auto after = all_tensors(model.forward(kImage));
    ASSERT_EQ(after.size(), 2u);
    for (size_t i = 0; i < 2; ++i) {
        EXPECT_TRUE(after[i].is_contiguous());
        EXPECT_LT(max_difference(after[i], before[i]), 1e-4);
    }
    EXPECT_EQ(count(model, "aten::view"), 0);
}

TEST(ChannelsLast, AViewLikeAnotherTensorBecomesAReshape) {
    auto model = build_model({{"a.weight", sine({4, 3, 3, 3}, 0.3)}},
                             "def forward(self, x):\n"
                             "    return torch.conv2d(x, self.a.weight).view_as(torch.zeros([x.size(0), 144]))\n");
    const auto before = output(model, kImage);
    EXPECT_EQ(to_channels_last(model, kImage), 1);
    EXPECT_LT(max_difference(output(model, kImage), before), 1e-5);
}

TEST(ChannelsLast, LeavesModelsWithoutImagesAlone) {
    auto model = build_model({{"fc.weight", sine({4, 6})}},
                             "def forward(self, x):\n    return torch.linear(x, self.fc.weight)\n");
    const auto before = text(model);
    EXPECT_EQ(to_channels_last(model, {sine({2, 6})}), 0);
    EXPECT_EQ(text(model), before);
}

// ----------------------------------------------------------------------------------------------------------- fuse

TEST(FuseElementwise, FusesResidualsAndKeepsEveryBit) {
    auto model = residual_model();
    const auto before = output(model, kImage);
    EXPECT_EQ(fuse_elementwise(model, kImage), 4);  // two relus in place, add and relu as one
    EXPECT_EQ(count(model, "aten::relu_"), 2);
    EXPECT_EQ(count(model, "aten::_add_relu_"), 1);
    EXPECT_EQ(count(model, "aten::add") + count(model, "aten::relu"), 0);
    EXPECT_TRUE(at::equal(output(model, kImage), before));
    const Inputs one = {kImage[0].toTensor().slice(0, 0, 1)};
    EXPECT_TRUE(at::equal(output(model, one), output(residual_model(), one)));
}

TEST(FuseElementwise, NeverWritesIntoInputsParametersOrValuesReadTwice) {
    auto model = build_model({{"w", sine({4, 4})}, {"b", sine({4})}},
                             "def forward(self, x):\n"
                             "    a = torch.relu(x)\n"  // an input
                             "    b = torch.linear(a, self.w)\n"
                             "    c = torch.relu(b)\n"             // read again below
                             "    d = torch.sigmoid(self.w)\n"     // a parameter
                             "    e = torch.tanh(x.view([-1]))\n"  // a view of the input
                             "    return c + b + torch.linear(c, d, self.b) + e.sum()\n");
    const auto x = sine({3, 4});
    const auto kept_x = x.clone(), kept_w = get_attribute(model, "w").toTensor().detach().clone();
    const auto before = output(model, {x});
    fuse_elementwise(model, {x});
    EXPECT_TRUE(at::equal(output(model, {x}), before));
    EXPECT_TRUE(at::equal(output(model, {x}), before));  // a second run sees the same input and weights
    EXPECT_TRUE(at::equal(x, kept_x));
    EXPECT_TRUE(at::equal(get_attribute(model, "w").toTensor(), kept_w));
    EXPECT_EQ(count(model, "aten::relu_") + count(model, "aten::sigmoid_") + count(model, "aten::tanh_"), 0);
}

TEST(FuseElementwise, DoesNotShrinkASumThatBroadcasts) {
    auto model = build_model({{"w", sine({4, 4})}},
                             "def forward(self, x):\n"
                             "    m = torch.linear(x.mean([0], True), self.w)\n"  // [1, 4], fresh, read once
                             "    return torch.relu(m + x)\n");
    const Inputs inputs = {sine({3, 4})};
    const auto before = output(model, inputs);
    fuse_elementwise(model, inputs);
    EXPECT_EQ(count(model, "aten::_add_relu"), 1);
    EXPECT_TRUE(at::equal(output(model, inputs), before));
}

TEST(FuseElementwise, AnExampleOfOneImageDoesNotTellThatASumBroadcasts) {
    for (const char* operand : {"torch.linear(self.q, self.w)", "torch.linear(x.mean([0], True), self.w)"})
        for (const char* sum : {"m + h", "h + m"}) {
            auto model = build_model({{"w", sine({4, 4})}, {"v", sine({4, 4}, 0.7)}, {"q", sine({1, 4}, 0.3)}},
                                     std::string("def forward(self, x):\n    m = ") + operand +
                                         "\n    h = torch.linear(x, self.v)\n    return torch.relu(" + sum + ")\n");
            const Inputs four = {sine({4, 4})};
            const auto before = output(model, four);
            fuse_elementwise(model, {sine({1, 4})});
            EXPECT_EQ(count(model, "aten::add"), 0);
            EXPECT_TRUE(at::equal(output(model, four), before)) << operand << ", " << sum;
        }
}

TEST(FuseElementwise, KeepsTheFactorOfAnAddition) {
    auto model =
        build_model({{"w", sine({4, 4})}},
                    "def forward(self, x):\n    return torch.relu(torch.add(x, torch.linear(x, self.w), alpha=3))\n");
    const Inputs inputs = {sine({3, 4})};
    const auto before = output(model, inputs);
    fuse_elementwise(model, inputs);
    EXPECT_LT(max_difference(output(model, inputs), before), 1e-6);
}

TEST(FuseElementwise, TakesTheModelsOwnInPlaceAdditionAlong) {
    auto model = build_model({{"w", sine({4, 4})}},
                             "def forward(self, x):\n"
                             "    y = torch.linear(x, self.w)\n"
                             "    y += x\n"
                             "    return torch.relu(y)\n");
    const Inputs inputs = {sine({3, 4})};
    const auto before = output(model, inputs);
    EXPECT_EQ(fuse_elementwise(model, inputs), 2);
    EXPECT_EQ(count(model, "aten::_add_relu_"), 1);
    EXPECT_TRUE(at::equal(output(model, inputs), before));
}

TEST(FuseElementwise, LeavesAnInPlaceAdditionThatOthersSee) {
    auto model = build_model({{"w", sine({4, 4})}},
                             "def forward(self, x):\n"
                             "    y = torch.linear(x, self.w)\n"
                             "    z = y.add_(x)\n"
                             "    return torch.relu(z) + y\n");  // y is the sum too
    const Inputs inputs = {sine({3, 4})};
    const auto before = output(model, inputs);
    fuse_elementwise(model, inputs);
    EXPECT_EQ(count(model, "aten::_add_relu_") + count(model, "aten::_add_relu"), 0);
    EXPECT_TRUE(at::equal(output(model, inputs), before));
}

TEST(FuseElementwise, DoesNotMoveAnAdditionPastAWriteIntoItsOperand) {
    auto model = build_model({{"w", sine({4, 4})}},
                             "def forward(self, x):\n"
                             "    y = torch.linear(x, self.w)\n"
                             "    z = y + x\n"
                             "    y.mul_(3)\n"
                             "    return torch.relu(z) + y\n");
    const Inputs inputs = {sine({3, 4})};
    const auto before = output(model, inputs);
    fuse_elementwise(model, inputs);
    EXPECT_TRUE(at::equal(output(model, inputs), before));
}

TEST(FuseElementwise, SurvivesSavingAndLoading) {
    auto model = residual_model();
    fuse_elementwise(model, kImage);
    const TemporaryFolder folder;
    model.save(folder / "model.pt");
    auto stock = torch::jit::load((folder / "model.pt").string());
    torch::NoGradGuard no_grad;
    for (int run = 0; run < 4; ++run)  // the executor optimises in the third run
        EXPECT_TRUE(at::equal(stock.forward(kImage).toTensor(), output(model, kImage)));
}

// ----------------------------------------------------------------------------------------------- bf16, sub-normals

TEST(Bfloat16, ComputesInItAndAnswersInFloat) {
    auto model = residual_model();
    const auto before = output(model, kImage);
    EXPECT_GT(to_bfloat16(model, kImage), 0);
    const auto after = output(model, kImage);
    EXPECT_EQ(after.scalar_type(), at::kFloat);
    EXPECT_EQ(get_attribute(model, "conv1.weight").toTensor().scalar_type(), at::kBFloat16);
    // 8 bits of precision: 2^-8 = 0.4 % per operator, a dozen in a row
    EXPECT_LT(max_difference(after, before), 0.05 * before.abs().max().item<double>());
    EXPECT_GT(max_difference(after, before), 0);
}

TEST(Subnormals, AreSetToZeroAndCounted) {
    auto model =
        build_model({{"fc.weight", at::tensor({1e-39f, -3e-41f, 1.2e-38f, 0.0f, 1.0f, -1e-45f}).reshape({2, 3})}},
                    "def forward(self, x):\n    return torch.linear(x, self.fc.weight)\n");
    EXPECT_EQ(zero_subnormals(model), 3);  // the smallest normal number is 1.17549e-38
    EXPECT_TRUE(at::equal(get_attribute(model, "fc.weight").toTensor(),
                          at::tensor({0.0f, 0.0f, 1.2e-38f, 0.0f, 1.0f, 0.0f}).reshape({2, 3})));
    EXPECT_EQ(zero_subnormals(model), 0);
}

TEST(Subnormals, OfEveryTypeThatIsSlowWithThemAndOfSparseRows) {
    // Two below the smallest normal number of each type, which is the third; what is larger stays.
    const auto of = [](at::ScalarType type, double smallest) {
        return at::tensor({smallest / 2, -smallest / 4, smallest, 1.0}, at::kDouble).to(type).reshape({2, 2});
    };
    const double half = 6.103515625e-5, single = 1.1754943508222875e-38, full = 2.2250738585072014e-308;
    const auto rows = of(at::kFloat, single).to_sparse_csr();
    auto model = build_model({{"a.weight", of(at::kDouble, full)},
                              {"b.weight", of(at::kBFloat16, single)},
                              {"c.weight", of(at::kHalf, half)},
                              {"d.weight", sine({2, 2})}},
                             R"(
def forward(self, x):
    return torch.linear(x, self.d.weight), self.a.weight, self.b.weight, self.c.weight
)");
    set_tensor(model, "d.weight", rows);
    EXPECT_EQ(zero_subnormals(model), 6);
    const auto zeroed = [](const at::Tensor& values) {
        return at::cat({at::zeros({2}, values.options()), values.flatten().slice(0, 2)}).reshape({2, 2});
    };
    EXPECT_TRUE(at::equal(get_attribute(model, "a.weight").toTensor(), zeroed(of(at::kDouble, full))));
    EXPECT_TRUE(at::equal(get_attribute(model, "b.weight").toTensor(), zeroed(of(at::kBFloat16, single))));
    EXPECT_TRUE(at::equal(get_attribute(model, "c.weight").toTensor(), of(at::kHalf, half)));
    const auto sparse = get_attribute(model, "d.weight").toTensor();
    ASSERT_EQ(sparse.layout(), at::kSparseCsr);
    EXPECT_TRUE(at::equal(sparse.values(), zeroed(of(at::kFloat, single)).flatten()));
    EXPECT_EQ(zero_subnormals(model), 0);
}

}  // namespace
}  // namespace coppice::testing
