// Run directories -> report.json: reads, names what is missing, and computes the Pareto sets.
#include <algorithm>
#include <cmath>
#include <set>

#include <coppice/error.h>
#include <coppice/pipeline.h>
#include <coppice/report.h>

#include "report/label.h"
#include "report/picture.h"

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
        if (name.find(".aside-") != std::string::npos) {
            warnings.push_back(folder + "/" + name + " was set aside as damaged or out of date and is left out.");
            continue;
        }
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

Json interval_json(const Uncertain& number) {
    return {number.low, number.high};
}

Json pareto_of(const Picture& picture) {
    const auto& points = picture.points;
    const Measure& measure = *picture.x.measure;
    Json json = {{"key", measure.key}, {"name", measure.name}, {"unit", measure.unit}, {"points", Json::array()}};
    for (const Point& p : points) {
        Json point = {{"stage", p.stage->id},
                      {"status", name_of(p.status)},
                      {"x", p.x.value},
                      {"x_interval", interval_json(p.x)},
                      {"x_provenance", p.x_figure.provenance},
                      {"x_method", p.x_figure.method},
                      {"y", p.y.value},
                      {"y_interval", interval_json(p.y)},
                      {"y_provenance", p.y_figure.provenance}};
        for (const size_t a : p.dominated_by) point["dominated_by"].push_back(points[a].stage->id);
        json["points"].push_back(std::move(point));
    }
    json["front"] = Json::array();
    for (const size_t i : picture.front) json["front"].push_back(points[i].stage->id);
    json["knee"] = picture.knee ? Json(points[*picture.knee].stage->id) : Json();
    json["hypervolume"] = {
        {"value", picture.hypervolume},
        {"unit", "points × share of the baseline"},
        {"reference", {{"x", picture.reference_x}, {"y", picture.reference_y}}},
        {"method",
         "x: 1.1 times the largest, as a share of the baseline; y: the worst quality less a tenth of the range"}};
    return json;
}

// Points of different metrics or data cannot share an axis: those unlike the first are left out, and named.
Json pareto_of(const View& view, const ReportOptions& options, std::vector<std::string>& warnings) {
    const Stage* first = first_with_quality(view);
    Json json = {{"quality", Json()}, {"default", Json()}, {"default_y", "quality"}, {"measures", Json::array()}};
    size_t most = 0;
    if (first) {
        json["quality"] = {{"metric", first->quality.metric},
                           {"name", first->quality.name},
                           {"unit", first->quality.unit},
                           {"higher_is_better", !first->quality.loss}};
        const Axis quality = axis_of(view, "quality", "report");
        for (const auto& measure : view.measures) {
            const Picture picture = picture_of(view, axis_of(view, measure.key, "report"), quality);
            if (picture.points.empty()) continue;
            json["measures"].push_back(pareto_of(picture));
            most = std::max(most, picture.points.size());
        }
        for (const auto& stage : view.stages)
            if (!comparable_quality(*first, stage))
                warnings.push_back(
                    stage.label +
                    " has another metric or other data than the first stage and is not in the Pareto picture.");
    } else if (!view.stages.empty()) {
        warnings.push_back("No stage has a quality; there is no Pareto picture.");
    }
    // Energy where it is known for as many stages as anything else; else the time of a large batch; else what there is.
    std::vector<std::string> wanted = {"energy_per_inference_j"};
    if (view.large_batch) wanted.push_back(view.large_batch->key);
    wanted.push_back("file_bytes");
    for (const auto& key : wanted)
        for (const auto& measure : json["measures"])
            if (json["default"].is_null() && measure["key"] == key && measure["points"].size() == most)
                json["default"] = key;
    if (json["default"].is_null() && !json["measures"].empty()) json["default"] = json["measures"][0]["key"];
    // Without a quality the two best-known costs stand against each other.
    if (!first)
        for (const auto& key : wanted)
            if (view.measure(key)) json[json["default"].is_null() ? "default" : "default_y"] = key;
    if (!options.x.empty()) json["default"] = axis_of(view, options.x, "--x").key;
    if (!options.y.empty()) json["default_y"] = axis_of(view, options.y, "--y").key;
    if (json["default"] == json["default_y"])
        throw InvalidArgument("report", "both axes are " + text_of(json["default"]), "Choose two with --x and --y.");
    return json;
}

}  // namespace

Json collect_report(const std::vector<fs::path>& runs, const std::string& title) {
    ReportOptions options;
    options.title = title;
    return collect_report(runs, options);
}

Json collect_report(const std::vector<fs::path>& runs, const ReportOptions& options) {
    if (runs.empty()) throw InvalidArgument("report", "no run is given", "Name one or more run directories.");
    std::vector<std::string> warnings;
    Json report = {{"format", "coppice-report"}, {"version", 1},  {"title", options.title},
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
    if (options.title.empty()) {
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
    std::set<std::string> differences;
    for (const auto& stage : view.stages)
        for (const auto& name : environment_differences(member(*view.stages.front().measurement, "environment"),
                                                        member(*stage.measurement, "environment")))
            differences.insert(name);
    if (!differences.empty()) {
        std::string names;
        for (const auto& name : differences) names += (names.empty() ? "" : ", ") + name;
        warnings.push_back("The stages were not all measured in the same environment (" + names +
                           "); compare times and energies with care.");
    }
    for (const auto& run : view.runs)
        if (!run.baseline && !run.stages.empty())
            warnings.push_back(run.folder + " has no baseline; differences to it are not shown.");
    Json costs = Json::array();
    for (const auto& run : view.runs)
        costs.push_back({{"seconds", to_json(total_compression(run, "seconds"))},
                         {"energy_j", to_json(total_compression(run, "energy_j"))},
                         {"carbon_g", to_json(total_compression(run, "carbon_g"))},
                         {"payback_inferences", to_json(payback(run))},
                         {"payback_carbon_inferences", to_json(payback(run, "g"))}});
    std::vector<std::vector<Json>> classes;
    for (const auto& run : view.runs) {
        classes.emplace_back();
        for (const Stage* stage : run.stages) {
            const auto energy = energy_class(*stage);
            classes.back().push_back(energy ? to_json(*energy) : Json());
        }
    }
    Json pareto = pareto_of(view, options, warnings);
    std::string summary = summary_sentence(report);
    // The view points into the report: nothing is changed before it is done with.
    for (size_t r = 0; r < costs.size(); ++r) {
        report["runs"][r]["cost"] = costs[r];
        for (size_t i = 0; i < classes[r].size(); ++i) report["runs"][r]["stages"][i]["energy_class"] = classes[r][i];
    }
    report["pareto"] = std::move(pareto);
    report["summary"] = std::move(summary);
    for (const auto& warning : warnings) report["warnings"].push_back(warning);
    return report;
}

}  // namespace coppice::eval
