// JSON with its schema, CSV, Markdown and the terminal's table; golden files for all four.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>

#include <coppice/report.h>

#include "eval/report/sample.h"
#include "report/text.h"
#include "support/schema.h"
#include "support/support.h"

namespace coppice::eval {
namespace {

namespace fs = std::filesystem;
using coppice::testing::schema_violations;
using coppice::testing::TemporaryFolder;
using coppice::testing::write_sample_run;
using ::testing::HasSubstr;
using ::testing::Not;

const Json& sample() {
    static const Json report = [] {
        TemporaryFolder folder;
        write_sample_run(folder / "run-a");
        return collect_report({folder / "run-a"});
    }();
    return report;
}

TEST(ReportJson, FitsItsSchema) {
    EXPECT_THAT(schema_violations(sample(), report_schema()), ::testing::IsEmpty());
}

TEST(ReportJson, TheSchemaNoticesWhatIsWrong) {
    Json report = sample();
    report.erase("pareto");
    report["runs"][0]["stages"][3]["measurement"]["figures"]["macs"]["provenance"] = "guessed";
    report["runs"][0]["stages"][4]["measurement"]["figures"]["macs"]["interval"] = {1, 2, 3};
    const auto wrong = schema_violations(report, report_schema());
    EXPECT_EQ(wrong.size(), 3u) << ::testing::PrintToString(wrong);
}

std::vector<std::vector<std::string>> parse_csv(const std::string& text) {
    std::vector<std::vector<std::string>> rows(1, {""});
    bool quoted = false;
    for (size_t i = 0; i < text.size(); ++i) {
        if (quoted && text[i] == '"' && text[i + 1] == '"')
            rows.back().back() += text[++i];
        else if (text[i] == '"')
            quoted = !quoted;
        else if (!quoted && text[i] == ',')
            rows.back().emplace_back();
        else if (!quoted && text[i] == '\r' && text[i + 1] == '\n')
            rows.push_back({""}), ++i;
        else
            rows.back().back() += text[i];
    }
    rows.pop_back();
    return rows;
}

TEST(ReportCsv, HasARowPerStageAndFiveColumnsPerFigure) {
    const auto rows = parse_csv(csv(sample()));
    ASSERT_EQ(rows.size(), 11u);
    for (const auto& row : rows) ASSERT_EQ(row.size(), rows[0].size());
    const auto cell = [&rows](size_t row, const std::string& column) {
        const auto found = std::find(rows[0].begin(), rows[0].end(), column);
        return found == rows[0].end() ? "no column " + column : rows[row][static_cast<size_t>(found - rows[0].begin())];
    };
    EXPECT_EQ(cell(10, "stage"), "09-deploy");
    EXPECT_EQ(cell(10, "file_bytes"), "168912");
    EXPECT_EQ(cell(10, "file_bytes_unit"), "B");
    EXPECT_EQ(cell(10, "file_bytes_provenance"), "measured");
    EXPECT_EQ(cell(10, "file_bytes_low"), "");
    EXPECT_EQ(cell(10, "power_w"), "");  // unavailable is empty, never 0
    EXPECT_EQ(cell(10, "power_w_provenance"), "unavailable");
    EXPECT_EQ(cell(4, "kept"), "no");
    EXPECT_NEAR(std::stod(cell(10, "latency_p50_s_b128_t2_low")), 0.0521 * 0.988, 1e-12);
    EXPECT_EQ(cell(1, "compression_seconds"), "");
    EXPECT_EQ(cell(3, "compression_seconds"), "512");
    EXPECT_EQ(cell(10, "grid"), "WORLD");
    EXPECT_EQ(cell(10, "grid_g_per_kwh"), "473");
    EXPECT_EQ(cell(10, "grid_year"), "2024");
    EXPECT_EQ(cell(10, "grid_attribution"),
              "Grid intensity: Ember and Energy Institute, by Our World in Data, CC BY 4.0.");
    EXPECT_EQ(cell(10, "pue"), "1.0");
    EXPECT_EQ(cell(10, "embodied_kg"), "") << "an older program did not say";
    // A verdict with commas and colons comes back whole.
    EXPECT_EQ(cell(5, "verdict"),
              "Undone: half of the weights are zero, the file is smaller, and nothing runs faster.");
}

TEST(ReportMarkdown, IsATableWithMarksAndTheGridsAttribution) {
    const std::string text = markdown(sample());
    EXPECT_THAT(text, HasSubstr("| 9 deploy | 87.39 % ● | −1.31 | 4.72 mJ ≈ (4.2× less) | 1.21 ms ● (3.0× faster) |"));
    EXPECT_THAT(text, HasSubstr("CC BY 4.0"));
    EXPECT_THAT(text, HasSubstr("≈ modelled"));
    size_t columns = 0;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);)
        if (!line.empty() && line[0] == '|') {
            const size_t pipes = static_cast<size_t>(std::count(line.begin(), line.end(), '|'));
            if (columns == 0) columns = pipes;
            EXPECT_EQ(pipes, columns) << line;
        }
}

TEST(ReportMarkdown, TextFromFilesCannotBreakTheTable) {
    Json report = sample();
    report["runs"][0]["stages"][1]["name"] = "a|b\n<b>`x`*";
    EXPECT_THAT(markdown(report), HasSubstr("| 1 a\\|b &lt;b>\\`x\\`\\* |"));
}

TEST(TerminalTable, FitsAHundredColumnsAndHoldsEveryStage) {
    Json report = sample();
    report["runs"][0]["stages"][1]["name"] = "a.stage.with_a_name_that_is_much_longer_than_any_column\x1b[31m";
    const std::string text = terminal_table(report);
    std::istringstream lines(text);
    size_t count = 0;
    for (std::string line; std::getline(lines, line); ++count) EXPECT_LE(report::columns(line), 100u) << line;
    EXPECT_EQ(count, 3u + 10u);
    EXPECT_EQ(text.find('\x1b'), std::string::npos);
    EXPECT_THAT(text, HasSubstr("modelled"));
}

TEST(TerminalTable, SaysHowSureTheRatiosOfTimesAre) {
    Json report = sample();
    EXPECT_THAT(terminal_table(report), Not(HasSubstr("Ratios of times")));
    const auto reach = [&report](size_t stage, size_t row, double reached) {
        report["runs"][0]["stages"][stage]["measurement"]["latency"][row]["relative_interval"] = {{"wanted", 0.02},
                                                                                                  {"reached", reached}};
    };
    reach(1, 0, 0.0042);
    EXPECT_THAT(terminal_table(report), HasSubstr("Ratios of times are known to ±0.42 % (asked for: 2.0 %).\n"));
    reach(2, 1, 0.031);
    EXPECT_THAT(terminal_table(report), HasSubstr("known to ±0.42 to 3.1 % (asked for: 2.0 %)."));
    EXPECT_THAT(html(report), HasSubstr("Ratios of times are known to ±0.42 to 3.1 % (asked for: 2.0 %)."));
}

TEST(TerminalTable, MarksAFigureWhoseSourceDiffersFromItsColumn) {
    Json report = sample();
    report["runs"][0]["stages"][2]["measurement"]["figures"]["file_bytes"]["provenance"] = "assumed";
    EXPECT_THAT(terminal_table(report), HasSubstr("611 kB 1.81×◇"));
    EXPECT_THAT(terminal_table(report), HasSubstr("◇ assumed"));
    EXPECT_THAT(terminal_table(sample()), Not(HasSubstr("◇")));
}

TEST(Formats, MarkAStageWhosePrecisionIsSimulatedAndTheModelsMadeFromIt) {
    TemporaryFolder folder;
    write_sample_run(folder / "run-a");
    Json report = collect_report({folder / "run-a"});
    for (const auto& text :
         {html(report), markdown(report), csv(report), terminal_table(report), model_card(report), svg(report)})
        EXPECT_EQ(text.find("(simulated)"), std::string::npos);
    auto& stages = report["runs"][0]["stages"];
    // The last stage but one: the last starts from it.
    auto& marked = stages[stages.size() - 2];
    ASSERT_EQ(marked["stage"]["kept"], true);
    marked["stage"]["facts"]["simulated"] = true;
    report["summary"] = summary_sentence(report);
    const std::string label = "9 deploy (simulated)";
    for (const auto& text : {html(report), markdown(report), svg(report)}) EXPECT_THAT(text, HasSubstr("(simulated)"));
    EXPECT_THAT(terminal_table(report),
                HasSubstr("Simulated precision, neither smaller nor faster for it: 8 quantize.static, 9 deploy"));
    EXPECT_THAT(markdown(report), HasSubstr(label));
    EXPECT_THAT(html(report), HasSubstr("computes in wider numbers"));
    EXPECT_THAT(model_card(report), HasSubstr("computes in wider numbers"));
    EXPECT_THAT(report["summary"].get<std::string>(), HasSubstr("simulated"));
    size_t yes = 0;
    std::istringstream lines(csv(report));
    for (std::string line; std::getline(lines, line);) yes += line.find(",yes,yes,") != std::string::npos;
    EXPECT_EQ(yes, 2u);
}

TEST(Formats, RefuseJsonThatIsNoReport) {
    for (const auto& render : {html, csv, markdown, terminal_table, summary_sentence}) {
        EXPECT_ERROR(render(Json::object()), InvalidArgument, "not a report");
        EXPECT_ERROR(render({{"format", "coppice-run"}, {"version", 1}}), InvalidArgument, "\"coppice-run\"");
        EXPECT_ERROR(render({{"format", "coppice-report"}, {"version", 2}}), InvalidArgument, "version is 2");
    }
}

// A report written by another program may hold anything within the schema's outline.
TEST(Formats, SurviveMembersOfTheWrongType) {
    const Json report = {
        {"format", "coppice-report"},
        {"version", 1},
        {"title", 7},
        {"warnings", "none"},
        {"runs", {5, {{"stages", "x"}}, {{"stages", {1, {{"measurement", {{"quality", 3}, {"latency", {2}}}}}}}}}},
        {"pareto", {{"measures", {1, {{"points", {1}}}}}}}};
    for (const auto& render : {html, csv, markdown, terminal_table}) EXPECT_FALSE(render(report).empty());
}

TEST(WriteReport, WritesTheFormatsAskedFor) {
    TemporaryFolder folder;
    const auto files = write_report(sample(), folder / "out", {"csv", "json"});
    ASSERT_EQ(files.size(), 2u);
    EXPECT_EQ(files[1], folder / "out" / "report.json");
    EXPECT_EQ(read_json(files[1]), sample());
    EXPECT_FALSE(fs::exists(folder / "out" / "report.html"));
    EXPECT_ERROR(write_report(sample(), folder.path(), {"htm"}), InvalidArgument, "html");
}

TEST(Numbers, ReadAsPeopleWriteThem) {
    using namespace report;
    EXPECT_EQ(quantity(0, "B"), "0 B");
    EXPECT_EQ(quantity(512, "B"), "512 B");
    EXPECT_EQ(quantity(999, "B"), "999 B");
    EXPECT_EQ(quantity(999.6e3, "B"), "1.00 MB");
    EXPECT_EQ(quantity(1.0944e6, "B"), "1.09 MB");
    EXPECT_EQ(quantity(0.0034, "s"), "3.40 ms");
    EXPECT_EQ(quantity(9.996e-3, "s"), "10.0 ms");
    EXPECT_EQ(quantity(960, "s"), "16.0 min");
    EXPECT_EQ(quantity(40812544, "1"), "40.8 M");
    EXPECT_EQ(quantity(12, "1"), "12");
    EXPECT_EQ(quantity(2.64e-6, "g"), "2.64 µg");
    EXPECT_EQ(quantity(0.887, "ratio"), "88.70 %");
    EXPECT_EQ(quantity(3.5, "furlong"), "3.50 furlong");
    EXPECT_EQ(quantity(Figure()), "–");
    EXPECT_EQ(factor(1.2345), "1.23×");
    EXPECT_EQ(factor(5.34), "5.3×");
    EXPECT_EQ(factor(9.96), "10×");
    EXPECT_EQ(fixed(-0.001, 2), "0.00");
    EXPECT_EQ(exact(0.1), "0.1");
    EXPECT_EQ(shortened("größer", 4), "grö…");
    EXPECT_EQ(compared(2, 10, {"smaller", "larger"}), "5.0× smaller");
    EXPECT_EQ(compared(10, 2, {"smaller", "larger"}), "5.0× larger");
    EXPECT_EQ(compared(10, 10.01, {"smaller", "larger"}), "the same");
}

// COPPICE_UPDATE_GOLDEN=1 writes the files anew: see tests/golden/README.md.
void expect_golden(const std::string& name, const std::string& text) {
    const char* source = std::getenv("COPPICE_SOURCE");
    if (!source) GTEST_SKIP() << "needs COPPICE_SOURCE, the project's folder";
    const fs::path file = fs::path(source) / name;
    if (std::getenv("COPPICE_UPDATE_GOLDEN")) write_atomically(file, text);
    const std::string found = read_text(file);
    const auto [here, there] = std::mismatch(text.begin(), text.end(), found.begin(), found.end());
    EXPECT_TRUE(here == text.end() && there == found.end())
        << name << " differs from its byte " << here - text.begin() << " on: now "
        << std::string(here, here + std::min<std::ptrdiff_t>(80, text.end() - here)) << ", in the file "
        << std::string(there, there + std::min<std::ptrdiff_t>(80, found.end() - there));
}

TEST(Golden, TerminalTable) {
    expect_golden("tests/golden/report/sample.txt", terminal_table(sample()));
}
TEST(Golden, Markdown) {
    expect_golden("tests/golden/report/sample.md", markdown(sample()));
}
TEST(Golden, ModelCard) {
    expect_golden("tests/golden/report/sample-card.md", model_card(sample()));
}
TEST(Golden, Csv) {
    expect_golden("tests/golden/report/sample.csv", csv(sample()));
}
TEST(Golden, Pareto) {
    expect_golden("tests/golden/report/sample-pareto.json", sample()["pareto"].dump(1) + "\n");
}

// What the README shows is what the program of today makes of the figures measured then.
TEST(Golden, ExampleOfFourteenVariants) {
    const char* source = std::getenv("COPPICE_SOURCE");
    if (!source) GTEST_SKIP() << "needs COPPICE_SOURCE, the project's folder";
    const std::string folder = "examples/resnet20_variants/";
    const Json report = Json::parse(read_text(fs::path(source) / folder / "report.json"));
    expect_golden(folder + "report.html", html(report));
    expect_golden(folder + "report.svg", svg(report));
}

}  // namespace
}  // namespace coppice::eval
