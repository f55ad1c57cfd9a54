// coppice report: runs to HTML, JSON, CSV, Markdown.
#include <coppice/eval.h>
#include <coppice/pipeline.h>
#include <coppice/report.h>

#include <cmath>
#include <iostream>
#include <sstream>

#include "accounts.h"
#include "commands.h"

namespace coppice::cli {
namespace {

eval::Figure figure_at(const Json& json, const char* pointer) {
    const Json::json_pointer place(pointer);
    return json.contains(place) ? eval::Figure::from_json(json.at(place))
                                : eval::Figure::unavailable("J", "not recorded");
}

std::string cell(const eval::Figure& figure) {
    return figure.value ? Json(*figure.value).dump() : "";
}

// The stored energies in every zone of the table; nothing is measured again.
std::string regions_csv(const Json& report) {
    std::string text = "run,stage,zone,year,g_per_kwh,pue,compression_g,per_inference_g,attribution\n";
    for (const auto& run : report.at("runs"))
        for (const auto& stage : run.at("stages")) {
            const auto& measurement = stage.at("measurement");
            const auto pue = measurement.value("/carbon/pue"_json_pointer, 1.0);
            const auto spent = eval::region_sweep(figure_at(measurement, "/compression/energy_j"), pue);
            const auto each = eval::region_sweep(figure_at(measurement, "/figures/energy_per_inference_j"), pue);
            for (size_t i = 0; i < spent.size(); ++i) {
                const auto& grid = spent[i].first;
                text += run.at("folder").get<std::string>() + "," + stage.at("folder").get<std::string>() + "," +
                        grid.zone + "," + std::to_string(grid.year.value_or(0)) + "," + Json(grid.g_per_kwh).dump() +
                        "," + Json(pue).dump() + "," + cell(spent[i].second) + "," + cell(each[i].second) + ",\"" +
                        grid.attribution + "\"\n";
            }
        }
    return text;
}

// "runs/a: its energy is earned back after 12 days at 1000 inferences a day (10 to 15)"
std::string payback_text(const Json& run, double per_day) {
    const auto days = eval::payback_days(figure_at(run, "/cost/payback_inferences"), per_day);
    char text[128];
    if (!days.value) return run.at("folder").get<std::string>() + ": earned back never, or not known: " + days.reason;
    std::snprintf(text, sizeof text, ": its energy is earned back after %.3g days at %.6g inferences a day",
                  *days.value, per_day);
    std::string line = run.at("folder").get<std::string>() + text;
    if (days.interval) {
        std::snprintf(text, sizeof text, " (%.3g to %.3g)", days.interval->low, days.interval->high);
        line += text;
    }
    return line + ", " + eval::name_of(days.provenance);
}

// What compressing cost, and what a million inferences cost before and after it, from the stored energies.
void print_accounts(const Json& report, const Accounts& accounts) {
    std::cout << "Cost and Green Algorithms for a compression and for a million inferences, SCI for one of each\n";
    const auto print = [&](const std::string& name, const Json& values) {
        for (const auto& [account, text] : accounts.lines(values))
            std::cout << "  " << wrapped(name + ", " + account + ": " + text, 100, 4) << "\n";
    };
    for (const auto& run : report.at("runs")) {
        const auto& stages = run.at("stages");
        if (stages.empty()) continue;
        const auto folder = run.at("folder").get<std::string>();
        if (stages.size() > 1) {
            auto compression = Accounts::inference(stages.back().at("measurement"));
            compression.energy_j = figure_at(run, "/cost/energy_j");
            compression.carbon_g = figure_at(run, "/cost/carbon_g");
            compression.seconds = figure_at(run, "/cost/seconds");
            compression.core_usage = 1;
            compression.unit = "compression";
            print(folder, accounts.of(compression));
        }
        for (const auto& stage : stages)
            print(folder + "/" + stage.at("folder").get<std::string>(),
                  accounts.of_measurement(stage.at("measurement")));
    }
}

}  // namespace

int run_report(const Arguments& arguments) {
    CommandLine line(
        "report", "RUN... [options]",
        "Makes one report of one or several run directories: quality against run time, size, operations, power,\n"
        "energy and carbon. Unfinished runs are reported as far as they got.",
        "  coppice report runs/resnet20\n"
        "  coppice report runs/a runs/b --format html,csv --out comparison --title \"a or b\"\n");
    line.add()("o,out", "folder to write to (default: the run's own, for several runs the current one)",
               cxxopts::value<std::string>(), "DIR")(
        "format", "html, json, csv, md: one or several, with commas between", cxxopts::value<std::string>(), "LIST")(
        "load", "inferences a day: after how many days compressing has paid for itself", cxxopts::value<double>(), "N")(
        "regions", "write the stored energies as carbon in every zone to this CSV", cxxopts::value<std::string>(),
        "FILE")("title", "heading of the report", cxxopts::value<std::string>()->default_value(""), "TEXT");
    Accounts::add_options(line, /*job=*/false);
    if (!line.parse(arguments, "run")) return kDone;
    const auto runs = line.texts("run");
    if (runs.empty())
        line.fail("no run directory is given", "Write coppice report runs/name; see coppice report --help.");

    const Accounts accounts(line, /*job=*/false);
    const double load = line.given("load") ? line.values()["load"].as<double>() : 1;
    if (!(load > 0) || !std::isfinite(load)) line.fail("--load must be above 0");

    std::vector<std::string> formats = eval::report_formats();
    if (line.given("format")) {
        const auto known = formats;
        formats.clear();
        std::istringstream list(line.text("format"));
        for (std::string format; std::getline(list, format, ',');) {
            if (std::find(known.begin(), known.end(), format) == known.end())
                throw_unknown("--format", "report format", format, known);
            formats.push_back(format);
        }
    }
    const std::filesystem::path out = line.given("out") ? line.text("out") : runs.size() == 1 ? runs[0] : ".";
    const auto report = eval::collect_report({runs.begin(), runs.end()}, line.text("title"));
    std::error_code error;
    std::filesystem::create_directories(out, error);
    if (error)
        throw IoError(out.string(), "cannot create the folder: " + error.message(), "Choose another with --out.");
    const auto written = eval::write_report(report, out, formats);
    if (report.contains("warnings") && report["warnings"].is_array())
        for (const auto& warning : report["warnings"])
            std::cerr << "warning: " << (warning.is_string() ? warning.get<std::string>() : warning.dump()) << "\n";
    std::cout << eval::terminal_table(report) << "\n" << wrapped(eval::summary_sentence(report), 100, 0) << "\n\n";
    if (line.given("load"))
        for (const auto& run : report.at("runs")) std::cout << wrapped(payback_text(run, load), 100, 0) << "\n";
    if (accounts.asked()) print_accounts(report, accounts);
    if (line.given("regions")) {
        write_atomically(line.text("regions"), regions_csv(report));
        std::cout << "regions " << line.text("regions") << "\n";
    }
    for (const auto& file : written) std::cout << "report  " << file.string() << "\n";
    return kDone;
}

}  // namespace coppice::cli
