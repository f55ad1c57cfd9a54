// Private: canonical form, and deep copies of modules with one type per instance.
#pragma once

#include <torch/script.h>

#include <string>
#include <unordered_map>
#include <vector>

namespace coppice {

struct Canonical {
    torch::jit::Module module;
    std::vector<std::string> notes;
};

/// By the tensor that is replaced.
using Replacements = std::unordered_map<const at::TensorImpl*, at::Tensor>;

/// Rebuilds the module tree with a fresh type for each instance, every method inlined into one graph.
/// @param simplify  also run the passes that remove guards, fold attributes and lift constants (see canonical.cpp)
/// @param replacements  tensors that the rebuilt module gets in the place of copies
Canonical canonicalise(const torch::jit::Module& source, bool simplify, const Replacements& replacements = {});

/// Puts `graph` behind method `name` again, so that the next run compiles it afresh.
void reinstall_method(torch::jit::Module& module, const std::string& name);

}  // namespace coppice
