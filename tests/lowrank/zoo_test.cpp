// The stage on the real models of the development data.
#include <coppice/lowrank.h>

#include "support/support.h"

namespace coppice::testing {
namespace {

struct RealModel {
    std::string file;
    Inputs inputs;
};

bool model_is_large(const Model& model) {
    int64_t parameters = 0;
    for (const auto& entry : named_tensors(model)) parameters += entry.tensor.numel();
    return parameters > 5'000'000;
}

class SvdOfRealModels : public ::testing::TestWithParam<RealModel> {};

TEST_P(SvdOfRealModels, KeepsShapeSavesWorkAndIsExplained) {
    SKIP_WITHOUT_DATA(GetParam().file);
    const auto model = Model::load(data_path(GetParam().file));
    Context context;
    context.example = GetParam().inputs;
    const auto rows = lowrank::explain(model, context.example);
    EXPECT_FALSE(rows.empty());
    for (const auto& row : rows) EXPECT_EQ(row.factorisable, row.reason.empty()) << row.layer;
    lowrank::SvdOptions options;
    options.rank = lowrank::ratio(0.5);
    // Of a transformer, the wide layers are enough: 36 decompositions take half a minute.
    if (model_is_large(model)) options.min_size = 300'000;
    const auto smaller = lowrank::svd(options)->apply(model, context);
    EXPECT_LT(context.facts.at("macs_after").get<double>(), context.facts.at("macs_before").get<double>());
    EXPECT_LT(context.facts.at("parameters_after").get<int64_t>(),
              context.facts.at("parameters_before").get<int64_t>());
    torch::NoGradGuard no_grad;
    const auto before = all_tensors(model.forward(context.example)),
               after = all_tensors(smaller.forward(context.example));
    ASSERT_EQ(before.size(), after.size());
    for (size_t i = 0; i < before.size(); ++i) EXPECT_EQ(before[i].sizes(), after[i].sizes());
    const TemporaryFolder folder;
    smaller.save(folder / "model.pt");
    const auto stock = torch::jit::load((folder / "model.pt").string());
    EXPECT_TRUE(at::equal(first_tensor(torch::jit::Module(stock).forward(context.example)), after[0]));
}

INSTANTIATE_TEST_SUITE_P(
    Models, SvdOfRealModels,
    ::testing::Values(
        RealModel{"digits/mlp.pt", {sine({2, 64}, 8)}}, RealModel{"fashion/mlp.pt", {sine({2, 1, 28, 28})}},
        RealModel{"fashion/cnn.pt", {sine({2, 1, 28, 28})}}, RealModel{"cifar10/resnet20.pt", {sine({2, 3, 32, 32})}},
        RealModel{"fsdd/cnn_gru.pt", {sine({1, 1, 8000})}}, RealModel{"etth1/light_ts.pt", {sine({2, 96, 7})}},
        RealModel{"stsb/minilm_l6.pt", {at::ones({2, 9}, at::kLong), at::ones({2, 9}, at::kLong)}}),
    [](const auto& info) {
        auto name = info.param.file;
        std::replace_if(
            name.begin(), name.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
        return name;
    });

TEST(SvdOnDigits, KeepsAccuracyAtNineTenthsOfTheEnergy) {
    SKIP_WITHOUT_DATA("digits/digits.pt");
    const auto model = Model::load(data_path("digits/mlp.pt"));
    std::ifstream file(data_path("digits/digits.pt"), std::ios::binary);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    const auto data = torch::pickle_load(bytes).toGenericDict();
    const auto images = data.at("image").toTensor().slice(0, 1297).to(at::kFloat);
    const auto labels = data.at("label").toTensor().slice(0, 1297);
    const auto accuracy = [&](const Model& of) {
        torch::NoGradGuard no_grad;
        return (first_tensor(of.forward({images})).argmax(1) == labels).to(at::kDouble).mean().item<double>();
    };
    Context context;
    context.example = {images.slice(0, 0, 2)};
    lowrank::SvdOptions options;
    options.rank = lowrank::energy(0.9);
    options.min_size = 0;
    const auto smaller = lowrank::svd(options)->apply(model, context);
    EXPECT_GE(context.facts.at("layers_factorised"), 1);
    // 93.2 % before; a tenth of the energy without any training may cost some points, not tens.
    EXPECT_NEAR(accuracy(model), 0.932, 1e-3);
    EXPECT_GT(accuracy(smaller), 0.88);
}

}  // namespace
}  // namespace coppice::testing
