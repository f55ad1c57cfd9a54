#include <coppice/dataflow.h>
#include <coppice/graph.h>

#include "support/support.h"

namespace coppice {
namespace {

using namespace coppice::testing;

TEST(Dataflow, OutputsAreFoundInsideOfWhatIsMadeForThem) {
    const auto model = build_model({{"w", sine({3, 3})}},
                                   "def forward(self, x):\n"
                                   "    a = torch.relu(x)\n"
                                   "    b = torch.tanh(x)\n"
                                   "    parts = [a, b]\n"
                                   "    c = torch.cat(parts)\n"  // its list is no output
                                   "    return a, [b, c], {'d': torch.sigmoid(x)}, x.size(0)\n");
    const auto places = output_places(*model.graph());
    std::vector<std::string> made;
    for (const auto& place : places) made.push_back(place.user->input(place.offset)->node()->kind().toUnqualString());
    EXPECT_EQ(made, (std::vector<std::string>{"relu", "tanh", "cat", "sigmoid"}));
    // In the order of the tensors that come out.
    const auto tensors = all_tensors(model.forward({sine({2, 3})}));
    ASSERT_EQ(tensors.size(), places.size());
    EXPECT_EQ(tensors[2].size(0), 4);
    EXPECT_TRUE(at::equal(tensors[3], at::sigmoid(sine({2, 3}))));
}

TEST(Dataflow, WhatIsGivenCanBeMadeContiguous) {
    auto model = build_model({}, "def forward(self, x):\n    return x.transpose(0, 1), x.relu()\n");
    const Inputs x{sine({2, 3})};
    for (const auto& place : output_places(*model.graph())) give_contiguous(*model.graph(), place);
    model.refresh();
    const auto given = all_tensors(model.forward(x));
    EXPECT_TRUE(given[0].is_contiguous());
    EXPECT_TRUE(at::equal(given[0], x[0].toTensor().t()));
    EXPECT_TRUE(at::equal(given[1], x[0].toTensor().relu()));
}

TEST(Dataflow, DependsOnTheInputWhatIsComputedFromItInBranchesToo) {
    const auto model = build_model({{"w", sine({3, 3})}},
                                   "def forward(self, x):\n"
                                   "    fixed = torch.tanh(self.w)\n"
                                   "    sized = torch.zeros([x.size(0)])\n"
                                   "    if bool(self.w.sum() > 0.):\n"
                                   "        y = torch.sigmoid(x)\n"
                                   "    else:\n"
                                   "        y = fixed\n"
                                   "    return torch.relu(y), fixed.exp(), sized\n");
    const auto dependent = dependent_values(*model.graph());
    std::map<std::string, bool> by_operator;
    for (const auto* node : model.graph()->nodes())
        if (node->outputs().size() == 1)
            by_operator[node->kind().toUnqualString()] = dependent.count(node->output()) > 0;
    EXPECT_FALSE(by_operator.at("tanh"));
    EXPECT_FALSE(by_operator.at("exp"));
    EXPECT_TRUE(by_operator.at("relu"));
    EXPECT_TRUE(by_operator.at("If"));
    EXPECT_TRUE(by_operator.at("zeros"));
}

TEST(Dataflow, ViewsOfAnyStridesAreDefinedOnceTheyAreRelaxed) {
    auto model = build_model({},
                             "def forward(self, x):\n"
                             "    y = x.transpose(0, 1)\n"
                             "    return y.view([6]), y.view_as(torch.zeros([1, 6]))\n");
    const Inputs x{sine({2, 3})};
    EXPECT_ANY_THROW(model.forward(x));
    relax_views(*model.graph());
    model.refresh();
    const auto given = all_tensors(model.forward(x));
    const auto expected = x[0].toTensor().t().reshape({6});
    EXPECT_TRUE(at::equal(given[0], expected));
    EXPECT_TRUE(at::equal(given[1], expected.unsqueeze(0)));
}

}  // namespace
}  // namespace coppice
