/// Groups by hand and a stopwatch that computes times instead of taking them.
#pragma once

#include <ATen/Parallel.h>

#include "prune/masking.h"

namespace coppice::testing {

/// Groups without a graph, "layer0", "layer1", ... with these channels.
prune::Groups groups_of(const std::vector<int64_t>& channels, int64_t multiplicity = 1);

/// 1, 2, 3, ... for every group.
std::vector<at::Tensor> rising(const prune::Groups& groups);

/// Any width, this share of the channels to remove.
prune::Target plain(double ratio);

/// All combinations of widths that are multiples of `step` or the whole, for brute force.
std::vector<std::vector<int64_t>> all_widths(const prune::Groups& groups, int64_t step);

/// Times by formula: of an operator, by its name and the shapes of its tensors; of a model, the sum over its
/// convolutions and linear layers plus a constant that no operator shows.
class SyntheticWatch : public prune::Stopwatch {
public:
    using Formula = std::function<double(const std::string& op, const std::vector<std::vector<int64_t>>& shapes)>;
    explicit SyntheticWatch(Formula formula, double constant = 0) : formula_(std::move(formula)), constant_(constant) {}

    std::vector<double> seconds(const std::vector<prune::OperatorRun>& runs, int64_t) const override;
    prune::TimeRatio ratio(const Model& before, const Model& after, const Inputs& example) const override;
    /// Time of all convolutions and linear layers of the model, by their weights.
    double of(const Model& model) const;

    mutable std::set<std::string> operators;  ///< that were timed
    mutable int ratios = 0;                   ///< pairs of models that were timed

private:
    Formula formula_;
    double constant_;
};

/// One thread while it lives: threads that wait for one another take long on a busy machine.
class OneThread {
public:
    OneThread() : before_(at::get_num_threads()) { at::set_num_threads(1); }
    ~OneThread() { at::set_num_threads(before_); }
    OneThread(const OneThread&) = delete;

private:
    int before_;
};

/// Elements of the weight of a convolution or linear layer, nothing for other operators: bilinear in the widths.
double weight_elements(const std::string& op, const std::vector<std::vector<int64_t>>& shapes);

}  // namespace coppice::testing
