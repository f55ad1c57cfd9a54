// Small multiples of a sensitivity analysis: points where the numbers say, the worst groups first to be shown.
#include <regex>

#include <coppice/report.h>

#include "eval/report/sample.h"
#include "report/curves.h"
#include "support/support.h"

namespace coppice::eval::report {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Quality top1() {
    Quality quality;
    quality.metric = "top1";
    quality.name = "Top-1 accuracy";
    quality.unit = "%";
    quality.available = true;
    return quality;
}

Json point(const std::string& group, double ratio, double quality) {
    return {{"group", group}, {"ratio", ratio}, {"quality", quality}};
}

struct Dot {
    double x, y;
    std::string said;
};

std::vector<Dot> dots(const std::string& html) {
    const std::regex circle("<circle cx=([0-9.]+) cy=([0-9.]+) r=2.6><title>([^<]*)</title>");
    std::vector<Dot> found;
    for (auto it = std::sregex_iterator(html.begin(), html.end(), circle); it != std::sregex_iterator(); ++it)
        found.push_back({std::stod((*it)[1]), std::stod((*it)[2]), (*it)[3]});
    return found;
}

TEST(SensitivityCurves, DotsStandWhereTheNumbersSayOnAxesThatAllGroupsShare) {
    const Json facts = {{"sensitivity", Json::array({point("a", 0, 90), point("a", 1, 50), point("b", 0, 90),
                                                     point("b", 0.25, 70), point("b", 0.5, 10)})}};
    const auto found = dots(sensitivity_curves(facts, top1(), 10));
    ASSERT_EQ(found.size(), 5u);
    // The corners from those points that reach them: share 0 and 1, the highest and the lowest quality.
    const double left = found[0].x, right = found[1].x, top = found[0].y, bottom = found[4].y;
    ASSERT_LT(left, right);
    ASSERT_LT(top, bottom);  // up is better
    const std::vector<std::pair<double, double>> values = {{0, 90}, {1, 50}, {0, 90}, {0.25, 70}, {0.5, 10}};
    for (size_t i = 0; i < values.size(); ++i) {
        EXPECT_NEAR((found[i].x - left) / (right - left), values[i].first, 0.001) << i;  // one decimal of 156 units
        EXPECT_NEAR((bottom - found[i].y) / (bottom - top) * 80 + 10, values[i].second, 0.2) << i;
    }
    EXPECT_EQ(found[3].said, "25 % removed: 70.00 %");
}

TEST(SensitivityCurves, OfTooManyGroupsThoseThatLoseMostAreShownInTheModelsOrder) {
    Json facts;
    for (int g = 0; g < 5; ++g) {
        const std::string name = "layer" + std::to_string(g);
        facts["sensitivity"].push_back(point(name, 0, 90));
        facts["sensitivity"].push_back(point(name, 0.5, g == 1 ? 20 : g == 3 ? 10 : 60 + g));
    }
    const std::string html = sensitivity_curves(facts, top1(), 2);
    EXPECT_EQ(dots(html).size(), 4u);
    EXPECT_THAT(html, HasSubstr("2 of 5 groups that lose most"));
    EXPECT_LT(html.find("layer1"), html.find("layer3"));
    EXPECT_THAT(html, Not(HasSubstr("layer0")));
    facts["sensitivity"][1]["quality"] = 20;  // a tie with layer1 does not add a third
    EXPECT_EQ(dots(sensitivity_curves(facts, top1(), 2)).size(), 4u);
}

TEST(SensitivityCurves, NamesAreEscapedAndAnythingElseThanCurvesIsLeftToTheFacts) {
    EXPECT_THAT(sensitivity_curves({{"sensitivity", Json::array({point("<b>", 0, 1)})}}, top1(), 9),
                AllOf(HasSubstr("&lt;b&gt;"), Not(HasSubstr("<b>"))));
    EXPECT_EQ(sensitivity_curves({{"sensitivity", "hessian"}}, top1(), 9), "");
    EXPECT_EQ(sensitivity_curves({{"sensitivity", Json::array({point("a", 0, 1), Json(3)})}}, top1(), 9), "");
    EXPECT_EQ(sensitivity_curves({{"sensitivity", Json::array({point("a", 2, 1)})}}, top1(), 9), "");
    EXPECT_EQ(sensitivity_curves(Json::object(), top1(), 9), "");
}

TEST(SensitivityCurves, ThePageDrawsThemInTheStageThatMeasuredThem) {
    coppice::testing::TemporaryFolder folder;
    coppice::testing::write_sample_run(folder / "run-a");
    Json report = collect_report({folder / "run-a"}, ReportOptions());
    EXPECT_THAT(html(report), Not(HasSubstr("<h3>Sensitivity</h3>")));
    report["runs"][0]["stages"][1]["stage"]["facts"]["sensitivity"] =
        Json::array({point("conv1", 0, 90), point("conv1", 0.5, 30)});
    const std::string page = html(report);
    EXPECT_THAT(page, HasSubstr("<h3>Sensitivity</h3>"));
    EXPECT_EQ(dots(page).size(), 2u);
    EXPECT_THAT(page, Not(HasSubstr("<dt>sensitivity</dt>")));  // not once more as raw JSON
}

}  // namespace
}  // namespace coppice::eval::report
