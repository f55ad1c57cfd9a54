// Third-party architectures: every file is quantized to something that stock LibTorch loads and that computes about the
// same, or is refused with a reason. COPPICE_ZOO=all takes all files.
#include <cmath>
#include <iomanip>
#include <iostream>
#include <set>
#include <sstream>

#include <coppice/quantize.h>

#include "support/support.h"
#include "zoo/models.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

/// Small files that between them use convolutions of every kind, attention, embeddings and gates.
const std::set<std::string> kDefault = {
    "tv_mobilenet_v3_small.trace.pt",
    "tv_shufflenet_v2_x1_0.script.pt",
    "timm_mobilevit_xxs.trace.pt",
    "timm_convnextv2_atto.script.pt",
    "hf_bert.trace.pt",
    "hf_llama.trace.pt",
};

std::vector<ZooModel> chosen() {
    const char* all = std::getenv("COPPICE_ZOO");
    std::vector<ZooModel> models;
    for (const auto& model : zoo_models())
        if (expected_refusal(model.file).empty() && std::filesystem::exists(zoo_path(model)) &&
            ((all && std::string(all) == "all") || kDefault.count(model.file)))
            models.push_back(model);
    return models;
}

/// Sums of squares of the floating-point tensors and of what `rounded` differs by.
std::pair<double, double> signal_and_noise(const std::vector<at::Tensor>& exact,
                                           const std::vector<at::Tensor>& rounded) {
    double signal = 0, noise = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
        EXPECT_EQ(exact[i].sizes(), rounded[i].sizes());
        if (!exact[i].is_floating_point()) continue;
        signal += exact[i].pow(2).sum().item<double>();
        noise += (exact[i] - rounded[i]).pow(2).sum().item<double>();
    }
    return {signal, noise};
}

/// By how much the float model's ratio of noise to signal exceeds that of float inputs which are rounded to 8 bits.
double amplification(const Model& model, const Inputs& inputs, const std::vector<at::Tensor>& exact) {
    Inputs rounded = inputs;
    double signal = 0, noise = 0;
    for (auto& input : rounded) {
        if (!input.isTensor() || !input.toTensor().is_floating_point()) continue;
        const auto x = input.toTensor();
        const auto quantum = (x.max() - x.min()) / 255;
        input = at::round(x / quantum) * quantum;
        signal += x.pow(2).sum().item<double>();
        noise += (x - input.toTensor()).pow(2).sum().item<double>();
    }
    const auto [signal_after, noise_after] = signal_and_noise(exact, all_tensors(model.forward(rounded)));
    return noise_after / signal_after / (noise / signal);
}

/// Whether the model holds a layer that the stage has a form for: then it must not be refused.
bool has_layer(const Model& model, const std::string& stage) {
    for (auto* node : all_nodes(*model.graph())) {
        const auto linear = as_linear(node);
        if (linear && parameter_of(model, linear->weight)) return true;
        const auto conv = as_conv(node);
        if (stage != "dynamic" && conv && parameter_of(model, conv->weight)) return true;
        if (stage == "dynamic" && (as_embedding(node) || as_recurrent(node))) return true;
    }
    return false;
}

double decibels(std::pair<double, double> signal_and_noise) {
    return 10 * std::log10(signal_and_noise.first / std::max(signal_and_noise.second, 1e-300));
}

class QuantizeZoo : public ::testing::TestWithParam<std::tuple<ZooModel, std::string>> {};

TEST_P(QuantizeZoo, WorksOrSaysWhyNot) {
    torch::NoGradGuard no_grad;
    const auto& [spec, stage] = GetParam();
    const auto model = Model::load(zoo_path(spec));
    if (stage == "static_fused" && !exact_int8_products()) GTEST_SKIP() << "fused linear layers need VNNI";
    Context context;
    context.example = zoo_inputs(spec);
    Model quantized;
    std::vector<LayerPlan> layers;
    std::vector<at::Tensor> simulated;
    try {
        if (stage != "dynamic") {
            StaticOptions options;
            options.linear = options.conv = stage == "static_fused" ? "fused" : "packed";
            const auto plan = plan_static(model, context.example, {context.example}, options);
            layers = plan.layers();
            quantized = convert(plan);
            simulated = all_tensors(fake_quantized(plan, context.example));
        } else {
            quantized = dynamic_int8()->apply(model, context);
        }
    } catch (const UnsupportedModel& error) {
        EXPECT_GT(error.problem().size(), 20u);
        EXPECT_FALSE(has_layer(model, stage)) << error.what();
        std::cout << "refused: " << error.what() << "\n";
        return;
    }
    const auto exact = all_tensors(model.forward(context.example));
    const auto rounded = all_tensors(quantized.forward(context.example));
    ASSERT_EQ(exact.size(), rounded.size());
    const auto [signal, noise] = signal_and_noise(exact, rounded);
    const double db = decibels({signal, noise});
    std::cout << "SQNR " << db << " dB\n";
    if (kDefault.count(spec.file)) {
        EXPECT_GT(db, 20);
    }
    // The operators compute what the plan says, within ties: as noisy as its simulation in float. Where little is left
    // of the signal both are chance.
    if (!simulated.empty()) {
        ASSERT_EQ(simulated.size(), rounded.size());
        const double expected = decibels(signal_and_noise(exact, simulated));
        if (expected > 10) {
            EXPECT_GT(db, expected - 3);
        }
    }
    // The weights are random, and some of these networks make a small disturbance large, in float as well: there the
    // layers are looked at one by one. Otherwise more noise than signal is a defect.
    if (noise >= signal) {
        EXPECT_GT(amplification(model, context.example, exact), 100);
        int measured = 0;
        for (const auto& layer : layers) {
            if (!layer.int8 || layer.sqnr_db == 0) continue;
            ++measured;
            EXPECT_GT(layer.sqnr_db, 20) << layer.layer;
        }
        EXPECT_GT(measured, 0);
    }
    TemporaryFolder folder;
    quantized.save(folder / "model.pt");
    auto stock = torch::jit::load((folder / "model.pt").string());
    const auto loaded = all_tensors(stock.forward(context.example));
    ASSERT_EQ(loaded.size(), rounded.size());
    for (size_t i = 0; i < rounded.size(); ++i) EXPECT_TRUE(at::equal(loaded[i], rounded[i]));
}

/// What `explain` finds among the convolutions and linear layers of a file.
struct Int8Coverage {
    int64_t layers = 0, int8_layers = 0;
    double weights = 0, int8_weights = 0;
    std::string main_reason;  ///< of the layers that stay in float, by weights
};

Int8Coverage coverage_of(const ZooModel& spec) {
    Int8Coverage coverage;
    std::map<std::string, double> reasons;
    for (const auto& layer : explain(Model::load(zoo_path(spec)), zoo_inputs(spec))) {
        static const std::set<std::string> kOthers = {"aten::embedding", "aten::gru", "aten::lstm"};
        if (layer.parameters == 0 || kOthers.count(layer.op)) continue;
        const auto weights = static_cast<double>(layer.parameters);
        ++coverage.layers;
        coverage.int8_layers += layer.int8;
        coverage.weights += weights;
        if (layer.int8)
            coverage.int8_weights += weights;
        else
            reasons[layer.reason] += weights;
    }
    double most = 0;
    for (const auto& [reason, weights] : reasons)
        if (weights > most) {
            most = weights;
            coverage.main_reason = reason;
        }
    return coverage;
}

TEST(QuantizeCoverage, IsThatOfTheTable) {
    std::ostringstream table;
    table << "# What runs in static int8\n\n"
             "Generated from the plan of every file by `COPPICE_UPDATE_GOLDEN=1 quantize_zoo_test "
             "--gtest_filter=QuantizeCoverage.*`.\nConvolutions and linear layers that `quantize.static` runs in int8, "
             "the share of their weights, and why the others (by weights) stay in float.\n\n"
             "| model | layers | in int8 | weights, % | float because |\n|---|---|---|---|---|\n";
    double sum = 0;
    int64_t files = 0;
    for (const auto& spec : zoo_models()) {
        if (!expected_refusal(spec.file).empty()) continue;
        if (!std::filesystem::exists(zoo_path(spec))) GTEST_SKIP() << "needs the development data: zoo/" << spec.file;
        const auto coverage = coverage_of(spec);
        const double percent = coverage.weights > 0 ? 100 * coverage.int8_weights / coverage.weights : 0;
        table << "| " << spec.file << " | " << coverage.layers << " | " << coverage.int8_layers << " | " << std::fixed
              << std::setprecision(1) << percent << " | " << coverage.main_reason << " |\n";
        sum += percent;
        ++files;
    }
    const double average = sum / static_cast<double>(files);
    table << "\nOn average of " << files << " files " << std::setprecision(1) << average << " % of the weights.\n";
    EXPECT_GE(average, 95);
    expect_table("quantization.md", table.str());
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(QuantizeZoo);
INSTANTIATE_TEST_SUITE_P(Files, QuantizeZoo,
                         ::testing::Combine(::testing::ValuesIn(chosen()),
                                            ::testing::Values("dynamic", "static", "static_fused")),
                         [](const auto& info) {
                             return test_name(std::get<0>(info.param).file) + "_" + std::get<1>(info.param);
                         });

}  // namespace
}  // namespace coppice::quantize
