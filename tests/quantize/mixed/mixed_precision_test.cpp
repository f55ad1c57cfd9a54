// quantize.mixed and its sensitivities, by other roads.
#include <coppice/quantize.h>

#include <cmath>

#include "support/support.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

int count(const Model& model, const std::string& op) {
    int found = 0;
    for (const auto* node : all_nodes(*model.graph())) found += std::string(node->kind().toQualString()) == op;
    return found;
}

Model three_layers() {
    return build_model(
        {{"a.weight", sine({64, 32}, 0.2)}, {"b.weight", sine({64, 64}, 0.1)}, {"c.weight", sine({10, 64}, 0.2)}},
        "def forward(self, x):\n"
        "    x = torch.relu(torch.linear(x, self.a.weight))\n"
        "    return torch.linear(torch.relu(torch.linear(x, self.b.weight)), self.c.weight)\n");
}

Context context_with(const at::Tensor& inputs, const at::Tensor& target) {
    Context context;
    context.example = {inputs.slice(0, 0, 2)};
    context.data.train = context.data.calibration = tensor_dataset({inputs}, target, "test");
    return context;
}

Context sine_context() {
    return context_with(sine({48, 32}, 1.5), at::arange(48).remainder(10));
}

Json layer_of(const Context& context, const std::string& name) {
    for (const auto& row : context.facts["layers"])
        if (row["layer"] == name) return row;
    ADD_FAILURE() << "no layer " << name;
    return {};
}

Json trial_of(const Json& layer, const std::string& precision) {
    for (const auto& trial : layer["trials"])
        if (trial["precision"] == precision) return trial;
    ADD_FAILURE() << layer << " has no " << precision;
    return {};
}

TEST(Mixed, WeightBytesAreThoseOfTheStoredRows) {
    auto context = sine_context();
    MixedOptions options;
    options.precisions = {"int8", "int4", "static"};
    options.min_sqnr_db = 0;
    options.ratio = 0.5;
    const auto model = three_layers();
    mixed_precision(options)->apply(model, context);
    const auto layer = layer_of(context, "b");
    EXPECT_EQ(trial_of(layer, "float")["cost"], 64 * 64 * 4);
    EXPECT_EQ(trial_of(layer, "int8")["cost"], 64 * (64 + 8));        // a byte each, scale and offset per row
    EXPECT_EQ(trial_of(layer, "int4")["cost"], 64 * (32 + 4));        // half a byte, both in half precision
    EXPECT_EQ(trial_of(layer, "static")["cost"], 64 * (64 + 8 + 8));  // scale and zero point of 8 bytes per row
}

TEST(Mixed, StaysWithinTheBudgetOfBytesInWhatTheModelReallyHolds) {
    const auto model = three_layers();
    for (const double ratio : {0.15, 0.3, 0.6}) {
        auto context = sine_context();
        MixedOptions options;
        options.precisions = {"int8", "int4"};
        options.min_sqnr_db = 0;
        options.ratio = ratio;
        const auto mixed = mixed_precision(options)->apply(model, context);
        int64_t bytes = 0;
        for (const auto& named : named_tensors(mixed)) bytes += named.tensor.nbytes();
        const double whole = (64 * 32 + 64 * 64 + 10 * 64) * 4;
        EXPECT_LE(static_cast<double>(bytes), ratio * whole);
        EXPECT_EQ(context.facts["weight_bytes"], bytes);
        EXPECT_EQ(context.facts["float_weight_bytes"], whole);
    }
}

TEST(Mixed, BuildsWhatItChoseAndTheFrontFallsFromCheapToExact) {
    auto context = sine_context();
    MixedOptions options;
    options.min_sqnr_db = 0;
    options.ratio = 0.3;
    const auto mixed = mixed_precision(options)->apply(three_layers(), context);
    const auto& counts = context.facts["precisions"];
    EXPECT_EQ(count(mixed, "aten::linear"),
              counts.value("float", 0) + counts.value("int8", 0) + counts.value("int4", 0));
    EXPECT_EQ(count(mixed, "quantized::embedding_bag_4bit_unpack"), counts.value("int4", 0));
    const auto& front = context.facts["front"];
    ASSERT_GT(front.size(), 2u);
    for (size_t i = 1; i < front.size(); ++i) {
        EXPECT_GT(front[i]["cost"], front[i - 1]["cost"]);
        EXPECT_LT(front[i]["loss"], front[i - 1]["loss"]);
    }
    EXPECT_EQ(front.back()["loss"], 0);  // all float
    EXPECT_EQ(front.back()["cost"], context.facts["float_cost"]);
    EXPECT_LE(context.facts["cost"].get<double>(), 0.3 * context.facts["float_cost"].get<double>());
}

TEST(Mixed, StaticLayersBesideFloatOnesComputeWhatTheirSimulationDoes) {
    torch::NoGradGuard no_grad;
    // Bit operations alone: static int8 costs a 16th, and there is room for one of the four layers in float.
    auto images = (at::arange(32 * 3 * 8 * 8, at::kDouble) * 0.7).sin().to(at::kFloat).reshape({32, 3, 8, 8});
    auto context = context_with(images, at::arange(32).remainder(10));
    MixedOptions options;
    options.precisions = {"static"};
    options.budget = "bops";
    options.ratio = 0.6;
    const auto model = residual_model();
    const auto mixed = mixed_precision(options)->apply(model, context);
    const auto& counts = context.facts["precisions"];
    const int statics = counts.value("static", 0), floats = counts.value("float", 0);
    EXPECT_GT(statics, 0);
    EXPECT_GT(floats, 0);
    int emitted = 0;
    for (const auto* node : all_nodes(*mixed.graph())) {
        const std::string op = node->kind().toQualString();
        emitted += op.rfind("quantized::conv", 0) == 0 || op.rfind("quantized::linear", 0) == 0;
    }
    EXPECT_EQ(emitted, statics);
    EXPECT_EQ(count(mixed, "aten::conv2d") + count(mixed, "aten::linear"), floats);
    // The rest of the multiply-adds: 32 x 32 bits in float, 8 x 8 in int8.
    const auto whole = cost(model, context.example);
    EXPECT_EQ(context.facts["float_bops"], whole.macs * 1024);
    EXPECT_LE(context.facts["bops"].get<double>(), 0.6 * whole.macs * 1024);
    const auto exact = first_tensor(model.forward({images})), rounded = first_tensor(mixed.forward({images}));
    EXPECT_LT((exact - rounded).pow(2).sum().item<double>(), 0.01 * exact.pow(2).sum().item<double>());
}

TEST(Mixed, RowsSayTheNoiseAndTheRangeOfThePrecisionChosen) {
    for (const std::string precision : {"static", "dynamic", "int4"}) {
        auto context = sine_context();
        MixedOptions options;
        options.precisions = {precision};
        options.min_sqnr_db = 0;
        options.ratio = 0;
        mixed_precision(options)->apply(three_layers(), context);
        for (const char* name : {"a", "b", "c"}) {
            SCOPED_TRACE(precision + " " + name);
            const auto row = layer_of(context, name);
            ASSERT_EQ(row.at("precision"), precision);
            EXPECT_EQ(row.at("sqnr_db"), trial_of(row, precision).at("sqnr_db"));
            EXPECT_GT(row.at("input_range")[1], row.at("input_range")[0]);
            EXPECT_EQ(row.contains("clipped_ratio"), precision == "static");
        }
        // sin(0 ... 1535) times 1.5, whose values come close to either end.
        const auto range = layer_of(context, "a").at("input_range");
        EXPECT_NEAR(range[0].get<double>(), -1.5, 0.02);
        EXPECT_NEAR(range[1].get<double>(), 1.5, 0.02);
    }
    MixedOptions options;
    options.rounding = hqq();
    EXPECT_ERROR(mixed_precision(options), InvalidArgument, "precisions without static");
}

TEST(Mixed, TheLossOfOneLayerIsTheDivergenceOfTheModelWithThatLayerRounded) {
    torch::NoGradGuard no_grad;
    auto context = sine_context();
    MixedOptions options;
    options.precisions = {"int4"};
    options.min_sqnr_db = 0;
    options.examples = 48;
    const auto model = three_layers();
    mixed_precision(options)->apply(model, context);
    // By hand: weight b rounded, everything else exact.
    GridOptions grid;
    grid.bits = 4;
    grid.group = 64;
    grid.symmetric = false;
    grid.half = true;
    auto rounded = model.clone();
    set_tensor(rounded, "b.weight", nearest()->round(sine({64, 64}, 0.1), grid, nullptr).values());
    const auto x = sine({48, 32}, 1.5);
    const auto p = first_tensor(model.forward({x})).to(at::kDouble),
               q = first_tensor(rounded.forward({x})).to(at::kDouble);
    double divergence = 0;
    for (int64_t n = 0; n < 48; ++n) {
        double sum_p = 0, sum_q = 0;
        for (int64_t c = 0; c < 10; ++c) {
            sum_p += std::exp(p[n][c].item<double>());
            sum_q += std::exp(q[n][c].item<double>());
        }
        for (int64_t c = 0; c < 10; ++c) {
            const double a = p[n][c].item<double>() - std::log(sum_p), b = q[n][c].item<double>() - std::log(sum_q);
            divergence += std::exp(a) * (a - b) / 48;
        }
    }
    // 1e-5 relative: the outputs are float32 sums of 64 terms.
    EXPECT_NEAR(trial_of(layer_of(context, "b"), "int4")["loss"], divergence, 1e-3 * divergence);
}

TEST(Mixed, ClassesThatAreRuledOutByMinusInfinityAddNothingToTheDivergence) {
    torch::NoGradGuard no_grad;
    MixedOptions options;
    options.precisions = {"int4"};
    options.min_sqnr_db = 0;
    options.examples = 48;
    auto masked = sine_context(), plain = sine_context();
    const std::vector<std::pair<std::string, at::Tensor>> tensors = {{"a.weight", sine({64, 32}, 0.2)},
                                                                     {"c.weight", sine({10, 64}, 0.2)}};
    const std::string layers =
        "def forward(self, x):\n    y = torch.linear(torch.relu(torch.linear(x, self.a.weight)), ";
    mixed_precision(options)->apply(
        build_model(tensors, layers + "self.c.weight)\n"
                                      "    return torch.cat([y, torch.full([y.size(0), 2], -float('inf'))], 1)\n"),
        masked);
    mixed_precision(options)->apply(build_model(tensors, layers + "self.c.weight)\n    return y\n"), plain);
    for (const char* name : {"a", "c"}) {
        const double expected = trial_of(layer_of(plain, name), "int4")["loss"];
        EXPECT_GT(expected, 0);
        EXPECT_NEAR(trial_of(layer_of(masked, name), "int4")["loss"].get<double>(), expected, 1e-9 * expected);
    }
    // Of other tasks: what is infinite before and after is no noise.
    masked.task = plain.task = Task::kRegression;
    mixed_precision(options)->apply(
        build_model(tensors, layers + "self.c.weight)\n"
                                      "    return torch.cat([y, torch.full([y.size(0), 2], -float('inf'))], 1)\n"),
        masked);
    mixed_precision(options)->apply(build_model(tensors, layers + "self.c.weight)\n    return y\n"), plain);
    const double expected = trial_of(layer_of(plain, "a"), "int4")["loss"];
    EXPECT_NEAR(trial_of(layer_of(masked, "a"), "int4")["loss"].get<double>(), expected, 1e-9 * expected);
}

TEST(Mixed, RefusesALossThatIsNoNumberAndNamesTheLayerAndThePrecision) {
    class NoNumber final : public Sensitivity {
    public:
        std::string unit() const override { return "none"; }
        std::vector<std::vector<double>> measure(const PrecisionTable&, Context&) const override {
            return {{0, 1}, {0, std::numeric_limits<double>::quiet_NaN()}, {0, 1}};
        }
    };
    auto context = sine_context();
    MixedOptions options;
    options.precisions = {"int4"};
    options.min_sqnr_db = 0;
    options.sensitivity = std::make_shared<NoNumber>();
    EXPECT_ERROR(mixed_precision(options)->apply(three_layers(), context), UnsupportedModel, "quantize.mixed at b");
    EXPECT_ERROR(mixed_precision(options)->apply(three_layers(), context), UnsupportedModel, "precision int4 is nan");
}

TEST(Hessian, TraceOfALinearRegressionIsTheMeanSquaredInputs) {
    // L = mean over N x C of (w x - t)^2: each of the C rows of w has the Hessian 2 / (N C) X^T X. Inputs with one
    // entry each make it diagonal, and then v^T H v is the trace for every v of +-1.
    const int64_t n = 24, in = 6, out = 5;
    auto x = at::zeros({n, in});
    for (int64_t i = 0; i < n; ++i) x[i][i % in] = 1.0 + 0.25 * static_cast<double>(i);
    const auto weight = sine({out, in}, 0.7);
    const auto model =
        build_model({{"l.weight", weight}}, "def forward(self, x):\n    return torch.linear(x, self.l.weight)\n");
    auto context = context_with(x, sine({n, out}, 3.0));
    context.task = Task::kRegression;
    MixedOptions options;
    options.precisions = {"int8"};
    options.examples = n;
    options.ratio = 0.9;
    options.sensitivity = hessian_trace(1);
    mixed_precision(options)->apply(model, context);
    double trace = 0;
    for (int64_t i = 0; i < n; ++i) trace += std::pow(1.0 + 0.25 * static_cast<double>(i), 2);
    trace *= 2.0 / static_cast<double>(n * out) * static_cast<double>(out);
    GridOptions grid;
    grid.symmetric = false;
    const auto change = (nearest()->round(weight, grid, nullptr).values() - weight).pow(2).sum().item<double>();
    const double expected = trace / static_cast<double>(out * in) * change;
    // Inputs and gradients are float32.
    EXPECT_NEAR(trial_of(layer_of(context, "l"), "int8")["loss"], expected, 1e-4 * expected);
}

TEST(Hessian, EstimateOfACoupledLayerComesNearTheWholeHessian) {
    // Two layers with a curved function between them; the trace of the first by second differences of the loss in
    // float64, one weight at a time.
    const auto x = sine({20, 4}, 1.3), target = sine({20, 2}, 2.0);
    const auto a = sine({3, 4}, 0.9), b = sine({2, 3}, 0.8);
    const auto model =
        build_model({{"a.weight", a}, {"b.weight", b}},
                    "def forward(self, x):\n"
                    "    return torch.linear(torch.tanh(torch.linear(x, self.a.weight)), self.b.weight)\n");
    const auto loss = [&](const at::Tensor& w) {
        return at::mse_loss(at::linear(at::linear(x.to(at::kDouble), w).tanh(), b.to(at::kDouble)),
                            target.to(at::kDouble));
    };
    double trace = 0;
    const double step = 1e-3;
    for (int64_t i = 0; i < a.numel(); ++i) {
        const auto at_offset = [&](double offset) {
            auto w = a.to(at::kDouble).clone();
            w.view({-1})[i] += offset;
            return loss(w).item<double>();
        };
        trace += (at_offset(step) - 2 * at_offset(0) + at_offset(-step)) / (step * step);
    }
    auto context = context_with(x, target);
    context.task = Task::kRegression;
    MixedOptions options;
    options.precisions = {"int8"};
    options.examples = 20;
    options.ratio = 0.99;
    options.sensitivity = hessian_trace(2000);
    mixed_precision(options)->apply(model, context);
    GridOptions grid;
    grid.symmetric = false;
    const auto change = (nearest()->round(a, grid, nullptr).values() - a).pow(2).sum().item<double>();
    const double expected = std::abs(trace) / 12 * change;
    // Hutchinson's standard error at 2,000 vectors is about |H| sqrt(2 / 2000), 3 % of the trace here; three of it.
    EXPECT_NEAR(trial_of(layer_of(context, "a"), "int8")["loss"], expected, 0.1 * expected);
}

TEST(Sensitivities, AreZeroForFloatAndGrowFromEightToFourBits) {
    for (const auto& row : sensitivities()) {
        auto context = sine_context();
        Options settings(row.name);
        MixedOptions options;
        options.precisions = {"int4", "int8"};
        options.min_sqnr_db = 0;
        options.sensitivity = row.make(settings);
        EXPECT_FALSE(options.sensitivity->unit().empty());
        mixed_precision(options)->apply(three_layers(), context);
        for (const auto& layer : context.facts["layers"]) {
            EXPECT_EQ(trial_of(layer, "float")["loss"], 0) << row.name;
            EXPECT_GT(trial_of(layer, "int8")["loss"], 0) << row.name;
            EXPECT_GT(trial_of(layer, "int4")["loss"], trial_of(layer, "int8")["loss"]) << row.name;
        }
    }
}

TEST(Mixed, GoesOnToMoreExactPrecisionsUntilTheMetricHolds) {
    auto context = sine_context();
    // The metric is judged by how many layers are in four bits: two or more cost three points.
    int evaluations = 0;
    context.evaluate = [&](const Model& model) {
        ++evaluations;
        return count(model, "quantized::embedding_bag_4bit_unpack") >= 2 ? 87.0 : 90.0;
    };
    MixedOptions options;
    options.precisions = {"int4", "int8"};
    options.min_sqnr_db = 0;
    options.ratio = 0;
    options.fallback.max_drop = 1;
    const auto mixed = mixed_precision(options)->apply(three_layers(), context);
    EXPECT_LE(count(mixed, "quantized::embedding_bag_4bit_unpack"), 1);
    EXPECT_TRUE(context.facts["fallback"]["holds"].get<bool>());
    EXPECT_GT(context.facts["fallback"]["steps"], 0);
    EXPECT_GE(evaluations, 3);
}

TEST(Mixed, KeepsTheWholeModelWithinALatencyThatTheTimerConfirms) {
    auto context = sine_context();
    MixedOptions options;
    options.precisions = {"dynamic"};
    options.budget = "latency";
    options.ratio = 0.7;
    // 10 a layer in float, 2 in int8, and 12 that the layers alone do not show when int8 is in use.
    options.timer = [](const Model& model, const Inputs& inputs) {
        const int floats = count(model, "aten::linear");
        const int int8 = count(model, "quantized::linear_dynamic") + count(model, "quantized::linear_relu_dynamic");
        return 10.0 * floats + 2.0 * int8 + (inputs.empty() || int8 == 0 ? 0.0 : 12.0);
    };
    const auto mixed = mixed_precision(options)->apply(three_layers(), context);
    // Limit 21: two layers in int8 promise 14 and take 26; with 5 off the budget again; with 10 off, all three take 18.
    EXPECT_EQ(count(mixed, "aten::linear"), 0);
    EXPECT_EQ(context.facts["latency"]["seconds"], 18.0);
    EXPECT_EQ(context.facts["latency"]["tried"].size(), 3u);
    EXPECT_TRUE(context.facts["latency"]["holds"].get<bool>());
}

TEST(Mixed, SaysWhatItCannotDo) {
    auto context = sine_context();
    MixedOptions options;
    options.ratio = 0.01;
    EXPECT_ERROR(mixed_precision(options)->apply(three_layers(), context), InvalidArgument, "cheapest precisions cost");
    options.precisions = {"int5"};
    EXPECT_ERROR(mixed_precision(options), InvalidArgument, "int4");
    options.precisions = {"int4"};
    options.min_sqnr_db = 190;
    EXPECT_ERROR(mixed_precision(options)->apply(three_layers(), context), UnsupportedModel, "min_sqnr_db is 190");
    options.ratio = 1.5;
    EXPECT_ERROR(mixed_precision(options), InvalidArgument, "must be in [0, 1]");
}

}  // namespace
}  // namespace coppice::quantize
