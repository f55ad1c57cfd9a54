// coppice track: runs any program and tells what it took. Stdin, stdout and the exit code are the program's own; what
// is told goes to stderr and to files.
#include <coppice/pipeline.h>
#include <coppice/track.h>

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstring>
#include <ctime>
#include <iostream>
#include <random>

#include "accounts.h"
#include "commands.h"

namespace coppice::cli {
namespace {

using eval::Figure;

constexpr int kNotExecutable = 126, kNotFound = 127;  // as shells have it

volatile std::sig_atomic_t g_child = 0, g_early = 0;

// A terminal's Ctrl-C reaches the whole foreground group by itself; SIGTERM and SIGHUP are sent to one process only.
void pass_on(int signal) {
    if (g_child > 0)
        ::kill(static_cast<pid_t>(g_child), signal);
    else
        g_early = signal;  // there is nobody to pass it to yet
}

double seconds_of(const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
}

void pause_for(double seconds) {
    timespec time{static_cast<time_t>(seconds), static_cast<long>((seconds - std::floor(seconds)) * 1e9)};
    ::nanosleep(&time, nullptr);
}

// CPU time of what was waited for, and of what still runs.
class Accounting {
public:
    double cpu_seconds() {
        const auto sample = tree_.sample(::getpid());
        peak_ = std::max(peak_, sample.memory_bytes);
        running_ = sample.processes;
        live_ = sample.cpu_s;
        return reaped_ + live_;
    }
    void reaped(const rusage& usage) {
        reaped_ += seconds_of(usage.ru_utime) + seconds_of(usage.ru_stime);
        largest_ = std::max<int64_t>(largest_, usage.ru_maxrss * 1024);
    }
    /// The kernel's peak of the largest process, or the tree's largest sample. A child begins as a copy of this
    /// process, and its peak counts that, too: only what is above our own peak is surely the child's.
    Figure peak(double interval) const {
        rusage own{};
        ::getrusage(RUSAGE_SELF, &own);
        const auto inherited = static_cast<int64_t>(own.ru_maxrss) * 1024;
        const auto bytes = std::max(peak_, largest_ > inherited ? largest_ : 0);
        if (bytes == 0)
            return Figure::unavailable("B", "it ended before its memory was looked at, and took less than " +
                                                bytes_text(static_cast<double>(inherited)));
        return Figure::measured(static_cast<double>(bytes), "B",
                                "largest sum over the processes every " + formatted("%.3g s", interval) +
                                    " (shared pages once), or peak of the largest process");
    }
    int64_t running() const { return running_; }

private:
    eval::ProcessTree tree_;
    double reaped_ = 0, live_ = 0;
    int64_t peak_ = 0, largest_ = 0, running_ = 0;
};

// @return errno of a program that could not be started, 0 otherwise
int start(const std::vector<std::string>& command, pid_t& child) {
    int report[2];
    if (::pipe2(report, O_CLOEXEC) != 0) return errno;
    // Before the fork: a meter's thread may hold the allocator's lock in that moment.
    std::vector<char*> words;
    for (const auto& word : command) words.push_back(const_cast<char*>(word.c_str()));
    words.push_back(nullptr);
    child = ::fork();
    if (child < 0) {
        const int error = errno;
        ::close(report[0]);
        ::close(report[1]);
        return error;
    }
    if (child == 0) {
        for (const int signal : {SIGINT, SIGQUIT, SIGTERM, SIGHUP}) ::signal(signal, SIG_DFL);
        ::execvp(words[0], words.data());
        const int error = errno;
        [[maybe_unused]] const auto ignored = ::write(report[1], &error, sizeof error);
        ::_exit(kNotFound);
    }
    ::close(report[1]);
    int error = 0;
    const auto got = ::read(report[0], &error, sizeof error);
    ::close(report[0]);
    if (got != sizeof error) {
        // Only now: before it runs the command, the child has our handlers, and a signal would be lost in it.
        g_child = child;
        if (g_early) ::kill(child, static_cast<int>(g_early));
        return 0;
    }
    ::waitpid(child, nullptr, 0);
    return error;
}

// What stands behind the bar and the time, while the command runs.
std::string live_text(const eval::Usage& now, int64_t processes, double expected) {
    std::string text;
    const auto add = [&](const std::string& part) { text += (text.empty() ? "" : "  ") + part; };
    add(duration_text(*now.seconds.value));
    if (now.energy_j.value) add(energy_text(*now.energy_j.value));
    if (now.power_w.value) add(formatted("%.3g W", *now.power_w.value));
    if (now.carbon_g.value) add(carbon_text(*now.carbon_g.value));
    add("CPU " + duration_text(*now.cpu_s.value));
    add(std::to_string(processes) + (processes == 1 ? " process" : " processes"));
    if (expected > 0 && *now.seconds.value >= expected) add("longer than the " + duration_text(expected) + " expected");
    return text;
}

std::string random_id() {
    std::random_device device;
    std::string id;
    for (int i = 0; i < 16; ++i) {
        if (i == 4 || i == 6 || i == 8 || i == 10) id += '-';
        auto byte = device() & 0xff;
        if (i == 6) byte = (byte & 0x0f) | 0x40;  // UUID version 4
        if (i == 8) byte = (byte & 0x3f) | 0x80;
        char text[3];
        std::snprintf(text, sizeof text, "%02x", byte);
        id += text;
    }
    return id;
}

// What cannot be written is better known before the command runs.
void check_folder(const std::string& file) {
    if (!std::filesystem::is_directory(std::filesystem::absolute(file).parent_path()))
        throw IoError(file, "its folder does not exist", "Make it first.");
}

// The machine before and after the command; nothing for 0 seconds.
std::optional<eval::Idle> look_at_idle(eval::EnergyMeter& meter, double seconds) {
    if (seconds <= 0) return std::nullopt;
    eval::IdleOptions idle;
    idle.seconds = std::max(seconds, meter.minimum_window_s());
    return eval::measure_idle(meter, idle);
}

}  // namespace

int run_track(const Arguments& arguments) {
    CommandLine line("track", "[options] -- COMMAND [ARGUMENTS...]",
                     "Runs a program and tells what it took, with all its children: energy, power, carbon, CPU time, "
                     "memory. Input,\n"
                     "output and exit code are those of the program; what is told goes to stderr and to the files that "
                     "are asked for.",
                     "  coppice track -- python train.py --epochs 3\n"
                     "  coppice track --grid DE --csv emissions.csv --json run.json -- make -j8\n");
    const auto text = [] { return cxxopts::value<std::string>(); };
    line.add()("json", "write the record to this file", text(), "FILE")(
        "csv", "append a row to this file, in the columns of CodeCarbon's emissions.csv and more", text(), "FILE")(
        "card", "write co2_eq_emissions for a Hugging Face model card to this file", text(), "FILE")(
        "grid", "zone, g/kWh, or a .csv with columns time and g_per_kwh", text()->default_value("WORLD"), "GRID")(
        "pue", "power usage effectiveness of the site", text()->default_value("1"), "X")(
        "energy", "source: auto, one that coppice doctor lists, or a+b for a sum", text()->default_value("auto"),
        "SOURCE")("meter", "an external meter's CSV (columns time, watts); sets --energy meter_csv", text(), "FILE")(
        "cpu-watts-per-core", "for the CPU-time model; default: from the table", text(), "W")(
        "idle-watts", "of the machine, if known; gives net energy", text(), "W")(
        "idle", "measure idle power for so long before and after", text()->default_value("0"), "SECONDS")(
        "expect", "how long it takes: the line on the terminal then shows progress and the time left", text(),
        "SECONDS")("project", "name in the record, to group by", text()->default_value("coppice"), "NAME")(
        "user", "the same: on whose account", text()->default_value(""), "NAME")(
        "experiment", "identifier in the record", text()->default_value(""), "ID")(
        "tag", "in the record; may be repeated", cxxopts::value<std::vector<std::string>>(), "TAG")(
        "interval", "seconds between two looks at the processes", text()->default_value("1"), "SECONDS");
    Accounts::add_options(line, /*job=*/true);

    // Options behind the first -- are the command's.
    const auto dashes = std::find(arguments.begin(), arguments.end(), "--");
    if (!line.parse({arguments.begin(), dashes}, "stray")) return kDone;
    if (!line.texts("stray").empty())
        line.fail("the command must stand behind --", "Write coppice track -- " + line.texts("stray")[0] + " ...");
    std::vector<std::string> command;
    if (dashes != arguments.end()) command.assign(dashes + 1, arguments.end());
    if (command.empty()) line.fail("no command is given", "Write coppice track -- python train.py.");

    const auto grid = eval::grid_of(line.text("grid"));
    const double pue = number_option(line, "pue");
    if (pue < 1) line.fail("--pue is " + line.text("pue") + ", must be at least 1");
    const double interval = std::clamp(number_option(line, "interval"), 0.05, 60.0);
    const Accounts accounts(line, /*job=*/true);
    const double expected = line.given("expect") ? number_option(line, "expect") : 0;
    eval::EnergyOptions options;
    options.source = line.given("meter") && !line.given("energy") ? "meter_csv" : line.text("energy");
    options.with_gpus = true;
    if (line.given("meter")) options.meter_file = line.text("meter");
    if (line.given("cpu-watts-per-core")) options.cpu_watts_per_core = number_option(line, "cpu-watts-per-core");
    if (line.given("idle-watts")) options.idle_watts = number_option(line, "idle-watts");
    for (const char* file : {"json", "card"})
        if (line.given(file)) check_folder(line.text(file));
    if (line.given("csv")) eval::check_emissions(line.text("csv"));
    Accounting accounting;
    options.cpu_clock = [&accounting] { return accounting.cpu_seconds(); };

    const auto log = std::make_shared<eval::EnergyLog>(options, grid, pue);
    options.source = log->source();
    const double idle_seconds = number_option(line, "idle");
    const auto idle_meter = eval::make_energy_meter(options);
    const auto idle_before = look_at_idle(*idle_meter, idle_seconds);

    // Children that outlive their parents become ours, so that their CPU time is not lost.
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);
    struct sigaction ignore {
    }, forward{};
    ignore.sa_handler = SIG_IGN;
    forward.sa_handler = pass_on;
    forward.sa_flags = SA_RESTART;
    for (const int signal : {SIGINT, SIGQUIT}) ::sigaction(signal, &ignore, nullptr);
    for (const int signal : {SIGTERM, SIGHUP}) ::sigaction(signal, &forward, nullptr);

    TerminalLog live(line.level());
    const auto name = std::filesystem::path(command[0]).filename().string();
    eval::EnergyWindow window(log, command[0]);
    pid_t child = -1;
    if (const int error = start(command, child)) {
        std::cerr << "error: coppice track: cannot run " << command[0] << ": " << std::strerror(error) << "\n";
        return error == ENOENT ? kNotFound : kNotExecutable;
    }

    int status = 0;
    bool ended = false;
    // Looks come closer together at first, so that short programs are seen too.
    double step = std::min(0.05, interval);
    for (double next = eval::wall_seconds() + step; !ended;) {
        for (;;) {
            rusage usage{};
            int one = 0;
            const auto pid = ::wait4(-1, &one, WNOHANG, &usage);
            if (pid <= 0) break;
            accounting.reaped(usage);
            if (pid != child) continue;
            status = one;
            ended = true;
        }
        if (ended) break;
        if (eval::wall_seconds() >= next) {
            step = std::min(interval, 2 * step);
            next = eval::wall_seconds() + step;
            const auto now = window.read();  // looks at the processes, too
            const double seconds = *now.seconds.value;
            live.progress(name, seconds, seconds < expected ? expected : 0,
                          live_text(now, accounting.running(), expected));
        }
        pause_for(std::min(0.02, interval));
    }
    auto usage = window.stop();
    g_child = 0;
    live.clear();
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    const auto left = accounting.running();

    eval::TrackRecord record;
    record.project = line.text("project");
    record.user = line.text("user");
    record.run_id = random_id();
    record.experiment_id = line.text("experiment");
    record.tags = line.texts("tag");
    record.command = command;
    record.exit_code = code;
    record.usage = usage;
    record.environment = eval::environment();
    record.source = log->source();
    record.version = version();
    record.grid = grid;
    record.pue = pue;
    record.peak_memory_bytes = accounting.peak(interval);
    record.idle_power_w = idle_meter->idle_power_w();
    std::string idle_note;
    if (idle_before) {
        const auto change = eval::idle_change(*idle_before, *look_at_idle(*idle_meter, idle_seconds));
        record.idle = change.to_json();
        if (change.power_w.available()) record.idle_power_w = change.power_w;
        if (!change.note.empty()) idle_note = (change.drifted ? "flagged: " : "") + change.note;
    }
    record.net_energy_j =
        eval::net_of_idle(usage.energy_j, record.idle_power_w, usage.seconds, idle_meter->counts_idle());
    record.memory_energy_j = eval::memory_energy_j(*idle_meter, record.environment.memory_bytes, usage.seconds);
    Accounts::Work work;
    work.energy_j = usage.energy_j;
    work.carbon_g = usage.carbon_g;
    work.seconds = usage.seconds;
    work.grid = grid;
    work.pue = pue;
    work.pue_given = line.given("pue");
    work.environment = record.environment;
    work.cores = record.environment.cores;
    work.core_usage = *usage.cpu_s.value / std::max(1e-9, *usage.seconds.value * work.cores);
    if (!grid.series.empty() && usage.carbon_g.available()) {
        work.grid.g_per_kwh = grid.during(usage.started, usage.started + *usage.seconds.value);
        work.grid.series.clear();
    }
    record.accounts = accounts.of(work);

    if (line.level() != TerminalLog::Level::kQuiet) {
        const auto item = [](const std::string& name, const std::string& value) {
            std::cerr << "  " << name << std::string(name.size() < 9 ? 9 - name.size() : 1, ' ')
                      << wrapped(value, 100, 11) << "\n";
        };
        std::cerr << "\n" << command[0] << " ended with code " << code << "\n";
        item("time", duration_text(*usage.seconds.value));
        item("CPU time", duration_text(*usage.cpu_s.value));
        item("memory", figure_text(record.peak_memory_bytes, bytes_text));
        item("energy", figure_text(usage.energy_j, energy_text));
        item("power", figure_text(usage.power_w, [](double watts) { return formatted("%.3g W", watts); }));
        item("carbon", figure_text(usage.carbon_g, carbon_text));
        if (record.net_energy_j.available()) item("net", figure_text(record.net_energy_j, energy_text));
        if (record.memory_energy_j.available())
            item("DRAM", figure_text(record.memory_energy_j, energy_text) + ": " + record.memory_energy_j.method +
                             "; not in the energy above");
        for (const auto& [name, account] : accounts.lines(record.accounts)) item(name, account);
        item("method", usage.energy_j.available() ? usage.energy_j.method : log->source());
        if (usage.carbon_g.available())
            item("", usage.carbon_g.method + (grid.attribution.empty() ? "" : ". " + grid.attribution));
        if (!idle_note.empty()) std::cerr << "warning: " << idle_note << "\n";
        if (left > 0)
            std::cerr << "warning: " << left
                      << " of its processes still run; what they take from now on is not counted\n";
    }
    // After what is told: a full disk must not take that with it.
    if (line.given("json"))
        write_atomically(line.text("json"),
                         record.to_json().dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
    if (line.given("card")) write_atomically(line.text("card"), eval::model_card_field(record));
    if (line.given("csv")) eval::append_emissions(line.text("csv"), record);
    return code;
}

}  // namespace coppice::cli
