#include <cmath>

#include "prune/masking.h"

namespace coppice::testing {
namespace {

prune::Slice slice(const std::string& name, const at::Tensor& tensor, int64_t dim,
                   std::vector<int64_t> channel_of = {}) {
    prune::Slice result;
    result.name = name;
    result.tensor = tensor;
    result.dim = dim;
    if (channel_of.empty())
        for (int64_t i = 0; i < tensor.size(dim); ++i) channel_of.push_back(i);
    result.channel_of = std::move(channel_of);
    return result;
}

prune::Groups group_from(std::vector<prune::Slice> slices, int64_t channels) {
    prune::ChannelGroup group;
    group.name = "by hand";
    group.channels = channels;
    group.slices = std::move(slices);
    return prune::Groups({group});
}

at::Tensor score(const prune::Criterion& criterion, const prune::Groups& groups) {
    Context context;
    return criterion.scores(Model(), groups, context).at(0);
}

TEST(PruneMagnitude, TreatsCoupledSlicesAsOneVector) {  // 3-4-5 triangles by hand, 1-d slices as in batch norm
    const auto gamma = at::tensor({3.0, -4.0}), beta = at::tensor({4.0, 3.0});
    const auto groups = group_from({slice("gamma", gamma, 0), slice("beta", beta, 0)}, 2);
    EXPECT_TRUE(at::equal(score(*prune::magnitude(), groups), at::tensor({5.0, 5.0}, at::kDouble)));
}

TEST(PruneMagnitude, MatchesPlainLoopsAlongTheGivenDimension) {
    const auto weight = at::arange(24.0, at::kDouble).sin().reshape({2, 3, 2, 2});  // [C_out, C_in, kH, kW]
    for (const double p : {1.0, 2.0, 3.0}) {
        const auto scores = score(*prune::magnitude(p), group_from({slice("conv.weight", weight, 1)}, 3));
        for (int64_t c = 0; c < 3; ++c) {
            double sum = 0;
            for (int64_t o = 0; o < 2; ++o)
                for (int64_t y = 0; y < 2; ++y)
                    for (int64_t x = 0; x < 2; ++x)
                        sum += std::pow(std::abs(std::sin(((o * 3 + c) * 2 + y) * 2 + x)), p);
            EXPECT_NEAR(scores[c].item<double>(), std::pow(sum, 1 / p), 1e-12);  // 8 float64 terms in another order
        }
    }
}

TEST(PruneMagnitude, FollowsTheMapFromIndicesToChannels) {
    // Six rows belong to two channels, three each; one row to none.
    const auto weight = at::tensor({1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0}).reshape({7, 1});
    const auto groups = group_from({slice("fc.weight", weight, 0, {0, 0, 1, -1, 1, 1, 0})}, 2);
    EXPECT_TRUE(at::equal(score(*prune::magnitude(1), groups), at::tensor({67.0, 52.0}, at::kDouble)));
}

TEST(PruneMagnitude, ReductionsDifferInHowLayersThatShareAChannelCount) {
    // Two channels; powers (p = 2) of the parts: conv 9 and 16, bias 4 and 0, next layer 1 and 25.
    auto conv = slice("conv.weight", at::tensor({3.0, 4.0}).reshape({2, 1}), 0);
    auto bias = slice("conv.bias", at::tensor({2.0, 0.0}), 0);
    auto next = slice("next.weight", at::tensor({1.0, 5.0}).reshape({1, 2}), 1);
    conv.produces = bias.produces = true;
    conv.layer = bias.layer = "conv";
    next.layer = "next";
    auto second = slice("second.weight", at::tensor({7.0, 7.0}).reshape({2, 1}), 0);
    second.produces = true;
    second.layer = "second";
    const auto groups = group_from({conv, bias, next, second}, 2);
    const auto expect = [&](prune::Reduce reduce, double first, double other) {
        const auto scores = score(*prune::magnitude(2, reduce), groups);
        EXPECT_NEAR(scores[0].item<double>(), std::sqrt(first), 1e-12) << static_cast<int>(reduce);  // one root
        EXPECT_NEAR(scores[1].item<double>(), std::sqrt(other), 1e-12) << static_cast<int>(reduce);
    };
    expect(prune::Reduce::kSum, 9 + 4 + 1 + 49, 16 + 0 + 25 + 49);
    expect(prune::Reduce::kMean, (9 + 4 + 1 + 49) / 4.0, (16 + 0 + 25 + 49) / 4.0);
    expect(prune::Reduce::kMax, 49, 49);
    expect(prune::Reduce::kProduct, 9.0 * 4 * 1 * 49, 0);
    expect(prune::Reduce::kFirst, 9 + 4, 16 + 0);  // weight and bias of the first layer that makes the channel
}

TEST(PruneMagnitude, LeavesRunningStatisticsOut) {
    auto statistics = slice("bn.running_mean", at::tensor({100.0, 200.0}), 0);
    statistics.parameter = false;
    const auto groups = group_from({slice("bn.weight", at::tensor({1.0, 2.0}), 0), statistics}, 2);
    EXPECT_TRUE(at::equal(score(*prune::magnitude(), groups), at::tensor({1.0, 2.0}, at::kDouble)));
}

TEST(PruneMagnitude, RefusesWeightsThatAreNotFinite) {
    const auto groups = group_from({slice("conv.weight", at::tensor({1.0, std::nan("")}), 0)}, 2);
    EXPECT_ERROR(score(*prune::magnitude(), groups), UnsupportedModel, "conv.weight holds NaN");
}

TEST(PruneMagnitude, RejectsWhatIsNotANorm) {
    EXPECT_ERROR(prune::magnitude(0.5), InvalidArgument, "must be >= 1");
    EXPECT_ERROR(prune::magnitude(std::nan("")), InvalidArgument, "must be >= 1");
}

}  // namespace
}  // namespace coppice::testing
