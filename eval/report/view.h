// A report's JSON, read once: runs, stages, measures. What collect.cpp computes from and all renderings draw from.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "report/text.h"

#include <coppice/report.h>

namespace coppice::eval::report {

// The quality of a stage in the units that people speak in: percent for shares, else the metric's own.
struct Quality {
    std::string metric, name;  // "top1", "Top-1 accuracy"
    std::string unit;          // "%" or ""
    bool available = false;
    bool loss = false;  // lower is better: `shown` is minus the points
    Uncertain points;   // as gates compare them: higher is better
    std::string provenance = "unavailable", method, reason, split, data;
    std::optional<double> examples;
};
std::string metric_name(const std::string& metric);                       // "Top-1 accuracy"
std::string shown_points(const Quality& quality, double points);          // "88.70 %", "0.412"
std::string shown_difference(const Quality& quality, double difference);  // "−0.60"; difference of points

struct Latency {
    int64_t batch = 0, threads = 0;
    Figure p50, p90, p99, throughput, ratio;  // ratio: time of this / time of the baseline, paired
    Figure disturbed;                         // share of the windows
    bool steady = true;
};

// A quantity that stages are compared by; lower is better.
struct Measure {
    std::string key;                 // "file_bytes", "latency_b128_t2"
    std::string name;                // "Latency, batch 128"
    std::string unit;                // as stored: "s"
    Words words;                     // "faster", "slower"
    int64_t batch = 0, threads = 0;  // latencies
};

struct Run;

struct Stage {
    const Run* run = nullptr;
    const Stage* baseline = nullptr;  // of the same run; null when that is missing
    size_t index = 0;                 // within the run
    std::string id;                   // "0/01-prune.channel"
    std::string position;             // "1": what stands for the name where there is no room; empty for the baseline
    std::string folder, name;
    std::string label;  // "1 prune.channel"; with several runs "run-a · 1 prune.channel"
    bool is_baseline = false, kept = true, is_final = false;  // final: the last kept one
    bool simulated =
        false;  // the model computes in wider numbers what the precision of this stage or one before would give
    std::string verdict;
    Quality quality;
    /// Where it stands in pictures: its points, with the interval of the paired difference to the baseline where every
    /// stage of a single run has one (the baseline then has none: all others are placed by it), else with its own.
    Uncertain placed;
    std::vector<Latency> latencies;
    const Json* measurement = nullptr;
    const Json* stage = nullptr;

    Figure figure(const std::string& key) const;  // member of "figures"
    Figure on(const Measure& measure) const;      // its figure; for latencies the median
    const Latency* latency(int64_t batch, int64_t threads) const;
    std::vector<std::string> warnings() const;
};

struct Run {
    std::string folder, name;
    const Json* manifest = nullptr;
    const Json* json = nullptr;
    std::vector<const Stage*> stages;
    const Stage* baseline = nullptr;
    const Stage* final = nullptr;  // the last kept stage; may be the baseline. None where models stand side by side
    bool side_by_side = false;     // of `coppice eval`: each stage is a model of its own, compared with the baseline
};

// Points into the JSON it was made from, which must outlive it.
struct View {
    const Json* report = nullptr;
    std::deque<Run> runs;
    std::deque<Stage> stages;
    std::vector<Measure> measures;  // those with at least one value, in the order of the selector
    const Measure* small_batch =
        nullptr;  // latency at the smallest and at the largest batch, most threads; null when absent
    const Measure* large_batch = nullptr;
    std::string title;

    const Measure* measure(const std::string& key) const;
};

// @throws InvalidArgument when `report` is not a coppice-report, or of a newer version.
void check_report(const Json& report);
View make_view(const Json& report);

// Stages whose quality is that of another metric or of other data cannot share an axis with the first one.
bool comparable_quality(const Stage& first, const Stage& stage);
// Quality of a stage less that of its baseline, example by example, in points.
struct PairedDifference {
    double difference = 0, below = 0, above = 0;  // of the 95 % interval
    std::optional<double> p_value;
};
std::optional<PairedDifference> paired_difference(const Stage& stage);

// "88.7 % to 88.1 %, 5.3x smaller ...": against the run's own baseline. For latency the paired ratio is used.
std::string compared(const Stage& stage, const Measure& measure);
// Of this / of the baseline, taken in interleaved pairs: time, energy and carbon. Unavailable for other measures.
Figure paired_ratio(const Stage& stage, const Measure& measure);
// The value relative to the baseline's (below 1 is better); the paired ratio where there is one. Unavailable where
// either is.
Figure relative(const Stage& stage, const Measure& measure);
// Compression's cost, summed over a run's stages: "seconds", "energy_j", "carbon_g".
Figure total_compression(const Run& run, const std::string& key);
// Inferences after which the energy ("J") or carbon ("g") spent on compression is earned back.
Figure payback(const Run& run, const std::string& unit = "J");

}  // namespace coppice::eval::report
