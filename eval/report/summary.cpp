// The sentence on top, and the table at the end of a run.
#include <algorithm>
#include <map>
#include <optional>

#include "report/view.h"

namespace coppice::eval {
namespace {

using namespace report;

std::string machine_of(const Stage& stage) {
    const Json& environment = member(*stage.measurement, "environment");
    std::string text = text_member(environment, "cpu");
    for (const std::string sign : {"(R)", "(TM)"})
        for (size_t at; (at = text.find(sign)) != std::string::npos;) text.erase(at, sign.size());
    if (const auto threads = number_member(environment, "threads"))
        text += (text.empty() ? "" : ", ") + plural(static_cast<size_t>(*threads), "thread", "threads");
    return text;
}

std::string sentence_of(const Run& run, const View& view) {
    const Stage &before = *run.baseline, &after = *run.final;
    std::string text = run.name.empty() ? "" : run.name + ": ";
    if (before.quality.available && after.quality.available && before.quality.metric == after.quality.metric)
        text += after.quality.name + " " + shown_points(before.quality, before.quality.points.value) + " → " +
                shown_points(after.quality, after.quality.points.value);
    else
        text += "Quality unknown";
    std::vector<const Measure*> told = {view.measure("file_bytes"), view.large_batch,
                                        view.measure("energy_per_inference_j")};
    for (const Measure* measure : told) {
        if (!measure) continue;
        const Figure ratio = relative(after, *measure);
        if (!ratio.value || !(*ratio.value > 0)) continue;
        std::string part = compared(after, *measure);
        if (measure->batch != 0)
            part += " at batch " + std::to_string(measure->batch);
        else if (measure->key == "energy_per_inference_j")
            part += " energy per inference";
        else
            part += " file";
        if (part.rfind("within noise", 0) == 0) part = "speed " + part;
        if (ratio.provenance != "measured" && ratio.provenance != "derived") part += " (" + ratio.provenance + ")";
        text += ", " + part;
    }
    if (after.simulated) text += std::string("; ") + kSimulatedMeans;
    return text;
}

// Of models that stand side by side none is the result: the range that they span, against the baseline.
std::string range_of(const Run& run, const View& view) {
    const Stage& before = *run.baseline;
    std::string text = run.name.empty() ? "" : run.name + ": ";
    text += plural(run.stages.size() - 1, "model", "models") + " beside " + before.name;
    const auto range = [&run](auto&& value) {
        std::optional<std::pair<double, double>> result;
        for (const Stage* stage : run.stages)
            if (const std::optional<double> v = stage->is_baseline ? std::nullopt : value(*stage))
                result =
                    result ? std::pair(std::min(result->first, *v), std::max(result->second, *v)) : std::pair(*v, *v);
        return result;
    };
    if (const auto points = range([&before](const Stage& stage) {
            return stage.quality.available && stage.quality.metric == before.quality.metric
                       ? std::optional(stage.quality.points.value)
                       : std::nullopt;
        });
        points && before.quality.available)
        text += ": " + before.quality.name + " " + shown_points(before.quality, points->first) + " to " +
                shown_points(before.quality, points->second) + " (baseline " +
                shown_points(before.quality, before.quality.points.value) + ")";
    const std::pair<const Measure*, std::string> told[] = {
        {view.measure("file_bytes"), "of its file"},
        {view.large_batch, "of its time"},
        {view.measure("energy_per_inference_j"), "of its energy per inference"}};
    for (const auto& [measure, words] : told)
        if (measure)
            if (const auto share =
                    range([&measure = measure](const Stage& stage) { return relative(stage, *measure).value; }))
                text += ", " + number(share->first, 2) + " to " + number(share->second, 2) + " " + words +
                        (measure->batch ? " at batch " + std::to_string(measure->batch) : "");
    return text;
}

}  // namespace

std::string summary_sentence(const Json& json) {
    const View view = make_view(json);
    std::string text, machine;
    for (const auto& run : view.runs) {
        if (run.stages.empty()) continue;
        if (!text.empty()) text += " ";
        if (!run.baseline)
            text += (run.name.empty() ? "" : run.name + ": ") + std::string("The baseline is missing.");
        else if (run.side_by_side && run.stages.size() > 1)
            text += range_of(run, view) + ".";
        else if (run.final == run.baseline || run.side_by_side)
            text += (run.name.empty() ? "" : run.name + ": ") +
                    (run.stages.size() == 1 ? "Only the baseline is finished so far."
                                            : "No stage was kept: the baseline remains the best model.");
        else
            text += sentence_of(run, view) + ".";
        if (machine.empty()) machine = machine_of(*run.stages.back());
    }
    return machine.empty() ? text : text + " Measured on " + machine + ".";
}

std::string reached_sentence(const std::vector<const Json*>& measurements) {
    std::optional<double> least, most, wanted;
    for (const Json* measurement : measurements) {
        const Json& rows = member(*measurement, "latency");
        if (!rows.is_array()) continue;
        for (const auto& row : rows) {
            // The baseline has no ratio to itself.
            if (member(member(row, "ratio_to_baseline"), "interval").is_null()) continue;
            const Json& interval = member(row, "relative_interval");
            const auto reached = number_member(interval, "reached");
            if (!reached) continue;
            least = std::min(least.value_or(*reached), *reached);
            most = std::max(most.value_or(*reached), *reached);
            wanted = number_member(interval, "wanted");
        }
    }
    if (!least) return {};
    const auto percent = [](double ratio) { return number(100 * ratio, 2); };
    std::string text = "Ratios of times are known to ±" + percent(*least);
    if (percent(*most) != percent(*least)) text += " to " + percent(*most);
    text += " %";
    return text + (wanted ? " (asked for: " + percent(*wanted) + " %)." : ".");
}

std::string terminal_table(const Json& json) {
    const View view = make_view(json);
    struct Cell {
        std::string text, provenance;
    };
    struct Column {
        std::string head, second;
        std::vector<Cell> cells;
        bool right = true;
    };
    std::vector<Column> columns_of;
    const auto add = [&](const std::string& head, const std::string& second, auto&& cell) {
        Column column{head, second, {}, true};
        for (const auto& stage : view.stages) column.cells.push_back(cell(stage));
        columns_of.push_back(std::move(column));
    };
    add("Stage", "", [](const Stage& stage) { return Cell{printable(stage.label), ""}; });
    columns_of[0].right = false;
    std::string metric;
    for (const auto& stage : view.stages)
        if (metric.empty() && stage.quality.available)
            metric = stage.quality.metric + (stage.quality.unit.empty() ? "" : ", " + stage.quality.unit);
    add("Quality", printable(metric), [](const Stage& stage) {
        if (!stage.quality.available) return Cell{"–", "unavailable"};
        std::string text = shown_points(stage.quality, stage.quality.points.value);
        if (text.size() > 2 && text.compare(text.size() - 2, 2, " %") == 0) text.resize(text.size() - 2);
        if (!stage.is_baseline && stage.baseline && stage.baseline->quality.available)
            text += " " +
                    shown_difference(stage.quality, stage.quality.points.value - stage.baseline->quality.points.value);
        return Cell{text, stage.quality.provenance};
    });
    const auto add_measure = [&](const Measure* measure, const std::string& head, const std::string& second) {
        if (!measure) return;
        add(head, second, [&](const Stage& stage) {
            const Figure figure = stage.on(*measure), ratio = relative(stage, *measure);
            Cell cell{quantity(figure), figure.provenance};
            if (second.rfind("×", 0) == 0 && !stage.is_baseline && figure.value && ratio.value && *ratio.value > 0)
                cell.text += " " + factor(1 / *ratio.value);
            return cell;
        });
    };
    add_measure(view.measure("file_bytes"), "File size", "× smaller");
    add_measure(view.measure("macs"), "MACs", "");
    if (view.small_batch) add_measure(view.small_batch, "Batch " + std::to_string(view.small_batch->batch), "× faster");
    if (view.large_batch && view.large_batch->batch != view.small_batch->batch)
        add_measure(view.large_batch, "Batch " + std::to_string(view.large_batch->batch), "× faster");
    add_measure(view.measure("energy_per_inference_j"), "Energy", "per inf.");
    add("Kept", "", [](const Stage& stage) { return Cell{stage.is_baseline ? "" : stage.kept ? "yes" : "no", ""}; });
    columns_of.back().right = false;

    // The third line of the head says where a column's figures come from; a figure that differs carries its own mark.
    bool marked = false;
    std::vector<std::vector<std::string>> lines(view.stages.size() + 3);
    for (auto& column : columns_of) {
        std::map<std::string, size_t> counts;
        for (const auto& cell : column.cells)
            if (!cell.provenance.empty() && cell.provenance != "unavailable") ++counts[cell.provenance];
        std::string common;
        for (const auto& name : provenances())
            if (counts.count(name) && (common.empty() || counts[name] > counts[common])) common = name;
        lines[0].push_back(column.head);
        lines[1].push_back(column.second);
        lines[2].push_back(common);
        for (size_t i = 0; i < column.cells.size(); ++i) {
            const Cell& cell = column.cells[i];
            const bool differs =
                !cell.provenance.empty() && cell.provenance != "unavailable" && cell.provenance != common;
            marked |= differs;
            lines[i + 3].push_back(cell.text + (differs ? provenance_mark(cell.provenance) : ""));
        }
    }
    std::vector<size_t> widths;
    size_t total = 0;
    for (size_t c = 0; c < columns_of.size(); ++c) {
        size_t width = 0;
        for (const auto& line : lines) width = std::max(width, columns(line[c]));
        widths.push_back(width);
        total += width + (c ? 2 : 0);
    }
    constexpr size_t kWidth = 100;
    if (total > kWidth) widths[0] = std::max<size_t>(8, widths[0] - std::min(widths[0], total - kWidth));

    std::string out;
    for (const auto& line : lines) {
        std::string row;
        for (size_t c = 0; c < line.size(); ++c) {
            const std::string text = shortened(line[c], widths[c]);
            const std::string space(widths[c] - columns(text), ' ');
            row += (c ? "  " : "") + (columns_of[c].right ? space + text : text + space);
        }
        row.erase(row.find_last_not_of(' ') + 1);
        out += row + "\n";
    }
    if (marked) {
        out += "Marks:";
        for (const auto& name : provenances())
            if (name != "unavailable") out += " " + provenance_mark(name) + " " + name;
        out += "\n";
    }
    // In the table itself long labels are cut.
    std::string simulated;
    for (const auto& stage : view.stages)
        if (stage.simulated)
            simulated += (simulated.empty() ? "Simulated precision, neither smaller nor faster for it: " : ", ") +
                         printable(stage.position.empty() ? stage.name : stage.position + " " + stage.name);
    if (!simulated.empty()) out += simulated + "\n";
    std::vector<const Json*> measurements;
    for (const auto& stage : view.stages) measurements.push_back(stage.measurement);
    if (const auto reached = reached_sentence(measurements); !reached.empty()) out += reached + "\n";
    return out;
}

}  // namespace coppice::eval
