/// What the stages that train share. Private to prune.
#pragma once

#include <coppice/prune_training.h>

namespace coppice::prune {

/// @throws InvalidArgument from `where` unless 0 <= begin_epoch <= end_epoch <= epochs and every_steps >= 1
void check_growth(const char* where, const GradualOptions& options, int64_t epochs);

/// When masks grow, in steps of the whole training.
struct GrowthPlan {
    /// @param examples  of the training data
    GrowthPlan(const GradualOptions& options, const TrainOptions& train, int64_t examples, bool once);
    /// Where in the schedule the masks grow after `step` steps; nullopt: they stay.
    std::optional<double> time(int64_t step) const;

    int64_t begin, end, total, every;
    bool once, soft;
};

/// A module with tensors that belong into its checkpoints.
class WithState final : public Trainable {
public:
    /// @param restored  called before each epoch: the tensors may have been overwritten
    WithState(std::unique_ptr<Trainable> module, std::vector<std::pair<std::string, at::Tensor>> state,
              std::function<void()> restored = {})
        : module_(std::move(module)), state_(std::move(state)), restored_(std::move(restored)) {}

    at::Tensor forward(const Inputs& inputs) override { return module_->forward(inputs); }
    void train(bool on) override {
        if (on && restored_) restored_();
        module_->train(on);
    }
    std::vector<std::pair<std::string, at::Tensor>> parameters() override { return module_->parameters(); }
    std::vector<std::pair<std::string, at::Tensor>> buffers() override {
        auto all = module_->buffers();
        for (const auto& [name, tensor] : state_) all.emplace_back("prune." + name, tensor);
        return all;
    }

private:
    const std::unique_ptr<Trainable> module_;
    const std::vector<std::pair<std::string, at::Tensor>> state_;
    const std::function<void()> restored_;
};

}  // namespace coppice::prune
