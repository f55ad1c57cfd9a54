// coppice report: runs to HTML, JSON, CSV, Markdown; two of them against each other; what many cost, by project.
#include <coppice/allocation.h>
#include <coppice/eval.h>
#include <coppice/pipeline.h>
#include <coppice/report.h>

#include <cmath>
#include <iostream>
#include <map>
#include <sstream>

#include "accounts.h"
#include "commands.h"

namespace coppice::cli {
namespace {

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
            const auto spent = eval::region_sweep(figure_at(measurement, "/compression/energy_j", "J"), pue);
            const auto each = eval::region_sweep(figure_at(measurement, "/figures/energy_per_inference_j", "J"), pue);
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
std::string payback_text(const Json& run, const std::string& what, const char* pointer, double per_day) {
    const auto days = eval::payback_days(figure_at(run, pointer, "1"), per_day);
    std::string line = run.at("folder").get<std::string>() + ": its " + what + " is earned back ";
    if (!days.value) return line + "never, or it is not known: " + days.reason;
    char text[128];
    std::snprintf(text, sizeof text, "after %.3g days at %.6g inferences a day", *days.value, per_day);
    line += text;
    if (days.interval) {
        std::snprintf(text, sizeof text, " (%.3g to %.3g)", days.interval->low, days.interval->high);
        line += text;
    }
    return line + ", " + eval::name_of(days.provenance);
}

// Two runs or stages: which is better, in what, how sure.
int compare(const CommandLine& line, const std::vector<std::string>& runs) {
    if (runs.size() != 2)
        line.fail(
            "--compare takes two runs, " + std::to_string(runs.size()) + (runs.size() == 1 ? " is" : " are") + " given",
            "Write coppice report --compare runs/a runs/b.");
    for (const char* other : {"format", "out", "title", "load", "regions", "x", "y"})
        if (line.given(other)) line.fail("--compare and --" + std::string(other) + " do not go together");
    const auto comparison = eval::compare_runs(runs[0], runs[1]);
    if (line.given("json"))
        std::cout << comparison.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
    else
        std::cout << eval::comparison_text(comparison);
    return kDone;
}

Json read_report(const std::filesystem::path& file) {
    const auto json = read_json(file);
    if (!json.is_object() || json.value("format", Json()) != "coppice-report")
        throw IoError(file.string(), "is no report of Coppice", "Give a run directory, or its report.json.");
    return json;
}

// What many runs and tracked programs took, by project, user or tag.
int allocate(const CommandLine& line, const std::vector<std::string>& sources) {
    for (const char* other : {"format", "out", "title", "load", "regions", "compare", "x", "y"})
        if (line.given(other)) line.fail("--group-by and --" + std::string(other) + " do not go together");
    eval::AllocationOptions options;
    options.group_by = line.text("group-by");
    options.currency = line.text("currency");
    if (line.given("price")) options.price_per_kwh = number_option(line, "price");
    if (line.given("carbon-price")) {
        if (!line.given("price"))
            line.fail("--carbon-price alone gives no cost", "Add --price, that of a kWh; it may be 0.");
        options.price_per_tonne = number_option(line, "carbon-price");
    }
    const auto allocation = eval::allocate({sources.begin(), sources.end()}, options);
    for (const auto& warning : allocation["warnings"]) std::cerr << "warning: " << warning.get<std::string>() << "\n";
    if (line.given("json"))
        std::cout << allocation.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
    else
        std::cout << eval::allocation_text(allocation);
    return kDone;
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
            compression.energy_j = figure_at(run, "/cost/energy_j", "J");
            compression.carbon_g = figure_at(run, "/cost/carbon_g", "g");
            compression.seconds = figure_at(run, "/cost/seconds", "s");
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

int run_report(const Arguments& given) {
    // cxxopts takes an option of one letter with one dash alone.
    Arguments arguments = given;
    for (auto& argument : arguments)
        if (argument == "--x" || argument == "--y" || argument.rfind("--x=", 0) == 0 ||
            argument.rfind("--y=", 0) == 0) {
            argument.erase(0, 1);
            if (argument.size() > 2) argument.erase(2, 1);
        }
    CommandLine line(
        "report", "RUN... [options]",
        "Makes one report of one or several run directories: quality against run time, size, operations, power,\n"
        "energy and carbon. Unfinished runs are reported as far as they got.",
        "  coppice report runs/resnet20\n"
        "  coppice report report.json --format html\n"
        "  coppice report runs/a runs/b --format html,csv --out comparison --title \"a or b\"\n"
        "  coppice report --compare runs/a runs/b\n"
        "  coppice report --compare runs/a/00-baseline runs/a/02-train.finetune --json\n"
        "  coppice report runs/a --format svg --x file_bytes --y latency_b1_t2\n"
        "  coppice report --group-by project runs/* tracked.json emissions.csv --price 0.3 --carbon-price 80\n");
    line.add()("o,out", "folder to write to (default: the run's own, for several runs the current one)",
               cxxopts::value<std::string>(), "DIR")(
        "format",
        "html, json, csv, md, card (a model card), svg or png (the picture): one or several, with commas between",
        cxxopts::value<std::string>(), "LIST")(
        "load", "inferences a day: after how many days compressing has paid for itself", cxxopts::value<double>(), "N")(
        "regions", "write the stored energies as carbon in every zone to this CSV", cxxopts::value<std::string>(),
        "FILE")("compare", "is the second run (or stage) better than the first, in what, and how sure")(
        "group-by", "what runs and tracked programs took, summed by project, user or tag",
        cxxopts::value<std::string>(), "WHAT")("json", "with --compare or --group-by: the answer as JSON")(
        "schema", "print the JSON schema of report, comparison or allocation and end", cxxopts::value<std::string>(),
        "NAME")("x", "axis of the picture, across: quality, file_bytes, latency_b1_t2, ...",
                cxxopts::value<std::string>(),
                "NAME")("y", "the same, up (default: quality)", cxxopts::value<std::string>(), "NAME")(
        "title", "heading of the report", cxxopts::value<std::string>()->default_value(""), "TEXT");
    Accounts::add_options(line, /*job=*/false);
    if (!line.parse(arguments, "run")) return kDone;
    if (line.given("schema")) {
        const std::map<std::string, const Json& (*)()> schemas = {{"allocation", eval::allocation_schema},
                                                                  {"comparison", eval::comparison_schema},
                                                                  {"report", eval::report_schema}};
        const auto found = schemas.find(line.text("schema"));
        if (found == schemas.end())
            throw_unknown("--schema", "schema", line.text("schema"), {"allocation", "comparison", "report"});
        std::cout << found->second().dump(2) << "\n";
        return kDone;
    }
    const auto runs = line.texts("run");
    if (line.given("group-by")) return allocate(line, runs);
    if (line.given("compare")) return compare(line, runs);
    if (line.given("json"))
        line.fail("--json belongs to --compare and --group-by", "For report.json write --format json.");
    if (runs.empty())
        line.fail("no run directory is given", "Write coppice report runs/name; see coppice report --help.");

    const Accounts accounts(line, /*job=*/false);
    const double load = line.given("load") ? line.values()["load"].as<double>() : 1;
    if (!(load > 0) || !std::isfinite(load)) line.fail("--load must be above 0");

    std::vector<std::string> formats = eval::default_report_formats();
    if (line.given("format")) {
        formats.clear();
        std::istringstream list(line.text("format"));
        for (std::string format; std::getline(list, format, ',');) formats.push_back(format);
        eval::check_report_formats(formats, "--format");
    }
    // A report.json: the other formats are made anew from it, whatever became of the run.
    const bool stored = runs.size() == 1 && std::filesystem::is_regular_file(runs[0]);
    if (stored) {
        for (const char* option : {"x", "y", "title"})
            if (line.given(option)) line.fail("--" + std::string(option) + " needs the run, not its report.json");
        if (!line.given("format")) formats.erase(std::remove(formats.begin(), formats.end(), "json"), formats.end());
    }
    std::filesystem::path out = runs.size() == 1 ? runs[0] : ".";
    if (stored && (out = out.parent_path()).empty()) out = ".";
    if (line.given("out")) out = line.text("out");
    eval::ReportOptions options;
    options.title = line.text("title");
    if (line.given("x")) options.x = line.text("x");
    if (line.given("y")) options.y = line.text("y");
    const auto report = stored ? read_report(runs[0]) : eval::collect_report({runs.begin(), runs.end()}, options);
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
        for (const auto& run : report.at("runs"))
            for (const auto& [what, pointer] : {std::pair("energy", "/cost/payback_inferences"),
                                                std::pair("carbon", "/cost/payback_carbon_inferences")})
                std::cout << wrapped(payback_text(run, what, pointer, load), 100, 0) << "\n";
    if (accounts.asked()) print_accounts(report, accounts);
    if (line.given("regions")) {
        write_atomically(line.text("regions"), regions_csv(report));
        std::cout << "regions " << line.text("regions") << "\n";
    }
    for (const auto& file : written) std::cout << "report  " << file.string() << "\n";
    return kDone;
}

}  // namespace coppice::cli
