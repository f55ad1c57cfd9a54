// For every operator family a small net: random channels are cut from every group, and the result must equal the masked
// original.
#include <regex>

#include "prune/masking.h"

namespace coppice::testing {
namespace {

using Tensors = std::vector<std::pair<std::string, at::Tensor>>;

void add_batch_norm(Tensors& tensors, const std::string& name, int64_t channels) {
    tensors.emplace_back(name + ".weight", 1 + sine({channels}, 0.5));
    tensors.emplace_back(name + ".bias", sine({channels}, 0.2));
    tensors.emplace_back(name + ".running_mean", sine({channels}, 0.1));
    tensors.emplace_back(name + ".running_var", 1 + sine({channels}, 0.3));
}

std::string batch_norm(const std::string& x, const std::string& name) {
    return "torch.batch_norm(" + x + ", self." + name + ".weight, self." + name + ".bias, self." + name +
           ".running_mean, self." + name + ".running_var, self.training, 0.1, 1e-5, True)";
}

at::Tensor image(int64_t channels = 3, int64_t size = 8) {
    return sine({2, channels, size, size}).add(0.1);
}

int64_t width(const Model& model, const std::string& name, int64_t dim) {
    return get_attribute(model, name).toTensor().size(dim);
}

TEST(PruneRules, ResidualBlockWithBatchNorm) {
    expect_cut_equals_masked(residual_model(), {image()});
}

TEST(PruneRules, LinearLayersLoseOutputsAndTheInputsThatReadThem) {
    const auto model = build_model(
        {{"a.weight", sine({12, 6}, 0.4)}, {"a.bias", sine({12}, 0.1)}, {"b.weight", sine({5, 12}, 0.3)}}, R"(
def forward(self, x):
    return torch.linear(torch.relu(torch.linear(x, self.a.weight, self.a.bias)), self.b.weight)
)");
    expect_cut_equals_masked(model, {sine({4, 6})});
    expect_cut_equals_masked(model, {sine({4, 3, 6})});  // more dimensions in front
    const auto check = check_cut(model, {sine({4, 6})}, 0.5, 1);
    EXPECT_EQ(width(check.smaller, "a.weight", 0), 6);
    EXPECT_EQ(width(check.smaller, "a.bias", 0), 6);
    EXPECT_EQ(width(check.smaller, "b.weight", 1), 6);
}

TEST(PruneRules, FlattenTurnsAChannelIntoABlockOfFeatures) {
    Tensors tensors = {{"conv.weight", sine({6, 3, 3, 3}, 0.3)}, {"fc.weight", sine({5, 6 * 4 * 4}, 0.2)}};
    const auto model = build_model(tensors, R"(
def forward(self, x):
    x = torch.relu(torch.conv2d(x, self.conv.weight, None, [2, 2], [1, 1]))
    return torch.linear(torch.flatten(x, 1), self.fc.weight)
)");
    expect_cut_equals_masked(model, {image()});
    const auto check = check_cut(model, {image()}, 0.5, 1);
    EXPECT_EQ(width(check.smaller, "fc.weight", 1), 3 * 16);
}

TEST(PruneRules, ViewWithAWrittenWidthIsRewritten) {
    Tensors tensors = {{"conv.weight", sine({6, 3, 3, 3}, 0.3)}, {"fc.weight", sine({5, 6 * 4 * 4}, 0.2)}};
    for (const char* sizes :
         {"[-1, 96]", "[x.size(0), 96]", "[x.size(0), x.size(1) * 16]", "[2, 96]", "[x.size(0), -1]"}) {
        SCOPED_TRACE(sizes);
        const auto model = build_model(tensors, std::string(R"(
def forward(self, x):
    x = torch.relu(torch.conv2d(x, self.conv.weight, None, [2, 2], [1, 1]))
    return torch.linear(x.view()") + sizes + R"(), self.fc.weight)
)");
        expect_cut_equals_masked(model, {image()});
    }
}

TEST(PruneRules, SizesThatAreComputedStillFollowTheBatch) {
    Tensors tensors = {{"conv.weight", sine({6, 3, 3, 3}, 0.3)}, {"fc.weight", sine({5, 6}, 0.2)}};
    // Batch and pixels share a dimension that is computed from both; channels are the written 6.
    const auto model = build_model(tensors, R"(
def forward(self, x):
    x = torch.relu(torch.conv2d(x, self.conv.weight, None, [2, 2], [1, 1]))
    n = x.size(0)
    x = x.permute([0, 2, 3, 1]).reshape([n * 16, 6])
    return torch.linear(x, self.fc.weight).view([n, 16, 5])
)");
    expect_cut_equals_masked(model, {image()});
    const auto check = check_cut(model, {image()}, 0.5, 1);
    EXPECT_EQ(first_tensor(check.smaller.forward({sine({5, 3, 8, 8})})).sizes(), (std::vector<int64_t>{5, 16, 5}));
}

TEST(PruneRules, ConcatenationMapsEachPartToItsOwnPlace) {
    Tensors tensors = {{"a.weight", sine({6, 3, 3, 3}, 0.3)},
                       {"b.weight", sine({4, 3, 1, 1}, 0.4)},
                       {"c.weight", sine({5, 13, 3, 3}, 0.2)}};
    add_batch_norm(tensors, "bn", 13);
    const auto model = build_model(tensors, R"(
def forward(self, x):
    a = torch.relu(torch.conv2d(x, self.a.weight, None, [1, 1], [1, 1]))
    b = torch.sigmoid(torch.conv2d(x, self.b.weight))
    x = torch.cat([b, x, a], 1)
    x = )" + batch_norm("x", "bn") + R"(
    return torch.conv2d(x, self.c.weight)
)");
    expect_cut_equals_masked(model, {image()});
    const auto groups = prune::find_groups(model, Facts::observe(model, {image()}));
    EXPECT_EQ(group_of(groups, "a").channels, 6);
    EXPECT_EQ(group_of(groups, "b").channels, 4);
    // Channel 0 of a is index 4 + 3 of what c reads.
    for (const auto& slice : group_of(groups, "a").slices) {
        if (slice.name != "c.weight") continue;
        EXPECT_EQ(slice.channel_of[7], 0);
        EXPECT_EQ(slice.channel_of[6], -1);
    }
}

TEST(PruneRules, DenseBlockAppendsToAList) {
    Tensors tensors = {{"a.weight", sine({4, 3, 3, 3}, 0.3)},
                       {"b.weight", sine({4, 7, 3, 3}, 0.2)},
                       {"c.weight", sine({6, 11, 1, 1}, 0.2)}};
    const auto model = build_model(tensors, R"(
def forward(self, x):
    features = [x]
    features.append(torch.relu(torch.conv2d(torch.cat(features, 1), self.a.weight, None, [1, 1], [1, 1])))
    features.append(torch.relu(torch.conv2d(torch.cat(features, 1), self.b.weight, None, [1, 1], [1, 1])))
    return torch.conv2d(torch.cat(features, 1), self.c.weight)
)");
    expect_cut_equals_masked(model, {image()});
}

TEST(PruneRules, DepthwiseConvolutionRewritesItsGroupCount) {
    Tensors tensors = {{"a.weight", sine({8, 3, 1, 1}, 0.4)},
                       {"dw.weight", sine({8, 1, 3, 3}, 0.4)},
                       {"dw.bias", sine({8}, 0.1)},
                       {"b.weight", sine({5, 8, 1, 1}, 0.3)}};
    const auto model = build_model(tensors, R"(
def forward(self, x):
    x = torch.relu(torch.conv2d(x, self.a.weight))
    x = torch.conv2d(x, self.dw.weight, self.dw.bias, [1, 1], [1, 1], [1, 1], 8)
    return torch.conv2d(torch.relu(x), self.b.weight)
)");
    expect_cut_equals_masked(model, {image()});
    const auto check = check_cut(model, {image()}, 0.5, 1);
    EXPECT_EQ(width(check.smaller, "dw.weight", 0), 4);
    EXPECT_EQ(width(check.smaller, "dw.weight", 1), 1);
}

TEST(PruneRules, DepthwiseConvolutionWithTwoOutputsPerChannel) {
    Tensors tensors = {{"a.weight", sine({6, 3, 1, 1}, 0.4)},
                       {"dw.weight", sine({12, 1, 3, 3}, 0.4)},
                       {"b.weight", sine({5, 12, 1, 1}, 0.3)}};
    const auto model = build_model(tensors, R"(
def forward(self, x):
    x = torch.relu(torch.conv2d(x, self.a.weight))
    x = torch.conv2d(x, self.dw.weight, None, [1, 1], [1, 1], [1, 1], 6)
    return torch.conv2d(torch.relu(x), self.b.weight)
)");
    expect_cut_equals_masked(model, {image()});
}

TEST(PruneRules, GroupedConvolutionKeepsItsGroups) {
    Tensors tensors = {{"a.weight", sine({8, 3, 1, 1}, 0.4)},
                       {"g.weight", sine({12, 4, 3, 3}, 0.3)},
                       {"b.weight", sine({5, 12, 1, 1}, 0.3)}};
    add_batch_norm(tensors, "bn", 12);
    const auto model = build_model(tensors, R"(
def forward(self, x):
    x = torch.relu(torch.conv2d(x, self.a.weight))
    x = torch.conv2d(x, self.g.weight, None, [1, 1], [1, 1], [1, 1], 2)
    x = )" + batch_norm("x", "bn") + R"(
    return torch.conv2d(torch.relu(x), self.b.weight)
)");
    expect_cut_equals_masked(model, {image()});
    const auto groups = prune::find_groups(model, Facts::observe(model, {image()}));
    EXPECT_EQ(group_of(groups, "a").channels, 4);  // each channel is one of both groups
    EXPECT_EQ(group_of(groups, "a").multiplicity, 2);
    EXPECT_EQ(group_of(groups, "g").channels, 6);
}

TEST(PruneRules, TransposedConvolutions) {
    for (const int64_t groups : {1, 2, 6}) {
        SCOPED_TRACE(groups);
        Tensors tensors = {{"a.weight", sine({6, 3, 1, 1}, 0.4)},
                           {"up.weight", sine({6, 6 / groups, 2, 2}, 0.4)},
                           {"up.bias", sine({6}, 0.1)},
                           {"b.weight", sine({5, 6, 1, 1}, 0.3)}};
        const auto model = build_model(tensors, R"(
def forward(self, x):
    x = torch.relu(torch.conv2d(x, self.a.weight))
    x = torch.conv_transpose2d(x, self.up.weight, self.up.bias, [2, 2], [0, 0], [0, 0], )" +
                                                    std::to_string(groups) + R"()
    return torch.conv2d(torch.relu(x), self.b.weight)
)");
        expect_cut_equals_masked(model, {image()});
    }
}

TEST(PruneRules, OneAndThreeDimensionalConvolutions) {
    const auto one = build_model({{"a.weight", sine({6, 2, 5}, 0.3)}, {"b.weight", sine({4, 6, 3}, 0.3)}}, R"(
def forward(self, x):
    x = torch.max_pool1d(torch.relu(torch.conv1d(x, self.a.weight)), [2])
    return torch.conv1d(x, self.b.weight)
)");
    expect_cut_equals_masked(one, {sine({2, 2, 30})});
    const auto three =
        build_model({{"a.weight", sine({6, 2, 3, 3, 3}, 0.2)}, {"b.weight", sine({4, 6, 1, 1, 1}, 0.3)}}, R"(
def forward(self, x):
    x = torch.avg_pool3d(torch.relu(torch.conv3d(x, self.a.weight)), [2, 2, 2])
    return torch.conv3d(x, self.b.weight)
)");
    expect_cut_equals_masked(three, {sine({2, 2, 8, 8, 8})});
}

TEST(PruneRules, GroupedConvolutionsOfOneAndThreeDimensions) {
    for (const int64_t groups : {2, 6}) {  // grouped, depthwise
        SCOPED_TRACE(groups);
        const auto count = std::to_string(groups);
        const auto one = build_model({{"a.weight", sine({6, 2, 3}, 0.3)},
                                      {"g.weight", sine({6, 6 / groups, 3}, 0.3)},
                                      {"g.bias", sine({6}, 0.1)},
                                      {"b.weight", sine({4, 6, 1}, 0.3)}},
                                     R"(
def forward(self, x):
    x = torch.conv1d(torch.relu(torch.conv1d(x, self.a.weight)), self.g.weight, self.g.bias, [1], [1], [1], )" +
                                         count + R"()
    return torch.conv1d(torch.relu(x), self.b.weight)
)");
        expect_cut_equals_masked(one, {sine({2, 2, 20})});
        const auto three = build_model({{"a.weight", sine({6, 2, 1, 1, 1}, 0.4)},
                                        {"g.weight", sine({6, 6 / groups, 3, 3, 3}, 0.2)},
                                        {"g.bias", sine({6}, 0.1)},
                                        {"b.weight", sine({4, 6, 1, 1, 1}, 0.3)}},
                                       R"(
def forward(self, x):
    x = torch.relu(torch.conv3d(x, self.a.weight))
    x = torch.conv3d(x, self.g.weight, self.g.bias, [1, 1, 1], [1, 1, 1], [1, 1, 1], )" +
                                           count +
                                           R"()
    return torch.conv3d(torch.relu(x), self.b.weight)
)");
        expect_cut_equals_masked(three, {sine({2, 2, 4, 4, 4})});
        for (const Model& model : {one, three}) {
            const auto check =
                check_cut(model, {model.graph() == one.graph() ? sine({2, 2, 20}) : sine({2, 2, 4, 4, 4})}, 0.5, 1);
            // A channel of `a` is one of each group: half of them go, in whole groups or within each.
            EXPECT_EQ(group_of(check.groups, "a").channels, groups == 6 ? 6 : 3);
            EXPECT_EQ(width(check.smaller, "g.weight", 0), groups == 6 ? 3 : 4);
        }
    }
}

TEST(PruneRules, TransposedConvolutionsOfOneAndThreeDimensions) {
    for (const int64_t groups : {1, 2, 6}) {
        SCOPED_TRACE(groups);
        const auto count = std::to_string(groups);
        const auto one = build_model({{"a.weight", sine({6, 3, 1}, 0.4)},
                                      {"up.weight", sine({6, 12 / groups, 2}, 0.4)},
                                      {"up.bias", sine({12}, 0.1)},
                                      {"b.weight", sine({5, 12, 1}, 0.3)}},
                                     R"(
def forward(self, x):
    x = torch.relu(torch.conv1d(x, self.a.weight))
    x = torch.conv_transpose1d(x, self.up.weight, self.up.bias, [2], [0], [0], )" +
                                         count + R"()
    return torch.conv1d(torch.relu(x), self.b.weight)
)");
        expect_cut_equals_masked(one, {sine({2, 3, 9})});
        const auto three = build_model({{"a.weight", sine({6, 3, 1, 1, 1}, 0.4)},
                                        {"up.weight", sine({6, 12 / groups, 2, 2, 2}, 0.4)},
                                        {"up.bias", sine({12}, 0.1)},
                                        {"b.weight", sine({5, 12, 1, 1, 1}, 0.3)}},
                                       R"(
def forward(self, x):
    x = torch.relu(torch.conv3d(x, self.a.weight))
    x = torch.conv_transpose3d(x, self.up.weight, self.up.bias, [2, 2, 2], [0, 0, 0], [0, 0, 0], )" +
                                           count + R"()
    return torch.conv3d(torch.relu(x), self.b.weight)
)");
        expect_cut_equals_masked(three, {sine({2, 3, 3, 3, 3})});
    }
}

TEST(PruneRules, StackedValuesLoseTheSameChannels) {
    Tensors tensors = {{"a.weight", sine({8, 3, 1, 1}, 0.4)}, {"b.weight", sine({8, 3, 3, 3}, 0.3)}};
    for (const int dim : {0, 1, -1}) {
        SCOPED_TRACE(dim);
        tensors.resize(2);
        tensors.emplace_back("c.weight", sine({5, 8, 1, 1}, 0.3));
        const auto text = std::to_string(dim);
        const auto model = build_model(tensors, R"(
def forward(self, x):
    a = torch.relu(torch.conv2d(x, self.a.weight))
    b = torch.sigmoid(torch.conv2d(x, self.b.weight, None, [1, 1], [1, 1]))
    return torch.conv2d(torch.stack([a, b], )" + text +
                                                    R"().sum()" + text + R"(), self.c.weight)
)");
        expect_cut_equals_masked(model, {image()});
        const auto groups = prune::find_groups(model, Facts::observe(model, {image()}));
        ASSERT_EQ(groups.all().size(), 1u);
        EXPECT_EQ(groups.all()[0].layers, (std::vector<std::string>{"a", "b"}));
    }
    // Behind the channels and merged with them: channel c becomes features 2c and 2c + 1.
    tensors.resize(2);
    tensors.emplace_back("c.weight", sine({5, 16, 1, 1}, 0.3));
    const auto model = build_model(tensors, R"(
def forward(self, x):
    a = torch.relu(torch.conv2d(x, self.a.weight))
    b = torch.sigmoid(torch.conv2d(x, self.b.weight, None, [1, 1], [1, 1]))
    return torch.conv2d(torch.stack([a, b], 2).flatten(1, 2), self.c.weight)
)");
    expect_cut_equals_masked(model, {image()});
    const auto groups = prune::find_groups(model, Facts::observe(model, {image()}));
    ASSERT_EQ(groups.all().size(), 1u);
    for (const auto& slice : groups.all()[0].slices) {
        if (slice.name != "c.weight") continue;
        EXPECT_EQ(slice.channel_of, (std::vector<int64_t>{0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7}));
    }
}

TEST(PruneRules, TiedEmbeddingsLoseOneWidth) {
    // The table is read twice: as embedding, and as the weight of the last layer; under one name or under two.
    for (const bool two_names : {false, true}) {
        SCOPED_TRACE(two_names);
        Tensors tensors = {{"table.weight", sine({20, 12}, 0.5)},
                           {"norm.weight", 1 + sine({12}, 0.2)},
                           {"up.weight", sine({16, 12}, 0.4)},
                           {"down.weight", sine({12, 16}, 0.3)}};
        if (two_names) tensors.emplace_back("head.weight", sine({20, 12}));
        auto module = build_module(tensors, std::string(R"(
def forward(self, tokens):
    x = torch.embedding(self.table.weight, tokens)
    y = torch.linear(torch.rms_norm(x, [12], self.norm.weight, 1e-5), self.up.weight)
    x = x + torch.linear(torch.gelu(y), self.down.weight)
    return torch.linear(x, self.)") + (two_names ? "head" : "table") +
                                                ".weight)\n");
        if (two_names) module.attr("head").toModule().setattr("weight", module.attr("table").toModule().attr("weight"));
        const auto model = Model::from_module(module);
        const Inputs example = {at::arange(14).mul(3).remainder(20).reshape({2, 7})};
        expect_cut_equals_masked(model, example);
        const auto check = check_cut(model, example, 0.5, 1);
        EXPECT_EQ(&group_of(check.groups, "table"), &group_of(check.groups, "down"));
        EXPECT_EQ(width(check.smaller, "table.weight", 0), 20);
        EXPECT_EQ(width(check.smaller, "table.weight", 1), 6);
        EXPECT_EQ(width(check.smaller, "down.weight", 0), 6);
        if (two_names) {
            EXPECT_TRUE(get_attribute(check.smaller, "head.weight")
                            .toTensor()
                            .is_same(get_attribute(check.smaller, "table.weight").toTensor()));
        }
    }
}

/// The tensor `name` as a constant of the graph, as tracing leaves what it met outside of modules.
Model with_constant(const Model& model, const std::string& name) {
    Model copy = model.clone();
    for (auto* node : all_nodes(*copy.graph())) {
        if (node->kind() != torch::jit::prim::GetAttr || attribute_name(node->output()) != name) continue;
        torch::jit::WithInsertPoint guard(node);
        node->output()->replaceAllUsesWith(copy.graph()->insertConstant(get_attribute(copy, name).toTensor()));
    }
    copy.refresh();
    return copy;
}

TEST(PruneRules, ChannelsAreFollowedThroughConstantPlaces) {
    struct Case {
        const char* what;
        at::Tensor places;
        std::vector<int64_t> of;  // by hand: the channel of `a` behind each input of `dw`
    };
    const std::vector<Case> cases = {
        {"a permutation", at::tensor({3, 0, 5, 2, 4, 1}), {3, 0, 5, 2, 4, 1}},
        {"some, one of them twice, one from the end", at::tensor({4, 1, 4, -1}), {4, 1, 4, 5}},
        {"a mask", at::tensor({1, 0, 1, 1, 0, 1}).to(at::kBool), {0, 2, 3, 5}},
    };
    for (const auto& [what, places, of] : cases)
        for (const char* read : {"x[:, self.places]", "torch.index_select(x, 1, self.places)"}) {
            if (places.scalar_type() == at::kBool && std::string(read).find("select") != std::string::npos) continue;
            SCOPED_TRACE(std::string(what) + ", " + read);
            const auto count = static_cast<int64_t>(of.size());
            // index_select does not count from the end.
            const auto given = std::string(read).find("select") != std::string::npos ? at::tensor(of) : places;
            const auto model = build_model({{"a.weight", sine({6, 3, 1, 1}, 0.5)},
                                            {"places", given},
                                            {"dw.weight", sine({count, 1, 3, 3}, 0.4)},
                                            {"b.weight", sine({5, count, 1, 1}, 0.3)}},
                                           std::string(R"(
def forward(self, x):
    x = torch.sigmoid(torch.conv2d(x, self.a.weight))
    x = torch.conv2d()") + read + R"(, self.dw.weight, None, [1, 1], [1, 1], [1, 1], )" +
                                               std::to_string(count) + R"()
    return torch.conv2d(torch.relu(x), self.b.weight)
)");
            for (const auto& each : {model, with_constant(model, "places")}) {
                expect_cut_equals_masked(each, {image()});
                const auto groups = prune::find_groups(each, Facts::observe(each, {image()}));
                int64_t channels = 0;
                std::vector<std::string> origin(6);  // of each output of `a`: its channel, among all groups
                for (const auto& group : groups.all()) {
                    channels += group.channels;
                    for (const auto& slice : group.slices)
                        for (size_t i = 0; slice.name == "a.weight" && i < 6; ++i)
                            if (slice.channel_of[i] >= 0)
                                origin[i] = group.name + " " + std::to_string(slice.channel_of[i]);
                }
                for (const auto& group : groups.all())
                    for (const auto& slice : group.slices)
                        for (size_t i = 0; slice.name == "dw.weight" && i < of.size(); ++i)
                            if (slice.channel_of[i] >= 0) {
                                EXPECT_EQ(group.name + " " + std::to_string(slice.channel_of[i]), origin[of[i]]);
                            }
                EXPECT_GE(channels, 4);
                // The renumbered places are part of the file.
                const auto smaller = check_cut(each, {image()}, 0.5, 1).smaller;
                TemporaryFolder folder;
                smaller.save(folder / "smaller.pt");
                EXPECT_TRUE(at::equal(first_tensor(Model::load(folder / "smaller.pt").forward({image()})),
                                      first_tensor(smaller.forward({image()}))));
            }
        }
}

TEST(PruneRules, PlacesThatMayChangeKeepTheChannels) {
    for (const char* places : {"torch.flip(self.places, [0])", "self.places[:2]"}) {
        const auto model = build_model({{"a.weight", sine({6, 3, 1, 1}, 0.5)},
                                        {"places", at::tensor({3, 0, 5, 2, 4, 1})},
                                        {"b.weight", sine({5, 6, 1, 1}, 0.3)}},
                                       std::string(R"(
def forward(self, x):
    x = torch.conv2d(x, self.a.weight)
    y = x[:, )") + places + R"(]
    return torch.conv2d(x, self.b.weight).sum([1]) + y.sum([1])
)");
        const auto groups = prune::find_groups(model, Facts::observe(model, {image()}));
        EXPECT_EQ(info_of(groups, "a").prunable, 0) << places;
        EXPECT_THAT(info_of(groups, "a").reason, ::testing::HasSubstr("is indexed by"));
    }
}

TEST(PruneRules, ZeroPaddingOfChannelsShrinksWithThem) {
    // The option-A shortcut of CIFAR ResNets: stride 2 and zero channels on both sides.
    Tensors tensors = {{"a.weight", sine({4, 3, 3, 3}, 0.3)},
                       {"b.weight", sine({8, 4, 3, 3}, 0.3)},
                       {"c.weight", sine({8, 8, 3, 3}, 0.2)},
                       {"fc.weight", sine({5, 8}, 0.3)}};
    const auto model = build_model(tensors, R"(
def forward(self, x):
    x = torch.relu(torch.conv2d(x, self.a.weight, None, [1, 1], [1, 1]))
    y = torch.relu(torch.conv2d(x, self.b.weight, None, [2, 2], [1, 1]))
    y = torch.conv2d(y, self.c.weight, None, [1, 1], [1, 1])
    s = torch.constant_pad_nd(x[:, :, ::2, ::2], [0, 0, 0, 0, 2, 2], 0)
    return torch.linear(torch.relu(y + s).mean([2, 3]), self.fc.weight)
)");
    expect_cut_equals_masked(model, {image()});
    const auto groups = prune::find_groups(model, Facts::observe(model, {image()}));
    EXPECT_EQ(groups.all().size(), 3u);  // what a and c share, what only c has, b
    EXPECT_EQ(group_of(groups, "a").channels, 4);
    EXPECT_EQ(group_of(groups, "b").channels, 8);
}

TEST(PruneRules, ASharedWeightIsCutOnce) {
    const auto model = build_model({{"a.weight", sine({6, 3, 1, 1}, 0.4)},
                                    {"s.weight", sine({6, 6, 3, 3}, 0.2)},
                                    {"b.weight", sine({5, 6, 1, 1}, 0.3)}},
                                   R"(
def forward(self, x):
    x = torch.relu(torch.conv2d(x, self.a.weight))
    x = torch.relu(torch.conv2d(x, self.s.weight, None, [1, 1], [1, 1]))
    x = torch.relu(torch.conv2d(x, self.s.weight, None, [1, 1], [1, 1]))
    return torch.conv2d(x, self.b.weight)
)");
    expect_cut_equals_masked(model, {image()});
}

TEST(PruneRules, SqueezeExciteGatesTheChannelsItReads) {
    Tensors tensors = {{"a.weight", sine({8, 3, 3, 3}, 0.3)},
                       {"down.weight", sine({4, 8, 1, 1}, 0.5)},
                       {"up.weight", sine({8, 4, 1, 1}, 0.5)},
                       {"b.weight", sine({5, 8, 1, 1}, 0.3)}};
    const auto model = build_model(tensors, R"(
def forward(self, x):
    x = torch.silu(torch.conv2d(x, self.a.weight))
    s = torch.relu(torch.conv2d(torch.adaptive_avg_pool2d(x, [1, 1]), self.down.weight))
    x = x * torch.sigmoid(torch.conv2d(s, self.up.weight))
    return torch.conv2d(x, self.b.weight)
)");
    expect_cut_equals_masked(model, {image()});
    const auto groups = prune::find_groups(model, Facts::observe(model, {image()}));
    EXPECT_EQ(group_of(groups, "a").name, group_of(groups, "up").name);
}

TEST(PruneRules, ChannelShuffleOfTwoBranches) {
    Tensors tensors = {{"stem.weight", sine({8, 3, 1, 1}, 0.4)},
                       {"branch.weight", sine({4, 4, 3, 3}, 0.3)},
                       {"b.weight", sine({5, 8, 1, 1}, 0.3)}};
    const auto model = build_model(tensors, R"(
def forward(self, x):
    x = torch.relu(torch.conv2d(x, self.stem.weight))
    a, b = torch.chunk(x, 2, 1)
    b = torch.relu(torch.conv2d(b, self.branch.weight, None, [1, 1], [1, 1]))
    x = torch.cat([a, b], 1)
    n, c, h, w = x.size(0), x.size(1), x.size(2), x.size(3)
    x = x.view([n, 2, c // 2, h, w]).transpose(1, 2).contiguous().view([n, -1, h, w])
    return torch.conv2d(x, self.b.weight)
)");
    expect_cut_equals_masked(model, {image()});
}

TEST(PruneRules, ChannelShuffleKeepsItsGroups) {
    const auto model = build_model({{"a.weight", sine({12, 3, 1, 1}, 0.4)}, {"b.weight", sine({5, 12, 1, 1}, 0.3)}}, R"(
def forward(self, x):
    x = torch.relu(torch.conv2d(x, self.a.weight))
    return torch.conv2d(torch.channel_shuffle(x, 3), self.b.weight)
)");
    expect_cut_equals_masked(model, {image()});
    const auto groups = prune::find_groups(model, Facts::observe(model, {image()}));
    ASSERT_EQ(groups.all().size(), 1u);
    EXPECT_EQ(groups.all()[0].channels, 4);
    EXPECT_EQ(groups.all()[0].multiplicity, 3);
    const auto check = check_cut(model, {image()}, 0.5, 1);
    EXPECT_EQ(width(check.smaller, "a.weight", 0), 6);
}

TEST(PruneRules, RmsNormOverTheChannelsIsTakenOverWhatStays) {
    const auto model = build_model(
        {{"a.weight", sine({12, 6}, 0.4)}, {"norm.weight", 1 + sine({12}, 0.3)}, {"b.weight", sine({5, 12}, 0.3)}}, R"(
def forward(self, x):
    x = torch.rms_norm(torch.linear(x, self.a.weight), [12], self.norm.weight, 1e-5)
    return torch.linear(torch.gelu(x), self.b.weight)
)");
    expect_cut_equals_masked(model, {sine({4, 6})});
    EXPECT_FALSE(prune::find_groups(model, Facts::observe(model, {sine({4, 6})})).all()[0].exact);
}

TEST(PruneRules, RollMovesPositionsNotChannels) {
    const auto model = build_model({{"a.weight", sine({12, 6}, 0.4)}, {"b.weight", sine({5, 12}, 0.3)}}, R"(
def forward(self, x):
    x = torch.roll(torch.linear(x, self.a.weight), [1, 2], [1, 2])
    return torch.linear(torch.gelu(x), self.b.weight)
)");
    expect_cut_equals_masked(model, {sine({2, 4, 4, 6})});
    EXPECT_EQ(prune::find_groups(model, Facts::observe(model, {sine({2, 4, 4, 6})})).all().size(), 1u);
}

TEST(PruneRules, SplitsSlicesAndNarrows) {
    Tensors tensors = {{"a.weight", sine({12, 3, 1, 1}, 0.4)},
                       {"p.weight", sine({4, 5, 1, 1}, 0.4)},
                       {"q.weight", sine({4, 7, 1, 1}, 0.4)},
                       {"r.weight", sine({4, 8, 1, 1}, 0.4)},
                       {"s.weight", sine({4, 6, 1, 1}, 0.4)}};
    for (const char* split :
         {"p, q = torch.split(x, [5, 7], 1)", "p, q = x[:, :5], x[:, 5:]", "p, q = x[:, :-7], x[:, -7:]",
          "p, q = torch.narrow(x, 1, 0, 5), torch.narrow(x, 1, 5, 7)",
          "p, q = torch.split_with_sizes(x, [5, x.size(1) - 5], 1)"}) {
        SCOPED_TRACE(split);
        const auto model = build_model(tensors, std::string(R"(
def forward(self, x):
    x = torch.relu(torch.conv2d(x, self.a.weight))
    )") + split + R"(
    h = torch.split(x, 6, 1)
    return torch.conv2d(p, self.p.weight) + torch.conv2d(q, self.q.weight) + torch.conv2d(x[:, 2:10], self.r.weight) + torch.conv2d(h[0] - h[1], self.s.weight)
)");
        expect_cut_equals_masked(model, {image()});
    }
}

TEST(PruneRules, EvenChunksBecomeUnevenSplits) {
    Tensors tensors = {{"a.weight", sine({8, 3, 1, 1}, 0.4)},
                       {"p.weight", sine({4, 4, 1, 1}, 0.4)},
                       {"q.weight", sine({4, 4, 3, 3}, 0.4)}};
    const auto model = build_model(tensors, R"(
def forward(self, x):
    p, q = torch.chunk(torch.relu(torch.conv2d(x, self.a.weight)), 2, 1)
    return torch.conv2d(p, self.p.weight) + torch.conv2d(q, self.q.weight, None, [1, 1], [1, 1])
)");
    const auto facts = Facts::observe(model, {image()});
    const auto groups = prune::find_groups(model, facts);
    ASSERT_EQ(groups.all().size(), 2u);
    const prune::Removal removal = {{0, 1, 2}, {3}};
    const auto smaller = prune::cut(model, facts, groups, removal);
    const auto masked = first_tensor(run_masked(model, {image()}, groups, removal));
    EXPECT_LT(max_difference(masked, first_tensor(smaller.forward({image()}))), 1e-5);
    EXPECT_EQ(width(smaller, "p.weight", 1), 1);
    EXPECT_EQ(width(smaller, "q.weight", 1), 3);
}

TEST(PruneRules, GroupNormLosesWholeGroups) {
    Tensors tensors = {{"a.weight", sine({12, 3, 1, 1}, 0.4)},
                       {"gn.weight", 1 + sine({12}, 0.3)},
                       {"gn.bias", sine({12}, 0.2)},
                       {"b.weight", sine({5, 12, 1, 1}, 0.3)}};
    const auto model = build_model(tensors, R"(
def forward(self, x):
    x = torch.conv2d(x, self.a.weight)
    x = torch.group_norm(x, 4, self.gn.weight, self.gn.bias, 1e-5, True)
    return torch.conv2d(torch.relu(x), self.b.weight)
)");
    expect_cut_equals_masked(model, {image()});
    const auto groups = prune::find_groups(model, Facts::observe(model, {image()}));
    EXPECT_EQ(group_of(groups, "a").channels, 4);
    EXPECT_TRUE(group_of(groups, "a").exact);
}

TEST(PruneRules, InstanceNormTreatsEachChannelOnItsOwn) {
    Tensors tensors = {{"a.weight", sine({12, 3, 1, 1}, 0.4)},
                       {"norm.weight", 1 + sine({12}, 0.3)},
                       {"norm.bias", sine({12}, 0.2)},
                       {"b.weight", sine({5, 12, 1, 1}, 0.3)}};
    const auto model = build_model(tensors, R"(
def forward(self, x):
    x = torch.conv2d(x, self.a.weight)
    x = torch.instance_norm(x, self.norm.weight, self.norm.bias, None, None, True, 0.1, 1e-5, True)
    return torch.conv2d(torch.relu(x), self.b.weight)
)");
    expect_cut_equals_masked(model, {image()});
    const auto check = check_cut(model, {image()}, 0.5, 1);
    EXPECT_EQ(width(check.smaller, "norm.weight", 0), 6);
    EXPECT_EQ(width(check.smaller, "b.weight", 1), 6);
}

TEST(PruneRules, PixelUnshuffleMakesABlockOfEachChannel) {
    const auto model = build_model({{"a.weight", sine({6, 3, 1, 1}, 0.4)}, {"b.weight", sine({5, 24, 1, 1}, 0.3)}}, R"(
def forward(self, x):
    x = torch.relu(torch.conv2d(x, self.a.weight))
    return torch.conv2d(torch.pixel_unshuffle(x, 2), self.b.weight)
)");
    expect_cut_equals_masked(model, {image()});
    const auto check = check_cut(model, {image()}, 0.5, 1);
    EXPECT_EQ(width(check.smaller, "a.weight", 0), 3);
    EXPECT_EQ(width(check.smaller, "b.weight", 1), 12);  // each channel is four of what b reads
}

TEST(PruneRules, LayerNormOverTheChannelsIsTakenOverWhatStays) {
    Tensors tensors = {{"a.weight", sine({12, 6}, 0.4)},
                       {"ln.weight", 1 + sine({12}, 0.3)},
                       {"ln.bias", sine({12}, 0.2)},
                       {"b.weight", sine({5, 12}, 0.3)}};
    const auto model = build_model(tensors, R"(
def forward(self, x):
    x = torch.layer_norm(torch.linear(x, self.a.weight), [12], self.ln.weight, self.ln.bias, 1e-5, True)
    return torch.linear(torch.gelu(x), self.b.weight)
)");
    expect_cut_equals_masked(model, {sine({4, 6})});
    EXPECT_FALSE(prune::find_groups(model, Facts::observe(model, {sine({4, 6})})).all()[0].exact);
}

TEST(PruneRules, AttentionLosesWholeHeads) {
    Tensors tensors = {{"q.weight", sine({12, 8}, 0.5)},
                       {"k.weight", sine({12, 8}, 0.4)},
                       {"v.weight", sine({12, 8}, 0.3)},
                       {"o.weight", sine({8, 12}, 0.3)},
                       {"o.bias", sine({8}, 0.1)}};
    const auto model = build_model(tensors, R"(
def forward(self, x):
    n, t = x.size(0), x.size(1)
    q = torch.linear(x, self.q.weight).view([n, t, 3, 4]).transpose(1, 2)
    k = torch.linear(x, self.k.weight).view([n, t, 3, 4]).transpose(1, 2)
    v = torch.linear(x, self.v.weight).view([n, t, -1, 4]).transpose(1, 2)
    y = torch.scaled_dot_product_attention(q, k, v)
    return torch.linear(y.transpose(1, 2).reshape([n, t, 12]), self.o.weight, self.o.bias)
)");
    expect_cut_equals_masked(model, {sine({2, 5, 8})});
    const auto groups = prune::find_groups(model, Facts::observe(model, {sine({2, 5, 8})}));
    EXPECT_EQ(group_of(groups, "q").channels, 3);
    EXPECT_EQ(group_of(groups, "q").multiplicity, 4);
}

TEST(PruneRules, AttentionByHandWithPackedProjections) {
    Tensors tensors = {
        {"qkv.weight", sine({36, 8}, 0.5)}, {"qkv.bias", sine({36}, 0.2)}, {"o.weight", sine({8, 12}, 0.3)}};
    const auto model = build_model(tensors, R"(
def forward(self, x):
    n, t = x.size(0), x.size(1)
    qkv = torch.linear(x, self.qkv.weight, self.qkv.bias).reshape([n, t, 3, 3, 4]).permute([2, 0, 3, 1, 4])
    q, k, v = qkv.unbind(0)
    a = torch.softmax(torch.matmul(q, k.transpose(-2, -1)) / (q.size(-1) ** 0.5), -1)
    return torch.linear(torch.matmul(a, v).transpose(1, 2).reshape([n, t, -1]), self.o.weight)
)");
    expect_cut_equals_masked(model, {sine({2, 5, 8})});
    const auto groups = prune::find_groups(model, Facts::observe(model, {sine({2, 5, 8})}));
    EXPECT_EQ(group_of(groups, "qkv").channels, 3);
    EXPECT_EQ(group_of(groups, "qkv").multiplicity, 12);
}

TEST(PruneRules, ASingleHeadLosesWidthAndKeepsItsScale) {
    Tensors tensors = {{"q.weight", sine({6, 8}, 0.9)},
                       {"k.weight", sine({6, 8}, 0.8)},
                       {"v.weight", sine({6, 8}, 0.3)},
                       {"o.weight", sine({8, 6}, 0.3)}};
    for (const char* attention :
         {"torch.scaled_dot_product_attention(q, k, v)",
          "torch.matmul(torch.softmax(torch.matmul(q, k.transpose(1, 2)) / (q.size(2) ** 0.5), 2), v)"}) {
        SCOPED_TRACE(attention);
        const auto model = build_model(tensors, std::string(R"(
def forward(self, x):
    q = torch.linear(x, self.q.weight)
    k = torch.linear(x, self.k.weight)
    v = torch.linear(x, self.v.weight)
    return torch.linear()") + attention + R"(, self.o.weight)
)");
        expect_cut_equals_masked(model, {sine({2, 5, 8})});
    }
}

TEST(PruneRules, AMaximumOverChannelsFreezesThem) {
    const auto model = build_model({{"a.weight", sine({6, 3, 1, 1}, 0.4)}, {"b.weight", sine({5, 6, 1, 1}, 0.3)}}, R"(
def forward(self, x):
    x = torch.relu(torch.conv2d(x, self.a.weight))
    return torch.conv2d(x * torch.amax(x, [1], True), self.b.weight)
)");
    const auto groups = prune::find_groups(model, Facts::observe(model, {image()}));
    EXPECT_TRUE(groups.all().empty());
    EXPECT_THAT(info_of(groups, "a").reason, ::testing::HasSubstr("compared"));
}

TEST(PruneRules, RmsNormByHandIsTakenOverWhatStays) {
    const auto model = build_model(
        {{"a.weight", sine({12, 6}, 0.4)}, {"norm", 1 + sine({12}, 0.3)}, {"b.weight", sine({5, 12}, 0.3)}}, R"(
def forward(self, x):
    x = torch.linear(x, self.a.weight)
    x = self.norm * (x * torch.rsqrt(x.pow(2).mean([-1], True) + 1e-5))
    return torch.linear(x, self.b.weight)
)");
    expect_cut_equals_masked(model, {sine({4, 6})});
    EXPECT_FALSE(prune::find_groups(model, Facts::observe(model, {sine({4, 6})})).all()[0].exact);
}

TEST(PruneRules, BranchesThatAreNotTakenArePrunedAlong) {
    Tensors tensors = {{"a.weight", sine({6, 3, 1, 1}, 0.4)},
                       {"c.weight", sine({6, 6, 1, 1}, 0.3)},
                       {"b.weight", sine({5, 6, 1, 1}, 0.3)}};
    // Padding that this size does not need, a branch with a weight of its own, and stochastic depth while training.
    const auto model = build_model(tensors, R"(
def forward(self, x):
    x = torch.relu(torch.conv2d(x, self.a.weight))
    if x.size(2) % 2 == 1:
        x = torch.constant_pad_nd(x, [0, 1, 0, 1], 0.)
    if x.size(2) > 100:
        x = torch.conv2d(x, self.c.weight)
    if self.training:
        noise = torch.empty([x.size(0)] + [1] * (x.dim() - 1))
        noise = noise.bernoulli_(0.5)
        x = x * noise.div_(0.5)
    return torch.conv2d(x, self.b.weight)
)");
    expect_cut_equals_masked(model, {image()});
    const auto check = check_cut(model, {image()}, 0.5, 1);
    EXPECT_EQ(width(check.smaller, "c.weight", 0), 3);
    EXPECT_EQ(width(check.smaller, "c.weight", 1), 3);
    auto smaller = check.smaller;
    EXPECT_EQ(first_tensor(smaller.forward({image(3, 9)})).sizes(), (std::vector<int64_t>{2, 5, 10, 10}));
    EXPECT_EQ(first_tensor(smaller.forward({image(3, 102)})).sizes(), (std::vector<int64_t>{2, 5, 102, 102}));
    smaller.train();
    EXPECT_EQ(first_tensor(smaller.forward({image()})).sizes(), (std::vector<int64_t>{2, 5, 8, 8}));
}

TEST(PruneRules, AnUnknownOperatorFreezesWhatItTouchesAndIsNamed) {
    const auto model = build_model({{"a.weight", sine({6, 3, 1, 1}, 0.4)},
                                    {"b.weight", sine({5, 6, 1, 1}, 0.3)},
                                    {"c.weight", sine({4, 5, 1, 1}, 0.3)}},
                                   R"(
def forward(self, x):
    x = torch.fft_fft(torch.conv2d(x, self.a.weight), None, 1).abs()
    return torch.conv2d(torch.conv2d(x, self.b.weight), self.c.weight)
)");
    const auto groups = prune::find_groups(model, Facts::observe(model, {image()}));
    ASSERT_EQ(groups.unknown_operators().size(), 1u);
    EXPECT_THAT(groups.unknown_operators()[0], ::testing::HasSubstr("aten::fft_fft"));
    EXPECT_THAT(info_of(groups, "a").reason, ::testing::HasSubstr("aten::fft_fft"));
    EXPECT_EQ(info_of(groups, "a").prunable, 0);
    EXPECT_EQ(info_of(groups, "b").prunable, 5);  // the rest is still pruned
    expect_cut_equals_masked(model, {image()});
}

TEST(PruneRules, InPlaceOperatorsAndBareParameters) {
    Tensors tensors = {{"a.weight", sine({6, 3, 1, 1}, 0.4)},
                       {"gamma", 1 + sine({6, 1, 1}, 0.4)},
                       {"prelu.weight", sine({6}, 0.3)},
                       {"b.weight", sine({5, 6, 1, 1}, 0.3)}};
    const auto model = build_model(tensors, R"(
def forward(self, x):
    y = torch.conv2d(x, self.a.weight)
    y.mul_(self.gamma)
    y = torch.prelu(y, self.prelu.weight)
    z = torch.zeros([y.size(0), 6, 8, 8])
    z.add_(y)
    z[:, 1:3] = torch.sigmoid(y[:, 1:3])
    return torch.conv2d(torch.sigmoid_(z), self.b.weight)
)");
    expect_cut_equals_masked(model, {image()});
}

TEST(PruneRules, InterpolateAndPixelShuffle) {
    const auto model = build_model({{"a.weight", sine({16, 3, 1, 1}, 0.4)}, {"b.weight", sine({5, 4, 1, 1}, 0.3)}}, R"(
def forward(self, x):
    x = torch.pixel_shuffle(torch.relu(torch.conv2d(x, self.a.weight)), 2)
    x = torch.upsample_nearest2d(x, [20, 20], None)
    return torch.conv2d(x, self.b.weight)
)");
    expect_cut_equals_masked(model, {image()});
}

TEST(PruneRules, ExpandAndEmbedding) {
    const auto model = build_model(
        {{"e.weight", sine({20, 6}, 0.5)}, {"token", sine({1, 1, 6}, 0.5)}, {"b.weight", sine({5, 6}, 0.4)}}, R"(
def forward(self, ids):
    x = torch.embedding(self.e.weight, ids)
    t = self.token.expand([x.size(0), -1, 6])
    return torch.linear(torch.cat([t, x], 1), self.b.weight)
)");
    expect_cut_equals_masked(model, {at::arange(8).reshape({2, 4})});
}

// Weights of a recurrent layer as LibTorch names them, and the list in which they are passed.
std::string add_cells(Tensors& tensors, int64_t gates, int64_t input, int64_t hidden, int64_t layers,
                      int64_t directions, bool biases, int64_t projected = 0) {
    const int64_t out = projected ? projected : hidden;
    std::string list;
    for (int64_t layer = 0; layer < layers; ++layer)
        for (int64_t direction = 0; direction < directions; ++direction) {
            const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
                const auto full = name + "_l" + std::to_string(layer) + (direction ? "_reverse" : "");
                tensors.emplace_back("cell." + full, sine(shape, 0.4 + 0.01 * static_cast<double>(tensors.size())));
                list += (list.empty() ? "self.cell." : ", self.cell.") + full;
            };
            add("weight_ih", {gates * hidden, layer == 0 ? input : directions * out});
            add("weight_hh", {gates * hidden, out});
            if (biases) {
                add("bias_ih", {gates * hidden});
                add("bias_hh", {gates * hidden});
            }
            if (projected) add("weight_hr", {projected, hidden});
        }
    return "[" + list + "]";
}

TEST(PruneRules, AGruLosesHiddenChannelsInAllLayersAndDirections) {
    for (const bool batch_first : {true, false}) {
        Tensors tensors = {{"a.weight", sine({5, 4}, 0.5)}, {"b.weight", sine({3, 12}, 0.4)}};
        const auto cells = add_cells(tensors, 3, 5, 6, 2, 2, true);
        const auto model = build_model(tensors, R"(
def forward(self, x):
    x = torch.linear(x, self.a.weight)
    y, h = torch.gru(x, torch.zeros([4, )" + std::string(batch_first ? "x.size(0)" : "x.size(1)") +
                                                    ", 6]), " + cells + ", True, 2, 0.0, False, True, " +
                                                    (batch_first ? "True" : "False") + R"()
    return torch.linear(y, self.b.weight), h.sum([2])
)");
        expect_cut_equals_masked(model, {sine({3, 7, 4})});
        const auto groups = prune::find_groups(model, Facts::observe(model, {sine({3, 7, 4})}));
        EXPECT_EQ(group_of(groups, "cell").channels, 6);
        EXPECT_EQ(group_of(groups, "cell").multiplicity, 3);  // gates
    }
}

TEST(PruneRules, AnLstmWithProjectionLosesHiddenAndProjectedChannels) {
    Tensors tensors = {{"b.weight", sine({3, 4}, 0.4)}};
    const auto cells = add_cells(tensors, 4, 5, 8, 2, 1, true, 4);
    const auto model = build_model(tensors, R"(
def forward(self, x):
    y, h, c = torch.lstm(x, [torch.zeros([2, x.size(0), 4]), torch.zeros([2, x.size(0), 8])], )" +
                                                cells +
                                                R"(, True, 2, 0.0, False, False, True)
    return torch.linear(y, self.b.weight), h.sum([2]), c.sum([2])
)");
    expect_cut_equals_masked(model, {sine({3, 7, 5})});
    const auto check = check_cut(model, {sine({3, 7, 5})}, 0.5, 1);
    EXPECT_EQ(width(check.smaller, "cell.weight_ih_l0", 0), 4 * 4);
    EXPECT_EQ(width(check.smaller, "cell.weight_hr_l1", 0), 2);
    EXPECT_EQ(width(check.smaller, "cell.weight_hr_l1", 1), 4);
}

TEST(PruneRules, PlainRecurrentLayersWithoutBiasesAndAnInitialStateThatIsLearned) {
    for (const char* cell : {"rnn_tanh", "rnn_relu"}) {
        Tensors tensors = {{"b.weight", sine({3, 12}, 0.4)}, {"start", sine({2, 1, 6}, 0.3)}};
        const auto cells = add_cells(tensors, 1, 5, 6, 1, 2, false);
        const auto model = build_model(tensors, std::string(R"(
def forward(self, x):
    y, h = torch.)") + cell + "(x, self.start.expand([2, x.size(0), 6]).contiguous(), " +
                                                    cells +
                                                    R"(, False, 1, 0.0, False, True, True)
    return torch.linear(y, self.b.weight)
)");
        expect_cut_equals_masked(model, {sine({3, 7, 5})});
    }
}

TEST(PruneRules, AStateThatIsGivenKeepsTheHiddenChannels) {
    Tensors tensors = {{"a.weight", sine({5, 4}, 0.5)}};
    const auto cells = add_cells(tensors, 4, 5, 6, 1, 1, true);
    const auto model = build_model(tensors, R"(
def forward(self, x, h, c):
    y, _, _ = torch.lstm(torch.linear(x, self.a.weight), [h, c], )" +
                                                cells + R"(, True, 1, 0.0, False, False, True)
    return y.sum([2])
)");
    const Inputs example = {sine({3, 7, 4}), sine({1, 3, 6}), sine({1, 3, 6})};
    expect_cut_equals_masked(model, example);  // what enters can still be pruned
    EXPECT_EQ(info_of(prune::find_groups(model, Facts::observe(model, example)), "cell").prunable, 0);
}

TEST(PruneRules, ARealGruLosesInputsAndHiddenChannels) {
    SKIP_WITHOUT_DATA("fsdd/cnn_gru.pt");
    const auto model = Model::load(data_path("fsdd/cnn_gru.pt"));
    expect_cut_equals_masked(model, {sine({2, 1, 8000})});
    for (const int64_t batch : {1, 2}) {  // a batch of one is the example of a recipe
        const auto groups = prune::find_groups(model, Facts::observe(model, {sine({batch, 1, 8000})}));
        EXPECT_EQ(group_of(groups, "features.12").channels, 128) << "what the cells read, batch " << batch;
        EXPECT_EQ(group_of(groups, "recur").channels, 64) << "hidden channels, batch " << batch;
    }
}

TEST(PruneRules, ARecurrentModuleThatAddsABatchDimensionLosesChannels) {
    // As nn.GRU has it: a branch for input without a batch dimension, which the example does not take.
    Tensors tensors = {{"a.weight", sine({5, 4}, 0.5)}, {"b.weight", sine({3, 6}, 0.4)}};
    const auto cells = add_cells(tensors, 3, 5, 6, 1, 1, true);
    const auto model = build_model(tensors, R"(
def forward(self, x):
    x = torch.linear(x, self.a.weight)
    is_batched = x.dim() == 3
    if not is_batched:
        x = torch.unsqueeze(x, 0)
    y, h = torch.gru(x, torch.zeros([1, x.size(0), 6]), )" +
                                                cells + R"(, True, 1, 0.0, False, False, True)
    if not is_batched:
        y = torch.squeeze(y, 0)
    return torch.linear(y, self.b.weight)
)");
    for (const int64_t batch : {1, 2}) {
        const auto x = sine({batch, 7, 4});
        expect_cut_equals_masked(model, {x});
        auto smaller = check_cut(model, {x}, 0.5, 1).smaller;
        EXPECT_LT(width(smaller, "a.weight", 0), 5);
        EXPECT_LT(width(smaller, "cell.weight_hh_l0", 1), 6);
        // The branch that was not taken still fits.
        const auto batched = first_tensor(smaller.forward({x}));
        EXPECT_LT(max_difference(first_tensor(smaller.forward({x[0]})), batched[0]), 1e-6);  // float32
    }
}

TEST(PruneRules, MatrixProductsOfBatchesAndWithSums) {
    // Weights as [in, out]; the scores of a single head by bmm, its result added to another branch by baddbmm.
    const auto model = build_model({{"q.weight", sine({4, 6}, 0.5)},
                                    {"q.bias", sine({6}, 0.2)},
                                    {"k.weight", sine({4, 6}, 0.4)},
                                    {"v.weight", sine({4, 7}, 0.6)},
                                    {"r.weight", sine({4, 7}, 0.3)},
                                    {"o.weight", sine({7, 3}, 0.5)}},
                                   R"(
def forward(self, x):
    n = x.size(0)
    t = x.size(1)
    rows = x.reshape([-1, 4])
    q = torch.addmm(self.q.bias, rows, self.q.weight).reshape([n, t, -1])
    k = torch.mm(rows, self.k.weight).reshape([n, t, -1])
    v = torch.matmul(x, self.v.weight)
    a = torch.softmax(torch.bmm(q, k.transpose(1, 2)), 2)
    y = torch.baddbmm(torch.matmul(x, self.r.weight), a, v)
    return torch.matmul(y, self.o.weight)
)");
    expect_cut_equals_masked(model, {sine({2, 5, 4})});
    const auto check = check_cut(model, {sine({2, 5, 4})}, 0.5, 1);
    EXPECT_EQ(width(check.smaller, "q.weight", 1), 3);
    EXPECT_EQ(width(check.smaller, "k.weight", 1), 3);
    EXPECT_EQ(width(check.smaller, "v.weight", 1), 4);
    EXPECT_EQ(width(check.smaller, "r.weight", 1), 4);
    EXPECT_EQ(width(check.smaller, "o.weight", 0), 4);
}

TEST(PruneRules, EinsumTiesLettersWhereverTheyStand) {
    Tensors tensors = {{"q.weight", sine({12, 6}, 0.5)},
                       {"k.weight", sine({12, 6}, 0.4)},
                       {"v.weight", sine({12, 6}, 0.3)},
                       {"o.weight", sine({3, 4, 5}, 0.6)}};
    // Attention by hand: 3 heads of width 4; the last product has a parameter [heads, width, out].
    const auto model = build_model(tensors, R"(
def forward(self, x):
    q = torch.linear(x, self.q.weight).view([x.size(0), -1, 3, 4])
    k = torch.linear(x, self.k.weight).view([x.size(0), -1, 3, 4])
    v = torch.linear(x, self.v.weight).view([x.size(0), -1, 3, 4])
    a = torch.softmax(torch.einsum("bihd, bjhd -> bhij", [q, k]), -1)
    y = torch.einsum("bhij,bjhd->bihd", [a, v])
    return torch.einsum("bihd,hdo->bio", [y, self.o.weight])
)");
    expect_cut_equals_masked(model, {sine({2, 7, 6})});
    const auto check = check_cut(model, {sine({2, 7, 6})}, 0.34, 1);
    EXPECT_EQ(width(check.smaller, "q.weight", 0), 8);  // one head of three is gone
    EXPECT_EQ(width(check.smaller, "o.weight", 0), 2);
}

TEST(PruneRules, EinsumOfAWeightIsALayer) {
    const auto model = build_model({{"a.weight", sine({6, 8}, 0.5)}, {"b.weight", sine({8, 5}, 0.4)}}, R"(
def forward(self, x):
    return torch.matmul(torch.relu(torch.einsum("nti,io->nto", [x, self.a.weight])), self.b.weight)
)");
    expect_cut_equals_masked(model, {sine({2, 7, 6})});
    EXPECT_EQ(group_of(prune::find_groups(model, Facts::observe(model, {sine({2, 7, 6})})), "a").channels, 8);
}

TEST(PruneRules, EinsumWithDotsOrWithoutAResult) {
    // Dots stand for no, one and two dimensions; "...i,io" puts out "...o", "oi,ni" puts out "no".
    for (const auto& shape : std::vector<std::vector<int64_t>>{{6}, {7, 6}, {2, 7, 6}}) {
        SCOPED_TRACE(shape.size());
        for (const char* second : {"...o,ok->...k", "...o,ok", "ok,...o->k..."}) {
            SCOPED_TRACE(second);
            const bool weight_first = second[0] == 'o';
            const auto model =
                build_model({{"a.weight", sine({6, 8}, 0.5)}, {"b.weight", sine({8, 5}, 0.4)}}, std::string(R"(
def forward(self, x):
    x = torch.relu(torch.einsum("...i, io", [x, self.a.weight]))
    return torch.einsum(")") + second + "\", [" + (weight_first ? "self.b.weight, x" : "x, self.b.weight") +
                                                                                                    "])\n");
            expect_cut_equals_masked(model, {sine(shape)});
            const auto check = check_cut(model, {sine(shape)}, 0.5, 1);
            EXPECT_EQ(width(check.smaller, "a.weight", 1), 4);
            EXPECT_EQ(width(check.smaller, "b.weight", 0), 4);
        }
    }
    const auto matrix = build_model({{"a.weight", sine({8, 6}, 0.5)}, {"b.weight", sine({8, 5}, 0.4)}}, R"(
def forward(self, x):
    return torch.einsum("no,ok", [torch.relu(torch.einsum("oi,ni->no", [self.a.weight, x])), self.b.weight])
)");
    expect_cut_equals_masked(matrix, {sine({4, 6})});
    EXPECT_EQ(width(check_cut(matrix, {sine({4, 6})}, 0.5, 1).smaller, "a.weight", 0), 4);
}

TEST(PruneRules, EinsumWithDotsKeepsHeadsApart) {
    Tensors tensors = {{"q.weight", sine({12, 6}, 0.5)},
                       {"k.weight", sine({12, 6}, 0.4)},
                       {"v.weight", sine({12, 6}, 0.3)},
                       {"s.weight", sine({3, 1, 1}, 0.5)},
                       {"o.weight", sine({3, 4, 5}, 0.6)}};
    // Batch and heads are what the dots stand for; in the third product they meet a parameter of fewer dimensions.
    const auto model = build_model(tensors, R"(
def forward(self, x):
    q = torch.linear(x, self.q.weight).view([x.size(0), -1, 3, 4]).transpose(1, 2)
    k = torch.linear(x, self.k.weight).view([x.size(0), -1, 3, 4]).transpose(1, 2)
    v = torch.linear(x, self.v.weight).view([x.size(0), -1, 3, 4]).transpose(1, 2)
    a = torch.softmax(torch.einsum("...id,...jd->...ij", [q, k]), -1)
    y = torch.einsum("...,...", [torch.einsum("...ij,...jd->...id", [a, v]), self.s.weight])
    return torch.einsum("bhid,hdo->bio", [y, self.o.weight])
)");
    expect_cut_equals_masked(model, {sine({2, 7, 6})});
    const auto check = check_cut(model, {sine({2, 7, 6})}, 0.34, 1);
    EXPECT_EQ(width(check.smaller, "q.weight", 0), 8);  // one head of three is gone
    EXPECT_EQ(width(check.smaller, "s.weight", 0), 2);
    EXPECT_EQ(width(check.smaller, "o.weight", 0), 2);
}

TEST(PruneRules, AGateThatServesAllChannelsStays) {
    // One channel of the split scales all eight of another: without it there would be nothing to multiply by.
    const auto model = build_model({{"a.weight", sine({10, 3, 1, 1}, 0.5)}, {"b.weight", sine({5, 8, 3, 3}, 0.3)}}, R"(
def forward(self, x):
    x, gates = torch.split(torch.conv2d(x, self.a.weight), [8, 2], 1)
    x = x * gates[:, 0:1] + x.tanh() * gates[:, 1:2]
    return torch.conv2d(x, self.b.weight)
)");
    expect_cut_equals_masked(model, {image()});
    EXPECT_EQ(info_of(prune::find_groups(model, Facts::observe(model, {image()})), "a").prunable, 8);
}

TEST(PruneRules, HalvesOfASplitAreNeverEmptied) {
    // Both halves meet the same weights; pooling over a half without channels would fail.
    const auto model = build_model({{"a.weight", sine({8, 3, 1, 1}, 0.5)}, {"b.weight", sine({5, 8, 1, 1}, 0.3)}}, R"(
def forward(self, x):
    x, y = torch.chunk(torch.conv2d(x, self.a.weight), 2, 1)
    return torch.conv2d(torch.cat([torch.avg_pool2d(x, [2, 2]), torch.max_pool2d(y, [2, 2])], 1), self.b.weight)
)");
    const auto facts = Facts::observe(model, {image()});
    const auto groups = prune::find_groups(model, facts);
    ASSERT_EQ(groups.all().size(), 2u);
    for (const auto& group : groups.all()) EXPECT_EQ(group.channels, 4);
    const auto check = check_cut(model, {image()}, 0.99, 1);
    EXPECT_EQ(width(check.smaller, "a.weight", 0), 2);
    EXPECT_LE(check.difference, 1e-5);
}

TEST(PruneRules, TensorsInADictionaryAreFollowed) {
    const auto model = build_model({{"a.weight", sine({6, 3, 3, 3}, 0.3)},
                                    {"b.weight", sine({4, 6, 3, 3}, 0.2)},
                                    {"c.weight", sine({5, 6, 1, 1}, 0.4)}},
                                   R"(
def forward(self, x):
    features = {"low": torch.relu(torch.conv2d(x, self.a.weight))}
    features["high"] = torch.conv2d(features["low"], self.b.weight)
    return {"out": torch.conv2d(features["low"], self.c.weight), "aux": features["high"]}
)");
    expect_cut_equals_masked(model, {image()});
    const auto groups = prune::find_groups(model, Facts::observe(model, {image()}));
    EXPECT_EQ(info_of(groups, "a").prunable, 6);
    EXPECT_EQ(info_of(groups, "b").prunable, 0) << "an output of the model";
}

TEST(PruneRules, HeadsOrTheirWidthShrinkAsAsked) {
    Tensors tensors = {
        {"qkv.weight", sine({36, 12}, 0.4)}, {"o.weight", sine({12, 12}, 0.3)}, {"h.weight", sine({5, 12}, 0.3)}};
    const auto packed = build_model(tensors, R"(
def forward(self, x):
    p = torch.linear(x, self.qkv.weight).reshape([x.size(0), -1, 3, 3, 4]).permute([2, 0, 3, 1, 4])
    q, k, v = torch.unbind(p, 0)
    y = torch.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape([x.size(0), -1, 12])
    return torch.linear(torch.linear(y, self.o.weight), self.h.weight)
)");
    Tensors apart = {{"q.weight", sine({12, 12}, 0.4)},
                     {"k.weight", sine({12, 12}, 0.3)},
                     {"v.weight", sine({12, 12}, 0.5)},
                     {"o.weight", sine({12, 12}, 0.3)},
                     {"h.weight", sine({5, 12}, 0.3)}};
    const auto separate = build_model(apart, R"(
def forward(self, x):
    q = torch.linear(x, self.q.weight).view([x.size(0), -1, 3, 4]).transpose(1, 2)
    k = torch.linear(x, self.k.weight).view([x.size(0), -1, 3, 4]).transpose(1, 2)
    v = torch.linear(x, self.v.weight).view([x.size(0), -1, 3, 4]).transpose(1, 2)
    y = torch.matmul(torch.softmax(torch.matmul(q, k.transpose(-2, -1)) * 0.5, -1), v)
    return torch.linear(torch.linear(y.transpose(1, 2).reshape([x.size(0), -1, 12]), self.o.weight), self.h.weight)
)");
    const auto example = sine({2, 7, 12});
    prune::GroupOptions head_width;
    head_width.head_width = true;
    for (const uint64_t seed : {1, 2, 3})
        for (const Model& model : {packed, separate}) {
            const auto heads = check_cut(model, {example}, 0.34, seed),
                       widths = check_cut(model, {example}, 0.34, seed, head_width);
            EXPECT_LE(heads.difference, 1e-5);
            EXPECT_LE(widths.difference, 1e-5);
            EXPECT_EQ(width(heads.smaller, "o.weight", 1), 8);   // two heads of width 4
            EXPECT_EQ(width(widths.smaller, "o.weight", 1), 9);  // three heads of width 3
        }
    // Queries and keys share a width; values have one of their own unless all three are packed.
    const auto groups = prune::find_groups(separate, Facts::observe(separate, {example}), head_width);
    EXPECT_EQ(group_of(groups, "q").name, group_of(groups, "k").name);
    EXPECT_NE(group_of(groups, "q").name, group_of(groups, "v").name);
}

// Two queries share a key and a value: a key-value head goes with both, whichever way it is repeated.
TEST(PruneRules, GroupedQueryHeadsGoWithTheirKeys) {
    Tensors tensors = {{"q.weight", sine({24, 8}, 0.5)},
                       {"k.weight", sine({12, 8}, 0.4)},
                       {"v.weight", sine({12, 8}, 0.3)},
                       {"o.weight", sine({8, 24}, 0.3)}};
    for (const char* attention :
         {"k = k[:, :, None].expand([n, 3, 2, t, 4]).reshape([n, 6, t, 4])\n"
          "    v = v[:, :, None].expand([n, 3, 2, t, 4]).reshape([n, 6, t, 4])\n"
          "    y = torch.scaled_dot_product_attention(q, k, v)",
          "y = torch.scaled_dot_product_attention(q, torch.repeat_interleave(k, 2, 1), torch.repeat_interleave(v, 2, "
          "1))",
          "y = torch.scaled_dot_product_attention(q, k, v, None, 0.0, False, scale=None, enable_gqa=True)"}) {
        SCOPED_TRACE(attention);
        const auto model = build_model(tensors, std::string(R"(
def forward(self, x):
    n, t = x.size(0), x.size(1)
    q = torch.linear(x, self.q.weight).view([n, t, 6, 4]).transpose(1, 2)
    k = torch.linear(x, self.k.weight).view([n, t, 3, 4]).transpose(1, 2)
    v = torch.linear(x, self.v.weight).view([n, t, 3, 4]).transpose(1, 2)
    )") + attention + R"(
    return torch.linear(y.transpose(1, 2).reshape([n, t, 24]), self.o.weight)
)");
        expect_cut_equals_masked(model, {sine({2, 5, 8})});
        const auto groups = prune::find_groups(model, Facts::observe(model, {sine({2, 5, 8})}));
        EXPECT_EQ(group_of(groups, "k").channels, 3);
        EXPECT_EQ(&group_of(groups, "k"), &group_of(groups, "q"));
    }
}

// A table of biases per head, looked up by relative position, loses the columns of the heads that go.
TEST(PruneRules, RelativePositionTablesLoseTheirHeads) {
    Tensors tensors = {{"qkv.weight", sine({36, 8}, 0.5)},
                       {"table", sine({9, 3}, 0.6)},
                       {"index", at::arange(25).remainder(9)},
                       {"o.weight", sine({8, 12}, 0.3)}};
    const auto model = build_model(tensors, R"(
def forward(self, x):
    n, t = x.size(0), x.size(1)
    q, k, v = torch.linear(x, self.qkv.weight).view([n, t, 3, 3, 4]).permute([2, 0, 3, 1, 4]).unbind(0)
    a = torch.matmul(q * 0.5, k.transpose(-2, -1))
    bias = self.table[self.index].view([5, 5, -1]).permute([2, 0, 1]).unsqueeze(0)
    a = torch.softmax(a + bias, -1)
    return torch.linear(torch.matmul(a, v).transpose(1, 2).reshape([n, t, -1]), self.o.weight)
)");
    expect_cut_equals_masked(model, {sine({2, 5, 8})});
    const auto check = check_cut(model, {sine({2, 5, 8})}, 0.34, 1);
    EXPECT_EQ(width(check.smaller, "table", 1), 2);
    EXPECT_EQ(width(check.smaller, "qkv.weight", 0), 24);
}

// Shifted windows, as in Swin: positions move, channels stay together.
TEST(PruneRules, WindowsArePartitionedOverPositions) {
    const auto model = build_model({{"a.weight", sine({6, 4}, 0.5)}, {"b.weight", sine({5, 6}, 0.4)}}, R"(
def forward(self, x):
    n, h, w = x.size(0), x.size(1), x.size(2)
    x = torch.roll(torch.linear(x, self.a.weight), [-1, -1], [1, 2])
    x = x.view([n, h // 2, 2, w // 2, 2, -1]).permute([0, 1, 3, 2, 4, 5]).reshape([-1, 4, x.size(3)])
    x = torch.gelu(x).view([n, h // 2, w // 2, 2, 2, -1]).permute([0, 1, 3, 2, 4, 5]).reshape([n, h, w, -1])
    return torch.linear(torch.roll(x, [1, 1], [1, 2]), self.b.weight)
)");
    expect_cut_equals_masked(model, {sine({2, 4, 6, 4})});
    EXPECT_EQ(group_of(prune::find_groups(model, Facts::observe(model, {sine({2, 4, 6, 4})})), "a").channels, 6);
}

TEST(PruneRules, FusedAttentionIsTakenApart) {
    const int64_t width_of_model = 12;
    Tensors tensors = {{"qkv.weight", sine({36, 12}, 0.4)},
                       {"qkv.bias", sine({36}, 0.1)},
                       {"out.weight", sine({12, 12}, 0.3)},
                       {"out.bias", sine({12}, 0.1)},
                       {"head.weight", sine({5, 12}, 0.3)}};
    const auto model = build_model(tensors, R"(
def forward(self, x):
    y, _ = torch._native_multi_head_attention(x, x, x, 12, 3, self.qkv.weight, self.qkv.bias, self.out.weight, self.out.bias, None, False)
    return torch.linear(y, self.head.weight)
)");
    const auto example = sine({2, 7, width_of_model});
    const auto apart = prune::unfuse_attention(model);
    torch::NoGradGuard no_grad;
    EXPECT_LE(max_difference(first_tensor(model.forward({example})), first_tensor(apart.forward({example}))), 1e-5);
    expect_cut_equals_masked(model, {example});
    const auto groups = prune::find_groups(apart, Facts::observe(apart, {example}));
    EXPECT_EQ(group_of(groups, "qkv").channels, 3);  // heads
    EXPECT_EQ(group_of(groups, "out").channels, 12);
}

TEST(PruneRules, AFusedEncoderLayerIsTakenApart) {
    for (const bool norm_first : {false, true}) {
        Tensors tensors = {{"qkv.weight", sine({36, 12}, 0.4)}, {"qkv.bias", sine({36}, 0.1)},
                           {"out.weight", sine({12, 12}, 0.3)}, {"out.bias", sine({12}, 0.1)},
                           {"n1.weight", 1 + sine({12}, 0.2)},  {"n1.bias", sine({12}, 0.1)},
                           {"n2.weight", 1 + sine({12}, 0.3)},  {"n2.bias", sine({12}, 0.2)},
                           {"f1.weight", sine({20, 12}, 0.3)},  {"f1.bias", sine({20}, 0.1)},
                           {"f2.weight", sine({12, 20}, 0.2)},  {"f2.bias", sine({12}, 0.1)}};
        const auto model = build_model(tensors, std::string(R"(
def forward(self, x):
    return torch._transformer_encoder_layer_fwd(x, 12, 3, self.qkv.weight, self.qkv.bias, self.out.weight, self.out.bias, True, )") +
                                                    (norm_first ? "True" : "False") + R"(, 1e-5,
        self.n1.weight, self.n1.bias, self.n2.weight, self.n2.bias, self.f1.weight, self.f1.bias, self.f2.weight, self.f2.bias)
)");
        const auto example = sine({2, 7, 12});
        const auto apart = prune::unfuse_attention(model);
        torch::NoGradGuard no_grad;
        EXPECT_LE(max_difference(first_tensor(model.forward({example})), first_tensor(apart.forward({example}))), 1e-5);
        expect_cut_equals_masked(model, {example});
        const auto groups = prune::find_groups(apart, Facts::observe(apart, {example}));
        EXPECT_EQ(group_of(groups, "qkv").channels, 3);
        EXPECT_EQ(group_of(groups, "f1").channels, 20);
    }
}

/// What scripting makes of nn.MultiheadAttention and nn.TransformerEncoderLayer, in short: the fused operator where
/// grad mode and types allow it, else the same written out; with and without a batch dimension, in both orders. 12
/// channels in 3 heads, 20 in the feed-forward part.
struct Scripted {
    bool batch_first = true, need_weights = false, norm_first = false;
    std::string forward;  ///< the body: speaks of x, and of mask where it has that name

    Model model() const {
        Tensors tensors = {{"a.weight", sine({12, 8}, 0.5)}, {"qkv.weight", sine({36, 12}, 0.4)},
                           {"qkv.bias", sine({36}, 0.1)},    {"out.weight", sine({12, 12}, 0.3)},
                           {"out.bias", sine({12}, 0.1)},    {"n1.weight", 1 + sine({12}, 0.2)},
                           {"n1.bias", sine({12}, 0.1)},     {"n2.weight", 1 + sine({12}, 0.3)},
                           {"n2.bias", sine({12}, 0.2)},     {"f1.weight", sine({20, 12}, 0.3)},
                           {"f1.bias", sine({20}, 0.1)},     {"f2.weight", sine({12, 20}, 0.2)},
                           {"f2.bias", sine({12}, 0.1)},     {"head.weight", sine({5, 12}, 0.3)}};
        const auto flag = [](bool value) { return std::string(value ? "True" : "False"); };
        const bool masked = forward.find("mask") != std::string::npos;
        std::string source = R"(
def why_not(self, query, key, value) -> str:
    why = ""
    if query.dim() != 3:
        why = "{} dimensions".format(query.dim())
    elif query is not key or key is not value:
        why = "several tensors"
    elif query.dtype != self.qkv.weight.dtype:
        why = "types {} and {}".format(query.dtype, self.qkv.weight.dtype)
    elif self.training:
        why = "training"
    elif not BATCH_FIRST:
        why = "the order"
    elif torch.is_autocast_enabled():
        why = "autocast"
    return why

def kind(self, mask: Optional[Tensor]) -> Optional[int]:
    return None if mask is None else 0

def attend(self, query, key, value, mask: Optional[Tensor]) -> Tuple[Tensor, Optional[Tensor]]:
    batched = query.dim() == 3
    why = self.why_not(query, key, value)
    if len(why) == 0:
        read = [query, key, value, self.qkv.weight, self.qkv.bias, self.out.weight, self.out.bias]
        if torch.is_grad_enabled() and any([x.requires_grad for x in read]):
            why = "gradients"
        if len(why) == 0:
            return torch._native_multi_head_attention(query, key, value, 12, 3, self.qkv.weight, self.qkv.bias, self.out.weight, self.out.bias, mask, NEED_WEIGHTS, True, self.kind(mask))
    if BATCH_FIRST and batched:
        if key is value:
            if query is key:
                query = key = value = query.transpose(1, 0)
            else:
                query, key = [x.transpose(1, 0) for x in (query, key)]
                value = key
        else:
            query, key, value = [x.transpose(1, 0) for x in (query, key, value)]
    if not batched:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
    l, n, e = query.shape
    w = e // 3
    if key is value and query is key:
        packed = torch.linear(query, self.qkv.weight, self.qkv.bias)
        packed = packed.unflatten(-1, [3, e]).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
        q, k, v = packed[0], packed[1], packed[2]
    else:
        a, b, c = self.qkv.weight.chunk(3)
        q, k, v = torch.linear(query, a), torch.linear(key, b), torch.linear(value, c)
    q = q.view([l, n * 3, w]).transpose(0, 1)
    k = k.view([k.shape[0], n * 3, w]).transpose(0, 1)
    v = v.view([v.shape[0], n * 3, w]).transpose(0, 1)
    weights: Optional[Tensor] = None
    if NEED_WEIGHTS:
        scores = torch.bmm(q * (1.0 / float(w)) ** 0.5, k.transpose(-2, -1))
        if mask is not None:
            scores = scores.masked_fill(mask, -1e9)
        p = torch.softmax(scores, -1)
        y = torch.bmm(p, v).transpose(0, 1).reshape([l * n, e])
        weights = p.view([n, 3, l, k.size(1)]).mean(1)
    else:
        q, k, v = q.view([n, 3, l, w]), k.view([n, 3, k.size(1), w]), v.view([n, 3, k.size(1), w])
        if mask is None:
            y = torch.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.scaled_dot_product_attention(q, k, v, mask.logical_not())
        y = y.permute([2, 0, 1, 3]).reshape([l * n, e])
    y = torch.linear(y, self.out.weight, self.out.bias).view([l, n, -1])
    if not batched:
        y = y.squeeze(1)
    if BATCH_FIRST and batched:
        y = y.transpose(1, 0)
    return y, weights

def encode(self, x):
    why = self.why_not(x, x, x)
    if len(why) == 0:
        read = [x, self.qkv.weight, self.qkv.bias, self.f1.weight, self.f2.weight]
        if torch.is_grad_enabled() and any([y.requires_grad for y in read]):
            why = "gradients"
        if len(why) == 0:
            return torch._transformer_encoder_layer_fwd(x, 12, 3, self.qkv.weight, self.qkv.bias, self.out.weight, self.out.bias, False, NORM_FIRST, 1e-5,
                self.n1.weight, self.n1.bias, self.n2.weight, self.n2.bias, self.f1.weight, self.f1.bias, self.f2.weight, self.f2.bias)
    if NORM_FIRST:
        y = torch.layer_norm(x, [12], self.n1.weight, self.n1.bias)
        x = x + self.attend(y, y, y, None)[0]
        y = torch.layer_norm(x, [12], self.n2.weight, self.n2.bias)
    else:
        x = torch.layer_norm(x + self.attend(x, x, x, None)[0], [12], self.n1.weight, self.n1.bias)
        y = x
    x = x + torch.linear(torch.relu(torch.linear(y, self.f1.weight, self.f1.bias)), self.f2.weight, self.f2.bias)
    if not NORM_FIRST:
        x = torch.layer_norm(x, [12], self.n2.weight, self.n2.bias)
    return x

def forward(self, x)" + std::string(masked ? ", mask: Tensor" : "") +
                             "):\n" + forward;
        for (const auto& [name, value] : {std::pair("BATCH_FIRST", batch_first),
                                          std::pair("NEED_WEIGHTS", need_weights), std::pair("NORM_FIRST", norm_first)})
            source = std::regex_replace(source, std::regex(name), flag(value));
        return build_model(tensors, source);
    }

    std::string setting() const {
        return std::string(batch_first ? "batch first" : "length first") + (need_weights ? ", with weights" : "") +
               (norm_first ? ", norm first" : "") + forward;
    }
};

bool asks_for_grad_mode(const Model& model) {
    for (const auto* node : all_nodes(*model.graph()))
        if (std::string(node->kind().toQualString()) == "aten::is_grad_enabled") return true;
    return false;
}

at::Tensor run(const Model& model, const Inputs& inputs, bool grad) {
    at::AutoGradMode mode(grad);
    return first_tensor(model.forward(inputs)).detach();
}

/// Cuts heads, or the width of all of them, with everything around; the result must not hang on grad mode, on the
/// batch, or on whether there is one.
void expect_scripted_module_is_pruned(const Scripted& scripted, bool masked) {
    SCOPED_TRACE(scripted.setting());
    const auto model = scripted.model();
    ASSERT_TRUE(asks_for_grad_mode(model));
    const auto example = [&](int64_t batch) {
        Inputs inputs = {sine(scripted.batch_first ? at::IntArrayRef{batch, 7, 8} : at::IntArrayRef{7, batch, 8})};
        if (masked) inputs.push_back(at::ones({7, 7}).triu(1).to(at::kBool));
        return inputs;
    };
    const auto apart = prune::unfuse_attention(model);
    EXPECT_FALSE(asks_for_grad_mode(apart));
    for (const bool grad : {false, true})  // float32: the fused operator and its parts round differently
        EXPECT_LE(max_difference(run(model, example(2), grad), run(apart, example(2), grad)), 1e-5);
    expect_cut_equals_masked(model, example(2));
    for (const bool head_width : {false, true}) {
        prune::GroupOptions options;
        options.head_width = head_width;
        for (const int64_t batch : {1, 5}) {  // a batch of one, and one of more than there are heads
            auto check = check_cut(model, example(batch), 0.4, 1, options);
            EXPECT_LE(check.difference, 1e-5) << "batch " << batch;
            EXPECT_EQ(group_of(check.groups, "qkv").channels, head_width ? 4 : 3) << "batch " << batch;
            EXPECT_EQ(group_of(check.groups, "a").channels, 12) << "batch " << batch;
            const auto inputs = example(4);
            const auto whole = run(check.smaller, inputs, false);
            EXPECT_LE(max_difference(whole, run(check.smaller, inputs, true)), 1e-6);
            auto alone = inputs;
            const int64_t dim = scripted.batch_first ? 0 : 1;
            alone[0] = inputs[0].toTensor().select(dim, 3);
            EXPECT_LE(max_difference(whole.select(dim, 3), run(check.smaller, alone, false)), 1e-5);
            check.smaller.train();  // no fused operator either way: the same without dropout
            EXPECT_LE(max_difference(whole, run(check.smaller, inputs, true)), 1e-6);
        }
    }
}

TEST(PruneRules, ScriptedAttentionWithAFastPathLosesHeads) {
    Scripted scripted;
    scripted.forward = R"(
    x = torch.linear(x, self.a.weight)
    y, _ = self.attend(x, x, x, None)
    return torch.linear(y, self.head.weight)
)";
    for (scripted.batch_first = true;; scripted.batch_first = false) {
        for (const bool need_weights : {false, true}) {
            scripted.need_weights = need_weights;
            expect_scripted_module_is_pruned(scripted, false);
        }
        if (!scripted.batch_first) break;
    }
}

TEST(PruneRules, ScriptedAttentionWithAMaskLosesHeads) {
    Scripted scripted;
    scripted.forward = R"(
    x = torch.linear(x, self.a.weight)
    y, _ = self.attend(x, x, x, mask)
    return torch.linear(y, self.head.weight)
)";
    for (const bool need_weights : {false, true}) {
        scripted.need_weights = need_weights;
        expect_scripted_module_is_pruned(scripted, true);
    }
    scripted.batch_first = false;
    expect_scripted_module_is_pruned(scripted, true);
}

TEST(PruneRules, AScriptedEncoderLayerLosesHeadsAndFeedForwardChannels) {
    Scripted scripted;
    scripted.forward = R"(
    return torch.linear(self.encode(torch.linear(x, self.a.weight)), self.head.weight)
)";
    for (const bool norm_first : {false, true}) {
        scripted.norm_first = norm_first;
        expect_scripted_module_is_pruned(scripted, false);
        const auto check = check_cut(scripted.model(), {sine({2, 7, 8})}, 0.5, 1);
        EXPECT_EQ(width(check.smaller, "f1.weight", 0), 10);
        EXPECT_EQ(width(check.smaller, "f2.weight", 1), 10);
    }
    scripted.batch_first = false;
    expect_scripted_module_is_pruned(scripted, false);
}

TEST(PruneRules, AFastPathStaysWhereTheOtherBranchIsNotTheSame) {
    Scripted scripted;
    // Nested tensors are what only fused operators read.
    scripted.forward = R"(
    x = torch.linear(x, self.a.weight)
    if not torch.is_grad_enabled():
        x = torch._nested_tensor_from_mask(x, x.sum(-1) < 1e9)
    y = self.encode(x)
    return torch.linear(y, self.head.weight)
)";
    EXPECT_TRUE(asks_for_grad_mode(prune::unfuse_attention(scripted.model())));
    // Another branch, which reads other weights.
    scripted.forward = R"(
    x = torch.linear(x, self.a.weight)
    if not torch.is_grad_enabled():
        y, _ = torch._native_multi_head_attention(x, x, x, 12, 3, self.qkv.weight, self.qkv.bias, self.out.weight, self.out.bias, None, False)
    else:
        y = torch.linear(x, self.out.weight, self.out.bias)
    return torch.linear(y, self.head.weight)
)";
    EXPECT_TRUE(asks_for_grad_mode(prune::unfuse_attention(scripted.model())));
}

TEST(PruneRules, ABranchForTensorsOfAnotherRankKeepsNothing) {
    // As nn.Upsample and nn.InstanceNorm2d have them. Neither branch can run on an image of four dimensions.
    const auto model = build_model({{"a.weight", sine({6, 3, 1, 1}, 0.4)},
                                    {"norm.weight", 1 + sine({6}, 0.2)},
                                    {"norm.bias", sine({6}, 0.1)},
                                    {"b.weight", sine({5, 6, 1, 1}, 0.3)}},
                                   R"(
def forward(self, x):
    x = torch.conv2d(x, self.a.weight)
    if x.dim() == 3:
        x = torch.instance_norm(x.unsqueeze(0), self.norm.weight, self.norm.bias, None, None, True, 0.1, 1e-5, False).squeeze(0)
    else:
        x = torch.instance_norm(x, self.norm.weight, self.norm.bias, None, None, True, 0.1, 1e-5, False)
    if len(x.size()) == 3 and x.dim() > 1:
        x = torch.upsample_nearest1d(x, [16], None)
    else:
        x = torch.upsample_nearest2d(x, [16, 16], None, None)
    return torch.conv2d(x, self.b.weight)
)");
    expect_cut_equals_masked(model, {image()});
    EXPECT_EQ(width(check_cut(model, {image()}, 0.5, 1).smaller, "norm.weight", 0), 3);
}

TEST(PruneRules, ABranchBySizeThatCannotBeTriedKeepsWhatItReads) {
    const auto model = build_model({{"a.weight", sine({6, 3, 1, 1}, 0.4)}, {"b.weight", sine({5, 6, 1, 1}, 0.3)}},
                                   R"(
def forward(self, x):
    x = torch.conv2d(x, self.a.weight)
    if x.size(2) > 100:
        x = torch.matmul(x, torch.zeros([103, 103]))
    return torch.conv2d(x, self.b.weight)
)");
    const auto groups = prune::find_groups(model, Facts::observe(model, {image()}));
    EXPECT_THAT(info_of(groups, "a").reason, ::testing::HasSubstr("branch that the example input does not take"));
}

TEST(PruneRules, ABranchNotTakenKeepsWhatItReads) {
    const auto model = build_model({{"a.weight", sine({6, 3, 1, 1}, 0.4)},
                                    {"b.weight", sine({5, 6, 1, 1}, 0.3)},
                                    {"c.weight", sine({5, 5, 1, 1}, 0.3)}},
                                   R"(
def forward(self, x):
    x = torch.conv2d(x, self.a.weight)
    if x.size(2) > 100:
        x = torch.fft_fft(x, None, 1).abs()
    return torch.conv2d(torch.conv2d(x, self.b.weight), self.c.weight)
)");
    const auto groups = prune::find_groups(model, Facts::observe(model, {image()}));
    EXPECT_THAT(info_of(groups, "a").reason, ::testing::HasSubstr("aten::fft_fft"));
    expect_cut_equals_masked(model, {image()});
}

}  // namespace
}  // namespace coppice::testing
