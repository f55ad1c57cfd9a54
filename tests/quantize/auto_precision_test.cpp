// quantize.auto with a clock that the test sets.
#include <coppice/quantize.h>

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
                            {"quantized::conv2d_relu", 2}});
    const auto int8 = auto_precision(options)->apply(residual_model(), context);
    EXPECT_TRUE(holds(int8, "quantized::conv2d_relu"));
    EXPECT_EQ(context.facts["chosen"], "static");
    std::map<std::string, int> rows;
    for (const auto& row : context.facts["layers"]) ++rows[row.at("layer").get<std::string>()];
    EXPECT_EQ(rows.size(), 5u);
    for (const auto& [layer, count] : rows) EXPECT_EQ(count, 1) << layer;
}

TEST(Auto, MeasuresByTheClockWithoutATimer) {
    torch::NoGradGuard no_grad;
    auto context = context_with_data();
    Options settings("quantize.auto");
    const auto result =
        find_entry(stages(), "stage", "quantize.auto", "test").make(settings)->apply(two_layers(), context);
    const auto x = context.example[0].toTensor();
    const auto exact = two_layers().forward({x}).toTensor(), rounded = result.forward({x}).toTensor();
    EXPECT_LT((exact - rounded).pow(2).sum().item<double>(), 0.02 * exact.pow(2).sum().item<double>());  // 17 dB
    EXPECT_GT(context.facts["model_seconds"]["float"].get<double>(), 0);
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
