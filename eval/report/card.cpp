// A model card: what a hub reads (YAML front matter with model-index and co2_eq_emissions in grams) and what people
// read. Of one run, about its final model.
#include <algorithm>
#include <map>

#include <coppice/error.h>
#include <coppice/report.h>

#include "report/view.h"

namespace coppice::eval {
namespace {

using namespace report;

// A JSON string is a YAML string.
std::string yaml_text(const std::string& text) {
    return Json(printable(text)).dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string slug(const std::string& text) {
    std::string out;
    for (const char c : text)
        if (std::isalnum(static_cast<unsigned char>(c)))
            out += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
        else if (!out.empty() && out.back() != '-')
            out += '-';
    if (!out.empty() && out.back() == '-') out.pop_back();
    return out.empty() ? "unknown" : out;
}

std::string stem(const std::string& path) {
    const size_t slash = path.find_last_of("/\\");
    const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
    const size_t dot = name.rfind('.');
    return dot == std::string::npos || dot == 0 ? name : name.substr(0, dot);
}

// The hub's names of metrics, where they differ.
std::string hub_metric(const std::string& metric) {
    static const std::map<std::string, std::string> names = {{"top1", "accuracy"},      {"top5", "top_5_accuracy"},
                                                             {"spearman", "spearmanr"}, {"pearson", "pearsonr"},
                                                             {"auc", "roc_auc"},        {"loss", "loss"}};
    const auto found = names.find(metric);
    return found == names.end() ? metric : found->second;
}

// The hub's task, as far as the recipe says it; empty where it does not.
std::string hub_task(const Run& run) {
    const std::string task = text_member(*run.manifest, "task");
    const std::string format = text_member(member(member(*run.manifest, "recipe"), "data"), "format");
    if (task == "similarity") return "sentence-similarity";
    if (task == "classification" && (format == "cifar10" || format == "idx" || format == "folder"))
        return "image-classification";
    if (task == "regression" && format == "csv") return "time-series-forecasting";
    return {};
}

std::string front_matter(const Run& run, const std::string& generator) {
    const Stage& model = *run.final;
    std::vector<std::string> tags = {"torchscript", "coppice", "model-compression"};
    for (const Stage* stage : run.stages) {
        const std::string family = stage->name.substr(0, stage->name.find('.'));
        static const std::map<std::string, std::string> known = {{"prune", "pruning"},
                                                                 {"lowrank", "low-rank-factorization"},
                                                                 {"quantize", "quantization"},
                                                                 {"distill", "knowledge-distillation"}};
        const auto found = known.find(family);
        if (found != known.end() && stage->kept && std::find(tags.begin(), tags.end(), found->second) == tags.end())
            tags.push_back(found->second);
    }
    std::string out = "---\n# License, language and datasets are for the author to add.\nlibrary_name: pytorch\n";
    const std::string task = hub_task(run);
    if (!task.empty()) out += "pipeline_tag: " + task + "\n";
    out += "tags:\n";
    for (const auto& tag : tags) out += "- " + tag + "\n";

    const Quality& quality = model.quality;
    const std::string name = stem(text_member(member(*run.manifest, "model"), "path"));
    if (quality.available) {
        std::string data = quality.data.empty() ? "unnamed data" : quality.data;
        out += "model-index:\n- name: " + yaml_text(name.empty() ? run.folder : name) +
               "\n  results:\n  - task:\n      type: " + (task.empty() ? "other" : task) +
               "\n    dataset:\n      name: " + yaml_text(data) + "\n      type: " + slug(data) + "\n";
        if (!quality.split.empty()) out += "      split: " + yaml_text(quality.split) + "\n";
        out += "    metrics:\n";
        const auto metric = [&out](const std::string& key, const Figure& figure) {
            if (!figure.value) return;
            out += "    - type: " + slug(hub_metric(key)) + "\n      name: " + yaml_text(metric_name(key)) +
                   "\n      value: " + exact(*figure.value) + "\n";
        };
        metric(quality.metric, figure_of(member(member(*model.measurement, "quality"), "figure")));
        const Json& more = member(*model.measurement, "metrics");
        if (more.is_object())
            for (const auto& [key, figure] : more.items())
                if (key != quality.metric) metric(key, figure_of(figure));
    }

    const Figure carbon = total_compression(run, "carbon_g"), energy = total_compression(run, "energy_j");
    if (carbon.value) {
        const Json& grid = member(*model.measurement, "carbon");
        const Json& machine = member(*model.measurement, "environment");
        std::string source = generator + ": compression only, training of the original is not included; energy " +
                             energy.provenance + ", carbon " + carbon.provenance + " (" +
                             text_member(grid, "grid_g_per_kwh", "?") + " g/kWh, PUE " + text_member(grid, "pue", "1") +
                             ")";
        out += "co2_eq_emissions:\n  emissions: " + exact(*carbon.value) + "  # grams\n  source: " + yaml_text(source) +
               "\n  training_type: fine-tuning\n";
        if (const auto zone = text_member(grid, "grid"); !zone.empty() && zone != "custom")
            out += "  geographical_location: " + yaml_text(zone) + "\n";
        if (const auto cpu = text_member(machine, "cpu"); !cpu.empty())
            out +=
                "  hardware_used: " + yaml_text(cpu + ", " + text_member(machine, "threads", "?") + " threads") + "\n";
    } else {
        out += "# co2_eq_emissions is not known: " + printable(carbon.reason) + "\n";
    }
    return out + "---\n\n";
}

std::string marked(const Figure& figure) {
    return figure.value ? quantity(figure) + " " + provenance_mark(figure.provenance) : "–";
}

std::string interval_text(const Figure& figure) {
    return figure.interval
               ? quantity(figure.interval->first, figure.unit) + " to " + quantity(figure.interval->second, figure.unit)
               : "";
}

std::string what_was_done(const Run& run) {
    std::string out =
        "## What was done to the model\n\n| stage | options | result | kept |\n| --- | --- | --- | --- |\n";
    for (const Stage* stage : run.stages) {
        if (stage->is_baseline) continue;
        std::string options;
        const Json& set = member(*stage->stage, "options");
        if (set.is_object())
            for (const auto& [key, value] : set.items()) {
                const std::string text = text_of(value);
                if (text.empty()) continue;
                options += (options.empty() ? "" : ", ") + key + ": " + text;
            }
        out += "| " + escape_markdown(stage->name) + " | " + escape_markdown(shortened(options, 200)) + " | " +
               escape_markdown(stage->verdict) + " | " + (stage->kept ? "yes" : "no") + " |\n";
    }
    return out + "\n";
}

std::string quality_section(const Run& run) {
    const Stage& model = *run.final;
    const Quality& quality = model.quality;
    if (!quality.available) return "## Quality\n\nNot measured: " + escape_markdown(quality.reason) + ".\n\n";
    std::string out = "## Quality\n\nOn " + escape_markdown(quality.data.empty() ? "unnamed data" : quality.data) +
                      (quality.split.empty() ? "" : " (" + escape_markdown(quality.split) + ")") + ".\n\n" +
                      "| metric | original | this model | 95 % interval |\n| --- | ---: | ---: | --- |\n";
    const Json& metrics = member(*model.measurement, "metrics");
    const auto row = [&](const std::string& key, const Figure& before, const Figure& after) {
        if (after.value)
            out += "| " + escape_markdown(metric_name(key)) + " | " + marked(before) + " | " + marked(after) + " | " +
                   interval_text(after) + " |\n";
    };
    const auto of = [](const Stage* stage, const std::string& key) {
        return stage ? figure_of(member(member(*stage->measurement, "metrics"), key)) : Figure();
    };
    if (metrics.is_object() && metrics.contains(quality.metric)) {
        row(quality.metric, of(run.baseline, quality.metric), of(&model, quality.metric));
        for (const auto& [key, value] : metrics.items())
            if (key != quality.metric) row(key, of(run.baseline, key), figure_of(value));
    } else {
        row(quality.metric,
            run.baseline ? figure_of(member(member(*run.baseline->measurement, "quality"), "figure")) : Figure(),
            figure_of(member(member(*model.measurement, "quality"), "figure")));
    }
    return out + "\n";
}

std::string cost_section(const View& view, const Run& run) {
    std::string out = "## Cost of an inference\n\n" +
                      (run.final->simulated ? std::string("This model is ") + kSimulatedMeans + ".\n\n" : "") +
                      "| measure | original | this model | change |\n| --- | ---: | ---: | --- |\n";
    for (const auto& measure : view.measures) {
        const Figure after = run.final->on(measure);
        if (!after.value) continue;
        out += "| " + measure.name + " | " + (run.baseline ? marked(run.baseline->on(measure)) : "–") + " | " +
               marked(after) + " | " + compared(*run.final, measure) + " |\n";
    }
    out += "\nMarks:";
    for (const auto& name : provenances())
        if (name != "unavailable") out += " " + provenance_mark(name) + " " + name + ",";
    out += " – unavailable. Changes of time come from interleaved pairs.\n\n## Cost of making it\n\n";
    const auto line = [&out](const char* name, const Figure& figure, const std::string& noun) {
        out += std::string("- ") + name + ": " +
               (figure.value ? marked(figure) + noun : "not known (" + escape_markdown(figure.reason) + ")");
        if (figure.interval) out += ", 95 %: " + interval_text(figure);
        out += "\n";
    };
    line("Time", total_compression(run, "seconds"), "");
    line("Energy", total_compression(run, "energy_j"), "");
    line("Carbon", total_compression(run, "carbon_g"), " CO2e");
    line("Its energy is earned back after", payback(run), " inferences");
    line("Its carbon is earned back after", payback(run, "g"), " inferences");
    const Json& grid = member(*run.final->measurement, "carbon");
    if (const auto text = text_member(grid, "attribution"); !text.empty())
        out += "- Grid: " + escape_markdown(text_member(grid, "grid")) + ", " +
               escape_markdown(text_member(grid, "grid_g_per_kwh")) + " g/kWh, " +
               escape_markdown(text_member(grid, "year")) + ". " + escape_markdown(text) + "\n";
    return out + "\nTraining of the original is not included.\n\n";
}

std::string limits(const View& view, const Run& run) {
    const Stage& model = *run.final;
    std::string out = "## Limits\n\n";
    const auto say = [&out](const std::string& text) { out += "- " + text + "\n"; };
    if (model.quality.available) {
        std::string on = model.quality.examples ? " (" + fixed(*model.quality.examples, 0) + " examples)" : "";
        say("Quality is known on " + escape_markdown(model.quality.data.empty() ? "one data set" : model.quality.data) +
            on +
            " only. How single groups, other data, rare classes or attacks fare was not measured; compression can "
            "change "
            "them more than the average.");
    } else {
        say("Its quality was not measured.");
    }
    const Figure agreement = figure_of(member(member(*model.measurement, "metrics"), "agreement"));
    if (agreement.value && agreement.unit == "ratio")
        say("It gives another answer than the original on " + fixed(100 * (1 - *agreement.value), 2) +
            " % of the examples.");
    const Json& machine = member(*model.measurement, "environment");
    say("Times and energies hold for " + escape_markdown(text_member(machine, "cpu", "one machine")) + ", " +
        escape_markdown(text_member(machine, "threads", "?")) + " threads" +
        (member(machine, "virtual_machine") == true ? ", in a virtual machine" : "") +
        "; on other hardware the ratios are others.");
    if (const Figure energy = model.figure("energy_per_inference_j");
        energy.provenance == "modelled" || energy.provenance == "assumed") {
        say("Energy was not measured but modelled (" + escape_markdown(energy.method) + ")" +
            (energy.systematic_ratio
                 ? "; the truth may lie between " + number(energy.systematic_ratio->first, 2) + " and " +
                       number(energy.systematic_ratio->second, 2) + " times the figures. Ratios are surer than values"
                 : "") +
            ".");
    }
    bool int8 = false;
    for (const Stage* stage : run.stages)
        int8 = int8 || (stage->kept && (stage->name == "quantize.static" || stage->name == "quantize.dynamic"));
    if (int8)
        say("It uses int8 kernels of the " + escape_markdown(text_member(machine, "engine", "CPU")) +
            " engine: it runs on CPUs, and its speed depends on their int8 instructions.");
    for (const Latency& latency : model.latencies)
        if (!latency.steady) {
            say("Some times did not reach a steady state; take them as rough figures.");
            break;
        }
    const Json& warnings = member(*view.report, "warnings");
    if (warnings.is_array())
        for (const auto& warning : warnings) say(escape_markdown(text_of(warning)));
    return out + "\n";
}

std::string usage(const Run& run) {
    const std::string version = text_member(*run.manifest, "libtorch");
    return "## How to use it\n\nA TorchScript file that stock LibTorch" +
           (version.empty() ? "" : " " + escape_markdown(version)) +
           " loads without Coppice. Inputs and outputs are those of the original.\n\n"
           "```cpp\nauto model = torch::jit::load(\"model.pt\");\nmodel.eval();\nauto output = "
           "model.forward({input});\n```\n\n```python\nmodel = torch.jit.load(\"model.pt\").eval()\noutput = "
           "model(input)\n```\n\n";
}

}  // namespace

std::string model_card(const Json& json) {
    const View view = make_view(json);
    if (view.runs.size() != 1)
        throw InvalidArgument(
            "report card",
            "a model card is about one model, and there are " + std::to_string(view.runs.size()) + " runs",
            "Make a report of a single run.");
    const Run& run = view.runs.front();
    if (!run.final)
        throw InvalidArgument("report card", "the folder holds several models, and none of them is the result",
                              "Make the card of the run that made the model.");
    std::string out = front_matter(run, text_member(json, "generated_by", "coppice"));
    out += "# " + escape_markdown(view.title) + "\n\n";
    if (const auto summary = text_member(json, "summary"); !summary.empty()) out += escape_markdown(summary) + "\n\n";
    if (const auto sha = text_member(member(*run.manifest, "model"), "sha256"); !sha.empty())
        out += "The original: `" + escape_markdown(stem(text_member(member(*run.manifest, "model"), "path"))) +
               "`, SHA-256 `" + escape_markdown(sha) + "`.\n\n";
    return out + what_was_done(run) + quality_section(run) + cost_section(view, run) + usage(run) + limits(view, run) +
           "Made by " + escape_markdown(text_member(json, "generated_by", "coppice")) + ".\n";
}

}  // namespace coppice::eval
