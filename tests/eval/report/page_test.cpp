// The HTML page: its text, its safety, and what a reader sees in a browser.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <regex>

#include <coppice/report.h>

#include "eval/report/sample.h"
#include "support/support.h"

namespace coppice::eval {
namespace {

namespace fs = std::filesystem;
using coppice::testing::TemporaryFolder;
using coppice::testing::write_sample_run;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

Json sample() {
    TemporaryFolder folder;
    write_sample_run(folder / "run-a");
    return collect_report({folder / "run-a"});
}

TEST(ReportPage, IsRebuiltByteForByteFromItsJson) {
    const Json report = sample();
    EXPECT_EQ(html(report), html(Json::parse(report.dump())));
    EXPECT_EQ(html(report), html(Json::parse(report.dump(2))));
}

TEST(ReportPage, NeedsNothingFromOutside) {
    const std::string page = html(sample());
    for (const char* outside : {"http:", "https:", "//cdn", "<link", "<img", "@import", "url(", "<iframe", " src="}) {
        std::string without = page;
        // The name of the SVG namespace is an identifier, nothing is loaded from it.
        const std::string name = "http://www.w3.org/2000/svg";
        for (size_t at; (at = without.find(name)) != std::string::npos;) without.erase(at, name.size());
        EXPECT_EQ(without.find(outside), std::string::npos) << outside;
    }
    EXPECT_THAT(page, HasSubstr("default-src 'none'"));
}

TEST(ReportPage, EscapesEverythingThatCameFromFiles) {
    const std::string attack = "\"><script>alert(1)</script><b a='";
    Json report = sample();
    report["title"] = attack;
    report["summary"] = attack;
    report["warnings"] = {attack};
    report["generated_by"] = attack;
    report["runs"][0]["recipe"] = attack;
    report["runs"][0]["folder"] = attack;
    report["runs"][0]["manifest"][attack] = attack;
    for (auto& stage : report["runs"][0]["stages"]) {
        stage["name"] = attack;
        stage["stage"]["verdict"] = attack;
        stage["stage"]["options"] = {{attack, attack}};
        stage["stage"]["facts"] = {{attack, {attack, attack}}};
        stage["stage"]["warnings"] = {attack};
        stage["stage"]["changes"] = {
            {{"layer", attack}, {"action", attack}, {"before", attack}, {"after", attack}, {"reason", attack}}};
        stage["stage"]["layers"] = {{{"name", attack}, {"op", attack}, {"output_shape", attack}}};
        stage["measurement"]["environment"] = {{attack, attack}};
        stage["measurement"]["carbon"] = {{attack, attack}};
        stage["measurement"]["quality"]["data"] = attack;
        stage["measurement"]["quality"]["metric"] = attack;
        for (auto& [name, figure] : stage["measurement"]["figures"].items())
            figure["method"] = attack, figure["unit"] = attack;
        stage["measurement"]["figures"][attack] = {{"value", 1}, {"unit", "1"}, {"provenance", "measured"}};
        stage["measurement"]["figures"]["power_w"]["reason"] = attack;
    }
    for (auto& measure : report["pareto"]["measures"])
        measure["name"] = attack, measure["unit"] = attack, measure["key"] = attack;
    report["pareto"]["quality"]["name"] = attack;
    const std::string page = html(report);
    EXPECT_EQ(page.find("<script>alert"), std::string::npos);
    EXPECT_EQ(page.find("<b a="), std::string::npos);
    // Two script elements: the data and the program. Each begins and ends once.
    const auto count = [&page](const std::string& what) {
        size_t found = 0;
        for (size_t at = page.find(what); at != std::string::npos; at = page.find(what, at + 1)) ++found;
        return found;
    };
    EXPECT_EQ(count("<script"), 2u);
    EXPECT_EQ(count("</script"), 2u);
}

TEST(ReportPage, StaysBelowHalfAMegabyteAndSaysWhatItLeavesOut) {
    Json report = sample();
    for (auto& stage : report["runs"][0]["stages"]) {
        const Json change = stage["stage"]["layers"][0];
        for (int i = 0; i < 900; ++i)
            stage["stage"]["changes"].push_back(
                {{"layer", "encoder.layers." + std::to_string(i) + ".self_attention.projection"},
                 {"action", "int8"},
                 {"before", "float32, 768 x 3072"},
                 {"after", "int8, per channel"},
                 {"reason", "a reason of the usual length for a layer that was converted"}});
    }
    const std::string page = html(report);
    EXPECT_LE(page.size(), 500'000u);
    EXPECT_THAT(page, HasSubstr("layers are in report.json"));

    // A great many stages: the table itself is cut, and says so.
    Json& stages = report["runs"][0]["stages"];
    const Json first = stages[0], last = stages[9];
    stages = Json::array({first});
    for (int i = 1; i < 600; ++i) {
        stages.push_back(last);
        stages.back()["folder"] = std::to_string(i) + "-deploy";
    }
    const std::string cut = html(report);
    EXPECT_LE(cut.size(), 500'000u);
    EXPECT_THAT(cut, HasSubstr("more stages are in report.json"));
}

TEST(ReportPage, ShowsWhatAQuantizerSaysOfEachLayer) {
    Json report = sample();
    auto& facts = report["runs"][0]["stages"][1]["stage"]["facts"];
    EXPECT_THAT(html(report), Not(HasSubstr("by precision, noise and time")));
    facts["layers"] = {{{"layer", "conv<1>"},
                        {"precision", "int8"},
                        {"sqnr_db", 41.26},
                        {"input_range", {-2.5, 3}},
                        {"clipped_ratio", 0.012},
                        {"seconds_before", 120e-6},
                        {"seconds_after", 30e-6}},
                       {{"layer", "head"}, {"precision", "float32"}, {"reason", "too noisy"}}};
    const std::string page = html(report);
    for (const char* part : {"2 layers by precision, noise and time", "conv&lt;1&gt;", "41.3 dB", "-2.50 to 3", "1.2 %",
                             "120 µs", "30.0 µs", "4.0× faster", "too noisy"})
        EXPECT_THAT(page, HasSubstr(part));
    facts["layers"] = {"conv1"};  // of another kind: left to the facts
    EXPECT_THAT(html(report), Not(HasSubstr("by precision, noise and time")));
}

TEST(ReportPage, ShowsTheProvenanceBesideEveryValueOfTheTable) {
    const std::string page = html(sample());
    const size_t begin = page.find("<table id=stage-table>"), end = page.find("</table>", begin);
    const std::string table = page.substr(begin, end - begin);
    const std::regex cell("<td class=n.*?</td>"),
        marked("<span class=sr> \\((measured|derived|modelled|assumed|unavailable)\\)</span>");
    size_t cells = 0;
    for (std::sregex_iterator it(table.begin(), table.end(), cell), none; it != none; ++it, ++cells)
        EXPECT_TRUE(std::regex_search(it->str(), marked)) << it->str();
    EXPECT_GE(cells, 10u * 10u);
}

// ------------------------------------------------------------------------------------------------------------------ in
// a browser

std::string browser() {
    for (const char* name : {"chromium", "chromium-browser", "google-chrome"})
        if (std::system(("command -v " + std::string(name) + " >/dev/null 2>&1").c_str()) == 0) return name;
    return {};
}

#define SKIP_WITHOUT_BROWSER() \
    if (browser().empty()) GTEST_SKIP() << "needs chromium, chromium-browser or google-chrome"

struct Seen {
    std::string dom;      // after the script ran
    std::string console;  // messages of the page, errors included
};

// Opens the page in headless Chromium. @param fragment  "#sort=file_bytes"
Seen open_html(const std::string& text, const std::string& fragment, int width = 1280) {
    TemporaryFolder folder;
    const fs::path page = folder / "report.html";
    write_atomically(page, text);
    const fs::path dom = folder / "dom.html", log = folder / "log.txt", profile = folder / "profile";
    const std::string command =
        browser() +
        " --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --user-data-dir=" + profile.string() +
        " --window-size=" + std::to_string(width) +
        ",1000 --virtual-time-budget=3000 --enable-logging=stderr --v=0 --dump-dom 'file://" + page.string() +
        fragment + "' >" + dom.string() + " 2>" + log.string();
    EXPECT_EQ(std::system(("timeout 120 " + command).c_str()), 0) << read_text(log);
    Seen seen{read_text(dom), {}};
    std::istringstream lines(read_text(log));
    for (std::string line; std::getline(lines, line);)
        if (line.find(":CONSOLE") != std::string::npos || line.find("INFO:CONSOLE") != std::string::npos)
            seen.console += line + "\n";
    return seen;
}

Seen open_page(const Json& report, const std::string& fragment) {
    return open_html(html(report), fragment);
}

std::vector<std::string> all(const std::string& text, const std::string& pattern) {
    std::vector<std::string> found;
    const std::regex expression(pattern);
    for (std::sregex_iterator it(text.begin(), text.end(), expression), none; it != none; ++it)
        found.push_back((*it)[1]);
    return found;
}

// Labels of the rows of the table of stages, from top to bottom.
std::vector<std::string> rows(const std::string& dom) {
    const size_t begin = dom.find("id=\"stage-table\""), end = dom.find("</table>", begin);
    auto labels = all(dom.substr(begin, end - begin), "<a href=\"#stage-[^\"]*\">(.*?)</a>");
    for (auto& label : labels)
        for (size_t at; (at = label.find("<wbr>")) != std::string::npos;) label.erase(at, 5);
    return labels;
}

std::string picture(const std::string& dom) {
    const size_t begin = dom.find("<div id=\"plot\">"), end = dom.find("</figure>", begin);
    return dom.substr(begin, end - begin);
}

TEST(ReportPageInChromium, ShowsNamedPointsATableAndNoConsoleMessage) {
    SKIP_WITHOUT_BROWSER();
    const Seen seen = open_page(sample(), "#zoom=0");
    EXPECT_EQ(seen.console, "");
    const std::string plot = picture(seen.dom);
    EXPECT_THAT(plot, HasSubstr("↑ Top-1 accuracy"));
    EXPECT_THAT(plot, HasSubstr("← Energy per inference, log scale"));
    for (const char* name : {">baseline<", ">1 prune.channel<", ">9 deploy<", ">3 lowrank.svd<"})
        EXPECT_THAT(plot, HasSubstr(name));
    // Every point can be reached by the keyboard and speaks for itself.
    EXPECT_EQ(all(plot, "class=\"pt ([a-z]+)[^\"]*\" tabindex=\"0\"").size(), 10u);
    EXPECT_THAT(plot, HasSubstr("aria-label=\"9 deploy (final). Top-1 accuracy 87.39 %"));
    EXPECT_THAT(plot, HasSubstr("Energy per inference 4.72 mJ, 4.62 mJ to 4.82 mJ; 4.2× less. ≈ modelled"));
    EXPECT_THAT(plot, HasSubstr("Tied: another model is better in value, but not beyond the uncertainty"));
    EXPECT_THAT(rows(seen.dom), ElementsAre("baseline", "1 prune.channel", "2 train.finetune", "3 lowrank.svd",
                                            "4 prune.weight", "5 quantize.dynamic", "6 prune.channel",
                                            "7 train.finetune", "8 quantize.static", "9 deploy"));
    EXPECT_THAT(seen.dom, HasSubstr("6.5× smaller"));
    EXPECT_THAT(seen.dom, HasSubstr("&lt;script&gt;alert(1)&lt;/script&gt;"));  // as text
}

TEST(ReportPageInChromium, SortsTheTableAndSwitchesTheMeasureAsTheAddressSays) {
    SKIP_WITHOUT_BROWSER();
    const Seen seen = open_page(sample(), "#sort=file_bytes&measure=file_bytes");
    EXPECT_EQ(seen.console, "");
    EXPECT_THAT(rows(seen.dom),
                ElementsAre("9 deploy", "8 quantize.static", "4 prune.weight", "6 prune.channel", "7 train.finetune",
                            "3 lowrank.svd", "5 quantize.dynamic", "1 prune.channel", "2 train.finetune", "baseline"));
    EXPECT_THAT(seen.dom, HasSubstr("data-key=\"file_bytes\" class=\"n\" aria-sort=\"ascending\""));
    EXPECT_THAT(picture(seen.dom), HasSubstr("← File size, log scale"));
    EXPECT_THAT(seen.dom, HasSubstr("2 models of much lower quality are not shown"));
}

TEST(ReportPageInChromium, SortsDownwards) {
    SKIP_WITHOUT_BROWSER();
    const auto order = rows(open_page(sample(), "#sort=-quality").dom);
    ASSERT_EQ(order.size(), 10u);
    EXPECT_EQ(order[0], "baseline");
    EXPECT_EQ(order[1], "2 train.finetune");
    EXPECT_EQ(order[9], "1 prune.channel");
}

TEST(ReportPageInChromium, AReportWithOneStageAndWithoutQualityStillOpens) {
    SKIP_WITHOUT_BROWSER();
    TemporaryFolder folder;
    write_sample_run(folder / "run-a");
    for (const auto& entry : fs::directory_iterator(folder / "run-a"))
        if (entry.is_directory() && entry.path().filename() != "00-baseline") fs::remove_all(entry.path());
    EXPECT_EQ(open_page(collect_report({folder / "run-a"}), "").console, "");
    Json measurement = read_json(folder / "run-a" / "00-baseline" / "measurement.json");
    measurement.erase("quality");
    write_atomically(folder / "run-a" / "00-baseline" / "measurement.json", measurement.dump());
    const Seen seen = open_page(collect_report({folder / "run-a"}), "");
    EXPECT_EQ(seen.console, "");
    EXPECT_THAT(seen.dom, HasSubstr("there is nothing to compare"));
}

// Opens `outer`, a page that looks into frames, beside report.html; returns what it wrote into its paragraph "result".
std::string look_into(const TemporaryFolder& folder, const std::string& outer) {
    write_atomically(folder / "outer.html", outer);
    const std::string command =
        "timeout 120 " + browser() +
        " --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --allow-file-access-from-files "
        "--virtual-time-budget=20000 --user-data-dir=" +
        (folder / "profile").string() + " --dump-dom 'file://" + (folder / "outer.html").string() + "' >" +
        (folder / "dom.html").string() + " 2>/dev/null";
    EXPECT_EQ(std::system(command.c_str()), 0);
    const auto result = all(read_text(folder / "dom.html"), "<p id=\"result\">([^<]*)</p>");
    return result.size() == 1 ? result[0] : "the script did not end";
}

// Lays the page out at phone and desktop width for every measure, and asks the browser itself for boxes. A window of
// headless Chromium is never narrower than 500 pixels; a frame is.
TEST(ReportPageInChromium, NothingOverlapsOrSticksOutAtPhoneAndDesktopWidth) {
    SKIP_WITHOUT_BROWSER();
    TemporaryFolder folder;
    const Json report = sample();
    write_report(report, folder.path(), {"html"});
    std::string keys;
    for (const auto& measure : report["pareto"]["measures"]) keys += (keys.empty() ? "" : ",") + measure["key"].dump();
    const std::string result = look_into(folder, R"(<!doctype html><body><p id=result></p><script>
const keys = [)" + keys + R"(], lines = [];
let left = keys.length * 4;
for (const width of [375, 1280]) for (const zoom of [0, 1]) for (const key of keys) {
  const frame = document.createElement("iframe");
  frame.style = "width:" + width + "px;height:900px;border:0";
  frame.src = "report.html#zoom=" + zoom + "&measure=" + key;
  frame.onload = () => {
    const page = frame.contentDocument, where = key + " at " + width + ", zoom " + zoom + ": ";
    if (page.documentElement.scrollWidth > width) lines.push(where + "page is " + page.documentElement.scrollWidth + " wide");
    const boxes = [...page.querySelectorAll("#plot text")].map(t => ({ text: t.textContent, box: t.getBoundingClientRect() }));
    if (boxes.length < 8) lines.push(where + "only " + boxes.length + " texts");
    for (const a of boxes) if (a.box.left < 0 || a.box.right > width) lines.push(where + a.text + " is cut off");
    // 2 pixels: the boxes of lines of text include their leading.
    boxes.forEach((a, i) => boxes.slice(i + 1).forEach(b => {
      if (a.box.left + 1 < b.box.right && b.box.left + 1 < a.box.right && a.box.top + 2 < b.box.bottom && b.box.top + 2 < a.box.bottom)
        lines.push(where + a.text + " overlaps " + b.text);
    }));
    if (--left === 0) document.getElementById("result").textContent = "checked " + keys.length * 4 + ". " + lines.join("; ");
  };
  document.body.appendChild(frame);
}
</script>)");
    EXPECT_EQ(result, "checked " + std::to_string(4 * report["pareto"]["measures"].size()) + ". ");
}

// Every text against the first opaque background behind it, at WCAG's 4.5 : 1, in both colour schemes; every control by
// name and keyboard.
constexpr const char* kInspection = R"js(
const lines = [];
function luminance(c) {
  const f = c.map(v => { v /= 255; return v <= 0.03928 ? v / 12.92 : Math.pow((v + 0.055) / 1.055, 2.4); });
  return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2];
}
function parse(text) {
  const n = (text.match(/[\d.]+/g) || []).map(Number);
  return n.length < 3 ? null : { rgb: n.slice(0, 3), a: n.length > 3 ? n[3] : 1 };
}
function ratio(a, b) {
  const x = luminance(a), y = luminance(b);
  return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
}
function check(frame, where) {
  const page = frame.contentDocument, win = frame.contentWindow;
  page.querySelectorAll("details").forEach(d => { d.open = true; });
  const seen = new Set();
  let texts = 0;
  const walker = page.createTreeWalker(page.body, 4);
  for (let node; (node = walker.nextNode());) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest("script, style, .sr, .skip, [hidden]") || !element.getClientRects().length) continue;
    const style = win.getComputedStyle(element);
    const color = parse(element.ownerSVGElement ? style.fill : style.color);
    let behind = null;
    for (let up = element; up && !behind; up = up.parentElement) {
      const own = parse(win.getComputedStyle(up).backgroundColor);
      if (own && own.a === 1) behind = own;
    }
    if (!color || !behind) { lines.push(where + "no colour at " + node.data); continue; }
    texts++;
    const r = ratio(color.rgb, behind.rgb);
    const name = (element.className.baseVal ?? element.className) + "/" + element.tagName;
    if (r < 4.5 && !seen.has(name)) { seen.add(name); lines.push(where + name + " '" + node.data.trim().slice(0, 20) + "' has contrast " + r.toFixed(2)); }
  }
  if (texts < 200) lines.push(where + "only " + texts + " texts");
}
function keys(frame, where) {
  const page = frame.contentDocument, win = frame.contentWindow, say = text => lines.push(where + text);
  const press = (node, key) => node.dispatchEvent(new win.KeyboardEvent("keydown", { key: key, bubbles: true }));
  page.querySelectorAll("details.stage").forEach(d => { d.open = false; });
  const points = [...page.querySelectorAll("#plot .pt")];
  if (points.length < 3) say("only " + points.length + " points");
  for (const point of points) {
    point.focus();
    if (page.activeElement !== point) say("a point takes no focus");
    const tip = page.querySelector(".tip");
    if (!tip || !point.getAttribute("aria-label").startsWith(tip.querySelector("strong").textContent)) say("focus shows no tip of its point");
    press(point, "Escape");
    if (page.querySelector(".tip")) say("Escape leaves the tip");
  }
  press(points[1], "Enter");
  const opened = [...page.querySelectorAll("details.stage")].filter(d => d.open);
  if (opened.length !== 1 || page.activeElement !== opened[0].querySelector("summary")) say("Enter opens " + opened.length + " stages");
  const reach = [...page.querySelectorAll("a[href], button, select, summary, [tabindex]")].filter(n => n.getClientRects().length && !n.closest("details:not([open]) > :not(summary)"));
  for (const node of reach) {
    node.focus();
    if (page.activeElement !== node) say(node.outerHTML.slice(0, 60) + " cannot be focused");
    if (!(node.textContent.trim() || node.getAttribute("aria-label") || node.labels?.length || node.getAttribute("aria-labelledby"))) say(node.outerHTML.slice(0, 60) + " has no name");
  }
  const button = page.querySelector('#stage-table th[data-key="file_bytes"] button'), head = button.closest("th");
  const column = [...head.parentNode.cells].indexOf(head);
  for (const direction of ["ascending", "descending"]) {
    button.click();
    const values = [...page.querySelectorAll("#stage-table tbody tr")].map(r => +r.cells[column].getAttribute("data-v"));
    const sorted = values.slice().sort((a, b) => direction === "ascending" ? a - b : b - a);
    if (head.getAttribute("aria-sort") !== direction || values.join() !== sorted.join()) say("sorting " + direction + " gives " + values.join());
    if (!page.getElementById("live").textContent.includes(direction)) say("sorting is not announced");
  }
  const up = page.getElementById("up");
  up.value = "file_bytes"; up.dispatchEvent(new win.Event("change"));
  if (!page.querySelector("#plot svg").textContent.includes("\u2193 File size")) say("the axis up does not follow its choice");
}

let left = 2;
for (const file of ["report.html", "dark.html"]) {
  const frame = document.createElement("iframe");
  frame.style = "width:1280px;height:900px;border:0";
  frame.src = file;
  frame.onload = () => {
    try { keys(frame, file + ": "); check(frame, file + ": "); } catch (e) { lines.push(e.toString()); }
    if (--left === 0) document.getElementById("result").textContent = "checked. " + lines.join("; ");
  };
  document.body.appendChild(frame);
}
)js";

std::string inspect(const std::string& page) {
    TemporaryFolder folder;
    write_atomically(folder / "report.html", page);
    std::string dark = page;
    const std::string query = "@media (prefers-color-scheme:dark)";
    dark.replace(dark.find(query), query.size(), "@media all");
    write_atomically(folder / "dark.html", dark);
    return look_into(folder, std::string("<!doctype html><body><p id=result></p><script>") + kInspection + "</script>");
}

TEST(ReportPageInChromium, CanBeReadInBothColourSchemesAndUsedByKeyboardAlone) {
    SKIP_WITHOUT_BROWSER();
    EXPECT_EQ(inspect(html(sample())), "checked. ");
}

// The rules for paper, laid out at the width of an A4 page in landscape less its margins, 273 x 186 mm.
TEST(ReportPageInChromium, OnPaperThePictureIsOnTheFirstPageAndStagesThatSayNothingTakeALine) {
    SKIP_WITHOUT_BROWSER();
    TemporaryFolder folder;
    std::string page = html(sample());
    const std::string query = "@media print";
    ASSERT_NE(page.find(query), std::string::npos);
    page.replace(page.find(query), query.size(), "@media all");
    write_atomically(folder / "report.html", page);
    const std::string result = look_into(folder, R"(<!doctype html><body><p id=result></p>
<iframe src=report.html style="width:1032px;height:703px;border:0"></iframe><script>
document.querySelector("iframe").onload = () => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument, win = frame.contentWindow, lines = [];
  const stages = () => [...page.querySelectorAll("details.stage")].map(d => d.open ? 1 : 0).join("");
  // Open stages that would print nothing below their line, and closed ones that would.
  const says = d => {
    const was = d.open;
    d.open = true;
    const some = [...d.querySelector(".body").children].some(n => n.getClientRects().length);
    d.open = was;
    return some ? 1 : 0;
  };
  const before = stages();
  win.dispatchEvent(new win.Event("beforeprint"));
  lines.push(stages() === [...page.querySelectorAll("details.stage")].map(says).join("") ? "the right ones are open" : stages());
  lines.push(stages().includes("0") && stages().includes("1") ? "not all" : stages());
  if (page.documentElement.scrollWidth > 1032) lines.push("the page is " + page.documentElement.scrollWidth + " wide");
  const plot = page.querySelector("#plot svg").getBoundingClientRect();
  if (plot.width < 400 || plot.bottom > 703) lines.push("the picture ends at " + plot.bottom);
  const table = page.getElementById("stage-table").getBoundingClientRect();
  if (table.right > 1032) lines.push("the table ends at " + table.right);
  for (const hidden of [".controls", ".skip", ".body details"])
    if ([...page.querySelectorAll(hidden)].some(n => n.getClientRects().length)) lines.push(hidden + " is printed");
  win.dispatchEvent(new win.Event("afterprint"));
  if (stages() !== before) lines.push("printing leaves stages open");
  document.getElementById("result").textContent = lines.join("; ");
};
</script>)");
    EXPECT_EQ(result, "the right ones are open; not all");
}

TEST(ReportPageInChromium, ASmallPictureOfEachMeasureChoosesTheLargeOne) {
    SKIP_WITHOUT_BROWSER();
    TemporaryFolder folder;
    const Json report = sample();
    write_report(report, folder.path(), {"html"});
    const std::string result = look_into(folder, R"(<!doctype html><body><p id=result></p>
<iframe src="report.html#zoom=0" style="width:1280px;height:900px;border:0"></iframe><script>
document.querySelector("iframe").onload = () => {
  const page = document.querySelector("iframe").contentDocument, lines = [];
  const small = () => [...page.querySelectorAll("#multiples button")];
  lines.push(small().length, small().map(b => b.querySelectorAll(".mark").length).join(" "));
  const file = small().find(b => b.textContent === "File size");
  file.click();
  if (page.getElementById("measure").value !== "file_bytes") lines.push("the choice did not follow");
  if (!page.querySelector("#plot svg").textContent.includes("File size")) lines.push("the picture did not follow");
  const pressed = small().filter(b => b.getAttribute("aria-pressed") === "true");
  if (pressed.length !== 1 || pressed[0].textContent !== "File size" || page.activeElement !== pressed[0]) lines.push("the button is not marked");
  document.getElementById("result").textContent = lines.join("; ");
};
</script>)");
    const size_t measures = report["pareto"]["measures"].size();
    std::string marks;
    for (const auto& measure : report["pareto"]["measures"])
        marks += (marks.empty() ? "" : " ") + std::to_string(measure["points"].size());
    EXPECT_EQ(result, std::to_string(measures) + "; " + marks);
}

TEST(ReportPage, ModelsSideBySideAreAllShownAtFirst) {
    Json report = sample();
    EXPECT_THAT(html(report), HasSubstr("id=zoom aria-pressed=false"));
    report["runs"][0]["manifest"]["kind"] = "eval";
    EXPECT_THAT(html(report), HasSubstr("id=zoom aria-pressed=true"));
}

// The page's own policy refuses every request, loudly: a silent console (above) means that none was made.
TEST(ReportPageInChromium, ARequestWouldBeRefusedAndNoticed) {
    SKIP_WITHOUT_BROWSER();
    std::string page = html(sample());
    page.replace(page.find("<footer>"), 8, "<footer><img src=picture.png alt=x>");
    EXPECT_THAT(open_html(page, "").console, HasSubstr("picture.png"));
}

// The inspection must be able to fail: pale marks, a key that does nothing.
TEST(ReportPageInChromium, ItsInspectionNoticesPaleTextAndDeadKeys) {
    SKIP_WITHOUT_BROWSER();
    std::string page = html(sample());
    const auto replace = [&page](const std::string& what, const std::string& with) {
        ASSERT_NE(page.find(what), std::string::npos) << what;
        page.replace(page.find(what), what.size(), with);
    };
    replace(".pv{color:var(--muted)", ".pv{color:var(--faint)");
    replace("if (e.key === \"Enter\") open", "if (e.key === \"Q\") open");
    const std::string found = inspect(page);
    EXPECT_THAT(found, HasSubstr("has contrast 3.0"));
    EXPECT_THAT(found, HasSubstr("Enter opens 0 stages"));
}

// The checks for console messages must be able to fail: a page whose script throws does leave a message.
TEST(ReportPageInChromium, AnErrorInAPageIsNoticed) {
    SKIP_WITHOUT_BROWSER();
    TemporaryFolder folder;
    write_atomically(folder / "bad.html", "<!doctype html><script>undefined_name.x</script>");
    const std::string command =
        "timeout 120 " + browser() +
        " --headless=new --no-sandbox --disable-gpu --user-data-dir=" + (folder / "profile").string() +
        " --enable-logging=stderr --v=0 --dump-dom 'file://" + (folder / "bad.html").string() + "' >/dev/null 2>" +
        (folder / "log.txt").string();
    EXPECT_EQ(std::system(command.c_str()), 0);
    EXPECT_THAT(read_text(folder / "log.txt"), HasSubstr(":CONSOLE"));
}

}  // namespace
}  // namespace coppice::eval
