// What the model's output suffers from one layer at a time, all others in float:
//
//     classification   mean over examples of KL(softmax(z) || softmax(z')), z and z' the model's outputs, nats
//     other tasks      sum (z - z')^2 / sum z^2: their outputs are no distributions
#include "mixed/table.h"

#include <coppice/error.h>

namespace coppice::quantize {
namespace {

constexpr const char* kWhere = "quantize.mixed";

class OutputDivergence final : public Sensitivity {
public:
    std::string unit() const override {
        return "KL divergence of the model's output in nats, or noise to signal power where it is no classifier";
    }

    std::vector<std::vector<double>> measure(const PrecisionTable& table, Context& context) const override {
        torch::NoGradGuard no_grad;
        const auto& batch = table.sample();
        const auto output = [&](const c10::IValue& value) { return selected(first_tensor(value), batch); };
        const auto exact = output(table.prepared().forward(batch.inputs));
        const bool classes = context.task == Task::kClassification && exact.dim() >= 2;
        std::vector<std::vector<double>> all;
        for (size_t row = 0; row < table.rows().size(); ++row) {
            auto& losses = all.emplace_back();
            const auto& trials = table.rows()[row].trials;
            for (size_t trial = 0; trial < trials.size(); ++trial)
                losses.push_back(trial == 0 ? 0 : loss(exact, output(table.model_output(row, trial)), classes));
            context.log->progress(kWhere, static_cast<double>(row + 1), static_cast<double>(table.rows().size()),
                                  "divergence of " + table.rows()[row].layer.facts.name);
            if (context.interrupted()) throw Interrupted(kWhere, "stopped while measuring sensitivity", "");
        }
        return all;
    }

private:
    static double loss(const at::Tensor& exact, const at::Tensor& rounded, bool classes) {
        const auto z = exact.to(at::kDouble), other = rounded.to(at::kDouble);
        if (!classes) {
            // What is the same has no noise, infinite or not: their difference would be no number.
            const double noise = (z - other).masked_fill(z == other, 0).pow(2).sum().item<double>();
            const double signal = z.masked_fill(z.isinf(), 0).pow(2).sum().item<double>();
            return noise == 0 ? 0 : noise / std::max(signal, 1e-300);
        }
        const auto p = z.log_softmax(1);
        // A class that is ruled out (-inf, as masks do it) adds p log(p / q) = 0, whatever q is; by the formula 0 times
        // an infinity.
        const auto terms = (p.exp() * (p - other.log_softmax(1))).masked_fill(p.isneginf(), 0);
        const auto divergence = terms.sum(1).mean().item<double>();
        return std::max(divergence, 0.0);  // rounding of the sum may leave -1e-17
    }
};

}  // namespace

std::unique_ptr<Sensitivity> output_divergence() {
    return std::make_unique<OutputDivergence>();
}

}  // namespace coppice::quantize
