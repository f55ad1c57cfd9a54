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

/// Two layers that read x, and two that read what the first of them gives.
Model chain() {
    return build_model({{"a.weight", sine({12, 8}, 0.4)},
                        {"b.weight", sine({12, 8}, 0.6)},
                        {"c.weight", sine({5, 12}, 0.3)},
                        {"c.bias", sine({5}, 0.3)},
                        {"d.weight", sine({7, 12}, 0.5)}},
                       "def forward(self, x):\n"
                       "    h = torch.linear(x, self.a.weight)\n"
                       "    g = torch.linear(x, self.b.weight).sum(-1, True)\n"
                       "    return torch.linear(h, self.c.weight, self.c.bias) * g, "
                       "torch.linear(h, self.d.weight) * g\n");
}

void expect_same_outputs(const Model& before, const Model& after, const Inputs& inputs) {
    const auto expected = all_tensors(before.forward(inputs)), actual = all_tensors(after.forward(inputs));
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
        // Float32 sums of at most twelve terms.
        EXPECT_LE(max_difference(actual[i], expected[i]), 1e-5 * expected[i].abs().max().item<double>()) << i;
        EXPECT_EQ(actual[i].strides(), expected[i].strides()) << i;
    }
}

TEST(MergeLinear, GroupsBehindAMergedOneReadWhatItsPartGives) {
    torch::NoGradGuard no_grad;
    const auto before = chain();
    auto after = before.clone();
    EXPECT_EQ(merge_linear(after, kExample), 4);
    torch::jit::testing::FileCheck().check_count("aten::linear", 2, true)->run(*after.graph());
    expect_same_outputs(before, after, kExample);
    expect_same_outputs(before, after, {sine({3, 8}, 0.8)});
    for (const char* form : {"merged", "auto"}) {
        Context context;
        context.example = kExample;
        DeployOptions options;
        options.form = form;
        options.seconds = 0.1;
        expect_same_outputs(before, deploy(options)->apply(before, context), kExample);
    }
}

TEST(MergeLinear, ViewsAndCopiesBehindItsPartsAreAsBefore) {
    torch::NoGradGuard no_grad;
    struct Case {
        std::string body;
        int copies;  // of parts that cannot be views
    };
    const std::string q = "    q = torch.linear(x, self.q.weight, self.q.bias)\n",
                      k = "    k = torch.linear(x, self.k.weight)\n";
    for (const auto& one :
         {Case{q + k + "    return q.view(q.size(0), -1) * k.view(k.size(0), -1)\n", 0},
          Case{q + k + "    z = torch.ones([q.size(0), q.size(1) * 6])\n    return q.view_as(z) * k.view_as(z)\n", 0},
          Case{q + k + "    return q.transpose(1, 2).transpose(1, 2).view(-1) * k.transpose(1, 2).flatten().sum()\n",
               0},
          Case{q + k + "    return q, k.sum()\n", 1}, Case{q + k + "    return (q.transpose(0, 1), [k[0], k[1]])\n", 2},
          Case{q + k + "    return {'q': q, 'k': k * 2}\n", 1},
          Case{q + k + "    q.relu_()\n    return q.exp() + k\n", 1},
          Case{q + k + "    y = q.view(-1)\n    y.mul_(2.0)\n    return q.exp() + k.exp()\n", 1},
          Case{q + k + "    return torch.view_as_complex(q.view(q.size(0), -1, 2)).abs().sum() * k\n", 1},
          Case{q + k + "    return q.as_strided([3], [1]) * k.sum()\n", 1},
          Case{q + k + "    return torch.add(q, k) * q.stride(1) * q.stride(0)\n", 1},
          Case{q + k +
                   "    y = q\n    if x.size(0) > 1:\n        y = q.view(-1)\n    else:\n        y = k.view(-1)\n"
                   "    return y.exp()\n",
               0}}) {
        SCOPED_TRACE(one.body);
        const auto before = projections(one.body);
        auto after = before.clone();
        EXPECT_EQ(merge_linear(after, kExample), 2);
        int copies = 0;
        for (const auto* node : all_nodes(*after.graph())) copies += node->kind() == torch::jit::aten::clone;
        EXPECT_EQ(copies, one.copies);
        expect_same_outputs(before, after, kExample);
        expect_same_outputs(before, after, {sine({2, 1, 8}, 0.8)});
        Context context;
        context.example = kExample;
        DeployOptions options;
        options.seconds = 0.05;
        expect_same_outputs(before, deploy(options)->apply(before, context), kExample);
    }
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
