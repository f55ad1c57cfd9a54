/// A stage is one step of a pipeline; the context is what it may use.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <coppice/data.h>
#include <coppice/model.h>
#include <coppice/registry.h>

namespace coppice {

/// What a stage, criterion or loss cannot work without; checked before anything runs.
struct Needs {
    bool calibration_data = false;
    bool training_data = false;
    bool labels = false;
    bool teacher = false;
    Needs operator|(const Needs& o) const {
        return {calibration_data || o.calibration_data, training_data || o.training_data, labels || o.labels,
                teacher || o.teacher};
    }
};

/// Where messages go. The library never prints: the program decides. Levels: "debug", "info", "warning".
class Log {
public:
    virtual ~Log() = default;
    virtual void write(const std::string& level, const std::string& message) = 0;
    /// A long task at `done` of `total`; `detail` such as "loss 0.31". Called often; the log decides what to show.
    virtual void progress(const std::string& task, double done, double total, const std::string& detail) {
        (void)task, (void)done, (void)total, (void)detail;
    }
    /// One machine-readable event, a line of log.jsonl.
    virtual void event(const Json& record) { (void)record; }
    void info(const std::string& message) { write("info", message); }
    void warning(const std::string& message) { write("warning", message); }
};

/// A log that keeps silent.
Log& null_log();

/// What the task is, from the recipe; decides the default loss and metric.
enum class Task { kClassification, kRegression, kSimilarity };

/// Scalar loss of a batch. Implementations hold no state that depends on the batch.
class Loss {
public:
    virtual ~Loss() = default;
    virtual Needs needs() const { return {}; }
    /// @param output   of the model in training, the tensor that first_tensor() gives
    /// @param teacher  output of the teacher for the same inputs; undefined unless needs().teacher
    virtual at::Tensor operator()(const at::Tensor& output, const at::Tensor& teacher, const Batch& batch) const = 0;
};

/// What work has cost since a fixed moment, by an instrument or a model that the caller passes in.
struct Spent {
    std::optional<double> energy_j, carbon_g;
    std::string provenance;  ///< of the energy, as in measurement.json: "measured", "modelled", ...
    std::string reason;      ///< why something is not known
};

/// One thing that a stage did or left, for stage.json and the report.
struct LayerChange {
    std::string layer;          ///< name as in LayerNames
    std::string action;         ///< "pruned", "factorised", "int8", "kept", "folded"
    std::string before, after;  ///< "64 channels", "[64, 64, 3, 3]", "float32"
    std::string reason;         ///< why, for what was kept
};

/// What a stage may use. Made by the pipeline, or by hand in a C++ program; null members are absent.
struct Context {
    Inputs example;  ///< arguments for one run of the model
    Task task = Task::kClassification;
    uint64_t seed = 0;
    int threads = 0;  ///< 0: LibTorch's default
    DataSplits data;
    const Model* baseline = nullptr;               ///< the model before the first stage: the default teacher
    std::function<double(const Model&)> evaluate;  ///< the metric, higher is better; on which data: see judging.h
    std::function<Spent()> spent;                  ///< for the log of a training and its budgets
    std::filesystem::path work_dir;                ///< for checkpoints; empty: keep nothing
    std::filesystem::path base_dir;                ///< what relative paths in a recipe are relative to
    Log* log = &null_log();
    std::function<bool()> interrupted = [] { return false; };  ///< polled by long loops, which then throw Interrupted
    std::vector<LayerChange> changes;                          ///< filled by the stage
    Json facts = Json::object();  ///< filled by the stage: figures of its own for stage.json ("macs_before", ...)

    void record(LayerChange change) { changes.push_back(std::move(change)); }
};

/// One step of a pipeline. Returns a changed copy and never edits its argument.
class Stage {
public:
    virtual ~Stage() = default;
    virtual Needs needs() const { return {}; }
    /// Checks what can be checked without work: called for every stage before the first one runs. For stages behind
    /// others `model` is the baseline.
    virtual void check(const Model& model, const Context& context) const { (void)model, (void)context; }
    virtual Model apply(const Model& model, Context& context) const = 0;
};

/// Rows of output that the targets of the batch speak of: output[batch.rows], or output as it is.
at::Tensor selected(const at::Tensor& output, const Batch& batch);

}  // namespace coppice
