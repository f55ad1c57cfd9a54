/// The stages that train and prune. Private to prune.
#pragma once

#include <coppice/prune.h>
#include <coppice/training_task.h>

namespace coppice::prune {

struct GradualOptions {
    double begin_epoch = 0;
    double end_epoch = 0.5;    ///< from here on the masks stay, but for soft ones
    int64_t every_steps = 20;  ///< between two scorings
    bool soft = false;         ///< see Masker
};

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

/// Stage prune.gradual: trains, masks more and more channels on the way, and cuts them at the end.
std::unique_ptr<Stage> gradual_pruning(TrainingTask task, std::unique_ptr<Criterion> criterion,
                                       std::unique_ptr<Allocation> allocation, std::unique_ptr<Schedule> schedule,
                                       ChannelPruningOptions pruning, GradualOptions options);

/// Stage prune.movement: trains, and sets to zero what training moves towards zero (Sanh et al., arXiv 2005.07683).
/// @param pruning  sparsity, scope, ignore, min_size, embeddings
std::unique_ptr<Stage> movement_pruning(TrainingTask task, std::unique_ptr<WeightPattern> pattern,
                                        std::unique_ptr<Schedule> schedule, WeightPruningOptions pruning,
                                        GradualOptions options);

/// Stage prune.sparse_learning: trains with a penalty that draws channels towards zero; cuts nothing.
std::unique_ptr<Stage> sparse_learning(TrainingTask task, std::unique_ptr<Regulariser> regulariser);

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
