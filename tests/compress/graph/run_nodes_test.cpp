#include <coppice/run_part.h>

#include "support/support.h"

namespace coppice::testing {
namespace {

TEST(RunNodes, GivesTheBitsOfLibTorchsInterpreter) {
    const auto model = residual_model();
    const auto x = sine({2, 3, 8, 8});
    EXPECT_TRUE(at::equal(first_tensor(run_nodes(model, {x})), first_tensor(model.forward({x}))));
}

TEST(RunNodes, FollowsBranchesAndLoops) {
    const auto model = build_model({{"w", sine({3})}},
                                   "def forward(self, x):\n    i = 0\n    while bool(x.sum() < 100.0):\n        x = x "
                                   "* 2 + self.w.abs()\n        i += 1\n"
                                   "    if i > 3:\n        return x, i\n    return -x, i\n");
    for (const double start : {0.001, 1.0, 50.0}) {
        const auto x = at::full({3}, start);
        const auto expected = model.forward({x}).toTuple()->elements().vec(),
                   got = run_nodes(model, {x}).toTuple()->elements().vec();
        EXPECT_TRUE(at::equal(expected[0].toTensor(), got[0].toTensor()));
        EXPECT_EQ(expected[1].toInt(), got[1].toInt());
    }
}

TEST(RunNodes, HooksSeeAndReplaceValues) {
    const auto model = residual_model();
    const auto x = sine({1, 3, 8, 8});
    int convolutions = 0;
    NodeHooks hooks;
    hooks.after = [&](const torch::jit::Node* node, std::vector<c10::IValue>& outputs) {
        if (!as_conv(const_cast<torch::jit::Node*>(node))) return;
        if (++convolutions == 1) outputs[0] = at::zeros_like(outputs[0].toTensor());
    };
    const auto output = first_tensor(run_nodes(model, {x}, hooks));
    EXPECT_EQ(convolutions, 4);
    auto zeroed = model.clone();
    set_tensor(zeroed, "conv1.weight", at::zeros({8, 3, 3, 3}));
    EXPECT_TRUE(at::equal(output, first_tensor(zeroed.forward({x}))));
}

TEST(RunPart, RunsTheOperatorsGivenOnTheValuesGiven) {
    const auto model = build_model(
        {{"a", sine({3})}},
        "def forward(self, x):\n    y = torch.mul(x, self.a)\n    z = torch.cat([y, y])\n    return torch.exp(z)\n");
    const auto graph = model.graph();
    std::vector<torch::jit::Node*> before, part;
    for (auto* node : graph->nodes()) {
        const bool inside = node->kind() == c10::aten::cat || node->kind() == torch::jit::prim::ListConstruct;
        if (inside) part.push_back(node);
        if (node->kind() == torch::jit::prim::Constant) before.push_back(node);
    }
    const auto* y = part.front()->input(0);
    const auto* z = part.back()->output();
    Values values = {{graph->inputs()[0], model.module()._ivalue()}};
    run_part(model, before, values);
    values[y] = at::tensor({1.0f, 2.0f});
    int calls = 0;
    NodeHooks hooks;
    hooks.after = [&](const torch::jit::Node*, std::vector<c10::IValue>&) { ++calls; };
    run_part(model, part, values, hooks);
    EXPECT_TRUE(at::equal(values.at(z).toTensor(), at::tensor({1.0f, 2.0f, 1.0f, 2.0f})));
    EXPECT_TRUE(at::equal(values.at(y).toTensor(), at::tensor({1.0f, 2.0f})));  // what was given is still there
    EXPECT_EQ(calls, 2);
}

TEST(RunNodes, NamesTheOperatorThatFails) {
    const auto model = residual_model();
    EXPECT_ERROR(run_nodes(model, {sine({1, 4, 8, 8})}), UnsupportedModel, "aten::conv2d");
    EXPECT_ERROR(run_nodes(model, {}), InvalidArgument, "takes 1 inputs, got 0");
}

TEST(Facts, HoldShapesOfEveryValueThatTheExampleReaches) {
    const auto model = residual_model();
    const auto facts = Facts::observe(model, {sine({2, 3, 8, 8})});
    const LayerNames names(model);
    EXPECT_EQ(facts.shape(names.find("conv2")->output()), (std::vector<int64_t>{2, 16, 4, 4}));
    EXPECT_EQ(facts.shape(names.find("conv2")->input(1)), (std::vector<int64_t>{16, 8, 3, 3}));
    EXPECT_EQ(facts.runs(names.find("fc")), 1);
    const auto branched = build_model(
        {{"w", sine({3})}},
        "def forward(self, x):\n    if x.size(0) > 5:\n        return torch.exp(x)\n    return torch.neg(x)\n");
    const auto some = Facts::observe(branched, {sine({2})});
    for (auto* node : all_nodes(*branched.graph())) {
        if (node->kind() == c10::aten::exp) {
            EXPECT_EQ(some.runs(node), 0);
            EXPECT_FALSE(some.has_shape(node->output()));
        }
    }
}

}  // namespace
}  // namespace coppice::testing
