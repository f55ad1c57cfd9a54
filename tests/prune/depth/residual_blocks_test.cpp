#include "prune/depth/depth_cases.h"

namespace coppice::testing {
namespace {

using namespace prune;

const std::vector<std::pair<std::string, at::Tensor>> kWeights = {{"stem.weight", sine({4, 3, 1, 1}, 0.5)},
                                                                  {"one.conv.weight", sine({4, 4, 3, 3}, 0.3)},
                                                                  {"two.conv.weight", sine({4, 4, 1, 1}, 0.7)}};
const Inputs kImages = {sine({2, 3, 6, 6})};

Model images(const std::string& body) {
    return build_model(kWeights, "def forward(self, x):\n    x = torch.conv2d(x, self.stem.weight)\n" + body);
}

TEST(ResidualBlocks, APostActivationBlockKeepsItsRelu) {
    const auto model = images(
        "    x = torch.relu(x)\n"
        "    x = torch.relu(torch.conv2d(x, self.one.conv.weight, None, [1, 1], [1, 1]) + x)\n"
        "    return torch.relu(x + torch.conv2d(x, self.two.conv.weight))\n");
    const auto blocks = blocks_of(model, kImages);
    ASSERT_EQ(blocks.size(), 2u);
    EXPECT_EQ(blocks[0].name, "one.conv");
    EXPECT_EQ(blocks[0].nodes.size(), 1u);
    for (const auto& block : blocks) expect_removal_is_a_zero_branch(model, kImages, block.name);
    EXPECT_FALSE(has_attribute(remove_block(model, kImages, "two.conv"), "two.conv.weight"));
    EXPECT_ERROR(remove_block(model, kImages, "one.cov"), InvalidArgument, "Did you mean \"one.conv\"");
}

TEST(ResidualBlocks, WritesInPlaceDoNotReachWhoElseReadsTheInput) {
    // After removal relu_ would write into the stem's output, which is also returned.
    const auto model = images(
        "    y = torch.conv2d(x, self.one.conv.weight, None, [1, 1], [1, 1])\n"
        "    y += x\n"
        "    y = torch.relu_(y)\n"
        "    return torch.cat([y, x])\n");
    ASSERT_EQ(blocks_of(model, kImages).size(), 1u);
    expect_removal_is_a_zero_branch(model, kImages, "one.conv");
}

TEST(ResidualBlocks, ABranchMayReadMoreThanItsInputButMayNotBeReadFromOutside) {
    const auto model = images(
        "    scale = torch.sigmoid(torch.mean(x))\n"
        "    x = x + scale * torch.conv2d(x, self.one.conv.weight, None, [1, 1], [1, 1])\n"
        "    y = torch.conv2d(x, self.two.conv.weight)\n"
        "    return x + y, y\n");
    const auto blocks = blocks_of(model, kImages);
    ASSERT_EQ(blocks.size(), 1u);
    EXPECT_EQ(blocks[0].name, "one.conv");
    expect_removal_is_a_zero_branch(model, kImages, "one.conv");
}

TEST(ResidualBlocks, WhatIsNoResidualBlockIsNotTakenForOne) {
    // A projection shortcut; a sum without parameters (GELU written out); a branch that writes into x; another shape; a
    // scaled sum.
    for (const char* body : {"    return torch.conv2d(x, self.one.conv.weight, None, [1, 1], [1, 1]) + torch.conv2d(x, "
                             "self.two.conv.weight)\n",
                             "    return x + 0.044715 * torch.pow(x, 3)\n",
                             "    y = torch.conv2d(torch.relu_(x), self.two.conv.weight)\n    return x + y\n",
                             "    return x + torch.mean(torch.conv2d(x, self.two.conv.weight), [2, 3], True)\n",
                             "    return torch.add(x, torch.conv2d(x, self.two.conv.weight), alpha=2)\n"})
        EXPECT_TRUE(blocks_of(images(body), kImages).empty()) << body;
}

TEST(ResidualBlocks, ResNet20HasSevenOfNineBlocksThatKeepTheirShape) {
    SKIP_WITHOUT_DATA("cifar10/resnet20.pt");
    const auto model = Model::load(data_path("cifar10/resnet20.pt"));
    const Inputs example = {sine({2, 3, 32, 32})};
    const auto blocks = blocks_of(model, example);
    ASSERT_EQ(blocks.size(), 7u);
    for (const auto& block : blocks) expect_removal_is_a_zero_branch(model, example, block.name);
}

TEST(ResidualBlocks, BertHasAnAttentionAndAFeedForwardBlockPerLayer) {
    SKIP_WITHOUT_DATA("zoo/hf_bert.trace.pt");
    const auto model = Model::load(data_path("zoo/hf_bert.trace.pt"));
    const Inputs example = {at::arange(64).reshape({2, 32}), at::ones({2, 32}, at::kLong)};
    const auto blocks = blocks_of(model, example);
    ASSERT_EQ(blocks.size(), 6u);
    EXPECT_EQ(blocks[0].name, "m.bert.encoder.layer.0.attention");
    for (const auto& block : blocks) expect_removal_is_a_zero_branch(model, example, block.name);
}

}  // namespace
}  // namespace coppice::testing
