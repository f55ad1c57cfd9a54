// HAWQ-V2 (Dong et al., arXiv 1911.03852): the second-order loss of rounding a layer's n weights,
//
//     loss = |Tr(H) / n| * |W' - W|^2
//
// with H the Hessian of the task's loss in these weights. The trace is Hutchinson's: E[v^T H v] over vectors v of +-1.
// One vector for all layers at once gives every layer's trace in one double backward pass, because the products of
// different layers have mean zero; the paper takes the layers one by one. Weights that are still being trained may have
// a negative trace, hence the absolute value. Activations are not part of it.
#include <ATen/Context.h>
#include <torch/autograd.h>

#include <cmath>

#include <coppice/error.h>
#include <coppice/training_task.h>

#include "mixed/table.h"

namespace coppice::quantize {
namespace {

constexpr const char* kWhere = "quantize.mixed";

/// Fused kernels of attention and oneDNN's recurrent cells have no second derivative; LibTorch's plain ones do.
class PlainKernels {
public:
    PlainKernels()
        : flash_(at::globalContext().userEnabledFlashSDP()), onednn_(at::globalContext().userEnabledMkldnn()) {
        at::globalContext().setSDPUseFlash(false);
        at::globalContext().setUserEnabledMkldnn(false);
    }
    ~PlainKernels() {
        at::globalContext().setSDPUseFlash(flash_);
        at::globalContext().setUserEnabledMkldnn(onednn_);
    }
    PlainKernels(const PlainKernels&) = delete;
    PlainKernels& operator=(const PlainKernels&) = delete;

private:
    const bool flash_, onednn_;
};

class HessianTrace final : public Sensitivity {
public:
    explicit HessianTrace(int64_t samples) : samples_(samples) {}

    Needs needs() const override {
        Needs needs;
        needs.calibration_data = needs.labels = true;
        return needs;
    }

    std::string unit() const override { return "mean Hessian trace times squared change of the weights"; }

    std::vector<std::vector<double>> measure(const PrecisionTable& table, Context& context) const override {
        const auto traces = mean_traces(table, context);
        std::vector<std::vector<double>> all;
        for (size_t row = 0; row < table.rows().size(); ++row) {
            auto& losses = all.emplace_back();
            const auto exact = table.weights(row, 0);
            for (size_t trial = 0; trial < table.rows()[row].trials.size(); ++trial) {
                const auto rounded = table.weights(row, trial);
                double change = 0;
                for (size_t i = 0; i < exact.size(); ++i)
                    change += (rounded[i] - exact[i]).pow(2).sum(at::kDouble).item<double>();
                losses.push_back(std::abs(traces[row]) * change);
            }
        }
        return all;
    }

private:
    /// Tr(H) / n per row of the table.
    std::vector<double> mean_traces(const PrecisionTable& table, Context& context) const {
        const auto& batch = table.sample();
        if (!batch.target.defined())
            throw InvalidArgument(kWhere, "sensitivity hessian needs labelled data",
                                  "Give `data:` a `train` split, or use sensitivity kl.");
        torch::AutoGradMode with_grad(true);
        const PlainKernels plain;
        const auto model = table.prepared().clone();
        // Each weight once, though several layers may share it.
        std::map<std::string, size_t> place;
        std::vector<at::Tensor> weights;
        std::vector<std::vector<size_t>> weights_of;
        for (const auto& row : table.rows()) {
            auto& own = weights_of.emplace_back();
            for (const auto* value : weight_values(row.layer.node)) {
                const auto name = attribute_name(value);
                if (!name)
                    throw UnsupportedModel(kWhere,
                                           "the weight of " + row.layer.facts.name + " is a constant of the graph",
                                           "Use sensitivity kl.");
                const auto [found, fresh] = place.emplace(*name, weights.size());
                if (fresh) {
                    auto weight = get_attribute(model, *name).toTensor();
                    weight.detach_().requires_grad_(true);
                    weights.push_back(weight);
                }
                own.push_back(found->second);
            }
        }
        std::vector<double> traces(weights.size(), 0);
        try {
            const auto loss = (*default_loss(context.task))(first_tensor(run_nodes(model, batch.inputs)), {}, batch);
            const auto gradients = torch::autograd::grad({loss}, weights, {}, /*retain_graph=*/true,
                                                         /*create_graph=*/true, /*allow_unused=*/true);
            auto generator = at::make_generator<at::CPUGeneratorImpl>(context.seed);
            for (int64_t sample = 0; sample < samples_; ++sample) {
                std::vector<at::Tensor> directions;
                at::Tensor product = at::zeros({});
                for (size_t i = 0; i < weights.size(); ++i) {
                    directions.push_back(at::randint(0, 2, weights[i].sizes(), generator, at::kFloat) * 2 - 1);
                    if (gradients[i].defined()) product = product + (gradients[i] * directions[i]).sum();
                }
                const auto curvature = torch::autograd::grad({product}, weights, {}, /*retain_graph=*/true,
                                                             /*create_graph=*/false, /*allow_unused=*/true);
                for (size_t i = 0; i < weights.size(); ++i)
                    if (curvature[i].defined())
                        traces[i] += (curvature[i] * directions[i]).sum(at::kDouble).item<double>();
                context.log->progress(kWhere, static_cast<double>(sample + 1), static_cast<double>(samples_),
                                      "Hessian traces");
                if (context.interrupted()) throw Interrupted(kWhere, "stopped while measuring sensitivity", "");
            }
        } catch (const Error&) {
            throw;
        } catch (const std::exception& error) {
            throw UnsupportedModel(kWhere, "an operator has no second derivative: " + message_of(error),
                                   "Use sensitivity kl.");
        }
        std::vector<double> means;
        for (const auto& own : weights_of) {
            double trace = 0, count = 0;
            for (const size_t i : own) {
                trace += traces[i] / static_cast<double>(samples_);
                count += static_cast<double>(weights[i].numel());
            }
            means.push_back(trace / std::max(count, 1.0));
        }
        return means;
    }

    const int64_t samples_;
};

}  // namespace

std::unique_ptr<Sensitivity> hessian_trace(int64_t samples) {
    if (samples < 1)
        throw InvalidArgument(kWhere, "samples is " + std::to_string(samples) + ", must be at least 1", "Use 16.");
    return std::make_unique<HessianTrace>(samples);
}

}  // namespace coppice::quantize
