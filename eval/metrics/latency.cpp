// Run time. Variants run in one process in interleaved rounds: within a round each runs for a short window, in random
// order, so that drift of the machine (frequency, other guests) hits all alike and cancels in the paired ratio.
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <sys/resource.h>
#include <torch/csrc/jit/api/module.h>

#include <coppice/eval.h>

#include <cmath>
#include <numeric>
#include <random>

#include "number_text.h"
#include "sleep.h"

namespace coppice::eval {
namespace {

constexpr int64_t kMinimumRounds = 8;
// Two halves of six windows whose medians differ by less are taken as steady; single windows of a shared machine
// scatter more.
constexpr double kSteadyRatio = 0.05;
// Correlation on shared machines lasts about a second: neighbours within that are drawn together in the bootstrap.
constexpr double kBlockSeconds = 1.0;
// Blocks before timing may end early. Whoever stops when an interval looks narrow stops most often when it is so by
// luck: with eight blocks, 11 of 100 comparisons of a model with itself found a difference on simulated noise.
constexpr double kBlocksToEnd = 20;

int64_t involuntary_switches() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_nivcsw;
}

// Everything that was recorded of one variant; one element per round but for `times`.
struct Series {
    std::vector<double> times;           // per query
    std::vector<double> medians, means;  // of the query time, per window
    std::vector<double> cpu, joules;     // per query, per window
    std::vector<TimingWindow> windows;
    std::vector<int64_t> counts;       // queries, per window
    std::vector<double> meter_shares;  // time in calls of the meter / time of the window, per window
    double wall = 0;                   // in windows
    MachineTime machine;               // of the whole machine, while windows ran
    int64_t switches = 0;
    int64_t per_window = 1;  // queries in the next window
    double window_s = 0;     // which that should take
    bool steady = false;
    Figure energy;  // the meter's last word: unit, method, provenance
    std::string energy_failure;
};

// Runs until two successive groups of three windows agree. @return seconds of a query
double warm_up(const std::function<void()>& query, const LatencyOptions& options, const std::function<double()>& clock,
               bool& steady) {
    std::vector<double> windows;
    double typical = 0;
    steady = false;
    for (const double start = clock(); !steady && (windows.size() < 2 || clock() - start < options.warm_up_seconds);) {
        if (options.interrupted && options.interrupted()) throw Interrupted("latency", "stopped on request", "");
        std::vector<double> times;
        // Windows of a tenth of the room for warming up, so that six fit even for slow queries.
        const double length = std::min(options.window_seconds, options.warm_up_seconds / 10);
        for (const double from = clock(); times.empty() || clock() - from < length;) {
            const double before = clock();
            query();
            times.push_back(clock() - before);
        }
        windows.push_back(quantile(times, 0.5));
        const auto n = windows.size();
        typical = windows.back();
        if (n < 6) continue;
        const double late = quantile({windows.end() - 3, windows.end()}, 0.5);
        const double early = quantile({windows.end() - 6, windows.end() - 3}, 0.5);
        steady = std::abs(late / early - 1) < kSteadyRatio;
        typical = late;
    }
    return typical;
}

int64_t block_of(const Series& series, double round_seconds) {
    const auto count = static_cast<int64_t>(series.medians.size());
    const auto length = static_cast<int64_t>(std::ceil(kBlockSeconds / std::max(round_seconds, 1e-9)));
    return std::clamp<int64_t>(length, 1, std::max<int64_t>(1, count / kMinimumRounds));
}

std::optional<Interval> mean_interval(const std::vector<double>& values, int64_t block, uint64_t seed) {
    return block_bootstrap(
        static_cast<int64_t>(values.size()), block,
        [&](const std::vector<int64_t>& indices) {
            double sum = 0;
            for (const auto index : indices) sum += values[index];
            return sum / static_cast<double>(indices.size());
        },
        1000, seed);
}

double mean_of(const std::vector<double>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// Interval of a quantile of all queries by Woodruff's inversion (JASA 47, 1952): the share of queries below the
// quantile is bootstrapped in blocks of rounds, and its bounds are read off the distribution.
std::optional<Interval> quantile_bounds(const Series& series, double q, double value, int64_t block, uint64_t seed) {
    std::vector<double> below;
    size_t first = 0;
    for (const int64_t size : series.counts) {
        double count = 0;
        for (int64_t i = 0; i < size; ++i) count += series.times[first + i] <= value;
        below.push_back(count / static_cast<double>(size));
        first += size;
    }
    const auto share = mean_interval(below, block, seed);
    if (!share) return std::nullopt;
    const double middle = mean_of(below);
    return Interval{quantile(series.times, std::clamp(q - (share->high - middle), 0.0, 1.0)),
                    quantile(series.times, std::clamp(q + (middle - share->low), 0.0, 1.0))};
}

Figure percentile(const Series& series, double q, int64_t block, uint64_t seed) {
    const auto count = static_cast<int64_t>(series.times.size());
    const int64_t needed = q > 0.5 ? minimum_queries(q) : 1;
    if (count < needed)
        return Figure::unavailable(
            "s", "needs " + std::to_string(needed) + " queries, " + std::to_string(count) + " were timed");
    const double value = quantile(series.times, q);
    return Figure::measured(
        value, "s",
        (q == 0.5 ? "median" : number_text(q) + " quantile") + std::string(" of ") + std::to_string(count) + " queries",
        quantile_bounds(series, q, value, block, seed));
}

// A clock that does not move, or an empty query, must not make windows endless.
int64_t queries_in(double seconds, double query_s) {
    return std::clamp<int64_t>(static_cast<int64_t>(std::ceil(seconds / std::max(query_s, 1e-9))), 1, 100000);
}

// Seconds that a window loses to the meter: a start and a stop.
double meter_cost(EnergyMeter& meter, const std::function<double()>& clock) {
    std::vector<double> times;
    for (int i = 0; i < 5; ++i) {
        const double before = clock();
        meter.start();
        meter.stop();
        times.push_back(clock() - before);
    }
    return quantile(times, 0.5);
}

double half_width(const Interval& interval, double value) {
    return (interval.high - interval.low) / (2 * value);
}

constexpr double kStolenRatio = 0.01, kWaitingRatio = 0.9;

Figure disturbed_ratio(const std::vector<TimingWindow>& windows, const std::vector<int64_t>& queries) {
    std::vector<double> shares;  // CPU seconds / wall seconds
    for (const auto& window : windows) shares.push_back(window.mean_s > 0 ? window.cpu_s / window.mean_s : 0);
    const double usual = quantile(shares, 0.5);
    int64_t disturbed = 0;
    for (size_t i = 0; i < windows.size(); ++i) {
        const double wall = windows[i].mean_s * static_cast<double>(queries[i]);
        disturbed += windows[i].steal_s.value_or(0) > kStolenRatio * wall || shares[i] < kWaitingRatio * usual;
    }
    const auto count = static_cast<int64_t>(windows.size());
    return Figure::measured(static_cast<double>(disturbed) / static_cast<double>(count), "ratio",
                            std::to_string(disturbed) + " of " + std::to_string(count) +
                                " windows: other guests took CPU time, or the program waited for a CPU");
}

// One batch and thread count for all variants: what cannot run is left out and has a reason.
struct Configuration {
    std::vector<std::function<void()>> queries;
    std::vector<size_t> variants;      // of each query
    std::vector<std::string> reasons;  // per variant; empty: runs
};

Latency refused(const std::string& reason) {
    Latency row;
    row.p50_s = row.p90_s = row.p99_s = row.cpu_s = Figure::unavailable("s", reason);
    row.throughput_per_s = Figure::unavailable("1/s", reason);
    row.ratio_to_baseline = Figure::unavailable("ratio", reason);
    row.energy_j = Figure::unavailable("J", reason);
    row.energy_ratio = Figure::unavailable("ratio", reason);
    row.power_w = Figure::unavailable("W", reason);
    row.steal_ratio = row.meter_overhead = row.disturbed_ratio = Figure::unavailable("ratio", reason);
    return row;
}

// The form in which a model is deployed: weights as constants, batch norms folded. Returns how.
std::string deploy(torch::jit::Module& module) {
    bool training = false;
    for (const auto& part : module.modules())
        training =
            training || (part.hasattr("training") && part.attr("training").isBool() && part.attr("training").toBool());
    if (training) {
        module = module.deepcopy();  // eval() must not reach the caller's module
        module.eval();
    }
    try {
        module = torch::jit::freeze(module);
        return "torch::jit::freeze";
    } catch (const std::exception& error) {
        return "not frozen (" + message_of(error) + ")";
    }
}

// A copy that no call was made of; packed weights are packed anew.
torch::jit::Module fresh(const torch::jit::Module& module) {
    try {
        return module.deepcopy();
    } catch (const std::exception&) {  // it holds an object that cannot be copied
        return module;
    }
}

}  // namespace

Json Latency::to_json() const {
    return {{"batch", batch},
            {"threads", threads},
            {"p50_s", p50_s.to_json()},
            {"p90_s", p90_s.to_json()},
            {"p99_s", p99_s.to_json()},
            {"throughput_per_s", throughput_per_s.to_json()},
            {"ratio_to_baseline", ratio_to_baseline.to_json()},
            {"steady", steady},
            {"relative_interval",
             {{"wanted", wanted_interval}, {"reached", reached_interval ? Json(*reached_interval) : Json(nullptr)}}},
            {"pairs", pairs},
            {"queries", queries},
            {"cpu_s", cpu_s.to_json()},
            {"energy_j", energy_j.to_json()},
            {"energy_ratio_to_baseline", energy_ratio.to_json()},
            {"power_w", power_w.to_json()},
            {"cpu_share", cpu_share},
            {"involuntary_switches", involuntary_switches},
            {"steal_ratio", steal_ratio.to_json()},
            {"disturbed_ratio", disturbed_ratio.to_json()},
            {"outliers",
             {{"windows", static_cast<int64_t>(windows.size())},
              {"low_severe", outliers.low_severe},
              {"low_mild", outliers.low_mild},
              {"high_mild", outliers.high_mild},
              {"high_severe", outliers.high_severe}}},
            {"meter_overhead_ratio", meter_overhead.to_json()}};
}

Outliers classify_outliers(const std::vector<double>& values) {
    const double low = quantile(values, 0.25), high = quantile(values, 0.75), range = high - low;
    Outliers count;
    for (const double value : values) {
        if (value < low - 3 * range)
            ++count.low_severe;
        else if (value < low - 1.5 * range)
            ++count.low_mild;
        else if (value > high + 3 * range)
            ++count.high_severe;
        else if (value > high + 1.5 * range)
            ++count.high_mild;
    }
    return count;
}

std::vector<Latency> time_interleaved(const std::vector<std::function<void()>>& queries, const LatencyOptions& options,
                                      EnergyMeter* meter) {
    if (queries.empty()) return {};
    const auto clock = options.clock ? options.clock : wall_seconds;
    const auto cpu_clock = options.cpu_clock ? options.cpu_clock : [] { return cpu_seconds(/*with_children=*/false); };
    // A simulated clock has no machine behind it.
    const auto machine_clock = options.machine_clock ? options.machine_clock
                               : options.clock
                                   ? [] { return std::optional<MachineTime>(); }
                                   : std::function<std::optional<MachineTime>()>([] { return machine_time(); });
    const auto sleep = options.sleep   ? options.sleep
                       : options.clock ? [](double) {}
                                       : std::function<void(double)>(sleep_for);
    const size_t variants = queries.size();
    // Twice as long as the meter's own time asks for: its calls scatter.
    const double meter_window =
        meter ? std::max(meter->minimum_window_s(), 2 * meter_cost(*meter, clock) / kMeterOverheadRatio) : 0;
    std::vector<Series> series(variants);
    for (size_t v = 0; v < variants; ++v) {
        const double typical = warm_up(queries[v], options, clock, series[v].steady);
        series[v].window_s = std::max(options.window_seconds, meter_window);
        series[v].per_window = queries_in(series[v].window_s, typical);
    }

    std::mt19937_64 engine(options.seed);
    std::vector<size_t> order(variants);
    std::iota(order.begin(), order.end(), size_t{0});
    const double start = clock();
    int64_t rounds = 0, next_look = kMinimumRounds;
    const double update_s = meter ? meter->update_s() : 0;
    const auto run_window = [&](size_t v) {
        auto& own = series[v];
        std::vector<double> times(own.per_window);
        if (update_s > 0) sleep(update_s * static_cast<double>(engine() >> 11) * 0x1p-53);
        const auto machine = machine_clock();
        const double meter_start = clock();
        if (meter) meter->start();
        double meter_s = clock() - meter_start;
        const auto switches = involuntary_switches();
        const double cpu_before = cpu_clock();
        double before = clock();
        const double from = before;
        for (auto& time : times) {
            queries[v]();
            const double now = clock();
            time = now - before;
            before = now;
        }
        const double cpu = cpu_clock() - cpu_before;
        const auto count = static_cast<double>(own.per_window);
        TimingWindow window;
        window.involuntary_switches = involuntary_switches() - switches;
        if (meter) {
            const double meter_stop = clock();
            own.energy = meter->stop();
            meter_s += clock() - meter_stop;
            if (own.energy.available()) {
                window.energy_j = *own.energy.value / count;
                own.joules.push_back(*window.energy_j);
            } else if (own.energy_failure.empty()) {
                own.energy_failure = own.energy.reason;
            }
        }
        if (const auto machine_end = machine ? machine_clock() : std::nullopt) {
            window.steal_s = machine_end->steal_s - machine->steal_s;
            own.machine.steal_s += *window.steal_s;
            own.machine.busy_s += machine_end->busy_s - machine->busy_s;
            own.machine.idle_s += machine_end->idle_s - machine->idle_s;
        }
        window.mean_s = (before - from) / count;
        window.median_s = quantile(times, 0.5);
        window.cpu_s = cpu / count;
        own.switches += window.involuntary_switches;
        own.wall += before - from;
        own.counts.push_back(own.per_window);
        if (before > from) own.meter_shares.push_back(meter_s / (before - from));
        // A warm-up on a busy machine takes queries for slower than they are, and windows come out too short.
        if (before - from < own.window_s / 2) own.per_window = queries_in(own.window_s, (before - from) / count);
        own.means.push_back(window.mean_s);
        own.medians.push_back(window.median_s);
        own.cpu.push_back(window.cpu_s);
        own.windows.push_back(window);
        own.times.insert(own.times.end(), times.begin(), times.end());
    };
    const auto precise = [&](double passed) {
        const double round_seconds = passed / static_cast<double>(rounds);
        if (passed < kBlocksToEnd * std::max(kBlockSeconds, round_seconds)) return false;
        for (size_t v = variants == 1 ? 0 : 1; v < variants; ++v) {
            const auto block = block_of(series[v], round_seconds);
            if (variants == 1) {
                const double value = quantile(series[v].times, 0.5);
                const auto interval = quantile_bounds(series[v], 0.5, value, block, options.seed);
                if (!interval || half_width(*interval, value) > options.relative_interval) return false;
            } else {
                const auto paired = paired_log_ratio(series[0].medians, series[v].medians, block, options.seed);
                if (!paired.interval || half_width(*paired.interval, paired.ratio) > options.relative_interval)
                    return false;
            }
        }
        // Percentiles that the full time would reach are not given up for an early end.
        for (const auto& own : series) {
            const double reachable = static_cast<double>(own.times.size()) * options.seconds / own.wall;
            for (const double q : {0.9, 0.99}) {
                const auto needed = static_cast<double>(minimum_queries(q));
                if (reachable >= needed && static_cast<double>(own.times.size()) < needed) return false;
            }
        }
        return true;
    };
    for (;;) {
        if (options.interrupted && options.interrupted()) throw Interrupted("latency", "stopped on request", "");
        // Not std::shuffle: its order differs between standard libraries.
        for (size_t i = variants; i > 1; --i) std::swap(order[i - 1], order[engine() % i]);
        for (const size_t v : order) run_window(v);
        ++rounds;
        const double passed = clock() - start, total = options.seconds * static_cast<double>(variants);
        if (options.progress) options.progress(std::min(passed, total), total);
        if (rounds < kMinimumRounds) continue;
        if (passed >= total) break;
        if (rounds < next_look) continue;
        next_look = rounds + rounds / 2;  // few looks: stopping at a lucky one would narrow the interval
        if (precise(passed)) break;
    }
    const double round_seconds = (clock() - start) / static_cast<double>(rounds);

    std::vector<Latency> rows(variants);
    for (size_t v = 0; v < variants; ++v) {
        const auto& own = series[v];
        auto& row = rows[v];
        const auto block = block_of(own, round_seconds);
        row.steady = own.steady;
        row.pairs = rounds;
        row.queries = static_cast<int64_t>(own.times.size());
        row.p50_s = percentile(own, 0.5, block, options.seed);
        row.p90_s = percentile(own, 0.9, block, options.seed);
        row.p99_s = percentile(own, 0.99, block, options.seed);
        if (!own.steady)
            for (auto* figure : {&row.p50_s, &row.p90_s, &row.p99_s})
                if (figure->available()) figure->method += "; not_steady: the warm-up ended before it was steady";
        const double mean = mean_of(own.means);
        const auto mean_bounds = mean_interval(own.means, block, options.seed);
        row.throughput_per_s =
            Figure::derived(1 / mean, "1/s", "queries / seconds in them",
                            mean_bounds ? std::optional<Interval>(Interval{1 / mean_bounds->high, 1 / mean_bounds->low})
                                        : std::nullopt);
        if (v == 0) {
            row.ratio_to_baseline = Figure::derived(1, "ratio", "the baseline itself");
        } else {
            const auto paired = paired_log_ratio(series[0].medians, own.medians, block, options.seed);
            row.ratio_to_baseline =
                Figure::derived(paired.ratio, "ratio",
                                "median of " + std::to_string(rounds) +
                                    " paired log-ratios of window medians, bootstrap over blocks of " +
                                    number_text(static_cast<double>(block) * round_seconds) + " s",
                                paired.interval);
        }
        const auto& judged = v == 0 ? row.p50_s : row.ratio_to_baseline;
        if (judged.interval) row.reached_interval = half_width(*judged.interval, *judged.value);
        row.wanted_interval = options.relative_interval;
        row.cpu_s = Figure::measured(mean_of(own.cpu), "s", "CPU time of the process, all threads",
                                     mean_interval(own.cpu, block, options.seed));
        row.cpu_share = mean > 0 ? mean_of(own.cpu) / mean : 0;
        row.involuntary_switches = own.switches;
        const double cpu_time = own.machine.busy_s + own.machine.steal_s + own.machine.idle_s;
        row.steal_ratio = cpu_time > 0 ? Figure::measured(own.machine.steal_s / cpu_time, "ratio",
                                                          "stolen CPU time of /proc/stat while queries ran")
                                       : Figure::unavailable("ratio", "/proc/stat was not read, or did not move");
        row.outliers = classify_outliers(own.medians);
        row.windows = own.windows;
        row.disturbed_ratio = disturbed_ratio(own.windows, own.counts);
        row.meter_overhead = !meter ? Figure::unavailable("ratio", "no energy source was given")
                             : !own.meter_shares.empty()
                                 ? Figure::measured(quantile(own.meter_shares, 0.5), "ratio",
                                                    "median over windows of the time in calls of " + meter->name() +
                                                        " / time of the window")
                                 : Figure::unavailable("ratio", "the clock did not move");
        if (!meter) {
            row.energy_j = Figure::unavailable("J", "no energy source was given");
        } else if (!own.energy_failure.empty()) {
            row.energy_j = Figure::unavailable("J", own.energy_failure);
        } else {
            row.energy_j = own.energy;
            row.energy_j.value = mean_of(own.joules);
            row.energy_j.interval = mean_interval(own.joules, block, options.seed);
        }
        // Paired like the time: what else runs on the machine costs both alike.
        const auto above_zero = [](const std::vector<double>& joules) {
            return !joules.empty() && *std::min_element(joules.begin(), joules.end()) > 0;
        };
        if (!row.energy_j.available()) {
            row.energy_ratio = Figure::unavailable("ratio", row.energy_j.reason);
        } else if (series[0].joules.size() != own.joules.size() || !above_zero(series[0].joules) ||
                   !above_zero(own.joules)) {
            row.energy_ratio = Figure::unavailable("ratio", "a window without energy has no ratio");
        } else {
            const auto paired = paired_log_ratio(series[0].joules, own.joules, block, options.seed);
            row.energy_ratio =
                Figure::derived(paired.ratio, "ratio", "median of paired log-ratios of windows; " + row.energy_j.method,
                                v == 0 ? std::nullopt : paired.interval);
            row.energy_ratio.provenance = combined(Provenance::kDerived, row.energy_j.provenance);
        }
        row.power_w = quotient(row.energy_j, Figure::measured(mean, "s", "seconds of a query"), "W",
                               "energy / time while queries ran; " + row.energy_j.method);
    }
    return rows;
}

Inputs tiled(const Inputs& example, int64_t batch) {
    int64_t original = -1;
    for (const auto& input : example)
        if (input.isTensor() && input.toTensor().dim() > 0) {
            original = input.toTensor().size(0);
            break;
        }
    if (original < 1)
        throw InvalidArgument("latency", "no input is a tensor with a batch dimension", "Give an example with one.");
    Inputs result;
    for (const auto& input : example) {
        if (!input.isTensor() || input.toTensor().dim() == 0 || input.toTensor().size(0) != original ||
            batch == original)
            result.push_back(input);
        else
            result.emplace_back(input.toTensor().index_select(0, at::arange(batch).remainder(original)).contiguous());
    }
    return result;
}

std::vector<std::vector<Latency>> measure_latency(const std::vector<Variant>& variants, const Inputs& example,
                                                  const std::vector<int64_t>& batches,
                                                  const std::vector<int64_t>& threads, const LatencyOptions& options,
                                                  EnergyMeter* meter) {
    struct RestoreThreads {
        const int threads = at::get_num_threads();
        ~RestoreThreads() { at::set_num_threads(threads); }
    } restore;
    const c10::InferenceMode inference;
    std::vector<std::vector<Latency>> result;
    for (const int64_t batch : batches) {
        for (const int64_t thread_count : threads) {
            at::set_num_threads(static_cast<int>(thread_count));
            Configuration configuration;
            // oneDNN's int8 convolutions lay their weights out for the shape of the first call, and run others up to
            // twice as slow: what serves one batch size is measured as it would serve that alone.
            std::vector<torch::jit::Module> modules;
            std::vector<std::string> forms;
            for (const auto& variant : variants) {
                modules.push_back(fresh(variant.module));
                forms.push_back(deploy(modules.back()));
            }
            for (size_t v = 0; v < variants.size(); ++v) {
                try {
                    const auto inputs = tiled(example, batch);
                    modules[v].forward(inputs);
                    configuration.queries.emplace_back([&module = modules[v], inputs] { module.forward(inputs); });
                    configuration.variants.push_back(v);
                    configuration.reasons.emplace_back();
                } catch (const std::exception& error) {
                    configuration.reasons.push_back("does not run at batch size " + std::to_string(batch) + ": " +
                                                    message_of(error));
                }
            }
            auto own = options;
            if (options.progress)
                own.progress = [&](double done, double total) {
                    const auto before = static_cast<double>(result.size());
                    const auto all = static_cast<double>(batches.size() * threads.size());
                    options.progress(before * total + done, all * total);
                };
            const auto timed = time_interleaved(configuration.queries, own, meter);
            std::vector<Latency> rows(variants.size());
            for (size_t v = 0, next = 0; v < variants.size(); ++v) {
                auto& row = rows[v];
                if (!configuration.reasons[v].empty()) {
                    row = refused(configuration.reasons[v]);
                } else {
                    row = timed[next++];
                    const std::string form = "; " + forms[v] + ", InferenceMode, " + std::to_string(thread_count) +
                                             (thread_count == 1 ? " thread" : " threads");
                    for (auto* figure : {&row.p50_s, &row.p90_s, &row.p99_s, &row.throughput_per_s})
                        if (figure->available()) figure->method += form;
                    const auto examples = static_cast<double>(batch);
                    if (row.throughput_per_s.available())
                        row.throughput_per_s =
                            product(row.throughput_per_s, Figure::measured(examples, "1", "batch size"), "1/s",
                                    "examples / seconds in queries" + form);
                    row.cpu_share /= static_cast<double>(thread_count);
                    if (v > 0 && !configuration.reasons[0].empty())
                        row.ratio_to_baseline =
                            Figure::unavailable("ratio", "the baseline " + configuration.reasons[0]);
                }
                row.batch = batch;
                row.threads = static_cast<int>(thread_count);
            }
            result.push_back(std::move(rows));
        }
    }
    return result;
}

}  // namespace coppice::eval
