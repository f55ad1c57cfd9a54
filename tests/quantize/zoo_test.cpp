// Third-party architectures: every file is quantized to something that stock LibTorch loads and that computes about the
// same, or is refused with a reason. COPPICE_ZOO=all takes all files.
#include <cmath>
#include <iostream>
#include <set>

#include <coppice/quantize.h>

#include "support/support.h"
#include "zoo/models.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

std::vector<ZooModel> chosen() {
    // Small files that between them use convolutions of every kind, attention, embeddings and gates.
    static const std::set<std::string> kDefault = {
        "tv_mobilenet_v3_small.trace.pt",
        "tv_shufflenet_v2_x1_0.script.pt",
        "timm_mobilevit_xxs.trace.pt",
        "timm_convnextv2_atto.script.pt",
        "hf_bert.trace.pt",
        "hf_llama.trace.pt",
    };
    const char* all = std::getenv("COPPICE_ZOO");
    std::vector<ZooModel> models;
    for (const auto& model : zoo_models())
        if (expected_refusal(model.file).empty() && std::filesystem::exists(zoo_path(model)) &&
            ((all && std::string(all) == "all") || kDefault.count(model.file)))
            models.push_back(model);
    return models;
}

class QuantizeZoo : public ::testing::TestWithParam<std::tuple<ZooModel, std::string>> {};

TEST_P(QuantizeZoo, WorksOrSaysWhyNot) {
    torch::NoGradGuard no_grad;
    const auto& [spec, stage] = GetParam();
    const auto model = Model::load(zoo_path(spec));
    Context context;
    context.example = zoo_inputs(spec);
    Model quantized;
    try {
        if (stage == "static")
            quantized = convert(plan_static(model, context.example, {context.example}));
        else
            quantized = dynamic_int8()->apply(model, context);
    } catch (const UnsupportedModel& error) {
        EXPECT_GT(error.problem().size(), 20u);
        std::cout << "refused: " << error.what() << "\n";
        return;
    }
    const auto exact = all_tensors(model.forward(context.example));
    const auto rounded = all_tensors(quantized.forward(context.example));
    ASSERT_EQ(exact.size(), rounded.size());
    double signal = 0, noise = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
        ASSERT_EQ(exact[i].sizes(), rounded[i].sizes());
        if (!exact[i].is_floating_point()) continue;
        signal += exact[i].pow(2).sum().item<double>();
        noise += (exact[i] - rounded[i]).pow(2).sum().item<double>();
    }
    std::cout << "SQNR " << 10 * std::log10(signal / noise) << " dB\n";
    // Random weights are no trained ones, noise adds up over a hundred layers; more noise than signal is a defect.
    EXPECT_LT(noise, signal);
    TemporaryFolder folder;
    quantized.save(folder / "model.pt");
    auto stock = torch::jit::load((folder / "model.pt").string());
    const auto loaded = all_tensors(stock.forward(context.example));
    ASSERT_EQ(loaded.size(), rounded.size());
    for (size_t i = 0; i < rounded.size(); ++i) EXPECT_TRUE(at::equal(loaded[i], rounded[i]));
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(QuantizeZoo);
INSTANTIATE_TEST_SUITE_P(Files, QuantizeZoo,
                         ::testing::Combine(::testing::ValuesIn(chosen()), ::testing::Values("dynamic", "static")),
                         [](const auto& info) {
                             return test_name(std::get<0>(info.param).file) + "_" + std::get<1>(info.param);
                         });

}  // namespace
}  // namespace coppice::quantize
