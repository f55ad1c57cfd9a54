// AMD GPUs by the AMD System Management Interface, opened at run time: an accumulator whose unit (15.3 uJ on current
// chips) the library tells with it. Declarations below are of its public C interface.
#include <algorithm>
#include <cstdint>
#include <memory>

#include "energy/library.h"
#include "energy/polled.h"
#include "energy/sources.h"

namespace coppice::eval {
namespace {

constexpr uint64_t kInitGpus = 1 << 1;  // AMDSMI_INIT_AMD_GPUS

class AmdSmi {
public:
    explicit AmdSmi(const std::filesystem::path& path) : library_(path) {
        if (!library_.failure().empty()) {
            failure_ = library_.failure();
            return;
        }
        const auto init = library_.function<int(uint64_t)>("amdsmi_init");
        const auto sockets = library_.function<int(uint32_t*, void**)>("amdsmi_get_socket_handles");
        const auto processors = library_.function<int(void*, uint32_t*, void**)>("amdsmi_get_processor_handles");
        energy_ = library_.function<int(void*, uint64_t*, float*, uint64_t*)>("amdsmi_get_energy_count");
        if (!init || !sockets || !processors || !energy_) {
            failure_ = path.string() + " lacks a function that is needed";
            return;
        }
        if (const int code = init(kInitGpus)) {
            failure_ = "amdsmi_init: error " + std::to_string(code);
            return;
        }
        ready_ = true;
        uint32_t count = 0;
        if (sockets(&count, nullptr) != 0 || count == 0) return;
        std::vector<void*> handles(count);
        if (sockets(&count, handles.data()) != 0) return;
        for (void* socket : handles) {
            uint32_t parts = 0;
            if (processors(socket, &parts, nullptr) != 0 || parts == 0) continue;
            std::vector<void*> found(parts);
            if (processors(socket, &parts, found.data()) == 0)
                devices_.insert(devices_.end(), found.begin(), found.end());
        }
    }
    ~AmdSmi() {
        const auto shutdown = library_.function<int()>("amdsmi_shut_down");
        if (ready_ && shutdown) shutdown();
    }

    const std::string& failure() const { return failure_; }
    const std::vector<void*>& devices() const { return devices_; }
    Reading joules(void* device) const {
        uint64_t ticks = 0, time = 0;
        float microjoules = 0;
        if (const int code = energy_(device, &ticks, &microjoules, &time))
            return {std::nullopt, "amdsmi_get_energy_count: error " + std::to_string(code), false};
        if (!(microjoules > 0)) return {std::nullopt, "its counter has no unit", false};
        return {1e-6 * static_cast<double>(microjoules) * static_cast<double>(ticks), "", false};
    }

private:
    Library library_;
    std::string failure_;
    bool ready_ = false;
    std::vector<void*> devices_;
    int (*energy_)(void*, uint64_t*, float*, uint64_t*) = nullptr;
};

struct Found {
    std::vector<Device> devices;
    std::string failure;
};

Found find_devices(const EnergyOptions& options) {
    Found found;
    const auto smi = std::make_shared<AmdSmi>(options.amd_smi_library);
    found.failure = smi->failure();
    if (!found.failure.empty()) return found;
    for (size_t i = 0; i < smi->devices().size(); ++i) {
        if (!options.gpus.empty() &&
            std::find(options.gpus.begin(), options.gpus.end(), static_cast<int64_t>(i)) == options.gpus.end())
            continue;
        void* handle = smi->devices()[i];
        // A second partition of one chip has no counter of its own.
        if (const auto reading = smi->joules(handle); !reading.value) {
            found.failure = "GPU " + std::to_string(i) + ": " + reading.failure;
            continue;
        }
        Device device;
        device.name = "GPU " + std::to_string(i);
        device.joules = [smi, handle] { return smi->joules(handle); };
        found.devices.push_back(std::move(device));
    }
    if (!found.devices.empty()) found.failure.clear();
    if (found.devices.empty() && found.failure.empty()) found.failure = "no device is visible";
    return found;
}

DeviceOptions how() {
    return {.what = "AMD SMI energy counters",
            .update_seconds = 0.001,
            .stall_seconds = 5,
            .poll_seconds = 1,
            .systematic = {0.9, 1.1}};  // the makers give no accuracy; wider than NVML's on purpose
}

}  // namespace

EnergySource amd_smi_source() {
    const std::string summary = "AMD GPUs by their system management interface";
    return {"amd_smi", summary,
            [summary](const EnergyOptions& options) {
                auto found = find_devices(options);
                EnergySourceStatus status{"amd_smi", summary, found.failure.empty(), found.failure, ""};
                if (status.usable)
                    status.reason = DeviceReader(std::move(found.devices), how()).method();
                else if (has_gpu(options.root, "0x1002"))
                    status.enable = "sudo apt-get install amd-smi-lib";
                return status;
            },
            [](const EnergyOptions& options) {
                return polled_meter("amd_smi", std::make_unique<DeviceReader>(find_devices(options).devices, how()),
                                    std::nullopt, /*minimum_window_s=*/1);
            },
            EnergyScope::kGpu};
}

}  // namespace coppice::eval
