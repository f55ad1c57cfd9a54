// The real models of the development data: what is cut must equal the masked original.
#include "prune/masking.h"

namespace coppice::testing {
namespace {

TEST(PruneRealModels, ResNet20WithPaddingShortcuts) {
    SKIP_WITHOUT_DATA("cifar10/resnet20.pt");
    const auto model = Model::load(data_path("cifar10/resnet20.pt"));
    const Inputs example = {sine({2, 3, 32, 32})};
    expect_cut_equals_masked(model, example);
    const auto groups = prune::find_groups(model, Facts::observe(model, example));
    // Three groups along the trunk (of stage 1, of what stage 2 and stage 3 add) and the inner one of each of nine
    // blocks.
    EXPECT_EQ(groups.all().size(), 12u);
    EXPECT_EQ(group_of(groups, "conv1").channels, 16);
    for (const auto& layer : groups.layers()) {
        if (layer.op != "aten::conv2d") continue;
        EXPECT_EQ(layer.prunable, layer.channels) << layer.layer << ": " << layer.reason;
    }
}

TEST(PruneRealModels, FashionCnnThroughItsFlatten) {
    SKIP_WITHOUT_DATA("fashion/cnn.pt");
    expect_cut_equals_masked(Model::load(data_path("fashion/cnn.pt")), {sine({2, 1, 28, 28})});
}

TEST(PruneRealModels, FashionMlp) {
    SKIP_WITHOUT_DATA("fashion/mlp.pt");
    expect_cut_equals_masked(Model::load(data_path("fashion/mlp.pt")), {sine({2, 1, 28, 28})});
}

TEST(PruneRealModels, DigitsMlp) {
    SKIP_WITHOUT_DATA("digits/mlp.pt");
    expect_cut_equals_masked(Model::load(data_path("digits/mlp.pt")), {sine({2, 64}).abs() * 16});
}

TEST(PruneRealModels, LightTs) {
    SKIP_WITHOUT_DATA("etth1/light_ts.pt");
    expect_cut_equals_masked(Model::load(data_path("etth1/light_ts.pt")), {sine({2, 96, 7})});
}

TEST(PruneRealModels, MiniLmHeadsFeedForwardAndWidth) {
    SKIP_WITHOUT_DATA("stsb/minilm_l6.pt");
    auto mask = at::ones({2, 9}, at::kLong);
    mask[1].slice(0, 6, 9).zero_();
    const Inputs example = {at::arange(18).reshape({2, 9}) + 5, mask};
    const auto model = Model::load(data_path("stsb/minilm_l6.pt"));
    expect_cut_equals_masked(model, example);
    const auto groups = prune::find_groups(model, Facts::observe(model, example));
    int64_t heads = 0, feed_forward = 0;
    for (const auto& group : groups.all()) {
        heads += group.channels == 12 && group.multiplicity == 32;
        feed_forward += group.channels == 1536;
    }
    EXPECT_EQ(heads, 6);
    EXPECT_EQ(feed_forward, 6);
}

TEST(PruneRealModels, GraphConvolution) {
    SKIP_WITHOUT_DATA("cora/gcn.pt");
    const auto edges = at::tensor({0, 1, 2, 3, 0, 2, 1, 2, 3, 0, 0, 2}, at::kLong).reshape({2, 6});
    expect_cut_equals_masked(Model::load(data_path("cora/gcn.pt")),
                             {sine({4, 1433}).abs(), edges, at::ones({6}) * 0.4});
}

}  // namespace
}  // namespace coppice::testing
