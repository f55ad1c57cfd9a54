// The table of times against formulas of time. No test takes a time.
#include <cmath>

#include "prune/allocation/synthetic.h"

namespace coppice::testing {
namespace {

struct Case {
    Model model;
    Inputs example;
    Facts facts;
    prune::Groups groups;

    Case(Model m, Inputs e)
        : model(std::move(m)),
          example(std::move(e)),
          facts(Facts::observe(model, example)),
          groups(prune::find_groups(model, facts)) {}
    prune::LatencyModel latency(const std::shared_ptr<const prune::Stopwatch>& watch) const {
        return {model, example, groups, watch};
    }
};

Case residual() {
    return {residual_model(), {sine({1, 3, 8, 8})}};
}

/// 1x1 convolution, depthwise 3x3, 1x1 convolution, as MobileNet has them.
Case depthwise() {
    return {build_model({{"a.weight", sine({64, 3, 1, 1}, 0.4)},
                         {"dw.weight", sine({64, 1, 3, 3}, 0.3)},
                         {"b.weight", sine({32, 64, 1, 1}, 0.3)},
                         {"c.weight", sine({5, 32, 1, 1}, 0.3)}},
                        R"(
def forward(self, x):
    x = torch.relu(torch.conv2d(x, self.a.weight))
    x = torch.hardtanh(torch.conv2d(x, self.dw.weight, None, [1, 1], [1, 1], [1, 1], 64), 0.0, 6.0)
    x = torch.conv2d(x, self.b.weight)
    return torch.conv2d(x, self.c.weight)
)"),
            {sine({2, 3, 6, 6})}};
}

TEST(PruneLatency, ATableOfABilinearTimeIsExactAtAnyWidth) {
    for (const auto& c : {residual(), depthwise()}) {
        const auto watch = std::make_shared<SyntheticWatch>(weight_elements);
        auto latency = c.latency(watch);
        latency.tabulate(plain(0));
        for (const double share : {0.2, 0.55, 0.8}) {
            const auto removal = random_removal(c.groups, share, 3);
            std::vector<int64_t> kept;
            for (size_t g = 0; g < removal.size(); ++g)
                kept.push_back(c.groups.all()[g].channels - static_cast<int64_t>(removal[g].size()));
            // The other road: the weights of the model that was cut.
            const double expected = watch->of(prune::cut(c.model, c.facts, c.groups, removal));
            EXPECT_NEAR(latency.seconds(kept) / expected, 1, 1e-9);
        }
    }
}

TEST(PruneLatency, OperatorsAreThoseThatDeployLeaves) {
    const auto c = residual();
    const auto watch = std::make_shared<SyntheticWatch>(weight_elements);
    c.latency(watch);
    EXPECT_EQ(watch->operators, (std::set<std::string>{"aten::_add_relu_", "aten::adaptive_avg_pool2d", "aten::conv2d",
                                                       "aten::linear", "aten::relu_"}));
}

TEST(PruneLatency, EveryRunFitsTheRealOperators) {
    const OneThread one;
    // Narrowed shapes, the group count of a depthwise convolution and the normalised shape must agree, or the run
    // throws and its time is NaN.
    const auto norm = build_model(
        {{"a.weight", sine({12, 8}, 0.4)}, {"ln.weight", sine({12}, 0.3)}, {"b.weight", sine({5, 12}, 0.3)}},
        R"(
def forward(self, x):
    x = torch.gelu(torch.linear(x, self.a.weight))
    x = torch.layer_norm(x, [12], self.ln.weight)
    return torch.linear(torch.cat([x, x], 1), self.b.weight)
)");
    for (const auto& c : {residual(), depthwise(), Case(norm, {sine({2, 7, 8})})}) {
        struct Checked final : SyntheticWatch {
            Checked() : SyntheticWatch(weight_elements) {}
            std::vector<double> seconds(const std::vector<prune::OperatorRun>& runs, int64_t bytes) const override {
                const auto real = prune::wall_clock()->seconds(runs, bytes);
                for (size_t i = 0; i < runs.size(); ++i) {
                    EXPECT_FALSE(std::isnan(real[i])) << runs[i].key;
                    EXPECT_GT(real[i], 0) << runs[i].key;
                }
                return SyntheticWatch::seconds(runs, bytes);
            }
        };
        auto latency = c.latency(std::make_shared<Checked>());
        auto target = plain(0);
        target.round_to = 4;
        latency.tabulate(target);
        EXPECT_THAT(latency.not_timed(), ::testing::IsEmpty());
    }
}

TEST(PruneLatency, WhatCannotRunByItselfIsNamedAndCountsAsNothing) {
    const auto c = residual();
    const auto watch = std::make_shared<SyntheticWatch>([](const std::string& op, const auto& shapes) {
        return op == "aten::linear" ? std::nan("") : weight_elements(op, shapes);
    });
    auto latency = c.latency(watch);
    EXPECT_EQ(latency.not_timed(), std::vector<std::string>{"fc"});
    EXPECT_ERROR(latency.seconds({8, 16, 16}), InternalError, "before tabulate()");
    EXPECT_ERROR(c.latency(std::make_shared<SyntheticWatch>([](const auto&, const auto&) { return std::nan(""); })),
                 UnsupportedModel, "no operator of the model can be timed");
}

TEST(PruneLatency, AWidthThatFailsCountsAsTheWholeLayer) {
    const auto c = depthwise();
    const auto watch = std::make_shared<SyntheticWatch>([](const std::string& op, const auto& shapes) {
        const double elements = weight_elements(op, shapes);
        return elements > 0 && elements < 3 * 64 ? std::nan("") : elements;
    });
    auto latency = c.latency(watch);
    latency.tabulate(plain(0));
    // a: [64, 3, 1, 1] cannot run narrower, c [5, 32, 1, 1] is below from the start and is not timed.
    EXPECT_EQ(latency.not_timed(), std::vector<std::string>{"c"});
    EXPECT_EQ(latency.measure({{0, {32, 32}}}).at(0), 64 * 3 + 9 * 32 + 32 * 32);
}

TEST(PruneLatency, StepsAreTheWidthsThatTheKernelPadsTo) {
    // Time of a convolution in whole vectors of 16 outputs and of 4 inputs.
    const auto padded = [](const std::string& op, const std::vector<std::vector<int64_t>>& shapes) {
        if (op != "aten::conv2d") return 0.0;
        const auto blocks = [](int64_t n, int64_t block) {
            return static_cast<double>((n + block - 1) / block * block);
        };
        return blocks(shapes[1][0], 16) * blocks(shapes[1][1], 4);
    };
    const auto model = build_model({{"a.weight", sine({128, 3, 1, 1}, 0.4)},
                                    {"b.weight", sine({40, 128, 1, 1}, 0.3)},
                                    {"c.weight", sine({6, 40, 1, 1}, 0.3)},
                                    {"d.weight", sine({3, 6, 1, 1}, 0.3)}},
                                   R"(
def forward(self, x):
    x = torch.relu(torch.conv2d(x, self.a.weight))
    x = torch.relu(torch.conv2d(x, self.b.weight))
    return torch.conv2d(torch.conv2d(x, self.c.weight), self.d.weight)
)");
    const Case c(model, {sine({1, 3, 4, 4})});
    Options options("prune.channel", {{"round_to", "auto"}, {"ratio", "0.45"}, {"scope", "uniform"}});
    prune::ChannelPruningOptions settings;
    settings.round_to_measured = true;
    settings.target.ratio = 0.45;
    settings.stopwatch = std::make_shared<SyntheticWatch>(padded);
    Context context;
    context.example = c.example;
    const auto smaller =
        prune::channel_pruning(prune::magnitude(), prune::uniform(), settings)->apply(c.model, context);
    // Most of the time around a's channels is b's, which reads them by fours; around b's channels it is b's, too. c
    // has fewer than 8 channels: no two multiples of 4 to compare, so any width will do.
    EXPECT_EQ(context.facts["round_to"].dump(), R"({"a":4,"b":16,"c":1})");
    EXPECT_EQ(get_attribute(smaller, "a.weight").toTensor().size(0), 72);  // wanted 70.4
    EXPECT_EQ(get_attribute(smaller, "b.weight").toTensor().size(0), 16);  // wanted 22
    EXPECT_EQ(get_attribute(smaller, "c.weight").toTensor().size(0), 3);   // wanted 3.3
}

TEST(PruneLatency, WithoutStepsTheFinestWidthIsTaken) {
    const Case c = depthwise();
    prune::ChannelPruningOptions settings;
    settings.round_to_measured = true;
    settings.stopwatch = std::make_shared<SyntheticWatch>(weight_elements);
    Context context;
    context.example = c.example;
    prune::channel_pruning(prune::magnitude(), prune::uniform(), settings)->apply(c.model, context);
    EXPECT_EQ(context.facts["round_to"].dump(), R"({"a":4,"b":4})");
}

TEST(PruneLatency, ChecksItsArguments) {
    const auto c = residual();
    EXPECT_ERROR(c.latency(nullptr), InvalidArgument, "no stopwatch");
    EXPECT_ERROR(prune::LatencyModel(c.model, c.example, groups_of({8}), prune::wall_clock()), InvalidArgument,
                 "made by hand");
}

}  // namespace
}  // namespace coppice::testing
