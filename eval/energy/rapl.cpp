#include "energy/rapl.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "energy/sources.h"
#include "number_text.h"

namespace coppice::eval {
namespace {

// No package draws more for longer than a moment; what a counter cannot have counted at this power is a reset, not a
// wrap.
constexpr double kMaximumWatts = 1000;
// Two dies of one AMD socket report one counter: equal up to the microseconds between the two reads. Independent
// counters start within 1 J of each other once in 10^5 machines.
constexpr double kMirrorMicrojoules = 1e6;
// A package is updated every millisecond and never draws nothing; five seconds also outlast a suspended guest.
constexpr double kStallSeconds = 5;

// "intel-rapl:0" in the folder and, where the tree is nested, "intel-rapl:0/intel-rapl:0:1"; by name, MSR before MMIO.
void collect(const std::filesystem::path& folder, std::map<std::string, std::filesystem::path>& found) {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
        const auto name = entry.path().filename().string();
        if (name.rfind("intel-rapl", 0) != 0 || name.find(':') == std::string::npos) continue;
        if (found.emplace(name, entry.path()).second) collect(entry.path(), found);
    }
}

}  // namespace

RaplReader::RaplReader(const std::filesystem::path& root) {
    const auto folder = root / "sys/class/powercap";
    std::map<std::string, std::filesystem::path> found;
    collect(folder, found);
    std::vector<Zone> packages, memories, platforms;
    // ':' sorts behind '-': list the plain driver first, so that an MMIO twin is the one left out.
    std::vector<std::pair<std::string, std::filesystem::path>> ordered(found.begin(), found.end());
    std::stable_sort(ordered.begin(), ordered.end(), [](const auto& a, const auto& b) {
        return a.first.rfind("intel-rapl:", 0) == 0 && b.first.rfind("intel-rapl:", 0) != 0;
    });
    for (const auto& [id, path] : ordered) {
        Zone zone;
        zone.folder = path;
        zone.name = read_line(path / "name");
        const bool nested = std::count(id.begin(), id.end(), ':') > 1;
        if (nested) {
            if (zone.name != "dram") continue;  // core and uncore are part of the package
            const auto parent = found.find(id.substr(0, id.rfind(':')));
            if (parent == found.end()) continue;
            zone.name = read_line(parent->second / "name") + "/dram";
        } else if (zone.name.rfind("package", 0) != 0 && zone.name != "psys" && zone.name != "dram") {
            continue;
        } else if (zone.name == "dram") {
            zone.name = "machine/dram";
        }
        const auto now = read_number(path / "energy_uj");
        permission_denied_ = permission_denied_ || now.denied;
        if (!now.value) zone.failure = now.failure;
        zone.first_uj = zone.last_uj = now.value.value_or(0);
        zone.max_uj = read_number(path / "max_energy_range_uj").value;
        if (zone.max_uj && *zone.max_uj <= 0) zone.max_uj.reset();
        // Of twins the first readable one counts.
        auto& list = zone.name == "psys" ? platforms : is_package(zone) ? packages : memories;
        const auto twin = std::find_if(list.begin(), list.end(), [&](const Zone& z) { return z.name == zone.name; });
        if (twin == list.end())
            list.push_back(zone);
        else if (!twin->failure.empty() && zone.failure.empty())
            *twin = zone;
    }
    zones_ = packages.empty() ? platforms : packages;
    if (!packages.empty()) zones_.insert(zones_.end(), memories.begin(), memories.end());
    if (zones_.empty()) discovery_failure_ = folder.string() + " holds no RAPL package";
}

std::string RaplReader::why_not() const {
    if (!discovery_failure_.empty()) return discovery_failure_;
    for (const auto& zone : zones_)
        if (is_package(zone) && !zone.failure.empty()) return zone.failure;
    return "";
}

double RaplReader::poll_seconds() const {
    double seconds = 60;
    for (const auto& zone : zones_)
        if (zone.max_uj) seconds = std::min(seconds, *zone.max_uj * 1e-6 / (4 * kMaximumWatts));
    return seconds;
}

void RaplReader::start(double now) {
    start_time_ = now;
    for (auto& zone : zones_) {
        const auto read = read_number(zone.folder / "energy_uj");
        zone.failure = read.failure;
        zone.total_uj = 0;
        zone.first_uj = zone.last_uj = read.value.value_or(0);
        zone.last_time = zone.changed_time = now;
    }
}

void RaplReader::sample(double now) {
    for (auto& zone : zones_) {
        if (!zone.failure.empty()) continue;
        const auto read = read_number(zone.folder / "energy_uj");
        if (!read.value) {
            zone.failure = read.failure;
            continue;
        }
        const double passed = now - zone.last_time;
        if (zone.max_uj && passed > *zone.max_uj * 1e-6 / kMaximumWatts) {
            zone.failure = zone.name + " was not read for " + number_text(passed) + " s and may have wrapped unseen";
            continue;
        }
        double delta = *read.value - zone.last_uj;
        if (delta < 0 && zone.max_uj) delta += *zone.max_uj;
        // 1 J of slack: a counter that moves in steps may show the energy of a moment before.
        if (delta < 0 || (*read.value < zone.last_uj && delta * 1e-6 > passed * kMaximumWatts + 1)) {
            zone.failure = zone.name + " went back from " + std::to_string(zone.last_uj * 1e-6) + " to " +
                           std::to_string(*read.value * 1e-6) + " J" +
                           (zone.max_uj ? ", too far for a wrap" : " and names no range to wrap at");
            continue;
        }
        if (delta > 0) zone.changed_time = now;
        if (now - zone.changed_time >= kStallSeconds) {
            zone.failure = zone.name + " did not move in " + std::to_string(now - zone.changed_time) + " s";
            continue;
        }
        zone.total_uj += delta;
        zone.last_uj = *read.value;
        zone.last_time = now;
    }
}

bool RaplReader::mirrors_another(size_t index) const {
    const auto& zone = zones_[index];
    if (zone.name.find("-die-") == std::string::npos) return false;
    const auto socket = zone.name.substr(0, zone.name.find("-die-"));
    for (size_t i = 0; i < index; ++i) {
        const auto& other = zones_[i];
        if (is_package(other) == is_package(zone) && other.name.rfind(socket + "-die-", 0) == 0 &&
            other.failure.empty() && std::abs(other.first_uj - zone.first_uj) < kMirrorMicrojoules &&
            std::abs(other.last_uj - zone.last_uj) < kMirrorMicrojoules)
            return true;
    }
    return false;
}

std::string RaplReader::method() const {
    std::string names;
    for (size_t i = 0; i < zones_.size(); ++i)
        if (zones_[i].failure.empty() && !mirrors_another(i)) names += (names.empty() ? "" : ", ") + zones_[i].name;
    std::string without;
    for (const auto& zone : zones_)
        if (!zone.failure.empty()) without += "; without " + zone.name + " (" + zone.failure + ")";
    return "RAPL counters of " + names + without + "; the whole machine, other programs included";
}

bool RaplReader::counts_memory() const {
    return std::any_of(zones_.begin(), zones_.end(), [](const Zone& zone) {
        return zone.failure.empty() && (zone.name == "psys" || zone.name.find("dram") != std::string::npos);
    });
}

Figure RaplReader::total(double now) const {
    if (!discovery_failure_.empty()) return Figure::unavailable("J", discovery_failure_);
    double joules = 0;
    for (size_t i = 0; i < zones_.size(); ++i) {
        const auto& zone = zones_[i];
        if (!zone.failure.empty()) {
            if (is_package(zone)) return Figure::unavailable("J", zone.failure);
            continue;
        }
        if (is_package(zone) && zone.total_uj == 0)
            return Figure::unavailable("J", zone.name + " did not move in " + std::to_string(now - start_time_) + " s");
        if (!mirrors_another(i)) joules += zone.total_uj * 1e-6;
    }
    auto figure = Figure::measured(joules, "J", method());
    figure.systematic_ratio = Interval{1.0, 1.6};  // package to wall: supply, mainboard and fans are not in the counter
    return figure;
}

EnergySource rapl_source() {
    const std::string summary = "Linux powercap counters of CPU packages and memory (Intel, AMD)";
    return {"rapl", summary,
            [summary](const EnergyOptions& options) {
                const RaplReader reader(options.root);
                EnergySourceStatus status{"rapl", summary, reader.usable(), reader.why_not(), ""};
                if (status.usable) {
                    status.reason = reader.method();
                } else if (reader.permission_denied()) {
                    status.enable = "sudo chmod a+r /sys/class/powercap/intel-rapl*/energy_uj";
                } else if (environment(options.root).virtual_machine) {
                    status.reason += "; a virtual machine does not show the counters of its host";
                } else {
                    status.enable = "sudo modprobe -a intel_rapl_common intel_rapl_msr";
                }
                return status;
            },
            [](const EnergyOptions& options) -> std::unique_ptr<EnergyMeter> {
                return polled_meter("rapl", std::make_unique<RaplReader>(options.root), options.idle_watts);
            }};
}

}  // namespace coppice::eval
