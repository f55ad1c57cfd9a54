#include <coppice/deploy.h>

#include "support/support.h"

namespace coppice {
namespace {

using namespace coppice::testing;

std::vector<std::pair<std::string, at::Tensor>> norm(const std::string& name, int64_t channels) {
    return {{name + ".weight", 1 + sine({channels}, 0.5)},
            {name + ".bias", sine({channels}, 0.2)},
            {name + ".running_mean", sine({channels}, 0.3)},
            {name + ".running_var", 1.5 + sine({channels}, 0.9)}};
}

const char* const kNorm =
    "torch.batch_norm(x, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, self.training, 0.1, "
    "1e-3, "
    "True)\n";

Model with_norm(std::vector<std::pair<std::string, at::Tensor>> tensors, int64_t channels, const std::string& layer,
                const std::string& tail = "    return x\n") {
    for (auto& entry : norm("bn", channels)) tensors.push_back(entry);
    return build_model(tensors, "def forward(self, x):\n" + layer + "    x = " + kNorm + tail);
}

int count(const Model& model, const char* name) {
    int found = 0;
    for (const auto* node : all_nodes(*model.graph())) found += std::string(node->kind().toQualString()) == name;
    return found;
}

/// Folds a copy and expects the same outputs; float32 sums of a few hundred terms are taken in another order.
void expect_folded(const Model& model, const Inputs& example) {
    auto copy = model.clone();
    const auto before = model.forward(example).toTensor();
    std::vector<LayerChange> changes;
    EXPECT_EQ(fold_batch_norm(copy, example, &changes), 1);
    EXPECT_EQ(count(copy, "aten::batch_norm"), 0);
    EXPECT_LE(max_difference(copy.forward(example).toTensor(), before), 1e-5 * before.abs().max().item<double>());
    ASSERT_EQ(changes.size(), 1u);
    EXPECT_EQ(changes[0].action, "folded");
    EXPECT_FALSE(has_attribute(copy, "bn.running_mean"));
    EXPECT_TRUE(at::equal(model.forward(example).toTensor(), before));  // the original is untouched
}

void expect_kept(Model model, const Inputs& example, const std::string& reason) {
    std::vector<LayerChange> changes;
    const auto before = model.forward(example).toTensor();
    EXPECT_EQ(fold_batch_norm(model, example, &changes), 0);
    EXPECT_EQ(count(model, "aten::batch_norm"), 1);
    ASSERT_EQ(changes.size(), 1u);
    EXPECT_EQ(changes[0].action, "kept");
    EXPECT_THAT(changes[0].reason, ::testing::HasSubstr(reason));
    EXPECT_TRUE(at::equal(model.forward(example).toTensor(), before));
}

TEST(FoldBatchNorm, ScalesWeightAndBiasByHand) {
    auto model = build_model({{"c.weight", at::full({1, 1, 1, 1}, 3.0f)},
                              {"c.bias", at::full({1}, 5.0f)},
                              {"bn.weight", at::full({1}, 2.0f)},
                              {"bn.bias", at::full({1}, 7.0f)},
                              {"bn.running_mean", at::full({1}, 1.0f)},
                              {"bn.running_var", at::full({1}, 3.0f)}},
                             "def forward(self, x):\n"
                             "    x = torch.conv2d(x, self.c.weight, self.c.bias)\n"
                             "    return torch.batch_norm(x, self.bn.weight, self.bn.bias, self.bn.running_mean, "
                             "self.bn.running_var, self.training, 0.1, 1., True)\n");
    EXPECT_EQ(fold_batch_norm(model, {at::ones({1, 1, 2, 2})}), 1);
    // s = 2 / sqrt(3 + 1) = 1; weight 3 * 1, bias (5 - 1) * 1 + 7
    EXPECT_EQ(get_attribute(model, "c.weight").toTensor().item<float>(), 3.0f);
    EXPECT_EQ(get_attribute(model, "c.bias").toTensor().item<float>(), 11.0f);
}

TEST(FoldBatchNorm, WorksForConvolutionsOfAllDimensions) {
    expect_folded(with_norm({{"c.weight", sine({6, 2, 3})}, {"c.bias", sine({6})}}, 6,
                            "    x = torch.conv1d(x, self.c.weight, self.c.bias)\n"),
                  {sine({2, 2, 9})});
    expect_folded(with_norm({{"c.weight", sine({6, 2, 3, 3})}}, 6, "    x = torch.conv2d(x, self.c.weight)\n"),
                  {sine({2, 2, 6, 6})});
    expect_folded(with_norm({{"c.weight", sine({6, 2, 1, 3, 3})}}, 6, "    x = torch.conv3d(x, self.c.weight)\n"),
                  {sine({2, 2, 3, 6, 6})});
}

TEST(FoldBatchNorm, FollowsTheOutputChannelsOfGroupedAndTransposedConvolutions) {
    expect_folded(with_norm({{"c.weight", sine({6, 2, 3, 3})}}, 6,
                            "    x = torch.conv2d(x, self.c.weight, None, [1, 1], [0, 0], [1, 1], 2)\n"),
                  {sine({2, 4, 6, 6})});
    expect_folded(
        with_norm({{"c.weight", sine({4, 3, 2, 2})}, {"c.bias", sine({6})}}, 6,
                  "    x = torch.conv_transpose2d(x, self.c.weight, self.c.bias, [2, 2], [0, 0], [0, 0], 2)\n"),
        {sine({2, 4, 5, 5})});
}

TEST(FoldBatchNorm, WorksForLinearLayersOnMatrices) {
    expect_folded(with_norm({{"c.weight", sine({6, 4})}, {"c.bias", sine({6})}}, 6,
                            "    x = torch.linear(x, self.c.weight, self.c.bias)\n"),
                  {sine({3, 4})});
    // [N, 6, 6]: the batch norm scales dimension 1, the layer's outputs are dimension 2.
    expect_kept(with_norm({{"c.weight", sine({6, 4})}}, 6, "    x = torch.linear(x, self.c.weight)\n"),
                {sine({3, 6, 4})}, "does not normalise the output channels");
}

TEST(FoldBatchNorm, KeepsTheBatchNormWhereFoldingWouldChangeSomethingElse) {
    const at::Tensor weight = sine({3, 3, 1, 1});
    const Inputs image{sine({2, 3, 4, 4})};
    expect_kept(with_norm({{"c.weight", weight}}, 3, "    y = torch.conv2d(x, self.c.weight)\n    x = y\n",
                          "    return x + y\n"),
                image, "used elsewhere");
    expect_kept(with_norm({{"c.weight", weight}}, 3, "    x = torch.conv2d(x, self.c.weight)\n",
                          "    return torch.conv2d(x, self.c.weight)\n"),
                image, "\"c.weight\" of the layer before it is shared");
    expect_kept(with_norm({{"c.weight", weight}}, 3, "    x = torch.relu(x)\n"), image, "comes from aten::relu");
    expect_kept(with_norm({{"c.weight", weight}}, 3, "    x = torch.conv2d(x, torch.abs(self.c.weight))\n"), image,
                "computed while running");
    auto training = with_norm({{"c.weight", weight}}, 3, "    x = torch.conv2d(x, self.c.weight)\n");
    training.train();
    std::vector<LayerChange> changes;
    EXPECT_EQ(fold_batch_norm(training, image, &changes), 0);
    EXPECT_THAT(changes.at(0).reason, ::testing::HasSubstr("training mode"));
}

TEST(FoldBatchNorm, FoldsOneBehindAnotherIntoTheSameLayer) {
    for (const bool has_bias : {false, true}) {
        SCOPED_TRACE(has_bias);
        std::vector<std::pair<std::string, at::Tensor>> tensors = {{"c.weight", sine({8, 3, 3, 3}, 0.3)},
                                                                   {"c.bias", sine({8})}};
        std::string body =
            std::string("    x = torch.conv2d(x, self.c.weight, ") + (has_bias ? "self.c.bias" : "None") + ")\n";
        constexpr int kNorms = 4;
        for (int i = 0; i < kNorms; ++i) {
            const auto bn = "n" + std::to_string(i);
            for (auto& entry : norm(bn, 8)) tensors.push_back(entry);
            const auto self = "self." + bn;
            body += "    x = torch.batch_norm(x, " + self + ".weight, " + self + ".bias, " + self + ".running_mean, " +
                    self + ".running_var, self.training, 0.1, 1e-3, True)\n";
        }
        auto model = build_model(tensors, "def forward(self, x):\n" + body + "    return x\n");
        const Inputs example{sine({2, 3, 6, 6})};
        const auto before = model.forward(example).toTensor();
        EXPECT_EQ(fold_batch_norm(model, example, nullptr), kNorms);
        EXPECT_EQ(count(model, "aten::batch_norm"), 0);
        EXPECT_LE(max_difference(model.forward(example).toTensor(), before), 1e-5 * before.abs().max().item<double>());
    }
}

TEST(FoldBatchNorm, FoldsEveryOneOfAResidualNetwork) {
    auto model = residual_model();
    const Inputs image{sine({2, 3, 8, 8})};
    const auto before = model.forward(image).toTensor();
    EXPECT_EQ(fold_batch_norm(model, image), 4);
    EXPECT_LE(max_difference(model.forward(image).toTensor(), before), 1e-5 * before.abs().max().item<double>());
}

TEST(FoldBatchNorm, FoldsEveryOneOfAScriptedModel) {
    SKIP_WITHOUT_DATA("cifar10/resnet20.pt");
    auto model = Model::load(data_path("cifar10/resnet20.pt"));
    const Inputs image{sine({2, 3, 32, 32})};
    const auto before = model.forward(image).toTensor();
    EXPECT_EQ(fold_batch_norm(model, image), 19);
    // 1e-4: nineteen layers of float32 sums in another order.
    EXPECT_LE(max_difference(model.forward(image).toTensor(), before), 1e-4 * before.abs().max().item<double>());
}

}  // namespace
}  // namespace coppice
