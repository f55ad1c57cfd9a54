#include <ATen/core/dispatch/Dispatcher.h>
#include <coppice/eval.h>

#include "support/support.h"

namespace coppice::eval {
namespace {

using testing::build_model;
using testing::sine;

Operations operations_of(const Model& model, const Inputs& example) {
    return operations(model, example, cost(model, example));
}

TEST(Operations, ADenseFloatModelIsAllFloatAndNonZero) {
    const auto model =
        build_model({{"a.weight", at::ones({64, 32})}, {"b.weight", at::ones({8, 64})}},
                    "def forward(self, x):\n"
                    "    return torch.linear(torch.relu(torch.linear(x, self.a.weight)), self.b.weight)\n");
    const auto work = operations_of(model, {sine({4, 32})});
    const double macs = 4 * (64 * 32 + 8 * 64);
    EXPECT_EQ(work.macs, macs);
    EXPECT_EQ(work.nonzero_macs, macs);
    EXPECT_EQ(work.bit_operations, macs * 32 * 32);
    ASSERT_EQ(work.by_precision.size(), 1u);
    EXPECT_EQ(work.by_precision[0], std::pair(std::string("float32 x float32"), macs));
}

TEST(Operations, ZerosAreCountedOperatorByOperator) {
    auto sparse = at::ones({64, 32});
    sparse.narrow(0, 0, 48).zero_();  // a quarter is left
    const auto model = build_model({{"a.weight", sparse}, {"b.weight", at::ones({8, 64})}},
                                   "def forward(self, x):\n"
                                   "    y = torch.linear(x, self.a.weight)\n"
                                   "    return torch.matmul(y, self.b.weight.t())\n");
    const auto work = operations_of(model, {sine({4, 32})});
    EXPECT_EQ(work.macs, 4 * (64 * 32 + 8 * 64));
    EXPECT_EQ(work.nonzero_macs, 4 * (0.25 * 64 * 32 + 8 * 64));
    EXPECT_EQ(work.bit_operations, work.macs * 1024) << "dense kernels multiply zeros, too";
}

TEST(Operations, ProductsOfTwoComputedTensorsHaveNoWeights) {
    const auto model = build_model({}, "def forward(self, x):\n    return torch.matmul(x, x.transpose(0, 1))\n");
    const auto work = operations_of(model, {at::zeros({4, 32})});
    EXPECT_EQ(work.nonzero_macs, 4 * 4 * 32) << "zeros of an input are not zeros of the model";
}

TEST(Operations, LowBitWorkIsWhatTheKernelGets) {
    // Half precision is multiplied as such; int8 that is unpacked before the product is multiplied as float32.
    const auto model =
        build_model({{"half", at::ones({8, 16}).to(at::kBFloat16)}, {"packed", at::ones({4, 8}, at::kChar)}},
                    "def forward(self, x):\n"
                    "    y = torch.linear(x.to(self.half.dtype), self.half).to(x.dtype)\n"
                    "    return torch.linear(y, self.packed.to(x.dtype))\n");
    const auto work = operations_of(model, {sine({2, 16})});
    const double half = 2 * 8 * 16, single = 2 * 4 * 8;
    EXPECT_EQ(work.bit_operations, half * 16 * 16 + single * 32 * 32);
    ASSERT_EQ(work.by_precision.size(), 2u);
    EXPECT_EQ(work.by_precision[0], std::pair(std::string("bfloat16 x bfloat16"), half)) << "most first";
}

TEST(Operations, PackedInt8WeightsCountEightBitsOnBothSidesAndTheirZeros) {
    auto weight = at::ones({8, 16});
    weight.narrow(1, 0, 12).zero_();
    torch::jit::Stack stack = {at::quantize_per_tensor(weight, 0.1, 0, at::kQInt8), at::zeros({8})};
    c10::Dispatcher::singleton().findSchemaOrThrow("quantized::linear_prepack", "").callBoxed(&stack);
    auto model = build_model({}, "def forward(self, x):\n    return torch.relu(x)\n");
    const auto name = add_attribute(model, "packed", stack[0], Role::kAttribute, stack[0].type());
    auto graph = model.graph();
    for (auto* relu : all_nodes(*graph)) {
        if (relu->kind() != c10::aten::relu) continue;
        auto* packed = read_attribute(model, name, relu);
        torch::jit::WithInsertPoint here(relu);
        auto* linear = graph->create(c10::Symbol::fromQualString("quantized::linear_dynamic"),
                                     {relu->input(), packed, graph->insertConstant(false)});
        graph->insertNode(linear)->output()->setType(c10::TensorType::get());
        relu->replaceInput(0, linear->output());
    }
    const auto work = operations_of(model, {sine({2, 16})});
    EXPECT_EQ(work.macs, 2 * 8 * 16);
    EXPECT_EQ(work.bit_operations, 2 * 8 * 16 * 64);
    EXPECT_EQ(work.nonzero_macs, 0.25 * 2 * 8 * 16);
}

}  // namespace
}  // namespace coppice::eval
