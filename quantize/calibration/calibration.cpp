#include "calibration/calibration.h"

#include <coppice/error.h>

namespace coppice::quantize {

Calibration::Calibration(std::vector<Inputs> batches)
    : batches_(std::move(batches)), size_(static_cast<int64_t>(batches_.size())) {}

Calibration::Calibration(std::shared_ptr<const Dataset> data, int64_t batches, int64_t batch_size, uint64_t seed)
    : data_(std::move(data)), batch_size_(batch_size), seed_(seed) {
    if (!data_) throw InvalidArgument("quantize.calibration", "there is no dataset", "Give one, or batches.");
    size_ = std::min(batches, BatchIterator(*data_, batch_size_, /*shuffle=*/true, seed_).batches());
}

void Calibration::each(const std::function<void(const Inputs& batch)>& see, int64_t most) const {
    most = std::min(most, size_);
    if (!data_) {
        for (int64_t i = 0; i < most; ++i) see(batches_[static_cast<size_t>(i)]);
        return;
    }
    BatchIterator iterator(*data_, batch_size_, /*shuffle=*/true, seed_);
    for (int64_t i = 0; i < most; ++i) see(iterator.next()->inputs);
}

std::vector<Inputs> Calibration::read() const {
    std::vector<Inputs> all;
    each([&](const Inputs& batch) { all.push_back(batch); });
    return all;
}

Progress progress_of(Context& context, const char* where) {
    return [&context, where](const std::string& task, double done, double total, const std::string& detail) {
        context.log->progress(task, done, total, detail);
        if (context.interrupted()) throw Interrupted(where, "stopped while " + task, "");
    };
}

void run_batches(const Model& model, const Calibration& calibration, const NodeHooks& hooks, const char* task,
                 const Progress& progress, int64_t most, const std::function<void(const Inputs& batch)>& begin) {
    most = std::min(most, calibration.size());
    // How many operators a batch takes: a guess until the first one has run. Those in loops run more often than once.
    double operators = 1;
    for (const auto* node : all_nodes(*model.graph())) operators += node->kind().is_aten();
    int64_t batch = 0;
    double seen = 0;
    auto counted = hooks;
    counted.after = [&](const torch::jit::Node* node, std::vector<c10::IValue>& outputs) {
        if (hooks.after) hooks.after(node, outputs);
        ++seen;
        if (progress)
            progress(task, static_cast<double>(batch) + std::min(seen / operators, 1.0), static_cast<double>(most),
                     "batch " + std::to_string(batch + 1));
    };
    calibration.each(
        [&](const Inputs& inputs) {
            if (begin) begin(inputs);
            run_nodes(model, inputs, counted);
            ++batch;
            operators = std::max(seen, 1.0);
            seen = 0;
            if (progress) progress(task, static_cast<double>(batch), static_cast<double>(most), "");
        },
        most);
}

}  // namespace coppice::quantize
