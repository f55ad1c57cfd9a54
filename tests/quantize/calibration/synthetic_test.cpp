// Inputs made from batch norms: their statistics by plain sums, and the stages that take them for data.
#include <coppice/error.h>

#include <fstream>

#include "../layer_check.h"
#include "support/warnings.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

constexpr const char* kNorm =
    "self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, self.training, 0.1, 1e-5, True)\n";

std::vector<std::pair<std::string, at::Tensor>> norm_of(const at::Tensor& mean, const at::Tensor& variance) {
    return {{"bn.weight", at::ones_like(mean)},
            {"bn.bias", at::zeros_like(mean)},
            {"bn.running_mean", mean},
            {"bn.running_var", variance}};
}

/// Mean and variance of one channel by plain sums. values [N, C, H, W]
std::pair<double, double> moments_of(const at::Tensor& values, int64_t channel) {
    const auto row = values.select(1, channel).to(at::kDouble).contiguous();
    const auto* x = row.const_data_ptr<double>();
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < row.numel(); ++i) sum += x[i];
    const double mean = sum / static_cast<double>(row.numel());
    for (int64_t i = 0; i < row.numel(); ++i) squares += (x[i] - mean) * (x[i] - mean);
    return {mean, squares / static_cast<double>(row.numel())};
}

TEST(SyntheticInputs, HaveTheMomentsOfABatchNormThatReadsThemWhateverTheirSize) {
    // From a hundredth of the noise's deviation to a hundred times that.
    const auto mean = at::tensor({50.0f, -0.02f, 0.1f}), variance = at::tensor({1e4f, 1e-4f, 1.0f});
    const auto model = build_model(norm_of(mean, variance),
                                   std::string("def forward(self, x):\n    return torch.batch_norm(x, ") + kNorm);
    const auto made = synthetic_inputs(model, {sine({1, 3, 8, 8})}, {16, 200, 0.1});
    ASSERT_EQ(made.batches.size(), 1u);
    EXPECT_EQ(made.examples, 16);
    EXPECT_EQ(made.batch_norms, 1);
    const auto x = made.batches[0][0].toTensor();
    ASSERT_EQ(x.sizes(), (std::vector<int64_t>{16, 3, 8, 8}));
    for (int64_t c = 0; c < 3; ++c) {
        const auto [m, v] = moments_of(x, c);
        const double deviation = std::sqrt(variance[c].item<double>());
        EXPECT_NEAR(m, mean[c].item<double>(), 0.02 * deviation) << c;  // what 200 steps of Adam leave
        EXPECT_NEAR(std::sqrt(v), deviation, 0.02 * deviation) << c;
    }
}

TEST(SyntheticInputs, ReportTheDistanceThatPlainSumsGive) {
    // Of full rank: channels of a plain sine are combinations of two and cannot have five means.
    const auto weight =
        at::arange(135, at::kDouble).square().mul(0.37).sin().mul(0.4).to(at::kFloat).reshape({5, 3, 3, 3});
    const auto mean = 3 + sine({5}, 0.6), variance = 0.5 + sine({5}).square();
    auto tensors = norm_of(mean, variance);
    tensors.emplace_back("conv.weight", weight);
    const auto model = build_model(
        tensors,
        std::string("def forward(self, x):\n    return torch.batch_norm(torch.conv2d(x, self.conv.weight), ") + kNorm);
    const auto made = synthetic_inputs(model, {sine({1, 3, 6, 6})}, {8, 100, 0.1});
    const auto y = at::conv2d(made.batches[0][0].toTensor(), weight);
    double distance = 0;
    for (int64_t c = 0; c < 5; ++c) {
        const auto [m, v] = moments_of(y, c);
        const double target = variance[c].item<double>() + 1e-5;
        const double shift = m - mean[c].item<double>(), ratio = std::sqrt((v + 1e-5) / target) - 1;
        distance += (shift * shift / target + ratio * ratio) / 5;
    }
    EXPECT_NEAR(made.distance_after, distance, 1e-4 * distance + 1e-7);
    EXPECT_LT(made.distance_after, 0.1 * made.distance_before);
}

TEST(SyntheticInputs, FollowTheSeedAloneAndComeInBatches) {
    const auto model = residual_model();
    const SyntheticOptions options{40, 3, 0.1};
    const auto make = [&](uint64_t seed) { return synthetic_inputs(model, {sine({1, 3, 8, 8})}, options, seed); };
    const auto first = make(1), again = make(1), other = make(2);
    ASSERT_EQ(first.batches.size(), 2u);
    EXPECT_EQ(first.examples, 64);
    EXPECT_EQ(first.batch_norms, 4);
    for (size_t i = 0; i < 2; ++i) {
        EXPECT_TRUE(at::equal(first.batches[i][0].toTensor(), again.batches[i][0].toTensor()));
        EXPECT_FALSE(at::equal(first.batches[i][0].toTensor(), other.batches[i][0].toTensor()));
    }
    EXPECT_FALSE(at::equal(first.batches[0][0].toTensor(), first.batches[1][0].toTensor()));
}

TEST(SyntheticInputs, KeepTheBatchSizeOfAModelThatTakesNoOtherAndArgumentsThatAreNoRealNumbers) {
    const auto model =
        build_model(norm_of(sine({6}), 1 + sine({6}, 0.5)),
                    std::string("def forward(self, x, rows):\n    x = x.view([4, 6]).index_select(0, rows)\n"
                                "    return torch.batch_norm(x, ") +
                        kNorm);
    const auto rows = at::tensor({3, 2, 1, 0}, at::kLong);
    const auto made = synthetic_inputs(model, {sine({4, 2, 3}), rows}, {8, 2, 0.1});
    ASSERT_EQ(made.batches.size(), 2u);
    EXPECT_EQ(made.batches[0][0].toTensor().sizes(), (std::vector<int64_t>{4, 2, 3}));
    EXPECT_TRUE(at::equal(made.batches[0][1].toTensor(), rows));
}

/// A context of a model's example alone.
Context without_data() {
    Context context;
    context.example = {sine({1, 3, 8, 8})};
    return context;
}

std::unique_ptr<Stage> stage_of(const std::string& name, std::vector<std::pair<std::string, std::string>> scalars) {
    Options options(name, std::move(scalars));
    auto stage = find_entry(stages(), "stage", name, "test").make(options);
    options.done();
    return stage;
}

TEST(SyntheticInputs, StandForDataInEveryStageThatCalibratesWhichIsSaid) {
    const std::vector<std::pair<std::string, std::vector<std::pair<std::string, std::string>>>> cases = {
        {"quantize.static",
         {{"rounding", "adaround"},
          {"bias_correction", "true"},
          {"synthetic_examples", "16"},
          {"synthetic_steps", "5"}}},
        {"quantize.weight_only", {{"rounding", "gptq"}}},
        {"quantize.mixed", {{"ratio", "0.5"}}}};
    for (const auto& [name, options] : cases) {
        SCOPED_TRACE(name);
        auto context = without_data();
        Warnings log;
        context.log = &log;
        const auto stage = stage_of(name, options);
        EXPECT_FALSE(stage->needs().calibration_data);
        stage->check(residual_model(), context);
        const auto result = stage->apply(residual_model(), context);
        EXPECT_EQ(first_tensor(result.forward(context.example)).sizes(), (std::vector<int64_t>{1, 10}));
        EXPECT_THAT(log.texts, ::testing::Contains(::testing::HasSubstr("there is no calibration data")));
        ASSERT_TRUE(context.facts.contains("synthetic_inputs"));
        EXPECT_EQ(context.facts["synthetic_inputs"]["batch_norms"], 4);
        EXPECT_LT(context.facts["synthetic_inputs"]["distance"].get<double>(),
                  context.facts["synthetic_inputs"]["distance_before"].get<double>());
        bool told = false;
        for (const auto& change : context.changes) told |= change.action == "synthetic";
        EXPECT_TRUE(told);
    }
}

TEST(SyntheticInputs, AreNotMadeWhereThereAreData) {
    auto context = without_data();
    context.data.train = tensor_dataset({sine({8, 3, 8, 8})}, at::zeros({8}, at::kLong), "sine images");
    stage_of("quantize.static", {})->apply(residual_model(), context);
    EXPECT_FALSE(context.facts.contains("synthetic_inputs"));
}

TEST(SyntheticInputs, AreRefusedWithTheReason) {
    const auto plain =
        build_model({{"f.weight", sine({4, 6})}}, "def forward(self, x):\n    return torch.linear(x, self.f.weight)\n");
    auto context = without_data();
    context.example = {sine({1, 6})};
    EXPECT_ERROR(stage_of("quantize.static", {})->check(plain, context), InvalidArgument,
                 "no batch norm whose statistics could stand for it");
    EXPECT_ERROR(synthetic_inputs(plain, {sine({1, 6})}), UnsupportedModel, "no batch norm");
    const auto aside = build_model(norm_of(sine({6}), 1 + sine({6}, 0.5)),
                                   std::string("def forward(self, x):\n    return x + torch.batch_norm("
                                               "torch.ones([2, 6]), ") +
                                       kNorm);
    EXPECT_ERROR(synthetic_inputs(aside, {sine({2, 6})}), UnsupportedModel, "no batch norm depends on");
    EXPECT_ERROR(synthetic_inputs(residual_model(), {sine({1, 3, 8, 8})}, {0, 1, 0.1}), InvalidArgument, "examples");
    int calls = 0;
    EXPECT_ERROR(synthetic_inputs(residual_model(), {sine({1, 3, 8, 8})}, {8, 50, 0.1}, 0, null_log(),
                                  [&] { return ++calls == 3; }),
                 Interrupted, "stopped");
}

}  // namespace
}  // namespace coppice::quantize
