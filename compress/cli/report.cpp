// coppice report: runs to HTML, JSON, CSV, Markdown.
#include <coppice/report.h>

#include <iostream>
#include <sstream>

#include "commands.h"

namespace coppice::cli {

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
        "title", "heading of the report", cxxopts::value<std::string>()->default_value(""), "TEXT");
    if (!line.parse(arguments, "run")) return kDone;
    const auto runs = line.texts("run");
    if (runs.empty())
        line.fail("no run directory is given", "Write coppice report runs/name; see coppice report --help.");

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
    for (const auto& file : written) std::cout << "report  " << file.string() << "\n";
    return kDone;
}

}  // namespace coppice::cli
