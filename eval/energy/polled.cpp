#include "energy/polled.h"

#include <cerrno>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <thread>

#include "number_text.h"

namespace coppice::eval {
namespace {

// Cross-checks of shorter windows would flag the steps of the counter.
constexpr double kCheckSeconds = 10;
constexpr double kCheckRatio = 0.05;

class PolledMeter final : public EnergyMeter {
public:
    PolledMeter(std::string name, std::unique_ptr<EnergyReader> reader, std::optional<double> idle_watts,
                double minimum_window_s)
        : name_(std::move(name)), reader_(std::move(reader)), idle_(idle_watts), minimum_window_(minimum_window_s) {
        poller_ = std::thread([this] { poll(); });
    }
    ~PolledMeter() override {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            ended_ = true;
        }
        wake_.notify_all();
        poller_.join();
    }

    std::string name() const override { return name_; }
    std::string method() const override {
        std::lock_guard<std::mutex> lock(mutex_);
        return reader_->method();
    }
    void start() override {
        std::lock_guard<std::mutex> lock(mutex_);
        reader_->start(wall_seconds());
        running_ = true;
    }
    Figure read() override {
        std::lock_guard<std::mutex> lock(mutex_);
        return read_locked();
    }
    Figure stop() override {
        std::lock_guard<std::mutex> lock(mutex_);
        auto figure = read_locked();
        running_ = false;
        return figure;
    }
    Figure idle_power_w() const override {
        if (idle_) return Figure::assumed(*idle_, "W", "given by the user (idle_watts)");
        return Figure::unavailable("W", "idle power was not measured; set idle_watts");
    }
    double minimum_window_s() const override { return minimum_window_; }
    double update_s() const override { return reader_->update_s(); }
    bool counts_memory() const override {
        std::lock_guard<std::mutex> lock(mutex_);
        return reader_->counts_memory();
    }

private:
    Figure read_locked() {
        const double now = wall_seconds();
        reader_->sample(now);
        return reader_->total(now);
    }
    void poll() {
        std::unique_lock<std::mutex> lock(mutex_);
        while (!ended_) {
            wake_.wait_for(lock, std::chrono::duration<double>(reader_->poll_seconds()));
            if (!ended_ && running_) reader_->sample(wall_seconds());
        }
    }

    const std::string name_;
    std::unique_ptr<EnergyReader> reader_;
    std::optional<double> idle_;
    const double minimum_window_;
    mutable std::mutex mutex_;
    std::condition_variable wake_;
    bool running_ = false, ended_ = false;
    std::thread poller_;
};

}  // namespace

std::unique_ptr<EnergyMeter> polled_meter(std::string name, std::unique_ptr<EnergyReader> reader,
                                          std::optional<double> idle_watts, double minimum_window_s) {
    return std::make_unique<PolledMeter>(std::move(name), std::move(reader), idle_watts, minimum_window_s);
}

Reading read_number(const std::filesystem::path& path) {
    errno = 0;
    std::ifstream file(path);
    if (!file) return {std::nullopt, path.string() + ": " + std::strerror(errno ? errno : ENOENT), errno == EACCES};
    std::string text;
    std::getline(file, text);
    if (file.bad() || text.empty())
        return {std::nullopt, path.string() + " cannot be read", errno == EACCES || errno == EPERM};
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    // strtod also takes "inf", "nan" and hexadecimal: a counter begins with a digit and is finite.
    if (!std::isdigit(static_cast<unsigned char>(text[0])) || text.find_first_of("xX") != std::string::npos ||
        (*end != '\0' && !std::isspace(static_cast<unsigned char>(*end))) || !std::isfinite(value))
        return {std::nullopt, path.string() + " holds \"" + text.substr(0, 40) + "\", not a number", false};
    return {value, "", false};
}

std::string read_line(const std::filesystem::path& path) {
    std::ifstream file(path);
    std::string text;
    std::getline(file, text);
    return text;
}

DeviceReader::DeviceReader(std::vector<Device> devices, DeviceOptions options)
    : devices_(std::move(devices)), options_(std::move(options)), states_(devices_.size()) {}

// The trapezoid between two readings; a device without a counter fails with its power.
void DeviceReader::read_power(size_t index, double now) {
    const auto& device = devices_[index];
    auto& state = states_[index];
    if (!device.watts) return;
    const auto reading = device.watts();
    if (!reading.value) {
        if (!device.joules) state.failure = device.name + ": " + reading.failure;
        state.watts_known = false;
        return;
    }
    if (state.watts_known) state.integral_j += 0.5 * (state.watts + *reading.value) * (now - last_);
    state.watts = *reading.value;
    state.watts_known = true;
}

void DeviceReader::start(double now) {
    start_ = last_ = now;
    for (size_t i = 0; i < devices_.size(); ++i) {
        auto& state = states_[i] = State();
        state.changed = now;
        if (devices_[i].joules) {
            const auto reading = devices_[i].joules();
            if (!reading.value) state.failure = devices_[i].name + ": " + reading.failure;
            state.last_j = reading.value.value_or(0);
        }
        if (state.failure.empty()) read_power(i, now);
    }
}

void DeviceReader::sample(double now) {
    for (size_t i = 0; i < devices_.size(); ++i) {
        auto& state = states_[i];
        if (!state.failure.empty()) continue;
        if (devices_[i].joules) {
            const auto reading = devices_[i].joules();
            if (!reading.value) {
                state.failure = devices_[i].name + ": " + reading.failure;
                continue;
            }
            const double step = *reading.value - state.last_j;
            if (step < 0) {
                state.failure = devices_[i].name + ": its counter went back from " + number_text(state.last_j) +
                                " to " + number_text(*reading.value) + " J";
                continue;
            }
            if (step > 0) {
                if (state.moved) state.quiet = std::max(state.quiet, now - state.changed);
                state.moved = true;
                state.changed = now;
            } else if (now - state.changed > options_.stall_seconds) {
                state.failure =
                    devices_[i].name + ": its counter did not move in " + number_text(now - state.changed) + " s";
                continue;
            }
            state.total_j += step;
            state.last_j = *reading.value;
        }
        read_power(i, now);
    }
    last_ = now;
}

std::string DeviceReader::method() const {
    std::string text = options_.what + " of ";
    for (size_t i = 0; i < devices_.size(); ++i) text += (i ? ", " : "") + devices_[i].name;
    for (const auto& device : devices_)
        if (!device.note.empty()) text += "; " + device.name + ": " + device.note;
    return text;
}

Figure DeviceReader::total(double now) const {
    if (devices_.empty()) return Figure::unavailable("J", options_.what + ": there is no device");
    double joules = 0, half = 0;
    bool integrated = false;
    std::string flags;
    const double seconds = now - start_;
    for (size_t i = 0; i < devices_.size(); ++i) {
        const auto& device = devices_[i];
        const auto& state = states_[i];
        if (!state.failure.empty()) return Figure::unavailable("J", state.failure);
        if (!device.joules) {
            if (!state.watts_known || seconds <= 0)
                return Figure::unavailable("J", device.name + ": its power was not read over any time yet");
            joules += state.integral_j;
            integrated = true;
            continue;
        }
        if (state.total_j == 0)
            return Figure::unavailable("J", device.name + ": its counter did not move in " + number_text(seconds) +
                                                " s; it moves every " + number_text(options_.update_seconds) + " s");
        joules += state.total_j;
        // An edge of the window falls between two steps: what is counted is off by at most one of them.
        half += state.total_j / seconds *
                std::max(options_.update_seconds,
                         options_.update_seconds > 0 ? std::min(state.quiet, options_.poll_seconds) : 0);
        if (device.watts && state.watts_known && seconds >= kCheckSeconds) {
            const double ratio = state.integral_j / state.total_j - 1;
            if (std::abs(ratio) > kCheckRatio)
                flags += "; flagged: " + device.name + " by its power would be " + number_text(state.integral_j) +
                         " J, " + number_text(100 * std::abs(ratio)) + " % " + (ratio > 0 ? "more" : "less");
        }
    }
    auto figure =
        integrated ? Figure::derived(joules, "J", method() + flags) : Figure::measured(joules, "J", method() + flags);
    if (half > 0) figure.interval = Interval{std::max(0.0, joules - half), joules + half};
    if (figure.available()) figure.systematic_ratio = options_.systematic;
    return figure;
}

}  // namespace coppice::eval
