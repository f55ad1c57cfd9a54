/// One training loop for fine-tuning, distillation and quantization-aware training, of TorchScript and torch::nn
/// modules.
#pragma once

#include <torch/nn/module.h>

#include <coppice/stage.h>

namespace coppice {

/// What the trainer needs of a module. Parameters and buffers are shared with the module, never copied.
class Trainable {
public:
    virtual ~Trainable() = default;
    virtual at::Tensor forward(const Inputs& inputs) = 0;
    virtual void train(bool on) = 0;
    virtual std::vector<std::pair<std::string, at::Tensor>> parameters() = 0;  ///< those that train
    virtual std::vector<std::pair<std::string, at::Tensor>> buffers() = 0;

    /// From the next forward() on the outputs of some layers are kept as well. @param layers  regular expressions on
    /// names (of LayerNames); empty: every sum of two computed tensors of floats, which are the
    /// outputs of the blocks of a residual network
    /// @return the names, in the order of the graph
    /// @throws InvalidArgument when an expression matches no layer; UnsupportedModel where layers cannot be reached
    virtual std::vector<std::string> watch(const std::vector<std::string>& layers);
    /// What the layers gave in the last forward(), in that order.
    virtual std::vector<at::Tensor> watched() const { return {}; }
};

/// A loss that also compares what layers give inside the student and the teacher. The teacher needs the same names.
class FeatureLoss : public Loss {
public:
    virtual const std::vector<std::string>& layers() const = 0;  ///< as Trainable::watch() takes them
    /// What is added to operator(): one tensor per layer, of any floating-point type, in the same order on both sides.
    virtual at::Tensor of_features(const std::vector<std::string>& names, const std::vector<at::Tensor>& student,
                                   const std::vector<at::Tensor>& teacher) const = 0;
};

/// Shares the module of `model`.
std::unique_ptr<Trainable> trainable(Model model);
/// A torch::nn module and how to run it.
std::unique_ptr<Trainable> trainable(std::shared_ptr<torch::nn::Module> module,
                                     std::function<at::Tensor(const Inputs&)> forward);

struct TrainOptions {
    int64_t epochs = 1;
    int64_t batch_size = 128;
    std::string optimizer = "sgd";  ///< sgd (Nesterov momentum), adamw
    double lr = 0.01;
    double momentum = 0.9;
    double weight_decay = 5e-4;  ///< not applied to parameters with one dimension when decay_vectors is false
    bool decay_vectors = false;
    std::string schedule = "cosine";  ///< constant, cosine (arXiv 1608.03983, without restarts), step
    std::vector<int64_t> milestones;  ///< step: epochs after which lr is multiplied by gamma
    double gamma = 0.1;
    double warmup_epochs = 0;      ///< linear from 0
    double label_smoothing = 0;    ///< arXiv 1512.00567
    int64_t crop_padding = 0;      ///< random crop after zero padding; 0: off
    bool flip = false;             ///< random mirror image
    std::string autocast = "off";  ///< off, bf16, auto (bf16 where the CPU has native bf16 instructions)
    bool channels_last = true;     ///< for 4-d inputs and weights
    double clip_norm = 0;          ///< 0: off
    bool drop_last = false;
    uint64_t seed = 0;
    int64_t checkpoint_every_epochs = 1;
    /// Budgets of the whole training, evaluation and earlier attempts included; 0: none. What reaches one ends after
    /// the step in which that is seen, a hundredth of an epoch later at most.
    double max_energy_j = 0, max_carbon_g = 0, max_time_s = 0;
    /// Which epoch's weights are left: last, best (by evaluate()), or auto: best where a budget ended the training and
    /// there is a metric, else last.
    std::string keep = "auto";
    /// Reads every field from the recipe under its own name.
    static TrainOptions read(Options& options);
};

struct StepInfo {
    int64_t epoch, step, steps;  ///< step of steps in this epoch, from 0
    double loss, lr;
};

struct EpochInfo {
    int64_t epoch;  ///< from 0
    double train_loss, lr, seconds;
    std::optional<double> metric;              ///< evaluate() when given
    double evaluate_seconds = 0;               ///< not in `seconds`
    std::optional<double> energy_j, carbon_g;  ///< of the epoch and its evaluation, where the caller can tell
    std::string provenance;                    ///< of the energy
};

/// Called during training; returning false stops it after that step or epoch, keeping what was reached.
struct TrainCallbacks {
    std::function<bool(const StepInfo&)> on_step;
    std::function<bool(const EpochInfo&)> on_epoch;
    /// After the gradients are there and before the optimizer steps: regularisers, masks.
    std::function<void(Trainable&)> on_gradients;
    /// After the optimizer stepped.
    std::function<void(Trainable&)> after_step;
    /// What was spent so far, since any fixed moment: for the log, the prediction of the total and the budgets.
    std::function<Spent()> spent;
    /// Earlier epochs are no result, because masks or penalties grew since: `keep: auto` leaves the last one.
    bool only_last = false;
};

struct TrainResult {
    std::vector<EpochInfo> epochs;
    bool resumed = false;
    std::string stopped_by;   ///< the budget that ended it: "max_energy_j", ...; empty: none
    int64_t kept_epoch = -1;  ///< whose weights were left, from 0
};

class Trainer {
public:
    explicit Trainer(TrainOptions options);

    /// Trains in place for options.epochs. With `checkpoint` a file is written after every epoch by rename (parameters,
    /// buffers, optimizer state, epoch), and an existing one for the same options and data is resumed from, with the
    /// same result as an uninterrupted run; one for other options is an InvalidArgument.
    /// @param teacher   run in eval mode on the same (augmented) inputs when the loss needs one
    /// @param evaluate  after every epoch, for the log only
    /// After every epoch a line of the log has its time, energy and carbon, and from the second one on a prediction of
    /// the totals: mean per epoch x epochs, with the 95 % interval that the scatter of the epochs gives (as
    /// Carbontracker predicts, arXiv 2007.03051, which has no interval).
    /// @throws Error when the loss is not finite, naming epoch and step, lr and what to try; Interrupted;
    /// MeasurementError when a budget cannot be watched
    TrainResult fit(Trainable& module, const Dataset& data, const Loss& loss,
                    const std::function<at::Tensor(const Inputs&)>& teacher = {}, const TrainCallbacks& callbacks = {},
                    const std::filesystem::path& checkpoint = {}, Log& log = null_log(),
                    const std::function<double()>& evaluate = {}, const std::function<bool()>& interrupted = {});

private:
    TrainOptions options_;
};

/// Cross entropy with class indices or probabilities as target. @param label_smoothing in [0, 1)
std::unique_ptr<Loss> cross_entropy(double label_smoothing = 0);
/// Mean squared error.
std::unique_ptr<Loss> mean_squared_error();
/// Mean squared error between the cosine similarity of each pair and its target, scaled from [0, 5] to [0, 1].
std::unique_ptr<Loss> pair_similarity();

/// Losses of the foundation, by recipe name: cross_entropy, mse, pair_similarity.
const std::vector<Entry<Loss>>& builtin_losses();

/// Stages of the foundation: train.finetune, which picks its loss from `losses` (builtin and distill's rows together).
/// `loss: auto` is the task's default.
std::vector<Entry<Stage>> train_stages(std::vector<Entry<Loss>> losses);

}  // namespace coppice
