#include <ATen/CPUGeneratorImpl.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <unordered_set>

#include <coppice/error.h>
#include <coppice/train.h>

#include "train/checkpoint.h"
#include "train/optimizer.h"
#include "train/options.h"
#include "train/schedule.h"
#include "train/scopes.h"
#include "train/tracker.h"

namespace coppice {
namespace {

constexpr int64_t kLooksPerEpoch = 100;  // at the meter

/// Every parameter once, also where two names share it.
NamedTensors unique(const NamedTensors& tensors) {
    NamedTensors once;
    std::unordered_set<const c10::TensorImpl*> seen;
    for (const auto& entry : tensors)
        if (entry.second.defined() && seen.insert(entry.second.unsafeGetTensorImpl()).second) once.push_back(entry);
    return once;
}

/// A seed for each purpose and step, so that an interrupted training goes on with the same numbers: splitmix64's output
/// function over a hash of the three.
uint64_t mix(uint64_t seed, uint64_t purpose, uint64_t step) {
    uint64_t z = seed + 0x9e3779b97f4a7c15 * (purpose + 1) + 0xd1342543de82ef95 * (step + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

std::string short_text(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.4g", value);
    return text;
}

/// Class indices as probabilities: 1 - smoothing on the class, and smoothing spread evenly over all (arXiv 1512.00567).
at::Tensor smoothed(const at::Tensor& target, const at::Tensor& scores, double smoothing) {
    if (target.scalar_type() != at::kLong || scores.dim() != 2 || target.dim() != 1)
        throw InvalidArgument("train", "label_smoothing needs class indices as targets and an output [N, classes]",
                              "Set label_smoothing: 0.");
    const auto classes = scores.size(1);
    const auto spread = smoothing / static_cast<double>(classes);
    auto probabilities = at::full({target.size(0), classes}, spread, scores.options().dtype(at::kFloat));
    return probabilities.scatter_(1, target.unsqueeze(1), 1 - smoothing + spread);
}

double clip(const NamedTensors& parameters, double longest) {
    torch::NoGradGuard no_grad;
    std::vector<at::Tensor> gradients;
    for (const auto& [name, parameter] : parameters)
        if (parameter.grad().defined()) gradients.push_back(parameter.grad());
    if (gradients.empty()) return 0;
    const auto length = at::stack(at::_foreach_norm(gradients)).norm().item<double>();
    if (length > longest) at::_foreach_mul_(gradients, longest / length);
    return length;
}

/// One run of fit().
class Run {
public:
    Run(const TrainOptions& options, Trainable& module, const Dataset& data, const Loss& loss,
        const std::function<at::Tensor(const Inputs&)>& teacher, const TrainCallbacks& callbacks, Log& log,
        const std::function<bool()>& interrupted)
        : options_(options),
          module_(module),
          data_(data),
          loss_(loss),
          teacher_(teacher),
          callbacks_(callbacks),
          log_(log),
          interrupted_(interrupted),
          parameters_(unique(module.parameters())),
          buffers_(unique(module.buffers())),
          weights_(options.channels_last, parameters_),
          optimizer_(make_optimizer(options, parameters_)) {
        if (parameters_.empty())
            throw InvalidArgument("train", "the model has no parameter that trains",
                                  "Quantized and frozen models cannot be trained.");
        device_ = parameters_.front().second.device();
        bf16_ = autocast_to_bf16(options.autocast, device_.type());
        steps_ = options.drop_last ? data.size() / options.batch_size
                                   : (data.size() + options.batch_size - 1) / options.batch_size;
        if (steps_ == 0)
            throw InvalidArgument(
                "train", data.description() + " does not fill one batch of " + std::to_string(options.batch_size),
                "Lower batch_size, or set drop_last: false.");
        if (loss.needs().teacher && !teacher)
            throw InvalidArgument("train", "the loss needs a teacher and there is none",
                                  "Pass one, or choose another loss.");
    }

    /// Everything that changes from epoch to epoch, under names for a checkpoint.
    NamedTensors state() const {
        NamedTensors all;
        for (const auto& [name, tensor] : parameters_) all.emplace_back("parameter." + name, tensor);
        for (const auto& [name, tensor] : buffers_) all.emplace_back("buffer." + name, tensor);
        for (const auto& [name, tensor] : optimizer_->state()) all.emplace_back("optimizer." + name, tensor);
        return all;
    }

    /// Parameters and buffers alone: what a model is made of.
    NamedTensors weights() const {
        NamedTensors all = parameters_;
        all.insert(all.end(), buffers_.begin(), buffers_.end());
        return all;
    }

    /// Trains epoch `epoch`. @return false when a callback or a budget (`stopped_by`) stopped it
    bool epoch(int64_t epoch, EpochInfo& info, Tracker& tracker, std::string& stopped_by) {
        module_.train(true);
        const auto start = std::chrono::steady_clock::now();
        BatchIterator batches(data_, options_.batch_size, /*shuffle=*/true, options_.seed, epoch, options_.drop_last);
        double sum = 0;
        int64_t examples = 0;
        bool go_on = true;
        const auto task = "epoch " + std::to_string(epoch + 1) + "/" + std::to_string(options_.epochs);
        for (int64_t step = 0; step < steps_ && go_on; ++step) {
            if (interrupted_ && interrupted_())
                throw Interrupted(
                    "train", "stopped in epoch " + std::to_string(epoch + 1) + ", step " + std::to_string(step + 1),
                    "With a checkpoint, training goes on after the last finished epoch.");
            auto batch = batches.next();
            const int64_t count = std::max<int64_t>(batch->examples(), 1);
            StepInfo now{epoch, step, steps_, 0, learning_rate(options_, epoch * steps_ + step, steps_)};
            now.loss = guarded(*batch, now);
            sum += now.loss * static_cast<double>(count);
            examples += count;
            info.lr = now.lr;
            const int64_t every = std::max<int64_t>(1, steps_ / kLooksPerEpoch);
            if (tracker.watches() && (step % every == 0 || step + 1 == steps_)) stopped_by = tracker.look();
            log_.progress("train " + task, static_cast<double>(step + 1), static_cast<double>(steps_),
                          "loss " + short_text(sum / static_cast<double>(examples)) +
                              (tracker.text().empty() ? "" : ", " + tracker.text()));
            if (callbacks_.on_step) go_on = callbacks_.on_step(now);
            go_on = go_on && stopped_by.empty();
        }
        info.epoch = epoch;
        info.train_loss = sum / static_cast<double>(examples);
        info.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        return go_on;
    }

    bool bf16() const { return bf16_; }

private:
    /// LibTorch's errors at the boundary: shapes of data and model that do not fit, labels out of range.
    double guarded(Batch& batch, const StepInfo& now) {
        try {
            return step(batch, now);
        } catch (const c10::Error& error) {
            std::throw_with_nested(InvalidArgument(
                "train epoch " + std::to_string(now.epoch + 1) + ", step " + std::to_string(now.step + 1),
                "LibTorch refuses: " + message_of(error), "Check that data, model and loss fit together."));
        }
    }

    double step(Batch& batch, const StepInfo& now) {
        const auto number = static_cast<uint64_t>(now.epoch * now.steps + now.step);
        prepare(batch, number);
        generator_.seed(mix(options_.seed, 1, number));
        if (device_.is_cuda()) torch::manual_seed(mix(options_.seed, 1, number));

        for (const auto& [name, parameter] : parameters_) parameter.mutable_grad().reset();
        at::Tensor output, soft;
        {
            Autocast autocast(bf16_, device_.type());
            if (loss_.needs().teacher) {
                torch::NoGradGuard no_grad;
                soft = teacher_(batch.inputs);
            }
            output = module_.forward(batch.inputs);
        }
        // Losses are computed in float32: bf16 has three digits.
        if (output.scalar_type() == at::kBFloat16) output = output.to(at::kFloat);
        if (soft.defined() && soft.scalar_type() == at::kBFloat16) soft = soft.to(at::kFloat);
        if (options_.label_smoothing > 0)
            batch.target = smoothed(batch.target, selected(output, batch), options_.label_smoothing);
        auto loss = loss_(output, soft, batch);
        const double value = loss.item<double>();
        if (!std::isfinite(value))
            throw Error(
                "train epoch " + std::to_string(now.epoch + 1) + ", step " + std::to_string(now.step + 1),
                "the loss is " + std::string(std::isnan(value) ? "not a number" : "infinite") + " at lr " +
                    short_text(now.lr),
                "Lower lr, set clip_norm: 1 or warmup_epochs: 1, and check the data for NaN." + folded_advice());
        loss.backward();
        if (callbacks_.on_gradients) callbacks_.on_gradients(module_);
        if (options_.clip_norm > 0) clip(parameters_, options_.clip_norm);
        optimizer_->step(now.lr);
        if (callbacks_.after_step) callbacks_.after_step(module_);
        return value;
    }

    /// Convolutions whose batch norms were folded into them train at a fraction of the learning rate.
    std::string folded_advice() const {
        const auto any = [](const NamedTensors& all, const auto& holds) {
            return std::any_of(all.begin(), all.end(), holds);
        };
        const bool convolutions = any(parameters_, [](const auto& entry) { return entry.second.dim() > 2; });
        const bool norms =
            any(buffers_, [](const auto& entry) { return entry.first.find("running_mean") != std::string::npos; });
        return convolutions && !norms ? " If deploy has folded its batch norms, train it before deploy." : "";
    }

    void prepare(Batch& batch, uint64_t number) {
        if (options_.crop_padding > 0 || options_.flip) {
            auto images = batch.inputs.at(0).toTensor();
            auto generator = at::make_generator<at::CPUGeneratorImpl>(mix(options_.seed, 0, number));
            if (options_.crop_padding > 0) images = random_crop(images, options_.crop_padding, generator);
            if (options_.flip) images = random_flip(images, generator);
            batch.inputs[0] = images;
        }
        for (auto& input : batch.inputs) {
            if (!input.isTensor()) continue;
            auto tensor = input.toTensor();
            if (tensor.device() != device_) tensor = tensor.to(device_);
            // Not contiguous(): images of one channel are in both orders at once, and only the strides say which is
            // meant.
            if (options_.channels_last && tensor.dim() == 4 &&
                tensor.suggest_memory_format() != at::MemoryFormat::ChannelsLast)
                tensor = tensor.clone(at::MemoryFormat::ChannelsLast);
            input = tensor;
        }
        if (batch.target.defined() && batch.target.device() != device_) batch.target = batch.target.to(device_);
    }

    const TrainOptions& options_;
    Trainable& module_;
    const Dataset& data_;
    const Loss& loss_;
    const std::function<at::Tensor(const Inputs&)>& teacher_;
    const TrainCallbacks& callbacks_;
    Log& log_;
    const std::function<bool()>& interrupted_;
    const NamedTensors parameters_, buffers_;
    ChannelsLastWeights weights_;
    FlushDenormals denormals_;
    DefaultGenerator generator_;
    std::unique_ptr<Optimizer> optimizer_;
    at::Device device_ = at::kCPU;
    bool bf16_ = false;
    int64_t steps_ = 0;
};

/// The weights of the best epoch so far, beside those that train.
class Best {
public:
    Best(const TrainOptions& options, bool only_last, bool has_metric, const NamedTensors& weights)
        : always_(options.keep == "best") {
        const bool budget = options.max_energy_j > 0 || options.max_carbon_g > 0 || options.max_time_s > 0;
        if (always_ && !has_metric)
            throw InvalidArgument("train", "keep: best needs a metric after every epoch, and there is none",
                                  "Give validation data and evaluate: true, or keep: last.");
        if (always_ && only_last)
            throw InvalidArgument("train",
                                  "keep: best makes no sense here: masks or penalties grow from epoch to epoch",
                                  "Set keep: last.");
        if (options.keep == "last" || only_last || !has_metric || !(always_ || budget)) return;
        torch::NoGradGuard no_grad;
        for (const auto& [name, tensor] : weights) {
            live_.emplace_back(name, tensor);
            copy_.emplace_back("best." + name, tensor.detach().clone());
        }
    }

    /// For the checkpoint; empty where no copy is kept.
    const NamedTensors& state() const { return copy_; }
    /// The first epoch with the highest metric; -1: none.
    static int64_t best_of(const std::vector<EpochInfo>& epochs) {
        int64_t best = -1;
        for (const auto& info : epochs)
            if (info.metric && std::isfinite(*info.metric) && (best < 0 || *info.metric > *epochs[best].metric))
                best = info.epoch;
        return best;
    }
    /// After each epoch.
    void consider(const std::vector<EpochInfo>& epochs) {
        if (!copy_.empty() && best_of(epochs) == epochs.back().epoch) copy(live_, copy_);
    }
    /// At the end. @return the epoch whose weights are left
    int64_t restore(const std::vector<EpochInfo>& epochs, const std::string& stopped_by) {
        const int64_t last = static_cast<int64_t>(epochs.size()) - 1, best = best_of(epochs);
        if (copy_.empty() || best < 0 || best == last || !(always_ || !stopped_by.empty())) return last;
        copy(copy_, live_);
        return best;
    }

private:
    static void copy(const NamedTensors& from, NamedTensors& to) {
        torch::NoGradGuard no_grad;
        for (size_t i = 0; i < from.size(); ++i) to[i].second.detach().copy_(from[i].second);
    }
    const bool always_;
    NamedTensors live_, copy_;
};

/// Eval mode when training is over, however it ends.
struct EvalAtTheEnd {
    Trainable& module;
    ~EvalAtTheEnd() { module.train(false); }
};

}  // namespace

Trainer::Trainer(TrainOptions options) : options_(std::move(options)) {
    check(options_);
}

TrainResult Trainer::fit(Trainable& module, const Dataset& data, const Loss& loss,
                         const std::function<at::Tensor(const Inputs&)>& teacher, const TrainCallbacks& callbacks,
                         const std::filesystem::path& checkpoint, Log& log, const std::function<double()>& evaluate,
                         const std::function<bool()>& interrupted) {
    torch::AutoGradMode with_gradients(true);
    const EvalAtTheEnd eval{module};
    Run run(options_, module, data, loss, teacher, callbacks, log, interrupted);
    TrainResult result;
    Best best(options_, callbacks.only_last, static_cast<bool>(evaluate), run.weights());
    const auto state = [&] {
        auto all = run.state();
        all.insert(all.end(), best.state().begin(), best.state().end());
        return all;
    };
    Checkpoint saved{to_json(options_), checkpoint.empty() ? std::string() : data.fingerprint(), {}, false, ""};
    if (!checkpoint.empty() && std::filesystem::exists(checkpoint)) {
        saved = read_checkpoint(checkpoint, saved.options, saved.data, state());
        result.resumed = true;
        log.info("training goes on after epoch " + std::to_string(saved.epochs.size()) + " of " +
                 std::to_string(options_.epochs));
    }
    Tracker tracker(options_, callbacks.spent, saved.epochs);
    const bool ended_before = saved.stopped || static_cast<int64_t>(saved.epochs.size()) >= options_.epochs;
    while (!saved.stopped && static_cast<int64_t>(saved.epochs.size()) < options_.epochs) {
        EpochInfo info{};
        bool go_on = run.epoch(static_cast<int64_t>(saved.epochs.size()), info, tracker, saved.stopped_by);
        if (evaluate) {
            const auto start = std::chrono::steady_clock::now();
            module.train(false);
            torch::NoGradGuard no_grad;
            info.metric = evaluate();
            info.evaluate_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        }
        tracker.end_epoch(info);
        saved.epochs.push_back(info);
        best.consider(saved.epochs);
        const auto number = [](const std::optional<double>& value) { return value ? Json(*value) : Json(); };
        std::string line = "epoch " + std::to_string(info.epoch + 1) + "/" + std::to_string(options_.epochs) +
                           ": loss " + short_text(info.train_loss) + ", lr " + short_text(info.lr) + ", " +
                           short_text(info.seconds) + " s";
        if (info.metric) line += ", metric " + short_text(*info.metric);
        if (!tracker.text().empty()) line += "; so far " + tracker.text();
        log.info(line);
        log.event({{"event", "epoch"},
                   {"epoch", info.epoch},
                   {"train_loss", info.train_loss},
                   {"lr", info.lr},
                   {"seconds", info.seconds},
                   {"evaluate_seconds", info.evaluate_seconds},
                   {"metric", number(info.metric)},
                   {"energy_j", number(info.energy_j)},
                   {"carbon_g", number(info.carbon_g)},
                   {"provenance", info.provenance.empty() ? Json() : Json(info.provenance)},
                   {"stopped_by", saved.stopped_by.empty() ? Json() : Json(saved.stopped_by)}});
        if (saved.stopped_by.empty()) {
            if (const auto prediction = tracker.prediction(saved.epochs); !prediction.is_null()) log.event(prediction);
            if (const auto text = tracker.prediction_text(saved.epochs); !text.empty()) log.info(text);
            if (const auto text = tracker.shortage_text(saved.epochs); !text.empty()) log.warning(text);
        }
        if (callbacks.on_epoch && !callbacks.on_epoch(info)) go_on = false;
        saved.stopped = !go_on;
        const auto done = static_cast<int64_t>(saved.epochs.size());
        if (!checkpoint.empty() &&
            (saved.stopped || done == options_.epochs || done % options_.checkpoint_every_epochs == 0))
            write_checkpoint(checkpoint, saved, state());
    }
    result.epochs = saved.epochs;
    result.stopped_by = saved.stopped_by;
    result.kept_epoch = best.restore(saved.epochs, saved.stopped_by);
    if (!ended_before) log.event(tracker.total(saved.epochs, saved.stopped_by));
    if (!saved.stopped_by.empty())
        log.warning("the training ended in epoch " + std::to_string(saved.epochs.size()) + " of " +
                    std::to_string(options_.epochs) + ", because " + saved.stopped_by + " is used up; the weights of " +
                    (result.kept_epoch + 1 == static_cast<int64_t>(saved.epochs.size())
                         ? "the last epoch"
                         : "the best epoch by the metric") +
                    " (" + std::to_string(result.kept_epoch + 1) + ") are kept");
    return result;
}

}  // namespace coppice
