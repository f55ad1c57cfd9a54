#include <coppice/deploy.h>
#include <coppice/graph.h>

#include <torch/csrc/jit/testing/file_check.h>

#include <cmath>

#include "support/support.h"

namespace coppice::testing {
namespace {

const Inputs kExample = {sine({2, 3, 5, 8}, 1.3), sine({2, 3, 7, 8}, 0.9), sine({2, 3, 7, 6}, 0.7),
                         sine({2, 1, 1, 7}, 2.0)};

Model attention(const std::string& scores, const std::string& rest = "") {
    return build_model({}, "def forward(self, q, k, v, mask):\n    s = " + scores +
                               "\n    p = torch.softmax(s, -1)\n    y = torch.matmul(p, v)\n" +
                               (rest.empty() ? "    return y\n" : rest));
}

/// softmax(scale q k^T + mask) v by plain loops in float64.
at::Tensor by_hand(const Inputs& inputs, double scale, bool masked) {
    const auto q = inputs[0].toTensor().to(at::kDouble), k = inputs[1].toTensor().to(at::kDouble),
               v = inputs[2].toTensor().to(at::kDouble), mask = inputs[3].toTensor().to(at::kDouble);
    auto result = at::zeros({2, 3, 5, 6}, at::kDouble);
    const auto a = q.accessor<double, 4>(), b = k.accessor<double, 4>(), c = v.accessor<double, 4>(),
               m = mask.accessor<double, 4>();
    auto y = result.accessor<double, 4>();
    for (int64_t n = 0; n < 2; ++n)
        for (int64_t h = 0; h < 3; ++h)
            for (int64_t i = 0; i < 5; ++i) {
                std::vector<double> weight(7);
                double sum = 0;
                for (int64_t j = 0; j < 7; ++j) {
                    double dot = 0;
                    for (int64_t e = 0; e < 8; ++e) dot += a[n][h][i][e] * b[n][h][j][e];
                    sum += weight[j] = std::exp(scale * dot + (masked ? m[n][0][0][j] : 0));
                }
                for (int64_t j = 0; j < 7; ++j)
                    for (int64_t e = 0; e < 6; ++e) y[n][h][i][e] += weight[j] / sum * c[n][h][j][e];
            }
    return result.to(at::kFloat);
}

TEST(FuseAttention, ReplacesTheChainInEveryWayOfWritingIt) {
    torch::NoGradGuard no_grad;
    struct Case {
        std::string scores;
        double scale;
        bool masked;
    };
    for (const auto& one : {Case{"torch.matmul(q, k.transpose(-2, -1))", 1, false},
                            Case{"torch.matmul(q, k.transpose(2, 3)) * 0.25", 0.25, false},
                            Case{"torch.matmul(q, k.permute(0, 1, 3, 2)) / 2.5", 0.4, false},
                            Case{"torch.matmul(q, k.transpose(-2, -1)) / 2.5 + mask", 0.4, true},
                            Case{"mask + torch.matmul(q, k.transpose(-2, -1))", 1, true},
                            Case{"torch.dropout(torch.matmul(q, k.transpose(-2, -1)), 0.5, False)", 1, false}}) {
        auto model = attention(one.scores);
        EXPECT_EQ(fuse_attention(model, kExample), 1) << one.scores;
        EXPECT_NO_THROW(model.graph()->lint());
        torch::jit::testing::FileCheck()
            .check_not("aten::softmax")
            ->check("aten::scaled_dot_product_attention")
            ->check_not("aten::matmul")
            ->run(*model.graph());
        // Float32 sums of seven terms below 1.
        EXPECT_LE(max_difference(first_tensor(model.forward(kExample)), by_hand(kExample, one.scale, one.masked)), 1e-5)
            << one.scores;
        const TemporaryFolder folder;
        model.save(folder / "model.pt");
        auto stock = torch::jit::load((folder / "model.pt").string());
        EXPECT_TRUE(at::equal(first_tensor(stock.forward(kExample)), first_tensor(model.forward(kExample))));
    }
}

TEST(FuseAttention, LeavesAloneWhatIsReadElsewhereOrIsNoAttention) {
    const std::string scores = "torch.matmul(q, k.transpose(-2, -1))";
    for (auto model : {attention(scores, "    return y, p\n"), attention(scores, "    return y, s\n"),
                       attention("torch.matmul(q, k.transpose(-2, -1)) + 2 * mask * q.sum()", "    return y, s\n")})
        EXPECT_EQ(fuse_attention(model, kExample), 0);
    auto other_dim = build_model({},
                                 "def forward(self, q, k, v, mask):\n"
                                 "    return torch.matmul(torch.softmax(torch.matmul(q, k.transpose(-2, -1)), 2), "
                                 "v)\n");
    EXPECT_EQ(fuse_attention(other_dim, kExample), 0);
    auto written = build_model({},
                               "def forward(self, q, k, v, mask):\n"
                               "    q = q * 1.0\n"
                               "    s = torch.matmul(q, k.transpose(-2, -1))\n"
                               "    q.zero_()\n"
                               "    return torch.matmul(torch.softmax(s, -1), v) + q.sum()\n");
    EXPECT_EQ(fuse_attention(written, kExample), 0);
    auto dropping = attention("torch.dropout(torch.matmul(q, k.transpose(-2, -1)), 0.5, True)");
    EXPECT_EQ(fuse_attention(dropping, kExample), 0);
    auto three = attention(scores);
    EXPECT_EQ(fuse_attention(three, {sine({3, 5, 8}), sine({3, 7, 8}), sine({3, 7, 6}), sine({1, 7})}), 0);
}

}  // namespace
}  // namespace coppice::testing
