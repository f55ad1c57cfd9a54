// What the stages refuse, and whether their messages say where, what and how to mend it.
#include <coppice/qat.h>

#include <cmath>
#include <limits>

#include "support/support.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

Context context_of(const at::Tensor& example) {
    Context context;
    context.example = {example};
    const auto examples = at::cat({example, example * 0.9});
    context.data.calibration = tensor_dataset({examples}, at::zeros({examples.size(0)}, at::kLong), "sines");
    return context;
}

std::unique_ptr<Stage> stage_of(const std::string& name,
                                std::vector<std::pair<std::string, std::string>> scalars = {}) {
    Options options(name, std::move(scalars));
    return find_entry(stages(), "stage", name, "test").make(options);
}

TEST(Refusals, EveryStageNamesTheWeightThatIsNoNumberBeforeItWorks) {
    const auto example = sine({2, 3, 8, 8});
    for (const auto& row : stages())
        for (const std::string broken : {"a.weight", "a.bias", "f.weight"}) {
            std::vector<std::pair<std::string, at::Tensor>> tensors = {
                {"a.weight", sine({4, 3, 3, 3}, 0.3)}, {"a.bias", sine({4}, 0.1)}, {"f.weight", sine({5, 4}, 0.4)}};
            for (auto& [name, tensor] : tensors)
                if (name == broken)
                    tensor.view({-1})[1] = broken == "a.bias" ? std::numeric_limits<double>::infinity()
                                                              : std::numeric_limits<double>::quiet_NaN();
            const auto model = build_model(tensors,
                                           "def forward(self, x):\n"
                                           "    x = torch.relu(torch.conv2d(x, self.a.weight, self.a.bias))\n"
                                           "    return torch.linear(x.mean([2, 3]), self.f.weight)\n");
            auto context = context_of(example);
            SCOPED_TRACE(row.name + " " + broken);
            const auto expected = row.name + " at " + broken + ": it holds NaN or infinity";
            EXPECT_ERROR(stage_of(row.name)->check(model, context), UnsupportedModel, expected);
            EXPECT_ERROR(stage_of(row.name)->apply(model, context), UnsupportedModel, expected);
        }
}

TEST(Refusals, ALayerThatTheFirstBatchDoesNotReachIsMeasuredOnALaterOneOrSaysThatNoneDoes) {
    const auto model = build_model({{"a.weight", sine({6, 6}, 0.3)}, {"b.weight", sine({6, 6}, 0.4)}},
                                   "def forward(self, x):\n"
                                   "    y = torch.linear(x, self.a.weight)\n"
                                   "    if bool(x.sum() > 0.):\n"
                                   "        y = torch.linear(y, self.b.weight)\n"
                                   "    return y\n");
    const auto positive = sine({1, 6}).abs();
    // Whichever of two is read first, of one pair it does not reach the layer.
    for (const auto& [first, second] :
         {std::pair{-positive, positive}, {positive, -positive}, {-positive, -positive}}) {
        Context context;
        context.example = {positive};
        context.data.calibration = tensor_dataset({at::cat({first, second})}, at::zeros({2}, at::kLong), "sines");
        stage_of("quantize.dynamic", {{"batches", "2"}, {"batch_size", "1"}})->apply(model, context);
        const bool reached = !at::equal(first, second);
        ASSERT_EQ(context.changes.size(), 2u);
        for (const auto& change : context.changes) {
            SCOPED_TRACE(change.layer + ": " + change.reason);
            const bool kept = change.layer == "b" && !reached;
            EXPECT_EQ(change.action == "kept", kept);
            EXPECT_THAT(change.reason, ::testing::HasSubstr(kept ? "no run on calibration data reaches it" : "SQNR "));
        }
    }
}

TEST(Refusals, DataThatAreNoNumbersAreNamedByWhereTheyAre) {
    const auto model = build_model({{"a.weight", sine({4, 3, 3, 3}, 0.3)}, {"f.weight", sine({5, 4}, 0.4)}},
                                   "def forward(self, x):\n"
                                   "    x = torch.log(torch.conv2d(x, self.a.weight).abs() - 1e-4)\n"
                                   "    return torch.linear(x.mean([2, 3]), self.f.weight)\n");
    auto example = sine({2, 3, 8, 8});
    example[1][0][0][0] = std::numeric_limits<double>::quiet_NaN();
    auto context = context_of(example);
    EXPECT_ERROR(stage_of("quantize.static")->apply(model, context), UnsupportedModel, "quantize.static at input x");
    EXPECT_ERROR(stage_of("quantize.dynamic")->apply(model, context), UnsupportedModel,
                 "f: its input is NaN or infinite on calibration data");
    EXPECT_ERROR(stage_of("quantize.weight_only", {{"rounding", "gptq"}})->apply(model, context), UnsupportedModel,
                 "quantize at the input of a");
    // Zeros in, the logarithm of a negative number out.
    context = context_of(at::zeros({2, 3, 8, 8}));
    EXPECT_ERROR(stage_of("quantize.static")->apply(model, context), UnsupportedModel,
                 "quantize.static at the output of ");
}

TEST(Refusals, AQuantizedModelIsSaidToBeOne) {
    const auto example = sine({2, 16}, 1.2);
    const auto model =
        build_model({{"f.weight", sine({16, 16}, 0.3)}, {"g.weight", sine({5, 16}, 0.4)}},
                    "def forward(self, x):\n"
                    "    return torch.linear(torch.relu(torch.linear(x, self.f.weight)), self.g.weight)\n");
    for (const char* first : {"quantize.static", "quantize.dynamic", "quantize.weight_only"})
        for (const char* second : {"quantize.static", "quantize.dynamic"}) {
            SCOPED_TRACE(std::string(first) + ", then " + second);
            auto context = context_of(example);
            const auto quantized = stage_of(first)->apply(model, context);
            EXPECT_ERROR(stage_of(second)->apply(quantized, context), UnsupportedModel,
                         "the model is quantized already: operators such as quantized::");
        }
}

TEST(Refusals, LayersInBranchesAndOtherTypesAreNamed) {
    const auto example = sine({2, 16}, 1.2);
    const auto branch = build_model({{"f.weight", sine({16, 16}, 0.3)}},
                                    "def forward(self, x):\n"
                                    "    if bool(x.sum() > 0):\n"
                                    "        x = torch.linear(x, self.f.weight)\n"
                                    "    return x\n");
    auto context = context_of(example);
    EXPECT_ERROR(stage_of("quantize.static")->apply(branch, context), UnsupportedModel,
                 "f: it runs inside a branch or a loop");
    const auto doubles = build_model({{"f.weight", sine({16, 16}, 0.3).to(at::kDouble)}},
                                     "def forward(self, x):\n    return torch.linear(x, self.f.weight)\n");
    context = context_of(example.to(at::kDouble));
    for (const char* stage : {"quantize.static", "quantize.dynamic", "quantize.weight_only"})
        EXPECT_ERROR(stage_of(stage)->apply(doubles, context), UnsupportedModel,
                     "weights are of type Double. Save the model in float32");
}

TEST(Refusals, AMetricToHoldNeedsDataBeforeWorkStarts) {
    const auto model = residual_model();
    for (const auto& row : stages()) {
        SCOPED_TRACE(row.name);
        auto context = context_of(sine({2, 3, 8, 8}));
        const auto stage = stage_of(row.name, {{"max_drop", "1"}});
        EXPECT_ERROR(stage->check(model, context), InvalidArgument, "max_drop needs labelled validation data");
        context.evaluate = [](const Model&) { return 0.0; };
        EXPECT_NO_THROW(stage->check(model, context));
    }
}

TEST(Refusals, PlansCheckTheirOptionsAsTheStageDoes) {
    const auto model = residual_model();
    const Inputs x{sine({2, 3, 8, 8})};
    const auto refused = [&](const std::function<void(StaticOptions & options)>& set, const char* text) {
        StaticOptions options;
        set(options);
        EXPECT_ERROR(plan_static(model, x, {x}, options), InvalidArgument, text);
        EXPECT_ERROR(static_int8(options), InvalidArgument, text);
    };
    refused([](auto& o) { o.engine = "cuda"; }, "unknown engine");
    refused([](auto& o) { o.linear = "fusd"; }, "Did you mean \"fused\"");
    refused([](auto& o) { o.conv = "fusd"; }, "Did you mean \"fused\"");
    refused([](auto& o) { o.weight_bits = 9; }, "must be in [2, 8]");
    refused([](auto& o) { o.rounding = awq(); }, "scales a layer's input");
    refused([](auto& o) { o.min_sqnr_db = std::nan(""); }, "min_sqnr_db is no number");
    EXPECT_ERROR(plan_static(Model(), x, {x}), InvalidArgument, "the model is empty");
    EXPECT_ERROR(Calibration(std::shared_ptr<const Dataset>(), 1, 1, 0), InvalidArgument, "there is no dataset");
    EXPECT_ERROR(affine({std::nan(""), 1}), InvalidArgument, "the range is not finite");
    EXPECT_ERROR(quantize_weight(at::ones({0, 3})), InvalidArgument, "no elements");
    EXPECT_ERROR(cluster(at::full({5}, std::nan("")), 4, *linear_init()), UnsupportedModel, "NaN or infinity");
}

TEST(Refusals, WeightsWithoutElementsStayInFloat) {
    const auto model = build_model({{"f.weight", sine({6, 4})}, {"none.weight", at::ones({0, 6})}},
                                   "def forward(self, x):\n"
                                   "    y = torch.relu(torch.linear(x, self.f.weight))\n"
                                   "    return y, torch.linear(y, self.none.weight)\n");
    auto context = context_of(sine({8, 4}));
    for (const char* name : {"quantize.static", "quantize.dynamic", "quantize.weight_only"}) {
        SCOPED_TRACE(name);
        const auto outputs = all_tensors(stage_of(name)->apply(model, context).forward(context.example));
        EXPECT_EQ(outputs[1].sizes(), at::IntArrayRef({8, 0}));
    }
}

TEST(Refusals, MixedLeavesOutWhatNoPrecisionTreats) {
    // A transposed convolution with dilation has no rows that moments could be taken of.
    const auto model = build_model({{"a.weight", sine({8, 4, 3, 3}, 0.2)},
                                    {"up.weight", sine({8, 6, 3, 3}, 0.2)},
                                    {"same.weight", sine({4, 6, 2, 2}, 0.2)}},
                                   "def forward(self, x):\n"
                                   "    x = torch.relu(torch.conv2d(x, self.a.weight))\n"
                                   "    x = torch.conv_transpose2d(x, self.up.weight, None, [2, 2], [0, 0], [0, 0], 1, "
                                   "[2, 2])\n"
                                   "    return torch.conv2d(x, self.same.weight, None, [1, 1], \"same\")\n");
    auto context = context_of(sine({2, 4, 8, 8}));
    const auto stage = stage_of("quantize.mixed", {{"rounding", "gptq"}, {"precisions", "int8"}, {"ratio", "0.9"}});
    stage->apply(model, context);
    int treated = 0;
    for (const auto& row : context.facts["layers"]) treated += row.at("precision") == "int8";
    EXPECT_EQ(treated, 1);
}

TEST(Refusals, ARatioThatNoPrecisionReachesIsToldInTheRecipesTerms) {
    auto context = context_of(sine({2, 3, 8, 8}));
    EXPECT_ERROR(stage_of("quantize.mixed", {{"ratio", "0.01"}})->apply(residual_model(), context), InvalidArgument,
                 "ratio 0.01 leaves ");
    EXPECT_ERROR(stage_of("quantize.mixed", {{"ratio", "0.01"}})->apply(residual_model(), context), InvalidArgument,
                 "Use a ratio of at least 0.");
}

}  // namespace
}  // namespace coppice::quantize
