#include <cmath>

#include "prune/criteria/criteria.h"

namespace coppice::testing {
namespace {

prune::Slice filters(const std::string& name, const at::Tensor& tensor, int64_t dim, std::vector<int64_t> channel_of) {
    prune::Slice slice;
    slice.name = slice.layer = name;
    slice.tensor = tensor;
    slice.dim = dim;
    slice.channel_of = std::move(channel_of);
    slice.produces = true;
    return slice;
}

at::Tensor scores_of(std::vector<prune::Slice> slices, int64_t channels) {
    prune::ChannelGroup group;
    group.name = "by hand";
    group.channels = channels;
    group.slices = std::move(slices);
    Context context;
    return prune::fpgm()->scores(Model(), prune::Groups({group}), context).at(0);
}

TEST(PruneFpgm, AddsUpTheDistancesToTheOtherFilters) {  // on a line, 5 apart: the middle one is the median
    const auto weight = at::tensor({0.0, 0.0, 3.0, 4.0, 6.0, 8.0}, at::kDouble).reshape({3, 2});
    // Distances by inner products: 1e-8 of the norms.
    EXPECT_LT(max_difference(scores_of({filters("conv", weight, 0, {0, 1, 2})}, 3),
                             at::tensor({15.0, 10.0, 15.0}, at::kDouble)),
              1e-6);
}

TEST(PruneFpgm, FiltersOfCoupledLayersAreOneVector) {
    // Differences (3) in one layer and (4) in the other: distance 5.
    const auto first = at::tensor({1.0, 4.0}, at::kDouble).reshape({2, 1});
    const auto second = at::tensor({2.0, 6.0}, at::kDouble).reshape({1, 2});
    auto next = filters("next", at::tensor({100.0, -100.0}, at::kDouble).reshape({1, 2}), 1, {0, 1});
    next.produces = false;  // reads the channel: no filter of it
    const auto scores = scores_of({filters("a", first, 0, {0, 1}), filters("b", second, 1, {0, 1}), next}, 2);
    EXPECT_LT(max_difference(scores, at::tensor({5.0, 5.0}, at::kDouble)), 1e-6);
}

TEST(PruneFpgm, MatchesPlainLoopsOverIndicesThatShareAChannel) {
    const auto weight = at::arange(6 * 5.0, at::kDouble).sin().reshape({6, 5});
    const std::vector<int64_t> channel_of = {0, 1, 2, 0, 1, 2};
    const auto scores = scores_of({filters("conv", weight, 0, channel_of)}, 3);
    for (int64_t c = 0; c < 3; ++c) {
        double sum = 0;
        for (int64_t d = 0; d < 3; ++d) {
            double square = 0;
            for (const int64_t half : {0, 3})
                for (int64_t i = 0; i < 5; ++i)
                    square += std::pow((weight[c + half][i] - weight[d + half][i]).item<double>(), 2);
            sum += std::sqrt(square);
        }
        EXPECT_NEAR(scores[c].item<double>(), sum, 1e-6);
    }
}

TEST(PruneFpgm, AFilterThatRepeatsAnotherGoesBeforeOneThatStandsAlone) {
    auto weight = sine({4, 8});
    weight[2] = weight[1] * 1.001;
    const auto scores = scores_of({filters("conv", weight, 0, {0, 1, 2, 3})}, 4);
    EXPECT_LT(scores[1].item<double>(), std::max(scores[0].item<double>(), scores[3].item<double>()));
    EXPECT_ERROR(scores_of({filters("conv", at::full({2, 1}, std::nan("")), 0, {0, 1})}, 2), UnsupportedModel,
                 "conv holds NaN");
}

}  // namespace
}  // namespace coppice::testing
