// Rounding layers one after the other, each on what the rounded layers before it give.
#pragma once

#include "plan/plan.h"

namespace coppice::quantize {

/// Rounds the weight of an anchor, [out, in, ...], by moments for each group of a convolution; gives qint8.
using RoundWeight = std::function<at::Tensor(const torch::jit::Node*, const at::Tensor& weight,
                                             const std::vector<InputMoments>& moments)>;

/// Rounds the int8 layers of the outermost block of the graph again, in its order, in place of plan.weights; with
/// options.bias_correction their biases too. Layers inside of branches and loops keep what they have.
void round_in_turn(StaticPlan::Impl& plan, const std::vector<Inputs>& calibration, const RoundWeight& round);

}  // namespace coppice::quantize
