// A library that answers as NVML and AMD SMI do, for two GPUs that a test sets. It has just the functions that Coppice
// calls, under their public names.
#include <cstdint>
#include <cstdio>

namespace {

struct Gpu {
    unsigned long long millijoules = 0, step_millijoules = 1;
    unsigned milliwatts = 0;
    bool counter = true, power = true, mig = false, lost = false;
};
Gpu g_gpus[2];
unsigned g_count = 2;
int g_init_error = 0, g_open = 0;

constexpr int kInvalid = 2, kNotSupported = 3, kLost = 15;

Gpu* gpu_of(void* handle) {
    return static_cast<Gpu*>(handle);
}

}  // namespace

extern "C" {

// What a test sets.
void fake_reset() {
    for (auto& gpu : g_gpus) gpu = Gpu();
    g_count = 2;
    g_init_error = 0;
}
void fake_count(unsigned count, int init_error) {
    g_count = count;
    g_init_error = init_error;
}
void fake_set(unsigned index, double joules, double watts) {
    g_gpus[index].millijoules = static_cast<unsigned long long>(joules * 1000 + 0.5);
    g_gpus[index].milliwatts = static_cast<unsigned>(watts * 1000 + 0.5);
}
void fake_traits(unsigned index, bool counter, bool power, bool mig, bool lost) {
    g_gpus[index].counter = counter;
    g_gpus[index].power = power;
    g_gpus[index].mig = mig;
    g_gpus[index].lost = lost;
}
void fake_step(unsigned index, double joules) {  // the counter shows whole steps only
    g_gpus[index].step_millijoules = static_cast<unsigned long long>(joules * 1000 + 0.5);
}
int fake_open() {
    return g_open;
}

// NVML
int nvmlInit_v2() {
    if (!g_init_error) ++g_open;
    return g_init_error;
}
int nvmlShutdown() {
    --g_open;
    return 0;
}
const char* nvmlErrorString(int code) {
    return code == kLost ? "GPU is lost" : code == kNotSupported ? "Not Supported" : "Unknown Error";
}
int nvmlSystemGetDriverVersion(char* text, unsigned length) {
    std::snprintf(text, length, "555.42");
    return 0;
}
int nvmlDeviceGetCount_v2(unsigned* count) {
    *count = g_count;
    return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** handle) {
    if (index >= g_count) return kInvalid;
    *handle = &g_gpus[index];
    return 0;
}
int nvmlDeviceGetName(void*, char* text, unsigned length) {
    std::snprintf(text, length, "Fake H100");
    return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void* handle, unsigned long long* millijoules) {
    if (gpu_of(handle)->lost) return kLost;
    if (!gpu_of(handle)->counter) return kNotSupported;
    const auto step = gpu_of(handle)->step_millijoules;
    *millijoules = gpu_of(handle)->millijoules / step * step;
    return 0;
}
int nvmlDeviceGetPowerUsage(void* handle, unsigned* milliwatts) {
    if (gpu_of(handle)->lost) return kLost;
    if (!gpu_of(handle)->power) return kNotSupported;
    *milliwatts = gpu_of(handle)->milliwatts;
    return 0;
}
int nvmlDeviceGetMigMode(void* handle, unsigned* current, unsigned* pending) {
    *current = *pending = gpu_of(handle)->mig ? 1 : 0;
    return 0;
}

// AMD SMI: one socket with all processors; the counter has ticks of 15.3 uJ.
int amdsmi_init(uint64_t) {
    if (!g_init_error) ++g_open;
    return g_init_error;
}
int amdsmi_shut_down() {
    --g_open;
    return 0;
}
int amdsmi_get_socket_handles(uint32_t* count, void** handles) {
    if (handles) handles[0] = g_gpus;
    *count = 1;
    return 0;
}
int amdsmi_get_processor_handles(void*, uint32_t* count, void** handles) {
    for (unsigned i = 0; handles && i < g_count; ++i) handles[i] = &g_gpus[i];
    *count = g_count;
    return 0;
}
int amdsmi_get_energy_count(void* handle, uint64_t* ticks, float* resolution, uint64_t* time) {
    if (gpu_of(handle)->lost || !gpu_of(handle)->counter) return kNotSupported;
    *resolution = 15.3F;
    *ticks = static_cast<uint64_t>(static_cast<double>(gpu_of(handle)->millijoules) * 1000 / 15.3);
    *time = 0;
    return 0;
}
}
