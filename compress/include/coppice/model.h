/// A TorchScript model in the canonical form that every stage works on.
#pragma once

#include <torch/script.h>

#include <filesystem>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <coppice/registry.h>

namespace coppice {

/// Arguments of `forward` without `self`.
using Inputs = std::vector<c10::IValue>;

/// A model whose `forward` is one inlined graph and whose module instances each have a type of their own.
///
/// A Model is a handle: copies share the module, clone() makes a deep copy. Parameters and buffers keep the dotted
/// names of the original ("layer1.0.conv1.weight"). The graph reads them by chains of prim::GetAttr from `self`.
class Model {
public:
    Model() = default;

    /// Reads a TorchScript archive made by torch.jit.save and brings it into canonical form, in eval mode, on the CPU.
    /// @throws IoError naming what the file is instead (state_dict, exported program, truncated, empty, other), a newer
    ///         LibTorch's file, or a missing operator
    /// @throws UnsupportedModel naming what cannot be brought into canonical form
    static Model load(const std::filesystem::path& path);

    /// Canonical form of a deep copy of `module`; the argument is not changed.
    static Model from_module(const torch::jit::Module& module, const std::string& name = "model");

    /// Deep copy: own types, graph and tensors (shared tensors stay shared inside the copy).
    Model clone() const;
    /// The same with other tensors, of any shape, in the place of those named; requires_grad stays. Saves the copy of
    /// what is replaced.
    Model clone_with(const std::unordered_map<std::string, at::Tensor>& tensors) const;

    /// Writes a deflated archive without debug records that torch::jit::load of the same LibTorch reads; the file
    /// appears by rename, so a crash leaves the old one. @throws IoError
    void save(const std::filesystem::path& path) const;

    /// Runs `forward` by LibTorch's own interpreter.
    c10::IValue forward(Inputs inputs) const;

    void train(bool on = true);
    void eval() { train(false); }

    torch::jit::Module& module() { return module_; }
    const torch::jit::Module& module() const { return module_; }
    /// The graph of `forward`; input 0 is self. Edits take effect once refresh() was called.
    std::shared_ptr<torch::jit::Graph> graph() const;
    /// Rebuilds the executor after the graph was edited: eliminates dead code, lints, drops cached plans.
    void refresh();

    /// Methods besides `forward` that the file exports, canonical too.
    std::vector<std::string> other_methods() const;
    /// What canonicalisation left out or could not do, one sentence each.
    const std::vector<std::string>& notes() const { return notes_; }
    const std::string& name() const { return name_; }
    bool defined() const { return defined_; }

private:
    torch::jit::Module module_;
    std::string name_;
    std::vector<std::string> notes_;
    bool defined_ = false;
};

/// The first tensor of an output: itself, or the first found in a tuple, list or dict, in order.
/// @throws UnsupportedModel when there is none
at::Tensor first_tensor(const c10::IValue& output);

/// All tensors of an output in order, nested containers flattened.
std::vector<at::Tensor> all_tensors(const c10::IValue& output);

}  // namespace coppice
