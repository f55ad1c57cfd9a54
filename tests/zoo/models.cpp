#include "zoo/models.h"

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "support/support.h"

namespace coppice::testing {

const std::vector<ZooModel>& zoo_models() {
    // File, inputs and parameter count as the exporter of the collection recorded them.
    static const std::vector<ZooModel> kModels = {
        {"hf_bert.trace.pt", {{{2, 32}, at::kLong}, {{2, 32}, at::kLong}}, 544258},
        {"hf_electra.trace.pt", {{{2, 32}, at::kLong}, {{2, 32}, at::kLong}}, 487554},
        {"hf_gpt2.trace.pt", {{{2, 32}, at::kLong}}, 790144},
        {"hf_llama.trace.pt", {{{2, 32}, at::kLong}}, 571264},
        {"hf_roberta.trace.pt", {{{2, 32}, at::kLong}, {{2, 32}, at::kLong}}, 544258},
        {"hf_squeezebert.trace.pt", {{{2, 32}, at::kLong}, {{2, 32}, at::kLong}}, 286210},
        {"hf_t5_encoder.trace.pt", {{{2, 32}, at::kLong}}, 458240},
        {"hf_wav2vec2.trace.pt", {{{1, 8000}, at::kFloat}}, 409904},
        {"timm_botnet26t_256.trace.pt", {{{1, 3, 256, 256}, at::kFloat}}, 12488672},
        {"timm_coatnet_nano_rw_224.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 15141244},
        {"timm_convnextv2_atto.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 3708400},
        {"timm_crossvit_tiny_240.script.pt", {{{1, 3, 240, 240}, at::kFloat}}, 7014800},
        {"timm_cspresnet50.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 21616168},
        {"timm_deit_tiny_patch16_224.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 5717416},
        {"timm_dla34.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 15742104},
        {"timm_dpn48b.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 9126226},
        {"timm_ecaresnet26t.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 16011916},
        {"timm_efficientformer_l1.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 12289928},
        {"timm_fastvit_t8.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 4026232},
        {"timm_focalnet_tiny_srf.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 28427116},
        {"timm_gernet_s.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 8173761},
        {"timm_hardcorenas_a.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 5260232},
        {"timm_hgnetv2_b0.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 5996550},
        {"timm_hgnetv2_b0.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 5996550},
        {"timm_inception_next_atto.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 4156520},
        {"timm_lcnet_050.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 1880856},
        {"timm_mixer_s32_224.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 19104624},
        {"timm_mobileone_s0.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 5293272},
        {"timm_mobilevit_xxs.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 1272024},
        {"timm_mobilevitv2_050.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 1370593},
        {"timm_nest_tiny.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 17057608},
        {"timm_poolformer_s12.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 11915176},
        {"timm_pvt_v2_b0.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 3666760},
        {"timm_repghostnet_050.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 2313968},
        {"timm_repvgg_a0.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 9108968},
        {"timm_resmlp_12_224.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 15350872},
        {"timm_resnet26d.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 16014408},
        {"timm_selecsls42b.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 32458248},
        {"timm_semnasnet_075.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 2912278},
        {"timm_seresnext26d_32x4d.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 16809512},
        {"timm_starnet_s1.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 2869168},
        {"timm_tf_efficientnet_lite0.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 4652008},
        {"timm_tinynet_e.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 2042972},
        {"timm_visformer_tiny.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 10321368},
        {"timm_vovnet39a.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 22600296},
        {"tv_convnext_tiny.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 28589128},
        {"tv_deeplabv3_mobilenet.trace.pt", {{{1, 3, 128, 128}, at::kFloat}}, 11025477},
        {"tv_densenet121.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 7978856},
        {"tv_densenet121.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 7978856},
        {"tv_efficientnet_b0.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 5288548},
        {"tv_efficientnet_b0.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 5288548},
        {"tv_fcn_resnet50.script.pt", {{{1, 3, 128, 128}, at::kFloat}}, 32957013},
        {"tv_googlenet.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 6624904},
        {"tv_mobilenet_v2.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 3504872},
        {"tv_mobilenet_v2.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 3504872},
        {"tv_mobilenet_v3_small.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 2542856},
        {"tv_r3d_18.trace.pt", {{{1, 3, 4, 32, 32}, at::kFloat}}, 33371472},
        {"tv_regnet_y_400mf.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 4344144},
        {"tv_resnet18.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 11689512},
        {"tv_resnet18.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 11689512},
        {"tv_resnet50.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 25557032},
        {"tv_resnext50_32x4d.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 25028904},
        {"tv_shufflenet_v2_x1_0.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 2278604},
        {"tv_squeezenet1_1.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 1235496},
        {"tv_ssdlite320.script.pt", {{{1, 3, 320, 320}, at::kFloat}}, 3440060},
        {"tv_swin_t.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 28288354},
        {"tv_swin_t.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 28288354},
        {"tv_vgg11_bn.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 132868840},
        {"tv_vit_b_16.script.pt", {{{1, 3, 224, 224}, at::kFloat}}, 86567656},
        {"tv_vit_b_16.trace.pt", {{{1, 3, 224, 224}, at::kFloat}}, 86567656},
    };
    return kModels;
}

const std::vector<ZooModel>& real_models() {
    static const std::vector<ZooModel> kModels = {
        {"cifar10/resnet20.pt", {{{2, 3, 32, 32}, at::kFloat}}, 269722},
        {"cora/gcn.pt", {{{2708, 1433}, at::kFloat}, {{2, 13264}, at::kLong}, {{13264}, at::kFloat}}, 23063},
        {"digits/mlp.pt", {{{4, 64}, at::kFloat}}, 11386},
        {"etth1/light_ts.pt", {{{4, 96, 7}, at::kFloat}}, 52106},
        {"fashion/cnn.pt", {{{2, 1, 28, 28}, at::kFloat}}, 421738},
        {"fashion/mlp.pt", {{{4, 1, 28, 28}, at::kFloat}}, 266610},
        {"fsdd/cnn_gru.pt", {{{2, 1, 8000}, at::kFloat}}, 150954},
        {"stsb/minilm_l6.pt", {{{2, 33}, at::kLong}, {{2, 33}, at::kLong}}, 11583744},
    };
    return kModels;
}

std::string zoo_path(const ZooModel& model) {
    const bool in_zoo = model.file.find('/') == std::string::npos;
    return data_path(in_zoo ? "zoo/" + model.file : model.file).string();
}

Inputs zoo_inputs(const ZooModel& model, int64_t repeat_batch) {
    Inputs inputs;
    int integers = 0;
    for (const auto& spec : model.inputs) {
        auto shape = spec.shape;
        shape[0] *= repeat_batch;
        const auto count = c10::multiply_integers(shape);
        at::Tensor tensor;
        if (spec.dtype == at::kLong) {
            const bool mask = ++integers == 2;
            tensor = mask ? at::ones({count}, at::kLong) : at::arange(count).mul(7).remainder(499) + 1;
        } else {
            tensor = (at::arange(count, at::kDouble) * 0.37).sin().to(spec.dtype);
        }
        inputs.emplace_back(tensor.reshape(shape));
    }
    return inputs;
}

std::string test_name(const std::string& file) {
    std::string name;
    for (const char c : file) name += std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
    return name;
}

std::string expected_refusal(const std::string& file) {
    const char* source = std::getenv("COPPICE_SOURCE");
    std::ifstream lines(std::string(source ? source : ".") + "/tests/zoo/expectations");
    for (std::string line; std::getline(lines, line);) {
        if (line.empty() || line[0] == '#') continue;
        const auto space = line.find(' ');
        if (line.substr(0, space) == file) return line.substr(line.find_first_not_of(' ', space));
    }
    return "";
}

void expect_table(const std::string& file, const std::string& table) {
    const char* source = std::getenv("COPPICE_SOURCE");
    const auto path = std::filesystem::path(source ? source : ".") / "tests/zoo" / file;
    if (const char* update = std::getenv("COPPICE_UPDATE_GOLDEN"); update && *update) {
        write_atomically(path, table);
        GTEST_SKIP() << "wrote " << path;
    }
    EXPECT_EQ(read_text(path), table);
}

}  // namespace coppice::testing
