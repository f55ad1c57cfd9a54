#include "prune/allocation/synthetic.h"

namespace coppice::testing {
namespace {

using prune::SensitivityPoint;
using prune::Target;

/// Quality by formula: each lost channel of conv1 costs three points, of conv2 nothing before half of them are gone
/// and one afterwards, of the stage that conv3 and the shortcut share one.
double quality(const Model& model) {
    const auto width = [&](const char* name) { return get_attribute(model, name).toTensor().size(0); };
    return 100 - 3.0 * static_cast<double>(8 - width("conv1.weight")) -
           static_cast<double>(std::max<int64_t>(0, 8 - width("conv2.weight"))) -
           static_cast<double>(16 - width("conv3.weight"));
}

struct Scene {
    Model model = residual_model();
    Inputs example = {sine({1, 3, 8, 8})};
    Facts facts = Facts::observe(model, example);
    prune::Groups groups = prune::find_groups(model, facts);
    Context context;
    std::vector<at::Tensor> scores;
    Scene() {
        context.example = example;
        context.evaluate = quality;
        scores = prune::magnitude()->scores(model, groups, context);
    }
};

TEST(PruneSensitivity, CurvesAreTheQualityOfModelsCutInOneGroupOnly) {
    Scene s;
    const auto points =
        prune::sensitivity_curves(s.model, s.facts, s.groups, s.scores, plain(0), {0.25, 0.75}, s.context);
    ASSERT_EQ(points.size(), 9u);  // three groups, each whole and at two ratios
    for (const auto& point : points) {
        const auto& name = s.groups.all()[point.group].name;
        double expected = 100;
        if (name == "conv1") expected -= 3 * 8 * point.ratio;
        if (name == "conv2") expected -= std::max(0.0, 16 * point.ratio - 8);
        if (name == "conv3") expected -= 16 * point.ratio;
        EXPECT_NEAR(point.quality, expected, 1e-9) << name << " at " << point.ratio;
    }
}

TEST(PruneSensitivity, GroupsThatStayAndEqualWidthsAreNotMeasured) {
    Scene s;
    auto target = plain(0);
    target.ignored = {true, false, false};
    target.fixed = {std::nullopt, 0.5, std::nullopt};
    target.round_to = 8;
    int evaluated = 0;
    s.context.evaluate = [&](const Model& model) {
        ++evaluated;
        return quality(model);
    };
    const auto points = prune::sensitivity_curves(s.model, s.facts, s.groups, s.scores, target, {0.4, 0.5}, s.context);
    EXPECT_EQ(points.size(), 2u);  // the third group, whole and at 8 channels
    EXPECT_EQ(evaluated, 2);
}

TEST(PruneSensitivity, TheSumOfDropsIsAsLowAsAnyWidthsWithinTheBudgetGive) {
    Scene s;
    const prune::CostModel cost(s.model, s.example, s.groups);
    const auto allocation = prune::sensitivity({0.25, 0.5, 0.75});
    auto target = plain(0);
    target.sensitivity = prune::sensitivity_curves(s.model, s.facts, s.groups, s.scores, target,
                                                   allocation->sensitivity_ratios(), s.context);
    const auto drop = [&](const std::vector<int64_t>& kept) {
        double sum = 0;
        for (size_t g = 0; g < kept.size(); ++g) {
            const auto& name = s.groups.all()[g].name;
            const auto gone = static_cast<double>(s.groups.all()[g].channels - kept[g]);
            sum += name == "conv1" ? 3 * gone : name == "conv2" ? std::max(0.0, gone - 8) : gone;
        }
        return sum;
    };
    for (const double share : {0.6, 0.35}) {
        target.macs_ratio = share;
        double best = std::numeric_limits<double>::infinity();
        for (const auto& kept : all_widths(s.groups, 1))
            if (cost.macs(kept) <= share * cost.baseline_macs()) best = std::min(best, drop(kept));
        const auto removal = allocation->allocate(s.groups, s.scores, cost, target);
        std::vector<int64_t> kept;
        for (size_t g = 0; g < removal.size(); ++g)
            kept.push_back(s.groups.all()[g].channels - static_cast<int64_t>(removal[g].size()));
        EXPECT_LE(cost.macs(kept), share * cost.baseline_macs() * (1 + 1e-9));
        EXPECT_LE(drop(kept), best + 3) << "up to the price of one channel";
    }
}

TEST(PruneSensitivity, TheStageWritesItsCurvesDown) {
    Scene s;
    const auto smaller =
        make_stage({{"scope", "sensitivity"}, {"macs_ratio", "0.6"}, {"round_to", "1"}})->apply(s.model, s.context);
    const auto& curves = s.context.facts["sensitivity"];
    ASSERT_EQ(curves.size(), 12u);  // three groups, whole and three ratios
    EXPECT_EQ(curves[0].dump(), R"({"group":"conv1","ratio":0.0,"quality":100.0})");
    EXPECT_EQ(curves[1].dump(), R"({"group":"conv1","ratio":0.25,"quality":94.0})");
    EXPECT_LE(get_attribute(smaller, "conv2.weight").toTensor().size(0), 8) << "half of it costs nothing";
    EXPECT_EQ(get_attribute(smaller, "conv1.weight").toTensor().size(0), 8) << "the dearest stays";
}

TEST(PruneSensitivity, SaysOnceThatTheChannelsAreChosenOnTheTestData) {
    const auto some = tensor_dataset({sine({4, 3, 8, 8})}, at::arange(4), "images");
    for (const bool validation : {false, true}) {
        Scene s;
        Messages log;
        s.context.log = &log;
        s.context.data.test = some;
        if (validation) s.context.data.validation = some;
        // In steps the curves are taken twice.
        make_stage({{"scope", "sensitivity"}, {"macs_ratio", "0.6"}, {"schedule", "linear"}, {"steps", "2"}})
            ->apply(s.model, s.context);
        EXPECT_EQ(s.context.facts.contains("chosen_on"), !validation);
        EXPECT_EQ(log.containing("the channels are chosen on the test data"), validation ? 0 : 1);
    }
}

TEST(PruneSensitivity, NeedsSomethingToEvaluateBy) {
    Scene s;
    s.context.evaluate = nullptr;
    EXPECT_ERROR(make_stage({{"scope", "sensitivity"}})->check(s.model, s.context), InvalidArgument,
                 "nothing to evaluate the model by");
    EXPECT_ERROR(make_stage({{"scope", "sensitivity"}})->apply(s.model, s.context), InvalidArgument,
                 "nothing to evaluate the model by");
    EXPECT_ERROR(prune::sensitivity()->allocate(s.groups, s.scores, prune::CostModel(s.groups), plain(0.5)),
                 InvalidArgument, "has not been measured");
    EXPECT_ERROR(prune::sensitivity({0.5, 0.25}), InvalidArgument, "do not rise");
    EXPECT_ERROR(prune::sensitivity({}), InvalidArgument, "no ratios");
}

}  // namespace
}  // namespace coppice::testing
