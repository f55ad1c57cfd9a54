/// Where a graph's values come from and where they go out.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <set>
#include <vector>

namespace coppice {

/// The values that are computed from an argument of forward, numbers and lists included; not what follows from
/// parameters and constants alone. Values inside of blocks are not looked at, what a block with a dependent reader
/// gives is dependent.
std::set<const torch::jit::Value*> dependent_values(const torch::jit::Graph& graph);

/// The places at which tensors leave `forward`: inputs of the return node, or of the tuples, lists and dictionaries
/// that are made for it alone, in the order in which they are given. Lists that grow or are computed are no such
/// places.
std::vector<torch::jit::Use> output_places(torch::jit::Graph& graph);

/// True for view, _unsafe_view and view_as, which ask for a shape; view(Tensor, dtype) reinterprets bits.
bool views_shape(const torch::jit::Node* node);

/// Replaces one of these by reshape; `view` is destroyed.
void relax_view(torch::jit::Graph& graph, torch::jit::Node* view);

/// Replaces every one of them by reshape, which is equal wherever a view is defined, and defined for tensors of
/// other strides too.
void relax_views(torch::jit::Graph& graph);

/// contiguous(value), at the graph's insert point.
torch::jit::Value* insert_contiguous(torch::jit::Graph& graph, torch::jit::Value* value,
                                     at::MemoryFormat format = at::MemoryFormat::Contiguous);

/// Makes what is given at a place contiguous (the value itself where it is): a caller may read memory in order.
void give_contiguous(torch::jit::Graph& graph, const torch::jit::Use& place);

}  // namespace coppice
