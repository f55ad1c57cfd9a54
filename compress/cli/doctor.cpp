// coppice doctor: what this machine offers, what it does not, and the command that would change that. Changes nothing
// itself.
#include <ATen/Config.h>
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/cpu/Utils.h>
#include <coppice/eval.h>
#include <coppice/quantize.h>

#include <dlfcn.h>

#include <filesystem>
#include <iostream>
#include <map>

#include "commands.h"

namespace coppice::cli {
namespace {

std::string yes(bool value) {
    return value ? "yes" : "no";
}

std::string dl_problem() {
    const char* text = ::dlerror();
    return text ? text : "unknown reason";
}

// libtorch_cuda lies beside libtorch_cpu when LibTorch was built with CUDA; it is opened here, never linked.
Json cuda_status() {
    Json status = {{"usable", false}, {"reason", ""}, {"enable", ""}, {"devices", Json::array()}};
    Dl_info info{};
    std::filesystem::path folder;
    if (::dladdr(reinterpret_cast<const void*>(&at::get_num_threads), &info) && info.dli_fname)
        folder = std::filesystem::path(info.dli_fname).parent_path();
    const auto library = folder / "libtorch_cuda.so";
    if (!std::filesystem::exists(library)) {
        status["reason"] = "this LibTorch was built for the CPU only";
        status["enable"] = "build with -DCMAKE_PREFIX_PATH=<a LibTorch with CUDA>";
        return status;
    }
    // The driver first: without it, loading a gigabyte of kernels would tell nothing.
    void* driver = ::dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (!driver) {
        status["reason"] = "no NVIDIA driver: " + dl_problem();
        return status;
    }
    if (!::dlopen(library.c_str(), RTLD_LAZY | RTLD_GLOBAL)) {
        status["reason"] = "libtorch_cuda.so does not load: " + dl_problem();
        status["enable"] = "pip install torch (with its nvidia packages) into the environment that LibTorch comes from";
        return status;
    }
    try {
        const auto count =
            at::globalContext().hasCUDA() ? at::detail::getCUDAHooks().deviceCount() : c10::DeviceIndex(0);
        status["usable"] = count > 0;
        if (count == 0) status["reason"] = "no device is visible";
        for (int i = 0; i < count; ++i) status["devices"].push_back("cuda:" + std::to_string(i));
    } catch (const std::exception& error) {
        status["reason"] = message_of(error);
    }
    return status;
}

Json to_json(const eval::NvmlStatus& nvml) {
    Json devices = Json::array();
    for (const auto& device : nvml.devices)
        devices.push_back({{"name", device.name}, {"energy_counter", device.energy_counter}, {"mig", device.mig}});
    return {{"usable", nvml.usable}, {"reason", nvml.reason}, {"driver", nvml.driver}, {"devices", devices}};
}

// Median of reads of a source that is usable here; nothing where it does not open.
std::optional<double> read_seconds(const std::string& source) {
    constexpr int kReads = 21;
    eval::EnergyOptions options;
    options.source = source;
    try {
        const auto meter = eval::make_energy_meter(options);
        meter->start();
        std::vector<double> times;
        for (int i = 0; i < kReads; ++i) {
            const double before = eval::wall_seconds();
            meter->read();
            times.push_back(eval::wall_seconds() - before);
        }
        return eval::quantile(times, 0.5);
    } catch (const Error&) {
        return std::nullopt;
    }
}

bool has_flag(const std::vector<std::string>& flags, const std::string& flag) {
    return std::find(flags.begin(), flags.end(), flag) != flags.end();
}

}  // namespace

int run_doctor(const Arguments& arguments) {
    CommandLine line(
        "doctor", "[options]",
        "Shows what this machine offers to Coppice: CPU features, threads, LibTorch, CUDA, engines of quantized "
        "operators\n"
        "and energy counters, each with the reason why it cannot be used and the command that would enable it.",
        "  coppice doctor\n  coppice doctor --json\n");
    line.add()("json", "as JSON");
    if (!line.parse(arguments, "")) return kDone;

    const auto machine = eval::environment();
    const auto sources = eval::probe_energy_sources();
    const auto power = eval::cpu_power(machine.cpu);
    const auto cuda = cuda_status();
    const auto nvml = eval::nvml_status();
    const bool vnni = has_flag(machine.flags, "avx512_vnni") || has_flag(machine.flags, "avx_vnni");
    const bool bf16 = has_flag(machine.flags, "avx512_bf16") || has_flag(machine.flags, "amx_bf16");
    const bool amx = has_flag(machine.flags, "amx_int8");

    Json energy = Json::array();
    std::map<std::string, double> read_costs;
    for (const auto& source : sources) {
        const auto cost = source.usable && source.name != "none" ? read_seconds(source.name) : std::nullopt;
        if (cost) read_costs[source.name] = *cost;
        energy.push_back({{"name", source.name},
                          {"summary", source.summary},
                          {"usable", source.usable},
                          {"reason", source.reason},
                          {"read_seconds", cost ? Json(*cost) : Json(nullptr)},
                          {"enable", source.enable}});
    }
    if (line.given("json")) {
        const Json out = {
            {"format", "coppice-doctor"},
            {"version", 1},
            {"coppice", version()},
            {"environment", machine.to_json()},
            {"cpu", {{"vnni", vnni}, {"amx", amx}, {"bf16", bf16}, {"capability", at::get_cpu_capability()}}},
            {"threads", at::get_num_threads()},
            {"engines", quantize::engines()},
            {"exact_int8_products", quantize::exact_int8_products()},
            {"cuda", cuda},
            {"nvml", to_json(nvml)},
            {"energy", energy},
            {"cpu_watts_per_core",
             {{"value", power.watts_per_core}, {"known", power.known}, {"method", power.method}}}};
        std::cout << out.dump(2) << "\n";
        return kDone;
    }

    const auto item = [](const std::string& name, const std::string& text) {
        std::cout << "  " << name << std::string(name.size() < 18 ? 18 - name.size() : 1, ' ') << wrapped(text, 100, 20)
                  << "\n";
    };
    std::string flags;
    for (const auto& flag : machine.flags) flags += (flags.empty() ? "" : " ") + flag;
    std::cout << "Coppice " << version() << "\n\nCPU\n";
    item("model", machine.cpu);
    item("cores", std::to_string(machine.cores) + " for this process, " + std::to_string(at::get_num_threads()) +
                      " threads by default");
    item("instructions", flags.empty() ? "none beyond the basic ones" : flags);
    item("int8 (VNNI)",
         vnni ? "yes" : "no: int8 weights use 7 bits, so that sums cannot overflow, and gain less speed");
    item("AMX", yes(amx));
    item("bfloat16", bf16 ? "native" : "emulated: bf16 saves memory but no time");
    item("memory", bytes_text(static_cast<double>(machine.memory_bytes)));
    item("system", machine.kernel + (machine.virtual_machine ? ", virtual machine" : "") +
                       (machine.container.empty() ? "" : ", container: " + machine.container) +
                       (machine.governor.empty() ? "" : ", governor: " + machine.governor));
    item("malloc", machine.malloc);
    if (machine.malloc == "default")
        item("",
             "tcmalloc in its place (LD_PRELOAD=libtcmalloc_minimal.so.4) makes int8 models faster, small ones most; "
             "or MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=1073741824 in the environment: memory is "
             "kept between runs, models with large activations are faster");

    std::cout << "\nLibTorch\n";
    item("version", machine.libtorch);
    item("kernels for", at::get_cpu_capability());
    item("oneDNN, MKL", std::string(at::hasMKLDNN() ? "yes" : "no") + ", " + yes(at::hasMKL()));
    std::string engines;
    for (const auto& engine : quantize::engines()) engines += (engines.empty() ? "" : ", ") + engine;
    item("int8 engines", engines + (quantize::engine().empty() ? "" : "; in force: " + quantize::engine()));

    std::cout << "\nGPU\n";
    std::string devices;
    for (const auto& device : cuda["devices"]) devices += (devices.empty() ? "" : ", ") + device.get<std::string>();
    item("CUDA", cuda["usable"].get<bool>() ? devices : "no: " + cuda["reason"].get<std::string>());
    if (!cuda["enable"].get<std::string>().empty()) item("", "to enable: " + cuda["enable"].get<std::string>());
    devices.clear();
    for (const auto& device : nvml.devices)
        devices += (devices.empty() ? "" : ", ") + device.name +
                   (device.energy_counter ? " (with energy counter" : " (without energy counter") +
                   (device.mig ? ", cut into MIG instances)" : ")");
    item("NVML", nvml.usable ? devices + ", driver " + nvml.driver : "no: " + nvml.reason);

    std::cout << "\nEnergy\n";
    for (const auto& source : sources) {
        char cost[48] = "";
        if (const auto found = read_costs.find(source.name); found != read_costs.end())
            std::snprintf(cost, sizeof cost, "; a read takes %.3g us", 1e6 * found->second);
        item(source.name, (source.usable ? "yes: " : "no: ") + source.reason + cost);
        if (!source.enable.empty()) item("", "to enable: " + source.enable);
    }
    char watts[32];
    std::snprintf(watts, sizeof watts, "%.2f W", power.watts_per_core);
    item("watts per core", std::string(watts) + ", " + power.method);
    return kDone;
}

}  // namespace coppice::cli
