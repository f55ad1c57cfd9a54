// A section for a README or a model card: sentence, table, method, carbon attribution.
#include <coppice/report.h>

#include "report/view.h"

namespace coppice::eval {
namespace {

using namespace report;

std::string cell(const std::string& text, const std::string& provenance) {
    return provenance.empty() || provenance == "unavailable" ? text : text + " " + provenance_mark(provenance);
}

}  // namespace

std::string markdown(const Json& json) {
    const View view = make_view(json);
    std::string out = "## Compression report: " + escape_markdown(view.title) + "\n\n";
    if (const auto summary = text_member(json, "summary"); !summary.empty()) out += escape_markdown(summary) + "\n\n";
    const Json& warnings = member(json, "warnings");
    if (warnings.is_array() && !warnings.empty()) {
        for (const auto& warning : warnings) out += "> Warning: " + escape_markdown(text_of(warning)) + "\n";
        out += "\n";
    }
    std::string metric = "Quality";
    for (auto stage = view.stages.rbegin(); stage != view.stages.rend(); ++stage)
        if (stage->quality.available) metric = stage->quality.name;
    std::string head = "| Stage | " + escape_markdown(metric) + " | Difference |", rule = "| --- | ---: | ---: |";
    for (const auto& measure : view.measures) {
        head += " " + measure.name + " |";
        rule += " ---: |";
    }
    out += head + " Kept |\n" + rule + " --- |\n";
    for (const auto& stage : view.stages) {
        const bool compare =
            !stage.is_baseline && stage.baseline && stage.baseline->quality.available && stage.quality.available;
        out += "| " + escape_markdown(stage.label) + " | " +
               (stage.quality.available
                    ? cell(shown_points(stage.quality, stage.quality.points.value), stage.quality.provenance)
                    : "–") +
               " | " +
               (compare
                    ? shown_difference(stage.quality, stage.quality.points.value - stage.baseline->quality.points.value)
                    : "") +
               " |";
        for (const auto& measure : view.measures) {
            const Figure figure = stage.on(measure);
            out += " " + cell(quantity(figure), figure.provenance);
            if (const std::string difference = compared(stage, measure); !difference.empty())
                out += " (" + difference + ")";
            out += " |";
        }
        out += std::string(" ") + (stage.is_baseline ? "" : stage.kept ? "yes" : "no") + " |\n";
    }
    out += "\nMarks:";
    for (const auto& name : provenances())
        if (name != "unavailable") out += " " + provenance_mark(name) + " " + name + ",";
    out += " – unavailable. Latency is the median; its difference is the paired ratio to the baseline.\n";
    for (const auto& run : view.runs) {
        if (run.stages.empty()) continue;
        const Figure seconds = total_compression(run, "seconds"), energy = total_compression(run, "energy_j");
        const Figure carbon = total_compression(run, "carbon_g"), after = payback(run), clean = payback(run, "g");
        if (seconds.value) {
            out += "\nCompressing" + (run.name.empty() ? "" : " (" + escape_markdown(run.name) + ")") + " took " +
                   cell(quantity(seconds), seconds.provenance);
            if (energy.value) out += ", " + cell(quantity(energy), energy.provenance);
            if (carbon.value) out += ", " + cell(quantity(carbon) + " CO2e", carbon.provenance);
            if (after.value)
                out += "; its energy is earned back after " + cell(quantity(after), after.provenance) + " inferences";
            if (clean.value)
                out += std::string(after.value ? "," : ";") + " its carbon after " +
                       cell(quantity(clean), clean.provenance);
            out += ".\n";
        }
        const Json& source = member(*run.stages.front()->measurement, "carbon");
        if (const auto text = text_member(source, "attribution"); !text.empty())
            out += "\nGrid: " + escape_markdown(text_member(source, "grid")) + ", " +
                   escape_markdown(text_member(source, "grid_g_per_kwh")) + " g/kWh, " +
                   escape_markdown(text_member(source, "year")) + ". " + escape_markdown(text) + "\n";
    }
    return out;
}

}  // namespace coppice::eval
