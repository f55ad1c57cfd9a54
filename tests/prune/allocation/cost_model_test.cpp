// The cost of a removal that was not made must equal the cost of the model after it was made.
#include "prune/masking.h"

namespace coppice::testing {
namespace {

void expect_predicts(const Model& model, const Inputs& example) {
    const auto facts = Facts::observe(model, example);
    const auto groups = prune::find_groups(model, facts);
    const prune::CostModel predicted(model, example, groups);
    EXPECT_DOUBLE_EQ(predicted.baseline_macs(), cost(model, example).macs);
    for (const double share : {0.25, 0.6}) {
        const auto removal = random_removal(groups, share, 1);
        std::vector<int64_t> kept;
        for (size_t g = 0; g < removal.size(); ++g)
            kept.push_back(groups.all()[g].channels - static_cast<int64_t>(removal[g].size()));
        const auto real = cost(prune::cut(model, facts, groups, removal), example);
        EXPECT_NEAR(predicted.macs(kept) / real.macs, 1, 1e-9);
        EXPECT_NEAR(predicted.parameters(kept) / static_cast<double>(real.parameters), 1, 1e-9);
        EXPECT_NEAR(predicted.bytes(kept) / static_cast<double>(real.parameter_bytes + real.buffer_bytes), 1, 1e-9);
    }
}

TEST(PruneCostModel, PredictsAResidualNet) {
    expect_predicts(residual_model(), {sine({1, 3, 8, 8})});
}

TEST(PruneCostModel, PredictsGroupedAndDepthwiseConvolutions) {
    const auto model = build_model({{"a.weight", sine({8, 3, 1, 1}, 0.4)},
                                    {"g.weight", sine({12, 4, 3, 3}, 0.3)},
                                    {"dw.weight", sine({12, 1, 3, 3}, 0.3)},
                                    {"b.weight", sine({5, 12, 1, 1}, 0.3)}},
                                   R"(
def forward(self, x):
    x = torch.relu(torch.conv2d(x, self.a.weight))
    x = torch.conv2d(x, self.g.weight, None, [1, 1], [1, 1], [1, 1], 2)
    x = torch.conv2d(x, self.dw.weight, None, [1, 1], [1, 1], [1, 1], 12)
    return torch.conv2d(x, self.b.weight)
)");
    expect_predicts(model, {sine({1, 3, 8, 8})});
}

TEST(PruneCostModel, PredictsAttention) {
    for (const char* attention : {"torch.scaled_dot_product_attention(q, k, v)",
                                  "torch.matmul(torch.softmax(torch.matmul(q, k.transpose(2, 3)), 3), v)"}) {
        const auto model = build_model({{"q.weight", sine({12, 8}, 0.5)},
                                        {"k.weight", sine({12, 8}, 0.4)},
                                        {"v.weight", sine({12, 8}, 0.3)},
                                        {"o.weight", sine({8, 12}, 0.3)}},
                                       std::string(R"(
def forward(self, x):
    n, t = x.size(0), x.size(1)
    q = torch.linear(x, self.q.weight).view([n, t, 4, 3]).transpose(1, 2)
    k = torch.linear(x, self.k.weight).view([n, t, 4, 3]).transpose(1, 2)
    v = torch.linear(x, self.v.weight).view([n, t, 4, 3]).transpose(1, 2)
    y = )") + attention + R"(
    return torch.linear(y.transpose(1, 2).reshape([n, t, -1]), self.o.weight)
)");
        expect_predicts(model, {sine({2, 5, 8})});
    }
}

TEST(PruneCostModel, PredictsResNet20) {
    SKIP_WITHOUT_DATA("cifar10/resnet20.pt");
    expect_predicts(Model::load(data_path("cifar10/resnet20.pt")), {sine({1, 3, 32, 32})});
}

}  // namespace
}  // namespace coppice::testing
