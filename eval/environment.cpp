// The fingerprint of the machine. Reads /proc and /sys below a root, so that it can be tested on a synthetic tree.
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <sched.h>
#include <torch/version.h>

#include <coppice/engine.h>
#include <coppice/eval.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

namespace coppice::eval {
namespace {

// Instructions that LibTorch's kernels choose by.
constexpr const char* kFlags[] = {"sse4_2",   "avx",      "avx2",     "fma",         "f16c",        "avx_vnni",
                                  "avx512f",  "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
                                  "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",    "asimd",       "asimddp",
                                  "sve",      "i8mm",     "bf16"};

std::string text_of(const std::filesystem::path& path) {
    std::ifstream file(path);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

std::string first_line(const std::filesystem::path& path) {
    const auto text = text_of(path);
    return text.substr(0, text.find('\n'));
}

// Value of the first "key<blanks>: value" line of /proc/cpuinfo and its like.
std::string field(const std::string& text, const std::string& key) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        if (line.rfind(key, 0) != 0) continue;
        const auto colon = line.find(':');
        if (colon == std::string::npos || line.find_first_not_of(" \t", key.size()) != colon) continue;
        const auto start = line.find_first_not_of(" \t", colon + 1);
        return start == std::string::npos ? "" : line.substr(start);
    }
    return "";
}

std::string container_of(const std::filesystem::path& root) {
    std::error_code ignored;
    if (std::filesystem::exists(root / ".dockerenv", ignored)) return "docker";
    if (std::filesystem::exists(root / "run/.containerenv", ignored)) return "podman";
    const auto groups = text_of(root / "proc/1/cgroup");
    for (const char* name : {"kubepods", "docker", "containerd", "lxc", "libpod"})
        if (groups.find(name) != std::string::npos) return std::string(name) == "libpod" ? "podman" : name;
    return "";
}

// "0-3,8"
std::string ranges_of(const cpu_set_t& set) {
    std::string text;
    for (int first = 0; first < CPU_SETSIZE; ++first) {
        if (!CPU_ISSET(first, &set)) continue;
        int last = first;
        while (last + 1 < CPU_SETSIZE && CPU_ISSET(last + 1, &set)) ++last;
        text += (text.empty() ? "" : ",") + std::to_string(first) + (last > first ? "-" + std::to_string(last) : "");
        first = last;
    }
    return text;
}

}  // namespace

Environment environment(const std::filesystem::path& root) {
    Environment result;
    const auto info = text_of(root / "proc/cpuinfo");
    result.cpu = field(info, "model name");
    if (result.cpu.empty()) result.cpu = field(info, "Model");  // ARM boards
    auto flag_text = field(info, "flags");
    if (flag_text.empty()) flag_text = field(info, "Features");
    std::istringstream words(flag_text);
    const std::vector<std::string> present{std::istream_iterator<std::string>(words), {}};
    for (const char* flag : kFlags)
        if (std::find(present.begin(), present.end(), flag) != present.end()) result.flags.emplace_back(flag);
    result.virtual_machine = std::find(present.begin(), present.end(), "hypervisor") != present.end();
    result.container = container_of(root);

    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        result.cores = CPU_COUNT(&set);
        result.affinity = ranges_of(set);
    }
    const auto smt = first_line(root / "sys/devices/system/cpu/smt/active");
    if (smt == "0" || smt == "1") result.smt = smt == "1";
    result.threads = at::get_num_threads();
    result.libtorch = TORCH_VERSION;
    result.engine = engine_name(at::globalContext().qEngine());
    result.kernel = first_line(root / "proc/sys/kernel/osrelease");
    result.governor = first_line(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    // glibc gives the memory of large activations back after a run and takes it anew, unless it is told to keep it.
    for (const char* name : {"MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX",
                             "GLIBC_TUNABLES", "LD_PRELOAD"})
        if (const char* value = std::getenv(name))
            result.malloc += (result.malloc.empty() ? "" : " ") + std::string(name) + "=" + value;
    // Linked or preloaded in place of glibc's.
    for (const auto& [symbol, name] :
         {std::pair{"tc_malloc", "tcmalloc"}, {"mallctl", "jemalloc"}, {"mi_malloc", "mimalloc"}})
        if (dlsym(RTLD_DEFAULT, symbol)) result.malloc = name + (result.malloc.empty() ? "" : " " + result.malloc);
    if (result.malloc.empty()) result.malloc = "default";
    std::istringstream memory(field(text_of(root / "proc/meminfo"), "MemTotal"));
    int64_t kibibytes = 0;
    if (memory >> kibibytes) result.memory_bytes = kibibytes * 1024;
    return result;
}

Json Environment::to_json() const {
    const auto or_null = [](const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); };
    return {{"cpu", cpu},
            {"flags", flags},
            {"cores", cores},
            {"threads", threads},
            {"libtorch", libtorch},
            {"engine", engine},
            {"kernel", kernel},
            {"virtual_machine", virtual_machine},
            {"container", or_null(container)},
            {"governor", or_null(governor)},
            {"smt", smt ? Json(*smt) : Json(nullptr)},
            {"affinity", or_null(affinity)},
            {"malloc", malloc},
            {"memory_bytes", memory_bytes ? Json(memory_bytes) : Json(nullptr)}};
}

}  // namespace coppice::eval
