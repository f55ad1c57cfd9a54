// GReg-1 (arXiv 2012.09243, algorithm 1): the channels to go are chosen once, then lambda / 2 * |w_c|^2 is added for
// them. lambda = min(ceiling, increment * (1 + steps / every_steps)): a penalty that grows slowly lets the network move
// what the channels know elsewhere before they are gone. The gradient is lambda w_c.
#include "allocation/allocation.h"
#include "regularisers/regularisers.h"

namespace coppice::prune {
namespace {

class GregPenalty final : public Penalty {
public:
    GregPenalty(const Groups& groups, const Removal& chosen, const GregOptions& options)
        : groups_(parameters_of(groups)), options_(options), steps_(at::zeros({}, at::kLong)) {
        for (size_t g = 0; g < chosen.size(); ++g) {
            chosen_.push_back(at::zeros({groups_[g].channels()}, at::kDouble));
            if (!chosen[g].empty()) chosen_.back().index_fill_(0, at::tensor(chosen[g], at::kLong), 1);
        }
    }

    void add_gradients() override {
        const double strength = lambda();
        for (size_t g = 0; g < groups_.size(); ++g) groups_[g].add_to_gradients(strength * chosen_[g]);
        steps_ += 1;
    }

    double value() const override {
        double sum = 0;
        for (size_t g = 0; g < groups_.size(); ++g) sum += (chosen_[g] * groups_[g].squares()).sum().item<double>();
        return lambda() / 2 * sum;
    }

    std::vector<std::pair<std::string, at::Tensor>> state() const override {
        std::vector<std::pair<std::string, at::Tensor>> tensors = {{"steps", steps_}};
        for (size_t g = 0; g < chosen_.size(); ++g) tensors.emplace_back("chosen." + std::to_string(g), chosen_[g]);
        return tensors;
    }

private:
    double lambda() const {
        const int64_t increments = 1 + steps_.item<int64_t>() / options_.every_steps;
        return std::min(options_.ceiling, options_.increment * static_cast<double>(increments));
    }

    const std::vector<GroupParameters> groups_;
    const GregOptions options_;
    std::vector<at::Tensor> chosen_;  // per group, float64 [channels]: 1 for those to go
    at::Tensor steps_;
};

class Greg final : public Regulariser {
public:
    Greg(std::unique_ptr<Criterion> criterion, std::unique_ptr<Allocation> allocation, GregOptions options)
        : criterion_(std::move(criterion)), allocation_(std::move(allocation)), options_(std::move(options)) {}

    Needs needs() const override { return criterion_->needs(); }

    std::unique_ptr<Penalty> bind(const Model& model, const Groups& groups, Context& context) const override {
        const auto scores = criterion_->scores(model, groups, context);
        auto target = options_.target;
        if (const auto ratios = allocation_->sensitivity_ratios(); !ratios.empty() && target.sensitivity.empty())
            target.sensitivity = sensitivity_curves(model, Facts::observe(model, context.example), groups, scores,
                                                    target, ratios, context);
        const auto chosen = allocation_->allocate(groups, scores, CostModel(model, context.example, groups), target);
        return std::make_unique<GregPenalty>(groups, chosen, options_);
    }

private:
    const std::unique_ptr<Criterion> criterion_;
    const std::unique_ptr<Allocation> allocation_;
    const GregOptions options_;
};

}  // namespace

std::unique_ptr<Regulariser> greg(std::unique_ptr<Criterion> criterion, std::unique_ptr<Allocation> allocation,
                                  GregOptions options) {
    check_strength("prune.greg", "increment", options.increment);
    check_strength("prune.greg", "ceiling", options.ceiling);
    check_target(options.target);
    if (is_timed(options.target))
        throw InvalidArgument("prune.greg",
                              "latency_ratio and energy_ratio need a model at rest: nothing is timed while it trains",
                              "Use macs_ratio, and prune.channel with them after the training.");
    if (options.every_steps < 1)
        throw InvalidArgument("prune.greg", "every_steps is " + std::to_string(options.every_steps),
                              "It must be at least 1.");
    return std::make_unique<Greg>(std::move(criterion), std::move(allocation), std::move(options));
}

}  // namespace coppice::prune
