// coppice compress: a recipe, end to end.
#include <coppice/data.h>
#include <coppice/quantize.h>
#include <coppice/report.h>

#include <ATen/Parallel.h>

#include <cmath>
#include <iostream>

#include "commands.h"
#include "recipe.h"

namespace coppice::cli {
namespace {

namespace fs = std::filesystem;

std::string cpu_of(const Json& manifest) {
    if (!manifest.contains("environment") || !manifest["environment"].is_object()) return {};
    return manifest["environment"].value("cpu", std::string());
}

// The meter counts from the start of this process; a stage that an earlier one began has spent more. Energy and carbon
// are scaled by CPU time: an estimate, whatever the meter was.
void add_earlier_attempts(Json& measurement, const StageWork& work) {
    if (!measurement.contains("compression")) return;
    auto& compression = measurement["compression"];
    const auto value = [&](const char* name) {
        return compression.contains(name) && compression[name].contains("value") &&
                       compression[name]["value"].is_number()
                   ? compression[name]["value"].get<double>()
                   : 0.0;
    };
    const double seconds = value("seconds"), cpu = value("cpu_seconds");
    if (work.seconds < seconds + 2 || work.cpu_seconds <= cpu) return;
    const double scale = cpu > 0.05 ? work.cpu_seconds / cpu : 1;
    const auto set = [&](const char* name, double number, const std::string& method) {
        if (!compression.contains(name) || !compression[name]["value"].is_number()) return;
        compression[name]["value"] = number;
        compression[name]["interval"] = nullptr;
        compression[name]["method"] = method;
    };
    const std::string note = "with the attempts that were interrupted, up to their last sign of life";
    set("seconds", work.seconds, "wall clock " + note);
    set("cpu_seconds", work.cpu_seconds, "CPU clock " + note);
    for (const char* name : {"energy_j", "net_energy_j", "carbon_g"}) {
        set(name, value(name) * scale, "scaled by CPU time, " + note);
        if (compression.contains(name) && compression[name].value("provenance", std::string()) != "assumed" &&
            compression[name]["value"].is_number())
            compression[name]["provenance"] = "modelled";
    }
}

void check_data_fit(const Model& model, const DataSplits& data, const std::string& where) {
    for (const auto& dataset : {data.test, data.validation, data.train}) {
        if (!dataset || dataset->size() == 0) continue;
        torch::NoGradGuard no_grad;
        const auto batch = dataset->batch({0});
        try {
            model.forward(batch.inputs);
        } catch (const std::exception& error) {
            throw InvalidArgument(
                where, "the model does not run on the data (" + dataset->description() + "): " + message_of(error),
                "Check format and preparation of the data against what the model was trained on.");
        }
    }
}

void print_plan(const Recipe& recipe, const DataSplits& data, const Model& model) {
    std::cout << to_yaml(recipe.resolved) << "\n";
    for (const auto& note : model.notes()) std::cout << "# model: " << note << "\n";
    const auto splits = data_manifest(data);
    for (const auto& [name, split] : splits.items())
        std::cout << "# data, " << name << ": " << split["description"].get<std::string>() << "\n";
    std::cout << "# " << recipe.stages.size() << " stages can run:";
    for (const auto& stage : recipe.stages) std::cout << " " << stage.name;
    std::cout << ". Nothing was run or written.\n";
}

}  // namespace

int run_compress(const Arguments& arguments) {
    CommandLine line(
        "compress", "RECIPE [options]",
        "Runs a recipe: prunes, factorises, quantizes and re-trains a TorchScript model, measures it after every\n"
        "stage, and writes model.pt, a report and all that led to them into a run directory.",
        "  coppice compress resnet20.yaml --out runs/resnet20 --set stages.0.macs_ratio=0.4\n"
        "  coppice compress resnet20.yaml --out runs/resnet20 --resume\n");
    line.add()("o,out", "run directory (default: runs/<name of the recipe>)", cxxopts::value<std::string>(), "DIR")(
        "resume", "continue the run in that directory after a crash or Ctrl-C")(
        "set", "change a value of the recipe; may be given several times", cxxopts::value<std::vector<std::string>>(),
        "KEY=VALUE")("project", "noted in the run, to sum costs by (coppice report --group-by)",
                     cxxopts::value<std::string>(),
                     "NAME")("user", "the same: on whose account", cxxopts::value<std::string>(), "NAME")(
        "tag", "the same; may be given several times", cxxopts::value<std::vector<std::string>>(), "TAG")(
        "dry-run", "check everything and print the recipe with all defaults; run and write nothing");
    if (!line.parse(arguments, "recipe")) return kDone;
    const auto files = line.texts("recipe");
    if (files.size() != 1)
        line.fail(files.empty() ? "no recipe is given" : "more than one recipe is given: " + files[1],
                  "Write coppice compress recipe.yaml; see coppice compress --help.");

    watch_signals();
    TerminalLog log(line.level());
    auto recipe = read_recipe(files[0], line.texts("set"));
    set_threads(recipe.threads);
    DataSplits data;
    if (recipe.data.kind == Setting::Kind::kMap) {
        Json resolved = Json::object();
        data = open_data(recipe.data, recipe.base.string(), &resolved);
        recipe.resolved["data"] = resolved;
    }
    const auto example = example_inputs(recipe, data);
    auto model = load_checked(recipe.model, example, recipe.model_where);
    for (const auto& warning : quantize::int8_warnings(model)) log.warning(recipe.model.string() + ": " + warning);
    check_data_fit(model, data, recipe.data.where);

    Context context;
    context.example = example;
    context.task = recipe.task;
    context.seed = recipe.seed;
    context.threads = recipe.threads;
    context.data = data;
    context.base_dir = recipe.base;
    context.log = &log;
    context.interrupted = interrupted;
    eval::StageMeter meter(recipe.measure);
    context.spent = [&meter] { return meter.spent(); };
    const auto judged = data.validation ? data.validation : data.test;
    if (judged)
        context.evaluate = [&, judged](const Model& candidate) {
            return eval::evaluate(candidate, *judged, {recipe.metric}, recipe.task, recipe.measure.eval_batch, nullptr,
                                  interrupted)
                .metrics.front()
                .points;
        };
    if (recipe.pipeline.gate.max_drop && !judged)
        throw InvalidArgument(files[0],
                              "the gate needs labelled data, and there is neither a validation nor a test split",
                              "Add data: {format: ..., test: ...} to the recipe, or remove the gate.");
    check_stages(model, recipe.stages, context);
    if (line.given("dry-run")) {
        print_plan(recipe, data, model);
        return kDone;
    }

    const fs::path out = line.given("out") ? fs::path(line.text("out")) : fs::path("runs") / fs::path(files[0]).stem();
    Json manifest = run_manifest(recipe, data, recipe.model);
    for (const char* name : {"project", "user"})
        if (line.given(name)) manifest[name] = line.text(name);
    if (line.given("tag")) manifest["tags"] = line.texts("tag");
    auto run = RunDirectory::open(out, manifest, line.given("resume"));
    if (line.given("resume") && !run.resumed()) log.info(out.string() + " holds no run yet: a new one is started");
    if (run.resumed() && cpu_of(run.manifest()) != cpu_of(manifest))
        log.warning("the run was started on another CPU: its times do not compare with those of the stages to come");
    write_atomically(run.path() / "recipe.yaml", to_yaml(recipe.resolved));
    if (recipe.pipeline.gate.max_drop && !data.validation)
        log.info("there are no validation data: the gate is judged on the test data, which the report says, too");

    eval::Measurer measurer(example, data.test ? data.test : data.validation, data.test ? "test" : "validation",
                            recipe.task, recipe.metric, recipe.measure);
    measurer.log = &log;
    measurer.interrupted = interrupted;
    const Measure measure = [&](const Model& baseline, const Model& candidate, const StageWork& work) {
        auto measurement = measurer.measure(baseline, candidate, work.model_file, work.stage);
        add_earlier_attempts(measurement, work);
        if (data.validation && data.test) {
            const double points = context.evaluate(candidate);
            measurement["validation"] = {{"metric", recipe.metric},
                                         {"points", std::isfinite(points) ? Json(points) : Json()},
                                         {"data", data.validation->description()},
                                         {"examples", data.validation->size()}};
        }
        return measurement;
    };

    std::vector<StageResult> results;
    try {
        measurer.begin_stage();
        results = run_pipeline(model, recipe.stages, context, run, measure, recipe.pipeline);
    } catch (const Interrupted&) {
        log.clear();
        throw Interrupted(out.string(), "stopped on request; finished stages and the last checkpoint are kept",
                          "Continue with: coppice compress " + files[0] + " --out " + out.string() + " --resume");
    }
    log.clear();

    const auto report = eval::collect_report({run.path()}, recipe.report_title);
    const auto written = eval::write_report(report, run.path(), recipe.report_formats);
    std::cout << eval::terminal_table(report) << "\n" << wrapped(eval::summary_sentence(report), 100, 0) << "\n\n";
    std::cout << "model   " << (run.path() / "model.pt").string() << "\n";
    for (const auto& file : written) std::cout << "report  " << file.string() << "\n";
    std::cout.flush();
    size_t missed = 0;
    std::string names;
    for (const auto& result : results)
        if (result.gate_missed) {
            ++missed;
            names += (names.empty() ? "" : ", ") + result.name;
        }
    if (missed) {
        log.warning("the gate was missed by " + names + "; model.pt is the last model that passed it");
        return kGateMissed;
    }
    return kDone;
}

}  // namespace coppice::cli
