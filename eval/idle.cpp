// Idle: the machine while this process sleeps. Where no source tells its power, the CPU time of other programs and of
// other guests still says whether it was a quiet one.
#include <time.h>
#include <unistd.h>

#include <coppice/eval.h>

#include <cmath>
#include <fstream>
#include <sstream>

#include "number_text.h"
#include "sleep.h"

namespace coppice::eval {
namespace {

constexpr double kDriftRatio = 0.05;
constexpr double kBusyRatio = 0.1;  // of all CPUs, taken by others: times are then those of a busy machine

std::string percent(double ratio) {
    return number_text(100 * ratio) + " %";
}

}  // namespace

void sleep_for(double seconds) {
    timespec time{static_cast<time_t>(seconds), static_cast<long>((seconds - std::floor(seconds)) * 1e9)};
    while (::nanosleep(&time, &time) != 0) {
    }
}

std::optional<MachineTime> machine_time(const std::filesystem::path& root) {
    std::ifstream file(root / "proc/stat");
    std::string line, word;
    if (!std::getline(file, line)) return std::nullopt;
    std::istringstream words(line);
    double user = 0, nice = 0, system = 0, idle = 0, io_wait = 0, irq = 0, soft_irq = 0, steal = 0;
    if (!(words >> word >> user >> nice >> system >> idle >> io_wait >> irq >> soft_irq) || word != "cpu")
        return std::nullopt;
    words >> steal;  // since Linux 2.6.11; what guests of this machine use is inside user and nice
    const double tick = 1.0 / static_cast<double>(::sysconf(_SC_CLK_TCK));
    return MachineTime{tick * (user + nice + system + irq + soft_irq), tick * (idle + io_wait), tick * steal};
}

Json Idle::to_json() const {
    return {{"seconds", seconds.to_json()},
            {"power_w", power_w.to_json()},
            {"others_ratio", others_ratio.to_json()},
            {"steal_ratio", steal_ratio.to_json()}};
}

Idle measure_idle(EnergyMeter& meter, const IdleOptions& options) {
    const auto clock = options.clock ? options.clock : wall_seconds;
    const auto machine_clock =
        options.machine_clock ? options.machine_clock : [&options] { return machine_time(options.root); };
    const auto before = machine_clock();
    const double cpu_start = cpu_seconds(/*with_children=*/false);
    meter.start();
    const double start = clock();
    (options.sleep ? options.sleep : sleep_for)(options.seconds);
    const double seconds = clock() - start;
    const auto energy = meter.stop();
    const double own = cpu_seconds(/*with_children=*/false) - cpu_start;
    const auto after = machine_clock();

    Idle idle;
    idle.seconds = Figure::measured(seconds, "s", "wall clock");
    const std::string method = "mean over " + number_text(seconds) + " s of sleep";
    if (meter.counts_idle())
        idle.power_w = quotient(energy, idle.seconds, "W", method + "; " + energy.method);
    else
        idle.power_w = Figure::unavailable("W", meter.name() + " counts busy time only and knows no idle power");
    const double busy = before && after ? after->busy_s - before->busy_s : 0;
    const double stolen = before && after ? after->steal_s - before->steal_s : 0;
    const double all = before && after ? busy + stolen + after->idle_s - before->idle_s : 0;
    if (all > 0) {
        idle.others_ratio = Figure::measured(std::max(0.0, busy - own) / all, "ratio",
                                             "busy CPU time of /proc/stat less that of this process, " + method);
        idle.steal_ratio = Figure::measured(stolen / all, "ratio", "stolen CPU time of /proc/stat, " + method);
    } else {
        const std::string reason = before && after ? "its clock of 10 ms did not move" : "/proc/stat cannot be read";
        idle.others_ratio = Figure::unavailable("ratio", reason);
        idle.steal_ratio = Figure::unavailable("ratio", reason);
    }
    return idle;
}

Json IdleChange::to_json() const {
    return {{"before", before.to_json()},           {"after", after.to_json()}, {"power_w", power_w.to_json()},
            {"drift_ratio", drift_ratio.to_json()}, {"drifted", drifted},       {"note", note}};
}

namespace {

// Share of the CPUs that other programs and guests took; unavailable where it is not known.
std::optional<double> taken(const Idle& idle) {
    if (!idle.others_ratio.available()) return std::nullopt;
    return *idle.others_ratio.value + idle.steal_ratio.value.value_or(0);
}

IdleChange compared(const Idle& before, const Idle& after) {
    IdleChange change{before, after, {}, {}, false, ""};
    if (before.power_w.available() && after.power_w.available()) {
        const auto both = sum(before.power_w, after.power_w, before.power_w.method + "; before and after");
        change.power_w = quotient(both, Figure::measured(2, "1", "before and after"), "W", both.method);
        const double mean = *change.power_w.value;
        if (mean > 0) {
            const double drift = std::abs(*after.power_w.value - *before.power_w.value) / mean;
            change.drift_ratio = Figure::derived(drift, "ratio", "|after - before| / mean of the idle power");
            change.drift_ratio.provenance = combined(Provenance::kDerived, change.power_w.provenance);
            change.drifted = drift > kDriftRatio;
            if (change.drifted) change.note = "idle power changed by " + percent(drift) + " from before to after";
        } else {
            change.drift_ratio = Figure::unavailable("ratio", "the source counted nothing while idle");
        }
        return change;
    }
    change.power_w =
        Figure::unavailable("W", before.power_w.available() ? after.power_w.reason : before.power_w.reason);
    if (const auto first = taken(before), last = taken(after); first && last) {
        const double drift = std::abs(*last - *first);
        change.drift_ratio =
            Figure::derived(drift, "ratio", "difference of the share of the CPUs that other programs and guests took");
        change.drifted = drift > kDriftRatio;
    } else {
        change.drift_ratio =
            Figure::unavailable("ratio", first ? after.others_ratio.reason : before.others_ratio.reason);
    }
    return change;
}

}  // namespace

IdleChange idle_change(const Idle& before, const Idle& after) {
    auto change = compared(before, after);
    const auto first = taken(before), last = taken(after);
    if (first && last && (std::max(*first, *last) > kBusyRatio || (change.drifted && change.note.empty())))
        change.note += (change.note.empty() ? "" : "; ") + std::string("other programs and guests took ") +
                       percent(*first) + " of the CPUs before and " + percent(*last) + " after";
    return change;
}

Figure net_of_idle(const Figure& energy_j, const Figure& idle_power_w, const Figure& seconds, bool counts_idle) {
    if (!energy_j.available()) return Figure::unavailable("J", energy_j.reason);
    if (!counts_idle) {
        auto net = energy_j;
        net.provenance = combined(Provenance::kDerived, energy_j.provenance);
        net.method = energy_j.method + "; idle draw is not in it";
        return net;
    }
    const auto idle = product(idle_power_w, seconds, "J", "idle power x time");
    if (!idle.available()) return Figure::unavailable("J", idle.reason);
    const double value = *energy_j.value - *idle.value;
    if (value < 0) return Figure::unavailable("J", "it took less than idling for that time would have");
    const auto of = [](const Figure& figure) {
        return figure.interval.value_or(Interval{*figure.value, *figure.value});
    };
    std::optional<Interval> interval;
    if (energy_j.interval || idle.interval)
        interval = Interval{value - std::hypot(*energy_j.value - of(energy_j).low, of(idle).high - *idle.value),
                            value + std::hypot(of(energy_j).high - *energy_j.value, *idle.value - of(idle).low)};
    auto net = Figure::derived(value, "J", "less idle power x time (" + idle_power_w.method + "); " + energy_j.method,
                               interval);
    net.provenance = combined(energy_j.provenance, idle.provenance);
    // One source gave both: its systematic ratio is that of their difference, too.
    net.systematic_ratio = energy_j.systematic_ratio;
    return net;
}

}  // namespace coppice::eval
