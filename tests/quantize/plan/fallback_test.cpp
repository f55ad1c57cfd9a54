// Layers that go back to float: which, how many, and for how long they are looked for.
#include <coppice/quantize.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <thread>

#include "layers/layers.h"
#include "support/support.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

Model any_model() {
    return build_model({{"w", sine({2, 2})}}, "def forward(self, x):\n    return torch.linear(x, self.w)\n");
}

Fallback points(double max_drop, double seconds = 600) {
    Fallback fallback;
    fallback.max_drop = max_drop;
    fallback.seconds = seconds;
    return fallback;
}

TEST(FallBack, AMetricThatIsNoNumberIsWorseThanAnyOther) {
    Context context;
    size_t built = 99;
    const std::vector<double> quality = {std::numeric_limits<double>::quiet_NaN(), 50, 0, 60};  // by layers in float
    bool first = true;
    context.evaluate = [&](const Model&) {
        if (!first) return quality.at(built);
        first = false;
        return 90.0;
    };
    const auto kept = fall_back(
        any_model(), 3,
        [&](size_t floats) {
            built = floats;
            return any_model();
        },
        points(1), context, "test");
    EXPECT_EQ(kept.second, 3u);
    const auto& facts = context.facts["fallback"];
    EXPECT_EQ(facts["metric"], 60);
    EXPECT_FALSE(facts["holds"].get<bool>());
    EXPECT_EQ(facts["stopped_by"], "candidates");
    EXPECT_TRUE(facts["tried"][0]["quality"].is_null());
    context.evaluate = [](const Model&) { return std::numeric_limits<double>::quiet_NaN(); };
    EXPECT_ERROR(fall_back(
                     any_model(), 3, [&](size_t) { return any_model(); }, points(1), context, "test"),
                 MeasurementError, "nan");
}

TEST(FallBack, BeginsNoTryThatWouldEndAfterItsSeconds) {
    Context context;
    int evaluations = 0;
    context.evaluate = [&](const Model&) {
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
        return ++evaluations == 1 ? 90.0 : 50.0;
    };
    const auto kept = fall_back(
        any_model(), 1000, [](size_t) { return any_model(); }, points(1, 0.25), context, "test");
    // The float model and the first candidate are always judged; a third try would end after 0.3 s.
    EXPECT_EQ(evaluations, 2);
    EXPECT_EQ(kept.second, 0u);
    EXPECT_EQ(context.facts["fallback"]["stopped_by"], "seconds");
    // With time enough the search ends by itself.
    evaluations = 0;
    context.evaluate = [&](const Model&) { return ++evaluations == 1 || evaluations > 3 ? 90.0 : 50.0; };
    fall_back(
        any_model(), 1000, [](size_t) { return any_model(); }, points(1), context, "test");
    EXPECT_EQ(context.facts["fallback"]["stopped_by"], "max_drop");
}

TEST(FallBack, RefusesPointsAndSecondsThatMeanNothing) {
    constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
    Context context;
    context.evaluate = [](const Model&) { return 90.0; };
    const auto run = [&](Fallback fallback) {
        fall_back(
            any_model(), 1, [](size_t) { return any_model(); }, fallback, context, "test");
    };
    for (const double max_drop : {-5.0, -0.5, kNaN})
        EXPECT_ERROR(run(points(max_drop)), InvalidArgument, "max_drop is");
    for (const double seconds : {-1.0, 0.0, kNaN})
        EXPECT_ERROR(run(points(1, seconds)), InvalidArgument, "fallback_seconds is");
    EXPECT_NO_THROW(run(points(-1)));
    // In recipes, too, of every stage that has them.
    int stages_with = 0;
    for (const auto& row : stages()) {
        SCOPED_TRACE(row.name);
        const auto make = [&](const std::string& name, const std::string& value) {
            Options options(row.name, std::vector<std::pair<std::string, std::string>>{{name, value}});
            row.make(options);
        };
        EXPECT_ERROR(make("max_drop", "-5"), InvalidArgument, "max_drop is -5");
        EXPECT_ERROR(make("fallback_seconds", "-1"), InvalidArgument, "fallback_seconds is -1");
        EXPECT_NO_THROW(make("max_drop", "-1"));
        ++stages_with;
    }
    EXPECT_EQ(stages_with, 6);
}

/// The output is that of layer b and a thousandth of that of layer a, whose weights no grid suits: one in each row, for
/// an input that is always zero, is a hundred times as large as the rest.
Model loud_and_quiet() {
    auto a = sine({8, 32}, 0.3);
    a.select(1, 0).fill_(100);
    return build_model({{"a.weight", a}, {"b.weight", sine({8, 32}, 0.4)}},
                       "def forward(self, x):\n"
                       "    return 0.001 * torch.linear(x, self.a.weight) + torch.linear(x, self.b.weight)\n");
}

TEST(FallBack, LayersGoBackByWhatTheyDoToTheOutputAndNotByTheirOwnNoise) {
    torch::NoGradGuard no_grad;
    auto x = (at::arange(64 * 32, at::kDouble) * 0.7).sin().to(at::kFloat).reshape({64, 32});
    x.select(1, 0).zero_();
    const auto model = loud_and_quiet();
    const auto exact = first_tensor(model.forward({x}));
    for (const auto& [stage, settings] :
         std::vector<std::pair<std::string, std::vector<std::pair<std::string, std::string>>>>{
             {"quantize.static", {{"engine", "x86"}}},
             {"quantize.dynamic", {}},
             {"quantize.weight_only", {{"type", "int4"}}},
             {"quantize.codebook", {}}}) {
        SCOPED_TRACE(stage);
        Context context;
        context.example = {x.slice(0, 0, 16)};
        context.data.train = context.data.calibration = tensor_dataset({x}, at::zeros({64}, at::kLong), "sines");
        context.evaluate = [&](const Model& candidate) {
            const auto error = (first_tensor(candidate.forward({x})) - exact).square().mean().sqrt().item<double>();
            return error < 2e-3 * exact.square().mean().sqrt().item<double>() ? 90.0 : 80.0;
        };
        auto all = settings;
        all.insert(all.end(), {{"max_drop", "1"}, {"min_sqnr_db", "-100"}});
        Options options(stage, all);
        find_entry(stages(), "stage", stage, "test").make(options)->apply(model, context);
        const auto& facts = context.facts["fallback"];
        EXPECT_TRUE(facts["holds"].get<bool>());
        EXPECT_EQ(facts["float_layers"], 1);
        EXPECT_EQ(facts["order"], "noise of the output");
        double noise_of_a = 0, noise_of_b = 0;
        for (const auto& row : context.facts["layers"]) {
            const bool in_float = row["precision"] == "float32";
            EXPECT_EQ(in_float, row["layer"] == "b") << row;
            (row["layer"] == "a" ? noise_of_a : noise_of_b) = row.value("sqnr_db", 0.0);
        }
        if (noise_of_b != 0) EXPECT_LT(noise_of_a, noise_of_b);  // by its own noise it would have been a
    }
}

}  // namespace
}  // namespace coppice::quantize
