/// What a recipe says about a training besides TrainOptions, for every stage that trains: loss, teacher, evaluation.
#pragma once

#include <coppice/graph.h>
#include <coppice/train.h>

namespace coppice {

class TrainingTask {
public:
    /// Reads loss, teacher, evaluate and every field of TrainOptions. `loss: auto` is the task's default, else one of
    /// `losses`. @param defaults  of the stage
    TrainingTask(Options& options, const std::vector<Entry<Loss>>& losses, const TrainOptions& defaults = {});
    /// @param where     the stage, for messages
    /// @param loss      null: the task's default
    /// @param teacher   baseline, or a TorchScript file; used when the loss needs one
    /// @param evaluate  measure context.evaluate after every epoch
    TrainingTask(std::string where, TrainOptions options, std::shared_ptr<const Loss> loss = nullptr,
                 std::string teacher = "baseline", bool evaluate = true);

    Needs needs() const;
    /// @throws InvalidArgument when the teacher's file is not there, or nothing of `model` trains
    void check(const Model& model, const Context& context) const;

    const TrainOptions& options() const { return options_; }
    /// True when the metric is measured after every epoch, where the context has one.
    bool evaluates() const { return evaluate_; }

    /// Trains `model` in place on context.data.train and leaves it in eval mode. Checkpoints go to context.work_dir,
    /// the history to context.facts. Layers that stay in eval mode are recorded, and warned of.
    /// @param module    what is trained: trainable(model), or something around it
    TrainResult run(Model& model, Trainable& module, Context& context, const TrainCallbacks& callbacks = {}) const;

private:
    std::string where_;
    TrainOptions options_;
    std::shared_ptr<const Loss> loss_;  ///< null: the task's default
    std::string teacher_;
    bool evaluate_ = true;
};

/// The loss that `task` has when a recipe names none: cross entropy, mean squared error or pair similarity.
std::unique_ptr<Loss> default_loss(Task task);

}  // namespace coppice
