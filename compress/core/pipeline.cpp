// Runs the stages of a recipe. Every decision is a function of what is on disk (measurement.json of each stage), so
// that a process that resumes a run decides as the one that was killed would have.
#include <coppice/clock.h>
#include <coppice/deploy.h>
#include <coppice/error.h>
#include <coppice/graph.h>
#include <coppice/pipeline.h>

#include <caffe2/serialize/inline_container.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <new>
#include <regex>

namespace coppice {
namespace {

namespace fs = std::filesystem;

std::string format(const char* pattern, double value) {
    char text[64];
    std::snprintf(text, sizeof text, pattern, value);
    return text;
}

// ---------------------------------------------------------------------------------------------------- log of one run

// Forwards to the program's log, keeps what belongs into log.jsonl and stage.json, and leaves a sign of life with the
// time spent, so that the cost of a stage that is killed and resumed is not lost.
class RunLog final : public Log {
public:
    RunLog(Log& inner, RunDirectory& run) : inner_(inner), run_(run) {}

    void write(const std::string& level, const std::string& message) override {
        if (level == "warning") warnings.push_back(message);
        if (level != "debug")
            run_.event({{"event", "message"}, {"level", level}, {"stage", stage_}, {"text", message}});
        inner_.write(level, message);
    }

    void progress(const std::string& task, double done, double total, const std::string& detail) override {
        sign_of_life(false);
        inner_.progress(task, done, total, detail);
    }

    void event(const Json& record) override {
        Json line = record;
        if (!line.contains("stage")) line["stage"] = stage_;
        run_.event(line);
        sign_of_life(false);
        inner_.event(record);
    }

    void begin(const std::string& stage, const fs::path& spent_file) {
        stage_ = stage;
        spent_file_ = spent_file;
        warnings.clear();
        earlier_seconds_ = earlier_cpu_ = 0;
        try {
            const auto spent = fs::exists(spent_file) ? read_json(spent_file) : Json::object();
            earlier_seconds_ = spent.value("seconds", 0.0);
            earlier_cpu_ = spent.value("cpu_seconds", 0.0);
        } catch (const std::exception&) {  // killed while writing it: that attempt's time is lost, the work is not
        }
        start_ = last_sign_ = wall_seconds();
        start_cpu_ = coppice::cpu_seconds();
    }

    void end() { spent_file_.clear(); }

    double seconds() const { return earlier_seconds_ + wall_seconds() - start_; }
    double cpu_seconds() const { return earlier_cpu_ + coppice::cpu_seconds() - start_cpu_; }

    void sign_of_life(bool now) {
        if (spent_file_.empty() || (!now && wall_seconds() - last_sign_ < 1)) return;
        last_sign_ = wall_seconds();
        std::ofstream(spent_file_) << Json{{"seconds", seconds()}, {"cpu_seconds", cpu_seconds()}}.dump();
    }

    std::vector<std::string> warnings;

private:
    Log& inner_;
    RunDirectory& run_;
    std::string stage_;
    fs::path spent_file_;
    double start_ = 0, start_cpu_ = 0, last_sign_ = 0, earlier_seconds_ = 0, earlier_cpu_ = 0;
};

// ----------------------------------------------------------------------------------------------------------- verdicts

std::optional<double> number_at(const Json& json, const std::string& pointer) {
    const Json::json_pointer place(pointer);
    if (!json.contains(place) || !json.at(place).is_number()) return std::nullopt;
    return json.at(place).get<double>();
}

// What steers: quality on validation data where there are some, else on the data that quality is reported for.
const char* quality_key(const Json& measurement) {
    return measurement.contains("validation") && measurement["validation"].is_object() ? "validation" : "quality";
}

std::optional<double> points_of(const Json& measurement) {
    return number_at(measurement, std::string("/") + quality_key(measurement) + "/points");
}

std::optional<double> file_bytes_of(const Json& measurement) {
    return number_at(measurement, "/figures/file_bytes/value");
}

// Time of the model against the baseline in one (batch, threads) row, with its interval.
struct Ratio {
    std::string row;
    double value, low, high;
};

std::vector<Ratio> latency_ratios(const Json& measurement) {
    std::vector<Ratio> ratios;
    if (!measurement.contains("latency") || !measurement["latency"].is_array()) return ratios;
    for (const auto& row : measurement["latency"]) {
        Ratio ratio{"batch " + std::to_string(row.value("batch", int64_t{1})) + ", " +
                        std::to_string(row.value("threads", int64_t{1})) + " threads",
                    1, 1, 1};
        if (const auto value = number_at(row, "/ratio_to_baseline/value")) {
            ratio.value = ratio.low = ratio.high = *value;
            if (const auto low = number_at(row, "/ratio_to_baseline/interval/0")) ratio.low = *low;
            if (const auto high = number_at(row, "/ratio_to_baseline/interval/1")) ratio.high = *high;
        }
        ratios.push_back(ratio);
    }
    return ratios;
}

enum class Speed { kSame, kFaster, kSlower, kMixed };

// Compares two models by their ratios to the baseline: a row counts only when the intervals are disjoint.
Speed compare_speed(const std::vector<Ratio>& before, const std::vector<Ratio>& after) {
    bool faster = false, slower = false;
    for (const auto& now : after)
        for (const auto& then : before) {
            if (then.row != now.row) continue;
            faster = faster || now.high < then.low;
            slower = slower || now.low > then.high;
        }
    return faster && slower ? Speed::kMixed : faster ? Speed::kFaster : slower ? Speed::kSlower : Speed::kSame;
}

struct Decision {
    bool kept = true, gate_missed = false, deferred = false;
    std::string verdict;
};

std::string joined(const std::vector<std::string>& parts) {
    std::string text;
    for (const auto& part : parts) text += (text.empty() ? "" : ", ") + part;
    return text;
}

/// @param before    of the last accepted model
/// @param deferred  name of the later stage that the decision waits for, empty if none
Decision decide(const Json& baseline, const Json& before, const Json& after, bool changed_nothing, bool recovers,
                const Gate& gate, const std::string& deferred) {
    Decision decision;
    std::vector<std::string> facts;
    const auto quality = points_of(after), quality_before = points_of(before), quality_baseline = points_of(baseline);
    std::optional<double> drop;
    const std::string key = quality_key(after);
    std::string metric = "quality";
    if (after.contains(key) && after[key].is_object()) metric = after[key].value("metric", metric);
    if (key == "validation") metric += " (validation)";
    if (quality && quality_baseline) {
        drop = *quality_baseline - *quality;
        facts.push_back(metric + " " + format("%.2f", *quality) + " (" + format("%+.2f", *quality - *quality_baseline) +
                        " points)");
    }
    const auto bytes = file_bytes_of(after), bytes_before = file_bytes_of(before),
               bytes_baseline = file_bytes_of(baseline);
    if (bytes && bytes_baseline && *bytes_baseline > 0)
        facts.push_back("file " + format("%.2fx", *bytes / *bytes_baseline));
    const auto ratios = latency_ratios(after);
    if (!ratios.empty())
        facts.push_back("time " + format("%.2fx", ratios.front().value) + " (" + ratios.front().row + ")");
    const auto speed = compare_speed(latency_ratios(before), ratios);
    const bool smaller = bytes && bytes_before && *bytes < *bytes_before;
    const bool better = quality && quality_before && *quality > *quality_before;
    const bool worse = speed == Speed::kSlower && !smaller && !better && !recovers;
    const std::string against = facts.empty() ? "" : "against the baseline: " + joined(facts);
    const bool gated = gate.max_drop.has_value();

    if (!deferred.empty()) {
        decision.deferred = true;
        decision.verdict =
            "goes on to " + deferred + ", after which it is judged" + (against.empty() ? "" : "; " + against);
        return decision;
    }
    if (gated && (!quality || !std::isfinite(*quality))) {
        decision.kept = false;
        decision.gate_missed = true;
        decision.verdict = "undone: " + metric + " is not a number";
    } else if (gated && *drop > *gate.max_drop + 1e-9) {  // 88.70 - 88.20 may be 0.5 and a rounding error
        decision.kept = false;
        decision.gate_missed = true;
        // As many digits as it takes to tell the two apart.
        auto fell = format("%.2f", *drop), allowed = format("%.2f", *gate.max_drop);
        if (fell == allowed) fell = format("%.6f", *drop), allowed = format("%.6f", *gate.max_drop);
        decision.verdict =
            "undone: " + metric + " fell by " + fell + " points, the gate allows " + allowed + "; " + against;
    } else if (changed_nothing) {
        decision.kept = !gated;
        decision.verdict = std::string(gated ? "undone" : "kept") + ": it changed nothing";
    } else if (worse) {
        decision.kept = !gated;
        decision.verdict = std::string(gated ? "undone" : "kept (there is no gate)") +
                           ": slower than the model before, not smaller and not better; " + against;
    } else {
        decision.verdict = "kept" + (against.empty() ? "" : "; " + against);
        if (speed == Speed::kSlower && !recovers) decision.verdict += "; slower than the model before";
    }
    return decision;
}

// ------------------------------------------------------------------------------------------------------------- stages

// The graph as text without the names of module types, which carry a running number.
std::string graph_text(const Model& model) {
    static const std::regex type_name("__torch__[A-Za-z0-9_.]*");
    return std::regex_replace(model.graph()->toString(false), type_name, "module");
}

at::Tensor plain(const at::Tensor& tensor) {
    if (tensor.is_quantized()) return tensor.dequantize();
    return tensor.layout() == at::kStrided ? tensor : tensor.to_dense();
}

bool same_model(const Model& a, const Model& b) {
    if (graph_text(a) != graph_text(b)) return false;
    const auto left = named_tensors(a), right = named_tensors(b);
    if (left.size() != right.size()) return false;
    for (size_t i = 0; i < left.size(); ++i)
        if (left[i].name != right[i].name || left[i].tensor.scalar_type() != right[i].tensor.scalar_type() ||
            left[i].tensor.layout() != right[i].tensor.layout() ||
            (left[i].tensor.layout() == at::kStrided && left[i].tensor.strides() != right[i].tensor.strides()) ||
            !at::equal(plain(left[i].tensor), plain(right[i].tensor)))
            return false;
    return true;
}

std::vector<std::vector<int64_t>> output_shapes(const Model& model, const Inputs& example) {
    torch::NoGradGuard no_grad;
    std::vector<std::vector<int64_t>> shapes;
    for (const auto& tensor : all_tensors(model.forward(example))) shapes.push_back(tensor.sizes().vec());
    return shapes;
}

// Names of the canonical form's types end in a number that counts on in one process: "ResNet_c12".
std::string without_numbers(const std::string& text) {
    std::string out;
    out.reserve(text.size());
    for (size_t i = 0; i < text.size(); ++i) {
        out += text[i];
        if (text[i] == 'c' && i > 0 && text[i - 1] == '_')
            while (i + 1 < text.size() && text[i + 1] >= '0' && text[i + 1] <= '9') ++i;
    }
    return out;
}

// Every run after the first would see other values: of the example, of calibration data, in the clock's loops.
void refuse_writing_into_inputs(const Model& model, const Inputs& example) {
    torch::NoGradGuard no_grad;
    Inputs given;
    for (const auto& input : example) given.push_back(input.isTensor() ? input.toTensor().clone() : input);
    std::vector<int64_t> versions;  // LibTorch counts what is written into a tensor and its views
    for (const auto& input : given) versions.push_back(input.isTensor() ? input.toTensor()._version() : 0);
    model.forward(given);
    for (size_t i = 0; i < given.size(); ++i)
        if (given[i].isTensor() && given[i].toTensor()._version() != versions[i]) {
            const auto name = model.graph()->inputs()[i + 1]->debugNameBase();
            throw UnsupportedModel("model " + model.name(), "forward changes its argument " + name + " in place",
                                   "Let it work on a copy: " + name + " = " + name + ".clone().");
        }
}

// What a model gave before it was written must be what it gives after it was read.
void check_reloaded(const Model& written, const Model& read, const Inputs& example, const std::string& stage) {
    torch::NoGradGuard no_grad;
    const auto before = all_tensors(written.forward(example)), after = all_tensors(read.forward(example));
    for (size_t i = 0; i < before.size() && i < after.size(); ++i) {
        const auto a = plain(before[i]), b = plain(after[i]);
        // 1e-2: a file does not keep every memory layout, and another layout sums in another order, in bfloat16 too.
        if (a.sizes() != b.sizes() ||
            !at::allclose(a.to(at::kDouble), b.to(at::kDouble), 1e-2, 1e-3, /*equal_nan=*/true))
            throw InternalError(stage, "the model gives another output after it was saved and loaded",
                                "Please report this.");
    }
}

Json changes_json(const std::vector<LayerChange>& changes) {
    Json list = Json::array();
    for (const auto& change : changes)
        list.push_back({{"layer", change.layer},
                        {"action", change.action},
                        {"before", change.before},
                        {"after", change.after},
                        {"reason", change.reason}});
    return list;
}

Json layers_json(const Model& model, const Inputs& example) {
    Json layers = Json::array();
    for (const auto& layer : cost(model, example).layers)
        layers.push_back({{"name", layer.name},
                          {"op", layer.op},
                          {"input_shape", layer.input_shape},
                          {"output_shape", layer.output_shape},
                          {"parameters", layer.parameters},
                          {"macs", layer.macs},
                          {"activation_bytes", layer.activation_bytes}});
    return layers;
}

void check_needs(const PipelineStage& stage, const Context& context) {
    const std::string where = stage.where.empty() ? stage.name : stage.where + ", " + stage.name;
    const auto needs = stage.stage->needs();
    const std::string how = "Add it to the recipe: data: {format: ..., ";
    if (needs.training_data && !context.data.train)
        throw InvalidArgument(where, "needs training data, and there is none", how + "train: ...}.");
    if (needs.calibration_data && !context.data.calibration)
        throw InvalidArgument(where, "needs calibration data, and there is none", how + "calibration: ...}.");
    if (needs.labels)
        for (const auto& data : {context.data.train, context.data.calibration})
            if (data && data->size() > 0 && !data->batch({0}).target.defined())
                throw InvalidArgument(where, "needs labels, and " + data->description() + " has none", "");
    if (needs.teacher && !context.baseline)
        throw InvalidArgument(where, "needs a teacher, and there is none", "Set context.baseline.");
}

// One finished stage; the model is read when it is needed.
struct Step {
    StageResult result;
    fs::path model_file;
    std::string sha256;   // of the file
    std::string content;  // of what it holds
    Json stage_json;
    bool waits = false;  // a later stage decides about it
    std::optional<Model> model;

    void take(const Decision& decision) {
        result.kept = decision.kept;
        result.gate_missed = decision.gate_missed;
        result.verdict = decision.verdict;
        waits = decision.deferred;
    }

    const Model& loaded() {
        if (!model) model = Model::load(model_file);
        return *model;
    }
};

class Pipeline {
public:
    Pipeline(const Model& baseline, const std::vector<PipelineStage>& stages, Context& context, RunDirectory& run,
             const Measure& measure, const PipelineOptions& options)
        : stages_(stages), context_(context), run_(run), measure_(measure), options_(options), log_(*context.log, run) {
        original_ = baseline;
        program_log_ = context.log;
        given_baseline_ = context.baseline;
        context_.log = &log_;
    }

    ~Pipeline() {
        context_.log = program_log_;
        context_.baseline = given_baseline_;
        context_.work_dir.clear();
    }

    std::vector<StageResult> all() {
        run_.event({{"event", run_.resumed() ? "resume" : "start"}, {"stages", stages_.size()}});
        try {
            run_all();
        } catch (const Interrupted&) {
            run_.event({{"event", "interrupted"}});
            throw;
        } catch (const std::exception& error) {
            run_.event({{"event", "failed"}, {"error", message_of(error)}});
            throw;
        }
        run_.event({{"event", "done"}});
        std::vector<StageResult> results;
        for (auto& step : steps_) results.push_back(step.result);
        return results;
    }

private:
    void run_all() {
        steps_.reserve(stages_.size() + 1);
        baseline();
        for (size_t i = 0; i < stages_.size(); ++i) {
            stop_if_interrupted();
            stage(i);
            settle(i);
            if (options_.stop_at_gate && steps_.back().result.gate_missed) break;
        }
    }

    void stop_if_interrupted() const {
        if (context_.interrupted())
            throw Interrupted(run_.path().string(), "stopped on request",
                              "What was finished is kept; --resume continues from there.");
    }

    void baseline() {
        const std::string folder = RunDirectory::folder_name(0, "baseline");
        if (!take_finished(folder, "baseline", "")) {
            const auto partial = begin(folder, "baseline", "");
            refuse_writing_into_inputs(original_, context_.example);
            log_.info("baseline: measuring " + original_.name());
            original_.save(partial / "model.pt");
            Step step = read_back(partial, folder, "baseline");
            verify(step.loaded(), context_.example, "baseline");
            check_reloaded(original_, step.loaded(), context_.example, "baseline");
            StageWork work{"baseline", partial / "model.pt", 0, 0};
            step.result.measurement = measured(step.loaded(), step.loaded(), work);
            step.result.verdict = "the model as it was given";
            step.stage_json = {{"format", "coppice-stage"},
                               {"version", 1},
                               {"stage", "baseline"},
                               {"options", Json::object()},
                               {"kept", true},
                               {"verdict", step.result.verdict},
                               {"changes", Json::array()},
                               {"facts", {{"notes", original_.notes()}}},
                               {"layers", layers_json(step.loaded(), context_.example)},
                               {"seconds", log_.seconds()},
                               {"warnings", log_.warnings},
                               {"input_content", ""},
                               {"model_content", step.content},
                               {"model_sha256", step.sha256}};
            finish(std::move(step), folder);
        }
        auto& step = steps_.front();
        if (options_.gate.max_drop && !points_of(step.result.measurement))
            throw InvalidArgument("gate", "max_drop cannot be judged, the baseline's quality was not measured",
                                  "Add test data with labels to the recipe, or remove the gate.");
        context_.baseline = &step.loaded();
        expected_shapes_ = output_shapes(step.loaded(), context_.example);
        publish(0);
    }

    void stage(size_t index) {
        const auto& stage = stages_[index];
        const std::string folder = RunDirectory::folder_name(index + 1, stage.name);
        auto& head = steps_[head_];
        if (take_finished(folder, stage.name, head.content)) return;

        const auto partial = begin(folder, stage.name, head.content);
        log_.info(stage.name + ": started (" + std::to_string(index + 1) + " of " + std::to_string(stages_.size()) +
                  ")");
        torch::manual_seed(context_.seed);
        context_.work_dir = partial / "work";
        fs::create_directories(context_.work_dir);
        context_.changes.clear();
        context_.facts = Json::object();
        Model model = applied(stage, head.loaded());
        model.eval();
        stop_if_interrupted();
        // Also without a stage deploy at the end: training leaves sub-normal weights, and they cost time in every run.
        if (const auto subnormal = zero_subnormals(model)) {
            context_.facts["subnormal_weights"] = subnormal;
            context_.record({"model", "zeroed", std::to_string(subnormal) + " sub-normal weights", "0",
                             "arithmetic on them is slow"});
        }
        verify(model, context_.example, stage.name, expected_shapes_);
        model.save(partial / "model.pt");
        const double seconds = log_.seconds(), cpu = log_.cpu_seconds();
        log_.sign_of_life(true);

        Step step = read_back(partial, folder, stage.name);
        verify(step.loaded(), context_.example, stage.name, expected_shapes_);
        check_reloaded(model, step.loaded(), context_.example, stage.name);
        stop_if_interrupted();
        log_.info(stage.name + ": measuring");
        step.result.measurement =
            measured(steps_.front().loaded(), step.loaded(), {stage.name, partial / "model.pt", seconds, cpu});
        step.stage_json = {{"format", "coppice-stage"},
                           {"version", 1},
                           {"stage", stage.name},
                           {"options", stage.options},
                           {"kept", true},
                           {"verdict", ""},
                           {"changes", changes_json(context_.changes)},
                           {"facts", context_.facts},
                           {"layers", layers_json(step.loaded(), context_.example)},
                           {"seconds", seconds},
                           {"cpu_seconds", cpu},
                           {"warnings", log_.warnings},
                           {"changed_nothing", same_model(head.loaded(), step.loaded())},
                           {"input_content", head.content},
                           {"model_content", step.content},
                           {"model_sha256", step.sha256}};
        step.take(judge(index, step));
        finish(std::move(step), folder);
    }

    Model applied(const PipelineStage& stage, const Model& input) {
        try {
            // The stage works on a copy: a mistake in it must not reach the model that an undo goes back to.
            return stage.stage->apply(input.clone(), context_);
        } catch (const Error&) {
            throw;
        } catch (const std::bad_alloc&) {
            throw Error(stage.name, "out of memory", "Use smaller batches, or a machine with more memory.");
        } catch (const std::exception& error) {
            const std::string where = stage.where.empty() ? stage.name : stage.where + ", " + stage.name;
            throw Error(where, message_of(error),
                        "The models before this stage are kept in " + run_.path().string() + ".");
        }
    }

    // The folder of a stage as an earlier process left it, if it can be used.
    bool take_finished(const std::string& folder, const std::string& name, const std::string& input_content) {
        const auto place = run_.path() / folder;
        if (!fs::exists(place)) return false;
        std::string reason;
        if (!run_.finished(folder)) {
            reason = "its files are damaged";
        } else {
            Step step;
            step.model_file = place / "model.pt";
            step.sha256 = sha256_of_file(step.model_file.string());
            step.stage_json = read_json(place / "stage.json");
            if (step.stage_json.value("model_sha256", std::string()) != step.sha256) {
                reason = "its model.pt is damaged";
            } else if (step.stage_json.value("input_content", std::string()) != input_content) {
                reason = "the model before it is another now";
            } else {
                step.result.folder = folder;
                step.result.name = name;
                step.result.measurement = read_json(place / "measurement.json");
                step.result.resumed = true;
                step.content = step.stage_json.value("model_content", std::string());
                if (name == "baseline")
                    step.result.verdict = step.stage_json.value("verdict", std::string());
                else
                    step.take(judge(steps_.size() - 1, step));
                clean(place);
                log_.info(name + ": finished by an earlier run, taken from " + folder);
                steps_.push_back(std::move(step));
                return true;
            }
        }
        const auto aside = run_.set_aside(folder);
        log_.warning(folder + " cannot be used (" + reason + "); it is now " + aside.filename().string() +
                     " and the stage is repeated");
        run_.event(
            {{"event", "set_aside"}, {"stage", name}, {"folder", aside.filename().string()}, {"reason", reason}});
        return false;
    }

    fs::path begin(const std::string& folder, const std::string& name, const std::string& input_content) {
        auto partial = run_.partial(folder);
        // Checkpoints are worth something only for the input they were made from.
        const auto input_file = partial / "input";
        if (fs::exists(input_file) && read_text(input_file) != input_content) {
            const auto aside = run_.set_aside(folder + ".partial");
            log_.warning("an unfinished " + name + " belongs to another input model; it is now " +
                         aside.filename().string());
            partial = run_.partial(folder);
        }
        if (!fs::exists(input_file)) write_atomically(input_file, input_content);
        log_.begin(name, partial / "spent.json");
        run_.event({{"event", "stage_start"}, {"stage", name}, {"folder", folder}});
        return partial;
    }

    Step read_back(const fs::path& partial, const std::string& folder, const std::string& name) {
        Step step;
        step.result.folder = folder;
        step.result.name = name;
        step.sha256 = sha256_of_file((partial / "model.pt").string());
        step.content = model_content_sha256(partial / "model.pt");
        step.model = Model::load(partial / "model.pt");
        return step;
    }

    Json measured(const Model& baseline, const Model& candidate, const StageWork& work) {
        const bool gradients = at::GradMode::is_enabled();
        at::GradMode::set_enabled(false);
        Json measurement;
        try {
            measurement = measure_(baseline, candidate, work);
        } catch (...) {
            at::GradMode::set_enabled(gradients);
            throw;
        }
        at::GradMode::set_enabled(gradients);
        return measurement;
    }

    void finish(Step step, const std::string& folder) {
        const auto partial = run_.partial(folder);
        step.stage_json["kept"] = step.result.kept;
        step.stage_json["verdict"] = step.result.verdict;
        write_atomically(partial / "measurement.json", step.result.measurement.dump(2) + "\n");
        write_atomically(partial / "stage.json", step.stage_json.dump(2) + "\n");
        log_.end();
        run_.commit(folder);
        clean(run_.path() / folder);
        step.model_file = run_.path() / folder / "model.pt";
        run_.event({{"event", "stage_done"},
                    {"stage", step.result.name},
                    {"folder", folder},
                    {"kept", step.result.kept},
                    {"verdict", step.result.verdict},
                    {"seconds", step.stage_json["seconds"]}});
        if (step.result.name != "baseline") log_.info(step.result.name + ": " + step.result.verdict);
        steps_.push_back(std::move(step));
    }

    // After the commit, not before: a process killed in between still finds its checkpoint.
    static void clean(const fs::path& folder) {
        std::error_code ignored;
        fs::remove_all(folder / "work", ignored);
        fs::remove(folder / "spent.json", ignored);
        fs::remove(folder / "input", ignored);
    }

    Decision judge(size_t index, const Step& step) const {
        std::string deferred;
        if (!stages_[index].recovers)
            for (size_t later = index + 1; later < stages_.size() && deferred.empty(); ++later)
                if (stages_[later].recovers) deferred = stages_[later].name;
        // A recovery that changed nothing still lets the stages that waited for it pass.
        const bool changed_nothing = step.stage_json.value("changed_nothing", false) && head_ == accepted_;
        return decide(steps_.front().result.measurement, steps_[accepted_].result.measurement, step.result.measurement,
                      changed_nothing, stages_[index].recovers, options_.gate, deferred);
    }

    // Step index + 1 was decided: what goes on, and what becomes of the stages that waited for it.
    void settle(size_t index) {
        const size_t now = index + 1;
        const auto& result = steps_[now].result;
        if (steps_[now].waits) {
            head_ = now;
        } else {
            for (size_t i = accepted_ + 1; i < now; ++i)
                if (steps_[i].waits) decide_late(i, result.kept, result.name);
            if (result.kept) accepted_ = now;
            head_ = accepted_;
        }
        save_decision(now);
        publish(accepted_);
        for (size_t i = 1; i < steps_.size(); ++i)  // memory: only what may still be needed
            if (i != head_ && i != accepted_) steps_[i].model.reset();
    }

    void decide_late(size_t i, bool kept, const std::string& judge) {
        auto& step = steps_[i];
        const auto facts = step.result.verdict.find("against the baseline");
        step.waits = false;
        step.result.kept = kept;
        step.result.verdict = (kept ? "kept after " : "undone together with ") + judge +
                              (facts == std::string::npos ? "" : "; " + step.result.verdict.substr(facts));
        if (!kept) log_.info(step.result.name + ": " + step.result.verdict);
        save_decision(i);
    }

    // stage.json is written at the commit; a decision that waited changes it afterwards.
    void save_decision(size_t i) {
        auto& step = steps_[i];
        if (step.stage_json.value("kept", true) == step.result.kept &&
            step.stage_json.value("verdict", std::string()) == step.result.verdict)
            return;
        step.stage_json["kept"] = step.result.kept;
        step.stage_json["verdict"] = step.result.verdict;
        write_atomically(run_.path() / step.result.folder / "stage.json", step.stage_json.dump(2) + "\n");
        run_.event({{"event", "decided"},
                    {"stage", step.result.name},
                    {"kept", step.result.kept},
                    {"verdict", step.result.verdict}});
    }

    void publish(size_t i) {
        const auto to = run_.path() / "model.pt";
        if (published_ == i && fs::exists(to)) return;
        if (!fs::exists(to) || sha256_of_file(to.string()) != steps_[i].sha256) run_.publish(steps_[i].model_file);
        published_ = i;
    }

    Model original_;
    const std::vector<PipelineStage>& stages_;
    Context& context_;
    RunDirectory& run_;
    const Measure& measure_;
    const PipelineOptions& options_;
    RunLog log_;
    Log* program_log_ = nullptr;
    const Model* given_baseline_ = nullptr;
    std::vector<Step> steps_;
    std::vector<std::vector<int64_t>> expected_shapes_;
    size_t head_ = 0;      // whose model goes into the next stage
    size_t accepted_ = 0;  // the last one that passed the gate
    size_t published_ = SIZE_MAX;
};

}  // namespace

std::string model_content_sha256(const fs::path& path) {
    try {
        caffe2::serialize::PyTorchStreamReader reader(path.string());
        auto records = reader.getAllRecords();
        std::sort(records.begin(), records.end());
        std::string sums;
        for (const auto& record : records) {
            if (record.find("serialization_id") != std::string::npos) continue;  // depends on the names below
            const auto [data, size] = reader.getRecord(record);
            std::string bytes(static_cast<const char*>(data.get()), size);
            const bool payload = record.rfind("data/", 0) == 0 || record.rfind("constants/", 0) == 0;
            sums += without_numbers(record) + " " + sha256_of(payload ? bytes : without_numbers(bytes)) + "\n";
        }
        return sha256_of(sums);
    } catch (const Error&) {
        throw;
    } catch (const std::exception& error) {
        throw IoError(path.string(), "cannot be read as a model: " + message_of(error), "");
    }
}

void check_stages(const Model& baseline, const std::vector<PipelineStage>& stages, Context& context) {
    const Model* given = context.baseline;
    if (!given) context.baseline = &baseline;
    std::exception_ptr first;
    for (const auto& stage : stages) {
        try {
            check_needs(stage, context);
            stage.stage->check(baseline, context);
        } catch (const std::exception& error) {
            if (first)
                context.log->warning(message_of(error));
            else
                first = std::current_exception();
        }
    }
    context.baseline = given;
    if (first) std::rethrow_exception(first);
}

std::vector<StageResult> run_pipeline(const Model& baseline, const std::vector<PipelineStage>& stages, Context& context,
                                      RunDirectory& run, const Measure& measure, const PipelineOptions& options) {
    check_stages(baseline, stages, context);
    return Pipeline(baseline, stages, context, run, measure, options).all();
}

}  // namespace coppice
