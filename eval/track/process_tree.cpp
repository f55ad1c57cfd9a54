// CPU time and memory of a tree of processes, from /proc/<pid>/stat and statm.
#include <coppice/track.h>

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>

namespace coppice::eval {
namespace {

struct Process {
    int parent = 0;
    double ticks = 0;
};

// The name, field 2, stands in brackets and may hold anything, brackets and blanks too: fields are counted behind the
// last one.
std::optional<Process> read_stat(const std::filesystem::path& file) {
    std::ifstream stream(file);
    std::string line;
    std::getline(stream, line);
    const auto end = line.rfind(')');
    if (end == std::string::npos) return std::nullopt;
    std::istringstream fields(line.substr(end + 1));
    std::string state;
    Process process;
    fields >> state >> process.parent;
    std::string skipped;
    for (int field = 5; field < 14; ++field) fields >> skipped;
    for (int field = 14; field <= 17; ++field) {  // utime, stime, and of children that it waited for: cutime, cstime
        double ticks = 0;
        fields >> ticks;
        process.ticks += ticks;
    }
    if (!fields) return std::nullopt;
    return process;
}

}  // namespace

ProcessTree::Sample ProcessTree::sample(int parent) const {
    std::map<int, Process> processes;
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(folder_, ignored)) {
        const auto name = entry.path().filename().string();
        if (name.find_first_not_of("0123456789") != std::string::npos) continue;
        if (const auto process = read_stat(entry.path() / "stat")) processes[std::stoi(name)] = *process;
    }
    std::map<int, std::vector<int>> children;
    for (const auto& [pid, process] : processes) children[process.parent].push_back(pid);
    std::vector<int> pending = children[parent];
    std::set<int> seen = {parent};  // pids that were read a moment apart could form a ring
    Sample sample;
    double ticks = 0;
    int64_t own_pages = 0, shared_pages = 0;
    while (!pending.empty()) {
        const int pid = pending.back();
        pending.pop_back();
        if (!seen.insert(pid).second) continue;
        pending.insert(pending.end(), children[pid].begin(), children[pid].end());
        ticks += processes[pid].ticks;
        ++sample.processes;
        std::ifstream memory(folder_ / std::to_string(pid) / "statm");
        int64_t size = 0, resident = 0, shared = 0;
        if (memory >> size >> resident >> shared) {
            own_pages += std::max<int64_t>(0, resident - shared);
            shared_pages = std::max(shared_pages, shared);
        }
    }
    sample.cpu_s = ticks / static_cast<double>(::sysconf(_SC_CLK_TCK));
    sample.memory_bytes = (own_pages + shared_pages) * ::sysconf(_SC_PAGESIZE);
    return sample;
}

}  // namespace coppice::eval
