/// torch::nn models: into a Model, on which everything of Coppice works, and what training changed back out of it.
///
///     auto net = std::make_shared<Net>();                                       // with a forward() of its own
///     auto run = [&](const Inputs& x) { return net->forward(x[0].toTensor()); };
///     auto model = coppice::trace(net, run, {torch::ones({1, 3, 32, 32})});     // now stages, pruning, prepare() ...
///     model.save("net.pt");                                                     // TorchScript
///     coppice::copy_back(*trained, *net);                                       // by name
#pragma once

#include <coppice/train.h>

namespace coppice {

struct TraceOptions {
    /// Inputs of other sizes than the example's. Sizes are plain numbers in C++; which of the numbers in the trace
    /// follow the sizes of inputs, a second trace with these tells. Empty: the example with the first dimension of
    /// every tensor doubled, which makes the batch size free.
    Inputs other;
    bool fixed_sizes = false;  ///< numbers stay as the example has them, its batch size among them
    /// forward() may read values out of tensors (item(), a tensor as a condition); they stay as the example has them.
    bool fixed_values = false;
    std::vector<std::string> arguments;  ///< names of forward's arguments; empty: x, or x0, x1 ... where there are more
    std::string name = "model";
};

/// TorchScript of what `forward` does with the example. Parameters, buffers and submodules keep their names, tensors
/// that are registered twice stay shared; the result has copies. Traced in eval mode; batch norms, dropout and
/// recurrent cells follow train() and eval() of the result nevertheless, but for batch norms without momentum, which
/// stay in eval mode. Whatever else forward() decides in C++, tracing fixes as the example takes it: branches, the
/// number of turns of a loop. The result is compared with `forward` on the example, on the other inputs and, where
/// those were made by doubling, on the example three times as long.
/// @param forward  runs the module, on tensors; gives a tensor or a tuple of them
/// @throws InvalidArgument when an input is no tensor, `forward` fails on the example or the other inputs, uses a
///         tensor that trains and is not registered in the module, or reads values out of tensors without fixed_values
/// @throws UnsupportedModel when a number follows the sizes in no way that can be told, or the result differs
Model trace(const std::shared_ptr<torch::nn::Module>& module, const std::function<c10::IValue(const Inputs&)>& forward,
            const Inputs& example, const TraceOptions& options = {});

/// The same for a module that takes one tensor and gives one, a torch::nn::Sequential for example.
template <typename Contained>
Model trace(const torch::nn::ModuleHolder<Contained>& module, const Inputs& example, const TraceOptions& options = {}) {
    const auto contained = module.ptr();
    return trace(
        contained,
        [&](const Inputs& inputs) -> c10::IValue { return at::Tensor(contained->forward(inputs.at(0).toTensor())); },
        example, options);
}

/// Copies parameters and buffers into those of the same name. Counters that Coppice does not keep stay as they are.
/// @throws InvalidArgument, before anything is copied, when `module` has a tensor of floats that `trained` lacks (a
///         batch norm that was folded) or holds in another shape (channels that were removed)
void copy_back(const Model& trained, torch::nn::Module& module);
void copy_back(Trainable& trained, torch::nn::Module& module);

}  // namespace coppice
