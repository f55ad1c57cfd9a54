// What reading a meter costs, source by source, and the share of the timed windows that goes into it.
//
//   meter_overhead                              sources of this machine, and all others on synthetic trees and fakes
//   meter_overhead MODEL.pt 1,3,32,32           also: the interleaved timing of MODEL against itself with each of them;
//                                               by division ("least") where a source asks for windows above a second
//
// Synthetic: files in a temporary folder stand for sysfs, a library that answers at once for those of GPU makers, and a
// function for perf events. What the kernel, the driver or a management controller needs beyond that is not in those
// figures; it is in those that say "this machine".
#include <coppice/error.h>
#include <coppice/eval.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>

namespace {

namespace fs = std::filesystem;
using namespace coppice::eval;

constexpr int kReads = 2001;

struct Case {
    std::string place;
    EnergyOptions options;
};

class Tree {
public:
    Tree() {
        auto pattern = (fs::temp_directory_path() / "coppice-meters-XXXXXX").string();
        if (!::mkdtemp(pattern.data())) throw coppice::IoError(pattern, "cannot be created", "");
        root_ = pattern;
    }
    ~Tree() {
        std::error_code ignored;
        fs::remove_all(root_, ignored);
    }
    void write(const std::string& file, const std::string& text) const {
        fs::create_directories((root_ / file).parent_path());
        std::ofstream(root_ / file) << text << "\n";
    }
    const fs::path& root() const { return root_; }

private:
    fs::path root_;
};

// Two sockets with memory, as a server has them.
void fill(const Tree& tree) {
    for (const std::string socket : {"0", "1"}) {
        const auto package = "sys/class/powercap/intel-rapl:" + socket;
        const auto counter = std::to_string(1000000 + 7 * std::stoi(socket));
        for (const auto& [folder, name] :
             {std::pair<std::string, std::string>{package, "package-" + socket}, {package + ":0", "dram"}}) {
            tree.write(folder + "/name", name);
            tree.write(folder + "/energy_uj", counter + (name == "dram" ? "1" : ""));
            tree.write(folder + "/max_energy_range_uj", "262143328850");
        }
        const auto hwmon = "sys/class/hwmon/hwmon0/energy" + std::to_string(std::stoi(socket) + 1);
        tree.write(hwmon + "_label", "Esocket" + socket);
        tree.write(hwmon + "_input", counter);
    }
    tree.write("sys/class/hwmon/hwmon0/name", "amd_energy");
    tree.write("sys/class/power_supply/BAT0/type", "Battery");
    tree.write("sys/class/power_supply/BAT0/status", "Discharging");
    tree.write("sys/class/power_supply/BAT0/power_now", "12000000");
    const std::string perf = "sys/bus/event_source/devices/power/";
    tree.write(perf + "type", "31");
    tree.write(perf + "cpumask", "0,32");
    tree.write(perf + "events/energy-pkg", "event=0x02");
    tree.write(perf + "events/energy-pkg.scale", "2.3283064365386962890625e-10");
    tree.write(perf + "events/energy-pkg.unit", "Joules");
    std::ofstream readings(tree.root() / "meter.csv");  // an hour, once a second
    readings << "time,watts\n";
    for (int second = 0; second < 3600; ++second) readings << 1000000000 + second << ",50\n";
}

std::vector<Case> cases(const Tree& tree) {
    std::vector<Case> all;
    for (const auto& status : probe_energy_sources())
        if (status.usable) {
            EnergyOptions options;
            options.source = status.name;
            all.push_back({"this machine", options});
        }
    for (const char* name : {"perf", "rapl", "hwmon", "battery", "meter_csv", "nvml", "amd_smi"}) {
        EnergyOptions options;
        options.source = name;
        options.root = tree.root();
        options.perf_opener = [](uint32_t, uint64_t, int, int&) -> PerfCounter {
            return [count = uint64_t{0}]() mutable { return std::optional<uint64_t>(count += 1000); };
        };
        options.meter_file = tree.root() / "meter.csv";
        options.unix_clock = [] { return 1000001000.0; };
        options.nvml_library = options.amd_smi_library = COPPICE_FAKE_GPU;
        all.push_back({"synthetic", options});
    }
    return all;
}

// Seconds of a start and a stop: what a window pays.
std::vector<double> costs(EnergyMeter& meter) {
    std::vector<double> times;
    for (int i = 0; i < kReads; ++i) {
        const double before = wall_seconds();
        meter.start();
        meter.stop();
        times.push_back(wall_seconds() - before);
    }
    times.erase(times.begin());  // opens files and fills caches
    return times;
}

coppice::Inputs input_of(const std::string& shape) {
    std::vector<int64_t> sizes;
    std::istringstream list(shape);
    for (std::string size; std::getline(list, size, ',');) sizes.push_back(std::stoll(size));
    return {torch::ones(sizes)};
}

}  // namespace

int main(int argc, char** argv) {
    try {
        const Tree tree;
        fill(tree);
        const auto machine = environment();
        std::printf("%s, %d threads, kernel %s%s\n\n", machine.cpu.c_str(), machine.cores, machine.kernel.c_str(),
                    machine.virtual_machine ? ", virtual machine" : "");
        std::printf("%-10s %-13s %12s %12s %24s\n", "source", "where", "median us", "p99 us", "window for 0.5 %, ms");
        for (auto& [place, options] : cases(tree)) {
            const auto meter = make_energy_meter(options);
            const auto times = costs(*meter);
            const double median = quantile(times, 0.5);
            std::printf("%-10s %-13s %12.2f %12.2f %24.3f\n", options.source.c_str(), place.c_str(), 1e6 * median,
                        1e6 * quantile(times, 0.99), 1e3 * median / kMeterOverheadRatio);
        }
        if (argc < 3) return 0;
        const auto module = torch::jit::load(argv[1]);
        std::printf("\n%-10s %-13s %12s %12s %12s %12s\n", "source", "where", "windows", "window, ms", "overhead, %",
                    "ratio");
        for (auto& [place, options] : cases(tree)) {
            const auto meter = make_energy_meter(options);
            std::fflush(stdout);
            const double least = meter->minimum_window_s();
            if (least > 1) {  // eight rounds of two such windows would take minutes
                std::printf("%-10s %-13s %12s %12.1f %12.4f %12s\n", options.source.c_str(), place.c_str(), "least",
                            1e3 * least, 100 * quantile(costs(*meter), 0.5) / least, "-");
                continue;
            }
            LatencyOptions latency;
            latency.seconds = 5;
            const auto rows = measure_latency({{"a", module}, {"b", module}}, input_of(argv[2]), {1},
                                              {at::get_num_threads()}, latency, meter.get())[0];
            const auto& row = rows[1];
            const auto windows = static_cast<double>(row.windows.size());
            std::printf("%-10s %-13s %12.0f %12.1f %12.4f %12.3f\n", options.source.c_str(), place.c_str(), windows,
                        1e3 * static_cast<double>(row.queries) / windows * row.windows.front().mean_s,
                        100 * row.meter_overhead.value.value_or(-1), row.ratio_to_baseline.value.value_or(-1));
        }
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
