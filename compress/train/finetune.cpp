#include "train/finetune.h"

#include <coppice/error.h>
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

/// Weights of a parameter that are equal and stay so: they train as one number, whose gradient is the sum of theirs
/// (Deep Compression, Han et al., arXiv 1510.00149).
struct Shared {
    at::Tensor group;  ///< long [weights]
    at::Tensor first;  ///< long [groups]: a member of each
    at::Tensor open;   ///< [groups]: 0 for zero, which stays as pruning left it, else 1

    void sum_gradients(const at::Tensor& gradient) const {
        const auto sums = at::zeros({first.numel()}, gradient.options()).index_add_(0, group, gradient.reshape({-1}));
        gradient.copy_((sums * open).index_select(0, group).view(gradient.sizes()));
    }
    /// Equal gradients give equal steps but for the rounding of vectorised loops and their ends.
    void make_equal(const at::Tensor& parameter) const {
        parameter.copy_(parameter.reshape({-1}).index_select(0, first.index_select(0, group)).view(parameter.sizes()));
    }
};

/// Parameters with no more distinct values than a codebook of 8-bit indices has; by name.
std::map<std::string, Shared> shared_of(Trainable& module) {
    constexpr int64_t kMostValues = 256;
    torch::NoGradGuard no_grad;
    std::map<std::string, Shared> all;
    for (const auto& [name, parameter] : module.parameters()) {
        if (parameter.dim() < 2) continue;
        const auto flat = parameter.reshape({-1});
        const auto [values, group, counts] = at::_unique2(flat, /*sorted=*/true, /*return_inverse=*/true);
        if (values.numel() > kMostValues || values.numel() * 2 > flat.numel()) continue;
        const auto first = at::zeros({values.numel()}, at::kLong).scatter_(0, group, at::arange(flat.numel()));
        all[name] = {group, first, (values != 0).to(flat.dtype())};
    }
    return all;
}

class FineTune final : public Stage {
public:
    FineTune(Options& options, const std::vector<Entry<Loss>>& losses)
        : task_(options, losses),
          keep_zeros_(
              options.boolean("keep_zeros", false, "weights that are zero stay zero, as prune.weight left them")),
          keep_shared_(options.boolean("keep_shared", false,
                                       "equal weights stay equal, as quantize.codebook left them, and train by the sum "
                                       "of their gradients: lr has to be that much smaller, or optimizer adamw")) {}

    Needs needs() const override { return task_.needs(); }
    void check(const Model& model, const Context& context) const override { task_.check(model, context); }

    Model apply(const Model& model, Context& context) const override {
        Model trained = model.clone();
        const auto module = trainable(trained);
        const auto masks = masks_of(*module);
        const double zeros = share_of_zeros(masks);
        const auto shared = keep_shared_ ? shared_of(*module) : std::map<std::string, Shared>();
        if (keep_shared_ && shared.empty())
            throw UnsupportedModel("train.finetune", "keep_shared: true, and no layer has at most 256 distinct weights",
                                   "Put quantize.codebook with storage weights before it.");
        if (!keep_zeros_ && !keep_shared_) {
            if (zeros >= kSparse)
                context.log->warning(
                    "train.finetune: weights that are zero will not stay so; set keep_zeros: true to "
                    "keep what prune.weight did");
            task_.run(trained, *module, context);
            return trained;
        }
        TrainCallbacks callbacks;
        // Before clipping, so that the length of the gradient counts only what trains.
        const auto kept = keep_zeros_ ? masks : std::map<std::string, at::Tensor>();
        callbacks.on_gradients = [&](Trainable& some) {
            each(some, kept, [](const at::Tensor& parameter, const at::Tensor& mask) {
                if (parameter.grad().defined()) parameter.grad().mul_(mask);
            });
            each(some, shared, [](const at::Tensor& parameter, const Shared& groups) {
                if (parameter.grad().defined()) groups.sum_gradients(parameter.grad());
            });
        };
        callbacks.after_step = [&](Trainable& some) {
            each(some, kept, [](const at::Tensor& parameter, const at::Tensor& mask) { parameter.mul_(mask); });
            each(some, shared, [](const at::Tensor& parameter, const Shared& groups) { groups.make_equal(parameter); });
        };
        task_.run(trained, *module, context, callbacks);
        if (keep_zeros_) context.facts["zeros_kept"] = zeros;
        if (keep_shared_) context.facts["shared_parameters"] = shared.size();
        return trained;
    }

private:
    template <typename Value, typename Function>
    static void each(Trainable& module, const std::map<std::string, Value>& values, const Function& function) {
        torch::NoGradGuard no_grad;
        for (const auto& [name, parameter] : module.parameters())
            if (const auto found = values.find(name); found != values.end()) function(parameter, found->second);
    }

    const TrainingTask task_;
    const bool keep_zeros_, keep_shared_;
};

}  // namespace

std::unique_ptr<Stage> finetune(Options& options, const std::vector<Entry<Loss>>& losses) {
    return std::make_unique<FineTune>(options, losses);
}

}  // namespace coppice
