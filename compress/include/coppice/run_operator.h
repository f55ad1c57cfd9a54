/// Operators that LibTorch's C++ interface does not declare.
#pragma once

#include <ATen/core/ivalue.h>

#include <vector>

namespace coppice {

/// Runs an operator by name. @param arguments  all, defaults included @return all results
/// @throws InternalError for another number of arguments than the operator has
std::vector<c10::IValue> run_operator(const char* name, std::vector<c10::IValue> arguments, const char* overload = "");

}  // namespace coppice
