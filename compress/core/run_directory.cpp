// The folder of one run. Everything that appears under a final name appears by rename after fsync, so that kill -9 or a
// power cut leaves either the old state or the new one, never half a file.
#include <coppice/error.h>
#include <coppice/pipeline.h>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <fstream>
#include <sstream>

namespace coppice {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void throw_io(const fs::path& path, const std::string& what, int error) {
    const bool full = error == ENOSPC || error == EDQUOT;
    throw IoError(path.string(), what + ": " + std::strerror(error),
                  full                                ? "Free some space, then go on with --resume."
                  : error == EACCES || error == EROFS ? "Choose a folder that can be written to."
                                                      : "");
}

void sync_path(const fs::path& path, int flags) {
    const int file = ::open(path.c_str(), flags | O_CLOEXEC);
    if (file < 0) throw_io(path, "cannot open it to sync", errno);
    // Some file systems (FUSE, 9p) refuse fsync of a folder with EINVAL; rename is all they offer.
    const int failed = ::fsync(file) != 0 && errno != EINVAL ? errno : 0;
    ::close(file);
    if (failed) throw_io(path, "cannot sync", failed);
}

void sync_folder(const fs::path& path) {
    sync_path(path, O_RDONLY | O_DIRECTORY);
}

void write_all(int file, const std::string& text, const fs::path& path) {
    size_t done = 0;
    while (done < text.size()) {
        const ssize_t written = ::write(file, text.data() + done, text.size() - done);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) {
            const int error = errno;
            ::close(file);
            throw_io(path, "cannot write", error);
        }
        done += static_cast<size_t>(written);
    }
}

fs::path temporary_beside(const fs::path& path) {
    std::string name(".");
    name += path.filename().string();
    name += ".tmp-";
    name += std::to_string(::getpid());
    return path.parent_path() / name;
}

void move_into_place(const fs::path& temporary, const fs::path& path) {
    if (::rename(temporary.c_str(), path.c_str()) != 0) throw_io(path, "cannot rename a temporary file to it", errno);
    sync_folder(path.parent_path().empty() ? "." : path.parent_path());
}

bool is_temporary(const std::string& name) {
    return name.rfind(".", 0) == 0 && name.find(".tmp-") != std::string::npos;
}

std::string now_text() {
    const auto now = std::chrono::system_clock::now();
    const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
    const auto milliseconds =
        std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
    std::tm utc{};
    ::gmtime_r(&seconds, &utc);
    char text[40];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
    char fraction[8];
    std::snprintf(fraction, sizeof fraction, ".%03dZ", static_cast<int>(milliseconds));
    return std::string(text) + fraction;
}

// "runs/net" -> "runs/net-2", the first that does not exist.
fs::path free_name(const fs::path& path) {
    for (int n = 2;; ++n) {
        const fs::path candidate = path.string() + "-" + std::to_string(n);
        if (!fs::exists(candidate)) return candidate;
    }
}

std::string short_dump(const Json& value) {
    std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
    return text.size() <= 60 ? text : text.substr(0, 57) + "...";
}

void compare(const Json& before, const Json& now, const std::string& name, std::vector<std::string>& differences) {
    if (before == now) return;
    if (before.is_object() && now.is_object()) {
        for (const auto& [key, value] : before.items()) {
            const std::string inner = name.empty() ? key : name + "." + key;
            if (now.contains(key))
                compare(value, now[key], inner, differences);
            else
                differences.push_back(inner + " was " + short_dump(value) + ", is gone");
        }
        for (const auto& [key, value] : now.items())
            if (!before.contains(key))
                differences.push_back((name.empty() ? key : name + "." + key) + " was absent, is " + short_dump(value));
        return;
    }
    if (before.is_array() && now.is_array() && before.size() == now.size() && !before.empty() &&
        (before[0].is_structured() || now[0].is_structured())) {
        for (size_t i = 0; i < before.size(); ++i)
            compare(before[i], now[i], name + "[" + std::to_string(i) + "]", differences);
        return;
    }
    differences.push_back(name + " was " + short_dump(before) + ", is " + short_dump(now));
}

// What a result does not depend on: where things lie, and how it is shown.
Json essential(Json recipe) {
    if (!recipe.is_object()) return recipe;
    recipe.erase("base");
    recipe.erase("report");
    if (recipe.contains("model") && recipe["model"].is_object()) recipe["model"].erase("path");
    return recipe;
}

std::string sha_of(const Json& manifest, const std::string& pointer) {
    const Json::json_pointer place(pointer);
    return manifest.contains(place) && manifest.at(place).is_string() ? manifest.at(place).get<std::string>() : "";
}

bool parses(const fs::path& path) {
    try {
        return read_json(path).is_object();
    } catch (const IoError&) {
        return false;
    }
}

}  // namespace

void write_atomically(const fs::path& path, const std::string& text) {
    const fs::path temporary = temporary_beside(path);
    const int file = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file < 0) throw_io(path, "cannot create a file beside it", errno);
    write_all(file, text, path);
    const int failed = ::fsync(file) != 0 && errno != EINVAL ? errno : 0;
    if (::close(file) != 0 || failed) throw_io(path, "cannot write", failed ? failed : errno);
    move_into_place(temporary, path);
}

std::string read_text(const fs::path& path) {
    std::error_code ignored;
    if (fs::is_directory(path, ignored)) throw IoError(path.string(), "is a folder, expected a file", "");
    std::ifstream file(path, std::ios::binary);
    if (!file) throw IoError(path.string(), std::string("cannot open: ") + std::strerror(errno), "");
    std::ostringstream text;
    text << file.rdbuf();
    if (file.bad()) throw IoError(path.string(), "cannot read", "");
    return text.str();
}

Json read_json(const fs::path& path) {
    const std::string text = read_text(path);
    try {
        return Json::parse(text);
    } catch (const Json::parse_error& error) {
        // The library's message repeats an id and a byte count; line and column are what an editor shows.
        const size_t end = std::min<size_t>(error.byte ? error.byte - 1 : 0, text.size());
        size_t line = 1, column = 1;
        for (size_t i = 0; i < end; ++i) {
            ++column;
            if (text[i] == '\n') ++line, column = 1;
        }
        throw IoError(path.string() + " line " + std::to_string(line) + ", column " + std::to_string(column),
                      text.empty() ? "the file is empty, expected JSON" : "is not valid JSON", "");
    }
}

std::vector<std::string> manifest_differences(const Json& before, const Json& now) {
    std::vector<std::string> differences;
    for (const char* key : {"coppice", "libtorch", "seed"}) {
        const Json absent, &old_value = before.contains(key) ? before[key] : absent,
                           &new_value = now.contains(key) ? now[key] : absent;
        const std::string name = std::string(key) == "coppice"    ? "Coppice's version"
                                 : std::string(key) == "libtorch" ? "LibTorch's version"
                                                                  : key;
        if (old_value != new_value)
            differences.push_back(name + " was " + short_dump(old_value) + ", is " + short_dump(new_value));
    }
    if (sha_of(before, "/model/sha256") != sha_of(now, "/model/sha256"))
        differences.push_back("the model file has other bytes");
    const Json none = Json::object();
    const Json &old_data = before.contains("data") && before["data"].is_object() ? before["data"] : none,
               &new_data = now.contains("data") && now["data"].is_object() ? now["data"] : none;
    for (const auto& [split, value] : old_data.items())
        if (sha_of(value, "/sha256") != (new_data.contains(split) ? sha_of(new_data[split], "/sha256") : ""))
            differences.push_back("the " + split + " data are others");
    for (const auto& [split, value] : new_data.items())
        if (!old_data.contains(split)) differences.push_back("the " + split + " data were absent");
    if (before.contains("recipe") && now.contains("recipe"))
        compare(essential(before["recipe"]), essential(now["recipe"]), "", differences);
    else if (sha_of(before, "/recipe_sha256") != sha_of(now, "/recipe_sha256"))
        differences.push_back("the recipe is another");
    return differences;
}

RunDirectory RunDirectory::open(const fs::path& path, const Json& manifest, bool resume) {
    std::error_code error;
    fs::create_directories(path, error);
    if (error)
        throw IoError(path.string(), "cannot create the folder: " + error.message(), "Choose another with --out.");
    const fs::path manifest_file = path / "manifest.json";
    const bool holds_run = fs::exists(manifest_file);
    if (!holds_run) {
        for (const auto& entry : fs::directory_iterator(path)) {
            const auto name = entry.path().filename().string();
            // What a run that was killed before its manifest was written may have left.
            if (name == "lock" || name == "log.jsonl" || name == "recipe.yaml" || is_temporary(name)) continue;
            throw IoError(path.string(), "the folder holds other files (" + name + ") and no run",
                          "Choose a new one: --out " + free_name(path).string());
        }
    }

    RunDirectory run;
    run.path_ = path;
    run.resumed_ = holds_run;
    const fs::path lock_file = path / "lock";
    run.lock_ = ::open(lock_file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (run.lock_ < 0) throw_io(lock_file, "cannot open", errno);
    if (::flock(run.lock_, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK) throw_io(lock_file, "cannot lock", errno);
        char owner[32] = {};
        const ssize_t length = ::pread(run.lock_, owner, sizeof owner - 1, 0);
        const std::string process = length > 0 ? " (process " + std::to_string(std::atol(owner)) + ")" : "";
        throw IoError(path.string(), "another process" + process + " is working on this run",
                      "Wait for it, or choose another folder: --out " + free_name(path).string());
    }
    const std::string pid = std::to_string(::getpid()) + "\n";
    if (::ftruncate(run.lock_, 0) != 0 || ::pwrite(run.lock_, pid.data(), pid.size(), 0) < 0)
        throw_io(lock_file, "cannot write", errno);

    if (holds_run && !resume)
        throw IoError(path.string(), "the folder already holds a run",
                      "Continue it with --resume, or choose a new one: --out " + free_name(path).string());
    for (const auto& entry : fs::directory_iterator(path))
        if (is_temporary(entry.path().filename().string())) fs::remove(entry.path(), error);

    if (holds_run) {
        run.manifest_ = read_json(manifest_file);
        const auto differences = manifest_differences(run.manifest_, manifest);
        if (!differences.empty()) {
            std::string text;
            for (size_t i = 0; i < differences.size() && i < 4; ++i) text += (i ? "; " : "") + differences[i];
            if (differences.size() > 4) text += "; and " + std::to_string(differences.size() - 4) + " more";
            throw IoError(path.string(), "the run cannot be resumed, it was started with something else: " + text,
                          "Restore it, or start a new run: --out " + free_name(path).string());
        }
    }

    const fs::path log_file = path / "log.jsonl";
    // A process killed in the middle of a line leaves it open; the next line must not be glued to it.
    bool open_line = false;
    if (std::ifstream log(log_file, std::ios::binary | std::ios::ate); log && log.tellg() > 0) {
        log.seekg(-1, std::ios::end);
        open_line = log.get() != '\n';
    }
    run.log_ = ::open(log_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (run.log_ < 0) throw_io(log_file, "cannot open", errno);
    if (open_line && ::write(run.log_, "\n", 1) < 0) throw_io(log_file, "cannot write", errno);
    if (!holds_run) run.write_manifest(manifest);
    return run;
}

RunDirectory::RunDirectory(RunDirectory&& other) noexcept {
    *this = std::move(other);
}

RunDirectory& RunDirectory::operator=(RunDirectory&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(manifest_, other.manifest_);
    std::swap(lock_, other.lock_);
    std::swap(log_, other.log_);
    std::swap(resumed_, other.resumed_);
    return *this;
}

RunDirectory::~RunDirectory() {
    if (log_ >= 0) ::close(log_);
    if (lock_ >= 0)
        ::close(lock_);  // gives the lock up; the file stays, so that two processes never lock different ones
}

std::string RunDirectory::folder_name(size_t index, const std::string& stage) {
    char number[24];
    std::snprintf(number, sizeof number, "%02zu-", index);
    std::string name(number);
    for (const char c : stage) name += std::isalnum(static_cast<unsigned char>(c)) || std::strchr(".-_", c) ? c : '_';
    return name;
}

bool RunDirectory::finished(const std::string& folder) const {
    const fs::path place = path_ / folder;
    std::error_code ignored;
    return fs::is_directory(place, ignored) && fs::is_regular_file(place / "model.pt", ignored) &&
           fs::file_size(place / "model.pt", ignored) > 0 && parses(place / "stage.json") &&
           parses(place / "measurement.json");
}

fs::path RunDirectory::partial(const std::string& folder) const {
    const fs::path place = path_ / (folder + ".partial");
    std::error_code error;
    fs::create_directories(place, error);
    if (error) throw IoError(place.string(), "cannot create the folder: " + error.message(), "");
    return place;
}

void RunDirectory::commit(const std::string& folder) {
    const fs::path from = path_ / (folder + ".partial"), to = path_ / folder;
    for (const auto& entry : fs::recursive_directory_iterator(from)) {
        if (entry.is_regular_file()) sync_path(entry.path(), O_RDONLY);
        if (entry.is_directory()) sync_folder(entry.path());
    }
    sync_folder(from);
    if (::rename(from.c_str(), to.c_str()) != 0)
        throw_io(to, "cannot rename " + from.filename().string() + " to it", errno);
    sync_folder(path_);
}

fs::path RunDirectory::set_aside(const std::string& folder) {
    const fs::path from = path_ / folder;
    for (int n = 1;; ++n) {
        const fs::path to = from.string() + ".aside-" + std::to_string(n);
        if (fs::exists(to)) continue;
        if (::rename(from.c_str(), to.c_str()) != 0) throw_io(from, "cannot move aside", errno);
        sync_folder(path_);
        return to;
    }
}

void RunDirectory::write_manifest(const Json& manifest) {
    manifest_ = manifest;
    write_atomically(path_ / "manifest.json", manifest.dump(2) + "\n");
}

void RunDirectory::publish(const fs::path& model_file) {
    const fs::path to = path_ / "model.pt", temporary = temporary_beside(to);
    std::error_code error;
    fs::copy_file(model_file, temporary, fs::copy_options::overwrite_existing, error);
    if (error) throw IoError(to.string(), "cannot copy " + model_file.string() + " to it: " + error.message(), "");
    sync_path(temporary, O_RDONLY);
    move_into_place(temporary, to);
}

void RunDirectory::event(const Json& record) {
    Json line = {{"time", now_text()}};
    for (const auto& [key, value] : record.items()) line[key] = value;
    // One write call with O_APPEND: lines stay whole even when a reader or a second writer looks in between.
    const std::string text = line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    if (log_ >= 0 && ::write(log_, text.data(), text.size()) < 0) throw_io(path_ / "log.jsonl", "cannot write", errno);
}

}  // namespace coppice
