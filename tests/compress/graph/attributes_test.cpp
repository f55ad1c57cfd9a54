#include "support/support.h"

namespace coppice::testing {
namespace {

TEST(Attributes, ReplacingASharedTensorReplacesItEverywhere) {
    auto module =
        build_module({{"a.weight", sine({4, 4})}, {"b.weight", sine({4, 4})}},
                     "def forward(self, x):\n    return torch.linear(torch.linear(x, self.a.weight), self.b.weight)\n");
    module.attr("b").toModule().setattr("weight", module.attr("a").toModule().attr("weight"));
    auto model = Model::from_module(module);
    set_tensor(model, "a.weight", sine({2, 4}));
    EXPECT_EQ(get_attribute(model, "b.weight").toTensor().size(0), 2);
    EXPECT_TRUE(get_attribute(model, "a.weight").toTensor().requires_grad());
}

TEST(Attributes, AddedOnesAreReadByTheGraph) {
    auto model = build_model({{"fc.weight", sine({3, 4})}},
                             "def forward(self, x):\n    return torch.linear(x, self.fc.weight)\n");
    const auto name = add_attribute(model, "fc.bias", sine({3}), Role::kParameter);
    EXPECT_EQ(name, "fc.bias");
    EXPECT_EQ(add_attribute(model, "fc.bias", sine({3}), Role::kBuffer), "fc.bias_2");  // a taken name gets a number
    torch::jit::Node* linear = nullptr;
    for (auto* node : all_nodes(*model.graph()))
        if (as_linear(node)) linear = node;
    ASSERT_NE(linear, nullptr);
    linear->replaceInput(2, read_attribute(model, "fc.bias", linear));
    model.refresh();
    const auto x = sine({2, 4});
    EXPECT_LE(max_difference(first_tensor(model.forward({x})), at::linear(x, sine({3, 4}), sine({3}))), 0);
    remove_unused_attributes(model);
    EXPECT_TRUE(has_attribute(model, "fc.bias"));
    EXPECT_FALSE(has_attribute(model, "fc.bias_2"));
}

TEST(Attributes, UnusedOnesGoAndTheModelStillSavesAndLoads) {
    auto model = build_model({{"fc.weight", sine({3, 4})}, {"old.weight", sine({100, 100})}},
                             "def forward(self, x):\n    return torch.linear(x, self.fc.weight)\n");
    remove_unused_attributes(model);
    EXPECT_FALSE(has_attribute(model, "old"));
    TemporaryFolder folder;
    model.save(folder / "m.pt");
    const auto again = Model::load(folder / "m.pt");
    EXPECT_EQ(named_tensors(again).size(), 1u);
}

TEST(Attributes, OtherMethodsThatReadWeightsAreRefused) {
    auto module = build_module({{"fc.weight", sine({3, 4})}},
                               "def forward(self, x):\n    return torch.linear(x, self.fc.weight)\n");
    module.define("def encode(self, x):\n    return torch.relu(torch.linear(x, self.fc.weight))\n");
    const auto model = Model::from_module(module);
    EXPECT_EQ(model.other_methods(), std::vector<std::string>{"encode"});
    EXPECT_ERROR(refuse_other_methods(model, "prune.channel"), UnsupportedModel, "\"encode\"");
}

}  // namespace
}  // namespace coppice::testing
