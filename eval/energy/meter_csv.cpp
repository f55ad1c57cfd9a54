// An external meter, by the file that its own software writes: time and watts. The file is read when a figure is asked
// for; it must reach over the whole window, because what it did not see cannot be known.
#include <algorithm>
#include <cmath>

#include "energy/sources.h"
#include "metrics/time_series.h"

namespace coppice::eval {

Figure metered_energy(const std::vector<std::pair<double, double>>& series, double from, double to) {
    if (series.size() < 2) return Figure::unavailable("J", "the meter's file holds fewer than two readings");
    std::vector<double> steps;
    for (size_t i = 1; i < series.size(); ++i) steps.push_back(series[i].first - series[i - 1].first);
    const double typical = quantile(steps, 0.5);
    // A meter that logs every second is a second behind; one that missed three readings has lost something.
    const double allowed = 3 * typical;
    const auto seconds = [](double value) {
        char text[32];
        std::snprintf(text, sizeof text, "%.3g s", value);
        return std::string(text);
    };
    if (series.front().first > from)
        return Figure::unavailable(
            "J", "the meter's file begins " + seconds(series.front().first - from) + " after the window");
    if (series.back().first < to - allowed)
        return Figure::unavailable(
            "J", "the meter's file ends " + seconds(to - series.back().first) + " before the window does");
    // Trapezoids between readings, cut at the window's edges; the last reading holds on to the end.
    double joules = 0, difference = 0;
    int64_t readings = 0;
    for (size_t i = 0; i < series.size(); ++i) {
        const bool last = i + 1 == series.size();
        const double start = series[i].first, watts = series[i].second;
        const double end = last ? std::max(to, start) : series[i + 1].first;
        const double next = last ? watts : series[i + 1].second;
        const double low = std::max(from, start), high = std::min(to, end);
        if (high <= low) continue;
        if (!last && end - start > allowed)
            return Figure::unavailable("J", "the meter's file has a gap of " + seconds(end - start) + " in the window");
        const auto at = [&](double time) { return watts + (next - watts) * (time - start) / (end - start); };
        joules += 0.5 * (at(low) + at(high)) * (high - low);
        difference += std::abs(next - watts) * (high - low);
        ++readings;
    }
    auto figure = Figure::derived(
        joules, "J", "external meter, " + std::to_string(readings) + " readings every " + seconds(typical));
    // Between two readings the power may have been either of them.
    if (figure.available())
        figure.interval = Interval{std::max(0.0, joules - 0.5 * difference), joules + 0.5 * difference};
    return figure;
}

namespace {

class MeterFile final : public EnergyMeter {
public:
    explicit MeterFile(const EnergyOptions& options)
        : path_(options.meter_file),
          clock_(options.unix_clock ? options.unix_clock : unix_seconds),
          idle_(options.idle_watts) {}

    std::string name() const override { return "meter_csv"; }
    std::string method() const override { return "external meter, " + path_.filename().string(); }
    void start() override { start_ = clock_(); }
    Figure read() override {
        try {
            return metered_energy(read_time_series(path_, "watts", "energy source meter_csv"), start_, clock_());
        } catch (const Error& error) {
            return Figure::unavailable("J", message_of(error));
        }
    }
    Figure idle_power_w() const override {
        if (idle_) return Figure::assumed(*idle_, "W", "given by the user (idle_watts)");
        return EnergyMeter::idle_power_w();
    }
    double minimum_window_s() const override { return 10; }
    bool counts_memory() const override { return true; }

private:
    const std::filesystem::path path_;
    std::function<double()> clock_;
    std::optional<double> idle_;
    double start_ = 0;
};

}  // namespace

EnergySource meter_csv_source() {
    const std::string summary = "an external meter, by the CSV file that it writes (columns time, watts)";
    return {"meter_csv", summary,
            [summary](const EnergyOptions& options) {
                EnergySourceStatus status{"meter_csv", summary, false, "", ""};
                if (options.meter_file.empty()) {
                    status.reason = "no file was named";
                    status.enable = "measure: {energy: meter_csv, meter_file: <file>}, or coppice track --meter <file>";
                    return status;
                }
                try {
                    read_time_series(options.meter_file, "watts", "energy source meter_csv");
                    status.usable = true;
                    status.reason = options.meter_file.string();
                } catch (const Error& error) {
                    status.reason = message_of(error);
                }
                return status;
            },
            [](const EnergyOptions& options) { return std::make_unique<MeterFile>(options); }};
}

}  // namespace coppice::eval
