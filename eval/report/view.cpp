#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include <coppice/error.h>
#include <coppice/eval.h>

#include "report/view.h"

namespace coppice::eval::report {
namespace {

Quality quality_of(const Json& json) {
    Quality quality;
    quality.metric = text_member(json, "metric");
    quality.name = metric_name(quality.metric);
    quality.split = text_member(json, "split");
    quality.data = text_member(json, "data");
    quality.examples = number_member(json, "examples");
    const Figure figure = figure_of(member(json, "figure"));
    quality.provenance = figure.provenance;
    quality.method = figure.method;
    quality.reason = figure.reason;
    const auto points = number_member(json, "points");
    const auto value = figure.value ? figure.value : number_member(json, "value");
    const Json& direction = member(json, "higher_is_better");
    quality.loss = direction.is_boolean() && !direction.get<bool>();
    // Points are the value times 100 (shares), -1 (losses) or 1: the interval is stated for the value and follows.
    double scale = quality.loss ? -1 : figure.unit == "ratio" ? 100 : 1;
    if (points && value && *value != 0) {
        const double seen = *points / *value;
        for (const double known : {100.0, -1.0, 1.0})
            if (std::abs(seen - known) < 1e-3 * std::abs(known)) scale = known;
    }
    quality.unit = scale == 100 ? "%" : "";
    if (!points && !value) return quality;
    quality.available = true;
    if (quality.provenance == "unavailable") quality.provenance = "derived";
    const double center = points ? *points : scale * *value;
    quality.points = Uncertain(center);
    if (figure.interval) {
        const double a = scale * figure.interval->first, b = scale * figure.interval->second;
        quality.points = Uncertain(center, std::min({a, b, center}), std::max({a, b, center}));
    }
    return quality;
}

std::vector<Latency> latencies_of(const Json& list) {
    std::vector<Latency> result;
    if (!list.is_array()) return result;
    for (const auto& json : list) {
        Latency latency;
        latency.batch = static_cast<int64_t>(number_member(json, "batch").value_or(0));
        latency.threads = static_cast<int64_t>(number_member(json, "threads").value_or(0));
        latency.p50 = figure_of(member(json, "p50_s"));
        latency.p90 = figure_of(member(json, "p90_s"));
        latency.p99 = figure_of(member(json, "p99_s"));
        latency.throughput = figure_of(member(json, "throughput_per_s"));
        latency.ratio = figure_of(member(json, "ratio_to_baseline"));
        latency.disturbed = figure_of(member(json, "disturbed_ratio"));
        const Json& steady = member(json, "steady");
        latency.steady = !steady.is_boolean() || steady.get<bool>();
        result.push_back(latency);
    }
    return result;
}

std::vector<Measure> measures_of(const std::deque<Stage>& stages) {
    std::vector<Measure> all;
    const Words less = {"less", "more"}, fewer = {"fewer", "more"}, smaller = {"smaller", "larger"};
    // Worth a column of their own only where they say something else than the measure that they refine: what is zero,
    // what is not float32.
    struct Refined {
        std::string key, of;
        double factor;
    };
    static const std::vector<Refined> kRefined = {
        {"nonzero_parameters", "parameters", 1}, {"nonzero_macs", "macs", 1}, {"bit_operations", "macs", 32 * 32}};
    all.push_back({"energy_per_inference_j", "Energy per inference", "J", less, 0, 0});
    std::set<std::pair<int64_t, int64_t>> settings;
    std::set<int64_t> threads;
    for (const auto& stage : stages)
        for (const auto& latency : stage.latencies) {
            settings.insert({latency.batch, latency.threads});
            threads.insert(latency.threads);
        }
    for (const auto& [batch, count] : settings) {
        Measure measure;
        measure.key = "latency_b" + std::to_string(batch) + "_t" + std::to_string(count);
        measure.name = "Latency, batch " + std::to_string(batch);
        if (threads.size() > 1) measure.name += ", " + plural(static_cast<size_t>(count), "thread", "threads");
        measure.unit = "s";
        measure.words = {"faster", "slower"};
        measure.batch = batch;
        measure.threads = count;
        all.push_back(measure);
    }
    all.push_back({"file_bytes", "File size", "B", smaller, 0, 0});
    all.push_back({"macs", "Multiply-adds (MACs)", "1", fewer, 0, 0});
    all.push_back({"parameters", "Parameters", "1", fewer, 0, 0});
    all.push_back({"carbon_per_inference_g", "Carbon per inference", "g", less, 0, 0});
    all.push_back({"peak_memory_bytes", "Peak memory of a run", "B", less, 0, 0});
    all.push_back({"power_w", "Average power", "W", less, 0, 0});
    all.push_back({"nonzero_parameters", "Non-zero parameters", "1", fewer, 0, 0});
    all.push_back({"nonzero_macs", "MACs with non-zero weights", "1", fewer, 0, 0});
    all.push_back({"bit_operations", "Bit operations", "1", fewer, 0, 0});
    all.push_back({"weight_bytes", "Weights in memory", "B", smaller, 0, 0});
    std::vector<Measure> present;
    for (const auto& measure : all) {
        const auto refined = std::find_if(kRefined.begin(), kRefined.end(),
                                          [&measure](const Refined& row) { return row.key == measure.key; });
        bool any = false, differs = refined == kRefined.end();
        for (const auto& stage : stages) {
            const Figure figure = stage.on(measure);
            any |= figure.value.has_value();
            if (differs || !figure.value) continue;
            const auto plain = stage.figure(refined->of).value;
            differs = !plain || std::abs(*figure.value - refined->factor * *plain) > 1e-9 * *figure.value;
        }
        if (any && differs) present.push_back(measure);
    }
    return present;
}

}  // namespace

std::string metric_name(const std::string& metric) {
    static const std::map<std::string, std::string> names = {{"top1", "Top-1 accuracy"},
                                                             {"top5", "Top-5 accuracy"},
                                                             {"accuracy", "Accuracy"},
                                                             {"loss", "Loss"},
                                                             {"mse", "Mean squared error"},
                                                             {"mae", "Mean absolute error"},
                                                             {"spearman", "Spearman correlation"},
                                                             {"pearson", "Pearson correlation"},
                                                             {"perplexity", "Perplexity"},
                                                             {"auc", "Area under the ROC curve"},
                                                             {"balanced_accuracy", "Balanced accuracy"},
                                                             {"ece", "Calibration error"},
                                                             {"f1", "Macro F1"},
                                                             {"kl_to_baseline", "Divergence from the baseline"},
                                                             {"log_loss", "Log loss"},
                                                             {"mape", "Mean relative error"},
                                                             {"mean_iou", "Mean intersection over union"},
                                                             {"r2", "R\u00b2"},
                                                             {"agreement", "Agreement with the baseline"}};
    const auto found = names.find(metric);
    return found == names.end() ? (metric.empty() ? "Quality" : metric) : found->second;
}

std::string shown_points(const Quality& quality, double points) {
    if (quality.unit == "%") return fixed(points, 2) + " %";
    return number(quality.loss ? -points : points, 4);
}

std::string shown_difference(const Quality& quality, double difference) {
    const double shown = quality.unit != "%" && quality.loss ? -difference : difference;
    std::string text = quality.unit == "%" ? fixed(std::abs(shown), 2) : number(std::abs(shown), 3);
    if (text.find_first_of("123456789") == std::string::npos) return quality.unit == "%" ? "0.00" : "0";
    return (shown < 0 ? "−" : "+") + text;
}

Figure Stage::figure(const std::string& key) const {
    return figure_of(member(member(*measurement, "figures"), key));
}

const Latency* Stage::latency(int64_t batch, int64_t threads) const {
    for (const auto& latency : latencies)
        if (latency.batch == batch && latency.threads == threads) return &latency;
    return nullptr;
}

Figure Stage::on(const Measure& measure) const {
    if (measure.batch == 0) return figure(measure.key);
    const Latency* found = latency(measure.batch, measure.threads);
    return found ? found->p50 : Figure();
}

std::vector<std::string> Stage::warnings() const {
    std::vector<std::string> result;
    for (const Json* source : {stage, measurement}) {
        const Json& list = member(*source, "warnings");
        if (list.is_array())
            for (const auto& warning : list) result.push_back(text_of(warning));
    }
    for (const auto& latency : latencies)
        if (!latency.steady)
            result.push_back("The latency at batch " + std::to_string(latency.batch) + " with " +
                             plural(static_cast<size_t>(latency.threads), "thread", "threads") +
                             " did not reach a steady state; take it as a rough figure.");
    return result;
}

const Measure* View::measure(const std::string& key) const {
    for (const auto& measure : measures)
        if (measure.key == key) return &measure;
    return nullptr;
}

void check_report(const Json& report) {
    const std::string format = text_member(report, "format");
    if (format != "coppice-report")
        throw InvalidArgument("report",
                              format.empty() ? "this JSON is not a report" : "the format is \"" + format + "\"",
                              "Give the report.json of a run, whose format is \"coppice-report\".");
    const auto version = number_member(report, "version");
    if (!version || *version != 1)
        throw InvalidArgument("report", "its version is " + text_of(member(report, "version")) + ", known is 1",
                              "Use the Coppice that wrote it.");
    if (!member(report, "runs").is_array())
        throw InvalidArgument("report", "\"runs\" is not a list", "Make the report again with `coppice report`.");
}

bool comparable_quality(const Stage& first, const Stage& stage) {
    return !stage.quality.available ||
           (stage.quality.metric == first.quality.metric && stage.quality.data == first.quality.data);
}

View make_view(const Json& report) {
    check_report(report);
    View view;
    view.report = &report;
    view.title = text_member(report, "title", "Coppice report");
    const Json& runs = member(report, "runs");
    for (size_t r = 0; r < runs.size(); ++r) {
        Run& run = view.runs.emplace_back();
        run.json = &runs[r];
        run.manifest = &member(runs[r], "manifest");
        run.folder = text_member(runs[r], "folder");
        run.name = runs.size() > 1 ? run.folder : "";
        run.side_by_side = text_member(*run.manifest, "kind") == "eval";
        const Json& stages = member(runs[r], "stages");
        if (!stages.is_array()) continue;
        bool simulated = false;  // the model that the next stage starts from
        for (size_t s = 0; s < stages.size(); ++s) {
            Stage& stage = view.stages.emplace_back();
            stage.run = &run;
            stage.index = s;
            stage.measurement = &member(stages[s], "measurement");
            stage.stage = &member(stages[s], "stage");
            stage.folder = text_member(stages[s], "folder");
            stage.id = std::to_string(r) + "/" + stage.folder;
            stage.name = text_member(stages[s], "name", stage.folder);
            // The folder's number is what the reader finds on disk, also when a stage before is missing.
            const size_t digits = std::min(stage.folder.find_first_not_of("0123456789"), stage.folder.size());
            std::string position = digits ? stage.folder.substr(0, digits) : std::to_string(s);
            position.erase(0, std::min(position.find_first_not_of('0'), position.size() - 1));
            stage.is_baseline = stage.name == "baseline" || position == "0";
            stage.position = stage.is_baseline ? "" : position;
            stage.label = stage.is_baseline || run.side_by_side ? stage.name : position + " " + stage.name;
            if (!run.name.empty()) stage.label = run.name + " · " + stage.label;
            const Json& kept = member(*stage.stage, "kept");
            stage.kept = !kept.is_boolean() || kept.get<bool>();
            stage.verdict = text_member(*stage.stage, "verdict");
            stage.simulated = simulated || member(member(*stage.stage, "facts"), "simulated") == Json(true);
            if (stage.simulated) stage.label += " (simulated)";
            if (stage.kept && !run.side_by_side) simulated = stage.simulated;
            stage.quality = quality_of(member(*stage.measurement, "quality"));
            stage.latencies = latencies_of(member(*stage.measurement, "latency"));
            run.stages.push_back(&stage);
            if (stage.is_baseline && !run.baseline) run.baseline = &stage;
            if (stage.kept && !run.side_by_side) run.final = &stage;
        }
    }
    for (auto& stage : view.stages) {
        stage.baseline = stage.run->baseline;
        stage.is_final = stage.run->final == &stage;
    }
    bool paired = view.runs.size() == 1;
    for (const auto& stage : view.stages)
        paired = paired && stage.baseline && comparable_quality(*stage.baseline, stage) &&
                 (stage.is_baseline || !stage.quality.available || paired_difference(stage));
    for (auto& stage : view.stages) {
        stage.placed = stage.quality.points;
        if (!paired || !stage.quality.available) continue;
        const auto known = stage.is_baseline ? PairedDifference() : *paired_difference(stage);
        const double value = stage.placed.value;
        stage.placed = Uncertain(value, value - std::max(0.0, known.below), value + std::max(0.0, known.above));
    }
    view.measures = measures_of(view.stages);
    for (const auto& measure : view.measures) {
        if (measure.batch == 0) continue;
        const auto better = [](const Measure& a, const Measure* b, bool small) {
            if (!b) return true;
            if (a.batch != b->batch) return small ? a.batch < b->batch : a.batch > b->batch;
            return a.threads > b->threads;
        };
        if (better(measure, view.small_batch, true)) view.small_batch = &measure;
        if (better(measure, view.large_batch, false)) view.large_batch = &measure;
    }
    return view;
}

std::optional<PairedDifference> paired_difference(const Stage& stage) {
    const Json& json = member(member(*stage.measurement, "quality"), "paired");
    const auto difference = number_member(json, "difference");
    const Json& ends = member(json, "interval");
    if (!difference || !ends.is_array() || ends.size() != 2 || !ends[0].is_number() || !ends[1].is_number())
        return std::nullopt;
    const double scale = stage.quality.loss ? -1 : stage.quality.unit == "%" ? 100 : 1;
    const double one = scale * ends[0].get<double>(), other = scale * ends[1].get<double>();
    const double center = scale * *difference;
    return PairedDifference{center, center - std::min(one, other), std::max(one, other) - center,
                            number_member(json, "p_value")};
}

Figure paired_ratio(const Stage& stage, const Measure& measure) {
    Figure none;
    none.unit = "1";
    none.reason = "not taken in pairs with the baseline";
    if (measure.batch != 0) {
        const Latency* latency = stage.latency(measure.batch, measure.threads);
        return latency && latency->ratio.value ? latency->ratio : none;
    }
    const bool follows_energy = measure.key == "energy_per_inference_j" || measure.key == "carbon_per_inference_g";
    const auto energy = follows_energy ? stage.figure("energy_ratio_to_baseline") : none;
    return energy.value ? energy : none;
}

Figure relative(const Stage& stage, const Measure& measure) {
    Figure result;
    result.unit = "1";
    result.reason = "not measured for both this stage and the baseline";
    if (!stage.baseline) return result;
    if (const auto paired = paired_ratio(stage, measure); paired.value) return paired;
    const Figure own = stage.on(measure), base = stage.baseline->on(measure);
    if (!own.value || !base.value || !(*base.value > 0)) return result;
    result.value = *own.value / *base.value;
    result.provenance = weakest(weakest(own.provenance, base.provenance), "derived");
    result.method = "value / baseline's value";
    if (&stage != stage.baseline && own.interval && base.interval && base.interval->first > 0)
        result.interval =
            std::pair(own.interval->first / base.interval->second, own.interval->second / base.interval->first);
    return result;
}

std::string compared(const Stage& stage, const Measure& measure) {
    if (stage.is_baseline) return {};
    const Figure ratio = relative(stage, measure);
    if (!ratio.value) return {};
    // Only the paired ratio has an interval of the difference itself; that of two separate figures would hide clear
    // gains.
    if (measure.batch != 0 && ratio.interval && ratio.interval->first <= 1 && ratio.interval->second >= 1)
        return "within noise";
    return compared(*ratio.value, 1.0, measure.words);
}

Figure total_compression(const Run& run, const std::string& key) {
    Figure total;
    total.reason = "no stage recorded it";
    double low = 0, high = 0;
    bool interval = true;
    for (const Stage* stage : run.stages) {
        if (stage->is_baseline) continue;
        const Figure figure = figure_of(member(member(*stage->measurement, "compression"), key));
        if (!figure.value) {
            total.value.reset();
            total.provenance = "unavailable";
            total.reason = "not recorded for " + stage->label;
            return total;
        }
        total.provenance =
            total.value ? weakest(total.provenance, figure.provenance) : weakest(figure.provenance, "derived");
        total.value = total.value.value_or(0) + *figure.value;
        total.unit = figure.unit;
        total.method = "sum over all stages, those not kept included";
        interval &= figure.interval.has_value();
        low += figure.interval ? figure.interval->first : *figure.value;
        high += figure.interval ? figure.interval->second : *figure.value;
    }
    if (total.value && interval) total.interval = std::pair(low, high);
    return total;
}

Figure payback(const Run& run, const std::string& unit) {
    Figure none;
    none.unit = "1";
    none.reason = run.side_by_side ? "the folder holds several models" : "no stage was kept";
    if (run.side_by_side || !run.baseline || !run.final || run.final == run.baseline) return none;
    const auto known = [](const Figure& figure, const std::string& unit) {
        return figure.value && figure.unit != unit
                   ? eval::Figure::unavailable(unit, "a file has it in a unit other than " + unit)
                   : eval::Figure::from_json(to_json(figure));
    };
    const bool carbon = unit == "g";
    const std::string spent = carbon ? "carbon_g" : "energy_j",
                      each = carbon ? "carbon_per_inference_g" : "energy_per_inference_j";
    // One grid factor stands before both sides of the ratio: that of carbon is that of energy.
    auto figure = figure_of(eval::payback(known(total_compression(run, spent), unit),
                                          known(run.baseline->figure(each), unit), known(run.final->figure(each), unit),
                                          known(run.final->figure("energy_ratio_to_baseline"), "ratio"))
                                .to_json());
    if (figure.value) figure.method = (carbon ? "carbon of all stages: " : "energy of all stages: ") + figure.method;
    return figure;
}

}  // namespace coppice::eval::report
