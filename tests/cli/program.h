/// Runs the program `coppice` (COPPICE_BINARY) as a user does, and makes small models, data and recipes for it.
#pragma once

#include "support/support.h"

#include <functional>
#include <string>
#include <vector>

namespace coppice::testing {

struct Outcome {
    int code = -1;  ///< exit code; 128 + signal when a signal ended it
    std::string out, err;
};

/// A running program.
class Program {
public:
    /// @param folder  working directory; what it writes goes to files there
    Program(const std::vector<std::string>& arguments, const std::filesystem::path& folder,
            const std::vector<std::string>& environment = {});
    ~Program();
    Program(const Program&) = delete;

    void signal(int number) const;
    int pid() const { return pid_; }
    /// Waits until `condition` or the end of the program; false when it ended, or five minutes passed, before.
    bool wait_until(const std::function<bool()>& condition);
    Outcome wait();

private:
    bool ended();
    int pid_ = -1, status_ = 0;
    bool reaped_ = false;
    std::filesystem::path out_, err_;
};

Outcome run_program(const std::vector<std::string>& arguments, const std::filesystem::path& folder,
                    const std::vector<std::string>& environment = {});

/// Writes net.pt (the residual model) and data.pt: `examples` images with the classes that the model itself gives them.
void write_model_and_data(const std::filesystem::path& folder, int64_t examples = 256);

/// The data section for data.pt: the first 3/4 train, the rest test.
std::string data_section(int64_t examples = 256);

}  // namespace coppice::testing
