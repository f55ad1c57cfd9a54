// Private: canonical form, and deep copies of modules with one type per instance.
#pragma once

#include <torch/script.h>

#include <string>
#include <vector>

namespace coppice {

struct Canonical {
    torch::jit::Module module;
    std::vector<std::string> notes;
};

/// Rebuilds the module tree with a fresh type for each instance, every method inlined into one graph.
/// @param simplify  also run the passes that remove guards, fold attributes and lift constants (see canonical.cpp)
Canonical canonicalise(const torch::jit::Module& source, bool simplify);

/// Puts `graph` behind method `name` again, so that the next run compiles it afresh.
void reinstall_method(torch::jit::Module& module, const std::string& name);

}  // namespace coppice
