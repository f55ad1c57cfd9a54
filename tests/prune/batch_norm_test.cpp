#include "prune/masking.h"

namespace coppice::testing {
namespace {

TEST(PruneBatchNorm, StatisticsBecomeThoseOfTheData) {
    auto model = build_model({{"bn.weight", at::ones({3})},
                              {"bn.bias", at::zeros({3})},
                              {"bn.running_mean", at::full({3}, 7.0)},
                              {"bn.running_var", at::full({3}, 9.0)}},
                             R"(
def forward(self, x):
    return torch.batch_norm(x, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, self.training, 0.1, 1e-5, True)
)");
    const auto x = sine({12, 3, 4, 4}) * 2 + 1;
    const auto data = tensor_dataset({x}, at::zeros({12}, at::kLong), "by hand");
    prune::reestimate_batch_norm(model, *data, 1, 12, 0);  // one batch of everything: its mean, its unbiased variance
    const auto rows = x.permute({1, 0, 2, 3}).reshape({3, -1}).to(at::kDouble);
    EXPECT_LT(max_difference(get_attribute(model, "bn.running_mean").toTensor(), rows.mean(1)), 1e-5);
    EXPECT_LT(max_difference(get_attribute(model, "bn.running_var").toTensor(), rows.var(1)), 1e-5);
}

TEST(PruneBatchNorm, BatchesAreAveraged) {
    auto model = residual_model();
    const auto x = sine({12, 3, 8, 8});
    const auto data = tensor_dataset({x}, at::zeros({12}, at::kLong), "by hand");
    prune::reestimate_batch_norm(model, *data, 3, 4, 0);
    // The first convolution sees the data itself: the mean over three equal batches is the mean over all of it.
    const auto y = at::conv2d(x, get_attribute(model, "conv1.weight").toTensor(), {}, 1, 1).detach();
    EXPECT_LT(max_difference(get_attribute(model, "bn1.running_mean").toTensor(), y.mean({0, 2, 3})), 1e-5);
}

TEST(PruneBatchNorm, EmptyDataIsAnError) {
    auto model = residual_model();
    const auto data = subset(tensor_dataset({sine({2, 3, 8, 8})}, at::zeros({2}, at::kLong), "by hand"), {});
    EXPECT_ERROR(prune::reestimate_batch_norm(model, *data, 1, 4, 0), InvalidArgument, "needs calibration data");
}

}  // namespace
}  // namespace coppice::testing
