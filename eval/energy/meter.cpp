// The time of day, the choice of an energy source, and the source that gives nothing.
#include <time.h>

#include <coppice/eval.h>

#include <algorithm>
#include <sstream>

#include "energy/sources.h"
#include "number_text.h"

namespace coppice::eval {
namespace {

class NoMeter final : public EnergyMeter {
public:
    std::string name() const override { return "none"; }
    std::string method() const override { return "energy is not measured"; }
    void start() override {}
    Figure read() override { return Figure::unavailable("J", "energy is switched off (energy: none)"); }
};

// Several sources that cover different parts of a machine, such as its CPUs and its GPUs.
class SumMeter final : public EnergyMeter {
public:
    explicit SumMeter(std::vector<std::unique_ptr<EnergyMeter>> meters) : meters_(std::move(meters)) {}

    std::string name() const override {
        std::string text;
        for (const auto& meter : meters_) text += (text.empty() ? "" : "+") + meter->name();
        return text;
    }
    std::string method() const override {
        std::string text;
        for (const auto& meter : meters_) text += (text.empty() ? "" : "; and ") + meter->method();
        return text;
    }
    void start() override {
        for (const auto& meter : meters_) meter->start();
    }
    Figure read() override { return total(&EnergyMeter::read); }
    Figure stop() override { return total(&EnergyMeter::stop); }
    // What was given as idle power is of the machine, so any part that has it speaks for all.
    Figure idle_power_w() const override {
        for (const auto& meter : meters_)
            if (auto idle = meter->idle_power_w(); idle.available()) return idle;
        return EnergyMeter::idle_power_w();
    }
    bool counts_idle() const override {
        return std::any_of(meters_.begin(), meters_.end(), [](const auto& meter) { return meter->counts_idle(); });
    }
    double minimum_window_s() const override {
        double seconds = 0;
        for (const auto& meter : meters_) seconds = std::max(seconds, meter->minimum_window_s());
        return seconds;
    }
    double update_s() const override {
        double seconds = 0;
        for (const auto& meter : meters_) seconds = std::max(seconds, meter->update_s());
        return seconds;
    }
    bool counts_memory() const override {
        return std::any_of(meters_.begin(), meters_.end(), [](const auto& meter) { return meter->counts_memory(); });
    }

private:
    Figure total(Figure (EnergyMeter::*ask)()) {
        // All are read before one is looked at: the windows of the parts must not drift apart.
        std::vector<Figure> parts;
        for (const auto& meter : meters_) parts.push_back((meter.get()->*ask)());
        Figure result = parts.front();
        for (size_t i = 1; i < parts.size(); ++i)
            result = sum(result, parts[i], result.method + "; and " + parts[i].method);
        return result;
    }
    std::vector<std::unique_ptr<EnergyMeter>> meters_;
};

std::unique_ptr<EnergyMeter> summed(std::vector<std::unique_ptr<EnergyMeter>> meters) {
    if (meters.size() == 1) return std::move(meters.front());
    return std::make_unique<SumMeter>(std::move(meters));
}

std::unique_ptr<EnergyMeter> named_meter(const std::string& name, const EnergyOptions& options) {
    std::vector<std::string> known = {"auto"};
    for (const auto& source : energy_sources()) {
        known.push_back(source.name);
        if (source.name != name) continue;
        const auto status = source.probe(options);
        if (!status.usable)
            throw MeasurementError("energy source " + source.name, status.reason,
                                   status.enable.empty() ? "Use energy: auto." : "Try: " + status.enable);
        return source.make(options);
    }
    throw_unknown("energy", "source", name, known);
}

}  // namespace

double unix_seconds() {
    timespec time{};
    ::clock_gettime(CLOCK_REALTIME, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

Figure EnergyMeter::idle_power_w() const {
    return Figure::unavailable("W", "source " + name() + " cannot tell idle power");
}

Figure memory_energy_j(const EnergyMeter& meter, int64_t memory_bytes, const Figure& seconds) {
    if (meter.counts_memory()) return Figure::unavailable("J", "memory is in what " + meter.name() + " counts");
    if (memory_bytes <= 0) return Figure::unavailable("J", "the size of the memory is not known");
    const double gigabytes = 1e-9 * static_cast<double>(memory_bytes);
    const std::string method =
        "time x " + number_text(gigabytes) + " GB x " + Json(GreenAlgorithms::kWattsPerGb).dump() + " W/GB";
    return product(seconds, Figure::modelled(gigabytes * GreenAlgorithms::kWattsPerGb, "W", method), "J", method);
}

EnergySource no_source() {
    const std::string summary = "no energy figures";
    return {"none", summary,
            [summary](const EnergyOptions&) {
                return EnergySourceStatus{"none", summary, true, "energy is reported as unavailable", ""};
            },
            [](const EnergyOptions&) { return std::make_unique<NoMeter>(); }, EnergyScope::kNothing};
}

std::vector<EnergySourceStatus> probe_energy_sources(const EnergyOptions& options) {
    std::vector<EnergySourceStatus> statuses;
    for (const auto& source : energy_sources()) statuses.push_back(source.probe(options));
    return statuses;
}

std::unique_ptr<EnergyMeter> make_energy_meter(const EnergyOptions& options) {
    std::vector<std::unique_ptr<EnergyMeter>> meters;
    if (options.source == "auto") {
        for (const auto& source : energy_sources())
            if (source.scope == EnergyScope::kMachine && meters.empty() && source.probe(options).usable)
                meters.push_back(source.make(options));
        for (const auto& source : energy_sources())
            if (source.scope == EnergyScope::kGpu && options.with_gpus && source.probe(options).usable)
                meters.push_back(source.make(options));
        if (meters.empty())
            throw InternalError("energy", "no source is usable, not even a model", "Report this as a bug.");
        return summed(std::move(meters));
    }
    std::istringstream names(options.source);
    for (std::string name; std::getline(names, name, '+');) meters.push_back(named_meter(name, options));
    if (meters.empty()) return named_meter(options.source, options);
    return summed(std::move(meters));
}

}  // namespace coppice::eval
