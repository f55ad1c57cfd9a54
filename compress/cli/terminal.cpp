#include "terminal.h"

#include <coppice/clock.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace coppice::cli {
namespace {

bool is_set(const char* name) {
    const char* value = std::getenv(name);
    return value && *value;
}

bool draws(std::FILE* stream) {
    const char* term = std::getenv("TERM");
    return ::isatty(::fileno(stream)) && !(term && std::string(term) == "dumb");
}

int columns(std::FILE* stream) {
    winsize size{};
    if (::ioctl(::fileno(stream), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
    return 80;
}

// Columns that UTF-8 text takes; enough for what Coppice writes itself.
size_t display_width(const std::string& text) {
    size_t width = 0;
    for (const char c : text) width += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
    return width;
}

std::string cut_to(const std::string& text, size_t width) {
    if (display_width(text) <= width) return text;
    std::string out;
    size_t used = 0;
    for (const char c : text) {
        if ((static_cast<unsigned char>(c) & 0xC0) != 0x80 && ++used > width) break;
        out += c;
    }
    return out;
}

std::string printed(const char* pattern, double value) {
    char text[64];
    std::snprintf(text, sizeof text, pattern, value);
    return text;
}

}  // namespace

TerminalLog::TerminalLog(Level level, std::FILE* stream)
    : TerminalLog(level, stream, draws(stream), draws(stream) && !is_set("NO_COLOR"), columns(stream)) {}

TerminalLog::TerminalLog(Level level, std::FILE* stream, bool terminal, bool color, int width)
    : clock(wall_seconds), level_(level), stream_(stream), terminal_(terminal), color_(color), width_(width) {}

TerminalLog::~TerminalLog() {
    clear();
}

void TerminalLog::clear() {
    if (!drawn_) return;
    std::fputs("\r\033[K", stream_);
    std::fflush(stream_);
    drawn_ = false;
}

void TerminalLog::write(const std::string& level, const std::string& message) {
    if (level == "debug" && level_ != Level::kVerbose) return;
    if (level == "info" && level_ == Level::kQuiet) return;
    clear();
    const bool warning = level == "warning";
    const std::string prefix = warning ? (color_ ? "\033[33mwarning:\033[0m " : "warning: ") : "";
    const bool dim = level == "debug" && color_;
    std::fprintf(stream_, "%s%s%s%s\n", prefix.c_str(), dim ? "\033[2m" : "", message.c_str(), dim ? "\033[0m" : "");
    std::fflush(stream_);
}

void TerminalLog::draw(const std::string& line) {
    std::fprintf(stream_, "\r\033[K%s", cut_to(line, static_cast<size_t>(std::max(20, width_ - 1))).c_str());
    std::fflush(stream_);
    drawn_ = true;
}

std::string TerminalLog::bar(const std::string& task, double share, const std::string& detail, double left) const {
    const int cells = 24, full = static_cast<int>(share * cells);
    std::string line =
        task + " [" + std::string(full, '#') + std::string(cells - full, '.') + "] " + printed("%3.0f %%", 100 * share);
    // What is last is cut off first on a narrow terminal.
    if (left >= 0) line += "  " + duration_text(left) + " left";
    if (!detail.empty()) line += "  " + detail;
    return line;
}

void TerminalLog::progress(const std::string& task, double done, double total, const std::string& detail) {
    if (level_ == Level::kQuiet) return;
    if (!(total > 0)) {
        const double now = clock();
        if (!terminal_ || (drawn_ && task == task_ && now - last_draw_ < 0.1)) return;
        task_ = task;
        last_draw_ = now;
        draw(task + (detail.empty() ? "" : "  " + detail));
        return;
    }
    const double now = clock(), share = std::clamp(done / total, 0.0, 1.0);
    if (task != task_ || share < last_share_) {
        task_ = task;
        task_start_ = now;
        first_share_ = share;  // a resumed task begins in the middle; the time left must not count that as fast work
        last_tenth_ = static_cast<int>(share * 10);
        last_draw_ = -1;
    }
    last_share_ = share;
    const double elapsed = now - task_start_, gained = share - first_share_;
    const double left = gained > 0.005 && elapsed > 1 ? elapsed * (1 - share) / gained : -1;
    if (terminal_) {
        if (share >= 1) {
            clear();
            return;
        }
        if (drawn_ && now - last_draw_ < 0.1) return;
        last_draw_ = now;
        draw(bar(task, share, detail, left));
        return;
    }
    const int tenth = static_cast<int>(share * 10 + 1e-9);
    if (tenth <= last_tenth_) return;
    last_tenth_ = tenth;
    if (elapsed < 1) return;
    std::fprintf(stream_, "%s: %d %%%s%s%s%s\n", task.c_str(), tenth * 10, detail.empty() ? "" : ", ", detail.c_str(),
                 left >= 0.5 ? ", left: " : "", left >= 0.5 ? duration_text(left).c_str() : "");
    std::fflush(stream_);
}

std::string formatted(const char* pattern, double value) {
    char text[64];
    std::snprintf(text, sizeof text, pattern, value);
    return text;
}

std::string duration_text(double seconds) {
    if (seconds < 0.9995) return printed("%.0f ms", 1000 * seconds);
    if (seconds < 9.95) return printed("%.1f s", seconds);
    const auto whole = static_cast<int64_t>(std::llround(seconds));
    if (whole < 60) return std::to_string(whole) + " s";
    if (whole < 3600) return std::to_string(whole / 60) + " min " + std::to_string(whole % 60) + " s";
    return std::to_string(whole / 3600) + " h " + std::to_string(whole / 60 % 60) + " min";
}

std::string count_text(double count) {
    static const std::pair<double, const char*> kUnits[] = {{1e12, " T"}, {1e9, " G"}, {1e6, " M"}, {1e3, " k"}};
    for (const auto& [unit, name] : kUnits) {
        if (count < 0.9995 * unit) continue;
        const double scaled = count / unit;
        return printed(scaled < 9.995 ? "%.2f" : scaled < 99.95 ? "%.1f" : "%.0f", scaled) + name;
    }
    return printed(count == std::floor(count) ? "%.0f" : "%.2f", count);
}

std::string bytes_text(double bytes) {
    static const std::pair<double, const char*> kUnits[] = {{1e9, " GB"}, {1e6, " MB"}, {1e3, " kB"}};
    for (const auto& [unit, name] : kUnits)
        if (bytes >= 0.9995 * unit)
            return printed(bytes / unit < 9.995 ? "%.2f" : bytes / unit < 99.95 ? "%.1f" : "%.0f", bytes / unit) + name;
    return printed("%.0f B", bytes);
}

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text;
    for (const auto size : shape) text += (text.empty() ? "" : " x ") + std::to_string(size);
    return text.empty() ? "-" : text;
}

std::string Table::text() const {
    std::vector<size_t> widths(header.size());
    for (size_t i = 0; i < header.size(); ++i) widths[i] = display_width(header[i]);
    for (const auto& row : rows)
        for (size_t i = 0; i < row.size() && i < widths.size(); ++i)
            widths[i] = std::max(widths[i], display_width(row[i]));
    std::string out;
    const auto line = [&](const std::vector<std::string>& cells) {
        std::string row;
        for (size_t i = 0; i < cells.size() && i < widths.size(); ++i) {
            const std::string gap(widths[i] - display_width(cells[i]), ' ');
            if (i) row += "  ";
            row += i < right.size() && right[i] ? gap + cells[i] : cells[i] + gap;
        }
        row.erase(row.find_last_not_of(' ') + 1);
        out += row + "\n";
    };
    line(header);
    size_t total = header.empty() ? 0 : 2 * (header.size() - 1);
    for (const auto width : widths) total += width;
    out += std::string(total, '-') + "\n";
    for (const auto& row : rows) line(row);
    return out;
}

std::string wrapped(const std::string& text, size_t width, size_t indent) {
    std::string out, line;
    size_t begin = 0;
    const auto flush = [&] {
        if (!out.empty()) out += "\n" + std::string(indent, ' ');
        out += line;
        line.clear();
    };
    while (begin < text.size()) {
        const size_t end = std::min(text.find(' ', begin), text.size());
        const std::string word = text.substr(begin, end - begin);
        if (!line.empty() && indent + display_width(line) + 1 + display_width(word) > width) flush();
        line += (line.empty() ? "" : " ") + word;
        begin = end + 1;
    }
    flush();
    return out;
}

}  // namespace coppice::cli
