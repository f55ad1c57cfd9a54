// coppice eval: TorchScript files against each other on the same data and in the same interleaved timing.
#include <coppice/data.h>

#include <cmath>
#include <iostream>

#include "accounts.h"
#include "commands.h"
#include "recipe.h"

namespace coppice::cli {
namespace {

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
        "json", "as JSON: one measurement per model, as in measurement.json");
    Accounts::add_options(line, /*job=*/false);
    if (!line.parse(arguments, "model")) return kDone;
    auto files = line.texts("model");
    if (line.given("baseline")) {
        files.erase(std::remove(files.begin(), files.end(), line.text("baseline")), files.end());
        files.insert(files.begin(), line.text("baseline"));
    }
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
    if (recipe.data.kind == Setting::Kind::kMap) data = open_data(recipe.data, recipe.base.string());
    const auto example = example_inputs(recipe, data);
    const auto dataset = data.test ? data.test : data.validation ? data.validation : data.train;
    const std::string split = data.test ? "test" : data.validation ? "validation" : "train";
    // The baseline in canonical form: a clear error for what is no TorchScript, or does not run on this input.
    load_checked(files[0], example, files[0]);

    eval::Measurer measurer(example, dataset, dataset ? split : "", recipe.task, recipe.metric, recipe.measure);
    measurer.log = &log;
    measurer.interrupted = interrupted;
    auto measurements = measurer.compare({files.begin(), files.end()}, 0);
    log.clear();
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
        std::vector<std::string> cells = {files[i],
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
            std::cout << "  " << wrapped(files[i] + ", " + name + ": " + text, 100, 4) << "\n";
    return kDone;
}

}  // namespace coppice::cli
