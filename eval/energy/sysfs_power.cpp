// Power that other drivers show below /sys: hwmon (ACPI power meters, sockets of AMD servers) and the battery of a
// laptop while it discharges.
#include <algorithm>

#include "energy/polled.h"
#include "energy/sources.h"

namespace coppice::eval {
namespace {

struct Found {
    std::vector<Device> devices;
    std::string failure, enable;
    Interval systematic = {1.0, 1.05};
    bool counts_memory = true;  // all but the sockets of CPUs
};

std::vector<std::filesystem::path> folders_of(const std::filesystem::path& parent) {
    std::vector<std::filesystem::path> folders;
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(parent, ignored)) folders.push_back(entry.path());
    std::sort(folders.begin(), folders.end());
    return folders;
}

std::function<Reading()> scaled(const std::filesystem::path& file, double scale) {
    return [file, scale] {
        auto reading = read_number(file);
        if (reading.value) *reading.value *= scale;
        return reading;
    };
}

Found find_hwmon(const EnergyOptions& options) {
    Found found;
    std::vector<Device> sockets;
    const auto parent = options.root / "sys/class/hwmon";
    for (const auto& folder : folders_of(parent)) {
        const auto driver = read_line(folder / "name");
        if (driver == "power_meter") {  // ACPI: the whole machine, before its supply
            for (const char* file : {"power1_average", "power1_input"}) {
                const auto reading = read_number(folder / file);
                if (!reading.value) {
                    found.failure = reading.failure;
                    if (reading.denied) found.enable = "sudo chmod a+r " + (folder / file).string();
                    continue;
                }
                Device device;
                device.name = "ACPI power meter " + folder.filename().string();
                device.watts = scaled(folder / file, 1e-6);
                found.devices.push_back(std::move(device));
                break;
            }
        } else if (driver == "amd_energy") {
            for (int i = 1; i < 1024; ++i) {
                const auto number = std::to_string(i);
                const auto label = read_line(folder / ("energy" + number + "_label"));
                if (label.empty()) break;
                if (label.rfind("Esocket", 0) != 0) continue;  // cores lie inside their socket
                const auto file = folder / ("energy" + number + "_input");
                const auto reading = read_number(file);
                if (!reading.value) {
                    found.failure = reading.failure;
                    if (reading.denied) found.enable = "sudo chmod a+r " + file.string();
                    continue;
                }
                Device device;
                device.name = "socket " + label.substr(7);
                device.joules = scaled(file, 1e-6);
                sockets.push_back(std::move(device));
            }
        }
    }
    if (found.devices.empty() && !sockets.empty()) {  // the machine's own meter contains its sockets
        found.devices = std::move(sockets);
        found.systematic = {1.0, 1.6};
        found.counts_memory = false;
    }
    if (!found.devices.empty())
        found.failure.clear();
    else if (found.failure.empty())
        found.failure = parent.string() + " has no power meter (drivers acpi_power_meter, amd_energy)";
    return found;
}

Reading battery_watts(const std::filesystem::path& folder) {
    const auto status = read_line(folder / "status");
    if (status != "Discharging")
        return {std::nullopt, "its status is \"" + status + "\": only a discharging battery tells what is drawn",
                false};
    auto power = read_number(folder / "power_now");  // uW
    if (power.value) return {*power.value * 1e-6, "", false};
    const auto current = read_number(folder / "current_now"), voltage = read_number(folder / "voltage_now");
    if (!current.value || !voltage.value) return power;
    return {*current.value * *voltage.value * 1e-12, "", false};  // uA x uV
}

Found find_batteries(const EnergyOptions& options) {
    Found found;
    const auto parent = options.root / "sys/class/power_supply";
    for (const auto& folder : folders_of(parent)) {
        if (read_line(folder / "type") != "Battery" || read_line(folder / "scope") == "Device") continue;
        const auto reading = battery_watts(folder);
        if (!reading.value) {
            found.failure = folder.filename().string() + ": " + reading.failure;
            continue;
        }
        Device device;
        device.name = folder.filename().string();
        device.watts = [folder] { return battery_watts(folder); };
        found.devices.push_back(std::move(device));
    }
    // Two batteries: one discharges while the other rests, so one that discharges is enough.
    if (!found.devices.empty())
        found.failure.clear();
    else if (found.failure.empty())
        found.failure = parent.string() + " has no battery";
    else
        found.enable = "pull the charger's plug";
    found.systematic = {0.95, 1.05};
    return found;
}

EnergySource make_source(const std::string& name, const std::string& summary, const std::string& what,
                         Found (*find)(const EnergyOptions&)) {
    const auto how = [what](const Found& found) {
        return DeviceOptions{.what = what,
                             .update_seconds = 0,
                             .stall_seconds = 5,
                             .poll_seconds = 1,
                             .systematic = found.systematic,
                             .counts_memory = found.counts_memory};
    };
    return {name, summary,
            [=](const EnergyOptions& options) {
                const auto found = find(options);
                EnergySourceStatus status{name, summary, found.failure.empty(), found.failure, found.enable};
                if (status.usable) status.reason = DeviceReader(found.devices, how(found)).method();
                return status;
            },
            [=](const EnergyOptions& options) {
                const auto found = find(options);
                return polled_meter(name, std::make_unique<DeviceReader>(found.devices, how(found)), options.idle_watts,
                                    /*minimum_window_s=*/1);
            }};
}

}  // namespace

EnergySource hwmon_source() {
    return make_source("hwmon", "power meters of mainboards and sockets (hwmon)", "hwmon", find_hwmon);
}

EnergySource battery_source() {
    return make_source("battery", "the battery of a laptop while it discharges", "integrated power", find_batteries);
}

}  // namespace coppice::eval
