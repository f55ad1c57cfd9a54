// score[c] = mean over batches of (sum over parameters w of channel c of w * dL/dw)^2
//
// The sum of w * dL/dw is minus the first-order change of the loss when the channel's parameters become zero; squared,
// because the sign does not matter (Molchanov et al., arXiv 1906.10771, equation 8). It runs over the parameters that
// produce or scale the channel (filters, biases, batch norm): those that read it from the next layer say the same thing
// again, as w * dL/dw summed over either side of a linear map gives the activation times its gradient.
// The other forms: |sum of w * dL/dw|, and sum of |w * dL/dw|, where nothing cancels within a channel.
//
// Where several parameters make a channel one behind the other (a convolution, then a batch norm), the first-order
// terms of each are those of the whole product, and their sum counts it several times. Gates count it once: the
// channel is multiplied by g = 1 wherever it is read, and score[c] = mean over examples of (dL/dg)^2, the paper's gates
// with the square of single examples (as in Theis et al., arXiv 1801.05787).
#include "criteria/criteria.h"

namespace coppice::prune {
namespace {

class Taylor final : public Criterion {
public:
    explicit Taylor(TaylorOptions options) : options_(options) {}

    Needs needs() const override {
        Needs needs;
        needs.calibration_data = true;
        needs.labels = true;
        return needs;
    }

    std::vector<at::Tensor> scores(const Model& model, const Groups& groups, Context& context) const override {
        std::vector<at::Tensor> scores;
        for (const auto& group : groups.all()) scores.push_back(at::zeros({group.channels}, at::kDouble));
        if (options_.at == TaylorAt::kGates) {
            double examples = 0;
            with_gates(
                "prune.taylor", model, groups, context, options_.batches, options_.batch_size,
                [&](const std::vector<at::Tensor>& changes) {
                    for (size_t g = 0; g < scores.size(); ++g)
                        scores[g] +=
                            (options_.form == TaylorForm::kSquared ? changes[g].square() : changes[g].abs()).sum(0);
                    if (!changes.empty()) examples += static_cast<double>(changes[0].size(0));
                });
            for (auto& score : scores) score /= examples;
            return scores;
        }
        const int64_t count = with_gradients("prune.taylor", model, context, options_.batches, options_.batch_size,
                                             [&](const auto& parameters) { add(groups, parameters, scores); });
        for (auto& score : scores) score /= static_cast<double>(count);
        return scores;
    }

private:
    void add(const Groups& groups, const std::map<std::string, at::Tensor>& parameters,
             std::vector<at::Tensor>& scores) const {
        std::map<std::string, at::Tensor> products;  // w * dL/dw, each computed once
        for (size_t g = 0; g < scores.size(); ++g) {
            const auto& group = groups.all()[g];
            auto change = at::zeros({group.channels}, at::kDouble);
            for (const auto& slice : group.slices) {
                const auto found = parameters.find(slice.name);
                if (found == parameters.end() || !makes_channel(slice) || !found->second.grad().defined()) continue;
                auto& product = products[slice.name];
                if (!product.defined()) {
                    product = (found->second * found->second.grad()).to(at::kDouble);
                    if (options_.form == TaylorForm::kElementwise) product.abs_();
                }
                const auto rows = product.movedim(slice.dim, 0).reshape({product.size(slice.dim), -1}).sum(1);
                change += per_channel(rows, slice, group.channels);
            }
            scores[g] += options_.form == TaylorForm::kSquared ? change.square() : change.abs();
        }
    }

    const TaylorOptions options_;
};

}  // namespace

std::unique_ptr<Criterion> taylor(TaylorOptions options) {
    if (options.batches < 1 || options.batch_size < 1)
        throw InvalidArgument("prune.taylor", "batches and batch_size must be at least 1",
                              "The defaults are 8 and 64.");
    if (options.at == TaylorAt::kGates && options.form == TaylorForm::kElementwise)
        throw InvalidArgument("prune.taylor", "a gate is one number: there is nothing to add up for form elementwise",
                              "Use form squared or absolute, or at: parameters.");
    return std::make_unique<Taylor>(options);
}

}  // namespace coppice::prune
