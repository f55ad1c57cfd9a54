#include <coppice/deploy.h>
#include <coppice/graph.h>

#include <torch/csrc/jit/testing/file_check.h>

#include <cmath>
#include <limits>

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
}

/// softmax(scale q k^T + mask) v of three or four dimensions by plain loops in float64; a mask of the scores' size.
at::Tensor plain(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, double scale,
                 const at::Tensor& mask) {
    const auto flat = [](const at::Tensor& t) { return t.reshape({-1, t.size(-2), t.size(-1)}).to(at::kDouble); };
    const auto q = flat(query), k = flat(key), v = flat(value), m = flat(mask);
    auto result = at::zeros({q.size(0), q.size(1), v.size(2)}, at::kDouble);
    const auto a = q.accessor<double, 3>(), b = k.accessor<double, 3>(), c = v.accessor<double, 3>(),
               d = m.accessor<double, 3>();
    auto y = result.accessor<double, 3>();
    for (int64_t n = 0; n < q.size(0); ++n)
        for (int64_t i = 0; i < q.size(1); ++i) {
            std::vector<double> score;
            double highest = -std::numeric_limits<double>::infinity(), sum = 0;
            for (int64_t j = 0; j < k.size(1); ++j) {
                double dot = 0;
                for (int64_t e = 0; e < q.size(2); ++e) dot += a[n][i][e] * b[n][j][e];
                score.push_back(scale * dot + d[n][i][j]);
                highest = std::max(highest, score.back());
            }
            for (auto& s : score) sum += s = std::exp(s - highest);
            for (int64_t j = 0; j < k.size(1); ++j)
                for (int64_t e = 0; e < v.size(2); ++e) y[n][i][e] += score[static_cast<size_t>(j)] / sum * c[n][j][e];
        }
    auto shape = query.sizes().vec();
    shape.back() = value.size(-1);
    return result.reshape(shape).to(at::kFloat);
}

void expect_fused(const Model& given, const Inputs& example, const at::Tensor& expected, const std::string& what) {
    torch::NoGradGuard no_grad;
    auto model = given.clone();
    SCOPED_TRACE(what);
    const auto before = model.forward(example).toTensor();
    EXPECT_LE(max_difference(before, expected), 1e-5);  // the test's own reference
    EXPECT_EQ(fuse_attention(model, example), 1);
    EXPECT_NO_THROW(model.graph()->lint());
    torch::jit::testing::FileCheck()
        .check_not("aten::softmax")
        ->check("aten::scaled_dot_product_attention")
        ->check_not("aten::softmax")
        ->run(*model.graph());
    const auto after = model.forward(example).toTensor();
    EXPECT_LE(max_difference(after, expected), 1e-5);  // float32 sums of seven terms below 1
    EXPECT_EQ(after.strides(), before.strides());
    const TemporaryFolder folder;
    model.save(folder / "model.pt");
    auto stock = torch::jit::load((folder / "model.pt").string());
    EXPECT_TRUE(at::equal(first_tensor(stock.forward(example)), after));
}

TEST(FuseAttention, TakesThreeDimensionsAndBatchedProducts) {
    const Inputs three = {sine({6, 5, 8}, 1.3), sine({6, 7, 8}, 0.9), sine({6, 7, 4}, 0.7), sine({1, 5, 7}, 2.0)};
    const auto q = three[0].toTensor(), k = three[1].toTensor(), v = three[2].toTensor();
    const auto mask = three[3].toTensor().expand({6, 5, 7}), none = at::zeros({6, 5, 7});
    const std::string head = "def forward(self, q, k, v, mask):\n",
                      tail = "    return torch.bmm(torch.softmax(s, -1), v)\n";
    struct Case {
        std::string scores;
        double scale;
        at::Tensor mask;
    };
    for (const auto& one :
         {Case{"torch.matmul(q, k.transpose(1, 2))", 1, none}, Case{"torch.bmm(q, k.transpose(1, 2)) * 0.3", 0.3, none},
          Case{"torch.baddbmm(mask, q, k.transpose(1, 2))", 1, mask},
          Case{"torch.baddbmm(mask, q, k.transpose(1, 2), beta=1, alpha=0.5)", 0.5, mask},
          Case{"torch.bmm(q, k.transpose(1, 2)) / 2 + mask", 0.5, mask},
          Case{"torch.bmm(q, k.transpose(1, 2)) / 2 + mask[0]", 0.5, mask}})
        expect_fused(build_model({}, head + "    s = " + one.scores + "\n" + tail), three,
                     plain(q, k, v, one.scale, one.mask), one.scores);
    for (const std::string scores :
         {"torch.baddbmm(mask, q, k.transpose(1, 2), beta=2.0)", "torch.baddbmm(mask, q, k.transpose(1, 2)) * 0.5"}) {
        auto other = build_model({}, head + "    s = " + scores + "\n" + tail);
        EXPECT_EQ(fuse_attention(other, three), 0) << scores;
    }
}

TEST(FuseAttention, ScalesByNumbersThatAreComputed) {
    const auto q = kExample[0].toTensor(), k = kExample[1].toTensor(), v = kExample[2].toTensor();
    const auto none = at::zeros({2, 3, 5, 7});
    for (const auto& [factor, scale] :
         std::vector<std::pair<std::string, double>>{{"/ (q.size(-1) ** 0.5)", 1 / std::sqrt(8.0)},
                                                     {"* (q.size(-1) ** -0.5)", 1 / std::sqrt(8.0)},
                                                     {"/ q.size(-1)", 0.125}})
        expect_fused(attention("torch.matmul(q, k.transpose(-2, -1)) " + factor), kExample, plain(q, k, v, scale, none),
                     factor);
}

TEST(FuseAttention, TakesMasksThatFillAndRowsThatTheyHideWholly) {
    const auto q = kExample[0].toTensor(), k = kExample[1].toTensor(), v = kExample[2].toTensor();
    auto hidden = at::zeros({2, 3, 5, 7}, at::kBool);
    hidden.slice(3, 4).slice(2, 0, 2).fill_(true);
    const auto bias = sine({2, 1, 1, 7}, 2.0).expand({2, 3, 5, 7});
    auto inputs = kExample;
    inputs.emplace_back(hidden);
    const std::string head = "def forward(self, q, k, v, mask, hide):\n    s = torch.matmul(q, k.transpose(-2, -1))\n";
    struct Case {
        std::string scores;
        bool biased;
    };
    for (const auto& one : {Case{"s.masked_fill(hide, -1e9)", false}, Case{"s.masked_fill(hide, float('-inf'))", false},
                            Case{"(s + mask).masked_fill(hide, -65504.0)", true},
                            Case{"torch.where(torch.logical_not(hide), s, -3.4028234663852886e+38)", false},
                            Case{"s.masked_fill(hide[:1], -1e9).masked_fill_(hide, -1e9)", false}}) {
        const auto rest = "    return torch.matmul(torch.softmax(" + one.scores + ", -1), v)\n";
        const auto model = build_model({}, head + rest);
        const auto mask = (one.biased ? bias : at::zeros_like(bias)).masked_fill(hidden, -1e9);
        expect_fused(model, inputs, plain(q, k, v, 1, mask), one.scores);
        // A row of which nothing is seen: all alike where a number hides, as written out; zero in place of not-a-number
        // where infinity does.
        auto all = inputs;
        all[4] = hidden.clone();
        all[4].toTensor().select(2, 1).fill_(true);
        auto fused = model.clone();
        ASSERT_EQ(fuse_attention(fused, inputs), 1);
        torch::NoGradGuard no_grad;
        const auto before = model.forward(all).toTensor(), after = fused.forward(all).toTensor();
        const bool infinite = one.scores.find("inf") != std::string::npos;
        EXPECT_EQ(before.isnan().any().item<bool>(), infinite);
        EXPECT_LE(max_difference(after, before.nan_to_num(0)), 1e-5) << one.scores;
        if (!infinite)
            EXPECT_LE(max_difference(after.select(2, 1), v.mean(2).expand_as(after.select(2, 1))), 1e-5) << one.scores;
    }
    // What hides little is part of the function; both kinds of hiding weigh apart; a mask that is larger than the
    // scores enlarges them.
    for (const std::string scores :
         {"s.masked_fill(hide, -50.0)", "s.masked_fill(hide, -1e9).masked_fill(hide[:1], float('-inf'))",
          "s[:1].masked_fill(hide, -1e9)"}) {
        auto other = build_model({}, head + "    return torch.matmul(torch.softmax(" + scores + ", -1), v)\n");
        EXPECT_EQ(fuse_attention(other, inputs), 0) << scores;
    }
}

TEST(FuseAttention, LeavesTheStridesOfWhatFollowsAsTheyWere) {
    const auto q = kExample[0].toTensor(), k = kExample[1].toTensor(), v = kExample[2].toTensor();
    const auto expected = plain(q, k, v, 1, at::zeros({2, 3, 5, 7}));
    const std::string scores = "torch.matmul(q, k.transpose(-2, -1))";
    expect_fused(attention(scores, "    return y * 1.0\n"), kExample, expected, "elementwise");
    expect_fused(attention(scores, "    return y.view(y.size(0), -1)\n"), kExample, expected.reshape({2, -1}), "view");
    expect_fused(attention(scores, "    return y.transpose(1, 2).contiguous().view(2, 5, -1)\n"), kExample,
                 expected.transpose(1, 2).reshape({2, 5, -1}), "heads joined");
    auto joined = attention(scores, "    return y.transpose(1, 2).reshape(2, 5, -1)\n");
    fuse_attention(joined, kExample);
    torch::jit::testing::FileCheck().check_not("aten::contiguous")->run(*joined.graph());
}

TEST(FuseAttention, OneBehindAnotherAreBothReplaced) {
    torch::NoGradGuard no_grad;
    const auto model = build_model({},
                                   "def forward(self, q, k, v):\n"
                                   "    for i in range(2):\n"
                                   "        q = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v)\n"
                                   "    q = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v)\n"
                                   "    return torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v)\n");
    const Inputs inputs = {sine({2, 5, 8}, 1.3), sine({2, 7, 8}, 0.9), sine({2, 7, 8}, 0.7)};
    auto after = model.clone();
    EXPECT_EQ(fuse_attention(after, inputs), 3);  // one of them in the loop
    EXPECT_LE(max_difference(after.forward(inputs).toTensor(), model.forward(inputs).toTensor()), 1e-5);
    auto scores = build_model({},
                              "def forward(self, q, k, v):\n"
                              "    s = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v)\n"
                              "    return torch.bmm(torch.softmax(s, -1), q.transpose(1, 2))\n");
    const Inputs same = {sine({2, 8, 8}, 1.3), sine({2, 7, 8}, 0.9), sine({2, 7, 8}, 0.7)};
    const auto expected = scores.forward(same).toTensor();
    EXPECT_EQ(fuse_attention(scores, same), 1);  // its result is the other's scores
    EXPECT_LE(max_difference(scores.forward(same).toTensor(), expected), 1e-5);
}

TEST(FuseAttention, WeightsInATupleThatNobodyReadsDoNotKeepItApart) {
    torch::NoGradGuard no_grad;
    const std::string body =
        "def forward(self, q, k, v, given: Tuple[Tensor, Tensor]):\n"
        "    if q.size(0) > 1:\n"
        "        p = torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1)\n"
        "        pair = (torch.bmm(p, v), p.mean(0))\n"
        "    else:\n"
        "        pair = given\n";
    const auto q = sine({2, 5, 8}, 1.3);
    const Inputs inputs = {q, sine({2, 7, 8}, 0.9), sine({2, 7, 8}, 0.7), c10::ivalue::Tuple::create({q, q})};
    for (const bool read : {false, true}) {
        auto model = build_model({}, body + (read ? "    return pair[0], pair[1]\n" : "    return pair[0]\n"));
        const auto before = all_tensors(model.forward(inputs));
        EXPECT_EQ(fuse_attention(model, inputs), read ? 0 : 1);
        const auto after = all_tensors(model.forward(inputs));
        ASSERT_EQ(after.size(), before.size());
        for (size_t i = 0; i < after.size(); ++i) EXPECT_LE(max_difference(after[i], before[i]), 1e-5);
    }
}

}  // namespace
}  // namespace coppice::testing
