/// Runs stages one after the other over a run directory that survives a crash.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <coppice/stage.h>

namespace coppice {

/// A folder that holds one run: manifest.json, recipe.yaml, log.jsonl, 00-baseline/, 01-<stage>/ ... each with
/// model.pt, stage.json and measurement.json. A stage is finished once its folder has its final name: work happens in
/// `<folder>.partial`, which is renamed. One process at a time holds the folder (flock on `lock`).
class RunDirectory {
public:
    /// Creates the folder, or opens it for resuming; a folder in which nothing was begun yet counts as new.
    /// @throws IoError when another process holds it, when it holds a run and `resume` is false (the message proposes a
    ///         free name), when it holds something else, or when the manifest differs from the run's: model, data,
    ///         recipe, seed, Coppice or LibTorch version; the message says which. Paths and the report's settings may
    ///         differ.
    static RunDirectory open(const std::filesystem::path& path, const Json& manifest, bool resume);
    RunDirectory(RunDirectory&&) noexcept;
    RunDirectory& operator=(RunDirectory&&) noexcept;
    ~RunDirectory();

    const std::filesystem::path& path() const { return path_; }
    bool resumed() const { return resumed_; }  ///< the folder held a run when it was opened
    /// The manifest in force: of a resumed run the one that is on disk.
    const Json& manifest() const { return manifest_; }
    /// Folder name of stage `index` (0: baseline): "01-prune.channel".
    static std::string folder_name(size_t index, const std::string& stage);
    /// The folder has its final name and its files can be read as what they are.
    bool finished(const std::string& folder) const;
    std::filesystem::path partial(const std::string& folder) const;  ///< made if absent; kept by a crash (checkpoints)
    void commit(const std::string& folder);                          ///< renames partial to final, syncs
    /// Renames a folder (or its partial) that cannot be used to `<folder>.aside-<n>`; returns the new path.
    std::filesystem::path set_aside(const std::string& folder);
    void write_manifest(const Json& manifest);
    /// Puts a copy of `model_file` at <run>/model.pt by rename.
    void publish(const std::filesystem::path& model_file);
    /// Appends one line to log.jsonl, with the time in front.
    void event(const Json& record);

private:
    RunDirectory() = default;
    std::filesystem::path path_;
    Json manifest_;
    int lock_ = -1, log_ = -1;
    bool resumed_ = false;
};

/// What differs between two manifests as far as a result depends on it, one clause each: `stages[0].prune.channel.ratio
/// was 0.3, is 0.5`, `the model file has other bytes`.
std::vector<std::string> manifest_differences(const Json& before, const Json& now);

/// Writes `text` to `path` by way of a temporary file beside it, fsync and rename. @throws IoError
void write_atomically(const std::filesystem::path& path, const std::string& text);
std::string read_text(const std::filesystem::path& path);  ///< @throws IoError
Json read_json(const std::filesystem::path& path);         ///< @throws IoError with the position of a syntax error

/// SHA-256 of what a model file holds: tensors and code, without the numbers that the canonical form gives to type
/// names. Two runs that computed the same have the same, whatever else their processes did before. @throws IoError
std::string model_content_sha256(const std::filesystem::path& path);

struct PipelineStage {
    std::string name;  ///< "prune.channel"
    Json options;      ///< resolved, for stage.json
    std::shared_ptr<Stage> stage;
    bool recovers = false;   ///< trains: the stages before it are judged by the gate after it, together with it
    std::string where = {};  ///< of the stage in the recipe, for messages
};

struct StageResult {
    std::string folder, name;  ///< "01-prune.channel", "prune.channel"
    Json measurement;          ///< as measurement.json
    bool kept = true;          ///< false: missed the gate or made nothing better; the previous model goes on
    bool gate_missed = false;  ///< lost more quality than the gate allows
    std::string verdict;       ///< one sentence
    bool resumed = false;      ///< finished by an earlier process, not repeated
};

struct Gate {
    std::optional<double> max_drop;  ///< in points of the metric ("/quality/points"), against the baseline
};

struct PipelineOptions {
    Gate gate;
    bool stop_at_gate =
        false;  ///< false: a stage that misses the gate is undone and the next one runs on the model before it
};

/// The candidate and what producing it took. A stage that was killed and resumed counts what was spent before, up to
/// the last sign of life.
struct StageWork {
    std::string stage;                 ///< "baseline", "prune.channel"
    std::filesystem::path model_file;  ///< the candidate on disk
    double seconds = 0;                ///< wall clock, 0 for the baseline
    double cpu_seconds = 0;            ///< of all threads and children
};

/// Measures `candidate` against `baseline` and returns measurement.json; has a number at /quality/points, higher is
/// better, when there is labelled data, and one at /validation/points where other data steer: the gate then looks
/// there.
using Measure = std::function<Json(const Model& baseline, const Model& candidate, const StageWork& work)>;

/// Every stage's needs and check(), before any work. The first problem is thrown, others are logged as warnings.
/// @throws InvalidArgument what a stage needs and the context lacks; whatever check() throws
void check_stages(const Model& baseline, const std::vector<PipelineStage>& stages, Context& context);

/// Checks every stage first, then for each: apply to a copy, verify (lint, example runs, output shapes kept), save,
/// reload, measure the reloaded model, gate, commit. Stages already committed in `run` are loaded, not repeated; one
/// whose files are damaged, or whose input is another model now, is moved aside and repeated.
///
/// The gate: a stage is undone when quality fell by more than max_drop points against the baseline. Where a stage that
/// recovers follows, the decision waits for it, and all stages since the last accepted model are kept or undone
/// together. With a gate, a stage that made the model slower, not smaller and not better is undone, too, as is one that
/// changed nothing; without one the verdict says so. Verdicts depend on the measurements alone, so a resumed run
/// repeats them.
///
/// Random numbers start from context.seed in every stage, so that a resumed run draws what an uninterrupted one draws.
/// @return one result per stage, the baseline first; the last accepted model is at <run>/model.pt, too.
/// @throws Interrupted when context.interrupted says so; whatever a stage throws, LibTorch's errors as Error
std::vector<StageResult> run_pipeline(const Model& baseline, const std::vector<PipelineStage>& stages, Context& context,
                                      RunDirectory& run, const Measure& measure, const PipelineOptions& options);

}  // namespace coppice
