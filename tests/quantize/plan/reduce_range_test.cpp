// Weights of 7 bits: sums of two int8 products stay within 16 bits, in which CPUs without VNNI keep them.
#include <cmath>

#include "../layer_check.h"
#include "plan/plan.h"

#if __has_include(<fbgemm/Utils.h>) && defined(__x86_64__)
#include <fbgemm/Utils.h>
#define HAS_FBGEMM 1
#endif

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

/// The int8 weights of every static layer, [out, in, ...].
std::vector<at::Tensor> int8_weights(const Model& model, const Inputs& inputs = {sine({2, 3, 8, 8})}) {
    std::vector<at::Tensor> weights;
    NodeHooks hooks;
    hooks.before = [&](const torch::jit::Node* node, std::vector<c10::IValue>& stack) {
        const std::string op = node->kind().toQualString();
        const bool conv = op.rfind("quantized::conv2d", 0) == 0;
        if (!conv && op.rfind("quantized::linear", 0) != 0) return;
        const auto packed = stack[op.find("_q_dq_") != std::string::npos ? 3 : 1];
        weights.push_back(testing::call(conv ? "quantized::conv2d_unpack" : "quantized::linear_unpack", {packed})[0]
                              .toTensor()
                              .int_repr());
    };
    run_nodes(model, inputs, hooks);
    return weights;
}

/// Whether 255 times the two largest and the two smallest weights of each row fit 16 bits: no pair can be worse.
bool worst_pairs_fit(const at::Tensor& weight) {
    const auto rows = weight.to(at::kLong).reshape({weight.size(0), -1});
    const auto pair = [&](const at::Tensor& values) {
        return 255 * std::get<0>(values.topk(std::min<int64_t>(2, values.size(1)), 1)).sum(1).max().item<int64_t>();
    };
    return pair(rows) <= 32767 && -pair(-rows) >= -32768;
}

TEST(ReduceRange, NoTwoProductsOfAnyWeightsLeave16Bits) {
    const std::vector<Inputs> data{{sine({4, 3, 8, 8}, 1.2)}};
    std::vector<std::pair<std::string, std::shared_ptr<const Rounding>>> roundings{
        {"none", nullptr}, {"gptq", gptq()}, {"brecq", brecq({5, 4, "mse"})}};
    for (const bool per_channel : {true, false})
        for (const bool fit : {true, false})
            for (const auto& [name, rounding] : roundings) {
                SCOPED_TRACE(name + (per_channel ? " per channel" : " one scale") + (fit ? ", fitted" : ""));
                StaticOptions options;
                options.observer = minmax();
                options.per_channel = per_channel;
                options.fit_weights = fit;
                options.rounding = rounding;
                options.reduce_range = "on";
                const auto weights = int8_weights(convert(plan_static(residual_model(), data[0], data, options)));
                ASSERT_EQ(weights.size(), 5u);
                int64_t largest = 0;
                for (const auto& weight : weights) {
                    EXPECT_TRUE(worst_pairs_fit(weight));
                    largest = std::max(largest, weight.to(at::kLong).abs().max().item<int64_t>());
                }
                EXPECT_GE(largest, 60);  // all 7 bits are used
            }
    StaticOptions wide;
    wide.observer = minmax();
    wide.reduce_range = "off";
    bool fit = true;
    for (const auto& weight : int8_weights(convert(plan_static(residual_model(), data[0], data, wide))))
        fit = fit && worst_pairs_fit(weight);
    EXPECT_FALSE(fit);
}

TEST(ReduceRange, IsAutomaticWhereProductsAreNotExact) {
    EXPECT_EQ(widest_weight("auto", /*exact_products=*/true), 8);
    EXPECT_EQ(widest_weight("auto", false), 7);
    EXPECT_EQ(widest_weight("on", true), 7);
    EXPECT_EQ(widest_weight("off", false), 8);
    EXPECT_ERROR(widest_weight("maybe", true), InvalidArgument, "auto");
}

#ifdef HAS_FBGEMM
/// fbgemm as on a CPU with AVX2 alone, for as long as it lives.
struct WithoutVnni {
    WithoutVnni() { fbgemm::fbgemmForceIsa(fbgemm::inst_set_t::avx2); }
    ~WithoutVnni() { fbgemm::fbgemmForceIsa(fbgemm::inst_set_t::anyarch); }
};

TEST(ReduceRange, KeepsTheKernelsOfACpuWithoutVnniFromSaturating) {
    const auto known = engines();
    if (std::find(known.begin(), known.end(), "fbgemm") == known.end() || !fbgemm::fbgemmHasAvx2Support())
        GTEST_SKIP() << "this LibTorch has no fbgemm here";
    const WithoutVnni without;
    // Inputs and weights at their largest integers, as far as they go: 2 * 255 * 127 > 2^15.
    const auto linear = build_model({{"f.weight", at::full({16, 64}, 0.5)}},
                                    "def forward(self, x):\n"
                                    "    return torch.linear(x, self.f.weight)\n");
    const auto conv = build_model({{"c.weight", at::full({16, 8, 3, 3}, 0.5)}},
                                  "def forward(self, x):\n    return torch.conv2d(x, self.c.weight)\n");
    for (const auto& [model, inputs] :
         {std::pair<Model, Inputs>{linear, {at::ones({8, 64})}}, {conv, {at::ones({2, 8, 6, 6})}}})
        for (const std::string reduce : {"off", "on"}) {
            StaticOptions options;
            options.observer = minmax();
            options.engine = "fbgemm";
            options.reduce_range = reduce;
            const auto plan = plan_static(model, inputs, std::vector<Inputs>{inputs}, options);
            const auto exact = fake_quantized(plan, inputs).toTensor();
            const double error = max_difference(convert(plan).forward(inputs).toTensor(), exact);
            const double largest = exact.max().item<double>();
            if (reduce == "on")
                EXPECT_LE(error, 1.01 * largest / 255);  // one step of the output
            else
                EXPECT_GT(error, 0.3 * largest);  // half of every pair is lost
        }
}
#endif

TEST(ReduceRange, DepthwiseConvolutionsAreExactOnTheDefaultEngine) {
    // Every product as large as it gets: kernels that add two of them in 16 bits are off by half of the range.
    for (const int64_t dims : {2, 3})
        for (const int64_t channels : {64, 104}) {
            SCOPED_TRACE(std::to_string(dims) + "d, " + std::to_string(channels) + " channels");
            std::vector<int64_t> shape{channels, 1}, image{1, channels};
            for (int64_t i = 0; i < dims; ++i) {
                shape.push_back(3);
                image.push_back(6);
            }
            const auto model = build_model(
                {{"d.weight", at::ones(shape)}},
                "def forward(self, x):\n    return torch.conv" + std::to_string(dims) + "d(x, self.d.weight, None, " +
                    (dims == 2 ? "[1, 1], [1, 1], [1, 1], " : "[1, 1, 1], [1, 1, 1], [1, 1, 1], ") +
                    std::to_string(channels) + ")\n");
            const std::vector<Inputs> data{{at::ones(image)}};
            StaticOptions options;
            options.observer = minmax();
            const auto int8 = convert(plan_static(model, data[0], data, options));
            const auto checked = testing::check_every_layer(int8, data[0]);
            EXPECT_EQ(checked["quantized::conv" + std::to_string(dims) + "d"], 1);
            EXPECT_LE(checked.worst_quanta, 1.01) << checked.worst;
            EXPECT_TRUE(int8_warnings(int8, exact_int8_products()).empty());
            if (dims == 2 && exact_int8_products()) {
                EXPECT_EQ(int8_weights(int8, data[0]).at(0).max().item<int64_t>(), channels == 64 ? 127 : 63);
            }
            if (channels == 64) continue;
            options.reduce_range = "off";
            const auto wide = convert(plan_static(model, data[0], data, options));
            ASSERT_EQ(int8_warnings(wide, true).size(), 1u);
            EXPECT_THAT(int8_warnings(wide, true)[0], ::testing::HasSubstr("depthwise convolutions d"));
        }
}

TEST(ReduceRange, DepthwiseConvolutionsAreExactOnEngineFbgemmWhateverTheKernels) {
    const auto known = engines();
    if (std::find(known.begin(), known.end(), "fbgemm") == known.end())
        GTEST_SKIP() << "this LibTorch has no fbgemm here";
    struct Restore {
        std::string name = engine();
        ~Restore() { set_engine(name); }
    } restore;
    for (const std::string conv : {"packed", "fused"})
        for (const int64_t channels : {64, 104})
            for (const std::string activation : {"", "torch.silu"}) {
                if (conv == "fused" && !exact_int8_products()) continue;  // needs VNNI
                SCOPED_TRACE(conv + ", " + std::to_string(channels) + " channels " + activation);
                // Every product as large as it gets.
                const auto model = build_model({{"d.weight", at::ones({channels, 1, 3, 3})}},
                                               "def forward(self, x):\n    return " + activation +
                                                   "(torch.conv2d(x, self.d.weight, None, [1, 1], [1, 1], [1, 1], " +
                                                   std::to_string(channels) + "))\n");
                const std::vector<Inputs> data{{at::ones({1, channels, 6, 6})}};
                StaticOptions options;
                options.observer = minmax();
                options.engine = "fbgemm";
                options.conv = conv;
                const auto plan = plan_static(model, data[0], data, options);
                const auto int8 = convert(plan);
                set_engine("fbgemm");
                const auto exact = model.forward(data[0]).toTensor();
                EXPECT_LE(max_difference(int8.forward(data[0]).toTensor(), exact),
                          0.02 * exact.max().item<double>());  // a step or two; saturated sums lose half
                EXPECT_TRUE(int8_warnings(int8, exact_int8_products()).empty());
                options.reduce_range = "off";
                options.conv = "packed";
                const auto wide = convert(plan_static(model, data[0], data, options));
                ASSERT_EQ(int8_warnings(wide, true).size(), 1u);
                EXPECT_THAT(int8_warnings(wide, true)[0], ::testing::HasSubstr("depthwise convolutions d"));
                set_engine("x86");
                EXPECT_EQ(int8_warnings(wide, true).size(), channels > 100 ? 1u : 0u);
            }
}

TEST(Int8Warnings, NameTheLayersWhoseSumsCanSaturateOnTheCpuGiven) {
    TemporaryFolder folder;
    const std::vector<Inputs> data{{sine({4, 3, 8, 8}, 1.2)}};
    for (const std::string reduce : {"on", "off"}) {
        StaticOptions options;
        options.observer = minmax();
        options.reduce_range = reduce;
        convert(plan_static(residual_model(), data[0], data, options)).save(folder / "int8.pt");
        const auto loaded = Model::load(folder / "int8.pt");
        EXPECT_TRUE(int8_warnings(loaded, /*exact_products=*/true).empty());
        const auto warnings = int8_warnings(loaded, false);
        if (reduce == "on") {
            EXPECT_TRUE(warnings.empty()) << warnings[0];
            continue;
        }
        ASSERT_EQ(warnings.size(), 1u);
        EXPECT_THAT(warnings[0], ::testing::HasSubstr("8-bit weights of conv1, "));
        EXPECT_THAT(warnings[0], ::testing::HasSubstr("and 2 more"));
        EXPECT_THAT(warnings[0], ::testing::HasSubstr("reduce_range: on"));
    }
    EXPECT_TRUE(int8_warnings(residual_model(), false).empty());  // float
}

TEST(Int8Warnings, SeeFusedAndDynamicLayersToo) {
    const auto model = build_model({{"a.weight", sine({64, 32}, 0.2)}, {"b.weight", sine({16, 64}, 0.1)}},
                                   "def forward(self, x):\n"
                                   "    y = torch.gelu(torch.linear(x, self.a.weight))\n"
                                   "    return torch.softmax(torch.linear(y, self.b.weight), -1)\n");
    const Inputs x{sine({8, 32})};
    const auto image = build_model({{"c.weight", sine({8, 3, 3, 3}, 0.3)}},
                                   "def forward(self, x):\n"
                                   "    return torch.silu(torch.conv2d(x, self.c.weight))\n");
    StaticOptions options;
    options.linear = options.conv = "fused";
    for (const std::string reduce : {"on", "off"}) {
        options.reduce_range = reduce;
        for (const auto& [net, input] : {std::pair<Model, Inputs>{model, x}, {image, {sine({2, 3, 8, 8})}}}) {
            const auto fused = convert(plan_static(net, input, std::vector<Inputs>{input}, options));
            bool onednn = false;
            for (const auto* node : all_nodes(*fused.graph()))
                onednn = onednn || std::string(node->kind().toQualString()).rfind("onednn::q", 0) == 0;
            EXPECT_TRUE(onednn);
            EXPECT_EQ(int8_warnings(fused, false).size(), reduce == "on" ? 0u : 1u);
        }
    }
    // Dynamic layers round their inputs to 7 bits where they were made without VNNI.
    const auto gru = build_model({{"r.wi", sine({48, 12}, 0.3)},
                                  {"r.wh", sine({48, 16}, 0.25)},
                                  {"r.bi", sine({48}, 0.1)},
                                  {"r.bh", sine({48}, 0.2)}},
                                 "def forward(self, x):\n"
                                 "    h = torch.zeros(1, x.size(0), 16)\n"
                                 "    y, n = torch.gru(x, h, [self.r.wi, self.r.wh, self.r.bi, self.r.bh], True, 1, "
                                 "0.0, False, False, True)\n"
                                 "    return y\n");
    Context context;
    for (const auto& [net, input] : {std::pair<Model, Inputs>{model, x}, {gru, {sine({2, 5, 12})}}}) {
        context.example = input;
        const auto int8 = dynamic_int8()->apply(net, context);
        EXPECT_EQ(int8_warnings(int8, false).size(), exact_int8_products() ? 1u : 0u);
    }
}

}  // namespace
}  // namespace coppice::quantize
