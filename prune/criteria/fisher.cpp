// score[c] = sum over parameters w of channel c of 1/2 w^2 E[(dL/dw)^2]
//
// Optimal brain damage for a channel: the second-order change of the loss at a minimum when the channel's parameters
// become zero, with the Hessian replaced by the diagonal of the empirical Fisher matrix. It runs over the parameters
// that produce or scale the channel, as taylor's. The expectation is over single examples by default; with batches of
// B examples the gradient of the mean loss enters, whose square is smaller by a factor of up to B and no longer the
// Fisher diagonal.
#include "criteria/criteria.h"

namespace coppice::prune {
namespace {

class Fisher final : public Criterion {
public:
    explicit Fisher(FisherOptions options) : options_(options) {}

    Needs needs() const override {
        Needs needs;
        needs.calibration_data = true;
        needs.labels = true;
        return needs;
    }

    std::vector<at::Tensor> scores(const Model& model, const Groups& groups, Context& context) const override {
        std::map<std::string, at::Tensor> squares;  // sum over batches of (dL/dw)^2
        const int64_t count = with_gradients("prune.fisher", model, context, options_.batches, options_.batch_size,
                                             [&](const auto& parameters) {
                                                 for (const auto& [name, parameter] : parameters) {
                                                     if (!parameter.grad().defined()) continue;
                                                     auto& sum = squares[name];
                                                     if (!sum.defined()) sum = at::zeros_like(parameter, at::kDouble);
                                                     const auto gradient = parameter.grad().to(at::kDouble);
                                                     sum.addcmul_(gradient, gradient);
                                                 }
                                             });
        torch::NoGradGuard no_grad;
        std::vector<at::Tensor> scores;
        for (const auto& group : groups.all()) {
            auto score = at::zeros({group.channels}, at::kDouble);
            for (const auto& slice : group.slices) {
                const auto found = squares.find(slice.name);
                if (found == squares.end() || !makes_channel(slice)) continue;
                const auto change = slice.tensor.detach().to(at::kDouble).square() * found->second;
                score += per_channel(change.movedim(slice.dim, 0).reshape({change.size(slice.dim), -1}).sum(1), slice,
                                     group.channels);
            }
            scores.push_back(score / (2.0 * static_cast<double>(count)));
        }
        return scores;
    }

private:
    const FisherOptions options_;
};

}  // namespace

std::unique_ptr<Criterion> fisher(FisherOptions options) {
    if (options.batches < 1 || options.batch_size < 1)
        throw InvalidArgument("prune.fisher", "batches and batch_size must be at least 1",
                              "The defaults are 256 and 1.");
    return std::make_unique<Fisher>(options);
}

}  // namespace coppice::prune
