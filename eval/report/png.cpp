// The picture as PNG: what svg() draws, through a program that is installed for that.
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <sstream>

#include <coppice/error.h>
#include <coppice/pipeline.h>
#include <coppice/report.h>

#include "report/png.h"

extern char** environ;

namespace coppice::eval::report {
namespace {

namespace fs = std::filesystem;

struct Converter {
    const char* program;
    std::vector<std::string> (*arguments)(const fs::path& from, const fs::path& to);
};

// Two pixels for each unit of the picture.
const std::vector<Converter>& converters() {
    static const auto browse = [](const fs::path& from, const fs::path& to) -> std::vector<std::string> {
        // The page is the picture alone, so that the browser needs no sandbox, which containers refuse.
        return {"--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--force-device-scale-factor=2",
                "--window-size=720,400",
                "--user-data-dir=" + (from.parent_path() / "profile").string(),
                "--screenshot=" + to.string(),
                "file://" + from.string()};
    };
    static const std::vector<Converter> table = {
        {"rsvg-convert",
         [](const fs::path& from, const fs::path& to) -> std::vector<std::string> {
             return {"--zoom=2", "--output=" + to.string(), from.string()};
         }},
        {"inkscape",
         [](const fs::path& from, const fs::path& to) -> std::vector<std::string> {
             return {"--export-type=png", "--export-dpi=192", "--export-filename=" + to.string(), from.string()};
         }},
        {"chromium", browse},
        {"chromium-browser", browse},
        {"google-chrome", browse}};
    return table;
}

bool installed(const std::string& program) {
    const char* path = std::getenv("PATH");
    std::istringstream folders(path ? path : "");
    for (std::string folder; std::getline(folders, folder, ':');)
        if (!folder.empty() && ::access((fs::path(folder) / program).c_str(), X_OK) == 0) return true;
    return false;
}

// @return whether it ran and ended well
bool run(const std::string& program, const std::vector<std::string>& arguments) {
    std::vector<char*> words = {const_cast<char*>(program.c_str())};
    for (const auto& argument : arguments) words.push_back(const_cast<char*>(argument.c_str()));
    words.push_back(nullptr);
    posix_spawn_file_actions_t silent;
    posix_spawn_file_actions_init(&silent);
    for (const int stream : {STDOUT_FILENO, STDERR_FILENO})
        posix_spawn_file_actions_addopen(&silent, stream, "/dev/null", O_WRONLY, 0);
    pid_t child = -1;
    const int failed = ::posix_spawnp(&child, program.c_str(), &silent, nullptr, words.data(), environ);
    posix_spawn_file_actions_destroy(&silent);
    if (failed) return false;
    int status = 0;
    while (::waitpid(child, &status, 0) < 0)
        if (errno != EINTR) return false;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// A folder that goes when this does.
struct Scratch {
    fs::path path;
    Scratch() {
        auto name = (fs::temp_directory_path() / "coppice-png-XXXXXX").string();
        if (!::mkdtemp(name.data())) throw IoError(name, "cannot make a folder for the picture", "Set TMPDIR.");
        path = name;
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() {
        std::error_code ignored;
        fs::remove_all(path, ignored);
    }
};

}  // namespace

void check_png(const std::string& where) {
    for (const auto& converter : converters())
        if (installed(converter.program)) return;
    throw InvalidArgument(where, "png needs rsvg-convert, inkscape or chromium, and none is on the PATH",
                          "apt-get install librsvg2-bin, or take svg.");
}

std::string png(const Json& report) {
    check_png("report");
    const Scratch scratch;
    const auto from = scratch.path / "report.svg", to = scratch.path / "report.png";
    write_atomically(from, svg(report));
    std::string tried;
    for (const auto& converter : converters()) {
        if (!installed(converter.program)) continue;
        if (run(converter.program, converter.arguments(from, to)) && fs::exists(to)) {
            auto bytes = read_text(to);
            if (bytes.rfind("\x89PNG\r\n\x1a\n", 0) == 0) return bytes;
        }
        tried += (tried.empty() ? "" : ", ") + std::string(converter.program);
    }
    throw Error("report", "no PNG came from " + tried, "Take svg, and convert that by hand.");
}

}  // namespace coppice::eval::report
