#include <cmath>

#include "prune/criteria/criteria.h"
#include "reference/pruning.h"

namespace coppice::testing {
namespace {

at::Tensor scores_of(const at::Tensor& weight) {
    prune::Slice slice;
    slice.name = "weight";
    slice.tensor = weight;
    for (int64_t i = 0; i < weight.size(0); ++i) slice.channel_of.push_back(i);
    prune::ChannelGroup group;
    group.channels = weight.size(0);
    group.slices = {slice};
    Context context;
    return prune::lamp()->scores(Model(), prune::Groups({group}), context).at(0);
}

TEST(PruneLamp, DividesByWhatIsNotSmaller) {  // by hand: powers 4, 1, 9 -> 4/13, 1/14, 9/9
    const auto scores = scores_of(at::tensor({-2.0, 1.0, 3.0}).reshape({3, 1}));
    EXPECT_DOUBLE_EQ(scores[0].item<double>(), 4.0 / 13);
    EXPECT_DOUBLE_EQ(scores[1].item<double>(), 1.0 / 14);
    EXPECT_DOUBLE_EQ(scores[2].item<double>(), 1.0);
}

TEST(PruneLamp, MatchesItsDefinitionAlsoWhereChannelsAreEqual) {
    auto weight = at::arange(40.0, at::kDouble).sin().reshape({10, 4});
    weight[7] = weight[2];
    const auto scores = scores_of(weight);
    std::vector<double> powers;
    for (int64_t c = 0; c < 10; ++c) {
        powers.push_back(0);
        for (int64_t i = 0; i < 4; ++i) powers.back() += std::pow(weight[c][i].item<double>(), 2);
    }
    const auto expected = reference::lamp(powers);
    for (int64_t c = 0; c < 10; ++c)
        EXPECT_NEAR(scores[c].item<double>(), expected[c], 1e-12) << c;  // sums of 10 float64 in another order
    EXPECT_NE(scores[2].item<double>(), scores[7].item<double>());
}

TEST(PruneLamp, ZerosScoreZero) {
    EXPECT_TRUE(at::equal(scores_of(at::zeros({3, 2})), at::zeros({3}, at::kDouble)));
}

}  // namespace
}  // namespace coppice::testing
