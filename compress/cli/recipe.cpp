#include "recipe.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <coppice/report.h>

#include <cstdlib>

#include "modules.h"

namespace coppice::cli {
namespace {

namespace fs = std::filesystem;

const std::vector<std::string> kKeys = {"base",  "data",   "deploy", "device", "gate", "measure",
                                        "model", "report", "seed",   "stages", "task", "threads"};

// ${base} in every text; another variable is a mistake that would otherwise become part of a file name.
void substitute(Setting& setting, const std::string& base) {
    for (auto& item : setting.items) substitute(item, base);
    for (auto& [key, member] : setting.members) substitute(member, base);
    for (size_t at = 0; (at = setting.text.find("${", at)) != std::string::npos;) {
        const size_t end = setting.text.find('}', at);
        const std::string name =
            end == std::string::npos ? setting.text.substr(at + 2) : setting.text.substr(at + 2, end - at - 2);
        if (name != "base")
            throw InvalidArgument(setting.where, "unknown variable \"${" + name + "}\"",
                                  "Only ${base}, the recipe's folder, is known.");
        setting.text.replace(at, end - at + 1, base);
        at += base.size();
    }
}

bool is_off(const Setting* setting) {
    return setting && setting->kind == Setting::Kind::kScalar &&
           (setting->text == "off" || setting->text == "false" || setting->text == "no");
}

// A section of the recipe: absent and null are an empty map.
Options section(const Setting& root, const std::string& name) {
    const auto* setting = root.find(name);
    if (!setting) return Options(name);
    if (setting->kind != Setting::Kind::kMap && setting->kind != Setting::Kind::kNull)
        throw InvalidArgument(setting->where, "\"" + name + "\" must be a map", "Write " + name + ": {option: value}.");
    return Options(name, *setting);
}

bool all_integers(const Setting& list) {
    for (const auto& item : list.items)
        if (item.kind != Setting::Kind::kScalar || item.text.empty() ||
            item.text.find_first_not_of("0123456789") != std::string::npos)
            return false;
    return !list.items.empty();
}

std::string as_text(const Setting& list) {
    std::string text;
    for (const auto& item : list.items) text += (text.empty() ? "" : ",") + item.text;
    return text;
}

InputSpec read_input(const Setting& setting) {
    const char* fix =
        "Write a shape [1, 3, 224, 224], or \"int64:1,128\" with a type, or \"int64<30522:1,128\" for values below "
        "30522.";
    if (setting.kind == Setting::Kind::kScalar) return parse_input(setting.text, setting.where);
    if (setting.kind == Setting::Kind::kList && all_integers(setting))
        return parse_input(as_text(setting), setting.where);
    throw InvalidArgument(setting.where, "an input must be a shape", fix);
}

std::vector<InputSpec> read_inputs(const Setting* setting) {
    if (!setting) return {};
    std::vector<InputSpec> inputs;
    if (setting->kind == Setting::Kind::kList && !all_integers(*setting)) {
        for (const auto& item : setting->items) {
            Setting placed = item;
            inputs.push_back(read_input(placed));
        }
        if (inputs.empty())
            throw InvalidArgument(setting->where, "input is an empty list", "Write a shape [1, 3, 224, 224].");
    } else {
        inputs.push_back(read_input(*setting));
    }
    return inputs;
}

// "classification" or {type: ..., metric: ...}.
void read_task(const Setting& root, Recipe& recipe) {
    static const std::vector<std::pair<std::string, Task>> kTasks = {{"classification", Task::kClassification},
                                                                     {"regression", Task::kRegression},
                                                                     {"similarity", Task::kSimilarity}};
    Setting setting = root.find("task") ? *root.find("task") : Setting{};
    if (setting.kind == Setting::Kind::kScalar)
        setting = Setting::map({{"type", Setting::scalar(setting.text, setting.where)}}, setting.where);
    if (setting.kind == Setting::Kind::kList)
        throw InvalidArgument(setting.where, "\"task\" must be a name or a map", "");
    Options options("task", setting);
    std::vector<std::string> names;
    for (const auto& [name, task] : kTasks) names.push_back(name);
    const auto type = options.choice("type", "classification", names);
    for (const auto& [name, task] : kTasks)
        if (name == type) recipe.task = task;
    recipe.metric = options.text("metric", eval::default_metrics(recipe.task).front());
    if (const auto known = names_of(eval::metrics());
        recipe.metric.rfind("file:", 0) != 0 && std::find(known.begin(), known.end(), recipe.metric) == known.end()) {
        const auto* metric = setting.find("metric");
        throw_unknown(metric ? metric->where : setting.where, "metric", recipe.metric, known);
    }
    options.done();
    recipe.resolved["task"] = options.resolved();
}

void read_gate(const Setting& root, Recipe& recipe) {
    if (is_off(root.find("gate"))) {
        recipe.resolved["gate"] = Json{{"max_drop", nullptr}, {"on_miss", "undo"}};
        return;
    }
    auto options = section(root, "gate");
    recipe.pipeline.gate.max_drop = options.optional_number("max_drop", "points of the metric that may be lost");
    if (recipe.pipeline.gate.max_drop && *recipe.pipeline.gate.max_drop < 0)
        throw options.error("max_drop", "is negative",
                            "It is the number of points that may be lost: 0.5 lets 88.7 fall to 88.2.");
    recipe.pipeline.stop_at_gate = options.choice("on_miss", "undo", {"undo", "stop"}) == "stop";
    options.done();
    recipe.resolved["gate"] = options.resolved();
}

void read_report(const Setting& root, Recipe& recipe) {
    if (is_off(root.find("report"))) {
        recipe.resolved["report"] = Json{{"formats", Json::array()}, {"title", ""}};
        return;
    }
    auto options = section(root, "report");
    recipe.report_formats = options.texts("formats", eval::default_report_formats());
    if (root.find("report"))
        if (const auto* formats = root.find("report")->find("formats"))
            eval::check_report_formats(recipe.report_formats, formats->where);
    recipe.report_title = options.text("title", "");
    options.done();
    recipe.resolved["report"] = options.resolved();
}

PipelineStage make_stage(const std::string& name, const Setting& settings, const std::string& where) {
    const auto& row = find_entry(all_stages(), "stage", name, where);
    Options options(name, settings);
    PipelineStage stage;
    stage.name = name;
    stage.where = where;
    stage.stage = row.make(options);
    options.done();
    stage.options = options.resolved();
    // A stage that fine-tunes repairs what the ones before it broke; judging those alone would undo every pruning.
    stage.recovers = name.rfind("train.", 0) == 0 || name.rfind("distill.", 0) == 0;
    return stage;
}

void read_stages(const Setting& root, Recipe& recipe) {
    bool has_deploy = false;
    if (const auto* setting = root.find("stages")) {
        if (setting->kind != Setting::Kind::kList && setting->kind != Setting::Kind::kNull)
            throw InvalidArgument(setting->where, "\"stages\" must be a list",
                                  "Write each stage on a line of its own: - prune.channel: {ratio: 0.5}");
        for (const auto& item : setting->items) {
            const auto [name, settings] = name_and_options(item, "a stage");
            recipe.stages.push_back(make_stage(name, settings, item.where));
            has_deploy = has_deploy || name == "deploy";
        }
    }
    const auto* deploy = root.find("deploy");
    const bool on = !deploy || deploy->kind == Setting::Kind::kNull || deploy->kind == Setting::Kind::kMap ||
                    (deploy->kind == Setting::Kind::kScalar &&
                     (deploy->text == "on" || deploy->text == "true" || deploy->text == "yes"));
    if (!on && !is_off(deploy))
        throw InvalidArgument(deploy->where, "\"deploy\" must be on, off or a map of options", "");
    if (has_deploy && deploy && !is_off(deploy))
        throw InvalidArgument(deploy->where, "\"deploy\" is among the stages already", "Remove one of them.");
    if (on && !has_deploy) {
        const bool map = deploy && deploy->kind == Setting::Kind::kMap;
        recipe.stages.push_back(make_stage("deploy", map ? *deploy : Setting{}, deploy ? deploy->where : ""));
    }
    Json stages = Json::array();
    for (const auto& stage : recipe.stages)
        stages.push_back(stage.options.empty() ? Json(stage.name) : Json{{stage.name, stage.options}});
    recipe.resolved["stages"] = stages;
    recipe.resolved["deploy"] = "off";  // it stands among the stages now
}

}  // namespace

std::string InputSpec::to_string() const {
    static const std::map<at::ScalarType, std::string> kNames = {
        {at::kFloat, "float32"}, {at::kDouble, "float64"}, {at::kHalf, "float16"}, {at::kBFloat16, "bfloat16"},
        {at::kLong, "int64"},    {at::kInt, "int32"},      {at::kByte, "uint8"},   {at::kBool, "bool"}};
    std::string text = kNames.at(dtype);
    if (high > 0) text += "<" + std::to_string(high);
    text += ":";
    for (size_t i = 0; i < shape.size(); ++i) text += (i ? "," : "") + std::to_string(shape[i]);
    return text;
}

InputSpec parse_input(const std::string& text, const std::string& where) {
    static const std::map<std::string, at::ScalarType> kTypes = {
        {"float32", at::kFloat}, {"float64", at::kDouble}, {"float16", at::kHalf}, {"bfloat16", at::kBFloat16},
        {"int64", at::kLong},    {"int32", at::kInt},      {"uint8", at::kByte},   {"bool", at::kBool}};
    const std::string fix =
        "Write 1,3,224,224, or int64:1,128 with a type, or int64<30522:1,128 for values below 30522.";
    const auto wrong = [&](const std::string& problem) {
        return InvalidArgument(where, "input \"" + text + "\" " + problem, fix);
    };
    InputSpec spec;
    std::string shape = text;
    if (const auto colon = text.find(':'); colon != std::string::npos) {
        std::string type = text.substr(0, colon);
        shape = text.substr(colon + 1);
        if (const auto less = type.find('<'); less != std::string::npos) {
            const auto limit = type.substr(less + 1);
            type = type.substr(0, less);
            if (limit.empty() || limit.size() > 12 || limit.find_first_not_of("0123456789") != std::string::npos ||
                (spec.high = std::stoll(limit)) < 1)
                throw wrong("has no whole number above 0 after <");
        }
        const auto found = kTypes.find(type);
        if (found == kTypes.end()) {
            std::vector<std::string> names;
            for (const auto& [name, value] : kTypes) names.push_back(name);
            throw_unknown(where, "input type", type, names);
        }
        spec.dtype = found->second;
        if (spec.high && !at::isIntegralType(spec.dtype, /*includeBool=*/false))
            throw wrong("limits values that are no integers");
    }
    std::string number;
    double elements = 1;
    for (const char c : shape + ",") {
        if (c == ' ' || c == '[' || c == ']') continue;
        if (c != ',') {
            if (c < '0' || c > '9' || number.size() > 9) throw wrong("is not a shape");
            number += c;
            continue;
        }
        if (number.empty()) throw wrong("is not a shape");
        spec.shape.push_back(std::stoll(number));
        if (spec.shape.back() < 1) throw wrong("has a dimension of 0");
        elements *= static_cast<double>(spec.shape.back());
        number.clear();
    }
    if (elements > 1e9) throw wrong("has more than 1e9 elements");
    return spec;
}

at::Tensor InputSpec::make(uint64_t seed) const {
    if (at::isFloatingType(dtype))
        return at::randn(shape, at::make_generator<at::CPUGeneratorImpl>(seed), at::kFloat).to(dtype);
    if (high > 0) return at::arange(c10::multiply_integers(shape), at::kLong).remainder(high).to(dtype).reshape(shape);
    return at::ones(shape, dtype);
}

Recipe read_recipe(const fs::path& file, const std::vector<std::string>& overrides, bool needs_model) {
    return recipe_from_settings(parse_yaml(read_text(file), file.string()), overrides, file, needs_model);
}

Recipe recipe_from_settings(Setting root, const std::vector<std::string>& overrides, const fs::path& file,
                            bool needs_model) {
    for (const auto& text : overrides) apply_override(root, text);
    if (root.kind == Setting::Kind::kNull)
        throw InvalidArgument(file.string(), "the recipe is empty",
                              "It needs at least model: {path: model.pt, input: [...]}.");
    if (root.kind != Setting::Kind::kMap)
        throw InvalidArgument(root.where, "a recipe must be a map of sections", "Begin with model: {path: model.pt}.");
    for (const auto& [key, value] : root.members) require_known(value.where, "key", key, kKeys);

    Recipe recipe;
    recipe.file = file;
    recipe.base = (file.empty() ? fs::current_path() : fs::absolute(file).parent_path()).lexically_normal();
    if (const auto* base = root.find("base"); base && base->kind == Setting::Kind::kScalar)
        recipe.base = (recipe.base / base->text).lexically_normal();
    substitute(root, recipe.base.string());
    recipe.resolved = Json::object();
    recipe.resolved["base"] = recipe.base.string();

    Setting model = root.find("model") ? *root.find("model") : Setting{};
    if (model.kind == Setting::Kind::kScalar)
        model = Setting::map({{"path", Setting::scalar(model.text, model.where)}}, model.where);
    if (model.kind == Setting::Kind::kList)
        throw InvalidArgument(model.where, "\"model\" must be a map", "Write model: {path: model.pt}.");
    Options model_options("model", model);
    const auto path = model_options.text("path", "");
    const auto* input = model_options.raw("input");
    model_options.done();
    if (path.empty() && needs_model)
        throw InvalidArgument(model.where.empty() ? file.string() : model.where, "the recipe names no model",
                              "Write model: {path: model.pt, input: [1, 3, 32, 32]}.");
    recipe.inputs = read_inputs(input);
    recipe.model = path.empty() ? fs::path() : (recipe.base / path).lexically_normal();
    recipe.model_where = model.find("path") ? model.find("path")->where : model.where;
    recipe.resolved["model"] = {{"path", path}};
    Json inputs = Json::array();
    for (const auto& spec : recipe.inputs) inputs.push_back(spec.to_string());
    if (!inputs.empty()) recipe.resolved["model"]["input"] = inputs;

    if (const auto* data = root.find("data")) {
        if (data->kind != Setting::Kind::kMap && data->kind != Setting::Kind::kNull)
            throw InvalidArgument(data->where, "\"data\" must be a map", "Write data: {format: ..., path: ...}.");
        recipe.data = *data;
        recipe.resolved["data"] = to_json(*data);
    }
    read_task(root, recipe);

    Setting rest;
    rest.kind = Setting::Kind::kMap;
    rest.where = file.string();
    for (const char* name : {"device", "seed", "threads"})
        if (const auto* setting = root.find(name)) rest.members.emplace_back(name, *setting);
    Options options("recipe", rest);
    options.choice("device", "cpu", {"cpu"});
    recipe.seed = static_cast<uint64_t>(options.integer("seed", 0, 0));
    recipe.threads = static_cast<int>(options.integer("threads", 0, 0, 1024));
    if (recipe.threads == 0) recipe.threads = at::get_num_threads();
    for (const auto& [key, value] : options.resolved().items()) recipe.resolved[key] = value;
    recipe.resolved["threads"] = recipe.threads;

    read_stages(root, recipe);
    read_gate(root, recipe);
    auto measure = section(root, "measure");
    recipe.measure = eval::MeasureOptions::read(measure);
    measure.done();
    recipe.resolved["measure"] = measure.resolved();
    read_report(root, recipe);
    recipe.measure.seed = recipe.seed;
    return recipe;
}

Inputs example_inputs(const std::vector<InputSpec>& specs) {
    Inputs inputs;
    for (size_t i = 0; i < specs.size(); ++i) inputs.emplace_back(specs[i].make(i));
    return inputs;
}

Inputs example_inputs(const Recipe& recipe, const DataSplits& data) {
    const auto made = example_inputs(recipe.inputs);
    const Dataset* dataset = data.calibration  ? data.calibration.get()
                             : data.train      ? data.train.get()
                             : data.validation ? data.validation.get()
                                               : data.test.get();
    if (!dataset || dataset->size() == 0) {
        if (made.empty())
            throw InvalidArgument(recipe.model_where, "the shape of the model's input is not known",
                                  "Add it: model: {path: ..., input: [1, 3, 32, 32]}, or add data.");
        return made;
    }
    int64_t examples = 1;
    if (!made.empty() && made[0].isTensor() && made[0].toTensor().dim() > 0)
        examples = std::min<int64_t>(made[0].toTensor().size(0), dataset->size());
    std::vector<int64_t> indices;
    for (int64_t i = 0; i < examples; ++i) indices.push_back(i);
    auto real = dataset->batch(indices).inputs;
    if (made.empty()) return real;
    // Real values are better than made ones (token ids, edges), but only where they are what the recipe asks for.
    if (real.size() != made.size()) return made;
    for (size_t i = 0; i < made.size(); ++i)
        if (!real[i].isTensor() || real[i].toTensor().sizes() != made[i].toTensor().sizes() ||
            real[i].toTensor().scalar_type() != made[i].toTensor().scalar_type())
            return made;
    return real;
}

}  // namespace coppice::cli
