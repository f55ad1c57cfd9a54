/// The commands of the program. Each takes its arguments (without the program's and its own name) and returns the exit
/// code.
#pragma once

// cxxopts cuts list values at commas; an input's shape is full of them. No argument can hold a zero byte.
#define CXXOPTS_VECTOR_DELIMITER '\0'
#include <cxxopts.hpp>

#include <coppice/model.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "terminal.h"

namespace coppice::cli {

/// Exit codes, as `coppice --help` lists them.
enum ExitCode { kDone = 0, kFailed = 1, kUsage = 2, kGateMissed = 3 };

using Arguments = std::vector<std::string>;

int run_compress(const Arguments& arguments);
int run_inspect(const Arguments& arguments);
int run_eval(const Arguments& arguments);
int run_report(const Arguments& arguments);
int run_track(const Arguments& arguments);
int run_list(const Arguments& arguments);
int run_doctor(const Arguments& arguments);

struct Command {
    std::string name, summary;
    int (*run)(const Arguments&);
};
const std::vector<Command>& commands();

/// Options of one command, with what its --help says around them.
class CommandLine {
public:
    /// @param usage     "RECIPE [options]"
    /// @param about     what it does, a paragraph
    /// @param examples  lines to copy
    CommandLine(const std::string& command, const std::string& usage, const std::string& about,
                const std::string& examples);

    /// cxxopts' adder for further options; -h, -q and -v are there already.
    cxxopts::OptionAdder add() { return options_.add_options(); }
    /// @param positional  name of the option that takes the arguments without a dash
    /// @throws InvalidArgument naming the nearest option. Prints the help and returns false after --help.
    bool parse(const Arguments& arguments, const std::string& positional);

    const cxxopts::ParseResult& values() const { return values_; }
    bool given(const std::string& name) const { return values_.count(name) > 0; }
    std::string text(const std::string& name) const { return values_[name].as<std::string>(); }
    std::vector<std::string> texts(const std::string& name) const;
    TerminalLog::Level level() const;
    /// @throws InvalidArgument "coppice compress: <problem>. <fix>", with a hint at --help when fix is empty
    [[noreturn]] void fail(const std::string& problem, const std::string& fix = {}) const;

private:
    std::string command_, about_, examples_;
    cxxopts::Options options_;
    cxxopts::ParseResult values_;
};

/// True once Ctrl-C or SIGTERM came. The first asks running work to stop at the next safe point, the second kills.
bool interrupted();
/// The signal that came, 0 if none.
int interrupting_signal();
/// Installs the handlers; for commands that ask interrupted().
void watch_signals();

/// Settings of a run that every command shares: loads the model, and makes sure that it runs on `inputs`.
/// @throws InvalidArgument placed at `where` when number or shapes of the inputs do not fit
Model load_checked(const std::filesystem::path& path, const Inputs& inputs, const std::string& where);

/// Threads of LibTorch's two pools. The pool between operators is fixed once it is used, so this comes first.
void set_threads(int threads);

/// "0.1.0".
std::string version();

}  // namespace coppice::cli
