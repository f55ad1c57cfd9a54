// Cross-layer equalisation around ReLU6: SQNR of an int8 MobileNetV2's output.
//
//   equalize_relu6 MODEL     a Markdown table on standard output; MODEL is zoo/tv_mobilenet_v2.trace.pt
//
// The file's weights are random. "Spread" multiplies every channel between two layers by a factor drawn from a
// log-normal distribution (sigma 1) and divides the next layer's weights by it: unequal channels, as arXiv 1906.04721
// finds them in trained MobileNets. ReLU6 makes that another function; the spread model is the float model that int8 is
// compared with. Ranges from 4 batches of 4 normal images by `histogram`, SQNR on 16 others. Least: of the layers, each
// by itself.
#include <coppice/quantize.h>

#include <cmath>
#include <cstdio>
#include <limits>

namespace {

using namespace coppice;
using namespace coppice::quantize;

constexpr int kThreads = 1;
constexpr double kSigma = 1;

std::vector<Inputs> images(int64_t batches, at::Generator& generator) {
    std::vector<Inputs> all;
    for (int64_t i = 0; i < batches; ++i) all.push_back({at::randn({4, 3, 224, 224}, generator)});
    return all;
}

/// Scales weights and shifts of batch norms that a ReLU6 follows, and the inputs of the convolution behind it back.
int spread(Model& model, at::Generator& generator) {
    int count = 0;
    const auto multiply = [&](const torch::jit::Value* value, const at::Tensor& factor) {
        set_tensor(model, *attribute_name(value), parameter_of(model, value)->detach() * factor);
    };
    const auto only = [](const torch::jit::Value* value) {
        return value->uses().size() == 1 ? value->uses()[0].user : nullptr;
    };
    for (auto* node : all_nodes(*model.graph())) {
        if (node->kind() != torch::jit::aten::batch_norm) continue;
        auto* clamp = only(node->output());
        const std::string op = clamp ? clamp->kind().toUnqualString() : "";
        if (op != "hardtanh_" && op != "hardtanh" && op != "relu6" && op != "relu6_") continue;
        auto* next = only(clamp->output());
        const auto conv = next ? as_conv(next) : std::nullopt;
        if (!conv) continue;
        const auto channels = parameter_of(model, node->input(1))->size(0);
        const auto factor = (at::randn({channels}, generator) * kSigma).exp();
        multiply(node->input(1), factor);
        multiply(node->input(2), factor);
        multiply(conv->weight, conv->groups == 1 ? factor.reciprocal().reshape({1, -1, 1, 1})
                                                 : factor.reciprocal().reshape({-1, 1, 1, 1}));
        ++count;
    }
    return count;
}

void rows(const Model& model, const char* name, at::Generator& generator) {
    const auto calibration = images(4, generator), test = images(4, generator);
    for (const bool per_channel : {false, true}) {
        for (const char* relu6 : {"", "keep", "calibrated", "relu"}) {
            StaticOptions options;
            options.per_channel = per_channel;
            options.equalize = *relu6;
            if (*relu6) options.equalize_relu6 = relu6;
            options.min_sqnr_db = -100;  // every layer stays in int8
            const auto plan = plan_static(model, {calibration[0][0].toTensor().slice(0, 0, 1)}, calibration, options);
            const auto int8 = convert(plan);
            double signal = 0, noise = 0, moved = 0, least = std::numeric_limits<double>::infinity();
            for (const auto& batch : test) {
                const auto exact = model.forward(batch).toTensor();
                signal += exact.square().sum().item<double>();
                noise += (int8.forward(batch).toTensor() - exact).square().sum().item<double>();
                moved += (plan.model().forward(batch).toTensor() - exact).square().sum().item<double>();
            }
            for (const auto& layer : plan.layers())
                if (layer.int8 && layer.parameters > 0) least = std::min(least, layer.sqnr_db);
            char before[32] = "equal";
            if (moved > 1e-8 * signal) std::snprintf(before, sizeof before, "%.1f", 10 * std::log10(signal / moved));
            std::printf("| %s | %s | %s | %s | %.1f | %.1f |\n", name, per_channel ? "channel" : "tensor",
                        *relu6 ? relu6 : "not equalized", before, 10 * std::log10(signal / noise), least);
            std::fflush(stdout);
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: %s MODEL\n", argv[0]);
        return 2;
    }
    torch::NoGradGuard no_grad;
    torch::set_num_threads(kThreads);
    auto generator = at::make_generator<at::CPUGeneratorImpl>(0);
    std::printf("| weights of the file | scale per | `equalize_relu6` | float, dB | int8, dB | least layer, dB |\n");
    std::printf("|---|---|---|---|---|---|\n");
    auto model = Model::load(argv[1]);
    rows(model, "as they are", generator);
    const int count = spread(model, generator);
    rows(model, ("spread in " + std::to_string(count) + " places").c_str(), generator);
    return 0;
}
