/// What the program shows: log lines and progress on stderr, tables as text.
#pragma once

#include <coppice/stage.h>

#include <cstdio>
#include <string>
#include <vector>

namespace coppice::cli {

/// Log of the program. On a terminal: coloured levels and one progress line with the time left, redrawn in place.
/// Elsewhere: plain lines, progress at every 10 % of tasks that take longer than a second. NO_COLOR
/// (https://no-color.org) and TERM=dumb are respected.
class TerminalLog final : public Log {
public:
    enum class Level { kQuiet, kNormal, kVerbose };
    /// @param stream    usually stderr
    /// @param terminal  whether to draw; by default whether the stream is one
    explicit TerminalLog(Level level, std::FILE* stream = stderr);
    TerminalLog(Level level, std::FILE* stream, bool terminal, bool color, int width);
    ~TerminalLog() override;

    void write(const std::string& level, const std::string& message) override;
    /// Without a total (0) the line has no bar, and is drawn on a terminal only.
    void progress(const std::string& task, double done, double total, const std::string& detail) override;
    /// Removes the progress line before something else is written to the terminal.
    void clear();

    double (*clock)();  ///< seconds; replaced in tests

private:
    void draw(const std::string& line);
    std::string bar(const std::string& task, double share, const std::string& detail, double left) const;

    Level level_;
    std::FILE* stream_;
    bool terminal_, color_, drawn_ = false;
    int width_;
    std::string task_;
    double task_start_ = 0, last_draw_ = 0, last_share_ = 0, first_share_ = 0;
    int last_tenth_ = 0;
};

/// `value` by a pattern of printf for one double: formatted("%.3g W", 12.34) is "12.3 W".
std::string formatted(const char* pattern, double value);
/// "4 s", "3 min 20 s", "2 h 5 min".
std::string duration_text(double seconds);
/// "1.23 M", "17.6 G", "812": three significant digits.
std::string count_text(double count);
/// "1.1 MB" (decimal units).
std::string bytes_text(double bytes);
/// "1 x 3 x 32 x 32".
std::string shape_text(const std::vector<int64_t>& shape);

/// Columns as wide as their widest cell, two spaces apart; numbers to the right.
struct Table {
    std::vector<std::string> header;
    std::vector<bool> right;
    std::vector<std::vector<std::string>> rows;
    std::string text() const;
};

/// Breaks text into lines of at most `width` columns, each begun with `indent` spaces but the first.
std::string wrapped(const std::string& text, size_t width, size_t indent);

}  // namespace coppice::cli
