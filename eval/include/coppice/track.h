/// Tracking any work: windows of energy in C++, the process tree of a command, and records that other tools read.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <coppice/eval.h>

namespace coppice::eval {

/// What a stretch of work took.
struct Usage {
    std::string name;       ///< of a nested window: "train/epoch 1"
    double started = 0;     ///< seconds since 1970
    Figure seconds, cpu_s;  ///< wall clock; CPU time
    Figure energy_j, power_w, carbon_g;
    Json to_json() const;
};

/// What the windows of a program share: source, grid and the list of finished windows. Thread-safe.
class EnergyLog {
public:
    /// Chooses the source once. @throws as make_energy_meter()
    explicit EnergyLog(EnergyOptions options = {}, Grid grid = grid_of("WORLD"), double pue = 1.0);
    const std::string& source() const { return options_.source; }
    const Grid& grid() const { return grid_; }
    double pue() const { return pue_; }
    /// Finished windows in the order in which they ended.
    std::vector<Usage> finished() const;

private:
    friend class EnergyWindow;
    EnergyOptions options_;
    Grid grid_;
    double pue_;
    mutable std::mutex mutex_;
    std::vector<Usage> finished_;
};

/// Energy from the constructor to stop() or the destructor. Windows may be nested and may overlap, in one thread or in
/// several: each has a meter of its own. A window that is opened inside another one of the same thread and log takes
/// its name before its own. One object serves one thread.
///
///     auto log = std::make_shared<EnergyLog>();
///     for (int epoch = 1; epoch <= 3; ++epoch) {
///         const EnergyWindow window(log, "epoch " + std::to_string(epoch));
///         train();
///     }
///     for (const auto& usage : log->finished()) std::cout << usage.to_json() << "\n";
class EnergyWindow {
public:
    EnergyWindow(std::shared_ptr<EnergyLog> log, const std::string& name);
    ~EnergyWindow();
    EnergyWindow(const EnergyWindow&) = delete;
    EnergyWindow& operator=(const EnergyWindow&) = delete;
    Usage read() const;
    /// Ends the window and notes it in the log. Once: later calls return the same.
    Usage stop();

private:
    std::shared_ptr<EnergyLog> log_;
    std::string name_;
    std::unique_ptr<EnergyMeter> meter_;
    double wall_ = 0, cpu_ = 0, unix_ = 0;
    std::optional<Usage> result_;
};

/// CPU time and memory of a process and all its descendants, from /proc. Processes that ended count as far as a living
/// one of the tree waited for them; the caller adds those that it waits for itself.
class ProcessTree {
public:
    /// @param folder  /proc, or a synthetic one
    explicit ProcessTree(std::filesystem::path folder = "/proc") : folder_(std::move(folder)) {}
    struct Sample {
        double cpu_s = 0;
        /// Memory that each process has for itself, plus the largest shared part: shared pages are counted once.
        int64_t memory_bytes = 0;
        int64_t processes = 0;
    };
    /// All descendants of `parent`, without itself.
    Sample sample(int parent) const;

private:
    std::filesystem::path folder_;
};

/// Everything that is known of a tracked run.
struct TrackRecord {
    std::string project, user, run_id, experiment_id;
    std::vector<std::string> tags, command;
    int exit_code = 0;
    Usage usage;
    Figure peak_memory_bytes, idle_power_w, net_energy_j;
    Figure memory_energy_j;  ///< see eval::memory_energy_j(); not in usage.energy_j
    Environment environment;
    std::string source;  ///< of energy
    std::string version;
    Grid grid;
    double pue = 1;
    Json idle;                       ///< IdleChange::to_json(); null: not looked at
    Json accounts = Json::object();  ///< further figures for the JSON, by name: "cost", "sci_g", ...
    /// {"format": "coppice-track", "version": 1, ...}
    Json to_json() const;
};

/// The columns of emissions.csv: those of CodeCarbon 3 in its order, then method, provenance and interval.
std::vector<std::string> emissions_columns();
/// Appends a row (and the header to a new file). Units are CodeCarbon's: kWh, kg, kg/s, s, GB. What is not known is
/// empty, never 0. Several processes may append at once (flock); a last line that was cut off is ended first, and the
/// file reaches the disk before this returns.
/// @throws IoError when the file has other columns, or cannot be written
void append_emissions(const std::filesystem::path& path, const TrackRecord& record);
/// Whether append_emissions() could write there, before there is a row: a long run must not end in that error.
/// @throws IoError as append_emissions() would
void check_emissions(const std::filesystem::path& path);
/// `co2_eq_emissions` of a Hugging Face model card: emissions in grams, source, hardware, place. Null value when there
/// is no figure.
Json co2_eq_emissions(const TrackRecord& record);
/// The same as YAML for the head of a model card.
std::string model_card_field(const TrackRecord& record);

}  // namespace coppice::eval
