/// What every source that must be read now and then shares: a reader that is given the time, so that wraps, gaps and
/// coarse counters can be tested, and the meter that polls it in a thread of its own.
#pragma once

#include <coppice/eval.h>

namespace coppice::eval {

/// Counts energy from start() on. The caller passes seconds of any steady clock.
class EnergyReader {
public:
    virtual ~EnergyReader() = default;
    /// Forgets what was counted.
    virtual void start(double now) = 0;
    /// Adds what passed since the last call. Must be called within poll_seconds() of it.
    virtual void sample(double now) = 0;
    /// Joules since start(), or why not.
    virtual Figure total(double now) const = 0;
    virtual double poll_seconds() const = 0;
    virtual std::string method() const = 0;
    /// See EnergyMeter.
    virtual double update_s() const { return 0; }
    virtual bool counts_memory() const { return false; }
};

/// A meter around a reader; thread-safe. Polls while it runs, because a counter may wrap every minute.
std::unique_ptr<EnergyMeter> polled_meter(std::string name, std::unique_ptr<EnergyReader> reader,
                                          std::optional<double> idle_watts, double minimum_window_s = 0);

/// A number read from somewhere, or why not.
struct Reading {
    std::optional<double> value;
    std::string failure;
    bool denied = false;  ///< for want of permission
};
/// A file of /sys that holds one number, not negative. Anything else is a failure that quotes it.
Reading read_number(const std::filesystem::path& path);
/// The first line of a file; empty when there is none.
std::string read_line(const std::filesystem::path& path);

/// Something that reports energy, power or both.
struct Device {
    std::string name;
    std::function<Reading()> joules;  ///< ever rising; empty: integrate the power
    std::function<Reading()> watts;   ///< empty: no cross-check
    std::string note;                 ///< what the reader of the figure must know
};
struct DeviceOptions {
    std::string what;           ///< "NVML energy counters": begins the method
    double update_seconds = 0;  ///< between two steps of the counter: its uncertainty at both edges of a window
    double stall_seconds = 5;   ///< without a step after which a counter is taken for broken
    double poll_seconds = 1;
    Interval systematic = {1, 1};
    bool counts_memory = false;
};
/// Sums devices. A device that fails takes the total with it, because a sum without it would look like a saving. Where
/// a device reports both, the counter counts, and power that was integrated beside it over at least 10 s and differs by
/// more than 5 % is flagged in the method.
class DeviceReader final : public EnergyReader {
public:
    DeviceReader(std::vector<Device> devices, DeviceOptions options);
    void start(double now) override;
    void sample(double now) override;
    Figure total(double now) const override;
    double poll_seconds() const override { return options_.poll_seconds; }
    std::string method() const override;
    double update_s() const override { return options_.update_seconds; }
    bool counts_memory() const override { return options_.counts_memory; }

private:
    struct State {
        double last_j = 0, total_j = 0;
        double changed = 0;  // when the counter moved last
        double quiet = 0;    // longest time without a move, once it has moved
        bool moved = false;
        double watts = 0, integral_j = 0;
        bool watts_known = false;
        std::string failure;
    };
    void read_power(size_t index, double now);
    std::vector<Device> devices_;
    DeviceOptions options_;
    std::vector<State> states_;
    double start_ = 0, last_ = 0;
};

}  // namespace coppice::eval
