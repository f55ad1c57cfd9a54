// The clocks of this machine. Nothing here depends on how long anything takes.
#include <cmath>

#include "prune/allocation/synthetic.h"

namespace coppice::testing {
namespace {

/// A linear layer on `tokens` rows, 8 wide, read by a layer that may be too wide for it.
struct Layer {
    Model model = build_model({{"a.weight", sine({12, 8}, 0.4)}},
                              "def forward(self, x):\n    return torch.linear(x, self.a.weight)\n");

    prune::OperatorRun run(int64_t tokens, int64_t width) const {
        prune::OperatorRun run;
        for (auto* node : all_nodes(*model.graph()))
            if (as_linear(node)) run.node = node;
        const auto meta = at::TensorOptions().device(at::kMeta);
        run.arguments = {at::empty({tokens, width}, meta), at::empty({12, 8}, meta), c10::IValue()};
        run.weight = {false, true, false};
        run.key = "linear of " + std::to_string(tokens) + " x " + std::to_string(width) + " in stopwatch_test";
        return run;
    }
};

TEST(PruneStopwatch, EqualRunsAreTimedOncePerProcess) {
    const OneThread one;
    const Layer layer;
    for (const auto& clock : {prune::wall_clock(), prune::cpu_clock()}) {
        const auto times = clock->seconds({layer.run(4, 8), layer.run(300, 8), layer.run(4, 8)}, 1000);
        EXPECT_GT(times[0], 0);
        EXPECT_EQ(times[0], times[2]);
        EXPECT_EQ(clock->seconds({layer.run(300, 8)}, 1000), std::vector<double>{times[1]});
    }
}

TEST(PruneStopwatch, ARunThatDoesNotFitHasNoTime) {
    const Layer layer;
    const auto times = prune::wall_clock()->seconds({layer.run(4, 7), layer.run(5, 8)}, 1000);
    EXPECT_TRUE(std::isnan(times[0]));
    EXPECT_GT(times[1], 0);
}

TEST(PruneStopwatch, RunsKnowTheirShapes) {
    const Layer layer;
    EXPECT_EQ(layer.run(4, 8).op(), "aten::linear");
    EXPECT_EQ(layer.run(4, 8).shapes(), (std::vector<std::vector<int64_t>>{{4, 8}, {12, 8}}));
}

TEST(PruneStopwatch, PairsGiveARatioWithItsInterval) {
    const OneThread one;
    const auto model = residual_model();
    const auto ratio = prune::cpu_clock()->ratio(model, model, {sine({1, 3, 8, 8})});
    EXPECT_GE(ratio.pairs, 11);
    EXPECT_GT(ratio.before_ms, 0);
    EXPECT_GT(ratio.after_ms, 0);
    EXPECT_LE(ratio.low, ratio.median);
    EXPECT_LE(ratio.median, ratio.high);
}

TEST(PruneStopwatch, StopsOnRequest) {
    const Layer layer;
    EXPECT_ERROR(prune::wall_clock([] { return true; })->seconds({layer.run(6, 8)}, 1000), Interrupted, "stopped");
}

}  // namespace
}  // namespace coppice::testing
