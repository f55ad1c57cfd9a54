// Third-party architectures: random channels are cut from every group, and the result must equal the masked original.
// Which share of the weights can go is a table, tests/zoo/pruning.md, that is generated here.
#include <fstream>
#include <iomanip>
#include <set>
#include <sstream>

#include "prune/masking.h"
#include "zoo/models.h"

namespace coppice::testing {
namespace {

bool all_files() {
    const char* chosen = std::getenv("COPPICE_ZOO");
    return chosen && std::string(chosen) == "all";
}

std::vector<ZooModel> usable(const std::vector<ZooModel>& models) {
    std::vector<ZooModel> result;
    for (const auto& model : models)
        if (expected_refusal(model.file).empty() && std::filesystem::exists(zoo_path(model))) result.push_back(model);
    return result;
}

// Small files that between them use every family of rules; COPPICE_ZOO=all takes all of them, with three seeds.
std::vector<ZooModel> chosen() {
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
    std::vector<ZooModel> models;
    for (const auto& model : usable(zoo_models()))
        if (all_files() || kDefault.count(model.file)) models.push_back(model);
    return models;
}

class PruneZoo : public ::testing::TestWithParam<ZooModel> {};

TEST_P(PruneZoo, CutEqualsMasked) {
    const auto model = Model::load(zoo_path(GetParam()));
    const auto example = zoo_inputs(GetParam());
    for (const uint64_t seed : {1, 2, 3}) {
        if (seed > 1 && !all_files()) break;
        const auto check = check_cut(model, example, 0.3, seed);
        EXPECT_LE(check.difference, 1e-4) << "seed " << seed;  // float32 sums in another order; 7e-6 is the most seen
        EXPECT_GT(check.removed, 0) << "nothing to prune";
    }
}

// With the width of heads in the place of whole heads: two files by default, COPPICE_ZOO=all takes all with attention
// (but for SqueezeBERT and EfficientFormer, whose heads cannot go, so that their width shrinks either way).
std::vector<ZooModel> with_attention() {
    static const std::set<std::string> kDefault = {"hf_bert.trace.pt", "hf_llama.trace.pt"};
    static const std::set<std::string> kAll = {
        "hf_bert.trace.pt",
        "hf_electra.trace.pt",
        "hf_gpt2.trace.pt",
        "hf_llama.trace.pt",
        "hf_roberta.trace.pt",
        "hf_t5_encoder.trace.pt",
        "hf_wav2vec2.trace.pt",
        "timm_botnet26t_256.trace.pt",
        "timm_coatnet_nano_rw_224.trace.pt",
        "timm_deit_tiny_patch16_224.trace.pt",
        "timm_mobilevit_xxs.trace.pt",
        "timm_nest_tiny.script.pt",
        "timm_pvt_v2_b0.trace.pt",
        "timm_visformer_tiny.script.pt",
        "tv_swin_t.script.pt",
        "tv_swin_t.trace.pt",
        "tv_vit_b_16.script.pt",
        "tv_vit_b_16.trace.pt",
    };
    std::vector<ZooModel> models;
    for (const auto& model : usable(zoo_models()))
        if ((all_files() ? kAll : kDefault).count(model.file)) models.push_back(model);
    return models;
}

class PruneZooHeadWidth : public ::testing::TestWithParam<ZooModel> {};

TEST_P(PruneZooHeadWidth, CutEqualsMasked) {
    const auto model = prune::unfuse_attention(Model::load(zoo_path(GetParam())));
    const auto example = zoo_inputs(GetParam());
    prune::GroupOptions options;
    options.head_width = true;
    const auto check = check_cut(model, example, 0.3, 1, options);
    EXPECT_LE(check.difference, 1e-4);  // as above
    const auto heads = prune::find_groups(model, Facts::observe(model, example));
    std::vector<int64_t> channels, of_heads;
    for (const auto& group : check.groups.all()) channels.push_back(group.channels);
    for (const auto& group : heads.all()) of_heads.push_back(group.channels);
    EXPECT_NE(channels, of_heads) << "no width of heads is among the groups";
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(PruneZooHeadWidth);
INSTANTIATE_TEST_SUITE_P(Files, PruneZooHeadWidth, ::testing::ValuesIn(with_attention()),
                         [](const auto& info) { return test_name(info.param.file); });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(PruneZoo);
INSTANTIATE_TEST_SUITE_P(Files, PruneZoo, ::testing::ValuesIn(chosen()),
                         [](const auto& info) { return test_name(info.param.file); });

// ----------------------------------------------------------------------------------------------------------- coverage

struct Coverage {
    int64_t groups = 0, channels = 0;          ///< that can be pruned
    double weights = 0, prunable_weights = 0;  ///< of convolutions, linear layers, embeddings and recurrent cells
    std::string main_reason;                   ///< what keeps the most output channels
};

/// A weight is prunable when it vanishes with a channel, along whichever of its dimensions.
Coverage coverage_of(const ZooModel& spec) {
    const auto model = prune::unfuse_attention(Model::load(zoo_path(spec)));
    const auto groups = prune::find_groups(model, Facts::observe(model, zoo_inputs(spec)));
    std::map<std::string, std::map<int64_t, std::set<int64_t>>> indices;  // by weight and dimension
    Coverage coverage;
    coverage.groups = static_cast<int64_t>(groups.all().size());
    for (const auto& group : groups.all()) {
        coverage.channels += group.channels;
        for (const auto& slice : group.slices)
            for (size_t i = 0; i < slice.channel_of.size(); ++i)
                if (slice.channel_of[i] >= 0) indices[slice.name][slice.dim].insert(static_cast<int64_t>(i));
    }
    for (const auto& named : named_tensors(model)) {
        if (named.role != Role::kParameter || named.tensor.dim() < 2) continue;
        double kept = 1;
        for (const auto& [dim, prunable] : indices[named.name])
            kept *= 1 - static_cast<double>(prunable.size()) / static_cast<double>(named.tensor.size(dim));
        coverage.weights += static_cast<double>(named.tensor.numel());
        coverage.prunable_weights += (1 - kept) * static_cast<double>(named.tensor.numel());
    }
    std::map<std::string, int64_t> reasons;
    for (const auto& layer : groups.layers())
        if (!layer.reason.empty()) reasons[layer.reason] += layer.channels - layer.prunable;
    int64_t most = 0;
    for (const auto& [reason, channels] : reasons)
        if (channels > most && reason != "is an output of the model") {
            most = channels;
            coverage.main_reason = reason;
        }
    return coverage;
}

TEST(PruneCoverage, IsThatOfTheTable) {
    if (usable(zoo_models()).empty()) GTEST_SKIP() << "needs the development data: zoo";
    std::ostringstream table;
    table << "# What can be pruned\n\n"
             "Generated from the groups of every file by `COPPICE_UPDATE_GOLDEN=1 prune_zoo_test "
             "--gtest_filter=PruneCoverage.*`.\nGroups and channels that `prune.channel` can remove, the share of all "
             "weights (of convolutions, linear layers, embeddings and\nrecurrent cells) that can vanish with them, and "
             "what keeps the most of the other channels, outputs of the model aside.\n\n"
             "| model | groups | channels | weights, % | kept because a dimension |\n|---|---|---|---|---|\n";
    double sum = 0;
    int64_t pruned = 0, files = 0;
    const auto add = [&](const ZooModel& spec) {
        const auto coverage = coverage_of(spec);
        const double percent = 100 * coverage.prunable_weights / coverage.weights;
        table << "| " << spec.file << " | " << coverage.groups << " | " << coverage.channels << " | " << std::fixed
              << std::setprecision(1) << percent << " | " << coverage.main_reason << " |\n";
        return percent;
    };
    for (const auto& spec : usable(zoo_models())) {
        const double percent = add(spec);
        sum += percent;
        pruned += percent > 0;
        ++files;
    }
    for (const auto& spec : usable(real_models())) add(spec);
    for (const auto& spec : zoo_models())
        if (const auto reason = expected_refusal(spec.file); !reason.empty())
            table << "| " << spec.file << " | | | | refused: needs operators of " << reason << " |\n";
    const double average = sum / static_cast<double>(files);
    table << "\nOf " << zoo_models().size() << " files " << pruned << " prune; on average " << std::setprecision(1)
          << average << " % of their weights.\n";
    EXPECT_GE(static_cast<double>(pruned), 0.95 * static_cast<double>(zoo_models().size()));
    EXPECT_GE(average, 80);
    expect_table("pruning.md", table.str());
}

}  // namespace
}  // namespace coppice::testing
