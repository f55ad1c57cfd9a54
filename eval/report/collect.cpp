// Run directories -> report.json: reads, names what is missing, and computes the Pareto sets.
#include <algorithm>
#include <cmath>
#include <set>

#include <coppice/error.h>
#include <coppice/pipeline.h>
#include <coppice/report.h>

#include "report/view.h"

namespace coppice::eval {
namespace {

namespace fs = std::filesystem;
using namespace report;

std::string base_name(const std::string& path) {
    const size_t slash = path.find_last_of("/\\");
    return slash == std::string::npos ? path : path.substr(slash + 1);
}

// A file of the run, checked for its format; null and a warning when it is absent, damaged or from a newer version.
Json read_part(const fs::path& file, const std::string& shown, const std::string& format,
               std::vector<std::string>& warnings) {
    if (!fs::exists(file)) {
        warnings.push_back(shown + " is missing.");
        return {};
    }
    try {
        Json json = read_json(file);
        if (text_member(json, "format") != format || number_member(json, "version") != 1.0) {
            warnings.push_back(shown + " is not a " + format + " of version 1.");
            return {};
        }
        return json;
    } catch (const Error& error) {
        warnings.push_back(shown + " cannot be read: " + error.problem() + ".");
        return {};
    }
}

Json collect_run(const fs::path& given, std::vector<std::string>& warnings) {
    std::error_code failed;
    const fs::path path = fs::weakly_canonical(given, failed);
    if (failed || !fs::is_directory(path))
        throw IoError(given.string(), "there is no such folder", "Give the folder that a run was written to.");
    const std::string folder = path.filename().string();
    Json run = {{"folder", folder}, {"manifest", Json::object()}, {"stages", Json::array()}};
    if (Json manifest = read_part(path / "manifest.json", folder + "/manifest.json", "coppice-run", warnings);
        !manifest.is_null())
        run["manifest"] = std::move(manifest);
    if (fs::exists(path / "recipe.yaml")) {
        try {
            run["recipe"] = read_text(path / "recipe.yaml");
        } catch (const Error& error) {
            warnings.push_back(folder + "/recipe.yaml cannot be read: " + error.problem() + ".");
        }
    }
    // A stage's folder begins with its number; while it is being made it ends in ".partial".
    std::vector<std::pair<int64_t, std::string>> folders;
    for (const auto& entry : fs::directory_iterator(path)) {
        const std::string name = entry.path().filename().string();
        const size_t digits = name.find_first_not_of("0123456789");
        if (!entry.is_directory() || digits == 0 || digits > 9 || name[digits] != '-') continue;
        folders.emplace_back(std::stoll(name.substr(0, digits)), name);
    }
    std::sort(folders.begin(), folders.end());
    for (const auto& [index, name] : folders) {
        const std::string shown = folder + "/" + name;
        if (name.size() > 8 && name.compare(name.size() - 8, 8, ".partial") == 0) {
            warnings.push_back(shown.substr(0, shown.size() - 8) + " was not finished and is left out.");
            continue;
        }
        const Json measurement =
            read_part(path / name / "measurement.json", shown + "/measurement.json", "coppice-measurement", warnings);
        const Json stage = read_part(path / name / "stage.json", shown + "/stage.json", "coppice-stage", warnings);
        if (measurement.is_null() || stage.is_null()) {
            warnings.push_back(shown + " is left out.");
            continue;
        }
        run["stages"].push_back({{"folder", name},
                                 {"name", text_member(stage, "stage", name.substr(name.find('-') + 1))},
                                 {"measurement", measurement},
                                 {"stage", stage}});
    }
    return run;
}

const char* name_of(ParetoStatus status) {
    switch (status) {
        case ParetoStatus::kFront:
            return "front";
        case ParetoStatus::kTied:
            return "tied";
        case ParetoStatus::kDominated:
            break;
    }
    return "dominated";
}

struct Candidate {
    const Stage* stage;
    Uncertain x, y;  // x: the measure, lower is better; y: quality in points, higher is better
    Figure figure;   // what x is
};

// Where a stage stands on a measure. Times and energies of different stages were taken minutes apart; each one's ratio
// to the baseline was taken in interleaved pairs. So within a run the ratio, scaled by the baseline's figure, places
// the point, and drift cancels.
std::optional<Candidate> candidate(const Stage& stage, const Measure& measure, bool single_run) {
    Candidate result{&stage, {}, stage.quality.points, stage.on(measure)};
    Figure& x = result.figure;
    if (!x.value || !stage.quality.available) return std::nullopt;
    if (stage.baseline) {
        const Figure base = stage.baseline->on(measure), ratio = paired_ratio(stage, measure);
        if (measure.batch != 0 && stage.is_baseline && single_run) x.interval.reset();  // the reference of all ratios
        if (!stage.is_baseline && base.value && ratio.value) {
            x.value = *ratio.value * *base.value;
            x.provenance = weakest(weakest(ratio.provenance, base.provenance), "derived");
            x.method = "paired ratio to the baseline × the baseline's figure";
            x.interval = ratio.interval;
            if (x.interval) x.interval = std::pair(x.interval->first * *base.value, x.interval->second * *base.value);
        }
    }
    result.x = Uncertain(*x.value);
    if (x.interval)
        result.x = Uncertain(*x.value, std::min(x.interval->first, *x.value), std::max(x.interval->second, *x.value));
    return result;
}

Json interval_json(const Uncertain& number) {
    return {number.low, number.high};
}

Json pareto_of(const Measure& measure, const std::vector<Candidate>& candidates) {
    std::vector<ParetoPoint> points;
    for (const auto& c : candidates) points.push_back({c.x, Uncertain(-c.y.value, -c.y.high, -c.y.low)});
    const auto status = pareto_status(points);
    Json json = {{"key", measure.key}, {"name", measure.name}, {"unit", measure.unit}, {"points", Json::array()}};
    std::vector<size_t> front;
    for (size_t i = 0; i < candidates.size(); ++i) {
        const Candidate& c = candidates[i];
        Json point = {{"stage", c.stage->id},
                      {"status", name_of(status[i])},
                      {"x", c.x.value},
                      {"x_interval", interval_json(c.x)},
                      {"x_provenance", c.figure.provenance},
                      {"x_method", c.figure.method},
                      {"y", c.y.value},
                      {"y_interval", interval_json(c.y)},
                      {"y_provenance", c.stage->quality.provenance}};
        if (status[i] == ParetoStatus::kDominated)
            for (size_t a = 0; a < candidates.size(); ++a)
                if (dominates(points[a], points[i])) point["dominated_by"].push_back(candidates[a].stage->id);
        json["points"].push_back(std::move(point));
        if (status[i] == ParetoStatus::kFront) front.push_back(i);
    }
    std::stable_sort(front.begin(), front.end(),
                     [&](size_t a, size_t b) { return candidates[a].x.value < candidates[b].x.value; });
    json["front"] = Json::array();
    for (const size_t i : front) json["front"].push_back(candidates[i].stage->id);

    // The knee as it is seen in the picture: the axis across is logarithmic.
    std::vector<std::pair<double, double>> seen;
    bool positive = true;
    for (const auto& c : candidates) positive &= c.x.value > 0;
    for (const size_t i : front)
        seen.emplace_back(positive ? std::log10(candidates[i].x.value) : candidates[i].x.value, -candidates[i].y.value);
    const auto at = knee(seen);
    json["knee"] = at ? Json(candidates[front[*at]].stage->id) : Json();

    double unit = 0, worst_x = 0, worst_y = candidates[0].y.value, best_y = candidates[0].y.value;
    for (const auto& c : candidates) {
        if (unit == 0 && c.stage->is_baseline) unit = c.x.value;
        worst_x = std::max(worst_x, c.x.value);
        worst_y = std::min(worst_y, c.y.value);
        best_y = std::max(best_y, c.y.value);
    }
    if (!(unit > 0)) unit = worst_x > 0 ? worst_x : 1;
    const double reference_x = 1.1 * worst_x / unit;
    const double reference_y = worst_y - (best_y > worst_y ? 0.1 * (best_y - worst_y) : 1.0);
    std::vector<std::vector<double>> scaled;
    for (const auto& c : candidates) scaled.push_back({c.x.value / unit, -c.y.value});
    json["hypervolume"] = {
        {"value", hypervolume(scaled, {reference_x, -reference_y})},
        {"unit", "points × share of the baseline"},
        {"reference", {{"x", reference_x}, {"y", reference_y}}},
        {"method",
         "x: 1.1 times the largest, as a share of the baseline; y: the worst quality less a tenth of the range"}};
    return json;
}

// Points of different metrics or data cannot share an axis: those unlike the first are left out, and named.
Json pareto_of(const View& view, std::vector<std::string>& warnings) {
    const Stage* first = nullptr;
    for (const auto& stage : view.stages)
        if (!first && stage.quality.available) first = &stage;
    Json json = {{"quality", Json()}, {"default", Json()}, {"measures", Json::array()}};
    if (!first) {
        if (!view.stages.empty()) warnings.push_back("No stage has a quality; there is no Pareto picture.");
        return json;
    }
    json["quality"] = {{"metric", first->quality.metric},
                       {"name", first->quality.name},
                       {"unit", first->quality.unit},
                       {"higher_is_better", !first->quality.loss}};
    std::set<std::string> left_out;
    size_t most = 0;
    for (const auto& measure : view.measures) {
        std::vector<Candidate> candidates;
        for (const auto& stage : view.stages) {
            if (stage.quality.available &&
                (stage.quality.metric != first->quality.metric || stage.quality.data != first->quality.data)) {
                left_out.insert(stage.label);
                continue;
            }
            if (auto c = candidate(stage, measure, view.runs.size() == 1)) candidates.push_back(*c);
        }
        if (candidates.empty()) continue;
        json["measures"].push_back(pareto_of(measure, candidates));
        most = std::max(most, candidates.size());
    }
    for (const auto& label : left_out)
        warnings.push_back(label +
                           " has another metric or other data than the first stage and is not in the Pareto picture.");
    // Energy where it is known for as many stages as anything else; else the time of a large batch; else what there is.
    std::vector<std::string> wanted = {"energy_per_inference_j"};
    if (view.large_batch) wanted.push_back(view.large_batch->key);
    wanted.push_back("file_bytes");
    for (const auto& key : wanted)
        for (const auto& measure : json["measures"])
            if (json["default"].is_null() && measure["key"] == key && measure["points"].size() == most)
                json["default"] = key;
    if (json["default"].is_null() && !json["measures"].empty()) json["default"] = json["measures"][0]["key"];
    return json;
}

// What must be the same for times to be compared. Runs on different machines or with different threads are warned of.
std::string fingerprint(const Stage& stage) {
    const Json& environment = member(*stage.measurement, "environment");
    std::string text;
    for (const char* key : {"cpu", "threads", "libtorch", "kernel", "governor"})
        text += text_member(environment, key) + "; ";
    return text;
}

}  // namespace

Json collect_report(const std::vector<fs::path>& runs, const std::string& title) {
    if (runs.empty()) throw InvalidArgument("report", "no run is given", "Name one or more run directories.");
    std::vector<std::string> warnings;
    Json report = {{"format", "coppice-report"}, {"version", 1},  {"title", title},
                   {"generated_by", "coppice"},  {"summary", ""}, {"warnings", Json::array()},
                   {"runs", Json::array()}};
    size_t stages = 0;
    for (const auto& path : runs) {
        report["runs"].push_back(collect_run(path, warnings));
        stages += report["runs"].back()["stages"].size();
    }
    if (stages == 0)
        throw IoError(
            runs.front().string(),
            "no stage of it is intact" +
                (warnings.empty() ? std::string() : ": " + warnings.front().substr(0, warnings.front().size() - 1)),
            "Give the folder that holds 00-baseline, or finish the run with --resume.");
    const Json& manifest = report["runs"][0]["manifest"];
    if (const auto version = text_member(manifest, "coppice"); !version.empty())
        report["generated_by"] = "coppice " + version;
    if (title.empty()) {
        std::set<std::string> models;
        for (const auto& run : report["runs"])
            models.insert(base_name(text_member(member(run["manifest"], "model"), "path")));
        const std::string model = *models.begin();
        report["title"] = models.size() > 1
                              ? plural(models.size(), "model", "models") + ", " + plural(runs.size(), "run", "runs")
                          : model.empty() ? report["runs"][0]["folder"].get<std::string>()
                                          : model + (runs.size() > 1 ? ", " + plural(runs.size(), "run", "runs") : "");
    }

    const View view = make_view(report);
    std::set<std::string> machines;
    for (const auto& stage : view.stages) machines.insert(fingerprint(stage));
    if (machines.size() > 1)
        warnings.push_back(
            "The stages were not all measured in the same environment; compare times and energies with care.");
    for (const auto& run : view.runs)
        if (!run.baseline && !run.stages.empty())
            warnings.push_back(run.folder + " has no baseline; differences to it are not shown.");
    Json costs = Json::array();
    for (const auto& run : view.runs)
        costs.push_back({{"seconds", to_json(total_compression(run, "seconds"))},
                         {"energy_j", to_json(total_compression(run, "energy_j"))},
                         {"carbon_g", to_json(total_compression(run, "carbon_g"))},
                         {"payback_inferences", to_json(payback(run))}});
    Json pareto = pareto_of(view, warnings);
    std::string summary = summary_sentence(report);
    // The view points into the report: nothing is changed before it is done with.
    for (size_t r = 0; r < costs.size(); ++r) report["runs"][r]["cost"] = costs[r];
    report["pareto"] = std::move(pareto);
    report["summary"] = std::move(summary);
    for (const auto& warning : warnings) report["warnings"].push_back(warning);
    return report;
}

}  // namespace coppice::eval
