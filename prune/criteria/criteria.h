/// What criteria share. Private to prune.
#pragma once

#include <coppice/error.h>
#include <coppice/prune.h>

#include <functional>
#include <map>

namespace coppice::prune {

/// Adds up `per_index` [slice.tensor.size(slice.dim)] by channel: [channels], float64.
at::Tensor per_channel(const at::Tensor& per_index, const Slice& slice, int64_t channels);

/// Sums of |w|^p over the indices of slices. Groups share weights (each layer of a dense block reads many), so every
/// weight is summed once per dimension.
class PowerSums {
public:
    PowerSums(double p, const char* where) : p_(p), where_(where) {}
    /// Added up by channel: [channels], float64.
    /// @throws UnsupportedModel from `where` when a weight is NaN or infinite
    at::Tensor operator()(const Slice& slice, int64_t channels);

private:
    /// Per index of dimension 0 and of dimension 1.
    std::array<at::Tensor, 2> sums_of(const at::Tensor& weights) const;

    const double p_;
    const char* const where_;
    std::map<std::pair<const at::TensorImpl*, int64_t>, at::Tensor> sums_;  // [tensor.size(dim)]
};

/// True for the parameters that make or scale a channel (filters, biases, norms): with all of them zero the channel is
/// gone, whatever reads it.
bool makes_channel(const Slice& slice);

/// Runs a copy of the model on at most `batches` batches of labelled calibration data and calls `visit` with the
/// floating-point parameters by name, their gradients of the batch's mean loss in place. Returns the number of batches.
/// @throws InvalidArgument from `where` without data or labels, UnsupportedModel when parameters or loss are not finite
int64_t with_gradients(const char* where, const Model& model, Context& context, int64_t batches, int64_t batch_size,
                       const std::function<void(const std::map<std::string, at::Tensor>&)>& visit);

/// The same with gates in the place of parameters: everything that reads a channel (or, of a group that nothing reads,
/// what its layers write) is multiplied by one gate per example. `visit` gets per group the derivatives of each
/// example's loss by its gates, [examples, channels]: minus the first-order change when the channel goes.
int64_t with_gates(const char* where, const Model& model, const Groups& groups, Context& context, int64_t batches,
                   int64_t batch_size, const std::function<void(const std::vector<at::Tensor>&)>& visit);

/// Warns about each group whose scores are all the same: its channels would go by their number.
void warn_about_ties(const char* where, const Groups& groups, const std::vector<at::Tensor>& scores, Context& context);

}  // namespace coppice::prune
