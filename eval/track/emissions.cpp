// Records of tracked runs: JSON, emissions.csv and the field of a model card.
#include <coppice/track.h>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>

namespace coppice::eval {
namespace {

constexpr double kJoulesPerKwh = 3.6e6;

std::string exact(double value) {
    return Json(value).dump();
}

std::string local_time(double unix_time) {
    const auto seconds = static_cast<std::time_t>(unix_time);
    std::tm parts{};
    ::localtime_r(&seconds, &parts);
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
    return text;
}

std::string quoted(const std::string& text) {
    if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"') out += '"';
        out += c == '\n' || c == '\r' ? ' ' : c;  // one row is one line, whoever reads it
    }
    return out + "\"";
}

std::string joined(const std::vector<std::string>& cells) {
    std::string line;
    for (size_t i = 0; i < cells.size(); ++i) line += (i ? "," : "") + quoted(cells[i]);
    return line;
}

[[noreturn]] void throw_io(const std::filesystem::path& path, const std::string& what) {
    throw IoError(path.string(), what + ": " + std::strerror(errno), "Check the path and the free space.");
}

class LockedFile {
public:
    explicit LockedFile(const std::filesystem::path& path)
        : path_(path), file_(::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666)) {
        if (file_ < 0) throw_io(path, "cannot be opened");
        while (::flock(file_, LOCK_EX) != 0)
            if (errno != EINTR) {
                ::close(file_);
                throw_io(path, "cannot be locked");
            }
    }
    ~LockedFile() { ::close(file_); }
    LockedFile(const LockedFile&) = delete;

    int64_t size() const {
        struct stat status {};
        if (::fstat(file_, &status) != 0) throw_io(path_, "cannot be read");
        return status.st_size;
    }
    std::string read(int64_t offset, size_t count) const {
        std::string text(count, '\0');
        const auto got = ::pread(file_, text.data(), count, offset);
        if (got < 0) throw_io(path_, "cannot be read");
        text.resize(static_cast<size_t>(got));
        return text;
    }
    // One write: a reader sees the whole row or none of it.
    void append(const std::string& text) const {
        if (::write(file_, text.data(), text.size()) != static_cast<ssize_t>(text.size()))
            throw_io(path_, "cannot be written");
        if (::fsync(file_) != 0 && errno != EINVAL) throw_io(path_, "cannot be written");
    }

private:
    std::filesystem::path path_;
    int file_;
};

// False for a new file. @throws IoError when it has other columns
bool has_header(const LockedFile& file, const std::filesystem::path& path) {
    if (file.size() == 0) return false;
    const auto header = joined(emissions_columns());
    const auto found = file.read(0, header.size() + 1);
    if (found.compare(0, header.size(), header) != 0 || (found.size() > header.size() && found.back() != '\n'))
        throw IoError(path.string(), "begins with other columns than Coppice writes",
                      "Give another file: a row would be read under wrong names.");
    return true;
}

}  // namespace

Json TrackRecord::to_json() const {
    Json json = {{"format", "coppice-track"},
                 {"version", 1},
                 {"coppice", version},
                 {"project", project},
                 {"user", user.empty() ? Json() : Json(user)},
                 {"run_id", run_id},
                 {"experiment_id", experiment_id},
                 {"tags", tags},
                 {"command", command},
                 {"exit_code", exit_code},
                 {"source", source}};
    const auto figures = usage.to_json();
    for (const auto& [name, value] : figures.items())
        if (name != "name") json[name] = value;
    json["peak_memory_bytes"] = peak_memory_bytes.to_json();
    json["idle_power_w"] = idle_power_w.to_json();
    json["net_energy_j"] = net_energy_j.to_json();
    json["memory_energy_j"] = memory_energy_j.to_json();
    json["idle"] = idle;
    json.update(accounts);
    json["carbon"] = grid.to_json(pue);
    json["co2_eq_emissions"] = co2_eq_emissions(*this);
    json["environment"] = environment.to_json();
    return json;
}

std::vector<std::string> emissions_columns() {
    return {"timestamp", "project_name", "run_id", "experiment_id", "duration", "emissions", "emissions_rate",
            "cpu_power", "gpu_power", "ram_power", "cpu_energy", "gpu_energy", "ram_energy", "energy_consumed",
            "water_consumed", "country_name", "country_iso_code", "region", "cloud_provider", "cloud_region", "os",
            "python_version", "codecarbon_version", "cpu_count", "cpu_model", "gpu_count", "gpu_model", "longitude",
            "latitude", "ram_total_size", "tracking_mode", "cpu_utilization_percent", "gpu_utilization_percent",
            "ram_utilization_percent", "ram_used_gb", "on_cloud", "pue", "wue",
            // Coppice's own
            "coppice_version", "energy_source", "energy_method", "energy_provenance", "energy_low", "energy_high",
            "emissions_provenance", "emissions_low", "emissions_high", "grid", "grid_g_per_kwh", "cpu_seconds",
            "peak_memory_bytes", "exit_code", "tags", "user"};
}

void append_emissions(const std::filesystem::path& path, const TrackRecord& record) {
    std::map<std::string, std::string> cells;
    const auto put = [&](const char* name, const std::optional<double>& value, double divisor) {
        if (value) cells[name] = exact(*value / divisor);
    };
    const auto& usage = record.usage;
    cells["timestamp"] = local_time(usage.started + usage.seconds.value.value_or(0));
    cells["project_name"] = record.project;
    cells["user"] = record.user;
    cells["run_id"] = record.run_id;
    cells["experiment_id"] = record.experiment_id;
    put("duration", usage.seconds.value, 1);
    put("emissions", usage.carbon_g.value, 1e3);
    if (usage.carbon_g.value && usage.seconds.value && *usage.seconds.value > 0)
        cells["emissions_rate"] = exact(*usage.carbon_g.value * 1e-3 / *usage.seconds.value);
    put("energy_consumed", usage.energy_j.value, kJoulesPerKwh);
    // The part of the CPUs is only known where nothing else was counted.
    if (record.source == "cpu_time") {
        put("cpu_energy", usage.energy_j.value, kJoulesPerKwh);
        put("cpu_power", usage.power_w.value, 1);
    } else if (record.source == "nvml" || record.source == "amd_smi") {
        put("gpu_energy", usage.energy_j.value, kJoulesPerKwh);
        put("gpu_power", usage.power_w.value, 1);
    }
    if (record.grid.zone.size() == 2) cells["country_iso_code"] = record.grid.zone;
    cells["os"] = "Linux-" + record.environment.kernel;
    cells["cpu_count"] = std::to_string(record.environment.cores);
    cells["cpu_model"] = record.environment.cpu;
    if (record.environment.memory_bytes > 0)
        cells["ram_total_size"] = exact(static_cast<double>(record.environment.memory_bytes) / (1 << 30));
    cells["tracking_mode"] = record.source == "cpu_time" ? "process" : "machine";
    put("ram_used_gb", record.peak_memory_bytes.value, 1 << 30);
    cells["on_cloud"] = "N";
    cells["pue"] = exact(record.pue);
    cells["coppice_version"] = record.version;
    cells["energy_source"] = record.source;
    cells["energy_method"] = usage.energy_j.available() ? usage.energy_j.method : usage.energy_j.reason;
    cells["energy_provenance"] = name_of(usage.energy_j.provenance);
    if (const auto interval = usage.energy_j.bounds()) {
        cells["energy_low"] = exact(interval->low / kJoulesPerKwh);
        cells["energy_high"] = exact(interval->high / kJoulesPerKwh);
    }
    cells["emissions_provenance"] = name_of(usage.carbon_g.provenance);
    if (const auto interval = usage.carbon_g.bounds()) {
        cells["emissions_low"] = exact(interval->low * 1e-3);
        cells["emissions_high"] = exact(interval->high * 1e-3);
    }
    cells["grid"] = record.grid.zone;
    cells["grid_g_per_kwh"] = exact(record.grid.g_per_kwh);
    put("cpu_seconds", usage.cpu_s.value, 1);
    put("peak_memory_bytes", record.peak_memory_bytes.value, 1);
    cells["exit_code"] = std::to_string(record.exit_code);
    for (const auto& tag : record.tags) cells["tags"] += (cells["tags"].empty() ? "" : ";") + tag;

    const auto columns = emissions_columns();
    std::vector<std::string> row;
    for (const auto& column : columns) row.push_back(cells[column]);

    const LockedFile file(path);
    std::string text;
    if (!has_header(file, path))
        text = joined(columns) + "\n";
    else if (file.read(file.size() - 1, 1) != "\n")
        text = "\n";  // a writer was killed within its row
    file.append(text + joined(row) + "\n");
}

void check_emissions(const std::filesystem::path& path) {
    const LockedFile file(path);
    has_header(file, path);
}

Json co2_eq_emissions(const TrackRecord& record) {
    const auto& carbon = record.usage.carbon_g;
    Json json = {{"emissions", carbon.value ? Json(*carbon.value) : Json(nullptr)},
                 {"source", "Coppice " + record.version + ", energy " + name_of(record.usage.energy_j.provenance) +
                                " (" + record.source + ")"}};
    if (record.grid.zone != "custom" && record.grid.series.empty()) json["geographical_location"] = record.grid.zone;
    json["hardware_used"] = record.environment.cpu + ", " + std::to_string(record.environment.cores) + " threads";
    return json;
}

std::string model_card_field(const TrackRecord& record) {
    std::string text = "co2_eq_emissions:\n";
    // JSON scalars are YAML scalars.
    const auto field = co2_eq_emissions(record);
    for (const auto& [name, value] : field.items()) text += "  " + name + ": " + value.dump() + "\n";
    return text;
}

}  // namespace coppice::eval
