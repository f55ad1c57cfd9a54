// What losses on features share: a loss on the outputs, the layers, checked pairs.
#pragma once

#include <functional>

#include <coppice/distill.h>
#include <coppice/train.h>

namespace coppice::distill {

// The term of one layer from student and teacher, float32 or wider, the teacher's without gradient.
using FeatureTerm =
    std::function<at::Tensor(const std::string& name, const at::Tensor& student, const at::Tensor& teacher)>;

// loss + weight x mean of `term` over the layers.
std::unique_ptr<Loss> with_features(const std::string& where, std::shared_ptr<const Loss> loss, FeatureOptions options,
                                    FeatureTerm term);

// @throws InvalidArgument naming the layer
[[noreturn]] void throw_shapes(const std::string& where, const std::string& name, const at::Tensor& student,
                               const at::Tensor& teacher, const std::string& fix);

}  // namespace coppice::distill
