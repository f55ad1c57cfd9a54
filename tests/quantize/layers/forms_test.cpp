// quantize.dynamic and quantize.weight_only: structure, values by another road, files that stock LibTorch loads.
#include <torch/csrc/jit/testing/file_check.h>

#include <cmath>

#include <coppice/deploy.h>
#include <coppice/quantize.h>

#include "support/support.h"
#include "support/warnings.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

Context context_of(Inputs example) {
    Context context;
    context.example = std::move(example);
    return context;
}

Model apply(const std::string& stage, std::vector<std::pair<std::string, std::string>> scalars, const Model& model,
            Context& context) {
    Options options(stage, std::move(scalars));
    const auto made = find_entry(stages(), "stage", stage, "test").make(options);
    options.done();
    return made->apply(model, context);
}

/// Saved and loaded by LibTorch alone, it gives the same bits.
void expect_stock(const Model& model, const Inputs& inputs) {
    torch::NoGradGuard no_grad;
    TemporaryFolder folder;
    model.save(folder / "model.pt");
    auto stock = torch::jit::load((folder / "model.pt").string());
    EXPECT_TRUE(at::equal(first_tensor(stock.forward(inputs)), first_tensor(model.forward(inputs))));
}

double decibel(const at::Tensor& exact, const at::Tensor& rounded) {
    return 10 * std::log10((exact.pow(2).sum() / (exact - rounded).pow(2).sum()).item<double>());
}

Model two_linear(int64_t in = 64) {
    return build_model({{"a.weight", sine({48, in}, 0.2)}, {"a.bias", sine({48}, 0.3)}, {"w", sine({16, 48}, 0.3)}},
                       "def forward(self, x):\n"
                       "    y = torch.relu(torch.linear(x, self.a.weight, self.a.bias))\n"
                       "    return torch.matmul(y, self.w.t())\n");
}

/// x as linear_dynamic rounds it: 8 bits over its own range, widened to hold zero.
at::Tensor rounded_by_its_range(const at::Tensor& x) {
    const double low = std::min(x.min().item<double>(), 0.0), high = std::max(x.max().item<double>(), 0.0);
    const double scale = (high - low) / 255, zero_point = std::nearbyint(-low / scale);
    return ((x / scale).round() + zero_point).clamp(0, 255).sub(zero_point) * scale;
}

at::Tensor rounded_rows(const at::Tensor& w) {
    const auto step = w.abs().amax(1, true) / 127;
    return (w / step).round() * step;
}

TEST(Dynamic, LinearLayersAndProductsMultiplyRoundedInputsWithRoundedWeights) {
    torch::NoGradGuard no_grad;
    const auto model = two_linear();
    const auto x = sine({3, 5, 64}, 2.0);
    auto context = context_of({x});
    const auto int8 = apply("quantize.dynamic", {}, model, context);
    torch::jit::testing::FileCheck()
        .check("quantized::linear_relu_dynamic")
        ->check("quantized::linear_dynamic")
        ->check_not("aten::relu")
        ->run(*int8.graph());
    const auto hidden = at::linear(rounded_by_its_range(x), rounded_rows(sine({48, 64}, 0.2)), sine({48}, 0.3)).relu();
    const auto expected = at::linear(rounded_by_its_range(hidden), rounded_rows(sine({16, 48}, 0.3)));
    const auto actual = int8.forward({x}).toTensor();
    EXPECT_EQ(actual.sizes(), expected.sizes());
    // A hidden value at a tie may round either way: one step of it among 48.
    EXPECT_GT(decibel(expected, actual), 50);
    EXPECT_EQ(context.facts["quantized_layers"], 2);
    expect_stock(int8, {x});
}

TEST(Outputs, OfTransposedConvolutionsAreContiguousAsTheFloatModels) {
    torch::NoGradGuard no_grad;
    const auto model = build_model({{"a.weight", sine({8, 16, 2, 2}, 0.3)}},
                                   "def forward(self, x):\n"
                                   "    y = torch.conv_transpose2d(x, self.a.weight, None, [2, 2])\n"
                                   "    return y, torch.relu(y)\n");
    const auto x = sine({2, 8, 6, 6});
    for (const std::string stage : {"quantize.weight_only", "quantize.codebook", "quantize.mixed"}) {
        SCOPED_TRACE(stage);
        auto context = context_of({x});
        std::vector<std::pair<std::string, std::string>> options;
        if (stage == "quantize.mixed") options = {{"precisions", "int8"}, {"ratio", "0"}};
        const auto smaller = apply(stage, options, model, context);
        const auto exact = all_tensors(model.forward({x})), found = all_tensors(smaller.forward({x}));
        for (size_t i = 0; i < exact.size(); ++i) {
            EXPECT_TRUE(found[i].is_contiguous());
            EXPECT_GT(decibel(exact[i], found[i]), 10);
        }
    }
}

TEST(OutputNoise, IsThatOfTheWholeModel) {
    torch::NoGradGuard no_grad;
    const auto model = two_linear();
    const auto x = sine({3, 5, 64}, 2.0);
    auto context = context_of({x});
    const auto int8 = apply("quantize.dynamic", {}, model, context);
    EXPECT_NEAR(context.facts["output_sqnr_db"].get<double>(),
                decibel(model.forward({x}).toTensor(), int8.forward({x}).toTensor()), 1e-3);
}

TEST(OutputNoise, WarnsWhereLayersThatAreQuietAloneCancel) {
    const auto a = sine({48, 64}, 0.2);
    const auto model = build_model({{"a.weight", a}, {"b.weight", a + 0.0005 * at::cos(7 * a)}},
                                   "def forward(self, x):\n"
                                   "    return torch.linear(x, self.a.weight) - torch.linear(x, self.b.weight)\n");
    auto context = context_of({sine({3, 64}, 2.0)});
    Warnings log;
    context.log = &log;
    apply("quantize.dynamic", {}, model, context);
    EXPECT_GT(context.facts["worst_layer_sqnr_db"].get<double>(), 30);
    EXPECT_LT(context.facts["output_sqnr_db"].get<double>(), 10);
    EXPECT_THAT(log.texts, ::testing::ElementsAre(::testing::HasSubstr("outputs have a signal-to-noise ratio")));
}

TEST(OutputNoise, SaysNothingOfOutputsWithoutFloats) {
    const auto model = build_model({{"w", sine({48, 64}, 0.2)}},
                                   "def forward(self, x):\n"
                                   "    return torch.argmax(torch.linear(x, self.w), 1)\n");
    auto context = context_of({sine({3, 64}, 2.0)});
    apply("quantize.dynamic", {}, model, context);
    EXPECT_FALSE(context.facts.contains("output_sqnr_db"));
}

TEST(Dynamic, LayersOfOneInputAreMergedByDeployBitForBit) {
    torch::NoGradGuard no_grad;
    const auto model = build_model({{"q.weight", sine({24, 32}, 0.2)},
                                    {"q.bias", sine({24}, 0.3)},
                                    {"k.weight", sine({24, 32}, 0.3)},
                                    {"v.weight", sine({16, 32}, 0.25)},
                                    {"v.bias", sine({16}, 0.2)},
                                    {"g.weight", sine({16, 32}, 0.2)}},
                                   "def forward(self, x):\n"
                                   "    q = torch.linear(x, self.q.weight, self.q.bias)\n"
                                   "    k = torch.linear(x, self.k.weight)\n"
                                   "    v = torch.linear(x, self.v.weight, self.v.bias)\n"
                                   "    g = torch.relu(torch.linear(x, self.g.weight))\n"
                                   "    p = torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1)\n"
                                   "    return torch.bmm(p, v).view(x.size(0), -1) + g.view(x.size(0), -1), v\n");
    const auto x = sine({3, 5, 32}, 2.0);
    auto context = context_of({x});
    const auto int8 = apply("quantize.dynamic", {}, model, context);
    EXPECT_EQ(context.facts["quantized_layers"], 4);  // the report keeps their names
    auto merged = int8.clone();
    EXPECT_EQ(merge_linear(merged, {x}), 3);  // the one with a relu inside stays apart
    torch::jit::testing::FileCheck()
        .check_count("quantized::linear_dynamic", 1, true)
        ->check("aten::split_with_sizes")
        ->run(*merged.graph());
    for (const auto& input : {x, sine({2, 7, 32}, 0.7)}) {
        const auto expected = all_tensors(int8.forward({input})), actual = all_tensors(merged.forward({input}));
        ASSERT_EQ(actual.size(), expected.size());
        for (size_t i = 0; i < actual.size(); ++i) {
            EXPECT_TRUE(at::equal(actual[i], expected[i])) << i;
            EXPECT_EQ(actual[i].strides(), expected[i].strides()) << i;
        }
    }
    expect_stock(merged, {x});
    DeployOptions options;
    options.form = "merged";
    EXPECT_LE(max_difference(first_tensor(deploy(options)->apply(int8, context).forward({x})),
                             first_tensor(int8.forward({x}))),
              1e-5);
    EXPECT_EQ(context.facts["form"], "merged");
}

TEST(Dynamic, RecurrentLayersGiveWhatTheFloatOnesGiveUpToRounding) {
    torch::NoGradGuard no_grad;
    constexpr int64_t kIn = 12, kHidden = 16;
    for (const std::string cell : {"lstm", "gru"})
        for (const bool both : {false, true}) {
            SCOPED_TRACE(cell + (both ? " both ways" : " forward"));
            const int64_t gates = cell == "lstm" ? 4 : 3, directions = both ? 2 : 1;
            std::vector<std::pair<std::string, at::Tensor>> tensors;
            std::string list;
            for (int64_t layer = 0; layer < 2; ++layer)
                for (int64_t d = 0; d < directions; ++d) {
                    const auto tag = std::to_string(layer) + std::to_string(d);
                    const int64_t in = layer == 0 ? kIn : kHidden * directions;
                    tensors.insert(tensors.end(), {{"r.wi" + tag, sine({gates * kHidden, in}, 0.3)},
                                                   {"r.wh" + tag, sine({gates * kHidden, kHidden}, 0.25)},
                                                   {"r.bi" + tag, sine({gates * kHidden}, 0.1)},
                                                   {"r.bh" + tag, sine({gates * kHidden}, 0.2)}});
                    for (const char* part : {"wi", "wh", "bi", "bh"})
                        list += (list.empty() ? "self.r." : ", self.r.") + std::string(part) + tag;
                }
            const std::string flag = both ? "True" : "False", d = std::to_string(2 * directions);
            const auto model = build_model(
                tensors, "def forward(self, x):\n    h = torch.zeros([" + d + ", x.size(0), 16])\n" +
                             (cell == "lstm" ? "    y, h1, c1 = torch.lstm(x, [h, h], [" + list +
                                                   "], True, 2, 0.0, False, " + flag + ", True)\n    return y, h1, c1\n"
                                             : "    y, h1 = torch.gru(x, h, [" + list + "], True, 2, 0.0, False, " +
                                                   flag + ", True)\n    return y, h1\n"));
            const auto x = sine({3, 7, kIn});
            auto context = context_of({x});
            const auto int8 = apply("quantize.dynamic", {}, model, context);
            torch::jit::testing::FileCheck().check("aten::quantized_" + cell)->run(*int8.graph());
            const auto exact = all_tensors(model.forward({x})), rounded = all_tensors(int8.forward({x}));
            ASSERT_EQ(exact.size(), rounded.size());
            for (size_t i = 0; i < exact.size(); ++i)
                EXPECT_GT(decibel(exact[i], rounded[i]), 28) << i;  // 8 bits twice
            const auto other = sine({2, 9, kIn}, 0.7);              // another length and batch size
            EXPECT_GT(decibel(first_tensor(model.forward({other})), first_tensor(int8.forward({other}))), 28);
            expect_stock(int8, {x});
        }
}

TEST(Dynamic, EmbeddingRowsAreWithinHalfAStepInEveryShape) {
    torch::NoGradGuard no_grad;
    const auto weight = sine({30, 8}) * at::arange(1, 31).reshape({30, 1});
    const auto model =
        build_model({{"e.weight", weight}}, "def forward(self, i):\n    return torch.embedding(self.e.weight, i)\n");
    for (const auto& [name, levels] : std::vector<std::pair<std::string, double>>{{"int8", 255}, {"int4", 15}}) {
        auto context = context_of({at::arange(6).reshape({2, 3})});
        const auto rounded = apply("quantize.dynamic", {{"embedding", name}}, model, context);
        EXPECT_THAT(cost(rounded, context.example).unknown_operators, ::testing::IsEmpty()) << name;
        for (const auto& shape : std::vector<std::vector<int64_t>>{{30}, {5, 6}, {2, 3, 5}}) {
            const auto indices = at::arange(30).reshape(shape);
            const auto exact = model.forward({indices}).toTensor(), actual = rounded.forward({indices}).toTensor();
            ASSERT_EQ(actual.sizes(), exact.sizes());
            const auto step = (weight.amax(1) - weight.amin(1)) / levels;
            const auto error = (actual - exact).abs().reshape({30, 8}).amax(1);
            // 4-bit rows hold their scale and offset in float16: 2^-11 of the largest value on top.
            const auto slack = name == "int4" ? weight.abs().amax(1) * std::pow(2, -10) : step * 1e-3;
            EXPECT_TRUE((error <= step / 2 + slack).all().item<bool>()) << name;
        }
        expect_stock(rounded, {at::arange(6).reshape({2, 3})});
    }
}

TEST(Dynamic, BagsOfEmbeddingsAddRoundedRows) {
    torch::NoGradGuard no_grad;
    const auto weight = sine({30, 8}) * at::arange(1, 31).reshape({30, 1});
    const auto indices = at::arange(40).remainder(30), offsets = at::tensor({0, 3, 3, 17});
    const auto weights = sine({40}, 2);
    for (const auto& [name, levels] : std::vector<std::pair<std::string, double>>{{"int8", 255}, {"int4", 15}})
        for (const auto& [mode, weighted] :
             std::vector<std::pair<int, bool>>{{0, false}, {0, true}, {1, false}, {2, false}}) {
            SCOPED_TRACE(name + ", mode " + std::to_string(mode));
            const auto model =
                build_model({{"e.weight", weight}},
                            "def forward(self, i, o, w):\n"
                            "    return torch.embedding_bag(self.e.weight, i, o, False, " +
                                std::to_string(mode) + ", False, " + (weighted ? "w" : "None") + ", False, None)[0]\n");
            const Inputs inputs{indices, offsets, weights};
            auto context = context_of(inputs);
            const auto rounded = apply("quantize.dynamic", {{"embedding", name}}, model, context);
            EXPECT_EQ(context.facts["quantized_layers"], 1);
            torch::jit::testing::FileCheck()
                .check(name == "int8" ? "quantized::embedding_byte" : "quantized::embedding_bag_4bit_unpack")
                ->run(*rounded.graph());
            const auto exact = model.forward(inputs).toTensor(), actual = rounded.forward(inputs).toTensor();
            ASSERT_EQ(actual.sizes(), exact.sizes());
            // At most 23 rows in a bag, each off by half a step of the largest row, times a weight of at most 2.
            const double step = (2.0 * 30 / levels) / 2 * (name == "int4" ? 1.1 : 1.001);
            EXPECT_LE(max_difference(actual, exact), step * (mode == 0 ? 23 * (weighted ? 2 : 1) : 1));
            EXPECT_GT(decibel(exact, actual), name == "int8" ? 35 : 15);
            EXPECT_TRUE(at::equal(actual[1], at::zeros({8})));  // an empty bag
            const Inputs other{at::arange(7), at::tensor({0, 5}), weights.slice(0, 0, 7)};
            EXPECT_GT(decibel(model.forward(other).toTensor(), rounded.forward(other).toTensor()),
                      name == "int8" ? 35 : 15);
            expect_stock(rounded, inputs);
        }
    // As nn.EmbeddingBag is scripted: in former times weight and indices came in the other order.
    const auto scripted =
        build_model({{"e.weight", weight}},
                    "def forward(self, i, o):\n"
                    "    w = self.e.weight\n"
                    "    if w.dtype == 4 and i.is_floating_point():\n"
                    "        w, i = i, w\n"
                    "    return torch.embedding_bag(w, i, o, False, 0, False, None, False, None)[0]\n");
    auto of_scripted = context_of({indices, offsets});
    torch::jit::testing::FileCheck()
        .check("quantized::embedding_byte")
        ->check_not("prim::If")
        ->run(*apply("quantize.dynamic", {}, scripted, of_scripted).graph());
    EXPECT_EQ(of_scripted.facts["layers"].at(0).at("layer"), "e");
    for (const auto& [call, reason] : std::vector<std::pair<std::string, std::string>>{
             {"torch.embedding_bag(self.e.weight, i, o, False, 0, False, None, False, 3)[0]", "padding index"},
             {"torch.embedding_bag(self.e.weight, i, o, False, 1, False, None, False, None)", "more than its sums"}}) {
        const auto model = build_model({{"e.weight", weight}}, "def forward(self, i, o):\n    return " + call + "\n");
        auto context = context_of({indices, offsets});
        EXPECT_ERROR(apply("quantize.dynamic", {}, model, context), UnsupportedModel, reason);
    }
}

TEST(Dynamic, SaysWhyALayerStaysFloatAndRefusesWhenNothingIsLeft) {
    auto context = context_of({sine({2, 3, 8, 8})});
    apply("quantize.dynamic", {}, residual_model(), context);
    EXPECT_EQ(context.facts["quantized_layers"], 1);  // the classifier
    int kept = 0;
    for (const auto& change : context.changes)
        if (change.action == "kept") {
            EXPECT_THAT(change.reason, ::testing::HasSubstr("quantize.static"));
            ++kept;
        }
    EXPECT_EQ(kept, 4);
    EXPECT_ERROR(apply("quantize.dynamic", {{"linear", "false"}}, residual_model(), context), UnsupportedModel,
                 "nothing can be treated");
    EXPECT_ERROR(apply("quantize.dynamic", {{"min_sqnr_db", "190"}}, residual_model(), context), UnsupportedModel,
                 "min_sqnr_db");
    EXPECT_ERROR(apply("quantize.dynamic", {{"ignore", "nothing"}}, residual_model(), context), InvalidArgument,
                 "matches no layer");
    EXPECT_ERROR(apply("quantize.dynamic", {{"embedding", "int2"}}, residual_model(), context), InvalidArgument,
                 "int4");
}

/// Rows that are read are scaled down to a norm of 1 first, as nn.Embedding with max_norm does.
Model renormalised() {
    return build_model({{"e.weight", sine({30, 16}, 2)}, {"f.weight", sine({8, 16}, 0.3)}},
                       "def forward(self, i):\n"
                       "    torch.embedding_renorm_(self.e.weight.detach(), i, 1.0, 2.0)\n"
                       "    return torch.linear(torch.embedding(self.e.weight, i), self.f.weight)\n");
}

TEST(Forms, LayersWhoseWeightsAreWrittenStayFloat) {
    torch::NoGradGuard no_grad;
    const Inputs indices{at::arange(6).reshape({2, 3})};
    for (const auto& [stage, type] : std::vector<std::pair<std::string, std::string>>{
             {"quantize.dynamic", ""}, {"quantize.weight_only", "int4"}, {"quantize.weight_only", "int8"}}) {
        SCOPED_TRACE(stage + type);
        auto context = context_of(indices);
        const auto rounded = apply(stage,
                                   type.empty() ? std::vector<std::pair<std::string, std::string>>{}
                                                : std::vector<std::pair<std::string, std::string>>{{"type", type}},
                                   renormalised(), context);
        std::map<std::string, Json> rows;
        for (const auto& row : context.facts["layers"]) rows[row.at("op")] = row;
        const auto &e = rows.at("aten::embedding"), &f = rows.at("aten::linear");
        EXPECT_EQ(e.at("precision"), "float32");
        EXPECT_THAT(e.at("reason").get<std::string>(), ::testing::HasSubstr("max_norm"));
        EXPECT_NE(f.at("precision"), "float32");
        EXPECT_GT(decibel(first_tensor(renormalised().forward(indices)), first_tensor(rounded.forward(indices))),
                  type == "int4" ? 15 : 35);
    }
    // Through a view, and by another name of the same memory; an input that is written is no weight.
    const auto x = sine({4, 16});
    for (const std::string written : {"self.w.t()[0].mul_(0.5)", "self.w.detach().clamp_(-0.1, 0.1)"}) {
        SCOPED_TRACE(written);
        const auto model = build_model({{"w", sine({8, 16}, 0.3)}}, "def forward(self, x):\n    " + written +
                                                                        "\n    return torch.linear(x, self.w)\n");
        auto context = context_of({x});
        EXPECT_ERROR(apply("quantize.dynamic", {}, model, context), UnsupportedModel, "writes into its weight");
        EXPECT_ERROR(apply("quantize.weight_only", {}, model, context), UnsupportedModel, "writes into its weight");
        for (const auto& layer : explain(model, context.example))
            if (layer.op == "aten::linear") EXPECT_THAT(layer.reason, ::testing::HasSubstr("writes into its weight"));
    }
    auto context = context_of({x});
    apply("quantize.dynamic", {},
          build_model({{"w", sine({8, 16}, 0.3)}},
                      "def forward(self, x):\n    x.mul_(0.5)\n    return torch.linear(x, self.w)\n"),
          context);
    EXPECT_EQ(context.facts["quantized_layers"], 1);
}

TEST(Forms, TransposedConvolutionsThatStayFloatStayAsTheyAre) {
    torch::NoGradGuard no_grad;
    const auto model = build_model(
        {{"f.weight", sine({6, 8}, 0.3)}, {"t.weight", sine({4, 8, 2}, 0.4)}, {"u.weight", sine({4, 8, 2}, 0.4)}},
        "def forward(self, x):\n"
        "    y = torch.conv_transpose1d(torch.linear(x, self.f.weight), self.t.weight, None, [2])\n"
        "    return y + torch.conv_transpose1d(x, self.u.weight, None, [2])[:, :, :12]\n");
    const auto x = sine({2, 4, 8});
    const auto transposed = [](const Model& result) {
        int count = 0;
        for (const auto* node : all_nodes(*result.graph()))
            count += std::string(node->kind().toQualString()) == "aten::conv_transpose1d";
        return count;
    };
    struct Case {
        std::string stage;
        std::vector<std::pair<std::string, std::string>> options;
        int kept;
    };
    for (const auto& one : {Case{"quantize.dynamic", {}, 2}, Case{"quantize.weight_only", {}, 0},
                            Case{"quantize.weight_only", {{"convolutions", "false"}}, 2},
                            Case{"quantize.weight_only", {{"ignore", "t"}}, 1}}) {
        SCOPED_TRACE(one.stage + (one.options.empty() ? "" : " " + one.options[0].first));
        auto context = context_of({x});
        const auto result = apply(one.stage, one.options, model, context);
        EXPECT_EQ(transposed(result), one.kept);
        EXPECT_GT(decibel(model.forward({x}).toTensor(), result.forward({x}).toTensor()), 30);
        for (const auto& row : context.facts["layers"])
            if (row.at("layer") == "t") EXPECT_EQ(row.at("op") == "aten::conv_transpose1d", one.kept > 0);
        expect_stock(result, {x});
    }
}

TEST(Forms, RangeAndNoiseAreThoseOfAllBatches) {
    auto data = sine({32, 64});
    data.mul_(at::arange(1, 33).reshape({32, 1}));  // every row is larger than the one before
    auto context = context_of({sine({3, 64})});
    context.data.calibration = tensor_dataset({data}, at::zeros({32}, at::kLong), "sine");
    apply("quantize.dynamic", {{"batches", "4"}, {"batch_size", "8"}}, two_linear(), context);
    const auto& row = context.facts["layers"].at(0);
    EXPECT_FLOAT_EQ(row.at("input_range")[0].get<float>(), data.min().item<float>());
    EXPECT_FLOAT_EQ(row.at("input_range")[1].get<float>(), data.max().item<float>());
    EXPECT_EQ(row.at("clipped_ratio"), 0.0);
    // Signal and noise are summed: batch by batch each input has a range of its own.
    double signal = 0, noise = 0;
    BatchIterator batches(*context.data.calibration, 8, /*shuffle=*/true, context.seed);
    while (const auto batch = batches.next()) {
        const auto x = batch->inputs[0].toTensor();
        const auto exact = at::linear(x, sine({48, 64}, 0.2), sine({48}, 0.3));
        const auto rounded = at::linear(rounded_by_its_range(x), rounded_rows(sine({48, 64}, 0.2)), sine({48}, 0.3));
        signal += exact.pow(2).sum(at::kDouble).item<double>();
        noise += (exact - rounded).pow(2).sum(at::kDouble).item<double>();
    }
    EXPECT_NEAR(row.at("sqnr_db").get<double>(), 10 * std::log10(signal / noise), 0.1);  // ties round either way
    EXPECT_THAT(context.changes.at(0).reason, ::testing::HasSubstr("none of it clipped"));
}

TEST(WeightOnly, ExpandedWeightsAreTheRoundedOnesOfTheGrid) {
    torch::NoGradGuard no_grad;
    const auto model = two_linear();
    const auto x = sine({3, 5, 64}, 2.0);
    for (const std::string type : {"int8", "int4"})
        for (const std::string symmetric : {"true", "false"})
            for (const std::string group : {"0", "32"}) {
                SCOPED_TRACE(type + " " + symmetric + " " + group);
                auto context = context_of({x});
                const auto rounded = apply(
                    "quantize.weight_only",
                    {{"type", type}, {"symmetric", symmetric}, {"group", group}, {"min_sqnr_db", "5"}}, model, context);
                GridOptions grid;
                grid.bits = type == "int4" ? 4 : 8;
                grid.symmetric = symmetric == "true";
                grid.half = grid.bits == 4;
                const auto matrix = [&](const at::Tensor& w) {
                    grid.group = group == "32" ? 32 : (grid.bits == 4 ? 64 : 0);
                    if (grid.group > 0 && w.size(1) % grid.group != 0) grid.group = 0;  // rows of 48
                    return nearest()->round(w.contiguous(), grid, nullptr).values();
                };
                const auto hidden = at::linear(x, matrix(sine({48, 64}, 0.2)), sine({48}, 0.3)).relu();
                const auto expected = at::linear(hidden, matrix(sine({16, 48}, 0.3)));
                // Symmetric offsets are -8 scale in float16: exact; affine ones are float16 already. Float sums remain.
                EXPECT_LE(max_difference(rounded.forward({x}).toTensor(), expected),
                          2e-4 * expected.abs().max().item<double>());
                expect_stock(rounded, {x});
            }
}

TEST(WeightOnly, PackedKernelsComputeTheSameUpToBfloat16) {
    torch::NoGradGuard no_grad;
    const auto model = two_linear();
    const auto x = sine({2, 64}, 2.0);
    for (const std::string type : {"int8", "int4"}) {
        SCOPED_TRACE(type);
        std::vector<std::pair<std::string, std::string>> options = {
            {"type", type}, {"symmetric", type == "int8" ? "true" : "false"}, {"min_sqnr_db", "5"}};
        if (type == "int4") options.emplace_back("group", "32");
        auto context = context_of({x});
        const auto plain = apply("quantize.weight_only", options, model, context);
        options.emplace_back("kernel", "packed");
        const auto packed = apply("quantize.weight_only", options, model, context);
        torch::jit::testing::FileCheck()
            .check(type == "int4" ? "aten::_weight_int4pack_mm_for_cpu" : "aten::_weight_int8pack_mm")
            ->run(*packed.graph());
        // Inputs, scales, offsets and outputs have 8 bits; offsets and scales of 4-bit weights cancel in part.
        EXPECT_GT(decibel(plain.forward({x}).toTensor(), packed.forward({x}).toTensor()), 28);
        const auto wide = sine({4, 3, 64});  // other leading dimensions than the example's
        EXPECT_GT(decibel(plain.forward({wide}).toTensor(), packed.forward({wide}).toTensor()), 28);
        expect_stock(packed, {x});
    }
}

TEST(WeightOnly, PackedInt8IsNotUsedForRowsThatLibTorchsKernelReadsBeyond) {
    torch::NoGradGuard no_grad;
    const auto model = two_linear(24);  // and 48, a multiple of 16, which is packed
    const auto x = sine({2, 24}, 2.0);
    auto context = context_of({x});
    const auto packed =
        apply("quantize.weight_only", {{"type", "int8"}, {"symmetric", "true"}, {"kernel", "packed"}}, model, context);
    torch::jit::testing::FileCheck()
        .check_count("aten::_weight_int8pack_mm", 1, /*exactly=*/true)
        ->run(*packed.graph());
    EXPECT_GT(decibel(model.forward({x}).toTensor(), packed.forward({x}).toTensor()), 28);
}

TEST(WeightOnly, ConvolutionsGroupedOnesTooAndEmbeddings) {
    torch::NoGradGuard no_grad;
    const auto model = build_model(
        {{"a.weight", sine({8, 4, 3, 3}, 0.3)}, {"b.weight", sine({8, 2, 3, 3}, 0.4)}},
        "def forward(self, x):\n"
        "    return torch.conv2d(torch.conv2d(x, self.a.weight), self.b.weight, None, [1, 1], [0, 0], [1, 1], 4)\n");
    const auto x = sine({2, 4, 8, 8}).abs();
    for (const std::string rounding : {"nearest", "gptq", "adaround"}) {
        SCOPED_TRACE(rounding);
        auto context = context_of({x});
        context.data.calibration = tensor_dataset({sine({16, 4, 8, 8}, 1.5).abs()}, at::zeros({16}, at::kLong), "sine");
        const auto rounded = apply("quantize.weight_only",
                                   {{"type", "int4"}, {"rounding", rounding}, {"min_sqnr_db", "5"}}, model, context);
        EXPECT_EQ(context.facts["quantized_layers"], 2);
        EXPECT_GT(decibel(model.forward({x}).toTensor(), rounded.forward({x}).toTensor()), 9);  // two layers of 4 bits
        expect_stock(rounded, {x});
    }
}

TEST(WeightOnly, AwqMultipliesTheInputByTheInverseOfItsFactors) {
    torch::NoGradGuard no_grad;
    const auto model = two_linear();
    auto data = sine({64, 64});
    data.select(1, 7).mul_(40);
    const Inputs x{data.slice(0, 0, 8)};
    auto context = context_of(x);
    context.data.calibration = tensor_dataset({data}, at::zeros({64}, at::kLong), "sine");
    const auto plain = apply("quantize.weight_only", {{"type", "int4"}}, model, context);
    const auto better = apply("quantize.weight_only", {{"type", "int4"}, {"rounding", "awq"}}, model, context);
    torch::jit::testing::FileCheck().check("aten::mul")->check("aten::linear")->run(*better.graph());
    const auto exact = model.forward(x).toTensor();
    EXPECT_GT(decibel(exact, better.forward(x).toTensor()), decibel(exact, plain.forward(x).toTensor()));
    expect_stock(better, x);
}

TEST(WeightOnly, HalfPrecisionKeepsTheFunctionUpToItsBits) {
    torch::NoGradGuard no_grad;
    const auto model = two_linear();
    const auto x = sine({6, 64});
    const auto exact = model.forward({x}).toTensor();
    for (const auto& [type, least] : std::vector<std::pair<std::string, double>>{{"bf16", 34}, {"fp16", 60}}) {
        auto context = context_of({x});
        Model half;
        try {
            half = apply("quantize.weight_only", {{"type", type}}, model, context);
        } catch (const UnsupportedModel& error) {
            EXPECT_THAT(error.what(), ::testing::HasSubstr("no instructions for bfloat16"));
            continue;
        }
        EXPECT_GT(decibel(exact, half.forward({x}).toTensor()), least) << type;  // 8 and 11 bits
        EXPECT_EQ(half.forward({x}).toTensor().scalar_type(), at::kFloat);
        expect_stock(half, {x});
    }
}

TEST(WeightOnly, RefusesOptionsThatWouldDoNothing) {
    const auto model = two_linear();
    auto context = context_of({sine({2, 64})});
    const auto refused = [&](std::vector<std::pair<std::string, std::string>> options, const std::string& text) {
        EXPECT_ERROR(apply("quantize.weight_only", options, model, context), InvalidArgument, text);
    };
    for (const std::string type : {"bf16", "fp16"}) {
        refused({{"type", type}, {"rounding", "gptq"}}, "rounding means nothing for type " + type);
        refused({{"type", type}, {"rounding", "hqq"}}, "rounding means nothing");
        refused({{"type", type}, {"group", "64"}}, "group means nothing");
        refused({{"type", type}, {"symmetric", "true"}}, "symmetric means nothing");
        refused({{"type", type}, {"kernel", "packed"}}, "kernel means nothing");
    }
    refused({{"kernel", "packed"}, {"symmetric", "false"}}, "Use symmetric: true");
    refused({{"kernel", "packed"}, {"group", "32"}}, "Leave group out");
    // As a resolved recipe spells the defaults out.
    for (const std::string kernel : {"packed", "auto"}) {
        Options options("quantize.weight_only", {{"kernel", kernel}});
        find_entry(stages(), "stage", "quantize.weight_only", "test").make(options);
        EXPECT_EQ(options.resolved().at("symmetric"), true);
        const auto packed = apply("quantize.weight_only", {{"kernel", kernel}}, model, context);
        torch::jit::testing::FileCheck()
            .check_count("aten::_weight_int8pack_mm", 2, true)
            ->check_not("aten::linear")
            ->run(*packed.graph());
    }
    const auto image = sine({1, 3, 8, 8});
    auto pictures = context_of({image});
    try {
        const auto half =
            apply("quantize.weight_only", {{"type", "bf16"}, {"convolutions", "false"}}, residual_model(), pictures);
        EXPECT_EQ(pictures.facts["quantized_layers"], 1);  // the classifier
    } catch (const UnsupportedModel& error) {
        EXPECT_THAT(error.what(), ::testing::HasSubstr("convolutions: false"));
    }
}

TEST(WeightOnly, NeedsDataForRoundingsThatWeighByInputs) {
    auto context = context_of({sine({3, 64})});
    EXPECT_ERROR(apply("quantize.weight_only", {{"rounding", "gptq"}}, two_linear(), context), InvalidArgument,
                 "no batch norm whose statistics could stand for it");
    EXPECT_ERROR(apply("quantize.weight_only", {{"group", "48"}}, two_linear(), context), InvalidArgument,
                 "group is 48");
    EXPECT_ERROR(apply("quantize.weight_only", {{"type", "int3"}}, two_linear(), context), InvalidArgument, "int4");
    EXPECT_ERROR(apply("quantize.weight_only", {{"max_drop", "1"}}, two_linear(), context), InvalidArgument,
                 "labelled validation data");
}

TEST(Fallback, ReturnsTheNoisiestLayersToFloatUntilTheMetricHolds) {
    const auto x = sine({4, 64});
    auto context = context_of({x});
    // A metric that holds once two or fewer layers are left in few bits.
    const auto model = build_model({{"a.weight", sine({64, 64}, 0.2)},
                                    {"b.weight", sine({64, 64}, 0.1)},
                                    {"c.weight", sine({64, 64}, 0.3)},
                                    {"d.weight", sine({64, 64}, 0.15)}},
                                   "def forward(self, x):\n"
                                   "    y = torch.relu(torch.linear(x, self.a.weight))\n"
                                   "    y = torch.relu(torch.linear(y, self.b.weight))\n"
                                   "    y = torch.relu(torch.linear(y, self.c.weight))\n"
                                   "    return torch.linear(y, self.d.weight)\n");
    const auto count = [](const Model& candidate) {
        int layers = 0;
        for (const auto* node : all_nodes(*candidate.graph()))
            layers += std::string(node->kind().toQualString()) == "quantized::embedding_bag_4bit_unpack";
        return layers;
    };
    context.evaluate = [&](const Model& candidate) { return 90.0 - std::max(0, count(candidate) - 2); };
    const auto result = apply("quantize.weight_only", {{"type", "int4"}, {"max_drop", "0.5"}}, model, context);
    EXPECT_EQ(count(result), 2);
    EXPECT_TRUE(context.facts["fallback"]["holds"].get<bool>());
    EXPECT_EQ(context.facts["fallback"]["float_layers"], 2);
    // Those that went back are the noisiest.
    double noisiest_left = 1e9;
    for (const auto& row : context.facts["layers"])
        if (row["precision"] == "int4 weights") noisiest_left = std::min(noisiest_left, row["sqnr_db"].get<double>());
    for (const auto& row : context.facts["layers"])
        if (row["precision"] == "float32") {
            EXPECT_LE(row["sqnr_db"].get<double>(), noisiest_left);
            EXPECT_THAT(row["reason"].get<std::string>(), ::testing::HasSubstr("fallback"));
        }
}

TEST(Fallback, SaysOnceThatItChoosesOnTheTestData) {
    const auto rows = tensor_dataset({sine({32, 64}, 1.5)}, at::arange(32).remainder(16), "sine");
    using Settings = std::vector<std::pair<std::string, std::string>>;
    const std::vector<std::pair<std::string, Settings>> stages = {
        {"quantize.auto", {}},   {"quantize.dynamic", {}},     {"quantize.mixed", {{"sensitivity", "mse"}}},
        {"quantize.static", {}}, {"quantize.weight_only", {}}, {"quantize.codebook", {{"bits", "8"}}},
    };
    for (const auto& [stage, settings] : stages)
        for (const bool validation : {false, true})
            for (const bool falls_back : {false, true}) {
                SCOPED_TRACE(stage);
                auto context = context_of({sine({4, 64})});
                context.data.train = context.data.calibration = context.data.test = rows;
                if (validation) context.data.validation = rows;
                context.evaluate = [](const Model&) { return 90.0; };
                Warnings log;
                context.log = &log;
                auto all = settings;
                if (falls_back) all.emplace_back("max_drop", "0.5");
                apply(stage, all, two_linear(), context);
                EXPECT_EQ(context.facts.contains("chosen_on"), falls_back && !validation);
                const auto said = std::count_if(log.texts.begin(), log.texts.end(), [](const std::string& text) {
                    return text.find("the layers' precisions are chosen on the test data") != std::string::npos;
                });
                EXPECT_EQ(said, falls_back && !validation ? 1 : 0);
            }
}

TEST(Fallback, KeepsTheBestWhenNothingHolds) {
    auto context = context_of({sine({2, 3, 8, 8})});
    context.data.calibration = tensor_dataset({sine({32, 3, 8, 8}, 1.5)}, at::zeros({32}, at::kLong), "sine images");
    // Better with every layer in float, never good enough while any is int8.
    const auto int8_layers = [](const Model& candidate) {
        int layers = 0;
        for (const auto* node : all_nodes(*candidate.graph()))
            layers += std::string(node->kind().toQualString()).rfind("quantized::conv", 0) == 0 ||
                      std::string(node->kind().toQualString()).rfind("quantized::linear", 0) == 0;
        return layers;
    };
    context.evaluate = [&](const Model& candidate) { return 50.0 - int8_layers(candidate); };
    const auto result = apply("quantize.static", {{"max_drop", "0.1"}, {"batches", "1"}, {"batch_size", "16"}},
                              residual_model(), context);
    EXPECT_EQ(int8_layers(result), 1);
    EXPECT_FALSE(context.facts["fallback"]["holds"].get<bool>());
}

}  // namespace
}  // namespace coppice::quantize
