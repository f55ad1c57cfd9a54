// Time of a training step of ResNet-20 on CIFAR-10 by Coppice's Trainer: everything from fetching the batch to the update.
//
//   train_step resnet20.pt train.bin            a table over the modes
//   train_step resnet20.pt train.bin --serve    one block of steps per line of standard input, "MODE STEPS"; for
//                                               tests/peers/train_step_eager.py, which runs PyTorch eager in between
#include <ATen/Parallel.h>
#include <coppice/train.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>

namespace {

constexpr int64_t kBatch = 128;

/// Milliseconds of each of `steps` steps, after one that is not counted.
std::vector<double> block(const coppice::Model& model, const std::shared_ptr<const coppice::Dataset>& data,
                          const std::string& mode, int64_t steps) {
    coppice::TrainOptions options;
    options.batch_size = kBatch;
    options.schedule = "constant";
    options.lr = 0.001;
    options.autocast = mode == "bf16" ? "bf16" : "off";
    options.channels_last = mode != "contiguous";
    std::vector<int64_t> examples(static_cast<size_t>((steps + 1) * kBatch));
    for (size_t i = 0; i < examples.size(); ++i) examples[i] = static_cast<int64_t>(i) % data->size();
    std::vector<double> times;
    auto last = std::chrono::steady_clock::now();
    coppice::TrainCallbacks callbacks;
    callbacks.on_step = [&](const coppice::StepInfo& info) {
        const auto now = std::chrono::steady_clock::now();
        if (info.step > 0) times.push_back(std::chrono::duration<double, std::milli>(now - last).count());
        last = now;
        return true;
    };
    const auto module = coppice::trainable(model);
    coppice::Trainer(options).fit(*module, *coppice::subset(data, examples), *coppice::cross_entropy(), {}, callbacks);
    return times;
}

double median(std::vector<double> values) {
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
            for (const double ms : block(model, data, mode, steps)) std::printf("%.3f ", ms);
            std::printf("\n");
            std::fflush(stdout);
        }
        return 0;
    }
    for (const char* mode : {"contiguous", "channels_last", "bf16"}) {
        const auto times = block(model, data, mode, 30);
        std::printf("%-14s median %7.1f ms, best %7.1f ms of %zu steps\n", mode, median(times),
                    *std::min_element(times.begin(), times.end()), times.size());
    }
}
