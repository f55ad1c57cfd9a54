#include "train/optimizer.h"

#include <coppice/error.h>

namespace coppice {
namespace {

// As in PyTorch's AdamW; the paper's own defaults (arXiv 1412.6980).
constexpr double kBeta1 = 0.9, kBeta2 = 0.999, kEpsilon = 1e-8;

/// Parameters with the same weight decay: those it applies to, and the others.
struct Group {
    double weight_decay = 0;
    std::vector<size_t> members;
};

/// Same type and order in memory: strides agree wherever there is more than one element.
bool same_layout(const at::Tensor& a, const at::Tensor& b) {
    if (a.scalar_type() != b.scalar_type() || !a.is_non_overlapping_and_dense()) return false;
    for (int64_t d = 0; d < a.dim(); ++d)
        if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
    return true;
}

class Base : public Optimizer {
public:
    Base(const TrainOptions& options, const NamedTensors& parameters) : options_(options), parameters_(parameters) {
        Group decayed{options.weight_decay, {}}, spared{0, {}};
        for (size_t i = 0; i < parameters.size(); ++i) {
            const bool vector = parameters[i].second.dim() <= 1;
            (vector && !options.decay_vectors ? spared : decayed).members.push_back(i);
        }
        for (auto* group : {&decayed, &spared})
            if (!group->members.empty()) groups_.push_back(*group);
    }

    void step(double lr) override {
        torch::NoGradGuard no_grad;
        for (const auto& group : groups_) {
            std::vector<size_t> present;
            for (const size_t i : group.members)
                if (parameters_[i].second.grad().defined()) present.push_back(i);
            if (!present.empty()) update(present, group.weight_decay, lr);
        }
    }

protected:
    virtual void update(const std::vector<size_t>& members, double weight_decay, double lr) = 0;

    std::vector<at::Tensor> values(const std::vector<size_t>& members) const {
        std::vector<at::Tensor> tensors;
        for (const size_t i : members) tensors.push_back(parameters_[i].second);
        return tensors;
    }

    /// The fused kernels walk over raw memory: gradients must have the strides of their parameters.
    std::vector<at::Tensor> gradients(const std::vector<size_t>& members) const {
        std::vector<at::Tensor> tensors;
        for (const size_t i : members) {
            const auto& parameter = parameters_[i].second;
            auto gradient = parameter.grad();
            if (!same_layout(gradient, parameter)) {
                gradient = at::empty_like(parameter).copy_(gradient);
            }
            tensors.push_back(gradient);
        }
        return tensors;
    }

    static std::vector<at::Tensor> pick(const std::vector<at::Tensor>& all, const std::vector<size_t>& members) {
        std::vector<at::Tensor> tensors;
        for (const size_t i : members) tensors.push_back(all[i]);
        return tensors;
    }

    /// Zeros with the strides of each parameter.
    std::vector<at::Tensor> zeros() const {
        std::vector<at::Tensor> tensors;
        for (const auto& [name, parameter] : parameters_) tensors.push_back(at::zeros_like(parameter.detach()));
        return tensors;
    }

    NamedTensors named(const std::string& what, const std::vector<at::Tensor>& tensors) const {
        NamedTensors result;
        for (size_t i = 0; i < tensors.size(); ++i) result.emplace_back(what + "." + parameters_[i].first, tensors[i]);
        return result;
    }

    const TrainOptions options_;
    const NamedTensors parameters_;

private:
    std::vector<Group> groups_;
};

// v <- momentum v + g + decay w;  w <- w - lr (g + decay w + momentum v). Velocities begin at zero, which makes the
// first step the same as PyTorch's, where they begin as the first gradient.
class Sgd final : public Base {
public:
    Sgd(const TrainOptions& options, const NamedTensors& parameters) : Base(options, parameters) {
        if (options_.momentum > 0) velocity_ = zeros();
    }

    NamedTensors state() const override { return named("momentum", velocity_); }

private:
    void update(const std::vector<size_t>& members, double weight_decay, double lr) override {
        const bool momentum = options_.momentum > 0;
        at::_fused_sgd_(values(members), gradients(members),
                        momentum ? pick(velocity_, members) : std::vector<at::Tensor>(), weight_decay,
                        options_.momentum, lr, /*dampening=*/0, /*nesterov=*/momentum, /*maximize=*/false,
                        /*is_first_step=*/false);
    }

    std::vector<at::Tensor> velocity_;
};

class AdamW final : public Base {
public:
    AdamW(const TrainOptions& options, const NamedTensors& parameters)
        : Base(options, parameters), average_(zeros()), square_(zeros()) {
        for (const auto& [name, parameter] : parameters_)
            steps_.push_back(at::zeros({}, at::TensorOptions(at::kFloat).device(parameter.device())));
    }

    NamedTensors state() const override {
        auto all = named("average", average_);
        for (const auto& [what, tensors] : {std::pair{"square", &square_}, std::pair{"steps", &steps_}})
            for (auto& entry : named(what, *tensors)) all.push_back(std::move(entry));
        return all;
    }

private:
    void update(const std::vector<size_t>& members, double weight_decay, double lr) override {
        auto steps = pick(steps_, members);
        at::_foreach_add_(steps, 1);
        at::_fused_adamw_(values(members), gradients(members), pick(average_, members), pick(square_, members), {},
                          steps, lr, kBeta1, kBeta2, weight_decay, kEpsilon, /*amsgrad=*/false, /*maximize=*/false);
    }

    std::vector<at::Tensor> average_, square_, steps_;
};

}  // namespace

std::unique_ptr<Optimizer> make_optimizer(const TrainOptions& options, const NamedTensors& parameters) {
    if (options.optimizer == "sgd") return std::make_unique<Sgd>(options, parameters);
    if (options.optimizer == "adamw") return std::make_unique<AdamW>(options, parameters);
    throw InvalidArgument("train", "optimizer is \"" + options.optimizer + "\"", "Use sgd or adamw.");
}

}  // namespace coppice
