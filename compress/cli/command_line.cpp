#include <ATen/Parallel.h>
#include <coppice/error.h>

#include <unistd.h>

#include <csignal>
#include <cstring>
#include <iostream>

#include "commands.h"

namespace coppice::cli {
namespace {

volatile std::sig_atomic_t g_signal = 0;

void on_signal(int signal) {
    g_signal = signal;
    const char text[] = "\nstopping at the next safe point (once more to kill)\n";
    // write() is all that a handler may call.
    [[maybe_unused]] const auto ignored = ::write(STDERR_FILENO, text, sizeof text - 1);
}

// cxxopts quotes with Unicode marks: "Option ‘foo’ does not exist".
std::string plain_quotes(std::string text) {
    for (const std::string mark : {"\xE2\x80\x98", "\xE2\x80\x99"})
        for (size_t at; (at = text.find(mark)) != std::string::npos;) text.replace(at, mark.size(), "\"");
    return text;
}

}  // namespace

bool interrupted() {
    return g_signal != 0;
}
int interrupting_signal() {
    return g_signal;
}

void watch_signals() {
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESETHAND | SA_RESTART;  // the second signal meets the default: the end
    sigemptyset(&action.sa_mask);
    ::sigaction(SIGINT, &action, nullptr);
    ::sigaction(SIGTERM, &action, nullptr);
}

void set_threads(int threads) {
    if (threads > 0) at::set_num_threads(threads);
    static const bool once = [] {
        at::set_num_interop_threads(1);
        return true;
    }();
    (void)once;
}

CommandLine::CommandLine(const std::string& command, const std::string& usage, const std::string& about,
                         const std::string& examples)
    : command_("coppice " + command), about_(about), examples_(examples), options_(command_) {
    options_.custom_help(usage);
    options_.set_width(100);
    options_.add_options()("h,help", "this text")("q,quiet", "only warnings and results")(
        "v,verbose", "also what is of use in a bug report");
}

bool CommandLine::parse(const Arguments& arguments, const std::string& positional) {
    if (!positional.empty()) {
        options_.add_options("hidden")(positional, "", cxxopts::value<std::vector<std::string>>());
        options_.parse_positional({positional});
        options_.positional_help("");
    }
    std::vector<const char*> argv = {command_.c_str()};
    for (const auto& argument : arguments) argv.push_back(argument.c_str());
    try {
        values_ = options_.parse(static_cast<int>(argv.size()), argv.data());
    } catch (const cxxopts::exceptions::exception& error) {
        const auto text = plain_quotes(error.what());
        std::string fix;
        if (const auto quote = text.find('"');
            text.find("does not exist") != std::string::npos && quote != std::string::npos) {
            const auto name = text.substr(quote + 1, text.rfind('"') - quote - 1);
            std::vector<std::string> known;
            for (const auto& option : options_.group_help("").options)
                known.insert(known.end(), option.l.begin(), option.l.end());
            if (const auto nearest = nearest_name(name, known)) fix = "Did you mean --" + *nearest + "?";
        }
        std::string problem = text;
        problem[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(problem[0])));
        fail(problem, fix);
    }
    if (values_.count("help")) {
        std::cout << about_ << "\n" << options_.help({""}) << "\nExample\n" << examples_;
        return false;
    }
    return true;
}

std::vector<std::string> CommandLine::texts(const std::string& name) const {
    return values_.count(name) ? values_[name].as<std::vector<std::string>>() : std::vector<std::string>{};
}

TerminalLog::Level CommandLine::level() const {
    return values_.count("verbose") ? TerminalLog::Level::kVerbose
           : values_.count("quiet") ? TerminalLog::Level::kQuiet
                                    : TerminalLog::Level::kNormal;
}

void CommandLine::fail(const std::string& problem, const std::string& fix) const {
    throw InvalidArgument(command_, problem, fix.empty() ? "See " + command_ + " --help." : fix);
}

}  // namespace coppice::cli
