// coppice: the program. Parses the command, runs it, and turns every error into one paragraph and an exit code.
#include <ATen/Context.h>
#include <c10/util/Exception.h>
#include <coppice/error.h>
#include <coppice/registry.h>
#include <torch/version.h>

#include <cstdlib>
#include <iostream>

#include "commands.h"

namespace coppice::cli {

const std::vector<Command>& commands() {
    static const std::vector<Command> all = {
        {"compress", "run a recipe: a smaller, faster model and a report", run_compress},
        {"inspect", "layers, costs, and what can be pruned, factorised and quantized", run_inspect},
        {"eval", "compare TorchScript files: quality, size, time, energy", run_eval},
        {"report", "make a report from one or several runs", run_report},
        {"track", "energy, carbon, CPU time and memory of any other program", run_track},
        {"list", "the stages, losses, criteria and formats that a recipe can name", run_list},
        {"doctor", "what this machine offers: CPU, LibTorch, CUDA, engines, energy counters", run_doctor},
    };
    return all;
}

std::string version() {
    return COPPICE_VERSION;
}

namespace {

void print_help(std::ostream& out) {
    out << "Coppice makes TorchScript models smaller and faster, and proves it.\n\nUsage\n  coppice COMMAND "
           "[options]\n\nCommands\n";
    for (const auto& command : commands())
        out << "  " << command.name << std::string(10 - command.name.size(), ' ') << command.summary << "\n";
    out << "\nOptions\n  -h, --help     this text; coppice COMMAND --help explains a command\n"
           "      --version  version of Coppice and LibTorch\n"
           "\nExit codes\n  0 done, 1 failed, 2 wrong usage or recipe, 3 a stage missed the gate, 130 interrupted;\n"
           "  coppice track passes on the code of its command\n"
           "\nExample\n  coppice inspect model.pt --input 1,3,224,224\n  coppice compress recipe.yaml\n";
}

// LibTorch's warnings go to stderr with file and line of LibTorch; they are of use in a bug report only.
class QuietWarnings final : public c10::WarningHandler {
public:
    void process(const c10::Warning& warning) override {
        if (verbose) std::cerr << "libtorch: " << warning.msg() << "\n";
    }
    bool verbose = false;
};

int run(const Arguments& arguments) {
    if (arguments.empty()) {
        print_help(std::cerr);
        return kUsage;
    }
    const std::string& name = arguments[0];
    if (name == "--help" || name == "-h" || (name == "help" && arguments.size() == 1)) {
        print_help(std::cout);
        return kDone;
    }
    if (name == "--version") {
        std::cout << "coppice " << version() << " (LibTorch " << TORCH_VERSION << ")\n";
        return kDone;
    }
    Arguments rest(arguments.begin() + 1, arguments.end());
    std::string wanted = name;
    if (name == "help") {
        wanted = arguments[1];
        rest = {"--help"};
    }
    std::vector<std::string> known;
    for (const auto& command : commands()) {
        if (command.name == wanted) return command.run(rest);
        known.push_back(command.name);
    }
    throw_unknown("coppice", "command", wanted, known);
}

}  // namespace
}  // namespace coppice::cli

int main(int argc, char** argv) {
    using namespace coppice;
    // Denormal numbers cost up to 100 times the time of others; threads that start later inherit the setting.
    at::globalContext().setFlushDenormal(true);
    cli::QuietWarnings warnings;
    for (int i = 1; i < argc; ++i)
        warnings.verbose = warnings.verbose || std::string(argv[i]) == "-v" || std::string(argv[i]) == "--verbose";
    c10::WarningUtils::WarningHandlerGuard guard(&warnings);
    const cli::Arguments arguments(argv + 1, argv + argc);
    try {
        return cli::run(arguments);
    } catch (const Interrupted& error) {
        std::cerr << "interrupted: " << error.what() << "\n";
        return 128 + (cli::interrupting_signal() ? cli::interrupting_signal() : 2);
    } catch (const InvalidArgument& error) {
        std::cerr << "error: " << error.what() << "\n";
        return cli::kUsage;
    } catch (const InternalError& error) {
        std::cerr << "error: " << error.what() << " (This is a bug in Coppice.)\n";
        return cli::kFailed;
    } catch (const Error& error) {
        std::cerr << "error: " << error.what() << "\n";
        return cli::kFailed;
    } catch (const std::bad_alloc&) {
        std::cerr << "error: out of memory. Use smaller batches, or a machine with more memory.\n";
        return cli::kFailed;
    } catch (const std::exception& error) {
        std::cerr << "error: " << message_of(error) << "\n";
        return cli::kFailed;
    }
}
