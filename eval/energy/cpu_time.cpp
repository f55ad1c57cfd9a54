// Energy by a model: CPU seconds of this process (threads and finished children included) x watts of one core. Memory,
// mainboard, cooling and idle draw are left out. It ranks models that use one machine alike; absolute joules are within
// the systematic ratio only.
#include <coppice/eval.h>

#include <algorithm>
#include <cctype>
#include <regex>

#include "energy/cpu_table.h"
#include "energy/sources.h"
#include "number_text.h"

namespace coppice::eval {
namespace {

// Median of the 279 CPUs in the table, rounded.
constexpr double kDefaultWattsPerCore = 8;
// Thermal design power is a limit of heat, not a draw: measured package power of busy cores lies between half of it
// and, with few cores boosting, three times it per core.
constexpr Interval kTdpRatio = {0.5, 3};

// Thermal design power per core that the table spans.
Interval table_watts() {
    Interval span{1e9, 0};
    for (const auto& row : cpu_rows()) {
        span.low = std::min(span.low, row.watts / row.cores);
        span.high = std::max(span.high, row.watts / row.cores);
    }
    return span;
}

class CpuTimeMeter final : public EnergyMeter {
public:
    CpuTimeMeter(CpuPower power, const EnergyOptions& options)
        : power_(std::move(power)),
          idle_(options.idle_watts),
          clock_(options.cpu_clock ? options.cpu_clock : [] { return cpu_seconds(); }) {}

    std::string name() const override { return "cpu_time"; }
    std::string method() const override { return "CPU seconds x " + power_.method; }
    void start() override { start_ = clock_(); }
    Figure read() override {
        auto figure = Figure::modelled((clock_() - start_) * power_.watts_per_core, "J", method(), std::nullopt,
                                       power_.systematic_ratio);
        if (!power_.known && figure.available()) figure.provenance = Provenance::kAssumed;
        return figure;
    }
    bool counts_idle() const override { return false; }
    Figure idle_power_w() const override {
        if (idle_) return Figure::assumed(*idle_, "W", "given by the user (idle_watts)");
        return Figure::unavailable("W", "the CPU-time model knows no idle power; set idle_watts");
    }

private:
    CpuPower power_;
    std::optional<double> idle_;
    std::function<double()> clock_;
    double start_ = 0;
};

}  // namespace

std::string normalized_cpu_name(const std::string& name) {
    // (R) and (TM); the clock; what follows the model: "CPU", "64-Core Processor", "with Radeon Graphics", "APU ...".
    static const std::regex kMarks(R"(\((R|TM|r|tm)\))"), kClock(R"(\s*@.*$)"), kBehind(R"(\s+with .*$)"),
        kCores(R"(\s+\S+-Core\b)"), kWords(R"(\b(CPU|Processor)\b)"), kGeneration(R"(^\d+th Gen\s+)"),
        kSpaces(R"(\s+)");
    std::string text = std::regex_replace(name, kMarks, "");
    for (const auto* pattern : {&kClock, &kBehind, &kCores, &kGeneration})
        text = std::regex_replace(text, *pattern, "");
    text = std::regex_replace(text, kWords, " ");
    text = std::regex_replace(text, kSpaces, " ");
    while (!text.empty() && text.front() == ' ') text.erase(text.begin());
    while (!text.empty() && text.back() == ' ') text.pop_back();
    return text;
}

CpuPower cpu_power(const std::string& cpu_model, std::optional<double> watts_per_core) {
    CpuPower power;
    power.systematic_ratio = kTdpRatio;
    if (watts_per_core) {
        if (!(*watts_per_core > 0))
            throw InvalidArgument("energy",
                                  "cpu_watts_per_core is " + number_text(*watts_per_core) + ", must be above 0",
                                  "Divide the thermal design power by the number of cores.");
        power.watts_per_core = *watts_per_core;
        power.known = true;
        power.method = number_text(*watts_per_core) + " W per core given by the user";
        return power;
    }
    const auto name = normalized_cpu_name(cpu_model);
    for (const auto& row : cpu_rows()) {
        if (name != row.name) continue;
        power.watts_per_core = row.watts / row.cores;
        power.known = true;
        power.method = number_text(power.watts_per_core) + " W per core (TDP " + number_text(row.watts) + " W / " +
                       std::to_string(row.cores) + " cores of " + name + ")";
        return power;
    }
    const auto span = table_watts();
    power.watts_per_core = kDefaultWattsPerCore;
    power.systematic_ratio = {kTdpRatio.low * span.low / kDefaultWattsPerCore,
                              kTdpRatio.high * span.high / kDefaultWattsPerCore};
    power.method = "an assumed " + number_text(kDefaultWattsPerCore) + " W per core (" + number_text(span.low) +
                   " to " + number_text(span.high) + " W in the table), because " +
                   (name.empty() ? std::string("the CPU has no name") : "\"" + name + "\" is not in the table");
    return power;
}

EnergySource cpu_time_source() {
    const std::string summary = "model: CPU seconds x watts per core";
    return {"cpu_time", summary,
            [summary](const EnergyOptions& options) {
                const auto power = cpu_power(environment(options.root).cpu, options.cpu_watts_per_core);
                return EnergySourceStatus{"cpu_time", summary, true, power.method,
                                          power.known ? "" : "measure: {cpu_watts_per_core: <TDP / cores>}"};
            },
            [](const EnergyOptions& options) -> std::unique_ptr<EnergyMeter> {
                return std::make_unique<CpuTimeMeter>(
                    cpu_power(environment(options.root).cpu, options.cpu_watts_per_core), options);
            }};
}

}  // namespace coppice::eval
