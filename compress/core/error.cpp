#include <coppice/error.h>

#include <c10/util/Exception.h>

namespace coppice {
namespace {

std::string join(const std::string& where, const std::string& problem, const std::string& fix) {
    std::string text = where.empty() ? problem : where + ": " + problem;
    if (!fix.empty()) text += ". " + fix;
    return text;
}

}  // namespace

Error::Error(std::string where, std::string problem, std::string fix)
    : std::runtime_error(join(where, problem, fix)),
      where_(std::move(where)),
      problem_(std::move(problem)),
      fix_(std::move(fix)) {}

std::string message_of(const std::exception& error) {
    const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
    std::string text = torch_error ? torch_error->what_without_backtrace() : error.what();
    // LibTorch's messages run over several lines, with the C++ stack behind the first empty one.
    if (const auto stack = text.find("\nException raised from"); stack != std::string::npos) text.resize(stack);
    std::string line;
    for (char c : text) {
        if (c == '\n' || c == '\t') c = ' ';
        if (c == ' ' && !line.empty() && line.back() == ' ') continue;
        line += c;
    }
    while (!line.empty() && (line.back() == ' ' || line.back() == '.')) line.pop_back();
    return line;
}

}  // namespace coppice
