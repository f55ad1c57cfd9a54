// quantize.auto with a clock that the test sets.
#include <coppice/quantize.h>

#include <limits>

#include "layers/layers.h"
#include "support/support.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

bool holds(const Model& model, const std::string& op) {
    for (const auto* node : all_nodes(*model.graph()))
        if (std::string(node->kind().toQualString()) == op) return true;
    return false;
}

/// The sum of what its operators cost: the given price, or 1.
Timer prices(std::map<std::string, double> table) {
    return [table](const Model& model, const Inputs&) {
        double sum = 0;
        for (const auto* node : all_nodes(*model.graph())) {
            const auto found = table.find(node->kind().toQualString());
            if (found != table.end()) sum += found->second;
        }
        return sum;
    };
}

Model two_layers() {
    return build_model({{"a.weight", sine({64, 32}, 0.2)}, {"b.weight", sine({16, 64}, 0.1)}},
                       "def forward(self, x):\n"
                       "    return torch.linear(torch.sigmoid(torch.linear(x, self.a.weight)), self.b.weight)\n");
}

Context context_with_data() {
    Context context;
    context.example = {sine({3, 32})};
    context.data.calibration = tensor_dataset({sine({32, 32}, 1.5)}, at::zeros({32}, at::kLong), "sine");
    return context;
}

TEST(Auto, TakesTheFormThatTheTimerSaysIsFastest) {
    auto context = context_with_data();
    AutoOptions options;
    options.forms = {"dynamic", "int8"};
    options.timer = prices({{"aten::linear", 10}, {"quantized::linear_dynamic", 4}, {"aten::_weight_int8pack_mm", 6}});
    const auto fast = auto_precision(options)->apply(two_layers(), context);
    EXPECT_TRUE(holds(fast, "quantized::linear_dynamic"));
    EXPECT_FALSE(holds(fast, "aten::linear"));
    options.timer = prices({{"aten::linear", 10}, {"quantized::linear_dynamic", 8}, {"aten::_weight_int8pack_mm", 6}});
    const auto packed = auto_precision(options)->apply(two_layers(), context);
    EXPECT_TRUE(holds(packed, "aten::_weight_int8pack_mm"));
    EXPECT_EQ(context.facts["chosen"], "layers");
}

TEST(Auto, WhatIsNotFasterStaysFloatAndSaysSo) {
    auto context = context_with_data();
    AutoOptions options;
    options.forms = {"dynamic"};
    options.timer = prices({{"aten::linear", 10}, {"quantized::linear_dynamic", 9.8}});  // less than least_gain
    const auto same = auto_precision(options)->apply(two_layers(), context);
    EXPECT_TRUE(holds(same, "aten::linear"));
    EXPECT_FALSE(holds(same, "quantized::linear_dynamic"));
    EXPECT_EQ(context.facts["chosen"], "float");
    for (const auto& change : context.changes) EXPECT_THAT(change.reason, ::testing::HasSubstr("0.98 of float's time"));
}

TEST(Auto, DoesNotTakeAFormWithTooMuchNoise) {
    auto context = context_with_data();
    AutoOptions options;
    options.forms = {"int4"};
    options.min_sqnr_db = 60;
    options.timer = prices({{"aten::linear", 10}});
    const auto same = auto_precision(options)->apply(two_layers(), context);
    EXPECT_FALSE(holds(same, "quantized::embedding_bag_4bit_unpack"));
    for (const auto& change : context.changes) EXPECT_THAT(change.reason, ::testing::HasSubstr("SQNR"));
}

TEST(Auto, TakesStaticInt8WhereTheWholeModelIsFasterWithIt) {
    Context context;
    context.example = {sine({2, 3, 8, 8})};
    context.data.calibration = tensor_dataset({sine({32, 3, 8, 8}, 1.5)}, at::zeros({32}, at::kLong), "sine images");
    AutoOptions options;
    options.timer = prices({{"aten::conv2d", 10},
                            {"aten::linear", 10},
                            {"quantized::linear_dynamic", 9},
                            {"quantized::conv2d", 2},
                            {"quantized::conv2d_relu", 2},
                            {"onednn::qconv2d_pointwise", 3}});
    const auto int8 = auto_precision(options)->apply(residual_model(), context);
    EXPECT_TRUE(holds(int8, "quantized::conv2d_relu"));
    EXPECT_EQ(context.facts["chosen"], "static");
    std::map<std::string, int> rows;
    for (const auto& row : context.facts["layers"]) ++rows[row.at("layer").get<std::string>()];
    EXPECT_EQ(rows.size(), 5u);
    for (const auto& [layer, count] : rows) EXPECT_EQ(count, 1) << layer;
}

TEST(Auto, ReturnsLayersOfStaticInt8ToFloatUntilTheMetricHolds) {
    Context context;
    context.example = {sine({2, 3, 8, 8})};
    context.data.calibration = tensor_dataset({sine({32, 3, 8, 8}, 1.5)}, at::zeros({32}, at::kLong), "sine images");
    const auto int8_layers = [](const Model& model) {
        int count = 0;
        for (const auto* node : all_nodes(*model.graph())) {
            const std::string op = node->kind().toQualString();
            count += op.rfind("quantized::conv", 0) == 0 || op.rfind("quantized::linear", 0) == 0;
        }
        return count;
    };
    context.evaluate = [&](const Model& model) { return 90.0 - int8_layers(model); };
    AutoOptions options;
    options.forms = {"static"};
    options.fallback.max_drop = 2.5;
    options.timer = prices({{"aten::conv2d", 10}, {"aten::linear", 10}});
    const auto some = auto_precision(options)->apply(residual_model(), context);
    EXPECT_EQ(context.facts["chosen"], "static");
    EXPECT_EQ(int8_layers(some), 2);  // of five
    EXPECT_TRUE(context.facts["fallback"]["holds"].get<bool>());
    EXPECT_EQ(context.facts["fallback"]["float_layers"], 3);
    options.fallback.max_drop = 0.5;  // no layer may stay
    const auto none = auto_precision(options)->apply(residual_model(), context);
    EXPECT_EQ(int8_layers(none), 0);
    EXPECT_EQ(context.facts["chosen"], "float");
    EXPECT_THAT(context.facts["why_not_static"].get<std::string>(), ::testing::HasSubstr("max_drop"));
}

int count(const Model& model, const std::string& op) {
    int found = 0;
    for (const auto* node : all_nodes(*model.graph())) found += node->kind().toQualString() == op;
    return found;
}

TEST(Auto, ReturnsNothingThatMissesMaxDrop) {
    auto context = context_with_data();
    AutoOptions options;
    options.forms = {"dynamic"};
    options.fallback.max_drop = 1;
    options.timer = prices({{"aten::linear", 10},
                            {"quantized::linear_dynamic", 1},
                            {"quantized::linear", 4},
                            {"quantized::linear_with_input_q_dq_qweight_dq_output_fp32", 4},
                            {"onednn::qlinear_pointwise", 4}});
    const auto dynamic_layers = [](const Model& model) { return count(model, "quantized::linear_dynamic"); };
    // No layer may be dynamic, not even the last one.
    context.evaluate = [&](const Model& model) { return 90.0 - 5 * dynamic_layers(model); };
    const auto none = auto_precision(options)->apply(two_layers(), context);
    EXPECT_EQ(count(none, "aten::linear"), 2);
    EXPECT_EQ(context.facts["chosen"], "float");
    EXPECT_THAT(context.facts["why_not_layers"].get<std::string>(), ::testing::HasSubstr("max_drop"));
    // One may.
    context.facts = Json::object();
    context.evaluate = [&](const Model& model) { return 90.0 - (dynamic_layers(model) > 1 ? 5 : 0); };
    const auto one = auto_precision(options)->apply(two_layers(), context);
    EXPECT_EQ(dynamic_layers(one), 1);
    EXPECT_EQ(context.facts["chosen"], "layers");
    EXPECT_TRUE(context.facts["fallback"]["holds"].get<bool>());
    // What is not as fast, but holds, is taken.
    options.forms = {"dynamic", "static"};
    context.facts = Json::object();
    context.evaluate = [&](const Model& model) { return dynamic_layers(model) ? 50.0 : 90.0; };
    const auto other = auto_precision(options)->apply(two_layers(), context);
    EXPECT_EQ(dynamic_layers(other), 0);
    EXPECT_EQ(count(other, "aten::linear"), 0);
    EXPECT_THAT(context.facts["chosen"].get<std::string>(), ::testing::StartsWith("static"));
    EXPECT_TRUE(context.facts["fallback"]["holds"].get<bool>());
    // Nothing to judge by.
    context.evaluate = nullptr;
    EXPECT_ERROR(auto_precision(options)->apply(two_layers(), context), InvalidArgument, "labelled validation data");
}

TEST(Auto, TheModelStaysAsItIsWhereNothingIsFaster) {
    torch::NoGradGuard no_grad;
    const auto model = build_model(
        {{"f.weight", sine({8, 8}, 0.3)},
         {"t.weight", sine({8, 8, 2}, 0.3)},
         {"b.weight", 1 + sine({8}, 0.5)},
         {"b.bias", sine({8})},
         {"b.running_mean", sine({8}, 0.1)},
         {"b.running_var", 1 + sine({8}, 0.3)}},
        "def forward(self, x):\n"
        "    x = torch.conv_transpose1d(torch.linear(x, self.f.weight), self.t.weight, None, [2])\n"
        "    return torch.batch_norm(x, self.b.weight, self.b.bias, self.b.running_mean, self.b.running_var, "
        "self.training, 0.1, 1e-5, True)\n");
    const auto x = sine({2, 8, 8});
    AutoOptions options;
    options.forms = {"dynamic"};
    for (const double price : {20.0, 1.0}) {
        Context context;
        context.example = {x};
        options.timer = prices({{"aten::linear", 10}, {"quantized::linear_dynamic", price}});
        const auto result = auto_precision(options)->apply(model, context);
        const bool same = price > 10;
        EXPECT_EQ(context.facts["chosen"], same ? "float" : "layers");
        EXPECT_EQ(count(result, "aten::conv_transpose1d"), 1);  // stays float, and what it is
        EXPECT_EQ(count(result, "aten::batch_norm"), same ? 1 : 0);
        const auto folded = std::count_if(context.changes.begin(), context.changes.end(),
                                          [](const LayerChange& change) { return change.action == "folded"; });
        EXPECT_EQ(folded, same ? 0 : 1);
        if (same) EXPECT_TRUE(at::equal(result.forward({x}).toTensor(), model.forward({x}).toTensor()));
        EXPECT_NE(result.graph(), model.graph());  // a copy all the same
    }
}

TEST(Auto, NoiseIsMeasuredOnAllBatches) {
    auto data = sine({32, 32});
    data.mul_(at::arange(1, 33).reshape({32, 1}));  // every row is larger than the one before
    Context context;
    context.example = {sine({3, 32})};
    context.data.calibration = tensor_dataset({data}, at::zeros({32}, at::kLong), "sine");
    AutoOptions options;
    options.forms = {"dynamic"};
    options.batches = 8;
    options.batch_size = 4;
    options.timer = prices({{"aten::linear", 10}, {"quantized::linear_dynamic", 1}});
    auto_precision(options)->apply(two_layers(), context);
    const auto& row = context.facts["layers"].at(0);
    EXPECT_EQ(row.at("layer"), "a");
    EXPECT_FLOAT_EQ(row.at("input_range")[0].get<float>(), data.min().item<float>());
    EXPECT_FLOAT_EQ(row.at("input_range")[1].get<float>(), data.max().item<float>());
}

TEST(Auto, TakesFusedLinearLayersWhereTheWholeModelIsFasterWithThem) {
    if (!exact_int8_products()) GTEST_SKIP() << "fused linear layers need VNNI";
    auto context = context_with_data();
    const auto model = build_model({{"a.weight", sine({64, 32}, 0.2)}, {"b.weight", sine({16, 64}, 0.1)}},
                                   "def forward(self, x):\n"
                                   "    y = torch.gelu(torch.linear(x, self.a.weight))\n"
                                   "    return torch.softmax(torch.linear(y, self.b.weight), -1)\n");
    AutoOptions options;
    options.forms = {"static"};
    for (const double price : {2.0, 6.0}) {
        options.timer = prices({{"aten::linear", 10},
                                {"onednn::qlinear_pointwise", price},
                                {"quantized::linear", 4},
                                {"quantized::linear_with_input_q_dq_qweight_dq_output_fp32", 4}});
        const auto int8 = auto_precision(options)->apply(model, context);
        EXPECT_EQ(holds(int8, "onednn::qlinear_pointwise"), price < 4);
        EXPECT_EQ(context.facts["chosen"], price < 4 ? "static, linear fused" : "static");
    }
}

/// softmax(scale q k^T + mask) v of one head, number by number.
at::Tensor plain_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& mask,
                           double scale) {
    auto result = at::zeros({q.size(0), v.size(1)}, at::kDouble);
    const auto a = q.accessor<float, 2>(), b = k.accessor<float, 2>(), c = v.accessor<float, 2>();
    for (int64_t i = 0; i < q.size(0); ++i) {
        std::vector<double> shares;
        double sum = 0;
        for (int64_t j = 0; j < k.size(0); ++j) {
            double dot = 0;
            for (int64_t d = 0; d < q.size(1); ++d) dot += double(a[i][d]) * double(b[j][d]);
            shares.push_back(std::exp(scale * dot + mask[i][j].item<double>()));
            sum += shares.back();
        }
        for (int64_t j = 0; j < k.size(0); ++j)
            for (int64_t d = 0; d < v.size(1); ++d)
                result[i][d] += shares[static_cast<size_t>(j)] / sum * double(c[j][d]);
    }
    return result;
}

TEST(Auto, TakesAttentionInBfloat16WhereItIsFaster) {
    AutoOptions options;
    options.forms = {"bf16"};
    options.timer = prices({{"aten::scaled_dot_product_attention", 10}, {"aten::softmax", 3}});
    const auto q = sine({1, 2, 6, 8}, 0.9), k = sine({1, 2, 5, 8}, 1.1), v = sine({1, 2, 5, 4}, 0.7);
    const auto mask = sine({1, 1, 6, 5}, 2.0);
    for (const bool given : {false, true}) {
        const auto model = build_model({}, std::string("def forward(self, q, k, v, mask):\n") +
                                               "    return torch.scaled_dot_product_attention(q, k, v, " +
                                               (given ? "mask, 0.0, False, scale=0.25)\n" : "None)\n"));
        Context context;
        context.example = {q, k, v, mask};
        const auto fast = auto_precision(options)->apply(model, context);
        const auto reason = context.changes.back().reason;
        if (reason.find("no instructions") != std::string::npos) GTEST_SKIP() << reason;
        EXPECT_FALSE(holds(fast, "aten::scaled_dot_product_attention"));
        const auto result = fast.forward({q, k, v, mask}).toTensor();
        EXPECT_EQ(result.scalar_type(), at::kFloat);
        for (int64_t head = 0; head < 2; ++head) {
            const auto expected =
                plain_attention(q[0][head], k[0][head], v[0][head], given ? mask[0][0] : at::zeros({6, 5}),
                                given ? 0.25 : 1 / std::sqrt(8.0));
            // Eight bits: scores up to 3 are off by 2^-8 of that, which moves a share by as much.
            EXPECT_LE(max_difference(result[0][head].to(at::kDouble), expected), 0.02);
        }
        // Another length than the example's.
        EXPECT_EQ(fast.forward({q.repeat({3, 1, 1, 1}), k.repeat({3, 1, 1, 1}), v.repeat({3, 1, 1, 1}), mask})
                      .toTensor()
                      .size(0),
                  3);
    }
    // Rows that hide everything: zero where they do it by -inf, the mean of the values by float32's least number.
    const auto hiding = build_model({},
                                    "def forward(self, q, k, v, mask):\n"
                                    "    return torch.scaled_dot_product_attention(q, k, v, mask)\n");
    for (const double hidden : {-std::numeric_limits<double>::infinity(), -3.4028234663852886e38, -1e9}) {
        auto rows = at::zeros({1, 1, 6, 5});
        rows.select(2, 0).fill_(hidden);
        rows.select(2, 1).slice(2, 2).fill_(hidden);
        Context context;
        context.example = {q, k, v, rows};
        const auto fast = auto_precision(options)->apply(hiding, context);
        EXPECT_FALSE(holds(fast, "aten::scaled_dot_product_attention")) << hidden;
        EXPECT_LE(max_difference(fast.forward(context.example).toTensor(), hiding.forward(context.example).toTensor()),
                  0.02)
            << hidden;
    }
    const auto causal = build_model({},
                                    "def forward(self, q):\n"
                                    "    return torch.scaled_dot_product_attention(q, q, q, None, 0.0, True)\n");
    Context context;
    context.example = {q};
    EXPECT_TRUE(holds(auto_precision(options)->apply(causal, context), "aten::scaled_dot_product_attention"));
    EXPECT_THAT(context.changes.back().reason, ::testing::HasSubstr("masks what comes later by itself"));
}

TEST(Auto, IgnoredAttentionAndLayersStayAsTheyAre) {
    auto context = context_with_data();
    context.example = {sine({2, 6, 32})};
    context.data.calibration = tensor_dataset({sine({16, 6, 32}, 1.5)}, at::zeros({16}, at::kLong), "sine");
    const auto model = build_model({{"a.weight", sine({32, 32}, 0.2)}, {"b.weight", sine({16, 32}, 0.1)}},
                                   "def forward(self, x):\n"
                                   "    y = torch.linear(x, self.a.weight).unsqueeze(1)\n"
                                   "    y = torch.scaled_dot_product_attention(y, y, y).squeeze(1)\n"
                                   "    return torch.linear(torch.sigmoid(y), self.b.weight)\n");
    AutoOptions options;
    options.ignore = {"scaled_dot_product_attention.*", "a"};
    options.timer = prices({{"aten::linear", 10}, {"aten::scaled_dot_product_attention", 10}});
    const auto int8 = auto_precision(options)->apply(model, context);
    EXPECT_TRUE(holds(int8, "aten::scaled_dot_product_attention"));
    int kept = 0;
    for (const auto& row : context.facts["layers"]) {
        const bool ignored = row.at("layer") != "b";
        EXPECT_EQ(row.at("precision") == "float32", ignored) << row;
        kept += ignored;
    }
    EXPECT_EQ(kept, 2);
    options.ignore = {"c"};
    EXPECT_ERROR(auto_precision(options)->apply(model, context), InvalidArgument, "matches no layer");
    // An embedding is no layer that static int8 knows either.
    const auto words = build_model({{"e.weight", sine({40, 32}, 0.3)}, {"b.weight", sine({16, 32}, 0.1)}},
                                   "def forward(self, i):\n"
                                   "    return torch.linear(torch.embedding(self.e.weight, i), self.b.weight)\n");
    context.example = {at::arange(6).reshape({2, 3})};
    context.data.calibration =
        tensor_dataset({at::arange(48).reshape({16, 3}).remainder(40)}, at::zeros({16}, at::kLong), "words");
    options.ignore = {"e"};
    EXPECT_TRUE(holds(auto_precision(options)->apply(words, context), "aten::embedding"));
}

TEST(Auto, MeasuresByTheClockWithoutATimer) {
    torch::NoGradGuard no_grad;
    // So large that int8 takes a third of the time where the CPU has the instructions for it.
    const auto model = build_model({{"a.weight", sine({1024, 1024}, 0.03)}, {"b.weight", sine({1024, 1024}, 0.02)}},
                                   "def forward(self, x):\n"
                                   "    return torch.linear(torch.sigmoid(torch.linear(x, self.a.weight)), "
                                   "self.b.weight)\n");
    Context context;
    context.example = {sine({64, 1024})};
    context.data.calibration = tensor_dataset({sine({64, 1024}, 1.5)}, at::zeros({64}, at::kLong), "sine");
    Options settings("quantize.auto");
    const auto result = find_entry(stages(), "stage", "quantize.auto", "test").make(settings)->apply(model, context);
    const auto x = context.example[0].toTensor();
    const auto exact = model.forward({x}).toTensor(), rounded = result.forward({x}).toTensor();
    EXPECT_LT((exact - rounded).pow(2).sum().item<double>(), 0.02 * exact.pow(2).sum().item<double>());  // 17 dB
    const auto& seconds = context.facts["model_seconds"];
    const auto chosen = context.facts["chosen"].get<std::string>();
    for (const auto& [name, value] : seconds.items()) {
        EXPECT_GT(value.get<double>(), 0) << name;
        EXPECT_LE(seconds.at(chosen).get<double>(), value.get<double>()) << name;
    }
    if (exact_int8_products()) {
        EXPECT_NE(chosen, "float") << context.facts.dump(1);
        EXPECT_EQ(count(result, "aten::linear"), 0);
        // By the clock of the test.
        const double before = fastest_seconds(model, {x}), after = fastest_seconds(result, {x});
        EXPECT_LT(after, 0.8 * before);
    }
    EXPECT_ERROR(
        [] {
            AutoOptions options;
            options.forms = {"int5"};
            auto_precision(options);
        }(),
        InvalidArgument, "int4");
}

}  // namespace
}  // namespace coppice::quantize
