#include "support/support.h"

namespace coppice::testing {
namespace {

template <typename View>
std::vector<View> views(const Model& model, std::optional<View> (*as)(torch::jit::Node*)) {
    std::vector<View> found;
    for (auto* node : all_nodes(*model.graph()))
        if (auto view = as(node)) found.push_back(*view);
    return found;
}

TEST(OpView, ReadsConvolutionsWithTheirParameters) {
    const auto model = build_model(
        {{"a.weight", sine({4, 1, 3})}, {"b.weight", sine({4, 2, 3, 3})}},
        "def forward(self, x, y):\n    p = torch.conv1d(x, self.a.weight, None, [2], 'valid', [1], 4)\n"
        "    return p, torch.conv_transpose2d(y, self.b.weight, None, [2, 2], [1, 1], [1, 1], 2, [1, 1])\n");
    const auto convs = views<ConvView>(model, as_conv);
    ASSERT_EQ(convs.size(), 2u);
    EXPECT_EQ(convs[0].dims, 1);
    EXPECT_EQ(convs[0].groups, 4);
    EXPECT_EQ(convs[0].padding_mode, "valid");
    EXPECT_EQ(convs[0].stride, std::vector<int64_t>{2});
    EXPECT_FALSE(convs[0].has_bias);
    EXPECT_EQ(attribute_name(convs[0].weight), "a.weight");
    EXPECT_TRUE(convs[1].transposed);
    EXPECT_EQ(convs[1].groups, 2);
    EXPECT_EQ(convs[1].output_padding, (std::vector<int64_t>{1, 1}));
}

TEST(OpView, SeesALinearLayerInAllItsForms) {
    const auto model = build_model(
        {{"w", sine({3, 4})}, {"v", sine({4, 3})}, {"b", sine({3})}},
        "def forward(self, x):\n    return torch.linear(x, self.w, self.b), torch.addmm(self.b, x, self.w.t()), "
        "torch.mm(x, self.v), torch.matmul(x, self.w.t()), torch.matmul(x, x.t())\n");
    const auto layers = views<LinearView>(model, as_linear);
    ASSERT_EQ(layers.size(), 4u);
    EXPECT_EQ(attribute_name(layers[1].weight), "w");
    EXPECT_FALSE(layers[1].weight_transposed);
    EXPECT_TRUE(layers[1].has_bias);
    EXPECT_EQ(attribute_name(layers[2].weight), "v");
    EXPECT_TRUE(layers[2].weight_transposed);
    EXPECT_FALSE(layers[3].has_bias);
    EXPECT_EQ(views<MatMulView>(model, as_matmul).size(), 1u);  // x x^T has no parameter
}

TEST(OpView, ReadsBatchNormAndOtherNorms) {
    const auto model = residual_model();
    const auto norms = views<BatchNormView>(model, as_batch_norm);
    ASSERT_EQ(norms.size(), 4u);
    EXPECT_EQ(attribute_name(norms[0].running_var), "bn1.running_var");
    EXPECT_DOUBLE_EQ(norms[0].eps, 1e-5);
    EXPECT_TRUE(norms[0].affine && norms[0].tracks_statistics);
    const auto layer = build_model(
        {{"ln.weight", sine({4})}},
        "def forward(self, x):\n    return torch.layer_norm(x, [4], self.ln.weight), torch.group_norm(x, 2)\n");
    const auto others = views<NormView>(layer, as_norm);
    ASSERT_EQ(others.size(), 2u);
    EXPECT_EQ(others[0].normalized_shape, std::vector<int64_t>{4});
    EXPECT_TRUE(others[0].has_weight && !others[0].has_bias);
    EXPECT_EQ(others[1].groups, 2);
}

TEST(LayerNames, ComeFromTheModuleThatOwnsTheWeight) {
    const auto model = residual_model();
    const LayerNames names(model);
    ASSERT_NE(names.find("conv2"), nullptr);
    EXPECT_TRUE(as_conv(names.find("conv2")));
    EXPECT_TRUE(as_linear(names.find("fc")));
    const auto all = names.all();
    EXPECT_EQ(std::set<std::string>(all.begin(), all.end()).size(), all.size()) << "names are unique";
}

}  // namespace
}  // namespace coppice::testing
