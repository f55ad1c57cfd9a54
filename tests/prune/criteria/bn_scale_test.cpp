#include "prune/criteria/criteria.h"

namespace coppice::testing {
namespace {

TEST(PruneBatchNormScale, IsTheMeanOfTheAbsoluteScalesBehindAChannel) {
    auto model = residual_model();
    const auto negative = -get_attribute(model, "bn2.weight").toTensor().detach();
    set_tensor(model, "bn2.weight", negative);
    const Inputs example = {sine({2, 3, 8, 8})};
    const auto groups = prune::find_groups(model, Facts::observe(model, example));
    Context context;
    const auto scores = prune::bn_scale()->scores(model, groups, context);
    const auto scale = [&](const std::string& name, int64_t c) {
        return std::abs(get_attribute(model, name + ".weight").toTensor()[c].item<double>());
    };
    for (size_t g = 0; g < scores.size(); ++g) {
        const auto& name = groups.all()[g].name;
        for (int64_t c = 0; c < scores[g].size(0); ++c) {
            // conv3 and shortcut are added: two batch norms scale their channels.
            const double expected = name == "conv1"   ? scale("bn1", c)
                                    : name == "conv2" ? scale("bn2", c)
                                                      : (scale("bn3", c) + scale("bn4", c)) / 2;
            EXPECT_NEAR(scores[g][c].item<double>(), expected, 1e-12) << name << " " << c;  // a sum of two
        }
    }
}

TEST(PruneBatchNormScale, RefusesLayersWithoutBatchNormByNameUnlessToldOtherwise) {
    const auto model = hidden_layer();
    const auto groups = prune::find_groups(model, Facts::observe(model, {sine({2, 4})}));
    Context context;
    EXPECT_ERROR(prune::bn_scale()->scores(model, groups, context), UnsupportedModel,
                 "prune.bn_scale at a: no batch norm");
    EXPECT_TRUE(at::equal(prune::bn_scale(/*magnitude_elsewhere=*/true)->scores(model, groups, context).at(0),
                          prune::magnitude()->scores(model, groups, context).at(0)));
}

}  // namespace
}  // namespace coppice::testing
