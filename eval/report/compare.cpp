// Is B better than A, in what, how sure? One verdict per measure, from the best pairing that the two runs allow.
//
// direct     one of the two is the baseline that the other was measured against in interleaved pairs: that ratio
// baseline   both were measured in pairs against the same baseline: log(B/base) - log(A/base), drift cancels twice
// unpaired   measured at different times: the ratio of the two figures
// Half widths of independent parts add in quadrature, on a log scale for ratios. For shares of hits the two differences
// to a common baseline are no independent parts, but they never have opposite signs on one example (an example that the
// baseline misses can only be gained), so their covariance is at least -mean x mean, which is negligible, and the
// quadrature errs to the safe side.
#include <algorithm>
#include <cmath>
#include <memory>
#include <sstream>

#include <coppice/error.h>
#include <coppice/report.h>

#include "report/view.h"

namespace coppice::eval {
namespace {

namespace fs = std::filesystem;
using namespace report;

// Counts and bytes are certain; a difference below the relative interval that measuring aims at is none to speak of.
constexpr double kNegligible = 0.02;

// A model that was measured, with the report that its view points into.
struct Side {
    Json report;
    View view;
    const Stage* stage = nullptr;
    std::string shown;  // "runs/a, 2 train.finetune"
};

std::unique_ptr<Side> side_of(const fs::path& given) {
    std::error_code ignored;
    const fs::path path = fs::weakly_canonical(given, ignored);
    if (!fs::is_directory(path, ignored))
        throw IoError(given.string(), "there is no such folder",
                      "Give a run directory, or the folder of a stage in one: runs/name/02-train.finetune.");
    const bool is_stage =
        !fs::exists(path / "manifest.json", ignored) && fs::exists(path.parent_path() / "manifest.json", ignored);
    auto side = std::make_unique<Side>();
    side->report = collect_report({is_stage ? path.parent_path() : path});
    side->view = make_view(side->report);
    const Run& run = side->view.runs.front();
    std::string known;
    for (const Stage* stage : run.stages) {
        if (is_stage && stage->folder == path.filename().string()) side->stage = stage;
        known += (known.empty() ? "" : ", ") + stage->folder;
    }
    if (is_stage && !side->stage)
        throw IoError(given.string(), "the stage is not finished, or is damaged",
                      "Intact in this run: " + shortened(known, 200) + ".");
    if (!is_stage) {
        if (run.side_by_side)
            throw InvalidArgument(given.string(), "the folder holds several models, and none of them is the result",
                                  "Name one of its folders: " + shortened(known, 200) + ".");
        side->stage = run.final ? run.final : run.stages.back();
    }
    side->shown = given.string() + (is_stage ? "" : ", " + side->stage->label);
    return side;
}

std::string model_sha(const Stage& stage) {
    return text_member(member(*stage.run->manifest, "model"), "sha256");
}

bool same_model(const Stage& a, const Stage& b) {
    if (a.run->folder == b.run->folder && a.measurement == b.measurement) return true;
    return !model_sha(a).empty() && model_sha(a) == model_sha(b);
}

// The two were measured against one and the same model.
bool common_baseline(const Stage& a, const Stage& b) {
    return a.baseline && b.baseline && same_model(*a.baseline, *b.baseline);
}

std::vector<std::string> fingerprint_differences(const Stage& a, const Stage& b) {
    return environment_differences(member(*a.measurement, "environment"), member(*b.measurement, "environment"));
}

std::string joined(const std::vector<std::string>& texts) {
    std::string out;
    for (size_t i = 0; i < texts.size(); ++i) out += (i == 0 ? "" : i + 1 == texts.size() ? " and " : ", ") + texts[i];
    return out;
}

// B relative to A. An interval is there when it is known how sure the value is; `exact` needs none.
struct Effect {
    std::optional<double> value;
    std::optional<std::pair<double, double>> interval;
    std::string pairing;  // "exact", "direct", "baseline", "unpaired"; empty: not comparable
    std::string reason;   // why not comparable, or why nothing is shown
    std::string provenance = "unavailable";
    std::optional<double> p_value;
};

Effect not_comparable(const std::string& reason) {
    Effect effect;
    effect.reason = reason;
    return effect;
}

// x and y with their intervals: y / x, half widths of the logarithms in quadrature.
std::optional<std::pair<double, double>> ratio_interval(const Figure& x, const Figure& y) {
    if (!x.interval || !y.interval || !(x.interval->first > 0 && y.interval->first > 0)) return std::nullopt;
    const double center = std::log(*y.value / *x.value);
    const double below = std::hypot(std::log(*y.value / y.interval->first), std::log(x.interval->second / *x.value)),
                 above = std::hypot(std::log(y.interval->second / *y.value), std::log(*x.value / x.interval->first));
    return std::pair(std::exp(center - below), std::exp(center + above));
}

bool is_exact(const Measure& measure) {  // counted or read from a file: repeating it gives the same number
    static const std::vector<std::string> keys = {"file_bytes", "parameters", "nonzero_parameters", "weight_bytes",
                                                  "macs"};
    return std::find(keys.begin(), keys.end(), measure.key) != keys.end();
}

Effect effect_on(const Measure& measure, const Stage& a, const Stage& b, const std::vector<std::string>& differences) {
    const Figure x = a.on(measure), y = b.on(measure);
    const auto reason = [](const Figure& figure) { return figure.reason.empty() ? "not measured" : figure.reason; };
    if (!x.value || !y.value)
        return not_comparable(!x.value && !y.value ? reason(x) : !x.value ? "A: " + reason(x) : "B: " + reason(y));
    Effect effect;
    effect.provenance = weakest(weakest(x.provenance, y.provenance), "derived");
    if (!(*x.value > 0 && *y.value > 0)) return not_comparable("a value is not positive");
    if (is_exact(measure)) {
        effect.value = *y.value / *x.value;
        effect.interval = std::pair(*effect.value, *effect.value);
        effect.pairing = "exact";
        if (*effect.value != 1 && std::abs(std::log(*effect.value)) < std::log1p(kNegligible))
            effect.reason = "differs by less than 2 %, which counts as none";
        return effect;
    }
    if (!differences.empty()) return not_comparable("measured in different environments (" + joined(differences) + ")");
    if (measure.key == "carbon_per_inference_g") {
        const Json &one = member(*a.measurement, "carbon"), &other = member(*b.measurement, "carbon");
        for (const char* key : {"grid", "grid_g_per_kwh", "pue"})
            if (member(one, key) != member(other, key))
                return not_comparable(
                    "another grid or PUE: the difference would be that of the power, not of the models");
    }
    const bool energy =
        measure.key == "energy_per_inference_j" || measure.key == "carbon_per_inference_g" || measure.key == "power_w";
    if (energy && (x.provenance != y.provenance || x.method != y.method))
        return not_comparable("obtained differently: " + x.method + " (" + x.provenance + "); " + y.method + " (" +
                              y.provenance + ")");

    const Figure to_a = paired_ratio(a, measure), to_b = paired_ratio(b, measure);
    if (common_baseline(a, b) && (a.is_baseline ? to_b.value : b.is_baseline ? to_a.value : std::nullopt)) {
        const Figure& ratio = a.is_baseline ? to_b : to_a;
        effect.pairing = "direct";
        effect.value = a.is_baseline ? *ratio.value : 1 / *ratio.value;
        if (ratio.interval && ratio.interval->first > 0)
            effect.interval =
                a.is_baseline ? *ratio.interval : std::pair(1 / ratio.interval->second, 1 / ratio.interval->first);
    } else if (common_baseline(a, b) && to_a.value && to_b.value && *to_a.value > 0) {
        effect.pairing = "baseline";
        effect.value = *to_b.value / *to_a.value;
        effect.interval = ratio_interval(to_a, to_b);
    } else {
        effect.pairing = "unpaired";
        effect.value = *y.value / *x.value;
        effect.interval = ratio_interval(x, y);
    }
    if (!effect.interval) effect.reason = "recorded without an interval: how sure it is is not known";
    return effect;
}

// B - A in points: higher is better.
Effect effect_on_quality(const Stage& a, const Stage& b) {
    const Quality &x = a.quality, &y = b.quality;
    if (!x.available || !y.available)
        return not_comparable(
            std::string(x.available ? "B" : "A") + " has no quality" +
            (x.available ? (y.reason.empty() ? "" : ": " + y.reason) : (x.reason.empty() ? "" : ": " + x.reason)));
    if (x.metric != y.metric) return not_comparable("different metrics: " + x.metric + " and " + y.metric);
    if (x.data != y.data || x.split != y.split || x.examples != y.examples)
        return not_comparable("different test data: " + x.data + " and " + y.data);
    const auto sha = [](const Stage& stage) {
        return text_member(member(member(*stage.run->manifest, "data"), stage.quality.split), "sha256");
    };
    if (!sha(a).empty() && !sha(b).empty() && sha(a) != sha(b))
        return not_comparable("different test data: the files have other contents");

    Effect effect;
    effect.provenance = weakest(weakest(x.provenance, y.provenance), "derived");
    effect.value = y.points.value - x.points.value;
    const auto to_a = paired_difference(a), to_b = paired_difference(b);
    const bool common = common_baseline(a, b);
    if (common && a.is_baseline && to_b) {
        effect.pairing = "direct";
        effect.value = to_b->difference;
        effect.interval = std::pair(to_b->difference - to_b->below, to_b->difference + to_b->above);
        effect.p_value = to_b->p_value;
    } else if (common && b.is_baseline && to_a) {
        effect.pairing = "direct";
        effect.value = -to_a->difference;
        effect.interval = std::pair(-to_a->difference - to_a->above, -to_a->difference + to_a->below);
        effect.p_value = to_a->p_value;
    } else if (common && to_a && to_b) {
        effect.pairing = "baseline";
        effect.value = to_b->difference - to_a->difference;
        effect.interval = std::pair(*effect.value - std::hypot(to_b->below, to_a->above),
                                    *effect.value + std::hypot(to_b->above, to_a->below));
    } else {
        effect.pairing = "unpaired";
        const bool known = x.points.low < x.points.high && y.points.low < y.points.high;
        if (known)
            effect.interval =
                std::pair(*effect.value - std::hypot(y.points.value - y.points.low, x.points.high - x.points.value),
                          *effect.value + std::hypot(y.points.high - y.points.value, x.points.value - x.points.low));
        else
            effect.reason = "recorded without an interval: how sure it is is not known";
    }
    return effect;
}

// @param neutral  the effect of no difference: 1 for ratios, 0 for differences
const char* verdict_of(const Effect& effect, double neutral, bool higher_is_better) {
    if (effect.pairing.empty()) return "not comparable";
    if (!effect.interval) return "no difference shown";
    if (effect.interval->first <= neutral && neutral <= effect.interval->second) return "no difference shown";
    if (effect.pairing == "exact" && !effect.reason.empty()) return "no difference shown";
    return (effect.interval->first > neutral) == higher_is_better ? "better" : "worse";
}

Json effect_json(const Effect& effect, const char* kind) {
    Json json = {{"kind", kind},
                 {"value", effect.value ? Json(*effect.value) : Json()},
                 {"interval", Json()},
                 {"provenance", effect.provenance}};
    if (effect.interval) json["interval"] = {effect.interval->first, effect.interval->second};
    if (effect.p_value) json["p_value"] = *effect.p_value;
    return json;
}

Figure quality_figure(const Quality& quality) {
    Figure figure;
    figure.unit = quality.unit.empty() ? "1" : quality.unit;
    figure.reason = quality.reason;
    if (!quality.available) return figure;
    const double sign = quality.loss ? -1 : 1;
    figure.value = sign * quality.points.value;
    figure.provenance = quality.provenance;
    figure.method = quality.method;
    if (quality.points.low < quality.points.high)
        figure.interval = std::minmax(sign * quality.points.low, sign * quality.points.high);
    return figure;
}

Words words_of(const Json& measure) {
    return {text_member(member(measure, "words"), "better", "less"),
            text_member(member(measure, "words"), "worse", "more")};
}

// "4.2x faster (4.1 to 4.3)", "−0.43 points (−0.80 to −0.06)".
std::string effect_text(const Json& measure) {
    const Json& effect = member(measure, "effect");
    const auto value = number_member(effect, "value");
    if (!value) return "–";
    const Json& ends = member(effect, "interval");
    const bool bounded = ends.is_array() && ends.size() == 2 && ends[0].is_number() && ends[1].is_number() &&
                         ends[0].get<double>() < ends[1].get<double>();
    std::string text;
    if (text_member(effect, "kind") == "difference") {
        Quality quality;
        quality.unit = text_member(member(measure, "a"), "unit") == "%" ? "%" : "";
        quality.loss = member(measure, "higher_is_better") == false;
        text = shown_difference(quality, *value) + (quality.unit == "%" ? " points" : "");
        if (bounded) {
            std::string one = shown_difference(quality, ends[0]), other = shown_difference(quality, ends[1]);
            if (quality.loss) std::swap(one, other);
            text += " (" + one + " to " + other + ")";
        }
        return text;
    }
    text = compared(*value, 1, words_of(measure));
    if (!bounded) return text;
    double low = ends[0], high = ends[1];
    if (text == "the same") return text + " (" + fixed(low, 3) + " to " + fixed(high, 3) + "×)";
    if (*value < 1) std::tie(low, high) = std::pair(1 / high, 1 / low);
    return text + " (" + fixed(low, low >= 9.95 ? 1 : 2) + " to " + fixed(high, high >= 9.95 ? 1 : 2) + ")";
}

std::string sentence_of(const Json& comparison) {
    std::vector<std::string> better, worse, open, apart;
    for (const auto& measure : comparison.at("measures")) {
        const std::string verdict = measure.at("verdict"), name = measure.at("name");
        const std::string told = name + " " + effect_text(measure);
        if (verdict == "better") better.push_back(told);
        if (verdict == "worse") worse.push_back(told);
        if (verdict == "no difference shown") open.push_back(name);
        if (verdict == "not comparable") apart.push_back(name);
    }
    const std::string overall = comparison.at("verdict");
    std::string text = overall == "better"           ? "B is better than A: "
                       : overall == "worse"          ? "B is worse than A: "
                       : overall == "trade-off"      ? "B is neither better nor worse than A as a whole. Better: "
                       : overall == "not comparable" ? "A and B cannot be compared."
                                                     : "No difference between A and B was shown.";
    const auto list = [](const std::vector<std::string>& names) {
        std::string out;
        for (const auto& name : names) out += (out.empty() ? "" : "; ") + name;
        return out;
    };
    if (overall == "better") text += list(better) + ".";
    if (overall == "worse") text += list(worse) + ".";
    if (overall == "trade-off") text += list(better) + ". Worse: " + list(worse) + ".";
    if (!open.empty() && overall != "no difference shown") text += " No difference shown: " + joined(open) + ".";
    if (!apart.empty() && overall != "not comparable") text += " Not comparable: " + joined(apart) + ".";
    return text;
}

// Lines of at most `width` columns, cut at spaces.
std::string folded(const std::string& text, size_t width) {
    std::string out, word;
    size_t used = 0;
    std::istringstream words(text);
    while (words >> word) {
        const bool fits = used == 0 || used + 1 + columns(word) <= width;
        out += used == 0 ? word : (fits ? " " : "\n") + word;
        used = fits && used ? used + 1 + columns(word) : columns(word);
    }
    return out;
}

void check_comparison(const Json& json) {
    if (text_member(json, "format") != "coppice-comparison" || number_member(json, "version") != 1.0 ||
        !member(json, "measures").is_array())
        throw InvalidArgument("report --compare", "this JSON is no coppice-comparison of version 1",
                              "Make it with compare_runs().");
}

}  // namespace

std::vector<std::string> environment_differences(const Json& one, const Json& other) {
    std::vector<std::string> names;
    if (!one.is_object() || !other.is_object()) return names;
    for (const auto& [name, value] : one.items())
        if (name != "memory_bytes" && other.contains(name) && other.at(name) != value) names.push_back(name);
    return names;
}

Json compare_runs(const fs::path& path_a, const fs::path& path_b) {
    const auto side_a = side_of(path_a), side_b = side_of(path_b);
    const Stage &a = *side_a->stage, &b = *side_b->stage;
    std::error_code ignored;
    if (fs::weakly_canonical(path_a, ignored) == fs::weakly_canonical(path_b, ignored))
        throw InvalidArgument("report --compare", path_a.string() + " is given twice", "Give two runs or stages.");

    const auto describe = [](const Side& side) {
        return Json{{"path", side.shown},
                    {"run", side.stage->run->folder},
                    {"stage", side.stage->folder},
                    {"is_baseline", side.stage->is_baseline}};
    };
    const auto differences = fingerprint_differences(a, b);
    Json json = {{"format", "coppice-comparison"},
                 {"version", 1},
                 {"a", describe(*side_a)},
                 {"b", describe(*side_b)},
                 {"verdict", ""},
                 {"sentence", ""},
                 {"environment_differences", differences},
                 {"warnings", Json::array()},
                 {"measures", Json::array()}};
    for (const auto* side : {side_a.get(), side_b.get()})
        for (const auto& warning : side->report["warnings"]) json["warnings"].push_back(warning);
    for (const auto* stage : {&a, &b})
        for (const auto& warning : stage->warnings())
            json["warnings"].push_back((stage == &a ? "A: " : "B: ") + warning);

    const auto add = [&json](const std::string& key, const std::string& name, bool higher_is_better, const Figure& x,
                             const Figure& y, const Effect& effect, const char* kind, const Words& words) {
        Json measure = {
            {"key", key},
            {"name", name},
            {"higher_is_better", higher_is_better},
            {"a", to_json(x)},
            {"b", to_json(y)},
            {"effect", effect_json(effect, kind)},
            {"pairing", effect.pairing.empty() ? "none" : effect.pairing},
            {"words", {{"better", words.better}, {"worse", words.worse}}},
            {"verdict", verdict_of(effect, std::string(kind) == "ratio" ? 1 : 0, std::string(kind) == "difference")}};
        if (!effect.reason.empty()) measure["reason"] = effect.reason;
        json["measures"].push_back(std::move(measure));
    };
    const Quality& named = a.quality.available ? a.quality : b.quality;
    add("quality", named.name, !named.loss, quality_figure(a.quality), quality_figure(b.quality),
        effect_on_quality(a, b), "difference", {"higher", "lower"});
    // Whatever one of the two has: what the other lacks is named as such.
    std::vector<Measure> measures = side_a->view.measures;
    for (const auto& measure : side_b->view.measures)
        if (!side_a->view.measure(measure.key)) measures.push_back(measure);
    for (const auto& measure : measures) {
        const Figure x = a.on(measure), y = b.on(measure);
        if (!x.value && !y.value) continue;
        add(measure.key, measure.name, false, x, y, effect_on(measure, a, b, differences), "ratio", measure.words);
    }
    size_t better = 0, worse = 0, comparable = 0;
    for (const auto& measure : json["measures"]) {
        better += measure["verdict"] == "better";
        worse += measure["verdict"] == "worse";
        comparable += measure["verdict"] != "not comparable";
    }
    json["verdict"] = comparable == 0   ? "not comparable"
                      : better && worse ? "trade-off"
                      : better          ? "better"
                      : worse           ? "worse"
                                        : "no difference shown";
    json["sentence"] = sentence_of(json);
    return json;
}

std::string comparison_text(const Json& json) {
    check_comparison(json);
    constexpr size_t kWidth = 100;
    std::string out = "A  " + printable(text_member(member(json, "a"), "path")) + "\nB  " +
                      printable(text_member(member(json, "b"), "path")) + "\n\n";
    std::vector<std::vector<std::string>> rows = {{"Measure", "A", "B", "B against A (95 %)", "Pairs", "Verdict"}};
    std::vector<std::string> notes;
    std::vector<std::string> pairings;
    for (const auto& measure : json["measures"]) {
        const auto shown = [](const Json& side) {
            const Figure figure = figure_of(side);
            if (!figure.value) return std::string("–");
            const bool percent = figure.unit == "%";
            return (percent ? fixed(*figure.value, 2) + " %" : quantity(figure)) + " " +
                   provenance_mark(figure.provenance);
        };
        const std::string pairing = text_member(measure, "pairing"), verdict = text_member(measure, "verdict");
        rows.push_back({printable(text_member(measure, "name")), shown(member(measure, "a")),
                        shown(member(measure, "b")), effect_text(measure), pairing == "none" ? "–" : pairing,
                        verdict == "no difference shown" ? "no difference" : verdict});
        if (std::find(pairings.begin(), pairings.end(), pairing) == pairings.end()) pairings.push_back(pairing);
        if (const auto reason = text_member(measure, "reason"); !reason.empty())
            notes.push_back(text_member(measure, "name") + ": " + reason + ".");
        if (const auto p = number_member(member(measure, "effect"), "p_value"))
            notes.push_back(text_member(measure, "name") + ": McNemar's test gives p = " + number(*p, 2) + ".");
    }
    std::vector<size_t> widths(rows[0].size());
    size_t total = 0;
    for (size_t c = 0; c < widths.size(); ++c) {
        for (const auto& row : rows) widths[c] = std::max(widths[c], columns(row[c]));
        total += widths[c] + (c ? 2 : 0);
    }
    if (total > kWidth) widths[0] = std::max<size_t>(12, widths[0] - std::min(widths[0], total - kWidth));
    for (const auto& row : rows) {
        std::string line;
        for (size_t c = 0; c < row.size(); ++c) {
            const std::string text = shortened(row[c], widths[c]), space(widths[c] - columns(text), ' ');
            line += (c ? "  " : "") + (c == 1 || c == 2 ? space + text : text + space);
        }
        line.erase(line.find_last_not_of(' ') + 1);
        out += line + "\n";
    }
    out += "\n";
    for (const auto& pairing : pairings)
        out += pairing == "exact" ? "exact: counted or read from the file\n"
               : pairing == "direct"
                   ? "direct: the two against each other, in interleaved pairs or example by example\n"
               : pairing == "baseline" ? "baseline: each in pairs against the same baseline\n"
               : pairing == "unpaired"
                   ? "unpaired: measured at different times; drift of the machine is not in the interval\n"
                   : "";
    for (const auto& note : notes) out += folded(printable(note), kWidth) + "\n";
    for (const auto& warning : member(json, "warnings"))
        out += folded("Note: " + printable(text_of(warning)), kWidth) + "\n";
    return out + "\n" + folded(printable(text_member(json, "sentence")), kWidth) +
           "\nEach verdict holds at 95 % by itself; what is modelled says so (" + provenance_mark("modelled") + ").\n";
}

}  // namespace coppice::eval
