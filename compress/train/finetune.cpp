#include "train/finetune.h"

#include <coppice/training_task.h>

namespace coppice {
namespace {

// Below this share zeros are taken for chance, or for rows of an embedding that nobody uses.
constexpr double kSparse = 0.1;

/// 1 where a weight is not zero, 0 where it is, for every parameter that holds zeros; by name.
std::map<std::string, at::Tensor> masks_of(Trainable& module) {
    torch::NoGradGuard no_grad;
    std::map<std::string, at::Tensor> masks;
    for (const auto& [name, parameter] : module.parameters()) {
        // Biases and norms are not pruned one by one, and often begin at zero.
        if (parameter.dim() < 2) continue;
        const auto mask = parameter != 0;
        if (!mask.all().item<bool>()) masks[name] = mask.to(parameter.dtype());
    }
    return masks;
}

double share_of_zeros(const std::map<std::string, at::Tensor>& masks) {
    double weights = 0, left = 0;
    for (const auto& [name, mask] : masks) {
        weights += static_cast<double>(mask.numel());
        left += mask.sum(at::kDouble).item<double>();
    }
    return weights > 0 ? 1 - left / weights : 0;
}

class FineTune final : public Stage {
public:
    FineTune(Options& options, const std::vector<Entry<Loss>>& losses)
        : task_(options, losses),
          keep_zeros_(
              options.boolean("keep_zeros", false, "weights that are zero stay zero, as prune.weight left them")) {}

    Needs needs() const override { return task_.needs(); }
    void check(const Model& model, const Context& context) const override { task_.check(model, context); }

    Model apply(const Model& model, Context& context) const override {
        Model trained = model.clone();
        const auto module = trainable(trained);
        const auto masks = masks_of(*module);
        const double zeros = share_of_zeros(masks);
        if (!keep_zeros_) {
            if (zeros >= kSparse)
                context.log->warning(
                    "train.finetune: weights that are zero will not stay so; set keep_zeros: true to "
                    "keep what prune.weight did");
            task_.run(trained, *module, context);
            return trained;
        }
        TrainCallbacks callbacks;
        // Before clipping, so that the length of the gradient counts only what trains.
        callbacks.on_gradients = [&](Trainable& some) {
            each(some, masks, [](const at::Tensor& parameter, const at::Tensor& mask) {
                if (parameter.grad().defined()) parameter.grad().mul_(mask);
            });
        };
        callbacks.after_step = [&](Trainable& some) {
            each(some, masks, [](const at::Tensor& parameter, const at::Tensor& mask) { parameter.mul_(mask); });
        };
        task_.run(trained, *module, context, callbacks);
        context.facts["zeros_kept"] = zeros;
        return trained;
    }

private:
    template <typename Function>
    static void each(Trainable& module, const std::map<std::string, at::Tensor>& masks, const Function& function) {
        torch::NoGradGuard no_grad;
        for (const auto& [name, parameter] : module.parameters())
            if (const auto found = masks.find(name); found != masks.end()) function(parameter, found->second);
    }

    const TrainingTask task_;
    const bool keep_zeros_;
};

}  // namespace

std::unique_ptr<Stage> finetune(Options& options, const std::vector<Entry<Loss>>& losses) {
    return std::make_unique<FineTune>(options, losses);
}

}  // namespace coppice
