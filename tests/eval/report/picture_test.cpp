// The picture by itself, its axes, and the classes of energy.
#include <cstdlib>
#include <fstream>
#include <regex>

#include <coppice/report.h>

#include "eval/report/sample.h"
#include "report/label.h"
#include "report/picture.h"
#include "support/support.h"

namespace coppice::eval {
namespace {

namespace fs = std::filesystem;
using coppice::testing::TemporaryFolder;
using coppice::testing::write_sample_run;
using ::testing::HasSubstr;
using ::testing::Not;

Json sample(const std::string& x = "", const std::string& y = "") {
    TemporaryFolder folder;
    write_sample_run(folder / "run-a");
    ReportOptions options;
    options.x = x;
    options.y = y;
    return collect_report({folder / "run-a"}, options);
}

// Start tags must be closed in order; enough for what svg() writes, which has no comments and no CDATA.
std::string first_flaw_of_xml(const std::string& text) {
    std::vector<std::string> open;
    const std::regex tag("<(/?)([a-z]+)((?: [a-zA-Z0-9:-]+=\"[^\"<]*\")*)(/?)>");
    std::string rest;
    size_t at = 0;
    for (auto it = std::sregex_iterator(text.begin(), text.end(), tag); it != std::sregex_iterator(); ++it) {
        rest += text.substr(at, static_cast<size_t>(it->position()) - at);
        at = static_cast<size_t>(it->position() + it->length());
        if ((*it)[1].length()) {
            if (open.empty() || open.back() != (*it)[2]) return "closes " + (*it)[2].str();
            open.pop_back();
        } else if (!(*it)[4].length()) {
            open.push_back((*it)[2]);
        }
    }
    rest += text.substr(at);
    if (rest.find('<') != std::string::npos) return "stray < in " + rest.substr(rest.find('<'), 40);
    return open.empty() ? "" : "leaves " + open.back() + " open";
}

size_t count(const std::string& text, const std::string& part) {
    size_t n = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
    return n;
}

TEST(Svg, IsWellFormedAndRefersToNothingOutside) {
    Json report = sample();
    report["runs"][0]["stages"][1]["name"] = "<script>&\"'";
    report["title"] = "a < b & c";
    const std::string text = svg(report);
    EXPECT_EQ(first_flaw_of_xml(text), "");
    EXPECT_THAT(text, Not(HasSubstr("<script")));
    EXPECT_EQ(count(text, "http"), 1u);  // the name of the format
    EXPECT_EQ(count(text, "href"), 0u);
    EXPECT_EQ(count(text, "url("), 0u);
    EXPECT_LT(text.size(), 20000u);
    EXPECT_EQ(text, svg(report));
}

TEST(Svg, ShowsEveryModelAStarForTheBaselineTheFrontAndTheKnee) {
    const std::string text = svg(sample());
    EXPECT_EQ(count(text, "<circle class=\"mark\""), 9u);
    EXPECT_EQ(count(text, "<path class=\"mark\""), 1u);
    EXPECT_EQ(count(text, "class=\"frontline\""), 1u);
    EXPECT_EQ(count(text, "class=\"knee\""), 0u);  // see tests/golden/report/sample-pareto.json
    EXPECT_EQ(count(svg(sample("macs")), "class=\"knee\""), 1u);
    EXPECT_THAT(text, HasSubstr("↑ Top-1 accuracy"));
    EXPECT_THAT(text, HasSubstr("← Energy per inference, log scale"));
    EXPECT_THAT(text, HasSubstr(">baseline</text>"));
}

TEST(Svg, DrawsAnyTwoMeasuresOrQuality) {
    const std::string text = svg(sample("latency_b1_t2", "file_bytes"));
    EXPECT_THAT(text, HasSubstr("↓ File size, log scale"));
    EXPECT_THAT(text, HasSubstr("← Latency, batch 1, log scale"));
    const std::string turned = svg(sample("quality", "macs"));
    EXPECT_THAT(turned, HasSubstr("→ Top-1 accuracy"));
    EXPECT_THAT(html(sample("quality", "macs")), HasSubstr("<figure id=chosen>"));
    const std::string page = html(sample("latency_b1_t2", "file_bytes"));
    EXPECT_THAT(page, Not(HasSubstr("id=chosen")));
    EXPECT_THAT(page, HasSubstr("<option value=\"latency_b1_t2\" selected>"));
    EXPECT_THAT(page, HasSubstr("<option value=\"file_bytes\" selected>"));
}

TEST(Svg, AxesThatAreNotThereAreNamed) {
    EXPECT_ERROR(sample("file_byte"), InvalidArgument, "Did you mean \"file_bytes\"?");
    EXPECT_ERROR(sample("", "speed"), InvalidArgument, "unknown axis \"speed\"");
    EXPECT_ERROR(sample("quality", "quality"), InvalidArgument, "both axes are quality");
}

TEST(Svg, WithoutAnythingToDrawSaysSo) {
    const Json report = {{"format", "coppice-report"}, {"version", 1}, {"title", "empty"}, {"runs", Json::array()}};
    EXPECT_THAT(svg(report), HasSubstr("There is nothing to draw."));
    EXPECT_EQ(first_flaw_of_xml(svg(report)), "");
}

// The PATH while it lives.
class Path {
public:
    explicit Path(const std::string& path) : before_(std::getenv("PATH")) { ::setenv("PATH", path.c_str(), 1); }
    ~Path() { ::setenv("PATH", before_.c_str(), 1); }

private:
    const std::string before_;
};

TEST(Png, IsRefusedBeforeAnythingIsWrittenWhereNoProgramMakesIt) {
    TemporaryFolder folder;
    const Json report = sample();
    const Path empty(folder.path().string());
    EXPECT_ERROR(check_report_formats({"svg", "png"}, "recipe.yaml:9:1"), InvalidArgument, "librsvg2-bin");
    EXPECT_ERROR(write_report(report, folder / "out", {"svg", "png"}), InvalidArgument, "none is on the PATH");
    EXPECT_FALSE(fs::exists(folder / "out"));
    EXPECT_NO_THROW(check_report_formats({"svg", "html"}, "report"));
}

TEST(Png, AProgramThatFailsIsNamed) {
    TemporaryFolder folder;
    const auto program = folder / "rsvg-convert";
    std::ofstream(program) << "#!/bin/sh\nexit 3\n";
    fs::permissions(program, fs::perms::owner_all);
    const Path only(folder.path().string());
    EXPECT_ERROR(write_report(sample(), folder / "out", {"png"}), Error, "no PNG came from rsvg-convert");
}

TEST(Png, IsThePictureAtTwiceItsSize) {
    try {
        check_report_formats({"png"}, "report");
    } catch (const InvalidArgument&) {
        GTEST_SKIP() << "needs rsvg-convert, inkscape or chromium";
    }
    TemporaryFolder folder;
    write_report(sample(), folder.path(), {"png"});
    const std::string bytes = read_text(folder / "report.png");
    ASSERT_GT(bytes.size(), 1000u);
    const auto number = [&bytes](size_t at) {  // big-endian, in the header
        uint32_t value = 0;
        for (size_t i = 0; i < 4; ++i) value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
        return value;
    };
    EXPECT_EQ(number(16), 1440u);
    EXPECT_EQ(number(20), 800u);
}

// Front and hypervolume of two measures and of turned axes, by the definitions: plain loops over the view's own points.
TEST(Picture, FrontAndHypervolumeAreThoseOfTheDefinition) {
    using namespace report;
    const Json json = sample();
    const View view = make_view(json);
    for (const auto& [across, up] : std::vector<std::pair<std::string, std::string>>{
             {"energy_per_inference_j", "quality"}, {"file_bytes", "latency_b128_t2"}, {"quality", "macs"}}) {
        const Picture picture = picture_of(view, axis_of(view, across, "test"), axis_of(view, up, "test"));
        ASSERT_EQ(picture.points.size(), 10u);
        double base_x = 1, base_y = 1;
        for (const auto& p : picture.points)
            if (p.stage->is_baseline) base_x = p.x.value, base_y = p.y.value;
        std::vector<std::pair<double, double>> cost;
        for (const auto& p : picture.points)
            cost.emplace_back(picture.x.measure ? p.x.value / base_x : -p.x.value,
                              picture.y.measure ? p.y.value / base_y : -p.y.value);
        std::vector<size_t> front;
        for (size_t i = 0; i < cost.size(); ++i) {
            bool beaten = false;
            for (const auto& other : cost)
                beaten |= other.first <= cost[i].first && other.second <= cost[i].second && other != cost[i];
            if (!beaten) front.push_back(i);
        }
        auto found = picture.front;
        std::sort(found.begin(), found.end());
        EXPECT_EQ(found, front) << across << " " << up;
        // Area by strips between neighbouring x of any points: each strip reaches from the reference down to the best y
        // at its left.
        const double rx = picture.x.measure ? picture.reference_x : -picture.reference_x;
        const double ry = picture.y.measure ? picture.reference_y : -picture.reference_y;
        std::vector<double> edges = {rx};
        for (const auto& c : cost) edges.push_back(c.first);
        std::sort(edges.begin(), edges.end());
        double area = 0;
        for (size_t e = 0; e + 1 < edges.size(); ++e) {
            if (edges[e] >= rx) break;
            double best = ry;
            for (const auto& c : cost)
                if (c.first <= edges[e]) best = std::min(best, c.second);
            area += (edges[e + 1] - edges[e]) * (ry - best);
        }
        EXPECT_NEAR(picture.hypervolume, area, 1e-9 * area) << across << " " << up;
    }
}

// Two models of equal multiply-adds, 0.3 points apart, where each top-1 alone is known to 0.6 points: they are tied
// unless the examples that both were asked are compared.
TEST(Picture, QualityIsComparedExampleByExample) {
    TemporaryFolder folder;
    write_sample_run(folder / "run-a");
    const auto status_of_last = [&](bool paired) {
        for (const auto& entry : fs::directory_iterator(folder / "run-a")) {
            const fs::path file = entry.path() / "measurement.json";
            if (!fs::exists(file)) continue;
            Json json = read_json(file);
            const auto name = entry.path().filename().string();
            const double change = name == "08-quantize.static" ? -0.001 : name == "09-deploy" ? -0.004 : -0.1;
            if (change > -0.1)
                json["figures"]["macs"] = coppice::testing::sample_figure(1e6, "1", "derived", "counted");
            auto& quality = json["quality"];
            if (name != "00-baseline") {
                quality["value"] = 0.887 + change;
                quality["points"] = 88.7 + 100 * change;
                quality["figure"]["value"] = 0.887 + change;
                quality["figure"]["interval"] = {0.881 + change, 0.893 + change};
                quality["paired"] = {{"difference", change}, {"interval", {change - 0.001, change + 0.001}}};
                if (!paired) quality.erase("paired");
            }
            std::ofstream(file) << json;
        }
        ReportOptions options;
        options.x = "macs";
        const Json report = collect_report({folder / "run-a"}, options);
        std::string status;
        for (const auto& measure : report["pareto"]["measures"])
            if (measure["key"] == "macs")
                for (const auto& point : measure["points"])
                    if (point["stage"] == "0/09-deploy") status = point["status"];
        return status;
    };
    EXPECT_EQ(status_of_last(true), "dominated");
    EXPECT_EQ(status_of_last(false), "tied");
}

TEST(EnergyClass, HasFixedBandsThatHoldTheirUpperBound) {
    using report::class_of_ratio;
    for (const auto& [ratio, letter] : std::vector<std::pair<double, char>>{{0.01, 'A'},
                                                                            {0.2, 'A'},
                                                                            {0.2001, 'B'},
                                                                            {0.35, 'B'},
                                                                            {0.5, 'C'},
                                                                            {0.7, 'D'},
                                                                            {0.9, 'E'},
                                                                            {1.0, 'F'},
                                                                            {1.1, 'F'},
                                                                            {1.101, 'G'},
                                                                            {50, 'G'}})
        EXPECT_EQ(class_of_ratio(ratio), letter) << ratio;
}

TEST(EnergyClass, IsARangeWhereTheIntervalSpansClasses) {
    TemporaryFolder folder;
    write_sample_run(folder / "run-a");
    const auto classes_with = [&](double ratio, double low, double high) {
        const fs::path file = folder / "run-a" / "09-deploy" / "measurement.json";
        Json json = read_json(file);
        Json figure = coppice::testing::sample_figure(ratio, "ratio", "modelled", "paired");
        figure["interval"] = {low, high};
        json["figures"]["energy_ratio_to_baseline"] = figure;
        std::ofstream(file) << json;
        return collect_report({folder / "run-a"});
    };
    const Json narrow = classes_with(0.3, 0.29, 0.31);
    EXPECT_EQ(narrow["runs"][0]["stages"][9]["energy_class"]["best"], "B");
    EXPECT_EQ(narrow["runs"][0]["stages"][9]["energy_class"]["worst"], "B");
    EXPECT_EQ(narrow["runs"][0]["stages"][9]["energy_class"]["bands"], "energy-class-1");
    EXPECT_THAT(html(narrow), HasSubstr(">B</b>"));
    const Json wide = classes_with(0.3, 0.19, 0.55);
    EXPECT_EQ(wide["runs"][0]["stages"][9]["energy_class"]["best"], "A");
    EXPECT_EQ(wide["runs"][0]["stages"][9]["energy_class"]["worst"], "D");
    EXPECT_THAT(html(wide), HasSubstr(">A to D</b>"));
    EXPECT_EQ(wide["runs"][0]["stages"][0]["energy_class"]["best"], "F");  // the baseline is its own measure
}

TEST(EnergyClass, IsAbsentWithoutEnergy) {
    TemporaryFolder folder;
    write_sample_run(folder / "run-a");
    for (const auto& entry : fs::directory_iterator(folder / "run-a")) {
        const fs::path file = entry.path() / "measurement.json";
        if (!fs::exists(file)) continue;
        Json json = read_json(file);
        json["figures"].erase("energy_per_inference_j");
        std::ofstream(file) << json;
    }
    const Json report = collect_report({folder / "run-a"});
    for (const auto& stage : report["runs"][0]["stages"]) EXPECT_TRUE(stage["energy_class"].is_null());
    EXPECT_THAT(html(report), Not(HasSubstr("data-key=\"energy_class\"")));
}

}  // namespace
}  // namespace coppice::eval
