// NVIDIA GPUs by NVML, opened at run time. The energy counter comes first: it integrates inside the GPU, while average
// power is a filtered figure that A100 and H100 sample a quarter of the time only (arXiv 2312.02741). The counter moves
// every 100 ms or so, so short windows say little. Declarations below are of NVML's public C interface.
#include <algorithm>
#include <memory>

#include "energy/library.h"
#include "energy/polled.h"
#include "energy/sources.h"

namespace coppice::eval {
namespace {

constexpr double kUpdateSeconds = 0.1;
constexpr double kMinimumWindow = 10;  // a hundred steps of the counter
constexpr int kNvmlLost = 15;          // NVML_ERROR_GPU_IS_LOST

class Nvml {
public:
    explicit Nvml(const std::filesystem::path& path) : library_(path) {
        if (!library_.failure().empty()) {
            failure_ = library_.failure();
            return;
        }
        const auto init = library_.function<int()>("nvmlInit_v2");
        count_ = library_.function<int(unsigned*)>("nvmlDeviceGetCount_v2");
        handle_ = library_.function<int(unsigned, void**)>("nvmlDeviceGetHandleByIndex_v2");
        name_ = library_.function<int(void*, char*, unsigned)>("nvmlDeviceGetName");
        energy_ = library_.function<int(void*, unsigned long long*)>("nvmlDeviceGetTotalEnergyConsumption");
        power_ = library_.function<int(void*, unsigned*)>("nvmlDeviceGetPowerUsage");
        mig_ = library_.function<int(void*, unsigned*, unsigned*)>("nvmlDeviceGetMigMode");
        error_ = library_.function<const char*(int)>("nvmlErrorString");
        if (!init || !count_ || !handle_ || !name_) {
            failure_ = path.string() + " lacks a function that is needed";
        } else if (const int code = init()) {
            failure_ = "nvmlInit: " + text_of(code);
        } else {
            ready_ = true;
        }
    }
    ~Nvml() {
        const auto shutdown = library_.function<int()>("nvmlShutdown");
        if (ready_ && shutdown) shutdown();
    }

    const std::string& failure() const { return failure_; }
    std::string text_of(int code) const {
        const char* text = error_ ? error_(code) : nullptr;
        return text ? text : "error " + std::to_string(code);
    }
    std::string driver() const {
        const auto version = library_.function<int(char*, unsigned)>("nvmlSystemGetDriverVersion");
        char text[96] = {};
        return version && version(text, sizeof text - 1) == 0 ? text : "";
    }
    unsigned count() const {
        unsigned devices = 0;
        return ready_ && count_(&devices) == 0 ? devices : 0;
    }
    void* device(unsigned index) const {
        void* device = nullptr;
        return handle_(index, &device) == 0 ? device : nullptr;
    }
    std::string name(void* device) const {
        char text[96] = {};
        return name_(device, text, sizeof text - 1) == 0 ? text : "unnamed";
    }
    bool mig(void* device) const {
        unsigned current = 0, pending = 0;
        return mig_ && mig_(device, &current, &pending) == 0 && current == 1;
    }
    Reading joules(void* device) const {
        unsigned long long millijoules = 0;
        if (!energy_) return {std::nullopt, "this driver has no energy counter", false};
        if (const int code = energy_(device, &millijoules)) return failed(code);
        return {1e-3 * static_cast<double>(millijoules), "", false};
    }
    Reading watts(void* device) const {
        unsigned milliwatts = 0;
        if (!power_) return {std::nullopt, "this driver tells no power", false};
        if (const int code = power_(device, &milliwatts)) return failed(code);
        return {1e-3 * static_cast<double>(milliwatts), "", false};
    }

private:
    Reading failed(int code) const {
        return {std::nullopt, (code == kNvmlLost ? "the GPU was lost: " : "") + text_of(code), false};
    }

    Library library_;
    std::string failure_;
    bool ready_ = false;
    int (*count_)(unsigned*) = nullptr;
    int (*handle_)(unsigned, void**) = nullptr;
    int (*name_)(void*, char*, unsigned) = nullptr;
    int (*energy_)(void*, unsigned long long*) = nullptr;
    int (*power_)(void*, unsigned*) = nullptr;
    int (*mig_)(void*, unsigned*, unsigned*) = nullptr;
    const char* (*error_)(int) = nullptr;
};

struct Found {
    std::vector<Device> devices;
    std::string failure;
};

Found find_devices(const EnergyOptions& options) {
    Found found;
    const auto nvml = std::make_shared<Nvml>(options.nvml_library);
    found.failure = nvml->failure();
    if (!found.failure.empty()) return found;
    for (unsigned i = 0; i < nvml->count(); ++i) {
        if (!options.gpus.empty() && std::find(options.gpus.begin(), options.gpus.end(), i) == options.gpus.end())
            continue;
        void* handle = nvml->device(i);
        if (!handle) continue;
        Device device;
        device.name = "GPU " + std::to_string(i) + " (" + nvml->name(handle) + ")";
        const bool counter = nvml->joules(handle).value.has_value(), power = nvml->watts(handle).value.has_value();
        if (!counter && !power) {
            found.failure = device.name + " tells neither energy nor power: " + nvml->watts(handle).failure;
            continue;
        }
        if (counter) device.joules = [nvml, handle] { return nvml->joules(handle); };
        if (power) device.watts = [nvml, handle] { return nvml->watts(handle); };
        if (nvml->mig(handle)) device.note = "cut into MIG instances; the figure is of all of them together";
        if (!counter)
            device.note += std::string(device.note.empty() ? "" : "; ") + "no energy counter, its power was integrated";
        found.devices.push_back(std::move(device));
    }
    if (found.devices.empty() && found.failure.empty()) found.failure = "no device is visible";
    if (!found.devices.empty()) found.failure.clear();
    return found;
}

DeviceOptions how() {
    return {.what = "NVML energy",
            .update_seconds = kUpdateSeconds,
            .stall_seconds = 5,
            .poll_seconds = 0.5,
            .systematic = {0.95, 1.05}};  // the maker's accuracy of the sensor
}

}  // namespace

NvmlStatus nvml_status(const std::filesystem::path& library) {
    NvmlStatus status;
    const Nvml nvml(library);
    status.reason = nvml.failure();
    if (!status.reason.empty()) return status;
    status.driver = nvml.driver();
    for (unsigned i = 0; i < nvml.count(); ++i)
        if (void* device = nvml.device(i))
            status.devices.push_back({nvml.name(device), nvml.joules(device).value.has_value(), nvml.mig(device)});
    status.usable = !status.devices.empty();
    if (!status.usable) status.reason = "no device is visible";
    return status;
}

bool has_gpu(const std::filesystem::path& root, const std::string& vendor) {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(root / "sys/bus/pci/devices", ignored)) {
        const auto kind = read_line(entry.path() / "class");  // 0x03: display, 0x12: accelerator
        if (read_line(entry.path() / "vendor") == vendor && (kind.rfind("0x03", 0) == 0 || kind.rfind("0x12", 0) == 0))
            return true;
    }
    return false;
}

EnergySource nvml_source() {
    const std::string summary = "NVIDIA GPUs by their management library";
    return {"nvml", summary,
            [summary](const EnergyOptions& options) {
                auto found = find_devices(options);
                EnergySourceStatus status{"nvml", summary, found.failure.empty(), found.failure, ""};
                if (status.usable)
                    status.reason = DeviceReader(std::move(found.devices), how()).method();
                else if (has_gpu(options.root, "0x10de"))
                    status.enable = "sudo apt-get install nvidia-driver";
                return status;
            },
            [](const EnergyOptions& options) {
                return polled_meter("nvml", std::make_unique<DeviceReader>(find_devices(options).devices, how()),
                                    std::nullopt, kMinimumWindow);
            },
            EnergyScope::kGpu};
}

}  // namespace coppice::eval
