#include <ATen/core/dispatch/Dispatcher.h>
#include <coppice/eval.h>
#include <coppice/graph.h>

#include "support/support.h"

namespace coppice::eval {
namespace {

constexpr const char* kIdentity = "def forward(self, x):\n    return x\n";

TEST(Weights, CountsParametersBuffersAndZeros) {
    auto weight = testing::sine({3, 4});
    weight[0].zero_();
    const auto module = testing::build_module({{"a.weight", weight}, {"a.running_mean", at::ones({5})}}, kIdentity);
    const auto weights = weights_of(module);
    EXPECT_EQ(weights.parameters, 12);
    EXPECT_EQ(weights.nonzero, 8);  // sin(0) = 0 is in the row of zeros
    EXPECT_EQ(weights.bytes, 4 * (12 + 5)) << "a running mean is no parameter, but it lies in memory";
    EXPECT_EQ(weights.packed, 0);
}

TEST(Weights, CountsSharedTensorsOnce) {
    auto module =
        testing::build_module({{"a.weight", testing::sine({3, 4})}, {"b.bias", testing::sine({2})}}, kIdentity);
    module.register_parameter("tied", module.attr("a").toModule().attr("weight").toTensor(), false);
    EXPECT_EQ(weights_of(module).parameters, 14);
    EXPECT_EQ(weights_of(module).bytes, 56);
}

TEST(Weights, SeesWeightsThatFreezingMadeConstants) {
    const auto module = testing::build_module({{"fc.weight", testing::sine({3, 4})}},
                                              "def forward(self, x):\n    return torch.linear(x, self.fc.weight)\n");
    const testing::TemporaryFolder folder;
    torch::jit::freeze(module).save(folder / "frozen.pt");
    EXPECT_EQ(weights_of(torch::jit::load(folder / "frozen.pt")).parameters, 12);
}

c10::IValue packed_linear(const at::Tensor& weight, const at::Tensor& bias) {
    const auto scales = at::full({weight.size(0)}, 0.01, at::kDouble), zeros = at::zeros({weight.size(0)}, at::kLong);
    const auto quantized = at::quantize_per_channel(weight, scales, zeros, 0, at::kQInt8);
    torch::jit::Stack stack = {quantized, bias};
    c10::Dispatcher::singleton().findSchemaOrThrow("quantized::linear_prepack", "").callBoxed(&stack);
    return stack[0];
}

TEST(Weights, UnpacksInt8WeightsSoThatTheyDoNotBecomeZero) {
    auto weight = testing::sine({8, 16});
    weight[0].zero_();
    auto module = testing::build_module({}, kIdentity);
    const auto packed = packed_linear(weight, testing::sine({8}));
    module.register_attribute("packed", packed.type(), packed);
    const testing::TemporaryFolder folder;
    module.save(folder / "int8.pt");
    for (const auto& subject : {module, torch::jit::load(folder / "int8.pt")}) {
        const auto weights = weights_of(subject);
        EXPECT_EQ(weights.parameters, 8 * 16 + 8);
        EXPECT_LE(weights.nonzero, 7 * 16 + 7);
        EXPECT_GT(weights.nonzero, 7 * 16 - 8) << "a few values round to 0";
        EXPECT_EQ(weights.packed, 1);
        EXPECT_TRUE(weights.uncounted.empty());
        // A byte for each weight, floats for the bias, a double and an int64 per channel.
        EXPECT_EQ(weights.bytes, 8 * 16 + 8 * 4 + 8 * 16);
    }
}

TEST(Weights, CountsOnceWhatIsPackedWhenTheFileIsLoaded) {
    const auto integers = at::arange(-64, 64).reshape({8, 16}).to(at::kChar);
    torch::jit::Stack stack = {integers, c10::IValue()};
    c10::Dispatcher::singleton().findSchemaOrThrow("onednn::qlinear_prepack", "").callBoxed(&stack);
    torch::jit::Module holder("Holder");
    holder.register_buffer("weight", integers);
    holder.register_attribute("packed", c10::TensorType::get(), stack[0]);
    auto module = testing::build_module({}, kIdentity);
    module.register_module("linear", holder);
    const auto weights = weights_of(module);
    EXPECT_EQ(weights.parameters, 8 * 16);
    EXPECT_EQ(weights.nonzero, 8 * 16 - 1);
    EXPECT_EQ(weights.bytes, 8 * 16);
}

TEST(PeakMemory, HoldsTheWeightsAndTheActivationsOfARun) {
    // 16 MB of weights, and two activations of 16 MB that live at once.
    const auto module = testing::build_module({{"weight", at::ones({4096, 1024})}}, R"(
def forward(self, x):
    y = self.weight * 2
    return (y + 1).sum() + y.sum()
)");
    const testing::TemporaryFolder folder;
    module.save(folder / "large.pt");
    const auto figure = peak_memory(folder / "large.pt", {at::ones({1})});
    if (!figure.available()) GTEST_SKIP() << figure.reason;
    EXPECT_GT(*figure.value, 44e6);
    EXPECT_LT(*figure.value, 120e6);
    EXPECT_EQ(figure.provenance, Provenance::kMeasured);
}

TEST(PeakMemory, IsUnavailableForWhatDoesNotRun) {
    const testing::TemporaryFolder folder;
    EXPECT_FALSE(peak_memory(folder / "absent.pt", {}).available());
}

TEST(SizeFigures, AreThoseOfTheFileAndTheModel) {
    const auto model = testing::residual_model();
    const testing::TemporaryFolder folder;
    model.module().save(folder / "model.pt");
    const Inputs example = {testing::sine({1, 3, 8, 8})};
    std::map<std::string, Figure> figures;
    for (const auto& [name, figure] : size_figures(folder / "model.pt", model, example)) figures[name] = figure;
    EXPECT_EQ(*figures["file_bytes"].value, std::filesystem::file_size(folder / "model.pt"));
    // By hand: convolutions 216 + 1152 + 2304 + 128, batch norms 2 x (8 + 16 + 16 + 16), linear 160 + 10.
    EXPECT_EQ(*figures["parameters"].value, 216 + 1152 + 2304 + 128 + 112 + 170);
    // 64 places of 216, 16 places (4 x 4) of the rest, once the linear layer.
    ASSERT_TRUE(figures["macs"].available()) << figures["macs"].reason;
    EXPECT_EQ(*figures["macs"].value, 64 * 216 + 16 * (1152 + 2304 + 128) + 160);
    EXPECT_EQ(figures["macs"].provenance, Provenance::kDerived);
    EXPECT_GE(*figures["flops"].value, 2 * *figures["macs"].value);
    EXPECT_EQ(*figures["bit_operations"].value, 1024 * *figures["macs"].value) << "float32 throughout";
    EXPECT_LE(*figures["nonzero_macs"].value, *figures["macs"].value);
    EXPECT_EQ(*figures["weight_bytes"].value, 4 * (4082 + 112)) << "running means and variances beside the parameters";
}

TEST(SizeFigures, WithoutAnalysisOperationsAreUnavailableWithTheReason) {
    const auto model = testing::residual_model();
    const testing::TemporaryFolder folder;
    model.module().save(folder / "model.pt");
    for (const auto& [name, figure] :
         size_figures(folder / "model.pt", Model(), {testing::sine({1, 3, 8, 8})}, "not analysed"))
        if (name == "macs" || name == "flops" || name == "nonzero_macs" || name == "bit_operations") {
            EXPECT_FALSE(figure.available());
            EXPECT_EQ(figure.reason, "not analysed");
        }
}

}  // namespace
}  // namespace coppice::eval
