#include <coppice/eval.h>

#include "support/support.h"

namespace coppice::eval {
namespace {

using testing::build_model;
using testing::sine;

// Counts 3 J per CPU second, as an instrument.
class CpuMeter final : public EnergyMeter {
public:
    std::string name() const override { return "cpu"; }
    std::string method() const override { return "test meter"; }
    void start() override { start_ = cpu_seconds(false); }
    Figure read() override { return Figure::measured(3 * (cpu_seconds(false) - start_), "J", method()); }

private:
    double start_ = 0;
};

Model two_layers() {
    return build_model({{"a.weight", sine({64, 32})}, {"b.weight", sine({8, 64})}},
                       "def forward(self, x):\n"
                       "    return torch.linear(torch.relu(torch.linear(x, self.a.weight)), self.b.weight)\n");
}

Profile profile_of(const Model& model, const Inputs& example, EnergyMeter* meter = nullptr) {
    ProfileOptions options;
    options.runs = 3;
    options.energy_seconds = 0.02;
    return profile(model, example, options, meter);
}

TEST(Profile, HasARowPerOperatorWithCountsByHand) {
    const auto result = profile_of(two_layers(), {sine({4, 32})});
    ASSERT_EQ(result.operators.size(), 3u);
    EXPECT_EQ(result.operators[0].cost.macs, 4.0 * 64 * 32);
    EXPECT_EQ(result.operators[1].cost.flops, 4.0 * 64) << "relu: one per element";
    EXPECT_EQ(result.operators[2].cost.macs, 4.0 * 8 * 64);
    EXPECT_EQ(result.operators[2].cost.parameters, 8 * 64);
    EXPECT_EQ(result.operators[2].cost.activation_bytes, 4 * 8 * 4);
    double ratio = 0;
    for (const auto& row : result.operators) {
        EXPECT_GT(row.seconds, 0) << row.cost.name;
        ratio += row.time_ratio;
        EXPECT_FALSE(row.energy_j.available()) << "there is no meter";
    }
    EXPECT_LE(ratio, 1 + 1e-9);
    EXPECT_GT(ratio, 0.1);
}

TEST(Profile, SharesTheEnergyOfARunByCpuTime) {
    CpuMeter meter;
    const auto result = profile_of(two_layers(), {sine({256, 32})}, &meter);
    ASSERT_TRUE(result.energy_j.available()) << result.energy_j.reason;
    EXPECT_GT(*result.energy_j.value, 0);
    double sum = 0;
    for (const auto& row : result.operators) {
        ASSERT_TRUE(row.energy_j.available());
        EXPECT_EQ(row.energy_j.provenance, Provenance::kModelled) << "no counter sees one operator";
        EXPECT_NEAR(*row.energy_j.value, *result.energy_j.value * row.cpu_s / result.cpu_s,
                    1e-9 * *result.energy_j.value);
        sum += *row.energy_j.value;
    }
    EXPECT_LE(sum, *result.energy_j.value * (1 + 1e-9));
}

TEST(Profile, TheTraceHasOneSlicePerExecutionThatDoNotOverlap) {
    const auto model = build_model({{"w", sine({1})}},
                                   "def forward(self, x):\n"
                                   "    for i in range(5):\n        x = torch.tanh(x)\n    return x\n");
    const auto result = profile_of(model, {sine({16})});
    const auto trace = result.chrome_trace("five.pt");
    EXPECT_EQ(Json::parse(trace.dump()), trace) << "no NaN or binary";
    double end = -1;
    int slices = 0;
    for (const auto& event : trace["traceEvents"]) {
        for (const char* key : {"ph", "name", "pid", "tid"}) ASSERT_TRUE(event.contains(key)) << event.dump();
        if (event["ph"] != "X") continue;
        EXPECT_GE(event["ts"].get<double>(), end);
        end = event["ts"].get<double>() + event["dur"].get<double>();
        if (event["cat"] != "aten::tanh") continue;
        ++slices;
        EXPECT_EQ(event["args"]["output_shape"], Json({16}));
    }
    EXPECT_EQ(slices, 5) << "a loop of five trips, one row";
    ASSERT_EQ(result.operators.size(), 1u);
    EXPECT_EQ(result.operators[0].cost.flops, 5.0 * 16 * 4);
}

TEST(Profile, JsonHasTotalsLayersAndWhatIsUnknown) {
    const auto model =
        build_model({{"w", sine({1})}}, "def forward(self, x):\n    return torch.logcumsumexp(torch.relu(x), 1)\n");
    const auto json = profile_of(model, {sine({2, 3})}).to_json();
    EXPECT_EQ(json["totals"]["flops"], 6.0);
    EXPECT_EQ(json["unknown_operators"], Json({"aten::logcumsumexp"}));
    EXPECT_EQ(json["layers"][1]["flops_known"], false);
    EXPECT_EQ(json["totals"]["energy_j"]["provenance"], "unavailable");
    EXPECT_ERROR(profile(model, {sine({2, 3})}, {.runs = 0}), InvalidArgument, "at least 1");
}

}  // namespace
}  // namespace coppice::eval
