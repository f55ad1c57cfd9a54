// RFC 4180: comma, CRLF, quotes doubled. One row per stage, five columns per figure, all figures in stored units.
#include <algorithm>

#include <coppice/report.h>

#include "report/view.h"

namespace coppice::eval {
namespace {

using namespace report;

std::string quoted(const std::string& text) {
    if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"') out += '"';
        out += c;
    }
    return out + "\"";
}

class Row {
public:
    void text(const std::string& value) {
        line_ += (line_.empty() && !begun_ ? "" : ",") + quoted(value), begun_ = true;
    }
    void figure(const Figure& figure) {
        text(figure.value ? exact(*figure.value) : "");
        text(figure.unit);
        text(figure.provenance);
        text(figure.interval ? exact(figure.interval->first) : "");
        text(figure.interval ? exact(figure.interval->second) : "");
    }
    std::string take() { return std::move(line_) + "\r\n"; }

private:
    std::string line_;
    bool begun_ = false;
};

Figure quality_figure(const Quality& quality) {
    Figure figure;
    figure.unit = quality.unit.empty() ? "1" : quality.unit;
    if (!quality.available) return figure;
    figure.value = quality.points.value;
    figure.provenance = quality.provenance;
    if (quality.points.low < quality.points.high) figure.interval = std::pair(quality.points.low, quality.points.high);
    return figure;
}

}  // namespace

std::string csv(const Json& json) {
    const View view = make_view(json);
    // Every figure that some stage has, in the order of first appearance.
    std::vector<std::string> metrics, figures;
    const auto collect = [](const Json& object, std::vector<std::string>& names) {
        if (!object.is_object()) return;
        for (const auto& [name, value] : object.items())
            if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    };
    std::vector<std::pair<int64_t, int64_t>> settings;
    for (const auto& stage : view.stages) {
        collect(member(*stage.measurement, "metrics"), metrics);
        collect(member(*stage.measurement, "figures"), figures);
        for (const auto& latency : stage.latencies)
            if (std::find(settings.begin(), settings.end(), std::pair(latency.batch, latency.threads)) ==
                settings.end())
                settings.emplace_back(latency.batch, latency.threads);
    }
    const std::vector<std::string> cost = {"seconds", "cpu_seconds", "energy_j", "carbon_g"};
    const Latency none;

    Row head;
    for (const char* name : {"run", "stage", "name", "kept", "simulated", "verdict", "quality_metric"}) head.text(name);
    const auto name_figure = [&head](const std::string& name) {
        for (const char* part : {"", "_unit", "_provenance", "_low", "_high"}) head.text(name + part);
    };
    name_figure("quality_points");
    for (const auto& name : metrics) name_figure("metric_" + name);
    for (const auto& name : figures) name_figure(name);
    for (const auto& [batch, threads] : settings) {
        const std::string suffix = "_b" + std::to_string(batch) + "_t" + std::to_string(threads);
        for (const char* name :
             {"latency_p50_s", "latency_p90_s", "latency_p99_s", "throughput_per_s", "latency_ratio_to_baseline"})
            name_figure(name + suffix);
    }
    for (const auto& name : cost) name_figure("compression_" + name);
    // What the carbon rests on; in measurement.json by the second name.
    const std::vector<std::pair<const char*, const char*>> basis = {{"grid", "grid"},
                                                                    {"grid_g_per_kwh", "grid_g_per_kwh"},
                                                                    {"grid_year", "year"},
                                                                    {"grid_basis", "basis"},
                                                                    {"grid_attribution", "attribution"},
                                                                    {"pue", "pue"},
                                                                    {"embodied_kg", "embodied_kg"}};
    for (const auto& [name, key] : basis) head.text(name);
    std::string out = head.take();

    for (const auto& stage : view.stages) {
        Row row;
        row.text(stage.run->folder);
        row.text(stage.folder);
        row.text(stage.name);
        row.text(stage.kept ? "yes" : "no");
        row.text(stage.simulated ? "yes" : "no");
        row.text(stage.verdict);
        row.text(stage.quality.metric);
        row.figure(quality_figure(stage.quality));
        for (const auto& name : metrics) row.figure(figure_of(member(member(*stage.measurement, "metrics"), name)));
        for (const auto& name : figures) row.figure(stage.figure(name));
        for (const auto& [batch, threads] : settings) {
            const Latency* found = stage.latency(batch, threads);
            const Latency& latency = found ? *found : none;
            for (const Figure* figure : {&latency.p50, &latency.p90, &latency.p99, &latency.throughput, &latency.ratio})
                row.figure(*figure);
        }
        for (const auto& name : cost) row.figure(figure_of(member(member(*stage.measurement, "compression"), name)));
        for (const auto& [name, key] : basis) row.text(text_member(member(*stage.measurement, "carbon"), key));
        out += row.take();
    }
    return out;
}

}  // namespace coppice::eval
