/// Private to train/: optimizers as one fused call per group of parameters.
#pragma once

#include <coppice/train.h>

namespace coppice {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

class Optimizer {
public:
    virtual ~Optimizer() = default;
    /// One update from the parameters' gradients; parameters without a gradient stay as they are.
    virtual void step(double lr) = 0;
    /// What a checkpoint must hold besides the parameters: name and tensor, shared with the optimizer.
    virtual NamedTensors state() const = 0;
};

/// sgd: Nesterov's momentum as PyTorch computes it; adamw: arXiv 1711.05101. LibTorch's fused kernels where the tensors
/// lie on a device that has them.
std::unique_ptr<Optimizer> make_optimizer(const TrainOptions& options, const NamedTensors& parameters);

}  // namespace coppice
