#include "metrics/time_series.h"

#include <coppice/error.h>

#include <cmath>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <optional>
#include <sstream>

namespace coppice::eval {
namespace {

std::string trimmed(std::string text) {
    const auto junk = [](char c) { return std::isspace(static_cast<unsigned char>(c)) || c == '"'; };
    while (!text.empty() && junk(text.back())) text.pop_back();
    while (!text.empty() && junk(text.front())) text.erase(text.begin());
    return text;
}

std::vector<std::string> cells_of(const std::string& line) {
    std::vector<std::string> cells;
    std::istringstream parts(line);
    for (std::string cell; std::getline(parts, cell, ',');) cells.push_back(trimmed(cell));
    return cells;
}

std::optional<double> number_of(const std::string& text) {
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (text.empty() || *end != '\0' || !std::isfinite(value)) return std::nullopt;
    return value;
}

// 2026-01-31T23:59:59.5Z, 2026-01-31 23:59:59+01:00, 2026-01-31T23:59
std::optional<double> time_of(const std::string& text) {
    if (const auto seconds = number_of(text)) return seconds;
    std::tm parts{};
    int used = 0;
    if (std::sscanf(text.c_str(), "%4d-%2d-%2d%*1[T ]%2d:%2d%n", &parts.tm_year, &parts.tm_mon, &parts.tm_mday,
                    &parts.tm_hour, &parts.tm_min, &used) < 5 ||
        used == 0)
        return std::nullopt;
    parts.tm_year -= 1900;
    parts.tm_mon -= 1;
    double seconds = 0;
    const char* rest = text.c_str() + used;
    if (*rest == ':') {
        char* end = nullptr;
        seconds = std::strtod(rest + 1, &end);
        rest = end;
    }
    double offset = 0;
    if (*rest == '+' || *rest == '-') {
        int hours = 0, minutes = 0;
        if (std::sscanf(rest + 1, "%2d:%2d", &hours, &minutes) < 1) return std::nullopt;
        offset = (*rest == '-' ? -1 : 1) * (3600.0 * hours + 60.0 * minutes);
    } else if (*rest != '\0' && std::string(rest) != "Z") {
        return std::nullopt;
    }
    return static_cast<double>(::timegm(&parts)) + seconds - offset;
}

}  // namespace

TimeSeries read_time_series(const std::filesystem::path& path, const std::string& column, const std::string& owner) {
    std::ifstream file(path);
    if (!file) throw IoError(path.string(), "cannot be opened", "Check the path.");
    std::string line;
    std::getline(file, line);
    const auto header = cells_of(line);
    size_t time = header.size(), value = header.size();
    for (size_t i = 0; i < header.size(); ++i) {
        if (header[i] == "time") time = i;
        if (header[i] == column) value = i;
    }
    if (time == header.size() || value == header.size())
        throw InvalidArgument(owner, path.string() + " has no columns time and " + column,
                              "Begin the file with the line time," + column + ".");
    TimeSeries series;
    for (int64_t number = 2; std::getline(file, line); ++number) {
        // A line that is being written has no end yet.
        if (file.eof() && !line.empty() && cells_of(line).size() <= std::max(time, value)) break;
        if (trimmed(line).empty()) continue;
        const auto fail = [&](const std::string& problem) {
            throw InvalidArgument(owner, path.string() + " line " + std::to_string(number) + ": " + problem, "");
        };
        const auto cells = cells_of(line);
        if (cells.size() <= std::max(time, value)) fail("has too few columns");
        const auto when = time_of(cells[time]), what = number_of(cells[value]);
        if (!when) fail("\"" + cells[time] + "\" is no time; write 2026-01-31T23:59:00Z or seconds since 1970");
        if (!what || *what < 0) fail("\"" + cells[value] + "\" is no number that could be " + column);
        if (!series.empty() && *when <= series.back().first) fail("times must ascend");
        series.emplace_back(*when, *what);
    }
    if (series.empty()) throw InvalidArgument(owner, path.string() + " holds no row", "");
    return series;
}

}  // namespace coppice::eval
