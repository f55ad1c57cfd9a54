// RAPL by perf events of the unit `power`: the kernel extends the registers to 64 bits and watches their wraps itself,
// so nothing is lost between two reads. Events, scale and CPUs are read from sysfs, as `perf stat -a -e
// power/energy-pkg/` does.
#include <linux/perf_event.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>

#include "energy/polled.h"
#include "energy/sources.h"

namespace coppice::eval {
namespace {

PerfCounter open_event(uint32_t type, uint64_t config, int cpu, int& error) {
    perf_event_attr attributes{};
    attributes.size = sizeof attributes;
    attributes.type = type;
    attributes.config = config;
    const long file = ::syscall(SYS_perf_event_open, &attributes, -1, cpu, -1, PERF_FLAG_FD_CLOEXEC);
    if (file < 0) {
        error = errno;
        return {};
    }
    const std::shared_ptr<void> closer(nullptr, [file](void*) { ::close(static_cast<int>(file)); });
    return [file, closer]() -> std::optional<uint64_t> {
        uint64_t value = 0;
        if (::read(static_cast<int>(file), &value, sizeof value) != sizeof value) return std::nullopt;
        return value;
    };
}

// "0,18" or "0-1,36" of a cpumask.
std::vector<int> cpu_list(const std::string& text) {
    std::vector<int> cpus;
    std::istringstream parts(text);
    for (std::string part; std::getline(parts, part, ',');) {
        int first = 0, last = 0;
        const int count = std::sscanf(part.c_str(), "%d-%d", &first, &last);
        if (count < 1) continue;
        for (int cpu = first; cpu <= (count == 2 ? last : first); ++cpu) cpus.push_back(cpu);
    }
    return cpus;
}

// "event=0x02"
std::optional<uint64_t> event_code(const std::string& text) {
    unsigned long long code = 0;
    if (std::sscanf(text.c_str(), "event=%llx", &code) != 1) return std::nullopt;
    return code;
}

// AMD counts per socket, whatever the number of its dies: a second die would show the same energy again.
bool counts_per_socket(const std::filesystem::path& root) {
    std::ifstream file(root / "proc/cpuinfo");
    for (std::string line; std::getline(file, line);)
        if (line.rfind("vendor_id", 0) == 0)
            return line.find("AuthenticAMD") != std::string::npos || line.find("HygonGenuine") != std::string::npos;
    return false;
}

struct Event {
    std::string name;  // "package of CPU 0"
    PerfCounter counter;
    double scale = 0;
};

struct Unit {
    std::vector<Event> events;
    std::string failure, enable;
};

Unit open_unit(const EnergyOptions& options) {
    Unit unit;
    const auto folder = options.root / "sys/bus/event_source/devices/power";
    const auto type = read_number(folder / "type");
    if (!type.value) {
        unit.failure = "the kernel shows no energy events (" + folder.string() + ")";
        if (environment(options.root).virtual_machine)
            unit.failure += "; a virtual machine does not show the counters of its host";
        else
            unit.enable = "sudo modprobe rapl";
        return unit;
    }
    std::vector<int> cpus;
    std::set<std::string> sockets;
    const bool per_socket = counts_per_socket(options.root);
    for (const int cpu : cpu_list(read_line(folder / "cpumask"))) {
        const auto socket = read_line(options.root / ("sys/devices/system/cpu/cpu" + std::to_string(cpu)) /
                                      "topology/physical_package_id");
        if (!sockets.insert(socket).second && per_socket && !socket.empty()) continue;
        cpus.push_back(cpu);
    }
    const auto open = options.perf_opener ? options.perf_opener : PerfOpener(open_event);
    const auto add = [&](const std::string& event, const std::string& name, bool needed) {
        const auto code = event_code(read_line(folder / "events" / event));
        const auto scale = read_number(folder / "events" / (event + ".scale"));
        const auto measure = read_line(folder / "events" / (event + ".unit"));
        if (!code || !scale.value || *scale.value <= 0 || measure != "Joules") return false;
        for (const int cpu : cpus) {
            int error = 0;
            auto counter = open(static_cast<uint32_t>(*type.value), *code, cpu, error);
            if (counter) {
                unit.events.push_back({name + " of CPU " + std::to_string(cpu), std::move(counter), *scale.value});
                continue;
            }
            if (!needed) continue;
            unit.failure =
                "perf_event_open of " + event + " on CPU " + std::to_string(cpu) + ": " + std::strerror(error);
            if (error == EACCES || error == EPERM) unit.enable = "sudo sysctl kernel.perf_event_paranoid=0";
        }
        return true;
    };
    if (cpus.empty()) {
        unit.failure = (folder / "cpumask").string() + " names no CPU";
        return unit;
    }
    // psys contains the packages, so it counts only without them.
    const bool packages = add("energy-pkg", "package", true);
    if (packages)
        add("energy-ram", "memory", false);
    else if (!add("energy-psys", "platform", true))
        unit.failure = folder.string() + " has neither energy-pkg nor energy-psys";
    if (!unit.failure.empty()) unit.events.clear();
    return unit;
}

std::vector<Device> devices_of(const Unit& unit) {
    std::vector<Device> devices;
    for (const auto& event : unit.events) {
        Device device;
        device.name = event.name;
        device.joules = [event]() -> Reading {
            const auto value = event.counter();
            if (!value) return {std::nullopt, "its perf event cannot be read any more", false};
            return {static_cast<double>(*value) * event.scale, "", false};
        };
        devices.push_back(std::move(device));
    }
    return devices;
}

}  // namespace

EnergySource perf_source() {
    const std::string summary = "Linux perf events power/energy-*/ of CPU packages and memory (Intel, AMD)";
    const auto how = [](const Unit& unit) {
        return DeviceOptions{
            .what = "perf energy events",
            .update_seconds = 0,
            .stall_seconds = 5,
            .poll_seconds = 1,
            .systematic = {1.0, 1.6},  // package to wall: supply, mainboard and fans are not counted
            .counts_memory = std::any_of(unit.events.begin(), unit.events.end(),
                                         [](const Event& event) { return event.name.rfind("package", 0) != 0; })};
    };
    return {"perf", summary,
            [summary, how](const EnergyOptions& options) {
                const auto unit = open_unit(options);
                EnergySourceStatus status{"perf", summary, unit.failure.empty(), unit.failure, unit.enable};
                if (status.usable)
                    status.reason = DeviceReader(devices_of(unit), how(unit)).method() +
                                    "; the whole machine, other programs included";
                return status;
            },
            [how](const EnergyOptions& options) {
                const auto unit = open_unit(options);
                return polled_meter("perf", std::make_unique<DeviceReader>(devices_of(unit), how(unit)),
                                    options.idle_watts);
            }};
}

}  // namespace coppice::eval
