#include "prune/masking.h"

namespace coppice::testing {
namespace {

prune::Groups groups_of(const Model& model, const Inputs& example) {
    return prune::find_groups(model, Facts::observe(model, example));
}

TEST(PruneGroups, OfAResidualBlock) {
    const auto model = residual_model();
    const auto groups = groups_of(model, {sine({1, 3, 8, 8})});
    ASSERT_EQ(groups.all().size(), 3u);
    EXPECT_EQ(group_of(groups, "conv1").layers, (std::vector<std::string>{"conv1"}));
    EXPECT_EQ(group_of(groups, "conv2").layers, (std::vector<std::string>{"conv2"}));
    EXPECT_EQ(group_of(groups, "conv3").layers, (std::vector<std::string>{"conv3", "shortcut"}));  // added together
    // What vanishes with a channel of the sum, worked out by hand.
    std::vector<std::string> slices;
    for (const auto& slice : group_of(groups, "conv3").slices)
        slices.push_back(slice.name + ":" + std::to_string(slice.dim) + (slice.produces ? " out" : ""));
    EXPECT_THAT(slices, ::testing::UnorderedElementsAre("conv3.weight:0 out", "bn3.weight:0", "bn3.bias:0",
                                                        "bn3.running_mean:0", "bn3.running_var:0",
                                                        "shortcut.weight:0 out", "bn4.weight:0", "bn4.bias:0",
                                                        "bn4.running_mean:0", "bn4.running_var:0", "fc.weight:1"));
    for (const auto& slice : group_of(groups, "conv3").slices)
        EXPECT_EQ(slice.parameter, slice.name.find("running_") == std::string::npos) << slice.name;
}

TEST(PruneGroups, ExplainNamesReasons) {
    const auto layers = prune::explain(residual_model(), {sine({1, 3, 8, 8})});
    ASSERT_EQ(layers.size(), 5u);
    for (const auto& layer : layers) {
        if (layer.layer == "fc") {
            EXPECT_EQ(layer.prunable, 0);
            EXPECT_EQ(layer.reason, "is an output of the model");
        } else {
            EXPECT_EQ(layer.prunable, layer.channels) << layer.layer;
            EXPECT_EQ(layer.reason, "");
        }
    }
}

TEST(PruneGroups, OutliveTheModelTheyWereFoundOn) {
    const auto model = std::make_unique<Model>(residual_model());
    auto facts = std::make_unique<Facts>(Facts::observe(*model, {sine({1, 3, 8, 8})}));
    const auto groups = prune::find_groups(*model, *facts);
    const auto copy = *model;  // a handle
    facts.reset();
    const auto removal = random_removal(groups, 0.5, 1);
    EXPECT_NO_THROW(prune::cut(copy, Facts(), groups, removal));
}

TEST(PruneGroups, CutChecksTheRemoval) {
    const auto model = residual_model();
    const auto facts = Facts::observe(model, {sine({1, 3, 8, 8})});
    const auto groups = prune::find_groups(model, facts);
    EXPECT_ERROR(prune::cut(model, facts, groups, {{0}}), InvalidArgument, "1 lists for 3 groups");
    EXPECT_ERROR(prune::cut(model, facts, groups, {{8}, {}, {}}), InvalidArgument, "channel 8 is out of range");
    EXPECT_ERROR(prune::cut(model, facts, groups, {{2, 1}, {}, {}}), InvalidArgument, "out of order");
    EXPECT_ERROR(prune::cut(model, facts, groups, {{0, 1, 2, 3, 4, 5, 6, 7}, {}, {}}), InvalidArgument,
                 "Keep at least one");
    EXPECT_ERROR(prune::cut(model, facts, prune::Groups(groups.all()), {{}, {}, {}}), InvalidArgument, "made by hand");
}

TEST(PruneGroups, KeptChannelsKeepTheirWeightsAndOrder) {
    const auto model = residual_model();
    const auto facts = Facts::observe(model, {sine({1, 3, 8, 8})});
    const auto groups = prune::find_groups(model, facts);
    const auto smaller = prune::cut(model, facts, groups, {{1, 4}, {}, {}});
    const auto kept = at::tensor({0, 2, 3, 5, 6, 7}, at::kLong);
    for (const char* name : {"conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"})
        EXPECT_TRUE(at::equal(get_attribute(smaller, name).toTensor(),
                              get_attribute(model, name).toTensor().index_select(0, kept)))
            << name;
    for (const char* name : {"conv2.weight", "shortcut.weight"})
        EXPECT_TRUE(at::equal(get_attribute(smaller, name).toTensor(),
                              get_attribute(model, name).toTensor().index_select(1, kept)))
            << name;
    for (const auto& named : named_tensors(smaller))
        EXPECT_EQ(named.tensor.requires_grad(), get_attribute(model, named.name).toTensor().requires_grad())
            << named.name;
}

TEST(PruneGroups, ACutModelIsCutAgain) {
    auto model = residual_model();
    const Inputs example = {sine({2, 3, 8, 8})};
    for (int round = 0; round < 2; ++round) {
        const auto check = check_cut(model, example, 0.3, 7);
        EXPECT_LT(check.difference, 1e-5);
        model = check.smaller;
    }
}

TEST(PruneGroups, TheCutSurvivesSavingAndLoading) {
    const Inputs example = {sine({2, 3, 8, 8})};
    const auto check = check_cut(residual_model(), example, 0.4, 1);
    TemporaryFolder folder;
    check.smaller.save(folder / "smaller.pt");
    const auto loaded = torch::jit::load((folder / "smaller.pt").string());
    EXPECT_TRUE(at::allclose(const_cast<torch::jit::Module&>(loaded).forward({example[0]}).toTensor(),
                             first_tensor(check.smaller.forward(example)), 1e-5, 1e-6));
}

TEST(FindGroups, IgnoredLayersAreInNoGroup) {
    const auto model = residual_model();
    const auto facts = Facts::observe(model, {sine({2, 3, 8, 8})});
    prune::GroupOptions options;
    options.ignore = {"^conv2$"};
    const auto all = prune::find_groups(model, facts), others = prune::find_groups(model, facts, options);
    ASSERT_EQ(others.all().size() + 1, all.all().size());
    size_t at = 0;
    for (const auto& group : all.all())
        if (std::find(group.layers.begin(), group.layers.end(), "conv2") == group.layers.end()) {
            EXPECT_EQ(others.all()[at++].name, group.name);
        }
    EXPECT_EQ(info_of(others, "conv2").prunable, 0);
    EXPECT_EQ(info_of(others, "conv2").reason, "matches `ignore`");
    options.ignore = {"conv9"};
    EXPECT_ERROR(prune::find_groups(model, facts, options), InvalidArgument, "ignore \"conv9\" matches no layer");
}

}  // namespace
}  // namespace coppice::testing
