/// Measuring: quality and the six measures of greenness. Every figure says where it comes from and how sure it is.
#pragma once

#include <torch/script.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <coppice/clock.h>
#include <coppice/data.h>
#include <coppice/graph.h>
#include <coppice/model.h>
#include <coppice/registry.h>
#include <coppice/stage.h>

namespace coppice::eval {

// ------------------------------------------------------------------------------------------------------------- figures

/// Where a figure comes from, strongest first. What is computed from several carries the weakest of them.
enum class Provenance {
    kMeasured,     ///< read from an instrument, a clock or a file
    kDerived,      ///< computed from measured figures alone
    kModelled,     ///< a model applied to measured activity
    kAssumed,      ///< a constant that the user or a table supplied
    kUnavailable,  ///< no value, with the reason; never 0
};

/// "measured", "derived", "modelled", "assumed", "unavailable".
const char* name_of(Provenance provenance);
/// Of a figure computed from `a` and `b`: the weaker of the two, and at best derived.
Provenance combined(Provenance a, Provenance b);

struct Interval {
    double low = 0, high = 0;
};

/// A number as Coppice reports it.
struct Figure {
    std::optional<double> value;  ///< absent exactly when provenance is kUnavailable
    std::string unit = "1";       ///< "s", "J", "g", "W", "B", "1" (a count), "ratio", "1/s"
    Provenance provenance = Provenance::kUnavailable;
    std::string method;                ///< one clause: how it was obtained
    std::optional<Interval> interval;  ///< 95 %, statistical; absent: exact, or not known
    std::string reason;                ///< why there is no value
    /// Of the method: the truth lies within value x [low, high] beside the statistical error.
    std::optional<Interval> systematic_ratio;

    static Figure measured(double value, std::string unit, std::string method, std::optional<Interval> interval = {});
    static Figure derived(double value, std::string unit, std::string method, std::optional<Interval> interval = {});
    static Figure modelled(double value, std::string unit, std::string method, std::optional<Interval> interval = {},
                           std::optional<Interval> systematic_ratio = {});
    static Figure assumed(double value, std::string unit, std::string method);
    static Figure unavailable(std::string unit, std::string reason);

    bool available() const { return value.has_value(); }
    /// Where the value lies by its statistical and systematic error together; nullopt without a value or without
    /// either.
    std::optional<Interval> bounds() const;
    /// The object of measurement.json: value, unit, provenance, method, interval; reason and systematic_ratio where
    /// they are.
    Json to_json() const;
    /// @throws IoError when the object is no figure (a value without provenance, a null that claims to be measured)
    static Figure from_json(const Json& json);
};

/// a x b. Statistical intervals are combined as independent relative errors (in quadrature, each side by itself),
/// systematic ones by their extremes; unavailable if either is.
Figure product(const Figure& a, const Figure& b, const std::string& unit, const std::string& method);
/// a / b, likewise; unavailable when b is 0.
Figure quotient(const Figure& a, const Figure& b, const std::string& unit, const std::string& method);
/// a + b of one unit: statistical half widths in quadrature.
Figure sum(const Figure& a, const Figure& b, const std::string& method);

// ---------------------------------------------------------------------------------------------------------- statistics

/// Wilson's score interval for a proportion (JASA 22, 1927). @param confidence in (0, 1)
Interval wilson_interval(int64_t successes, int64_t trials, double confidence = 0.95);

/// Exact two-sided McNemar test: the probability of a split of gained + lost at least this uneven if neither is better.
double mcnemar_p_value(int64_t gained, int64_t lost);

/// The q-quantile by linear interpolation between order statistics. @param values not empty, any order
double quantile(std::vector<double> values, double q);

/// Smallest number of queries at which an upper bound of the q-quantile exists with one exceedance: the early-stopping
/// rule of MLPerf inference (arXiv 1911.02549). 64 for q = 0.9 and 662 for q = 0.99.
int64_t minimum_queries(double q, double confidence = 0.99);

/// Distribution-free interval of the q-quantile of independent values: two order statistics by the binomial law.
/// Absent when there are too few values for that confidence.
std::optional<Interval> quantile_interval(std::vector<double> values, double q, double confidence = 0.95);

/// Interval of `statistic` under a circular block bootstrap (Politis & Romano 1992): blocks of `block` neighbours are
/// drawn with replacement, so that correlation up to that length is kept. Percentiles are widened for the few blocks
/// there are (expanded percentile interval, arXiv 1411.5279). Absent with fewer than 4 blocks.
/// @param statistic  of a resample given as indices into the series
std::optional<Interval> block_bootstrap(int64_t count, int64_t block,
                                        const std::function<double(const std::vector<int64_t>&)>& statistic,
                                        int resamples = 1000, uint64_t seed = 0, double confidence = 0.95);

struct PairedRatio {
    double ratio = 1;                  ///< exp of the median of log(candidate[i] / baseline[i])
    std::optional<Interval> interval;  ///< block bootstrap
};
/// Ratio of two series that were measured side by side: element i of both belongs to the same moment, so drift cancels.
/// @param block  neighbouring pairs that are drawn together
PairedRatio paired_log_ratio(const std::vector<double>& baseline, const std::vector<double>& candidate, int64_t block,
                             uint64_t seed = 0);

// ------------------------------------------------------------------------------------------------------------- quality

/// Anything that maps inputs to an output: a canonical model, or a module as torch::jit::load gives it (int8 ones too).
/// Runs without autograd and in eval mode; a module in training mode is put back into it afterwards.
class Runner {
public:
    Runner(const Model& model);                           // NOLINT: meant to convert
    Runner(torch::jit::Module module);                    // NOLINT
    Runner(std::function<c10::IValue(Inputs)> function);  // NOLINT
    c10::IValue operator()(const Inputs& inputs) const;

private:
    std::function<c10::IValue(Inputs)> function_;
};

/// A measure of quality, fed batch by batch. One object serves one pass over one dataset.
class Metric {
public:
    virtual ~Metric() = default;
    virtual bool higher_is_better() const = 0;
    /// Adds a batch. @param output  first tensor of the model's output, the rows that the target speaks of, float32
    /// @throws InvalidArgument when output and target do not fit this metric
    virtual void add(const at::Tensor& output, const Batch& batch) = 0;
    /// Value with 95 % interval. @throws InvalidArgument when no example was added
    virtual Figure result() const = 0;
    /// What gates compare: higher is better, percent for ratios, minus the value for losses.
    virtual double points(double value) const { return higher_is_better() ? value : -value; }
    /// One number per example whose mean is the metric, float64 [N]; undefined where there is none (rank correlation).
    virtual at::Tensor scores() const { return {}; }
    /// Comparison with the same metric of the baseline on the same examples: {"difference", "interval", and for hits
    /// "gained", "lost", "p_value" (McNemar)}. Null when the two cannot be paired.
    virtual Json paired(const Metric& baseline) const;
};

/// Metrics by name, sorted: auc, balanced_accuracy, ece, f1, log_loss, loss, mae, mape, mean_iou, mse, pearson,
/// perplexity, r2, spearman, top1, top5.
const std::vector<Entry<Metric>>& metrics();

/// A row of metrics(), or "file:metric.pt": a TorchScript module whose forward(output, target) gives one score per
/// example, float [N], whose mean is the metric, or one number for all examples at once. An attribute higher_is_better
/// (bool) says which way is better; without one, higher is.
/// @throws InvalidArgument for an unknown name, IoError for a file that cannot be loaded
std::unique_ptr<Metric> make_metric(const std::string& name, Task task, const std::string& owner);

/// Metrics that are reported for a task besides the one asked for; the first is the task's default.
std::vector<std::string> default_metrics(Task task);

struct MetricValue {
    std::string name;
    Figure figure;
    bool higher_is_better = true;
    double points = 0;
    Json paired;  ///< see Metric::paired; null without a baseline
};

/// What one pass over a dataset gave.
struct Evaluation {
    std::vector<MetricValue> metrics;  ///< those asked for, then agreement with the baseline
    int64_t examples = 0;              ///< targets compared
    std::vector<at::Tensor> outputs;   ///< per batch: selected rows, float32; for comparisons with later models
    std::vector<std::shared_ptr<const Metric>> accumulators;  ///< behind `metrics`, in order
    double seconds = 0;

    const MetricValue* find(const std::string& name) const;
};

/// Runs a model once over a dataset, in order, for all metrics. With a baseline's evaluation of the same data and batch
/// size it adds, by task: `agreement` (share of equal predictions) and `kl_to_baseline` (nats), `max_difference` and
/// `mean_difference` (absolute), or `baseline_correlation` (Pearson, of the similarities), and pairs every metric.
/// @throws InvalidArgument for an unknown metric, or outputs and targets that do not fit; Interrupted
Evaluation evaluate(const Runner& model, const Dataset& data, const std::vector<std::string>& names, Task task,
                    int64_t batch_size = 256, const Evaluation* baseline = nullptr,
                    const std::function<bool()>& interrupted = {});

// -------------------------------------------------------------------------------------------------------------- energy

using coppice::cpu_seconds;
using coppice::wall_seconds;
/// Seconds since 1970.
double unix_seconds();

/// Energy since start(). All sources, counters and models alike, sit behind this. Not thread-safe; several meters may
/// run at once.
class EnergyMeter {
public:
    virtual ~EnergyMeter() = default;
    virtual std::string name() const = 0;
    /// One clause on what is measured, for reports.
    virtual std::string method() const = 0;
    virtual void start() = 0;
    /// Joules since start(), without stopping; unavailable with the reason when the source failed meanwhile.
    virtual Figure read() = 0;
    /// Joules since start().
    virtual Figure stop() { return read(); }
    /// Power while nothing runs.
    virtual Figure idle_power_w() const;
    /// Whether it goes on counting while nothing runs, as instruments do; a model of busy time does not.
    virtual bool counts_idle() const { return true; }
    /// Shorter windows say little, because the source moves in steps; 0 where that is no matter.
    virtual double minimum_window_s() const { return 0; }
    /// Between two steps of its counter; 0 where that is no matter. Windows that are repeated begin at a random phase
    /// of it: a sensor that looks a part of the time only would else see the same part of each.
    virtual double update_s() const { return 0; }
    /// Whether memory is in its figure.
    virtual bool counts_memory() const { return false; }
};

/// Joules that a perf event counted since it was opened, before its scale; none when it cannot be read any more.
using PerfCounter = std::function<std::optional<uint64_t>()>;
/// Opens event `config` of the unit `type` on one CPU, for all processes; empty, with errno in `error`, where that
/// fails.
using PerfOpener = std::function<PerfCounter(uint32_t type, uint64_t config, int cpu, int& error)>;

struct EnergyOptions {
    /// auto: the best usable that covers the machine; a name of energy_sources(); several with + between are added.
    std::string source = "auto";
    bool with_gpus = false;                    ///< auto: adds what GPUs report to what the machine reports
    std::optional<double> cpu_watts_per_core;  ///< overrides the table of the cpu_time model
    std::optional<double> idle_watts;          ///< of the machine, if known
    std::filesystem::path root = "/";          ///< below which /sys and /proc are looked for
    std::vector<int64_t> gpus;                 ///< numbers of the GPUs to count; empty: all
    std::filesystem::path meter_file;          ///< of source meter_csv: columns time and watts
    std::filesystem::path nvml_library = "libnvidia-ml.so.1";
    std::filesystem::path amd_smi_library = "libamd_smi.so";
    PerfOpener perf_opener;              ///< the system call perf_event_open when empty
    std::function<double()> cpu_clock;   ///< CPU seconds that source cpu_time charges; cpu_seconds() when empty
    std::function<double()> unix_clock;  ///< seconds since 1970 that meter_csv goes by; the system's when empty
};

/// What `coppice doctor` prints of one source.
struct EnergySourceStatus {
    std::string name, summary;
    bool usable = false;
    std::string reason;  ///< why not, or what it will read
    std::string enable;  ///< command that would make it usable; empty when there is none
};

/// What a source covers: `auto` takes one that covers the machine, and adds GPUs where they are asked for.
enum class EnergyScope { kMachine, kGpu, kNothing };

/// One row per source, best first.
struct EnergySource {
    std::string name, summary;
    std::function<EnergySourceStatus(const EnergyOptions&)> probe;
    std::function<std::unique_ptr<EnergyMeter>(const EnergyOptions&)> make;  ///< only if usable
    EnergyScope scope = EnergyScope::kMachine;
};
const std::vector<EnergySource>& energy_sources();
std::vector<EnergySourceStatus> probe_energy_sources(const EnergyOptions& options = {});

/// What memory of that size takes in that time: 0.3725 W per GB, the figure of Green Algorithms, modelled. For where no
/// counter has it, as a figure of its own: it is time x a constant, so that it tells nothing of a model but its time.
/// Unavailable where `meter` counts memory itself, or the size is not known.
Figure memory_energy_j(const EnergyMeter& meter, int64_t memory_bytes, const Figure& seconds);

/// The best usable source, the one named, or the sum of several ("rapl+nvml"). @throws InvalidArgument for an unknown
/// name, MeasurementError with the enabling command when a named one is not usable here
std::unique_ptr<EnergyMeter> make_energy_meter(const EnergyOptions& options = {});

/// CPU time of the whole machine since it booted, all CPUs together.
struct MachineTime {
    double busy_s = 0, idle_s = 0;
    double steal_s = 0;  ///< that the hypervisor gave to other guests; in neither of the two
};
/// From /proc/stat below `root`, in steps of 10 ms; nothing where it cannot be read.
std::optional<MachineTime> machine_time(const std::filesystem::path& root = "/");

/// The machine while this process sleeps.
struct Idle {
    Figure seconds;       ///< of sleep
    Figure power_w;       ///< what the meter counted / time
    Figure others_ratio;  ///< CPU time of other programs / time of all CPUs: what interferes
    Figure steal_ratio;   ///< CPU time that other guests took / time of all CPUs
    Json to_json() const;
};

struct IdleOptions {
    double seconds = 5;
    std::filesystem::path root = "/";
    std::function<double()> clock;                              ///< seconds; wall_seconds() when empty
    std::function<void(double)> sleep;                          ///< the system's when empty
    std::function<std::optional<MachineTime>()> machine_clock;  ///< machine_time(root) when empty
};
/// Sleeps for so long and looks at the meter and the machine.
Idle measure_idle(EnergyMeter& meter, const IdleOptions& options = {});

/// Idle before and after a piece of work.
struct IdleChange {
    Idle before, after;
    Figure power_w;        ///< mean of both
    Figure drift_ratio;    ///< |after - before| / mean of the power; else the difference of the busy share of others
    bool drifted = false;  ///< by more than 0.05: what was measured between is not to be compared with other times
    std::string note;      ///< what drifted, or who else used the machine, in words; empty: nothing
    Json to_json() const;
};
IdleChange idle_change(const Idle& before, const Idle& after);

/// Energy less what idling for that time takes. Unavailable where idling would have taken more; the energy itself where
/// the source does not count idle draw. @param counts_idle  EnergyMeter::counts_idle() of its source
Figure net_of_idle(const Figure& energy_j, const Figure& idle_power_w, const Figure& seconds, bool counts_idle = true);

/// What NVML says of the NVIDIA GPUs here.
struct NvmlStatus {
    struct Device {
        std::string name;
        bool energy_counter = false;  ///< else energy is integrated from power
        bool mig = false;             ///< cut into instances, whose energy nothing tells apart
    };
    bool usable = false;
    std::string reason, driver;  ///< why not; version
    std::vector<Device> devices;
};
NvmlStatus nvml_status(const std::filesystem::path& library = "libnvidia-ml.so.1");

/// Watts of one busy core, and where that comes from.
struct CpuPower {
    double watts_per_core = 0;
    bool known = false;         ///< found in the table, or given by the user; else the figures are assumed
    std::string method;         ///< "TDP 280 W / 64 cores of AMD EPYC 7763"
    Interval systematic_ratio;  ///< of a model that knows thermal design power only, or not even that
};
/// By exact name, as /proc/cpuinfo has it; decoration such as (R), "CPU", "64-Core Processor", "@ 2.45GHz" is ignored.
/// An unknown CPU gets an assumed figure that says so.
CpuPower cpu_power(const std::string& cpu_model, std::optional<double> watts_per_core = {});

// -------------------------------------------------------------------------------------------------------------- carbon

/// Carbon intensity of electricity.
struct Grid {
    std::string zone;         ///< "DE", "WORLD", or "custom" for a number
    double g_per_kwh = 0;     ///< gCO2e
    std::optional<int> year;  ///< of the table's figure
    std::string basis, attribution;
    /// (seconds since 1970, g/kWh), ascending: from each moment to the next. Empty for a constant; else g_per_kwh is
    /// the mean over time.
    std::vector<std::pair<double, double>> series;
    Json to_json(double pue) const;  ///< the "carbon" object of measurement.json
    /// The series' mean over a stretch of time, for work that was done evenly in it; g_per_kwh without a series.
    /// @throws InvalidArgument when the series does not reach over the whole stretch
    double during(double from, double to) const;
};
/// @param text  ISO 3166 alpha-2 zone, WORLD, a number in g/kWh, or a CSV file with columns time (ISO 8601 or seconds
/// since 1970) and g_per_kwh
/// @throws InvalidArgument for an unknown zone, naming the nearest, a negative number, or a file that is no such series
Grid grid_of(const std::string& text);
std::vector<std::string> grid_zones();
/// energy x PUE x grid factor, in grams; the grid factor and PUE are assumed, so the result is at best assumed. Of a
/// series the mean is taken, and its extremes become the systematic ratio.
Figure carbon_g(const Figure& energy_j, const Grid& grid, double pue = 1.0);
/// As above, for energy spent between two moments (seconds since 1970).
Figure carbon_g(const Figure& energy_j, const Grid& grid, double pue, double from, double to);

/// Carbon of the same energy in every zone of the table, least first. Nothing is measured again.
std::vector<std::pair<Grid, Figure>> region_sweep(const Figure& energy_j, double pue = 1.0);

/// The share of a machine's embodied carbon that falls to a piece of work (M = TE x TS x RS of ISO/IEC 21031).
/// @param total_g         of the machine, as its maker declares
/// @param seconds         for which it was reserved
/// @param lifetime_s      expected; four years are common for servers
/// @param resource_ratio  share of the machine that was reserved, in (0, 1]
/// @throws InvalidArgument on values that are not positive
Figure embodied_share_g(double total_g, double seconds, double lifetime_s, double resource_ratio = 1.0);

/// Software Carbon Intensity of ISO/IEC 21031: (E x I + M) / R in g per functional unit. @param embodied_g  M; an
/// unavailable one is left out and the method says "not declared" @param units  R, above 0
Figure sci_g(const Figure& energy_j, const Grid& grid, double pue, const Figure& embodied_g, double units,
             const std::string& unit_name);

/// The estimate of www.green-algorithms.org (Lannelongue et al., Advanced Science 2021, doi 10.1002/advs.202100707)
/// from what was reserved, by name, for its users: nothing of it is measured.
struct GreenAlgorithms {
    double hours = 0;
    double cores = 0, watts_per_core = 0, core_usage = 1;
    double gpus = 0, watts_per_gpu = 0, gpu_usage = 1;
    double memory_gb = 0;  ///< available, not used
    double pue = 1.67, psf = 1, g_per_kwh = 475;
    static constexpr double kWattsPerGb = 0.3725;
    /// @throws InvalidArgument on a negative value, a usage above 1 or a PUE or PSF below 1
    Figure energy_j() const;
    Figure carbon_g() const;
};

/// After how many whole inferences the energy (or carbon) spent on compressing is earned back: spent / saving, where
/// the saving is baseline - candidate, or baseline x (1 - ratio) with a ratio.
/// The interval goes from the least that may have been spent on the largest saving to the most on the smallest. The
/// saving's half widths are combined in quadrature, because its two terms are independent; the ends of what was spent
/// are taken as they are. It is absent where a term of the saving has none, and where the saving's reaches 0 (the
/// method then says so). Unavailable where nothing is saved.
/// @param spent      what compressing cost @param baseline, candidate  per inference, of the same unit
/// @param ratio      candidate / baseline in interleaved pairs, where there is one: what the machine's load did to two
/// figures that were taken minutes apart cancels in it
Figure payback(const Figure& spent, const Figure& baseline, const Figure& candidate,
               const std::optional<Figure>& ratio = {});
/// Days of payback() at a load.
Figure payback_days(const Figure& inferences, double inferences_per_day);
/// Money: energy x price per kWh (PUE included, which is paid too) + carbon x price per tonne.
Figure cost(const Figure& energy_j, double pue, double price_per_kwh, const Figure& carbon_g, double price_per_tonne,
            const std::string& currency);

// ------------------------------------------------------------------------------------------------------------- latency

/// A model to time; the first of a list is the baseline.
struct Variant {
    std::string name;
    torch::jit::Module module;
};

struct LatencyOptions {
    double seconds = 3;                 ///< of timed queries per variant, for each batch and thread count
    double relative_interval = 0.02;    ///< half width of the ratio's interval (or p50's) at which timing ends early
    double window_seconds = 0.02;       ///< queries of one variant between two switches, at least
    double warm_up_seconds = 3;         ///< at most, per variant
    uint64_t seed = 0;                  ///< of the order within each round
    std::function<double()> clock;      ///< seconds; wall_seconds() when empty
    std::function<double()> cpu_clock;  ///< CPU seconds; cpu_seconds(false) when empty
    std::function<void(double)> sleep;  ///< the system's when empty and `clock` is, too
    /// For the share of CPU time that is stolen; machine_time() when empty and `clock` is, too.
    std::function<std::optional<MachineTime>()> machine_clock;
    /// Told between rounds how many of the seconds of timing are over; an early end skips the rest.
    std::function<void(double done, double total)> progress;
    std::function<bool()> interrupted;
};

/// One stretch of queries of one variant.
struct TimingWindow {
    double median_s = 0, mean_s = 0;  ///< of a query
    double cpu_s = 0;                 ///< CPU seconds of a query
    std::optional<double> energy_j;   ///< of a query
    std::optional<double> steal_s;    ///< CPU time that other guests took meanwhile
    int64_t involuntary_switches = 0;
};

/// Windows beyond Tukey's fences: 1.5 (mild) and 3 (severe) interquartile ranges outside the quartiles of their
/// medians. They are counted, never dropped.
struct Outliers {
    int64_t low_severe = 0, low_mild = 0, high_mild = 0, high_severe = 0;
};
/// @param values  not empty
Outliers classify_outliers(const std::vector<double>& values);

/// Most of a window that may go into reading the meter.
inline constexpr double kMeterOverheadRatio = 0.005;

/// One variant at one batch size and thread count.
struct Latency {
    int64_t batch = 1;
    int threads = 1;
    Figure p50_s, p90_s, p99_s;  ///< of a query, that is of one call with the whole batch
    Figure throughput_per_s;     ///< examples per second
    Figure ratio_to_baseline;    ///< time of this / time of the baseline, paired; below 1 is faster
    bool steady = false;         ///< the warm-up ended in a steady state
    /// Half width of the interval of the ratio (of the baseline: of p50) / its value: what timing ended at.
    std::optional<double> reached_interval;
    double wanted_interval = 0;      ///< LatencyOptions::relative_interval
    int64_t pairs = 0, queries = 0;  ///< rounds with the baseline; timed queries
    Figure cpu_s;                    ///< CPU seconds of a query
    Figure energy_j;                 ///< of a query, from the meter
    Figure energy_ratio;             ///< energy of this / energy of the baseline, paired as ratio_to_baseline is
    Figure power_w;                  ///< while the queries ran
    double cpu_share = 0;  ///< CPU seconds / (wall seconds x threads): well below 1 hints at waiting or interference
    int64_t involuntary_switches = 0;  ///< of the process while this variant's windows ran
    Figure steal_ratio;                ///< CPU time that other guests took / time of all CPUs
    Outliers outliers;                 ///< among the windows
    /// Share of the windows in which other guests took more than 1 % of the time of a CPU, or CPU time / wall time was
    /// below 0.9 of its median: the program waited for a CPU.
    Figure disturbed_ratio;
    /// Time in the meter's own calls / time of the windows. Windows are made so long that it stays below
    /// kMeterOverheadRatio.
    Figure meter_overhead;
    std::vector<TimingWindow> windows;  ///< in order; not in the JSON
    Json to_json() const;               ///< a row of "latency" in measurement.json
};

/// Times functions against the first one: rounds in which each runs for a window, in random order, so that drift hits
/// all alike. Percentiles appear once there are enough queries for them (minimum_queries). At least 8 rounds are timed.
/// @param meter  read at both edges of every window; may be null
std::vector<Latency> time_interleaved(const std::vector<std::function<void()>>& queries, const LatencyOptions& options,
                                      EnergyMeter* meter = nullptr);

/// time_interleaved for models: each is put into the form it deploys in (torch::jit::freeze where that works, under
/// InferenceMode, default executor), inputs are the example tiled to the batch size. Each batch size and number of
/// threads has a copy of its own that nothing else ran through. A model that refuses a batch size gets unavailable
/// figures with its reason for that one. The number of threads is restored afterwards.
/// @return for each batch x threads, in order, one Latency per variant
std::vector<std::vector<Latency>> measure_latency(const std::vector<Variant>& variants, const Inputs& example,
                                                  const std::vector<int64_t>& batches,
                                                  const std::vector<int64_t>& threads, const LatencyOptions& options,
                                                  EnergyMeter* meter = nullptr);

/// Example inputs with every tensor whose dimension 0 is the example's batch repeated or cut to `batch`; the example's
/// batch is dimension 0 of its first tensor. @throws InvalidArgument when no input is a tensor with a dimension
Inputs tiled(const Inputs& example, int64_t batch);

// ---------------------------------------------------------------------------------------------------------------- size

/// What a module holds. Packed int8 weights are unpacked to be counted.
struct Weights {
    int64_t parameters =
        0;                ///< elements of parameters, packed weights and biases, quantized tensors and float constants
    int64_t nonzero = 0;  ///< of those
    int64_t bytes = 0;    ///< of all tensors the module holds, buffers and constants included; shared storage once
    int64_t packed = 0;   ///< objects that held packed weights
    std::vector<std::string> uncounted;  ///< classes of objects whose content cannot be seen
};
Weights weights_of(const torch::jit::Module& module);

/// Multiply-adds of a run told apart by what they work on.
struct Operations {
    double macs = 0;          ///< as cost() has them
    double nonzero_macs = 0;  ///< with a weight that is not 0; dense kernels do the others, too
    /// Multiply-adds x bits of both operands, as the kernel gets them: weights stored in 4 bits and multiplied as
    /// float32 count 32 x 32.
    double bit_operations = 0;
    std::vector<std::pair<std::string, double>> by_precision;  ///< "int8 x int8" and its multiply-adds, most first
};
/// Looks at the operands of every operator with multiply-adds in one run. @param costs  cost(model, example)
Operations operations(const Model& model, const Inputs& example, const Cost& costs);

/// Peak resident memory that loading the file and one run add to this process: VmHWM, reset by /proc/self/clear_refs,
/// less VmRSS before. Unavailable where the kernel does not permit that.
Figure peak_memory(const std::filesystem::path& model_file, const Inputs& example);

/// file_bytes, parameters, nonzero_parameters, weight_bytes, macs, flops, nonzero_macs, bit_operations and
/// peak_memory_bytes, by name. @param model  for the operations; an undefined one makes them unavailable
std::vector<std::pair<std::string, Figure>> size_figures(const std::filesystem::path& model_file, const Model& model,
                                                         const Inputs& example, const std::string& macs_reason = {});

// --------------------------------------------------------------------------------------------------------- environment

/// The machine, as far as it decides what figures mean.
struct Environment {
    std::string cpu;                 ///< model name of /proc/cpuinfo
    std::vector<std::string> flags;  ///< vector and matrix instructions: avx2, avx512f, avx512_vnni, amx_int8, ...
    int cores = 0;                   ///< hardware threads that this process may use
    int threads = 0;                 ///< of LibTorch
    std::string libtorch, engine;    ///< "2.15.0"; quantized engine: "x86", "qnnpack", ...
    std::string kernel;              ///< "6.1.0-25-amd64"
    bool virtual_machine = false;
    std::string container;    ///< "docker", "podman", ...; empty outside
    std::string governor;     ///< "performance", ...; empty where unknown
    std::optional<bool> smt;  ///< two hardware threads share a core
    std::string affinity;     ///< hardware threads of this process: "0-3,8"
    std::string malloc;       ///< "tcmalloc", what the environment says: "MALLOC_TRIM_THRESHOLD_=1073741824"; or "default"
    int64_t memory_bytes = 0;
    Json to_json() const;
};
/// @param root  below which /proc and /sys are looked for
Environment environment(const std::filesystem::path& root = "/");

// ------------------------------------------------------------------------------------------------------------- profile

/// What one operator of a model costs; see LayerCost for what is counted.
struct OperatorProfile {
    LayerCost cost;
    double seconds = 0, cpu_s = 0;  ///< medians over the runs, all its executions in a run together
    double time_ratio = 0;          ///< of all operators
    Figure energy_j;                ///< share of the CPU time x energy of a run: modelled
};

struct ProfileOptions {
    int runs = 5;
    double energy_seconds = 0.5;  ///< for the energy of a run; the source's minimum_window_s() at least
};

/// The operators of one run, one after the other.
struct Profile {
    Cost cost;
    std::vector<OperatorProfile> operators;
    std::vector<OperatorSpan> timeline;  ///< of the last run
    double seconds = 0, cpu_s = 0;       ///< sums over the operators
    Figure energy_j;                     ///< of a run of the whole model, as the meter has it
    /// {"totals", "layers", "unknown_operators"}
    Json to_json() const;
    /// The timeline as trace events, which chrome://tracing and ui.perfetto.dev show: one slice per execution with
    /// shapes, MACs, bytes and energy.
    Json chrome_trace(const std::string& model_name) const;
};
/// Times every operator by a walk over the graph and joins that with the cost model. @param meter  null: no energy
Profile profile(const Model& model, const Inputs& example, const ProfileOptions& options = {},
                EnergyMeter* meter = nullptr);

// ------------------------------------------------------------------------------------------------------- whole
// measuring

/// `measure:` of a recipe.
struct MeasureOptions {
    std::string profile = "standard";  ///< quick 3 s, standard 60 s, strict 600 s of timing per variant; off: no timing
    std::vector<int64_t> batches = {1};
    std::vector<int64_t> threads;      ///< empty: LibTorch's number
    std::vector<std::string> metrics;  ///< besides the task's metric; empty: default_metrics(task)
    int64_t eval_batch = 256;          ///< batch size of quality metrics
    std::string grid = "WORLD";
    double pue = 1.0;
    double relative_interval = 0.02;
    uint64_t seed = 0;
    std::optional<double> idle;  ///< seconds of sleep before and after timing; absent: by profile, see idle_seconds()
    std::optional<double> embodied_kg;  ///< CO2e of making the machine; absent: not declared
    double lifetime_years = 4;          ///< over which that is spread
    double machine_share = 1;           ///< of the machine that was reserved, in (0, 1]
    EnergyOptions energy;

    /// Reads profile, batch, threads, metrics, eval_batch, grid, pue, relative_interval, energy, gpus, meter_file,
    /// cpu_watts_per_core, idle_watts, idle, embodied_kg, lifetime_years, machine_share. @throws InvalidArgument, an
    /// unknown grid zone included
    static MeasureOptions read(Options& options);
    double seconds() const;       ///< of timing per variant
    double idle_seconds() const;  ///< off 0, quick 0.25, standard 5, strict 30, unless `idle` is given
    /// Share of the machine's embodied carbon that falls to so much time; unavailable where it is not declared.
    Figure embodied_g(const Figure& seconds) const;
};

/// What a piece of work costs: started by the constructor. For what producing a stage takes, or any training loop.
class StageMeter {
public:
    explicit StageMeter(const MeasureOptions& options);
    ~StageMeter();
    StageMeter(const StageMeter&) = delete;
    StageMeter& operator=(const StageMeter&) = delete;
    void restart();
    /// {"seconds", "cpu_seconds", "energy_j", "carbon_g"}: figures since the start.
    Json read();
    /// Energy and carbon since the start, for Context::spent and TrainCallbacks::spent.
    Spent spent();
    const EnergyMeter& meter() const { return *meter_; }

private:
    MeasureOptions options_;
    Grid grid_;
    std::unique_ptr<EnergyMeter> meter_;
    double wall_start_ = 0, cpu_start_ = 0, unix_start_ = 0;
};

/// Measures models of one task against one baseline and writes measurement.json. Keeps the baseline's outputs, so that
/// a pipeline pays for them once. What is measured is the saved file, read by torch::jit::load.
class Measurer {
public:
    /// @param example  arguments of one run, as Context::example
    /// @param data     labelled data; null: no quality, which is then unavailable with that reason
    /// @param split    "test" or "validation", for the record
    /// @param metric   the task's metric, decides quality; empty: the task's default
    /// @throws InvalidArgument for an unknown metric, grid zone or energy source
    Measurer(Inputs example, std::shared_ptr<const Dataset> data, std::string split, Task task, std::string metric,
             MeasureOptions options);
    ~Measurer();

    /// measurement.json of one stage. The cost of the stage is what passed since the last measurement, or
    /// begin_stage(). `candidate` serves the operation count; it is the baseline itself when both share a module or
    /// stage is "baseline".
    Json measure(const Model& baseline, const Model& candidate, const std::filesystem::path& model_file,
                 const std::string& stage);

    /// Restarts the meter of what a stage costs.
    void begin_stage();

    /// Any TorchScript files against each other (`coppice eval`): one measurement each, without cost of compression;
    /// "stage" is the file's path. All are timed in the same interleaved rounds. @param baseline  index of the file
    /// that ratios and agreement refer to
    std::vector<Json> compare(const std::vector<std::filesystem::path>& files, size_t baseline = 0);

    /// The task's metric in points (higher is better) on the data: Context::evaluate. @throws InvalidArgument without
    /// data
    double points(const Runner& model) const;

    const std::string& metric() const { return metric_; }
    const MeasureOptions& options() const { return options_; }
    Log* log = &null_log();
    std::function<bool()> interrupted;

private:
    struct Subject;
    const Evaluation* baseline_evaluation(const Model& baseline);
    Evaluation run_metrics(const Runner& model, const Evaluation* baseline) const;
    std::optional<Idle> look_at_idle();
    /// Times all, with a look at the idle machine before and after.
    std::vector<std::vector<Latency>> time_all(const std::vector<Variant>& variants, std::optional<IdleChange>& idle);
    Json assemble(const Subject& subject) const;

    Inputs example_;
    std::shared_ptr<const Dataset> data_;
    std::string split_, metric_;
    Task task_;
    MeasureOptions options_;
    std::vector<std::string> names_;
    Grid grid_;
    std::unique_ptr<EnergyMeter> meter_;
    StageMeter stage_meter_;
    std::shared_ptr<const Evaluation> baseline_;
    c10::intrusive_ptr<c10::ivalue::Object> baseline_object_;  ///< kept, so that its address stays its identity
};

/// measurement.json of one model against one baseline, with a Measurer of its own.
Json measure(const Model& baseline, const Model& candidate, const std::filesystem::path& model_file,
             const std::string& stage, const Inputs& example, std::shared_ptr<const Dataset> data,
             const std::string& split, Task task, const MeasureOptions& options);

}  // namespace coppice::eval
