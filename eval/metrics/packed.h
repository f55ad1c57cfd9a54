/// Packed int8 weights, seen through their own unpack(). Private to eval.
#pragma once

#include <ATen/core/ivalue.h>

#include <optional>

namespace coppice::eval {

/// The weight of packed parameters of a convolution, a linear layer or an embedding, or of a tensor in oneDNN's layout;
/// nullopt for anything else.
/// @throws c10::Error where another engine packed it
std::optional<at::Tensor> unpacked(const c10::IValue& value, std::optional<at::Tensor>* bias = nullptr);

}  // namespace coppice::eval
