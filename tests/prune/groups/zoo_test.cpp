// Third-party architectures: random channels are cut from every group, and the result must equal the masked original. A
// file whose channels cannot be pruned at all is listed below, with the reason that is expected.
#include <fstream>

#include "prune/masking.h"

namespace coppice::testing {
namespace {

struct ZooFile {
    std::string name;
    std::vector<std::pair<std::vector<int64_t>, std::string>> inputs;
};

std::vector<ZooFile> zoo() {
    std::vector<ZooFile> files;
    std::ifstream in(data_path("zoo/zoo.json"));
    if (!in) return files;
    for (const auto& entry : Json::parse(in)) {
        ZooFile file{entry["file"], {}};
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
    double share = 0;
    for (const uint64_t seed : {1, 2, 3}) {
        const auto check = check_cut(model, example, 0.3, seed);
        EXPECT_LE(check.difference, 1e-3) << "seed " << seed;
        if (seed > 1) continue;
        // Parameters of convolutions and linear layers whose outputs belong to a group, as a share of all of them.
        double all = 0, prunable = 0;
        for (const auto& layer : check.groups.layers()) {
            all += static_cast<double>(layer.channels);
            prunable += static_cast<double>(layer.prunable);
        }
        share = all > 0 ? prunable / all : 0;
        std::string text =
            std::to_string(check.groups.all().size()) + " groups, " + std::to_string(share) + " of the outputs";
        for (const auto& unknown : check.groups.unknown_operators()) text += "; " + unknown;
        RecordProperty("coverage", text);
        if (std::getenv("COPPICE_TEST_VERBOSE")) {
            printf("%s: difference %.2g, %s\n", GetParam().name.c_str(), check.difference, text.c_str());
            if (share < 0.8) {
                int shown = 0;
                for (const auto& layer : check.groups.layers())
                    if (layer.prunable < layer.channels && shown++ < 12)
                        printf("    %s %s %ld/%ld: %s\n", layer.layer.c_str(), layer.op.c_str(),
                               static_cast<long>(layer.prunable), static_cast<long>(layer.channels),
                               layer.reason.c_str());
            }
            break;
        }
    }
    EXPECT_GT(share, 0) << "nothing to prune";
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
