#include "prune/allocation/synthetic.h"

namespace coppice::testing {
namespace {

using prune::Removal;

prune::Slice slice(const std::string& name, const at::Tensor& tensor, int64_t dim, bool produces) {
    prune::Slice slice;
    slice.name = name;
    slice.tensor = tensor;
    slice.dim = dim;
    slice.produces = produces;
    slice.layer = name;
    return slice;
}

/// Two groups of a weight that produces and one that reads, of different sizes, and one with a vector besides.
prune::Groups two_kinds() {
    auto groups = groups_of({4, 8, 4}).all();
    groups[0].slices = {slice("a", at::ones({4, 3, 1, 1}), 0, true), slice("b", at::ones({5, 4, 3, 3}), 1, false)};
    groups[1].slices = {slice("c", at::ones({9, 8, 1, 1}), 1, false), slice("d", at::ones({8, 3, 5, 5}), 0, true)};
    groups[2].slices = {slice("e", at::ones({4, 3, 1, 1}), 0, true), slice("f", at::ones({5, 4, 3, 3}), 1, false),
                        slice("g", at::ones({4}), 0, false)};
    return prune::Groups(std::move(groups));
}

TEST(PruneIsomorphic, EveryClassLosesTheSameShare) {
    const auto groups = two_kinds();
    // The third group's scores are far below all others: a common ranking takes all it may of it.
    const std::vector<at::Tensor> scores = {at::arange(101, 105, at::kDouble), at::arange(1, 9, at::kDouble),
                                            at::tensor({4e-3, 3e-3, 2e-3, 1e-3}, at::kDouble)};
    const prune::CostModel cost(groups);
    const auto common = prune::global(prune::Normaliser::kNone)->allocate(groups, scores, cost, plain(0.5));
    EXPECT_EQ(common[2], (std::vector<int64_t>{1, 2, 3}));
    const auto removal = prune::isomorphic()->allocate(groups, scores, cost, plain(0.5));
    // The first two are one class, whatever their sizes and the order of their slices: its 6 lowest of 12 are in the
    // second group.
    EXPECT_EQ(removal, (Removal{{}, {0, 1, 2, 3, 4, 5}, {2, 3}}));
}

TEST(PruneIsomorphic, HeadsOfPackedProjectionsAreNoFeedForwardChannels) {
    // Both are two linear layers: the first with a bias makes them, the second reads them.
    const auto model = build_model({{"qkv.weight", sine({36, 12}, 0.4)},
                                    {"qkv.bias", sine({36}, 0.1)},
                                    {"out.weight", sine({12, 12}, 0.3)},
                                    {"f1.weight", sine({12, 12}, 0.3)},
                                    {"f1.bias", sine({12}, 0.1)},
                                    {"f2.weight", sine({5, 12}, 0.2)}},
                                   R"(
def forward(self, x):
    p = torch.linear(x, self.qkv.weight, self.qkv.bias).reshape([x.size(0), -1, 3, 4, 3]).permute([2, 0, 3, 1, 4])
    q, k, v = torch.unbind(p, 0)
    y = torch.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape([x.size(0), -1, 12])
    y = torch.layer_norm(x + torch.linear(y, self.out.weight), [12])
    return torch.linear(torch.relu(torch.linear(y, self.f1.weight, self.f1.bias)), self.f2.weight)
)");
    const Inputs example = {sine({2, 7, 12})};
    const auto groups = prune::find_groups(model, Facts::observe(model, example));
    std::vector<at::Tensor> scores;
    int64_t heads = -1, inner = -1;
    for (size_t g = 0; g < groups.all().size(); ++g) {
        const auto& group = groups.all()[g];
        if (group.name == "qkv") heads = static_cast<int64_t>(g);
        if (group.name == "f1") inner = static_cast<int64_t>(g);
        // Heads far below: in one class with the feed-forward channels all but one would go.
        scores.push_back(at::arange(1, group.channels + 1, at::kDouble) * (group.name == "qkv" ? 1e-3 : 1));
    }
    ASSERT_GE(heads, 0);
    ASSERT_GE(inner, 0);
    ASSERT_EQ(groups.all()[heads].channels, 4);
    const auto removal =
        prune::isomorphic()->allocate(groups, scores, prune::CostModel(model, example, groups), plain(0.5));
    EXPECT_EQ(removal[heads], (std::vector<int64_t>{0, 1}));
    EXPECT_EQ(removal[inner], (std::vector<int64_t>{0, 1, 2, 3, 4, 5}));
}

TEST(PruneIsomorphic, ResNet20LosesTheSameShareInsideItsBlocksAsBetweenThem) {
    SKIP_WITHOUT_DATA("cifar10/resnet20.pt");
    const auto model = Model::load(data_path("cifar10/resnet20.pt"));
    const Inputs example = {sine({1, 3, 32, 32})};
    const auto groups = prune::find_groups(model, Facts::observe(model, example));
    Context context;
    const auto scores = prune::magnitude()->scores(model, groups, context);
    const auto removal =
        prune::isomorphic()->allocate(groups, scores, prune::CostModel(model, example, groups), plain(0.5));
    // A block's first convolution is a group of its own (one layer produces it); what the shortcuts join is a group
    // per stage.
    double inner = 0, inner_removed = 0;
    for (size_t g = 0; g < removal.size(); ++g) {
        if (groups.all()[g].layers.size() != 1) continue;
        inner += static_cast<double>(groups.all()[g].channels);
        inner_removed += static_cast<double>(removal[g].size());
    }
    ASSERT_GT(inner, 0);
    EXPECT_NEAR(inner_removed / inner, 0.5, 1.0 / inner) << "half of the class, up to one channel";
}

}  // namespace
}  // namespace coppice::testing
