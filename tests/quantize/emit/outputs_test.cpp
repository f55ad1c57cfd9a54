// int8 convolutions give strides of channels last. Who calls the model, and operators that go by strides, find those of
// the float model.
#include "../layer_check.h"
#include "plan/plan.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

Model model_of(const std::string& body) {
    return build_model({{"a.weight", sine({8, 3, 3, 3}, 0.3)},
                        {"b.weight", sine({4, 8, 3, 3}, 0.2)},
                        {"l.weight", sine({5, 8}, 0.4)},
                        {"up.weight", sine({8, 4, 2, 2}, 0.4)}},
                       "def forward(self, x):\n"
                       "    y = torch.relu(torch.conv2d(x, self.a.weight, None, [1, 1], [1, 1]))\n" +
                           body);
}

const std::string kHead = "    z = torch.conv2d(y, self.b.weight, None, [1, 1], [1, 1])\n";

StaticPlan plan_of(const Model& model, const std::string& conv, const Inputs& x) {
    StaticOptions options;
    options.observer = minmax();
    options.conv = conv;
    return plan_static(model, x, std::vector<Inputs>{x}, options);
}

std::vector<std::string> kinds() {
    return exact_int8_products() ? std::vector<std::string>{"packed", "fused"} : std::vector<std::string>{"packed"};
}

/// Few steps of rounding of what the model gives in all.
void expect_near(const std::vector<at::Tensor>& int8, const std::vector<at::Tensor>& exact) {
    ASSERT_EQ(int8.size(), exact.size());
    double largest = 0;
    for (const auto& tensor : exact) largest = std::max(largest, tensor.abs().max().item<double>());
    for (size_t i = 0; i < exact.size(); ++i)
        EXPECT_LE(max_difference(int8[i], exact[i]), 0.04 * largest) << "output " << i;
}

TEST(Outputs, AreContiguousWhereTheFloatModelsAre) {
    for (const std::string& body : {
             kHead + "    return z\n",
             kHead + "    return torch.tanh(z)\n",  // in float, but of strides that came out of int8
             kHead + "    return z, y, x * 2\n",
             kHead + "    return (z, [y, torch.flatten(z, 2)])\n",
             kHead + "    return {'out': z, 'features': y, 'silu': torch.silu(y)}\n",
             kHead + "    return z.permute([0, 2, 3, 1]), z[0, 0], z.mean([2, 3])\n",  // the first two are no copies
             std::string("    return torch.conv_transpose2d(y, self.up.weight, None, [2, 2])\n"),
             kHead + "    return torch.linear(y.permute([0, 2, 3, 1]), self.l.weight)\n",
         })
        for (const auto& conv : kinds())
            for (const int64_t examples : {1, 3}) {
                SCOPED_TRACE(body + conv);
                const auto model = model_of(body);
                const Inputs x{sine({2, 3, 8, 8})}, other{sine({examples, 3, 10, 8}, 0.9)};
                const auto int8 = convert(plan_of(model, conv, x));
                TemporaryFolder folder;
                int8.save(folder / "model.pt");
                const auto exact = all_tensors(model.forward(other));
                const auto given =
                    all_tensors(torch::jit::load((folder / "model.pt").string()).forward({other[0].toTensor()}));
                ASSERT_EQ(given.size(), exact.size());
                for (size_t i = 0; i < given.size(); ++i) {
                    if (exact[i].is_contiguous()) {
                        EXPECT_TRUE(given[i].is_contiguous()) << i << given[i].strides();
                    }
                }
                expect_near(given, exact);
            }
}

TEST(Outputs, ThoseOfOtherStridesAreNotCopied) {
    const auto model = model_of(kHead + "    return z.permute([0, 2, 3, 1])\n");
    const auto int8 = convert(plan_of(model, "packed", {sine({2, 3, 8, 8})}));
    for (const auto* node : all_nodes(*int8.graph()))
        if (node->kind() == torch::jit::aten::contiguous)
            EXPECT_EQ(node->input(0)->node()->kind(), torch::jit::prim::Param);
}

TEST(Outputs, AModelInTrainingModeLearnsNothing) {
    auto model = residual_model();
    model.module().train();
    const auto before = get_attribute(model, "bn1.running_mean").toTensor().clone();
    const Inputs x{sine({2, 3, 8, 8})};
    plan_of(model, "packed", x);
    EXPECT_TRUE(at::equal(get_attribute(model, "bn1.running_mean").toTensor(), before));
}

TEST(Strides, ViewsOfTheSizeOfAnotherTensorAreReshaped) {
    for (const std::string& body :
         {kHead + "    return z.view_as(torch.zeros([z.size(0), 256]))\n",
          kHead + "    return torch.relu(z).view_as(torch.zeros([z.size(0), 4, 4, 16])).tanh()\n"})
        for (const auto& conv : kinds()) {
            SCOPED_TRACE(body + conv);
            const auto model = model_of(body);
            const Inputs x{sine({2, 3, 8, 8})}, other{sine({3, 3, 8, 8}, 0.9)};
            const auto int8 = convert(plan_of(model, conv, x));
            expect_near(all_tensors(int8.forward(other)), all_tensors(model.forward(other)));
        }
}

TEST(Strides, WhatIsReadByThemStaysFloat) {
    struct Case {
        std::string body;
        std::set<std::string> floats;
    };
    for (const auto& [body, floats] : std::vector<Case>{
             {kHead + "    return torch.as_strided(z, [4, 16], [16, 1])\n", {"a", "b"}},
             {kHead + "    return torch.as_strided(torch.silu(y), [4, 16], [16, 1]), z\n", {"a"}},
             {kHead + "    return z.flatten(1) * float(y.stride(1))\n", {"a"}},
             {kHead + "    return torch.view_as_real(torch.view_as_complex(y.unflatten(3, [4, 2]))), z\n", {"a"}},
             // What lies between them is contiguous whatever it reads.
             {kHead + "    return torch.as_strided(torch.linear(y.permute([0, 2, 3, 1]), self.l.weight), [4, 16], "
                      "[16, 1]), z\n",
              {}},
             {kHead + "    return torch.as_strided(z.contiguous(), [4, 16], [16, 1])\n", {}}}) {
        SCOPED_TRACE(body);
        const auto model = model_of(body);
        const Inputs x{sine({2, 3, 8, 8})};
        // A layer of its own that may be int8, or there would be nothing to do.
        const bool all = floats.size() == 2;
        if (all) {
            EXPECT_ERROR(plan_of(model, "packed", x), UnsupportedModel, "the strides of what it gives");
            continue;
        }
        const auto plan = plan_of(model, "packed", x);
        for (const auto& layer : plan.layers()) {
            if (layer.parameters == 0 || layer.layer == "l") continue;
            EXPECT_EQ(layer.int8, floats.count(layer.layer) == 0) << layer.layer;
            if (!layer.int8) {
                EXPECT_THAT(layer.reason, ::testing::HasSubstr("strides"));
            }
        }
        expect_near(all_tensors(convert(plan).forward(x)), all_tensors(model.forward(x)));
    }
}

}  // namespace
}  // namespace coppice::quantize
