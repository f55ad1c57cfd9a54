// coppice eval: TorchScript files against each other on the same data and in the same interleaved timing.
#include <coppice/data.h>
#include <coppice/quantize.h>
#include <coppice/report.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <set>

#include "accounts.h"
#include "commands.h"
#include "recipe.h"

namespace coppice::cli {
namespace {

namespace fs = std::filesystem;

std::optional<double> value_at(const Json& json, const std::string& pointer) {
    const Json::json_pointer place(pointer);
    return json.contains(place) && json.at(place).is_number() ? std::optional<double>(json.at(place).get<double>())
                                                              : std::nullopt;
}

std::string number_text(const char* pattern, std::optional<double> value) {
    if (!value) return "-";
    char text[48];
    std::snprintf(text, sizeof text, pattern, *value);
    return text;
}

// "0.41x (0.40 to 0.42)"
std::string ratio_text(const Json& row) {
    const auto value = value_at(row, "/ratio_to_baseline/value");
    if (!value) return "-";
    std::string text = number_text("%.2fx", value);
    const auto low = value_at(row, "/ratio_to_baseline/interval/0"),
               high = value_at(row, "/ratio_to_baseline/interval/1");
    if (low && high) text += " (" + number_text("%.2f", low) + "-" + number_text("%.2f", high) + ")";
    return text;
}

// A run directory stands for its result.
fs::path model_of(const std::string& given) {
    std::error_code ignored;
    if (!fs::is_directory(given, ignored)) return given;
    const fs::path file = fs::path(given) / "model.pt";
    if (!fs::is_regular_file(file, ignored))
        throw IoError(given, "the folder holds no model.pt",
                      "Give a TorchScript file, or the folder of a finished run.");
    return file;
}

// What tells the models apart: the file's name, or the folder's where the file is called model.pt. Twins are numbered.
std::vector<std::string> names_of(const std::vector<fs::path>& files) {
    std::vector<std::string> names;
    std::set<std::string> taken;
    for (const auto& file : files) {
        const fs::path path = fs::absolute(file).lexically_normal();
        const std::string base =
            path.filename() == "model.pt" ? path.parent_path().filename().string() : path.stem().string();
        std::string name = base;
        for (int n = 2; !taken.insert(name).second; ++n) name = base + "-" + std::to_string(n);
        names.push_back(name);
    }
    return names;
}

// Some sums saturate on every CPU, others where it lacks VNNI: files of other machines and tools are looked at, too.
void warn_of_saturation(const fs::path& file, Log& log) {
    try {
        for (const auto& warning : quantize::int8_warnings(Model::load(file)))
            log.warning(file.string() + ": " + warning);
    } catch (const Error& error) {
        // The Measurer says why such a file is not analysed.
        log.info(file.string() + ": not looked at for sums that saturate: " + message_of(error));
    }
}

// The folder that `coppice report` reads: the models stand side by side, none is the result of another.
void write_run(RunDirectory& run, const std::vector<fs::path>& files, const std::vector<Json>& measurements) {
    const auto names = names_of(files);
    for (size_t i = 0; i < files.size(); ++i) {
        const auto folder = RunDirectory::folder_name(i, names[i]);
        const auto partial = run.partial(folder);
        const Json stage = {{"format", "coppice-stage"},
                            {"version", 1},
                            {"stage", names[i]},
                            {"kept", true},
                            {"model_file", files[i].string()},
                            {"model_sha256", sha256_of_file(files[i].string())},
                            {"changes", Json::array()},
                            {"warnings", Json::array()}};
        write_atomically(partial / "measurement.json", measurements[i].dump(2) + "\n");
        write_atomically(partial / "stage.json", stage.dump(2) + "\n");
        run.commit(folder);
    }
}

}  // namespace

int run_eval(const Arguments& arguments) {
    CommandLine line("eval", "MODEL... --data RECIPE [options]",
                     "Compares TorchScript files: quality, agreement, size, operations, time, energy. The first is the "
                     "baseline,\n"
                     "or the one that --baseline names. Data, task and measuring are described as in a recipe (its "
                     "data:, task: and\n"
                     "measure: sections; others are ignored).",
                     "  coppice eval resnet20.pt runs/resnet20/model.pt --data resnet20.yaml\n"
                     "  coppice eval a.pt b.pt --input 1,3,224,224 --set measure.batch=[1,32]\n");
    line.add()("baseline", "the model that all others are compared with", cxxopts::value<std::string>(), "MODEL")(
        "data", "recipe, or a file with a recipe's sections data, task and measure", cxxopts::value<std::string>(),
        "FILE")("recipe", "the same as --data", cxxopts::value<std::string>(), "FILE")(
        "i,input", "shape of an input where no data are given, see coppice inspect --help",
        cxxopts::value<std::vector<std::string>>(),
        "SHAPE")("set", "change a value of the recipe", cxxopts::value<std::vector<std::string>>(), "KEY=VALUE")(
        "json", "as JSON: one measurement per model, as in measurement.json")(
        "o,out", "folder for a report (HTML, JSON, CSV, Markdown), for which coppice report knows other forms",
        cxxopts::value<std::string>(), "DIR")("title", "heading of the report", cxxopts::value<std::string>(), "TEXT");
    Accounts::add_options(line, /*job=*/false);
    if (!line.parse(arguments, "model")) return kDone;
    std::vector<fs::path> files;
    for (const auto& text : line.texts("model")) files.push_back(model_of(text));
    if (line.given("baseline")) {
        const fs::path baseline = model_of(line.text("baseline"));
        files.erase(std::remove(files.begin(), files.end(), baseline), files.end());
        files.insert(files.begin(), baseline);
    }
    if (line.given("title") && !line.given("out")) line.fail("--title is the report's", "Add --out FOLDER.");
    if (files.empty()) line.fail("no model is given", "Write coppice eval baseline.pt smaller.pt --data recipe.yaml.");
    if (line.given("data") && line.given("recipe")) line.fail("--data and --recipe are the same", "Give one of them.");
    const std::string file = line.given("data") ? line.text("data") : line.given("recipe") ? line.text("recipe") : "";
    if (file.empty() && !line.given("input"))
        line.fail("neither data nor an input is given",
                  "Add --data recipe.yaml to compare quality, or --input 1,3,224,224 for size and time.");

    const Accounts accounts(line, /*job=*/false);
    watch_signals();
    TerminalLog log(line.level());
    Recipe recipe = file.empty() ? recipe_from_settings(Setting::map({}), line.texts("set"))
                                 : read_recipe(file, line.texts("set"), /*needs_model=*/false);
    if (line.given("input")) {
        recipe.inputs.clear();
        for (const auto& text : line.texts("input")) recipe.inputs.push_back(parse_input(text, "--input"));
    }
    set_threads(recipe.threads);
    DataSplits data;
    if (recipe.data.kind == Setting::Kind::kMap) {
        Json resolved = Json::object();
        data = open_data(recipe.data, recipe.base.string(), &resolved);
        recipe.resolved["data"] = resolved;
    }
    const auto example = example_inputs(recipe, data);
    const auto dataset = data.test ? data.test : data.validation ? data.validation : data.train;
    const std::string split = data.test ? "test" : data.validation ? "validation" : "train";
    // The baseline in canonical form: a clear error for what is no TorchScript, or does not run on this input.
    load_checked(files[0], example, files[0].string());
    for (const auto& model : files) warn_of_saturation(model, log);
    std::optional<RunDirectory> run;
    if (line.given("out")) {
        Json manifest = run_manifest(recipe, data, files[0]);
        manifest["kind"] = "eval";
        // A comparison has no stages; what is left is what was measured, on what and how.
        for (const char* section : {"model", "stages", "deploy", "gate", "report"}) manifest["recipe"].erase(section);
        run.emplace(RunDirectory::open(line.text("out"), manifest, /*resume=*/false));
    }

    eval::Measurer measurer(example, dataset, dataset ? split : "", recipe.task, recipe.metric, recipe.measure);
    measurer.log = &log;
    measurer.interrupted = interrupted;
    auto measurements = measurer.compare(files, 0);
    log.clear();
    std::vector<fs::path> written;
    if (run) {
        write_run(*run, files, measurements);
        const auto report = eval::collect_report({run->path()}, line.given("title") ? line.text("title") : "");
        written = eval::write_report(report, run->path(), eval::default_report_formats());
    }
    if (accounts.asked())
        for (auto& measurement : measurements) measurement["accounts"] = accounts.of_measurement(measurement);
    if (line.given("json")) {
        std::cout << Json(measurements).dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
        return kDone;
    }

    Table table{{"model", recipe.metric, "points", "same answer", "file", "parameters", "MACs", "batch", "threads",
                 "p50", "time of baseline"},
                {false, true, true, true, true, true, true, true, true, true, true},
                {}};
    const auto baseline_points = value_at(measurements[0], "/quality/points");
    for (size_t i = 0; i < measurements.size(); ++i) {
        const auto& measurement = measurements[i];
        const auto points = value_at(measurement, "/quality/points");
        const auto agreement = value_at(measurement, "/metrics/agreement/value");
        const auto bytes = value_at(measurement, "/figures/file_bytes/value"),
                   parameters = value_at(measurement, "/figures/parameters/value"),
                   macs = value_at(measurement, "/figures/macs/value");
        std::vector<std::string> cells = {files[i].string(),
                                          number_text("%.4f", value_at(measurement, "/quality/value")),
                                          i && points && baseline_points
                                              ? number_text("%+.2f", *points - *baseline_points)
                                              : number_text("%.2f", points),
                                          agreement ? number_text("%.2f %%", 100 * *agreement) : "-",
                                          bytes ? bytes_text(*bytes) : "-",
                                          parameters ? count_text(*parameters) : "-",
                                          macs ? count_text(*macs) : "-"};
        const Json none = Json::array();
        const auto& latency =
            measurement.contains("latency") && measurement["latency"].is_array() ? measurement["latency"] : none;
        for (size_t j = 0; j < std::max<size_t>(1, latency.size()); ++j) {
            auto row = j == 0 ? cells : std::vector<std::string>(cells.size());
            if (j < latency.size()) {
                const auto p50 = value_at(latency[j], "/p50_s/value");
                row.push_back(std::to_string(latency[j].value("batch", 1)));
                row.push_back(std::to_string(latency[j].value("threads", 1)));
                row.push_back(p50 ? number_text("%.3g ms", 1000 * *p50) : "-");
                row.push_back(i ? ratio_text(latency[j]) : "1");
            }
            table.rows.push_back(row);
        }
    }
    std::cout << table.text();
    std::vector<const Json*> known;
    for (const auto& measurement : measurements) known.push_back(&measurement);
    if (const auto reached = eval::reached_sentence(known); !reached.empty()) std::cout << "\n" << reached << "\n";
    const auto& quality = measurements[0].contains("quality") ? measurements[0]["quality"] : Json();
    if (quality.is_object() && value_at(quality, "/examples").value_or(0) > 0)
        std::cout << "\nQuality on " << quality.value("data", std::string("the data")) << " ("
                  << quality.value("split", split) << ", " << quality["examples"]
                  << " examples); points are differences to the baseline, higher is better.\n";
    else
        std::cout << "\nNo data were given: quality was not measured.\n";
    if (accounts.asked()) std::cout << "\nCost and Green Algorithms for a million inferences, SCI for one\n";
    for (size_t i = 0; i < measurements.size() && accounts.asked(); ++i)
        for (const auto& [name, text] : accounts.lines(measurements[i]["accounts"]))
            std::cout << "  " << wrapped(files[i].string() + ", " + name + ": " + text, 100, 4) << "\n";
    for (size_t i = 0; i < written.size(); ++i)
        std::cout << (i ? "" : "\n") << "report  " << written[i].string() << "\n";
    return kDone;
}

}  // namespace coppice::cli
