// The report as one page without any outside reference. Everything a reader needs is in the page's text; the script
// draws the picture anew at the reader's width and sorts the table. Without script a static picture and the same tables
// remain.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include <coppice/report.h>

#include "report/curves.h"
#include "report/label.h"
#include "report/page_script.h"
#include "report/page_style.h"
#include "report/picture.h"

namespace coppice::eval {
namespace {

using namespace report;

constexpr size_t kMaxBytes = 500'000;

// How much of a large report goes into the page: the rest is in report.json, and the page says so.
struct Detail {
    size_t rows;    // per table of layers or figures
    size_t stages;  // in table and picture
};

std::string e(const std::string& text) {
    return escape_html(text);
}

std::string mark(const std::string& provenance) {
    return "<span class=\"pv " + provenance + "\" title=\"" + provenance + ": " + e(provenance_meaning(provenance)) +
           "\" aria-hidden=true>" + provenance_mark(provenance) + "</span><span class=sr> (" + provenance + ")</span>";
}

std::string with_mark(const Figure& figure) {
    return "<span>" + e(quantity(figure)) + "</span>" + mark(figure.provenance);
}

// A name that may break after its dots.
std::string breakable(const std::string& text) {
    std::string out;
    for (const char c : e(text)) {
        out += c;
        if (c == '.') out += "<wbr>";
    }
    return out;
}

std::string anchor_of(const Stage& stage) {
    // Ids of the page are made from positions: folder names may hold anything.
    const size_t run = std::strtoul(stage.id.c_str(), nullptr, 10);
    return "stage-" + std::to_string(run) + "-" + std::to_string(stage.index);
}

double difference(const Stage& stage) {
    return stage.quality.points.value - stage.baseline->quality.points.value;
}

bool comparable(const Stage& stage) {
    return !stage.is_baseline && stage.baseline && stage.baseline->quality.available && stage.quality.available &&
           stage.baseline->quality.metric == stage.quality.metric;
}

// ------------------------------------------------------------------------------------------------------------- data
// for the script

double rounded(double value) {  // six digits are more than a pixel shows
    if (value == 0 || !std::isfinite(value)) return 0;
    const double scale = std::pow(10.0, 5 - std::floor(std::log10(std::abs(value))));
    const double result = std::round(value * scale) / scale;
    return std::isfinite(result) ? result : value;
}

std::string note_of(const Json& measure, const View& view) {
    std::map<std::string, std::string> labels;
    for (const auto& stage : view.stages) labels[stage.id] = stage.label;
    const Json& front = member(measure, "front");
    std::string text = plural(front.size(), "model is", "models are") + " on the front";
    if (const std::string knee = text_member(measure, "knee"); !knee.empty() && labels.count(knee))
        text += "; its knee, the best exchange of one for the other, is " + labels[knee];
    const Json& volume = member(measure, "hypervolume");
    const Json& reference = member(volume, "reference");
    if (const auto value = number_member(volume, "value"))
        text += ". Hypervolume " + number(*value) + " (" + text_member(volume, "unit") + ", against the reference " +
                number(number_member(reference, "x").value_or(0)) + "× the baseline, " +
                number(number_member(reference, "y").value_or(0), 4) + " points)";
    return text + ".";
}

// The picture's data in short: positions instead of names, see describe() and draw() in page_script.h.
Json picture_data(const View& view, const Detail& detail) {
    const Json& pareto = member(*view.report, "pareto");
    const Json& quality = member(pareto, "quality");
    const auto rank = [](const std::string& name) {
        return std::find(provenances().begin(), provenances().end(), name) - provenances().begin();
    };
    Json data = {{"quality",
                  {{"name", text_member(quality, "name", "Quality")},
                   {"unit", text_member(quality, "unit")},
                   {"loss", member(quality, "higher_is_better") == false}}},
                 {"provenances", provenances()},
                 {"marks", Json::array()},
                 {"zoom", 0},
                 {"zoomed", false},
                 {"points", Json::array()},
                 {"measures", Json::array()}};
    for (const auto& name : provenances()) data["marks"].push_back(provenance_mark(name));
    std::map<std::string, size_t> positions;
    for (const auto& stage : view.stages) {
        if (positions.size() == detail.stages) break;
        positions.emplace(stage.id, positions.size());
        const auto bytes = stage.figure("file_bytes").value;
        const Uncertain& y = stage.placed;
        Json point = {{"label", stage.label},
                      {"number", stage.position},
                      {"anchor", anchor_of(stage)},
                      {"baseline", stage.is_baseline},
                      {"kept", stage.kept},
                      {"final", stage.is_final && !stage.is_baseline},
                      {"base", Json()},
                      {"y", {rounded(y.value), rounded(y.low), rounded(y.high)}},
                      {"py", rank(stage.quality.provenance)},
                      {"bytes", bytes ? Json(*bytes) : Json()}};
        if (stage.baseline && positions.count(stage.baseline->id)) point["base"] = positions[stage.baseline->id];
        data["points"].push_back(std::move(point));
    }
    const Json& measures = member(pareto, "measures");
    if (!measures.is_array()) return data;
    double best = -std::numeric_limits<double>::infinity(), worst = -best;
    for (const auto& measure : measures) {
        const std::string key = text_member(measure, "key");
        const Measure* known = view.measure(key);
        const Words words = known ? known->words : Words{"less", "more"};
        Json entry = {{"key", key},
                      {"name", text_member(measure, "name")},
                      {"unit", text_member(measure, "unit")},
                      {"better", words.better},
                      {"worse", words.worse},
                      {"note", note_of(measure, view)},
                      {"knee", Json()},
                      {"front", Json::array()},
                      {"points", Json::array()}};
        const auto position = [&positions](const Json& id) {
            const auto found = positions.find(text_of(id));
            return found == positions.end() ? Json() : Json(found->second);
        };
        entry["knee"] = position(member(measure, "knee"));
        for (const auto& id : member(measure, "front"))
            if (Json at = position(id); !at.is_null()) entry["front"].push_back(at);
        for (const auto& point : member(measure, "points")) {
            const Json at = position(member(point, "stage"));
            const auto x = number_member(point, "x"), y = number_member(point, "y");
            if (at.is_null() || !x || !y) continue;
            const Json& interval = member(point, "x_interval");
            const bool bounded =
                interval.is_array() && interval.size() == 2 && interval[0].is_number() && interval[1].is_number();
            const std::string status = text_member(point, "status");
            Json by = Json::array();
            for (const auto& id : member(point, "dominated_by"))
                if (Json other = position(id); !other.is_null()) by.push_back(other);
            entry["points"].push_back({at,
                                       status == "front"  ? 0
                                       : status == "tied" ? 1
                                                          : 2,
                                       rounded(*x), rounded(bounded ? interval[0].get<double>() : *x),
                                       rounded(bounded ? interval[1].get<double>() : *x),
                                       rank(text_member(point, "x_provenance")), by});
            best = std::max(best, *y);
            worst = std::min(worst, *y);
        }
        if (!entry["points"].empty()) data["measures"].push_back(std::move(entry));
    }
    // Models far below the others press these into a strip. Offered: the range down to three times the final model's
    // loss.
    double drop = 0;
    for (const auto& stage : view.stages)
        if (stage.is_final && comparable(stage)) drop = std::max(drop, std::abs(difference(stage)));
    const double range = std::max(4 * drop, 0.03 * std::abs(best));
    if (std::isfinite(best) && best - worst > 2 * range) data["zoom"] = best - range;
    // What is between the stages of a run is not what a reader asks for first; of models side by side each one is.
    data["zoomed"] = data["zoom"] != 0 &&
                     std::any_of(view.runs.begin(), view.runs.end(), [](const Run& run) { return !run.side_by_side; });
    return data;
}

// Inside <script>: no "<" of the data may end the element.
std::string embedded(const Json& json) {
    std::string out;
    for (const char c : json.dump(-1, ' ', false, Json::error_handler_t::replace)) {
        if (c == '<')
            out += "\\u003c";
        else
            out += c;
    }
    return out;
}

// -------------------------------------------------------------------------------------------------------------------------
// picture

std::string picture(const View& view, const Json& data) {
    // The script has measures across alone; a picture with quality there, where the report was made for one, stands
    // below.
    const Picture chosen = chosen_picture(view);
    const bool usual = chosen.x.measure != nullptr;
    const std::string key =
        usual || data["measures"].empty() ? chosen.x.key : data["measures"][0]["key"].get<std::string>();
    std::string out =
        "<section id=pareto aria-labelledby=pareto-title><div class=bar-top><h2 id=pareto-title>Quality against "
        "cost</h2>";
    if (data["measures"].empty())
        return out + "</div>" +
               (chosen.points.size() > 1 ? "<figure>" + drawn(view, chosen, false) + "</figure>"
                                         : "<p class=note>No stage has both a quality and a measure; there is nothing "
                                           "to compare.</p>") +
               "</section>";
    const std::string up = usual ? chosen.y.key : "quality";
    out += "<div class=\"controls needs-script\" hidden><label>Across <select id=measure>";
    for (const auto& measure : data["measures"])
        out += "<option value=\"" + e(measure["key"]) + "\"" + (measure["key"] == key ? " selected" : "") + ">" +
               e(measure["name"]) + "</option>";
    out += "</select></label><label>Up <select id=up><option value=quality>" + e(data["quality"]["name"]) + "</option>";
    for (const auto& measure : data["measures"])
        out += "<option value=\"" + e(measure["key"]) + "\"" + (measure["key"] == up ? " selected" : "") + ">" +
               e(measure["name"]) + "</option>";
    out += "</select></label>";
    if (data["zoom"] != 0)
        out += std::string("<button type=button class=plain id=zoom aria-pressed=") +
               (data["zoomed"] == true ? "false" : "true") + ">Show all models</button>";
    out +=
        "</div></div><figure><div id=plot>" +
        drawn(view, usual ? chosen : picture_of(view, axis_of(view, key, "report"), axis_of(view, "quality", "report")),
              false) +
        "</div><figcaption><ul class=legend>";
    const auto sample = [](const std::string& shape, const std::string& text) {
        return "<li><svg viewBox=\"0 0 22 16\" aria-hidden=true>" + shape + "</svg>" + text + "</li>";
    };
    out += sample(
        "<path class=mark d=\"M11 0l2.4 5.300 5.600.600-4.200 3.800 1.200 5.600L11 12.400 6 15.300l1.200-5.600L3 "
        "5.900l5.600-.600z\"/>",
        "baseline");
    out += sample("<path class=frontline d=\"M0 8H22\"/><circle class=mark cx=11 cy=8 r=5 />", "on the front");
    out += sample("<g class=tied><circle class=mark cx=11 cy=8 r=5 /></g>", "tied within the uncertainty");
    out += sample("<g class=dominated><circle class=mark cx=11 cy=8 r=5 /></g>", "dominated");
    out += sample("<g class=undone><circle class=mark cx=11 cy=8 r=5 /></g>", "not kept");
    out += "<li>Area: file size</li><li>Bars: 95 % intervals</li></ul><span id=plot-note>";
    for (const auto& measure : data["measures"])
        if (measure["key"] == key) out += e(measure["note"]);
    out += "</span></figcaption></figure>";
    if (data["measures"].size() > 1)
        out +=
            "<div class=needs-script hidden><h3 id=multiples-title>Against each measure</h3><div id=multiples "
            "role=group aria-labelledby=multiples-title></div></div>";
    if (!usual) out += "<figure id=chosen>" + drawn(view, chosen, false) + "</figure>";
    return out + "</section>";
}

// ---------------------------------------------------------------------------------------------------------------------------
// parts

std::string warnings(const View& view) {
    const Json& list = member(*view.report, "warnings");
    if (!list.is_array() || list.empty()) return {};
    std::string out =
        "<section class=warnings aria-labelledby=warnings-title><h2 id=warnings-title>Please note</h2><ul>";
    for (const auto& warning : list) out += "<li>" + e(text_of(warning)) + "</li>";
    return out + "</ul></section>";
}

std::string tiles(const View& view) {
    if (view.runs.size() != 1 || !view.runs[0].baseline || !view.runs[0].final ||
        view.runs[0].final == view.runs[0].baseline)
        return {};
    const Stage &before = *view.runs[0].baseline, &after = *view.runs[0].final;
    std::string out = "<dl class=tiles>";
    const auto tile = [&out](const std::string& name, bool good, const std::string& big, const std::string& small) {
        out += "<div><dt>" + e(name) + "</dt><dd><div class=\"big" + (good ? " good" : "") + "\">" + e(big) +
               "</div><div class=small>" + small + "</div></dd></div>";
    };
    if (comparable(after))
        tile(after.quality.name, false,
             shown_difference(after.quality, difference(after)) + (after.quality.unit == "%" ? " points" : ""),
             e(shown_points(before.quality, before.quality.points.value)) + " → " +
                 e(shown_points(after.quality, after.quality.points.value)) + mark(after.quality.provenance));
    size_t count = 1;
    for (const Measure* measure : {view.measure("file_bytes"), view.large_batch, view.measure("energy_per_inference_j"),
                                   view.measure("macs"), view.measure("parameters")}) {
        if (!measure || count == 4) continue;
        const Figure from = before.on(*measure), to = after.on(*measure), ratio = relative(after, *measure);
        if (!from.value || !to.value || !ratio.value) continue;
        const std::string words = compared(after, *measure);
        tile(measure->name, *ratio.value < 0.995 && words != "within noise", words,
             e(quantity(from)) + " → " + e(quantity(to)) + mark(to.provenance));
        ++count;
    }
    return count > 1 ? out + "</dl>" : "";
}

std::string stage_table(const View& view, const Detail& detail) {
    std::string metric = "Quality";
    bool percent = false;
    for (auto stage = view.stages.rbegin(); stage != view.stages.rend(); ++stage)
        if (stage->quality.available) metric = stage->quality.name, percent = stage->quality.unit == "%";
    std::string out =
        "<section id=stages aria-labelledby=stages-title><h2 id=stages-title>Stages</h2><p class=note>Differences are "
        "to the baseline. Latency is the median of one batch; its difference is the paired ratio, as is that of energy "
        "where it was taken in pairs. Energy classes go by its share of the baseline's: " +
        class_bands_text() +
        "; two where the interval spans them.<span class=wide> The line below "
        "a value is its share of the "
        "baseline.</span><span class=narrow> The table scrolls sideways.</span></p><div "
        "class=scroll tabindex=0 role=region aria-labelledby=stages-title><table "
        "id=stage-table><thead><tr>";
    const auto head = [&out](const std::string& key, const std::string& name, bool numeric, bool descending) {
        out += "<th scope=col data-key=\"" + e(key) + "\"" + (numeric ? " class=n" : "") +
               (descending ? " data-descending" : "") + "><button type=button class=sort>" + e(name) + "</button></th>";
    };
    head("stage", "Stage", false, false);
    head("quality", metric, true, true);
    const bool with_class = std::any_of(view.stages.begin(), view.stages.end(),
                                        [](const Stage& stage) { return energy_class(stage).has_value(); });
    if (with_class) head("energy_class", "Energy class", true, false);
    for (const auto& measure : view.measures) head(measure.key, measure.name, true, false);
    out += "</tr></thead><tbody>";
    size_t row = 0;
    for (const auto& stage : view.stages) {
        if (row == detail.stages) break;
        std::string classes = stage.kept ? "" : "undone";
        if (stage.is_final && !stage.is_baseline) classes = "final";
        out += "<tr data-i=" + std::to_string(row) + (classes.empty() ? "" : " class=" + classes) +
               "><th scope=row data-v=" + std::to_string(row) + "><a href=\"#" + anchor_of(stage) + "\">" +
               (stage.run->side_by_side && !stage.position.empty()  // where the picture has numbers in place of names
                    ? "<span class=narrow>" + stage.position + " </span>"
                    : "") +
               breakable(stage.label) + "</a>";
        if (!stage.kept)
            out += "<span class=sub>not kept</span>";
        else if (stage.is_final && !stage.is_baseline)
            out += "<span class=sub>final model</span>";
        out += "</th>";
        const Quality& quality = stage.quality;
        if (quality.available) {
            out += "<td class=n data-v=" + exact(quality.points.value) + "><span>" +
                   e(shown_points(quality, quality.points.value)) + "</span>" + mark(quality.provenance);
            if (comparable(stage))
                out += "<span class=sub>" + e(shown_difference(quality, difference(stage))) +
                       (percent ? " points" : "") + "</span>";
        } else {
            out += "<td class=n data-v=\"\"><span title=\"" + e(quality.reason) + "\">–</span>" + mark("unavailable");
        }
        out += "</td>";
        if (const auto energy = energy_class(stage); energy)
            out += "<td class=n data-v=" + exact(*energy->ratio.value) + " title=\"" +
                   fixed(100 * *energy->ratio.value, 1) + " % of the baseline's energy; bands version " +
                   std::to_string(kClassVersion) + "\"><b>" + class_text(*energy) + "</b>" +
                   mark(energy->ratio.provenance) + "</td>";
        else if (with_class)
            out += "<td class=n data-v=\"\">–" + mark("unavailable") + "</td>";
        for (const auto& measure : view.measures) {
            const Figure figure = stage.on(measure), ratio = relative(stage, measure);
            out +=
                "<td class=n data-v=\"" + (figure.value ? exact(*figure.value) : "") + "\"" +
                (figure.value ? "" : " title=\"" + e(figure.reason.empty() ? "not measured" : figure.reason) + "\"") +
                ">" + with_mark(figure);
            if (const std::string words = compared(stage, measure); !words.empty())
                out += "<span class=sub>" + e(words) + "</span>";
            if (figure.value && ratio.value)
                out += "<span class=share><i style=\"width:" + fixed(100 * std::clamp(*ratio.value, 0.0, 1.0), 1) +
                       "%\"></i></span>";
            out += "</td>";
        }
        out += "</tr>";
        ++row;
    }
    out += "</tbody></table></div>";
    if (row < view.stages.size())
        out += "<p class=note>" + std::to_string(view.stages.size() - row) + " more stages are in report.json.</p>";
    return out + "<p class=sr id=live role=status></p></section>";
}

// A setting in words: {"taylor": {"batches": 8}} reads "taylor (batches 8)".
std::string spoken(const Json& value, int depth = 0) {
    if (value.is_null()) return "not known";
    if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
    if (value.is_number_float()) return exact(rounded(value.get<double>()));
    if (!value.is_structured() || depth == 4) return text_of(value);
    std::string text;
    for (const auto& [name, item] : value.items()) {
        text += text.empty() ? "" : ", ";
        if (value.is_array())
            text += spoken(item, depth + 1);
        else if (item.is_object())
            text += name + " (" + spoken(item, depth + 1) + ")";
        else
            text += name + " " + spoken(item, depth + 1);
    }
    return text;
}

// A list of names and values; `unset` stands where there is no value, `except` is left out.
std::string pairs(const Json& object, const std::string& unset = "not known",
                  const std::set<std::string>& except = {}) {
    if (!object.is_object() || object.empty()) return {};
    std::string out;
    for (const auto& [name, value] : object.items()) {
        if (except.count(name)) continue;
        const std::string text = spoken(value);
        std::string title = name;
        std::replace(title.begin(), title.end(), '_', ' ');
        out += "<dt>" + e(title) + "</dt><dd>" +
               e(value.is_null() ? unset
                 : text.empty()  ? "none"
                                 : shortened(text, 400)) +
               "</dd>";
    }
    return out.empty() ? out : "<dl class=pairs>" + out + "</dl>";
}

// A table of `rows`, at most as many as the detail allows.
std::string layer_table(const std::string& title, const std::vector<std::string>& heads, size_t numeric_from,
                        const std::vector<std::vector<std::string>>& rows, const Detail& detail,
                        const std::string& noun) {
    std::string out = "<details><summary>" + e(title) +
                      "</summary><div class=\"scroll tall\" tabindex=0 role=region aria-label=\"" + e(title) +
                      "\"><table><thead><tr>";
    for (size_t c = 0; c < heads.size(); ++c)
        out += std::string("<th scope=col") + (c >= numeric_from ? " class=n" : "") + ">" + heads[c] + "</th>";
    out += "</tr></thead><tbody>";
    const size_t shown = std::min(rows.size(), detail.rows);
    for (size_t r = 0; r < shown; ++r) {
        out += "<tr>";
        for (size_t c = 0; c < rows[r].size(); ++c)
            out += (c == 0 ? "<th scope=row>" : c >= numeric_from ? "<td class=n>" : "<td>") + rows[r][c];
        out += "</tr>";
    }
    out += "</tbody></table></div>";
    if (shown < rows.size())
        out += "<p class=note>" + std::to_string(rows.size() - shown) + " more " + noun + " are in report.json.</p>";
    return out + "</details>";
}

std::string changes(const Json& list, const Detail& detail) {
    if (!list.is_array() || list.empty()) return {};
    std::vector<std::pair<std::string, size_t>> counts;
    std::vector<std::vector<std::string>> rows;
    for (const auto& change : list) {
        const std::string action = text_member(change, "action", "changed");
        auto found = std::find_if(counts.begin(), counts.end(), [&action](const auto& c) { return c.first == action; });
        if (found == counts.end()) found = counts.insert(counts.end(), {action, 0});
        ++found->second;
        if (rows.size() < detail.rows + 1)
            rows.push_back({e(text_member(change, "layer")), e(action), e(text_member(change, "before")),
                            e(text_member(change, "after")), e(text_member(change, "reason"))});
    }
    std::string title = plural(list.size(), "layer", "layers") + ": ";
    for (size_t i = 0; i < counts.size(); ++i)
        title += (i ? ", " : "") + std::to_string(counts[i].second) + " " + counts[i].first;
    rows.resize(list.size());  // counted, not shown
    return layer_table(title, {"Layer", "What was done", "Before", "After", "Why"}, 5, rows, detail, "layers");
}

std::string layers(const Json& list, const Detail& detail) {
    if (!list.is_array() || list.empty()) return {};
    std::vector<std::vector<std::string>> rows;
    const auto count = [](const Json& layer, const char* key, const char* unit) {
        const auto value = number_member(layer, key);
        return value ? e(quantity(*value, unit)) : std::string("–");
    };
    const auto shape = [](const Json& layer, const char* key) {
        std::string text;
        const Json& sizes = member(layer, key);
        if (!sizes.is_array()) return e(text_of(sizes));
        for (const auto& size : sizes) text += (text.empty() ? "" : " × ") + text_of(size);
        return e(text);
    };
    for (const auto& layer : list) {
        if (rows.size() > detail.rows) break;
        rows.push_back({e(text_member(layer, "name")), e(text_member(layer, "op")),
                        "<span class=nw>" + shape(layer, "output_shape") + "</span>", count(layer, "parameters", "1"),
                        count(layer, "macs", "1"), count(layer, "activation_bytes", "B")});
    }
    rows.resize(list.size());
    return layer_table("The " + plural(list.size(), "layer", "layers") + " of the result",
                       {"Layer", "Operator", "Output", "Parameters", "MACs", "Activation"}, 3, rows, detail, "layers");
}

// What a quantizer says of each layer: the fact `layers`, [{layer, precision, ...}].
std::string quantized_layers(const Json& rows, const Detail& detail) {
    std::vector<std::vector<std::string>> cells;
    for (const auto& row : rows) {
        const auto figure = [&row](const char* name, const auto& show) {
            const auto value = number_member(row, name);
            return value ? "<span class=nw>" + e(show(*value)) + "</span>" : std::string();
        };
        const auto time = [](double value) { return quantity(value, "s"); };
        const auto before = number_member(row, "seconds_before"), after = number_member(row, "seconds_after");
        const Json& range = member(row, "input_range");
        std::string reason = text_member(row, "reason");
        if (reason.empty()) reason = text_member(row, "refused");
        cells.push_back({e(text_member(row, "layer")), e(text_member(row, "precision")), e(reason),
                         figure("sqnr_db", [](double value) { return fixed(value, 1) + " dB"; }),
                         range.is_array() && range.size() == 2 && range[0].is_number() && range[1].is_number()
                             ? "<span class=nw>" +
                                   e(number(range[0].get<double>()) + " to " + number(range[1].get<double>())) +
                                   "</span>"
                             : "",
                         figure("clipped_ratio", [](double value) { return number(100 * value, 2) + " %"; }),
                         figure("seconds_before", time), figure("seconds_after", time),
                         before && after && *after > 0 ? compared(*after, *before, {"faster", "slower"}) : ""});
    }
    const std::string note =
        std::any_of(rows.begin(), rows.end(), [](const Json& row) { return row.contains("seconds_before"); })
            ? "<p class=note>Time: operator by operator on the example, of the layer and of what runs after it until "
              "the next one, conversions included.</p>"
            : "";
    return layer_table(plural(cells.size(), "layer", "layers") + " by precision, noise and time",
                       {"Layer", "Precision", "Why not lower", "Signal to noise", "Input range", "Clipped",
                        "Time before", "after", ""},
                       3, cells, detail, "layers") +
           note;
}

bool has_quantized_layers(const Json& facts) {
    const Json& rows = member(facts, "layers");
    return rows.is_array() && !rows.empty() && std::all_of(rows.begin(), rows.end(), [](const Json& row) {
               return !text_member(row, "precision").empty();
           });
}

std::string figures(const Stage& stage, const Detail& detail) {
    std::vector<std::vector<std::string>> rows;
    const auto add = [&rows](const std::string& name, const Figure& figure) {
        std::string interval = figure.interval ? quantity(figure.interval->first, figure.unit) + " to " +
                                                     quantity(figure.interval->second, figure.unit)
                                               : "";
        if (figure.systematic_ratio)
            interval += (interval.empty() ? "" : "; ") + ("method " + number(figure.systematic_ratio->first, 2)) +
                        " to " + number(figure.systematic_ratio->second, 2) + "×";
        std::string spoken = name;
        std::replace(spoken.begin(), spoken.end(), '_', ' ');
        rows.push_back({e(spoken), "<span class=nw>" + e(quantity(figure)) + "</span>", e(interval),
                        "<span class=nw>" + provenance_mark(figure.provenance) + " " + figure.provenance + "</span>",
                        e(figure.value ? figure.method : figure.reason)});
    };
    for (const char* group : {"metrics", "figures"}) {
        const Json& object = member(*stage.measurement, group);
        if (object.is_object())
            for (const auto& [name, value] : object.items()) add(name, figure_of(value));
    }
    for (const auto& latency : stage.latencies) {
        const std::string suffix = ", batch " + std::to_string(latency.batch) + ", " +
                                   plural(static_cast<size_t>(latency.threads), "thread", "threads");
        add("latency p50" + suffix, latency.p50);
        add("latency p90" + suffix, latency.p90);
        add("latency p99" + suffix, latency.p99);
        add("throughput" + suffix, latency.throughput);
        if (latency.disturbed.value) add("disturbed windows" + suffix, latency.disturbed);
        if (!stage.is_baseline)
            add("time / baseline's time" + suffix, [&latency] {
                Figure f = latency.ratio;
                f.unit = "";
                return f;
            }());
    }
    const Json& cost = member(*stage.measurement, "compression");
    if (cost.is_object())
        for (const auto& [name, value] : cost.items()) add("making this stage: " + name, figure_of(value));
    return layer_table("All " + std::to_string(rows.size()) + " figures with interval, provenance and method",
                       {"Figure", "Value", "95 % interval", "Provenance", "Method, or why it is missing"}, 5, rows,
                       detail, "figures");
}

std::string stage_details(const View& view, const Detail& detail) {
    std::string out =
        "<section aria-labelledby=details-title><h2 id=details-title>What each stage did</h2>"
        "<p class=note>Options, verdict, changes per layer and every figure.</p>";
    size_t shown = 0;
    for (const auto& stage : view.stages) {
        if (shown++ == detail.stages) break;
        out += "<details class=stage id=" + anchor_of(stage) + "><summary><span class=title>" + breakable(stage.label) +
               "</span><span class=said>" +
               e(stage.verdict.empty() && stage.is_baseline ? "The model as it was given." : stage.verdict) +
               "</span><span class=\"tag" + (stage.is_final ? " final" : "") + "\">" +
               (!stage.kept               ? "not kept"
                : stage.is_final          ? "final"
                : stage.is_baseline       ? "baseline"
                : stage.run->side_by_side ? "model"
                                          : "kept") +
               "</span></summary><div class=body>";
        if (stage.simulated) out += "<p class=note>Note: the model is " + e(kSimulatedMeans) + ".</p>";
        for (const auto& warning : stage.warnings()) out += "<p class=note>Note: " + e(warning) + "</p>";
        const Json& told = member(*stage.stage, "facts");
        const std::string curves = sensitivity_curves(told, stage.quality, std::min<size_t>(detail.rows, 60));
        const bool by_layer = has_quantized_layers(told);
        std::set<std::string> drawn;  // not once more as raw values
        if (!curves.empty()) drawn.insert("sensitivity");
        if (by_layer) drawn.insert("layers");
        const std::string options = pairs(member(*stage.stage, "options"), "none"),
                          facts = pairs(told, "not known", drawn);
        if (!options.empty() || !facts.empty()) {
            out += "<div class=columns>";
            if (!options.empty()) out += "<div><h3>Options</h3>" + options + "</div>";
            if (!facts.empty()) out += "<div><h3>Facts</h3>" + facts + "</div>";
            out += "</div>";
        }
        out += curves;
        if (detail.rows > 0)
            out += (by_layer ? quantized_layers(member(told, "layers"), detail) : "") +
                   changes(member(*stage.stage, "changes"), detail) + layers(member(*stage.stage, "layers"), detail) +
                   figures(stage, detail);
        out += "</div></details>";
    }
    return out + "</section>";
}

std::string cost_and_method(const View& view) {
    std::string out =
        "<section aria-labelledby=method-title><h2 id=method-title>How these numbers came about</h2><div "
        "class=columns><div>";
    for (const auto& run : view.runs) {
        if (run.stages.size() < 2) continue;
        out += "<h3>What compressing cost" + (run.name.empty() ? "" : ": " + e(run.name)) + "</h3><dl class=pairs>";
        const auto row = [&out](const std::string& name, const Figure& figure, const std::string& noun = {}) {
            out += "<dt>" + name + "</dt><dd>";
            if (figure.value) {
                out += e(quantity(figure)) + noun + mark(figure.provenance);
                if (figure.interval)
                    out += " <span class=note>" + e(quantity(figure.interval->first, figure.unit)) + " to " +
                           e(quantity(figure.interval->second, figure.unit)) + "</span>";
            } else {
                out += "not known: " + e(figure.reason);
            }
            out += "</dd>";
        };
        row("Time", total_compression(run, "seconds"));
        row("Energy", total_compression(run, "energy_j"));
        row("Carbon", total_compression(run, "carbon_g"), " CO₂e");
        row("Energy earned back after", payback(run), " inferences");
        row("Carbon earned back after", payback(run, "g"), " inferences");
        out += "</dl>";
    }
    out += "<h3>Where a number comes from</h3><ul class=marks>";
    for (const auto& name : provenances())
        out += "<li><span aria-hidden=true>" + provenance_mark(name) + "</span><b>" + name + "</b><span>" +
               e(provenance_meaning(name)) + "</span></li>";
    out +=
        "</ul><h3>Method</h3><p class=note>Intervals are 95 %. Baseline and candidate run in interleaved, randomised "
        "blocks; a ratio of "
        "latencies comes from these pairs, so that drift cancels. One model dominates another only if it is as good on "
        "both axes and "
        "better on one beyond the intervals; otherwise they are tied. Where all models of a run were paired with its "
        "baseline example by example, the intervals of quality in the picture are those of the differences to it. A "
        "figure made from several carries the weakest "
        "provenance "
        "of them.";
    std::vector<const Json*> measurements;
    for (const auto& stage : view.stages) measurements.push_back(stage.measurement);
    if (const auto reached = reached_sentence(measurements); !reached.empty()) out += " " + e(reached);
    for (const auto& stage : view.stages)
        if (const auto systematic = stage.figure("energy_per_inference_j").systematic_ratio) {
            out += " The energy figures may be off by the method itself, " + number(systematic->first, 2) + " to " +
                   number(systematic->second, 2) +
                   " times, in the same direction for all stages; their ratios are surer than their values.";
            break;
        }
    out += "</p></div><div>";
    for (const auto& run : view.runs) {
        if (run.stages.empty()) continue;
        const std::string suffix = run.name.empty() ? "" : ": " + e(run.name);
        const Quality& quality = run.stages.front()->quality;
        if (quality.available) {
            out += "<h3>Quality" + suffix + "</h3><dl class=pairs><dt>metric</dt><dd>" + e(quality.name) + "</dd>";
            if (!quality.data.empty()) out += "<dt>data</dt><dd>" + e(quality.data) + "</dd>";
            if (!quality.split.empty()) out += "<dt>split</dt><dd>" + e(quality.split) + "</dd>";
            if (quality.examples) out += "<dt>examples</dt><dd>" + fixed(*quality.examples, 0) + "</dd>";
            out += "</dl>";
        }
        out += "<h3>Machine" + suffix + "</h3>" + pairs(member(*run.stages.back()->measurement, "environment"));
        if (const std::string carbon = pairs(member(*run.stages.back()->measurement, "carbon")); !carbon.empty())
            out += "<h3>Carbon" + suffix + "</h3>" + carbon;
    }
    out += "</div></div>";
    for (const auto& run : view.runs) {
        const std::string suffix = run.name.empty() ? "" : ": " + e(run.name);
        if (const std::string recipe = text_member(*run.json, "recipe"); !recipe.empty())
            out += "<details><summary>Recipe as resolved" + suffix + "</summary><pre tabindex=0>" +
                   e(shortened(recipe, 20'000)) + "</pre></details>";
        if (run.manifest->is_object() && !run.manifest->empty()) {
            Json manifest = *run.manifest;
            manifest.erase("environment");
            out += "<details><summary>Manifest" + suffix + "</summary>" + pairs(manifest) + "</details>";
        }
    }
    return out + "</section>";
}

std::string page(const View& view, const Detail& detail) {
    const Json data = picture_data(view, detail);
    std::string out =
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport content=\"width=device-width, "
        "initial-scale=1\">"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'; script-src "
        "'unsafe-inline'\">"
        "<meta name=generator content=\"" +
        e(text_member(*view.report, "generated_by", "coppice")) + "\"><title>" + e(view.title) +
        " – Coppice report</title><style>";
    out += kPageStyle;
    out +=
        "</style></head>\n<body><a class=skip href=\"#stages\">Skip to the table of stages</a><header><p "
        "class=eyebrow>Coppice compression report</p><h1>" +
        e(view.title) + "</h1><p class=lead>" + e(text_member(*view.report, "summary")) + "</p></header>\n<main>";
    out += tiles(view) + warnings(view) + "\n" + picture(view, data) + "\n" + stage_table(view, detail) + "\n";
    out += stage_details(view, detail) + "\n" + cost_and_method(view);
    out += "</main>\n<footer>Made by " + e(text_member(*view.report, "generated_by", "coppice")) +
           ". Self-contained: nothing is loaded from the network. The same figures: report.json, report.csv, "
           "report.md.</footer>";
    out += "<script type=application/json id=data>" + embedded(data) + "</script><script>";
    out += kPageScript;
    return out + "</script></body></html>\n";
}

}  // namespace

std::string html(const Json& json) {
    const View view = make_view(json);
    constexpr size_t kAll = std::numeric_limits<size_t>::max() / 2;
    std::string out;
    for (const Detail& detail : {Detail{kAll, kAll}, Detail{300, kAll}, Detail{100, kAll}, Detail{50, kAll},
                                 Detail{25, kAll}, Detail{0, kAll}, Detail{0, 150}, Detail{0, 60}, Detail{0, 20}}) {
        out = page(view, detail);
        if (out.size() <= kMaxBytes) break;
    }
    return out;
}

}  // namespace coppice::eval
