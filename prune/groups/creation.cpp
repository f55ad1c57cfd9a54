// Tensors made from sizes or from the shape of another. Their elements have no source: they vanish with whatever they
// meet.
#include "groups/relations.h"

namespace coppice::prune {
namespace {

void like(Relations& r, const Node* node) {
    r.tie_all(r.input(node, 0), r.output(node));
}

/// Nothing to tie: the output is fresh.
void fresh(Relations& r, const Node* node) {
    r.output(node);
}

void edit_sizes(Cutter& cut, const Node* before, Node* after) {
    const auto index = argument_index(before, "size");
    const TensorId y = cut.output(before);
    if (index < 0 || y == kNoTensor) return;
    cut.set_sizes(before, after, index, cut.new_shape(y));
}

/// Counts along its dimension: the values are the indices.
void counted(Relations& r, const Node* node) {
    r.freeze_all(r.output(node), "is counted by " + r.name_of(node));
}

}  // namespace

const RuleTable& creation_rules() {
    static const RuleTable kTable = {
        {"aten::arange", {counted}},
        {"aten::empty", {fresh, edit_sizes}},
        {"aten::empty_like", {like}},
        {"aten::full", {fresh, edit_sizes}},
        {"aten::full_like", {like}},
        {"aten::linspace", {counted}},
        {"aten::new_empty", {fresh, edit_sizes}},
        {"aten::new_full", {fresh, edit_sizes}},
        {"aten::new_ones", {fresh, edit_sizes}},
        {"aten::new_zeros", {fresh, edit_sizes}},
        {"aten::ones", {fresh, edit_sizes}},
        {"aten::ones_like", {like}},
        {"aten::zeros", {fresh, edit_sizes}},
        {"aten::zeros_like", {like}},
    };
    return kTable;
}

}  // namespace coppice::prune
