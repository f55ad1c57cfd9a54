// Clocks, the choice of an energy source, and the source that gives nothing.
#include <sys/resource.h>
#include <time.h>

#include <coppice/eval.h>

#include "energy/sources.h"

namespace coppice::eval {
namespace {

double seconds_of(clockid_t clock) {
    timespec time{};
    clock_gettime(clock, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

class NoMeter final : public EnergyMeter {
public:
    std::string name() const override { return "none"; }
    std::string method() const override { return "energy is not measured"; }
    void start() override {}
    Figure read() override { return Figure::unavailable("J", "energy is switched off (energy: none)"); }
};

}  // namespace

double wall_seconds() {
    return seconds_of(CLOCK_MONOTONIC);
}

double cpu_seconds(bool with_children) {
    double seconds = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
    if (with_children) {
        rusage usage{};
        getrusage(RUSAGE_CHILDREN, &usage);
        seconds += static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                   1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    }
    return seconds;
}

Figure EnergyMeter::idle_power_w() const {
    return Figure::unavailable("W", "source " + name() + " cannot tell idle power");
}

EnergySource no_source() {
    const std::string summary = "no energy figures";
    return {"none", summary,
            [summary](const EnergyOptions&) {
                return EnergySourceStatus{"none", summary, true, "energy is reported as unavailable", ""};
            },
            [](const EnergyOptions&) { return std::make_unique<NoMeter>(); }};
}

std::vector<EnergySourceStatus> probe_energy_sources(const EnergyOptions& options) {
    std::vector<EnergySourceStatus> statuses;
    for (const auto& source : energy_sources()) statuses.push_back(source.probe(options));
    return statuses;
}

std::unique_ptr<EnergyMeter> make_energy_meter(const EnergyOptions& options) {
    if (options.source == "auto") {
        for (const auto& source : energy_sources())
            if (source.probe(options).usable) return source.make(options);
        throw InternalError("energy", "no source is usable, not even none", "Report this as a bug.");
    }
    std::vector<std::string> known = {"auto"};
    for (const auto& source : energy_sources()) {
        known.push_back(source.name);
        if (source.name != options.source) continue;
        const auto status = source.probe(options);
        if (!status.usable)
            throw MeasurementError("energy source " + source.name, status.reason,
                                   status.enable.empty() ? "Use energy: auto." : "Try: " + status.enable);
        return source.make(options);
    }
    throw_unknown("energy", "source", options.source, known);
}

}  // namespace coppice::eval
