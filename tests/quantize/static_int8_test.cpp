#include <torch/csrc/jit/testing/file_check.h>

#include "layer_check.h"
#include "layers/layers.h"
#include "plan/plan.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

Context context_of(int64_t examples = 32) {
    Context context;
    context.example = {sine({1, 3, 8, 8})};
    context.data.calibration =
        tensor_dataset({sine({examples, 3, 8, 8}, 1.5)}, at::zeros({examples}, at::kLong), "sine images");
    return context;
}

StaticOptions small_batches() {
    StaticOptions options;
    options.conv = "packed";  // not what the clock says
    options.batches = 2;
    options.batch_size = 16;
    return options;
}

std::unique_ptr<Stage> from_recipe(std::vector<std::pair<std::string, std::string>> scalars) {
    Options options("quantize.static", std::move(scalars));
    auto stage = find_entry(stages(), "stage", "quantize.static", "test").make(options);
    options.done();
    return stage;
}

TEST(StaticInt8, QuantizesAResidualNetworkFromEndToEnd) {
    const auto model = residual_model();
    auto context = context_of();
    const auto int8 = static_int8(small_batches())->apply(model, context);
    torch::jit::testing::FileCheck()
        .check_count("aten::quantize_per_tensor", 1, true)
        ->check("quantized::conv2d_relu")
        ->check("quantized::conv2d")
        ->check("quantized::add_relu")
        ->check_count("aten::dequantize", 1, true)
        ->check("return")
        ->run(*int8.graph());
    torch::jit::testing::FileCheck().check_not("aten::conv2d")->check_not("batch_norm")->run(*int8.graph());
    const auto checked = testing::check_every_layer(int8, {sine({4, 3, 8, 8}, 1.2)});
    EXPECT_EQ(checked["quantized::conv2d"] + checked["quantized::conv2d_relu"], 4);
    EXPECT_EQ(checked["quantized::add_relu"], 1);
    EXPECT_LE(checked.worst_quanta, 1.01) << checked.worst;  // a tie, and a scale in float32
    EXPECT_EQ(context.facts["int8_layers"], 5);
    EXPECT_EQ(context.facts["float_layers"], 0);
    EXPECT_EQ(context.facts["batch_norms_folded"], 4);
    // 8-bit rounding of a five-layer network: an output of the size of the largest moves by a few percent at most.
    const Inputs image{sine({4, 3, 8, 8}, 1.4)};
    const auto before = model.forward(image).toTensor();
    EXPECT_LE(max_difference(int8.forward(image).toTensor(), before), 0.05 * before.abs().max().item<double>());
}

TEST(StaticInt8, EveryLayerHasItsTimeBeforeAndAfter) {
    auto context = context_of();
    static_int8(small_batches())->apply(residual_model(), context);
    ASSERT_EQ(context.facts["layers"].size(), 5u);
    for (const auto& row : context.facts["layers"]) {
        EXPECT_GT(row.at("seconds_before").get<double>(), 0) << row;
        EXPECT_GT(row.at("seconds_after").get<double>(), 0) << row;
    }
}

TEST(StaticInt8, WeightsThatStayInFloatCountWhateverTheLayerIs) {
    const auto model = build_model(
        {{"e.weight", sine({50, 8})},
         {"g.w_ih", sine({24, 8}, 0.3)},
         {"g.w_hh", sine({24, 8}, 0.3)},
         {"g.b_ih", sine({24}, 0.1)},
         {"g.b_hh", sine({24}, 0.1)},
         {"f.weight", sine({5, 8}, 0.4)}},
        "def forward(self, x):\n"
        "    y = torch.embedding(self.e.weight, x)\n"
        "    y, h = torch.gru(y, torch.zeros([1, y.size(0), 8]), [self.g.w_ih, self.g.w_hh, self.g.b_ih, self.g.b_hh], "
        "True, 1, 0.0, False, False, True)\n"
        "    return torch.linear(y, self.f.weight)\n");
    Context context;
    const auto indices = at::arange(24).remainder(50).reshape({4, 6});
    context.example = {indices};
    context.data.calibration = tensor_dataset({indices}, at::zeros({4}, at::kLong), "indices");
    static_int8(small_batches())->apply(model, context);
    EXPECT_EQ(context.facts["int8_layers"], 1);
    EXPECT_EQ(context.facts["float_layers"], 2);
    EXPECT_EQ(context.facts["int8_weights"], 40);
    EXPECT_EQ(context.facts["float_weights"], 50 * 8 + 2 * 24 * 8);
    int reasons = 0;
    for (const auto& row : context.facts["layers"]) reasons += row.contains("reason");
    EXPECT_EQ(reasons, 2);
}

TEST(LayerSeconds, CountAllThatRunsUntilTheNextLayerAndLeaveOutLayersThatOneModelLacks) {
    // Behind the first layer runs a product that takes a thousand times as long as either layer.
    const std::string source =
        "def forward(self, x):\n"
        "    a = torch.linear(x, self.first.weight, self.first.bias)\n"
        "    b = torch.matmul(torch.matmul(self.big, self.big), a.t()).t()\n"
        "    return torch.linear(b, self.second.weight, self.second.bias)\n";
    const auto with = [&](const std::string& second) {
        std::string renamed = source;
        for (size_t at; (at = renamed.find("second")) != std::string::npos;) renamed.replace(at, 6, second);
        return build_model({{"first.weight", sine({256, 8})},
                            {"first.bias", sine({256})},
                            {"big", sine({256, 256})},
                            {second + ".weight", sine({4, 256})},
                            {second + ".bias", sine({4})}},
                           renamed);
    };
    Context context;
    context.example = {sine({1, 8})};
    context.facts["layers"] = {{{"layer", "first"}}, {{"layer", "last"}}};
    add_layer_seconds(context, with("last"), with("last"));
    const auto seconds = [&](size_t row, const char* name) {
        return context.facts["layers"][row].at(name).get<double>();
    };
    for (const char* name : {"seconds_before", "seconds_after"})
        EXPECT_GT(seconds(0, name), 3 * seconds(1, name)) << name;

    context.facts["layers"] = {{{"layer", "first"}}, {{"layer", "last"}}};
    add_layer_seconds(context, with("last"), with("other"));
    EXPECT_TRUE(context.facts["layers"][0].contains("seconds_after"));
    EXPECT_FALSE(context.facts["layers"][1].contains("seconds_before"));
}

TEST(StaticInt8, LeavesItsArgumentAsItWas) {
    const auto model = residual_model();
    const auto graph = model.graph()->toString();
    const auto before = model.forward({sine({2, 3, 8, 8})}).toTensor();
    auto context = context_of();
    static_int8(small_batches())->apply(model, context);
    EXPECT_EQ(model.graph()->toString(), graph);
    EXPECT_TRUE(at::equal(model.forward({sine({2, 3, 8, 8})}).toTensor(), before));
}

TEST(StaticInt8, GivesTheSameBitsTwice) {
    const auto model = residual_model();
    auto one = context_of(), two = context_of();
    const auto a = static_int8(small_batches())->apply(model, one), b = static_int8(small_batches())->apply(model, two);
    const Inputs image{sine({3, 3, 8, 8})};
    EXPECT_TRUE(at::equal(a.forward(image).toTensor(), b.forward(image).toTensor()));
}

TEST(StaticInt8, SavedModelGivesTheSameBitsInStockLibTorchAndWhenLoadedAgain) {
    TemporaryFolder folder;
    auto context = context_of();
    const auto int8 = static_int8(small_batches())->apply(residual_model(), context);
    int8.save(folder / "int8.pt");
    const Inputs image{sine({3, 3, 8, 8})};
    const auto expected = int8.forward(image).toTensor();
    auto stock = torch::jit::load((folder / "int8.pt").string());
    EXPECT_TRUE(at::equal(stock.forward(image).toTensor(), expected));
    const auto again = Model::load(folder / "int8.pt");
    EXPECT_TRUE(at::equal(again.forward(image).toTensor(), expected));
    EXPECT_TRUE(at::equal(again.clone().forward(image).toTensor(), expected));
}

TEST(StaticInt8, WeightsTakeOneByteEachInTheFile) {
    TemporaryFolder folder;
    // Random bits do not deflate: the file cannot be smaller than its weights, and is not much larger.
    at::manual_seed(1);
    const auto model = build_model({{"c.weight", at::randn({256, 128, 3, 3})}},
                                   "def forward(self, x):\n    return torch.conv2d(x, self.c.weight)\n");
    Context context;
    context.example = {sine({1, 128, 4, 4})};
    context.data.calibration = tensor_dataset({sine({4, 128, 4, 4})}, at::zeros({4}, at::kLong), "sine");
    static_int8(small_batches())->apply(model, context).save(folder / "int8.pt");
    const double weights = 256 * 128 * 9;
    const auto size = static_cast<double>(std::filesystem::file_size(folder / "int8.pt"));
    EXPECT_LT(size, 1.05 * weights);  // scales (8 bytes a channel), code, directory
    EXPECT_GT(size, 0.8 * weights);   // a bell of 8-bit values holds about 7 bits
}

TEST(StaticInt8, KeepsIgnoredLayersInFloatAndSaysWhy) {
    auto options = small_batches();
    options.ignore = {"conv[23]"};
    auto context = context_of();
    const auto int8 = static_int8(options)->apply(residual_model(), context);
    torch::jit::testing::FileCheck().check_count("aten::conv2d", 2, true)->run(*int8.graph());
    int kept = 0;
    for (const auto& change : context.changes)
        if (change.layer == "conv2" || change.layer == "conv3") {
            EXPECT_EQ(change.action, "kept");
            EXPECT_EQ(change.reason, "ignore: conv[23]");
            ++kept;
        }
    EXPECT_EQ(kept, 2);
    EXPECT_EQ(context.facts["float_layers"], 2);
}

TEST(StaticInt8, KeepsTheFirstAndLastLayerInFloatWhenAsked) {
    auto context = context_of();
    const auto int8 =
        from_recipe({{"first_last", "float"}, {"batches", "1"}, {"conv", "packed"}})->apply(residual_model(), context);
    torch::jit::testing::FileCheck()
        .check("aten::conv2d")
        ->check("quantized::conv2d")
        ->check("aten::linear")
        ->run(*int8.graph());
    EXPECT_EQ(context.facts["int8_layers"], 3);
}

TEST(StaticInt8, ReadsEveryObserverFromARecipe) {
    for (const auto& row : observers()) {
        auto context = context_of();
        const auto int8 = from_recipe({{"observer", row.name}, {"batches", "2"}, {"batch_size", "8"}})
                              ->apply(residual_model(), context);
        EXPECT_EQ(context.facts["int8_layers"], 5) << row.name;
    }
}

TEST(StaticInt8, ChoosesAnEngineByMeasuringAndRestoresTheOneInForce) {
    const auto before = engine();
    auto context = context_of();
    const auto int8 = from_recipe({{"engine", "auto"}})->apply(residual_model(), context);
    EXPECT_EQ(engine(), before);
    const auto seconds = context.facts["engine_seconds"];
    ASSERT_TRUE(seconds.contains("x86"));
    EXPECT_EQ(context.facts["linear"], "packed");  // its linear layer is between int8 and the model's end
    const auto chosen = context.facts["engine"].get<std::string>() +
                        (context.facts["conv"] == "fused_large" ? ", conv fused_large" : "");
    for (const auto& [name, value] : seconds.items())
        EXPECT_GE(value.get<double>(), 0.97 * 0.97 * 0.97 * seconds[chosen].get<double>()) << name;
}

TEST(StaticInt8, ChoosesTheKernelsOfLinearLayersByMeasuring) {
    if (!exact_int8_products()) GTEST_SKIP() << "fused linear layers need VNNI";
    const auto model = build_model({{"up.weight", sine({12, 8}, 0.4)}, {"down.weight", sine({8, 12}, 0.4)}},
                                   "def forward(self, x):\n"
                                   "    y = torch.gelu(torch.linear(x, self.up.weight))\n"
                                   "    return torch.softmax(torch.linear(y, self.down.weight), -1)\n");
    for (const char* linear : {"auto", "fused", "packed"}) {
        auto context = context_of();
        const auto int8 = from_recipe({{"linear", linear}})->apply(model, context);
        const auto chosen = context.facts["linear"].get<std::string>();
        if (std::string(linear) != "auto") {
            EXPECT_EQ(chosen, linear);
            EXPECT_FALSE(context.facts.contains("engine_seconds"));
        } else {
            const auto seconds = context.facts["engine_seconds"];
            ASSERT_EQ(seconds.size(), 2u) << seconds;
            const bool fused = seconds["x86, linear fused"].get<double>() < 0.97 * seconds["x86"].get<double>();
            EXPECT_EQ(chosen, fused ? "fused" : "packed");
        }
        torch::jit::testing::FileCheck()
            .check_count(chosen == "fused" ? "onednn::qlinear_pointwise" : "quantized::linear", 2)
            ->run(*int8.graph());
    }
}

TEST(StaticInt8, ChoosesTheKernelsOfConvolutionsByMeasuring) {
    if (!exact_int8_products()) GTEST_SKIP() << "fused convolutions need VNNI";
    const auto model = build_model({{"a.weight", sine({8, 3, 3, 3}, 0.4)}, {"b.weight", sine({4, 8, 1, 1}, 0.4)}},
                                   "def forward(self, x):\n"
                                   "    y = torch.silu_(torch.conv2d(x, self.a.weight))\n"
                                   "    return torch.conv2d(y, self.b.weight)\n");
    for (const std::string conv : {"auto", "fused", "fused_large", "packed"}) {
        for (const int64_t side : {8, 256}) {
            auto context = context_of();
            context.example = {sine({4, 3, side, side})};
            const auto int8 = from_recipe({{"conv", conv}})->apply(model, context);
            const auto chosen = context.facts["conv"].get<std::string>();
            if (conv != "auto") {
                EXPECT_EQ(chosen, conv);
            } else if (side == 8) {
                EXPECT_EQ(chosen, "packed");  // so small that it is not even tried
                EXPECT_FALSE(context.facts.contains("engine_seconds"));
            } else {
                const auto seconds = context.facts["engine_seconds"];
                ASSERT_EQ(seconds.size(), 2u) << seconds;
                const bool fused = seconds["x86, conv fused_large"].get<double>() < 0.97 * seconds["x86"].get<double>();
                EXPECT_EQ(chosen, fused ? "fused_large" : "packed");
            }
            const bool fuses = chosen == "fused" || (chosen == "fused_large" && side == 256);
            torch::jit::testing::FileCheck()
                .check_count("onednn::qconv2d_pointwise", fuses ? 1 : 0, /*exactly=*/true)
                ->run(*int8.graph());
        }
    }
}

TEST(StaticInt8, KernelsThatDoNotRunAModelAreLeftOutOfTheChoice) {
    /// Keeps warnings.
    struct Warnings final : Log {
        void write(const std::string& level, const std::string& message) override {
            if (level == "warning") all.push_back(message);
        }
        std::vector<std::string> all;
    };
    const auto good = residual_model();
    const auto broken = build_model({}, "def forward(self, x):\n    return x.view([7, 7])\n");
    const Inputs x{sine({1, 3, 8, 8})};
    const std::vector<Kernels> candidates{
        {"x86", "packed", "packed"}, {"x86", "packed", "fused_large"}, {"x86", "fused", "packed"}};
    for (size_t failing = 0; failing < 8; ++failing) {  // every choice of them
        const auto fails = [&](const Kernels& kernels) {
            for (size_t i = 0; i < 3; ++i)
                if (candidates[i].name() == kernels.name()) return (failing >> i) % 2 == 1;
            return true;
        };
        const auto left = static_cast<size_t>(
            std::count_if(candidates.begin(), candidates.end(), [&](const Kernels& one) { return !fails(one); }));
        Warnings log;
        Json seconds = Json::object();
        const auto choose = [&] {
            return fastest_kernels(
                candidates, [&](const Kernels& kernels) { return fails(kernels) ? broken : good; }, x, seconds, log);
        };
        if (left == 0) {
            EXPECT_THROW(choose(), std::exception);
        } else {
            EXPECT_FALSE(fails(choose())) << failing;
        }
        EXPECT_EQ(seconds.size(), left > 1 ? left : 0u);
        ASSERT_EQ(log.all.size(), 3 - left);
        for (const auto& warning : log.all) EXPECT_THAT(warning, ::testing::HasSubstr("are left out: "));
    }
}

TEST(StaticInt8, WeightsOfFewBitsAreCalledSimulatedInEveryRow) {
    for (const std::string bits : {"8", "7", "4"}) {
        auto context = context_of();
        from_recipe({{"weight_bits", bits}, {"min_sqnr_db", "0"}})->apply(residual_model(), context);
        const std::string expected = bits != "8"             ? "int8 (simulated W" + bits + "A8)"
                                     : exact_int8_products() ? "int8"
                                                             : "int8 (7-bit weights)";
        EXPECT_EQ(context.facts.value("simulated", false), bits != "8");
        ASSERT_EQ(context.facts["layers"].size(), 5u);
        for (const auto& row : context.facts["layers"]) EXPECT_EQ(row.at("precision"), expected);
        int changes = 0;
        for (const auto& change : context.changes) changes += change.after == expected;
        EXPECT_GE(changes, 5) << bits;
    }
}

TEST(StaticInt8, ReducedRangeIsSaidAndIsNoSimulation) {
    auto context = context_of();
    from_recipe({{"reduce_range", "on"}})->apply(residual_model(), context);
    EXPECT_EQ(context.facts["weight_bits"], 7);
    EXPECT_EQ(context.facts["reduced_range"], true);
    EXPECT_FALSE(context.facts.contains("simulated"));
    EXPECT_EQ(context.facts["layers"][0].at("precision"), "int8 (7-bit weights)");
    from_recipe({{"reduce_range", "off"}})->apply(residual_model(), context);
    EXPECT_EQ(context.facts["weight_bits"], 8);
    EXPECT_EQ(context.facts["reduced_range"], false);
}

TEST(StaticInt8, ErrorsSayWhatIsWrong) {
    EXPECT_ERROR(from_recipe({{"observer", "histogramm"}}), InvalidArgument, "histogram");
    EXPECT_ERROR(from_recipe({{"engine", "x68"}}), InvalidArgument, "x86");
    EXPECT_ERROR(from_recipe({{"linear", "fast"}}), InvalidArgument, "fused");
    EXPECT_ERROR(from_recipe({{"reduce_range", "yes"}}), InvalidArgument, "reduce_range");
    EXPECT_ERROR(from_recipe({{"batches", "0"}}), InvalidArgument, "batches");
    EXPECT_ERROR(from_recipe({{"per_chanel", "true"}}), InvalidArgument, "per_channel");
    StaticOptions none;
    none.batch_size = 0;
    EXPECT_ERROR(static_int8(none), InvalidArgument, "batch_size is 0");
    auto context = context_of();
    context.data.calibration = nullptr;
    const auto no_norms = build_model({{"f.weight", sine({4, 192})}},
                                      "def forward(self, x):\n    return torch.linear(x.flatten(1), self.f.weight)\n");
    EXPECT_ERROR(static_int8()->apply(no_norms, context), InvalidArgument, "no calibration data");
    context = context_of();
    auto options = small_batches();
    options.ignore = {"conv9"};
    EXPECT_ERROR(static_int8(options)->apply(residual_model(), context), InvalidArgument, "matches no layer");
    options.ignore = {"conv("};
    EXPECT_ERROR(static_int8(options)->apply(residual_model(), context), InvalidArgument, "no regular expression");
    options.ignore = {".*"};
    EXPECT_ERROR(static_int8(options)->apply(residual_model(), context), UnsupportedModel, "conv1: ignore: .*");
    options.ignore = {};
    options.min_sqnr_db = 190;
    EXPECT_ERROR(static_int8(options)->apply(residual_model(), context), UnsupportedModel, "signal-to-noise");
    const auto nothing = build_model({}, "def forward(self, x):\n    return torch.relu(x)\n");
    EXPECT_ERROR(static_int8(small_batches())->apply(nothing, context), UnsupportedModel,
                 "no convolution or linear layer");
    EXPECT_ERROR(set_engine("cuda"), InvalidArgument, "engine");
}

TEST(StaticInt8, AgreesWithItsSimulationWithEveryRoundingAndFewerBits) {
    for (const auto& row : roundings()) {
        if (row.name == "awq" || row.name == "hqq") continue;  // refused below: scaled inputs, offsets
        SCOPED_TRACE(row.name);
        // A thousand steps per block are for real models.
        Options short_ones(row.name, row.name == "brecq"
                                         ? std::vector<std::pair<std::string, std::string>>{{"steps", "50"}}
                                         : std::vector<std::pair<std::string, std::string>>{});
        StaticOptions options;
        options.rounding = row.make(short_ones);
        options.weight_bits = 4;
        options.bias_correction = true;
        options.equalize = true;
        options.min_sqnr_db = 0;
        options.observer = minmax();
        const Inputs x{sine({8, 3, 8, 8}, 1.3)};
        const auto plan = plan_static(residual_model(), x, {x}, options);
        const auto int8 = convert(plan);
        const auto simulated = fake_quantized(plan, x).toTensor(), real = int8.forward(x).toTensor();
        const auto exact = residual_model().forward(x).toTensor();
        const auto noise = [](const at::Tensor& a, const at::Tensor& b) { return (a - b).pow(2).sum().item<double>(); };
        EXPECT_LT(noise(real, simulated), 0.1 * noise(real, exact));  // ties alone
        for (const auto& layer : plan.layers())
            if (layer.parameters > 0) {
                EXPECT_GT(layer.range.high, layer.range.low) << layer.layer;
                EXPECT_EQ(layer.clipped_ratio, 0) << layer.layer;  // minmax clips nothing of what it saw
            }
    }
    EXPECT_ERROR(from_recipe({{"rounding", "awq"}}), InvalidArgument, "scales a layer's input");
    EXPECT_ERROR(from_recipe({{"rounding", "hqq"}}), InvalidArgument, "hqq in quantize.weight_only");
    EXPECT_ERROR(from_recipe({{"weight_bits", "9"}}), InvalidArgument, "weight_bits");
    EXPECT_ERROR(from_recipe({{"smooth", "2"}}), InvalidArgument, "smooth");
    EXPECT_ERROR(from_recipe({{"smooth_norms", "some"}}), InvalidArgument, "smooth_norms");
    EXPECT_ERROR(from_recipe({{"equalize_relu6", "relu7"}}), InvalidArgument, "equalize_relu6");
    EXPECT_ERROR(from_recipe({{"equalize_relu6", "relu"}}), InvalidArgument, "but equalize is off");
    EXPECT_ERROR(from_recipe({{"smooth_norms", "all"}}), InvalidArgument, "but smooth is off");
}

/// Everything that is logged.
class Lines final : public Log {
public:
    void write(const std::string& level, const std::string& message) override { text += level + ": " + message + "\n"; }
    std::string text;
};

TEST(StaticInt8, TellsWhatWasSmoothedAndWhatEqualizingDidWithReLU6) {
    const auto log_of = [](const Model& model, const at::Tensor& x, const StaticOptions& options, Context& context) {
        Lines log;
        context.example = {x};
        context.data.calibration = tensor_dataset({x}, at::zeros({x.size(0)}, at::kLong), "sine");
        context.log = &log;
        static_int8(options)->apply(model, context);
        context.log = &null_log();
        return log.text;
    };
    const auto post_norm =
        build_model({{"n.weight", at::tensor({1.f, 1.f, 60.f, 1.f})}, {"q.weight", sine({4, 4}, 0.3)}},
                    "def forward(self, x):\n    y = torch.layer_norm(x, [4], self.n.weight)\n"
                    "    return y + torch.linear(y, self.q.weight)\n");
    StaticOptions options;
    options.smooth = 0.5;
    options.min_sqnr_db = -100;
    Context context;
    EXPECT_THAT(log_of(post_norm, sine({32, 4}, 2), options, context),
                ::testing::HasSubstr("info: smooth treats 1 of 1 layer norms, 1 of them with a multiplication"));
    EXPECT_EQ(context.facts["smoothed_norms_multiplied_back"], 1);
    options.smooth_norms = "free";
    EXPECT_THAT(log_of(post_norm, sine({32, 4}, 2), options, context),
                ::testing::HasSubstr("warning: quantize.static: smooth did nothing: it treats 0 of 1"));
    const auto with_relu6 =
        build_model({{"a.weight", sine({4, 3, 1, 1}, 5)}, {"b.weight", sine({2, 4, 1, 1}, 0.3)}},
                    "def forward(self, x):\n    y = torch.hardtanh(torch.conv2d(x, self.a.weight), 0., 6.)\n"
                    "    return torch.conv2d(y, self.b.weight)\n");
    StaticOptions equal;
    equal.equalize = true;
    EXPECT_THAT(log_of(with_relu6, sine({4, 3, 6, 6}, 2), equal, context),
                ::testing::HasSubstr("warning: quantize.static: equalize treats 0 pairs of layers and leaves 1"));
    equal.equalize_relu6 = "relu";
    EXPECT_THAT(log_of(with_relu6, sine({4, 3, 6, 6}, 2), equal, context),
                ::testing::HasSubstr("replaced ReLU6 by ReLU in 1 of 1 pair of layers, which changes the function"));
    EXPECT_EQ(context.facts["equalized_pairs"], 1);
}

TEST(StaticInt8, BiasCorrectionKeepsEachChannelsMeanOutput) {
    // One layer of 3-bit weights on inputs with a mean: the rounded weights alone shift every output. A product that
    // has no bias gets one.
    const auto with_bias =
        build_model({{"f.weight", sine({6, 20}, 0.3)}, {"f.bias", sine({6}, 0.1)}},
                    "def forward(self, x):\n    return torch.linear(x, self.f.weight, self.f.bias)\n");
    const auto without = build_model({{"f.weight", sine({20, 6}, 0.3)}},
                                     "def forward(self, x):\n    return torch.mm(x, self.f.weight)\n");
    const Inputs x{sine({64, 20}) + 1.0};
    for (const auto& model : {with_bias, without}) {
        const auto exact = model.forward(x).toTensor().mean(0);
        const auto plan_of = [&](bool corrected) {
            StaticOptions options;
            options.observer = minmax();
            options.weight_bits = 3;
            options.rounding = nearest();
            options.bias_correction = corrected;
            options.min_sqnr_db = 0;
            return plan_static(model, x, {x}, options);
        };
        const auto shift = [&](const at::Tensor& output) {
            return (output.mean(0) - exact).abs().max().item<double>();
        };
        const auto plan = plan_of(true);
        const double before = shift(fake_quantized(plan_of(false), x).toTensor());
        // What is left is the mean error of rounded inputs, far below a step of 8 bits.
        EXPECT_LT(shift(fake_quantized(plan, x).toTensor()), 0.1 * before);
        EXPECT_LT(shift(convert(plan).forward(x).toTensor()), 0.1 * before);
    }
}

TEST(StaticInt8, InTurnWeightsAreTheLeastSquaresAnswerOnWhatTheRoundedLayersGive) {
    // Sines of squares: unlike sines of an arithmetic sequence their matrices have full rank.
    const auto irregular = [](at::IntArrayRef shape, double factor) {
        return (at::arange(c10::multiply_integers(shape), at::kDouble).square() * factor)
            .sin()
            .to(at::kFloat)
            .reshape(shape);
    };
    const auto first = 0.3 * irregular({12, 20}, 0.37), second = 0.4 * irregular({5, 12}, 0.61);
    const auto model = build_model({{"a.weight", first}, {"b.weight", second}},
                                   "def forward(self, x):\n    return torch.linear(torch.linear(x, self.a.weight), "
                                   "self.b.weight)\n");
    const Inputs x{irregular({400, 20}, 0.173)};
    StaticOptions options;
    options.observer = minmax();
    options.weight_bits = 4;
    options.rounding = nearest();
    options.min_sqnr_db = 0;
    options.in_turn = true;
    const auto plan = plan_static(model, x, {x}, options);
    const LayerNames names(plan.model());
    auto* node = names.find("b");
    ASSERT_NE(node, nullptr);
    const auto& rounded = plan.impl().weights.at(node);
    const auto& hidden = plan.impl().weights.at(names.find("a"));
    // By hand: hidden values of the float model, and as the int8 layer gives them.
    const auto exact = at::linear(x[0].toTensor(), first);
    const auto given =
        fake_quantize(at::linear(fake_quantize(x[0].toTensor(), *plan.parameters(plan.model().graph()->inputs()[1])),
                                 hidden.dequantize()),
                      *plan.parameters(node->input(0)));
    const auto [best, residuals, rank, singular] =
        at::linalg_lstsq(given.to(at::kDouble), exact.matmul(second.t()).to(at::kDouble));
    const auto difference = (rounded.dequantize() - best.t()).abs();
    const auto step = rounded.q_per_channel_scales().reshape({-1, 1});
    EXPECT_GT((best.t() - second).abs().max().item<double>(), 0.02);  // something to make up for
    // Half a step for rounding; a tenth more because damping holds weights back where inputs hardly vary.
    EXPECT_LT((difference / step).max().item<double>(), 0.6);
}

TEST(StaticInt8, InTurnRoundingLowersTheModelsError) {
    const Inputs x{sine({32, 3, 8, 8}, 1.3) + 0.5 * sine({32, 3, 8, 8}, 0.6).square()};
    const auto exact = residual_model().forward(x).toTensor();
    for (const auto& rounding : {std::shared_ptr<const Rounding>(nearest()), std::shared_ptr<const Rounding>(gptq()),
                                 std::shared_ptr<const Rounding>(adaround(200))}) {
        const auto error = [&](bool in_turn) {
            StaticOptions options;
            options.observer = minmax();
            options.weight_bits = 3;
            options.rounding = rounding;
            options.min_sqnr_db = -100;
            options.bias_correction = true;
            options.in_turn = in_turn;
            return (convert(plan_static(residual_model(), x, {x}, options)).forward(x).toTensor() - exact)
                .pow(2)
                .sum()
                .item<double>();
        };
        EXPECT_LT(error(true), error(false));
    }
    StaticOptions options;
    options.rounding = brecq();
    options.in_turn = true;
    EXPECT_ERROR(plan_static(residual_model(), x, {x}, options), InvalidArgument, "in_turn");
}

}  // namespace
}  // namespace coppice::quantize
