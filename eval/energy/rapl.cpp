#include "energy/rapl.h"

#include <cerrno>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <fstream>
#include <mutex>
#include <set>
#include <thread>

#include "energy/sources.h"

namespace coppice::eval {
namespace {

// No package draws more for longer than a moment; what a counter cannot have counted at this power is a reset, not a
// wrap.
constexpr double kMaximumWatts = 1000;
// Two dies of one AMD socket report one counter: equal up to the microseconds between the two reads. Independent
// counters start within 1 J of each other once in 10^5 machines.
constexpr double kMirrorMicrojoules = 1e6;

struct Read {
    std::optional<double> value;
    std::string failure;
    bool denied = false;
};

Read read_number(const std::filesystem::path& path) {
    errno = 0;
    std::ifstream file(path);
    if (!file) return {std::nullopt, path.string() + ": " + std::strerror(errno ? errno : ENOENT), errno == EACCES};
    std::string text;
    std::getline(file, text);
    if (file.bad() || text.empty()) return {std::nullopt, path.string() + " cannot be read", false};
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (end == text.c_str() || (*end != '\0' && !std::isspace(static_cast<unsigned char>(*end))) || !(value >= 0))
        return {std::nullopt, path.string() + " holds \"" + text + "\", not a number", false};
    return {value, "", false};
}

std::string read_name(const std::filesystem::path& path) {
    std::ifstream file(path);
    std::string text;
    std::getline(file, text);
    return text;
}

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
    std::set<std::string> seen;
    // ':' sorts behind '-': list the plain driver first, so that an MMIO twin is the one left out.
    std::vector<std::pair<std::string, std::filesystem::path>> ordered(found.begin(), found.end());
    std::stable_sort(ordered.begin(), ordered.end(), [](const auto& a, const auto& b) {
        return a.first.rfind("intel-rapl:", 0) == 0 && b.first.rfind("intel-rapl:", 0) != 0;
    });
    for (const auto& [id, path] : ordered) {
        Zone zone;
        zone.folder = path;
        zone.name = read_name(path / "name");
        const bool nested = std::count(id.begin(), id.end(), ':') > 1;
        if (nested) {
            if (zone.name != "dram") continue;  // core and uncore are part of the package
            const auto parent = found.find(id.substr(0, id.rfind(':')));
            if (parent == found.end()) continue;
            zone.name = read_name(parent->second / "name") + "/dram";
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
        zone.last_time = now;
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
            zone.failure = zone.name + " was not read for " + std::to_string(static_cast<int>(passed)) +
                           " s and may have wrapped unseen";
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
    return "RAPL counters of " + names + "; the whole machine, other programs included";
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

namespace {

// Polls in a thread of its own while it runs, because a counter may wrap every minute.
class RaplMeter final : public EnergyMeter {
public:
    RaplMeter(const std::filesystem::path& root, std::optional<double> idle_watts) : reader_(root), idle_(idle_watts) {
        poller_ = std::thread([this] { poll(); });
    }
    ~RaplMeter() override {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            ended_ = true;
        }
        wake_.notify_all();
        poller_.join();
    }

    std::string name() const override { return "rapl"; }
    std::string method() const override {
        std::lock_guard<std::mutex> lock(mutex_);
        return reader_.method();
    }
    void start() override {
        std::lock_guard<std::mutex> lock(mutex_);
        reader_.start(wall_seconds());
        running_ = true;
    }
    Figure read() override {
        std::lock_guard<std::mutex> lock(mutex_);
        const double now = wall_seconds();
        reader_.sample(now);
        return reader_.total(now);
    }
    Figure stop() override {
        auto figure = read();
        std::lock_guard<std::mutex> lock(mutex_);
        running_ = false;
        return figure;
    }
    Figure idle_power_w() const override {
        if (idle_) return Figure::assumed(*idle_, "W", "given by the user (idle_watts)");
        return Figure::unavailable("W", "idle power was not measured; set idle_watts");
    }

private:
    void poll() {
        std::unique_lock<std::mutex> lock(mutex_);
        while (!ended_) {
            wake_.wait_for(lock, std::chrono::duration<double>(reader_.poll_seconds()));
            if (!ended_ && running_) reader_.sample(wall_seconds());
        }
    }

    RaplReader reader_;
    std::optional<double> idle_;
    mutable std::mutex mutex_;
    std::condition_variable wake_;
    bool running_ = false, ended_ = false;
    std::thread poller_;
};

}  // namespace

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
                return std::make_unique<RaplMeter>(options.root, options.idle_watts);
            }};
}

}  // namespace coppice::eval
