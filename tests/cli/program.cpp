#include "program.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <thread>

extern char** environ;

namespace coppice::testing {

Program::Program(const std::vector<std::string>& arguments, const std::filesystem::path& folder,
                 const std::vector<std::string>& environment) {
    static std::atomic<int> next = 0;
    const int number = next++;
    out_ = folder / (".out-" + std::to_string(number));
    err_ = folder / (".err-" + std::to_string(number));
    const char* binary = std::getenv("COPPICE_BINARY");
    if (!binary || !std::filesystem::exists(binary)) {
        ADD_FAILURE() << "COPPICE_BINARY names no program: run these tests by ctest";
        return;
    }
    // `cd` by a shell: posix_spawn of this C library has no portable way.
    std::vector<std::string> words = {"/bin/sh", "-c", "cd \"$0\" && exec \"$@\"", folder.string(), binary};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv, envp;
    for (auto& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    std::vector<std::string> settings = environment;
    for (char** variable = environ; *variable; ++variable) settings.emplace_back(*variable);
    for (auto& setting : settings) envp.push_back(setting.data());
    envp.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, out_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_addopen(&actions, 2, err_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    EXPECT_EQ(::posix_spawn(&pid_, "/bin/sh", &actions, nullptr, argv.data(), envp.data()), 0);
    posix_spawn_file_actions_destroy(&actions);
}

Program::~Program() {
    if (pid_ > 0 && !ended()) {
        ::kill(pid_, SIGKILL);
        wait();
    }
}

void Program::signal(int number) const {
    if (pid_ > 0) ::kill(pid_, number);
}

bool Program::ended() {
    if (!reaped_ && pid_ > 0 && ::waitpid(pid_, &status_, WNOHANG) == pid_) reaped_ = true;
    return reaped_ || pid_ <= 0;
}

bool Program::wait_until(const std::function<bool()>& condition) {
    for (int i = 0; i < 30000; ++i) {
        if (condition()) return true;
        if (ended()) return condition();
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
}

Outcome Program::wait() {
    if (!reaped_ && pid_ > 0) {
        ::waitpid(pid_, &status_, 0);
        reaped_ = true;
    }
    Outcome outcome;
    outcome.code = WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
    if (std::filesystem::exists(out_)) outcome.out = read_text(out_);
    if (std::filesystem::exists(err_)) outcome.err = read_text(err_);
    return outcome;
}

Outcome run_program(const std::vector<std::string>& arguments, const std::filesystem::path& folder,
                    const std::vector<std::string>& environment) {
    return Program(arguments, folder, environment).wait();
}

void write_model_and_data(const std::filesystem::path& folder, int64_t examples) {
    auto model = residual_model();
    // Irrational steps fill the range evenly and differ from image to image; one frequency would repeat itself.
    const auto steps = at::arange(examples * 3 * 64, at::kDouble);
    const auto images = ((steps * 0.7548776662).frac() + (steps * steps * 0.5698402910).frac() - 1)
                            .to(at::kFloat)
                            .reshape({examples, 3, 8, 8});
    torch::NoGradGuard no_grad;
    // Centred logits: else one class wins for every image, and no damage to the model shows.
    const auto mean = model.forward({images}).toTensor().mean(0);
    set_tensor(model, "fc.bias", get_attribute(model, "fc.bias").toTensor() - mean);
    const auto label = model.forward({images}).toTensor().argmax(1);
    model.module().save((folder / "net.pt").string());
    c10::impl::GenericDict dict(c10::StringType::get(), c10::TensorType::get());
    dict.insert("image", images);
    dict.insert("label", label);
    const auto bytes = torch::pickle_save(dict);
    std::ofstream(folder / "data.pt", std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

std::string data_section(int64_t examples) {
    const auto cut = std::to_string(3 * examples / 4);
    return "data:\n  format: tensors\n  path: data.pt\n  inputs: [image]\n  train: {rows: [0, " + cut +
           "]}\n  test: {rows: [" + cut + ", " + std::to_string(examples) + "]}\n  calibration: 32\n";
}

}  // namespace coppice::testing
