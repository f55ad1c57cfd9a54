// Whole measuring: one measurement.json per model. The order of work is quality, size, run time with energy, carbon;
// what is measured is the file as torch::jit::load gives it, not the object that was saved.
#include <ATen/Parallel.h>

#include <coppice/eval.h>

#include <chrono>

#include "number_text.h"

namespace coppice::eval {
namespace {

constexpr double kSecondsPerYear = 365.25 * 86400;
constexpr double kMinimumSeconds = 0.5;  // of timing for one batch and thread count, however many there are

torch::jit::Module load_module(const std::filesystem::path& file) {
    try {
        auto module = torch::jit::load(file.string());
        module.eval();
        return module;
    } catch (const c10::Error& error) {
        throw IoError(file.string(), "torch::jit::load cannot read it (" + message_of(error) + ")",
                      "Give a file written by torch.jit.save.");
    }
}

int64_t batch_of(const Inputs& example) {
    for (const auto& input : example)
        if (input.isTensor() && input.toTensor().dim() > 0) return input.toTensor().size(0);
    return 0;
}

Json to_json(const MetricValue& value) {
    auto json = value.figure.to_json();
    json["points"] = value.figure.available() ? Json(value.points) : Json(nullptr);
    json["higher_is_better"] = value.higher_is_better;
    if (!value.paired.is_null()) json["paired"] = value.paired;
    return json;
}

// "12.3 J, 1.5 mg CO2e", as far as it is known.
std::string spent_text(const Spent& spent) {
    std::string text;
    if (spent.energy_j) text = number_text(*spent.energy_j) + " J";
    if (spent.carbon_g) text += (text.empty() ? "" : ", ") + number_text(1000 * *spent.carbon_g) + " mg CO2e";
    return text;
}

// The first configuration that ran: figures per inference are taken there.
const Latency* representative(const std::vector<Latency>& rows) {
    for (const auto& row : rows)
        if (row.p50_s.available()) return &row;
    return nullptr;
}

}  // namespace

double MeasureOptions::seconds() const {
    return profile == "off" ? 0 : profile == "quick" ? 3 : profile == "strict" ? 600 : 60;
}

double MeasureOptions::idle_seconds() const {
    if (idle) return *idle;
    return profile == "off" ? 0 : profile == "quick" ? 0.25 : profile == "strict" ? 30 : 5;
}

MeasureOptions MeasureOptions::read(Options& options) {
    MeasureOptions result;
    result.profile = options.choice("profile", result.profile, {"off", "quick", "standard", "strict"},
                                    "timing per variant: quick 3 s, standard 60 s, strict 600 s");
    result.batches = options.integers("batch", result.batches, "batch sizes to time");
    result.threads = options.integers("threads", {}, "thread counts to time; empty: LibTorch's");
    for (const char* name : {"batch", "threads"})
        for (const auto value : name == std::string("batch") ? result.batches : result.threads)
            if (value < 1) throw options.error(name, "holds " + std::to_string(value) + ", must be at least 1", "");
    if (result.batches.empty()) throw options.error("batch", "is empty", "Use [1].");
    result.metrics = options.texts("metrics", {}, "metrics besides the task's; empty: the task's usual ones");
    for (const auto& name : result.metrics) make_metric(name, Task::kClassification, options.owner());
    result.eval_batch = options.integer("eval_batch", result.eval_batch, 1, INT64_MAX, "batch size of quality metrics");
    result.grid = options.text("grid", result.grid,
                               "ISO 3166 zone, WORLD, a number in g/kWh, or a .csv with columns time and g_per_kwh");
    try {
        grid_of(result.grid);
    } catch (const InvalidArgument& error) {
        throw options.error("grid", "is \"" + result.grid + "\": " + error.problem(), error.fix());
    }
    result.pue = options.number_in("pue", result.pue, 1.0, 10.0,
                                   "power usage effectiveness of the site; 1.54 is the industry's average of 2025");
    result.embodied_kg = options.optional_number("embodied_kg", "CO2e of making the machine, for the SCI");
    if (result.embodied_kg && !(*result.embodied_kg >= 0))
        throw options.error("embodied_kg", "must not be negative", "The maker's data sheet has it.");
    result.lifetime_years =
        options.number_in("lifetime_years", result.lifetime_years, 0.1, 100.0, "of the machine, for the SCI");
    result.machine_share = options.number_in("machine_share", result.machine_share, 1e-6, 1.0,
                                             "of the machine that was reserved, for the SCI");
    result.relative_interval = options.number_in("relative_interval", result.relative_interval, 1e-4, 1.0,
                                                 "half width of the ratio's interval at which timing ends early");
    std::vector<std::string> sources = {"auto"};
    for (const auto& source : energy_sources()) sources.push_back(source.name);
    result.energy.source =
        options.text("energy", result.energy.source,
                     "source of energy figures: auto, one of `coppice doctor`, or a+b for their sum");
    std::istringstream parts(result.energy.source);
    bool any = false;
    for (std::string part; std::getline(parts, part, '+'); any = true)
        if (std::find(sources.begin(), sources.end(), part) == sources.end())
            throw_unknown(options.where().empty() ? options.owner() : options.where() + ", " + options.owner(),
                          "value of energy", part, sources);
    if (!any) throw options.error("energy", "is empty", "Use auto.");
    result.energy.gpus = options.integers("gpus", {}, "numbers of the GPUs whose energy counts; empty: all");
    result.energy.meter_file = options.text("meter_file", "", "of an external meter: CSV with columns time and watts");
    result.energy.cpu_watts_per_core =
        options.optional_number("cpu_watts_per_core", "for the CPU-time model; default: from the table");
    result.energy.idle_watts = options.optional_number("idle_watts", "of the machine, if known");
    result.idle = options.optional_number("idle", "seconds of sleep before and after timing; default: by profile");
    if (result.idle && !(*result.idle >= 0 && *result.idle <= 3600))
        throw options.error("idle", "must be in [0, 3600] s", "0 leaves it out.");
    if (result.energy.cpu_watts_per_core && !(*result.energy.cpu_watts_per_core > 0))
        throw options.error("cpu_watts_per_core", "must be above 0", "");
    if (result.energy.idle_watts && *result.energy.idle_watts < 0)
        throw options.error("idle_watts", "must not be negative", "");
    return result;
}

Figure MeasureOptions::embodied_g(const Figure& seconds) const {
    if (!embodied_kg)
        return Figure::unavailable("g", "the machine's embodied carbon is not declared (measure: embodied_kg)");
    if (!seconds.available()) return Figure::unavailable("g", seconds.reason);
    auto share = embodied_share_g(1000 * *embodied_kg, *seconds.value, kSecondsPerYear * lifetime_years, machine_share);
    if (seconds.interval && *seconds.value > 0)
        share.interval = Interval{*share.value * seconds.interval->low / *seconds.value,
                                  *share.value * seconds.interval->high / *seconds.value};
    return share;
}

StageMeter::StageMeter(const MeasureOptions& options)
    : options_(options), grid_(grid_of(options.grid)), meter_(make_energy_meter(options.energy)) {
    restart();
}

StageMeter::~StageMeter() = default;

void StageMeter::restart() {
    meter_->start();
    wall_start_ = wall_seconds();
    unix_start_ = unix_seconds();
    cpu_start_ = cpu_seconds();
}

Json StageMeter::read() {
    const auto energy = meter_->read();
    return {{"seconds", Figure::measured(wall_seconds() - wall_start_, "s", "wall clock").to_json()},
            {"cpu_seconds",
             Figure::measured(cpu_seconds() - cpu_start_, "s", "CPU time of the process and its finished children")
                 .to_json()},
            {"energy_j", energy.to_json()},
            {"carbon_g", carbon_g(energy, grid_, options_.pue, unix_start_, unix_seconds()).to_json()}};
}

Spent StageMeter::spent() {
    const auto energy = meter_->read();
    const auto carbon = carbon_g(energy, grid_, options_.pue, unix_start_, unix_seconds());
    return {energy.value, carbon.value, name_of(energy.provenance), energy.available() ? carbon.reason : energy.reason};
}

// What is known of one model before it becomes JSON.
struct Measurer::Subject {
    std::string stage;
    std::filesystem::path file;
    std::optional<Evaluation> evaluation;
    std::vector<std::pair<std::string, Figure>> sizes;
    std::vector<Latency> latency;
    std::optional<IdleChange> idle;
    Json compression;
};

Measurer::Measurer(Inputs example, std::shared_ptr<const Dataset> data, std::string split, Task task,
                   std::string metric, MeasureOptions options)
    : example_(std::move(example)),
      data_(std::move(data)),
      split_(std::move(split)),
      metric_(metric.empty() ? default_metrics(task).front() : std::move(metric)),
      task_(task),
      options_(std::move(options)),
      grid_(grid_of(options_.grid)),
      meter_(make_energy_meter(options_.energy)),
      stage_meter_(options_) {
    names_ = {metric_};
    for (const auto& name : options_.metrics.empty() ? default_metrics(task) : options_.metrics)
        if (std::find(names_.begin(), names_.end(), name) == names_.end()) names_.push_back(name);
    for (const auto& name : names_) make_metric(name, task_, "task");
}

Measurer::~Measurer() = default;

void Measurer::begin_stage() {
    stage_meter_.restart();
}

Evaluation Measurer::run_metrics(const Runner& model, const Evaluation* baseline) const {
    return evaluate(model, *data_, names_, task_, options_.eval_batch, baseline, interrupted);
}

const Evaluation* Measurer::baseline_evaluation(const Model& baseline) {
    if (!data_) return nullptr;
    if (!baseline_ || baseline_object_ != baseline.module()._ivalue()) {
        log->write("debug", "measuring the baseline's quality on " + data_->description());
        baseline_ = std::make_shared<Evaluation>(run_metrics(baseline, nullptr));
        baseline_object_ = baseline.module()._ivalue();
    }
    return baseline_.get();
}

double Measurer::points(const Runner& model) const {
    if (!data_)
        throw InvalidArgument("evaluate", "there is no labelled data", "Give data with a test or validation split.");
    const auto evaluation = evaluate(model, *data_, {metric_}, task_, options_.eval_batch, nullptr, interrupted);
    const auto& value = evaluation.metrics.front();
    if (!value.figure.available()) throw MeasurementError("metric " + metric_, value.figure.reason, "");
    return value.points;
}

std::optional<Idle> Measurer::look_at_idle() {
    if (options_.idle_seconds() <= 0) return std::nullopt;
    IdleOptions idle;
    idle.seconds = std::max(options_.idle_seconds(), meter_->minimum_window_s());
    idle.root = options_.energy.root;
    log->write("debug", "looking at the idle machine for " + std::to_string(idle.seconds) + " s");
    return measure_idle(*meter_, idle);
}

std::vector<std::vector<Latency>> Measurer::time_all(const std::vector<Variant>& variants,
                                                     std::optional<IdleChange>& idle) {
    if (options_.profile == "off") return {};
    const auto idle_before = look_at_idle();
    std::vector<int64_t> threads = options_.threads;
    if (threads.empty()) threads.push_back(at::get_num_threads());
    LatencyOptions latency;
    latency.relative_interval = options_.relative_interval;
    latency.seed = options_.seed;
    latency.interrupted = interrupted;
    latency.machine_clock = [this] { return machine_time(options_.energy.root); };
    latency.progress = [this, text = std::string(), next = 0.0](double done, double total) mutable {
        if (const double now = wall_seconds(); now >= next) {  // meters are not read after every round
            next = now + 1;
            text = spent_text(stage_meter_.spent());
        }
        log->progress("timing", done, total, text);
    };
    const auto configurations = static_cast<double>(options_.batches.size() * threads.size());
    latency.seconds = std::max(kMinimumSeconds, options_.seconds() / configurations);
    latency.warm_up_seconds = std::min(3.0, latency.seconds);
    auto rows = measure_latency(variants, example_, options_.batches, threads, latency, meter_.get());
    // A model of one fixed input, such as a whole graph, refuses every batch size but its own.
    const bool any = std::any_of(rows.begin(), rows.end(),
                                 [](const std::vector<Latency>& row) { return row.front().p50_s.available(); });
    if (!any && batch_of(example_) > 0) {
        for (auto& row : measure_latency(variants, example_, {batch_of(example_)}, threads, latency, meter_.get()))
            rows.push_back(std::move(row));
    }
    if (idle_before) {
        idle = idle_change(*idle_before, *look_at_idle());
        if (!idle->note.empty()) log->info("idle machine: " + idle->note);
    }
    return rows;
}

Json Measurer::assemble(const Subject& subject) const {
    Json json = {{"format", "coppice-measurement"},
                 {"version", 1},
                 {"stage", subject.stage},
                 {"model_file", subject.file.filename().string()}};

    const MetricValue* quality = subject.evaluation ? subject.evaluation->find(metric_) : nullptr;
    MetricValue none;
    if (!quality) {
        none.name = metric_;
        none.figure = Figure::unavailable("1", "there is no labelled data");
        none.higher_is_better = make_metric(metric_, task_, "task")->higher_is_better();
        quality = &none;
    }
    json["quality"] = {{"metric", metric_},
                       {"value", quality->figure.value ? Json(*quality->figure.value) : Json(nullptr)},
                       {"points", quality->figure.value ? Json(quality->points) : Json(nullptr)},
                       {"higher_is_better", quality->higher_is_better},
                       {"figure", quality->figure.to_json()},
                       {"split", data_ ? Json(split_) : Json(nullptr)},
                       {"data", data_ ? Json(data_->description()) : Json(nullptr)},
                       {"examples", subject.evaluation ? subject.evaluation->examples : 0}};
    if (!quality->paired.is_null()) json["quality"]["paired"] = quality->paired;
    json["metrics"] = Json::object();
    if (subject.evaluation)
        for (const auto& value : subject.evaluation->metrics) json["metrics"][value.name] = to_json(value);

    auto& figures = json["figures"] = Json::object();
    for (const auto& [name, figure] : subject.sizes) figures[name] = figure.to_json();
    Figure idle_power = meter_->idle_power_w();  // what the user gave counts more than a look of some seconds
    if (!idle_power.available() && subject.idle) idle_power = subject.idle->power_w;
    const bool counts_idle = meter_->counts_idle();
    Figure power, energy, net, memory, embodied, energy_ratio, overhead;
    const auto machine = environment(options_.energy.root);
    if (const auto* row = representative(subject.latency)) {
        power = row->power_w;
        energy_ratio = row->energy_ratio;
        energy = quotient(row->energy_j, Figure::measured(static_cast<double>(row->batch), "1", "batch size"), "J",
                          row->energy_j.method + "; per example at batch " + std::to_string(row->batch) + ", " +
                              std::to_string(row->threads) + (row->threads == 1 ? " thread" : " threads"));
        const auto seconds =
            quotient(Figure::measured(1, "1", "example"), row->throughput_per_s, "s", "1 / throughput");
        net = net_of_idle(energy, idle_power, seconds, counts_idle);
        memory = memory_energy_j(*meter_, machine.memory_bytes, seconds);
        embodied = options_.embodied_g(seconds);
        overhead = row->meter_overhead;
    } else {
        const std::string reason =
            subject.latency.empty() ? "timing is switched off (profile: off)" : subject.latency.front().p50_s.reason;
        power = Figure::unavailable("W", reason);
        energy = net = memory = Figure::unavailable("J", reason);
        embodied = options_.embodied_g(Figure::unavailable("s", reason));
        overhead = Figure::unavailable("ratio", reason);
        energy_ratio = Figure::unavailable("ratio", reason);
    }
    figures["power_w"] = power.to_json();
    figures["idle_power_w"] = idle_power.to_json();
    figures["energy_per_inference_j"] = energy.to_json();
    figures["net_energy_per_inference_j"] = net.to_json();
    figures["memory_energy_per_inference_j"] = memory.to_json();
    figures["meter_overhead_ratio"] = overhead.to_json();
    figures["energy_ratio_to_baseline"] = energy_ratio.to_json();
    figures["carbon_per_inference_g"] = carbon_g(energy, grid_, options_.pue).to_json();
    figures["embodied_per_inference_g"] = embodied.to_json();
    // A declared share that cannot be computed must not turn into one that is not declared.
    figures["sci_per_inference_g"] =
        (options_.embodied_kg && !embodied.available() ? embodied
                                                       : sci_g(energy, grid_, options_.pue, embodied, 1, "inference"))
            .to_json();

    json["latency"] = Json::array();
    for (const auto& row : subject.latency) json["latency"].push_back(row.to_json());
    json["environment"] = machine.to_json();
    json["idle"] = subject.idle ? subject.idle->to_json() : Json(nullptr);
    if (subject.idle && !subject.idle->note.empty())
        json["warnings"].push_back("The idle machine: " + subject.idle->note + ".");
    if (overhead.value && *overhead.value > kMeterOverheadRatio)
        json["warnings"].push_back("The energy source's own calls took more than 0.5 % of the time that was measured.");
    if (!subject.compression.is_null()) {
        json["compression"] = subject.compression;
        const auto seconds = Figure::from_json(subject.compression.at("seconds"));
        json["compression"]["net_energy_j"] =
            net_of_idle(Figure::from_json(subject.compression.at("energy_j")), idle_power, seconds, counts_idle)
                .to_json();
        json["compression"]["memory_energy_j"] = memory_energy_j(*meter_, machine.memory_bytes, seconds).to_json();
        json["compression"]["embodied_g"] = options_.embodied_g(seconds).to_json();
    }
    json["carbon"] = grid_.to_json(options_.pue);
    json["carbon"]["embodied_kg"] = options_.embodied_kg ? Json(*options_.embodied_kg) : Json("not declared");
    return json;
}

Json Measurer::measure(const Model& baseline, const Model& candidate, const std::filesystem::path& model_file,
                       const std::string& stage) {
    Subject subject;
    subject.stage = stage;
    subject.file = model_file;
    const bool is_baseline = stage == "baseline" || candidate.module()._ivalue() == baseline.module()._ivalue();
    if (!is_baseline) subject.compression = stage_meter_.read();

    const auto module = load_module(model_file);
    if (data_ && is_baseline) {
        subject.evaluation = run_metrics(module, nullptr);
        baseline_ = std::make_shared<Evaluation>(*subject.evaluation);
        baseline_object_ = baseline.module()._ivalue();
    } else if (data_) {
        subject.evaluation = run_metrics(module, baseline_evaluation(baseline));
    }
    subject.sizes = size_figures(model_file, candidate, example_);
    std::vector<Variant> variants;
    if (!is_baseline) variants.push_back({"baseline", baseline.module()});
    variants.push_back({stage, module});
    for (const auto& rows : time_all(variants, subject.idle)) subject.latency.push_back(rows.back());
    auto json = assemble(subject);
    stage_meter_.restart();
    return json;
}

std::vector<Json> Measurer::compare(const std::vector<std::filesystem::path>& files, size_t baseline) {
    if (baseline >= files.size())
        throw InvalidArgument("eval",
                              "there is no model number " + std::to_string(baseline + 1) + " to be the baseline",
                              "Give at least one model.");
    // The baseline goes first in timing and evaluation; results are in the order of `files`.
    std::vector<size_t> order = {baseline};
    for (size_t i = 0; i < files.size(); ++i)
        if (i != baseline) order.push_back(i);
    std::vector<Subject> subjects(files.size());
    std::vector<Variant> variants;
    for (const size_t index : order) {
        auto& subject = subjects[index];
        subject.stage = files[index].string();
        subject.file = files[index];
        variants.push_back({subject.stage, load_module(files[index])});
        log->progress("evaluating", static_cast<double>(variants.size()), static_cast<double>(files.size()),
                      subject.stage);
        if (data_) {
            const auto& reference = subjects[baseline].evaluation;
            subject.evaluation = run_metrics(variants.back().module, index == baseline ? nullptr : &*reference);
        }
        Model model;
        std::string reason;
        try {
            model = Model::load(files[index]);
        } catch (const Error& error) {
            reason = "not analysed: " + message_of(error);
        }
        subject.sizes = size_figures(files[index], model, example_, reason);
    }
    std::optional<IdleChange> idle;
    for (const auto& rows : time_all(variants, idle))
        for (size_t i = 0; i < order.size(); ++i) subjects[order[i]].latency.push_back(rows[i]);
    for (auto& subject : subjects) subject.idle = idle;
    std::vector<Json> result;
    for (const auto& subject : subjects) result.push_back(assemble(subject));
    return result;
}

Json measure(const Model& baseline, const Model& candidate, const std::filesystem::path& model_file,
             const std::string& stage, const Inputs& example, std::shared_ptr<const Dataset> data,
             const std::string& split, Task task, const MeasureOptions& options) {
    Measurer measurer(example, std::move(data), split, task, "", options);
    return measurer.measure(baseline, candidate, model_file, stage);
}

}  // namespace coppice::eval
