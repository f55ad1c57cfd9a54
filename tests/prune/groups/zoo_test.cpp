// Third-party architectures: random channels are cut from every group, and the result must equal the masked original. A
// file whose channels cannot be pruned at all is listed below, with the reason that is expected.
#include <fstream>
#include <iostream>
#include <map>
#include <set>

#include "prune/masking.h"

namespace coppice::testing {
namespace {

struct ZooFile {
    std::string name;
    std::vector<std::pair<std::vector<int64_t>, std::string>> inputs;
};

bool all_files() {
    const char* chosen = std::getenv("COPPICE_ZOO");
    return chosen && std::string(chosen) == "all";
}

std::vector<ZooFile> zoo() {
    std::vector<ZooFile> files;
    std::ifstream in(data_path("zoo/zoo.json"));
    if (!in) return files;
    // A choice of small files that between them use every family of rules; COPPICE_ZOO=all takes all of them, with
    // three seeds.
    static const std::set<std::string> kDefault = {
        "tv_resnet18.trace.pt",
        "tv_mobilenet_v3_small.trace.pt",
        "tv_shufflenet_v2_x1_0.script.pt",
        "tv_squeezenet1_1.trace.pt",
        "tv_r3d_18.trace.pt",
        "timm_mobilevit_xxs.trace.pt",
        "timm_lcnet_050.trace.pt",
        "timm_tinynet_e.script.pt",
        "timm_convnextv2_atto.script.pt",
        "timm_visformer_tiny.script.pt",
        "hf_bert.trace.pt",
        "hf_squeezebert.trace.pt",
        "hf_gpt2.trace.pt",
        "hf_llama.trace.pt",
        "hf_wav2vec2.trace.pt",
    };
    for (const auto& entry : Json::parse(in)) {
        ZooFile file{entry["file"], {}};
        if (!all_files() && !kDefault.count(file.name)) continue;
        if (entry["inputs"].is_null()) continue;  // needs operators that LibTorch lacks
        for (const auto& input : entry["inputs"])
            file.inputs.emplace_back(input[0].get<std::vector<int64_t>>(), input[1]);
        files.push_back(std::move(file));
    }
    return files;
}

Inputs inputs_of(const ZooFile& file) {
    Inputs inputs;
    for (const auto& [shape, type] : file.inputs) {
        if (type == "int64")  // token ids below 500, then the attention mask
            inputs.emplace_back(inputs.empty()
                                    ? (at::arange(c10::multiply_integers(shape)) * 7 % 490 + 5).reshape(shape)
                                    : at::ones(shape, at::kLong));
        else
            inputs.emplace_back((at::arange(c10::multiply_integers(shape)) * 0.01).sin().to(at::kFloat).reshape(shape));
    }
    return inputs;
}

class PruneZoo : public ::testing::TestWithParam<ZooFile> {};

TEST_P(PruneZoo, CutEqualsMasked) {
    const auto model = Model::load(data_path("zoo/" + GetParam().name));
    const auto example = inputs_of(GetParam());
    for (const uint64_t seed : {1, 2, 3}) {
        if (seed > 1 && !all_files()) break;
        const auto check = check_cut(model, example, 0.3, seed);
        EXPECT_LE(check.difference, 1e-4) << "seed " << seed;  // float32 sums in another order; 5e-6 is the most seen
        if (seed > 1) continue;
        int64_t channels = 0, prunable = 0;
        std::map<std::string, int> reasons;
        for (const auto& layer : check.groups.layers()) {
            channels += layer.channels;
            prunable += layer.prunable;
            if (!layer.reason.empty()) ++reasons[layer.reason];
        }
        EXPECT_GT(prunable, 0) << "nothing to prune";
        if (!std::getenv("COPPICE_TEST_VERBOSE")) continue;
        std::cout << GetParam().name << ": difference " << check.difference << ", " << check.groups.all().size()
                  << " groups, " << 100 * prunable / channels << " % of the outputs\n";
        for (const auto& [reason, count] : reasons) std::cout << "    " << count << " x " << reason << "\n";
    }
}

std::ostream& operator<<(std::ostream& out, const ZooFile& file) {
    return out << file.name;
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(PruneZoo);
INSTANTIATE_TEST_SUITE_P(Files, PruneZoo, ::testing::ValuesIn(zoo()), [](const auto& info) {
    std::string name = info.param.name;
    for (char& c : name)
        if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
    return name;
});

}  // namespace
}  // namespace coppice::testing
