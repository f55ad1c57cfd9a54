#include <cmath>

#include "models.h"

namespace coppice::testing {
namespace {

/// Learning rates of every step of a training with 4 steps per epoch.
std::vector<double> rates(TrainOptions options) {
    const auto module = std::make_shared<LinearModule>(at::ones({1, 1}));
    const auto data = tensor_dataset({at::ones({8, 1})}, at::ones({8, 1}), "ones");
    std::vector<double> seen;
    TrainCallbacks callbacks;
    callbacks.on_step = [&](const StepInfo& info) {
        EXPECT_EQ(info.steps, 4);
        EXPECT_EQ(info.epoch * 4 + info.step, static_cast<int64_t>(seen.size()));
        seen.push_back(info.lr);
        return true;
    };
    options.batch_size = 2;
    Trainer(options).fit(*trainable_of(module), *data, *mean_squared_error(), {}, callbacks);
    return seen;
}

}  // namespace

TEST(Schedule, ConstantStaysAfterAWarmUpOnALine) {
    TrainOptions options;
    options.epochs = 2, options.lr = 0.1, options.schedule = "constant", options.warmup_epochs = 0.75;
    const std::vector<double> expected = {0.1 / 3, 0.2 / 3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1};
    const auto seen = rates(options);
    ASSERT_EQ(seen.size(), expected.size());
    for (size_t i = 0; i < seen.size(); ++i) EXPECT_DOUBLE_EQ(seen[i], expected[i]) << i;
}

TEST(Schedule, CosineFallsFromLrTowardsZeroAfterTheWarmUp) {
    TrainOptions options;
    options.epochs = 3, options.lr = 0.2, options.schedule = "cosine", options.warmup_epochs = 1;
    const auto seen = rates(options);
    ASSERT_EQ(seen.size(), 12u);
    EXPECT_DOUBLE_EQ(seen[0], 0.05);
    EXPECT_DOUBLE_EQ(seen[3], 0.2);
    EXPECT_DOUBLE_EQ(seen[4], 0.2);                            // cos 0
    EXPECT_DOUBLE_EQ(seen[6], 0.1 * (1 + std::sqrt(0.5)));     // 2 of 8: cos 45 degrees
    EXPECT_NEAR(seen[8], 0.1, 1e-15);                          // 4 of 8: cos 90 degrees
    EXPECT_NEAR(seen[10], 0.1 * (1 - std::sqrt(0.5)), 1e-15);  // 6 of 8
}

TEST(Schedule, StepMultipliesAfterEachMilestone) {
    TrainOptions options;
    options.epochs = 3, options.lr = 1e-3, options.schedule = "step", options.milestones = {1, 2}, options.gamma = 0.5;
    const auto seen = rates(options);
    EXPECT_DOUBLE_EQ(seen[3], 1e-3);
    EXPECT_DOUBLE_EQ(seen[4], 5e-4);
    EXPECT_DOUBLE_EQ(seen[7], 5e-4);
    EXPECT_DOUBLE_EQ(seen[8], 2.5e-4);
}

}  // namespace coppice::testing
