// Time of a training step of ResNet-20 on CIFAR-10 by Coppice's Trainer: everything from fetching the batch to the
// update.
//
//   train_step resnet20.pt train.bin            a table over the modes
//   train_step resnet20.pt train.bin --serve    one block of steps per line of standard input, "MODE STEPS", answered
//   by wall
//                                               and CPU milliseconds of each step; for tests/peers/train_step_eager.py,
//                                               which runs PyTorch eager in between
#include <ATen/Parallel.h>
#include <coppice/train.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <iostream>

namespace {

constexpr int64_t kBatch = 128;

struct Step {
    double wall_ms, cpu_ms;
};

double cpu_ms() {
    return 1000.0 * static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}  // of all threads

/// Times of each of `steps` steps, after one that is not counted.
std::vector<Step> block(const coppice::Model& model, const std::shared_ptr<const coppice::Dataset>& data,
                        const std::string& mode, int64_t steps) {
    coppice::TrainOptions options;
    options.batch_size = kBatch;
    options.schedule = "constant";
    options.lr = 0.001;
    options.autocast = mode == "bf16" ? "bf16" : "off";
    options.channels_last = mode != "contiguous";
    std::vector<int64_t> examples(static_cast<size_t>((steps + 1) * kBatch));
    for (size_t i = 0; i < examples.size(); ++i) examples[i] = static_cast<int64_t>(i) % data->size();
    std::vector<Step> times;
    auto last = std::chrono::steady_clock::now();
    double last_cpu = cpu_ms();
    coppice::TrainCallbacks callbacks;
    callbacks.on_step = [&](const coppice::StepInfo& info) {
        const auto now = std::chrono::steady_clock::now();
        const double now_cpu = cpu_ms();
        if (info.step > 0)
            times.push_back({std::chrono::duration<double, std::milli>(now - last).count(), now_cpu - last_cpu});
        last = now, last_cpu = now_cpu;
        return true;
    };
    const auto module = coppice::trainable(model);
    coppice::Trainer(options).fit(*module, *coppice::subset(data, examples), *coppice::cross_entropy(), {}, callbacks);
    return times;
}

double median(const std::vector<Step>& steps, double Step::*what) {
    std::vector<double> values;
    for (const auto& step : steps) values.push_back(step.*what);
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) {
        std::fprintf(stderr, "usage: train_step resnet20.pt train.bin [--serve]\n");
        return 2;
    }
    at::set_num_threads(2);
    const auto model = coppice::Model::load(argv[1]);
    coppice::Options options("data", {{"path", argv[2]}});
    const std::shared_ptr<const coppice::Dataset> data =
        coppice::find_entry(coppice::dataset_formats(), "format", "cifar10", "data").make(options);
    if (argc > 3 && std::string(argv[3]) == "--serve") {
        std::string mode;
        int64_t steps = 0;
        while (std::cin >> mode >> steps) {
            for (const auto& step : block(model, data, mode, steps))
                std::printf("%.3f %.3f ", step.wall_ms, step.cpu_ms);
            std::printf("\n");
            std::fflush(stdout);
        }
        return 0;
    }
    for (const char* mode : {"contiguous", "channels_last", "bf16"}) {
        const auto times = block(model, data, mode, 30);
        std::printf("%-14s median of %zu steps: %7.1f ms wall, %7.1f ms CPU\n", mode, times.size(),
                    median(times, &Step::wall_ms), median(times, &Step::cpu_ms));
    }
}
