#include <coppice/deploy.h>
#include <coppice/graph.h>

#include <torch/csrc/jit/testing/file_check.h>

#include "support/support.h"

namespace coppice::testing {
namespace {

const Inputs kExample = {sine({2, 5, 8}, 1.3)};

// Query, key and value of eight inputs, of different widths, the key without a bias; and a layer behind them.
Model projections(const std::string& body) {
    return build_model({{"q.weight", sine({6, 8}, 1.1)},
                        {"q.bias", sine({6}, 0.3)},
                        {"k.weight", sine({6, 8}, 1.7)},
                        {"v.weight", sine({4, 8}, 0.7)},
                        {"v.bias", sine({4}, 2.1)},
                        {"o.weight", sine({3, 4}, 1.9)}},
                       "def forward(self, x):\n" + body);
}

const char* const kBody =
    "    q = torch.linear(x, self.q.weight, self.q.bias)\n"
    "    k = torch.linear(x, self.k.weight)\n"
    "    v = torch.linear(x, self.v.weight, self.v.bias)\n"
    "    p = torch.softmax(torch.matmul(q, k.transpose(1, 2)), -1)\n"
    "    return torch.linear(torch.matmul(p, v), self.o.weight)\n";

TEST(MergeLinear, LayersOfOneInputGiveTheSameFromOneProduct) {
    torch::NoGradGuard no_grad;
    const auto before = projections(kBody);
    auto after = before.clone();
    EXPECT_EQ(merge_linear(after, kExample), 3);
    EXPECT_NO_THROW(after.graph()->lint());
    torch::jit::testing::FileCheck().check_count("aten::linear", 2, true)->run(*after.graph());
    // The merged product may be blocked in another way: float32 sums of eight terms of order 1.
    EXPECT_LE(max_difference(first_tensor(after.forward(kExample)), first_tensor(before.forward(kExample))), 1e-5);
    int64_t weights = 0;
    for (const auto& tensor : named_tensors(after)) weights += tensor.tensor.numel();
    EXPECT_EQ(weights, 16 * 8 + 16 + 12);  // a zero bias for the key, nothing is kept twice
    const TemporaryFolder folder;
    after.save(folder / "merged.pt");
    auto stock = torch::jit::load((folder / "merged.pt").string());
    EXPECT_TRUE(at::equal(stock.forward(kExample).toTensor(), first_tensor(after.forward(kExample))));
}

TEST(MergeLinear, LeavesLayersOfOtherInputsAndInputsThatChangeInPlace) {
    auto chain = projections(
        "    q = torch.linear(x, self.q.weight, self.q.bias)\n"
        "    v = torch.linear(x * 2, self.v.weight, self.v.bias)\n"
        "    return torch.linear(v, self.o.weight), q\n");
    EXPECT_EQ(merge_linear(chain, kExample), 0);
    auto changed = projections(
        "    y = x + 1\n"
        "    q = torch.linear(y, self.q.weight, self.q.bias)\n"
        "    y.mul_(2.0)\n"
        "    k = torch.linear(y, self.k.weight)\n"
        "    return q + k\n");
    EXPECT_EQ(merge_linear(changed, kExample), 0);
    auto through_a_view = projections(
        "    y = x + 1\n"
        "    q = torch.linear(y, self.q.weight, self.q.bias)\n"
        "    y.view([-1]).mul_(2.0)\n"
        "    k = torch.linear(y, self.k.weight)\n"
        "    return q + k\n");
    EXPECT_EQ(merge_linear(through_a_view, kExample), 0);
    auto tied = projections(
        "    q = torch.linear(x, self.q.weight, self.q.bias)\n"
        "    k = torch.linear(x, self.q.weight)\n"
        "    return q + k\n");
    EXPECT_EQ(merge_linear(tied, kExample), 0);
}

TEST(MergeLinear, IsAFormOfDeployAndWhatFollowsSeesOneLayer) {
    const auto before = projections(kBody);
    Context context;
    context.example = kExample;
    DeployOptions options;
    options.form = "merged";
    const auto after = deploy(options)->apply(before, context);
    EXPECT_EQ(context.facts.at("form"), "merged");
    EXPECT_EQ(cost(after, kExample).macs, cost(before, kExample).macs);
}

}  // namespace
}  // namespace coppice::testing
