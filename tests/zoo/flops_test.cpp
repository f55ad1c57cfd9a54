// The cost model on third-party architectures: every operator that touches tensors has a rule.
#include <coppice/graph.h>

#include <cstdlib>
#include <set>

#include "support/support.h"
#include "zoo/models.h"

namespace coppice::testing {
namespace {

// Small files of different families; COPPICE_ZOO=all takes all of them.
std::vector<ZooModel> chosen() {
    static const std::set<std::string> kDefault = {"tv_mobilenet_v3_small.trace.pt",
                                                   "tv_shufflenet_v2_x1_0.script.pt",
                                                   "tv_squeezenet1_1.trace.pt",
                                                   "timm_lcnet_050.trace.pt",
                                                   "timm_mobilevit_xxs.trace.pt",
                                                   "timm_convnextv2_atto.script.pt",
                                                   "hf_bert.trace.pt",
                                                   "hf_gpt2.trace.pt",
                                                   "hf_llama.trace.pt",
                                                   "hf_wav2vec2.trace.pt"};
    const char* wanted = std::getenv("COPPICE_ZOO");
    const bool all = wanted && std::string(wanted) == "all";
    std::vector<ZooModel> models;
    for (const auto& model : zoo_models())
        if ((all || kDefault.count(model.file)) && expected_refusal(model.file).empty() &&
            std::filesystem::exists(zoo_path(model)))
            models.push_back(model);
    for (const auto& model : real_models())
        if (std::filesystem::exists(zoo_path(model))) models.push_back(model);
    return models;
}

class FlopsOfTheZoo : public ::testing::TestWithParam<ZooModel> {};

TEST_P(FlopsOfTheZoo, EveryOperatorHasARule) {
    const auto& spec = GetParam();
    const auto total = cost(Model::load(zoo_path(spec)), zoo_inputs(spec));
    EXPECT_TRUE(total.unknown_operators.empty()) << c10::Join(", ", total.unknown_operators);
    EXPECT_GE(total.flops, 2 * total.macs);
    EXPECT_GT(total.macs, 0);
    double sum = 0;
    for (const auto& layer : total.layers) {
        EXPECT_TRUE(layer.known) << layer.name << ": " << layer.op;
        EXPECT_GE(layer.flops, 2 * layer.macs) << layer.name;
        sum += layer.flops;
    }
    EXPECT_DOUBLE_EQ(sum, total.flops);
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(FlopsOfTheZoo);
INSTANTIATE_TEST_SUITE_P(Files, FlopsOfTheZoo, ::testing::ValuesIn(chosen()),
                         [](const auto& info) { return test_name(info.param.file); });

struct Counted {
    const char* file;
    double macs;       // as torch.utils.flop_counter counts them
    double tolerance;  // half of the last digit that is given
};

// Not the recurrent model, whose cells that counter leaves out.
TEST(FlopsOfRealModels, AgreeWithTorchsFlopCounter) {
    for (const auto& [file, macs, tolerance] :
         {Counted{"cifar10/resnet20.pt", 40.55e6, 0.005e6}, Counted{"fashion/cnn.pt", 4.24e6, 0.005e6},
          Counted{"fashion/mlp.pt", 0.27e6, 0.005e6}, Counted{"digits/mlp.pt", 0.01e6, 0.005e6}}) {
        SKIP_WITHOUT_DATA(file);
        for (const auto& model : real_models()) {
            if (model.file != file) continue;
            auto inputs = zoo_inputs(model);
            const auto batch = static_cast<double>(inputs[0].toTensor().size(0));
            EXPECT_NEAR(cost(Model::load(zoo_path(model)), inputs).macs / batch, macs, tolerance) << file;
        }
    }
}

}  // namespace
}  // namespace coppice::testing
