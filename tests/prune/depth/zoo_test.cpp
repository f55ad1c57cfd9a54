// Third-party architectures: a residual block that is removed must equal a branch of zeros.
#include "prune/depth/depth_cases.h"
#include "zoo/models.h"

namespace coppice::testing {
namespace {

// Blocks by the papers; two per layer of a transformer.
const std::map<std::string, size_t> kExpected = {
    {"hf_bert.trace.pt", 6},
    {"hf_gpt2.trace.pt", 6},
    {"hf_llama.trace.pt", 6},
    {"timm_convnextv2_atto.script.pt", 12},       // 2 + 2 + 6 + 2
    {"timm_deit_tiny_patch16_224.trace.pt", 24},  // 12 layers
    {"timm_lcnet_050.trace.pt", 0},               // it has no shortcuts
    {"timm_mixer_s32_224.script.pt", 16},
    {"timm_resnet26d.trace.pt", 4},   // 8, four with a projection
    {"tv_densenet121.script.pt", 0},  // it joins, and adds nothing
    {"tv_resnet50.script.pt", 12},    // 16, four with a projection
    {"tv_vgg11_bn.script.pt", 0},
    {"tv_vit_b_16.trace.pt", 24},
};
// Small enough for every run; COPPICE_ZOO=all takes all files.
const std::set<std::string> kDefault = {
    "hf_gpt2.trace.pt",        "hf_llama.trace.pt",        "stsb/minilm_l6.pt",    "timm_convnextv2_atto.script.pt",
    "timm_lcnet_050.trace.pt", "timm_tinynet_e.script.pt", "tv_resnet50.script.pt"};

std::vector<ZooModel> files() {
    const char* chosen = std::getenv("COPPICE_ZOO");
    const bool all = chosen && std::string(chosen) == "all";
    std::vector<ZooModel> files;
    for (const auto& models : {zoo_models(), real_models()})
        for (const auto& model : models)
            if ((all || kDefault.count(model.file)) && expected_refusal(model.file).empty()) files.push_back(model);
    return files;
}

class DepthZoo : public ::testing::TestWithParam<ZooModel> {};

TEST_P(DepthZoo, ARemovedBlockEqualsABranchOfZeros) {
    if (!std::filesystem::exists(zoo_path(GetParam())))
        GTEST_SKIP() << "needs the development data: " << GetParam().file;
    const auto model = Model::load(zoo_path(GetParam()));
    const auto example = zoo_inputs(GetParam());
    std::vector<std::string> names;
    for (const auto& block : blocks_of(model, example)) names.push_back(block.name);
    std::cout << GetParam().file << " " << names.size() << " residual blocks" << std::endl;
    if (const auto known = kExpected.find(GetParam().file); known != kExpected.end()) {
        EXPECT_EQ(names.size(), known->second) << ::testing::PrintToString(names);
    }
    std::set<size_t> some;
    if (!names.empty()) some = {0, names.size() / 2, names.size() - 1};
    for (const size_t i : some) expect_removal_is_a_zero_branch(model, example, names[i]);
}

INSTANTIATE_TEST_SUITE_P(Files, DepthZoo, ::testing::ValuesIn(files()),
                         [](const auto& info) { return test_name(info.param.file); });

}  // namespace
}  // namespace coppice::testing
