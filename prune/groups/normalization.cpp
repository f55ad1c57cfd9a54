// Normalisation. Batch and instance norm treat channels on their own; group norm loses whole groups; layer and RMS norm
// compute a statistic over the channels, which changes with a cut (the group is then not exact).
#include "groups/relations.h"

namespace coppice::prune {
namespace {

void tie_channels(Relations& r, const Node* node, TensorId x, std::initializer_list<const char*> arguments) {
    for (const char* name : arguments)
        if (const Value* value = argument(node, name)) {
            const TensorId parameter = r.tensor(value);
            if (parameter != kNoTensor && r.rank(parameter) == 1) r.tie(parameter, 0, x, 1);
        }
}

void batch_norm(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0);
    r.tie_all(x, r.output(node));
    tie_channels(r, node, x, {"weight", "bias", "running_mean", "running_var"});
}

void instance_norm(Relations& r, const Node* node) {
    batch_norm(r, node);
    const TensorId x = r.input(node, 0);
    for (int64_t dim = 2; dim < r.rank(x); ++dim) r.freeze(x, dim, "is averaged by " + r.name_of(node));
}

void group_norm(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0);
    const auto groups = r.integer(argument(node, "num_groups"));
    if (!groups || x == kNoTensor) return r.refuse(node, "has a number of groups that is computed at run time");
    instance_norm(r, node);
    const int64_t width = r.size(x, 1) / *groups;
    if (*groups == 1)
        r.statistic(node, x, 1);
    else
        for (int64_t c = 0; c < r.size(x, 1); ++c)
            if (c % width) r.tie(x, 1, c, x, 1, c - c % width);
}

void edit_group_norm(Cutter& cut, const Node* before, Node* after) {
    const auto index = argument_index(before, "num_groups");
    const TensorId x = cut.input(before, 0);
    const auto groups = cut.relations().integer(before->inputs()[index]);
    if (!groups || *groups == 1 || !cut.touched(x, 1)) return;
    cut.set_constant(after, index, cut.new_size(x, 1) / (cut.old_size(x, 1) / *groups));
}

void layer_norm(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0);
    const auto shape = r.integers(argument(node, "normalized_shape"));
    if (!shape || x == kNoTensor) return r.refuse(node, "has a shape that is computed at run time");
    r.tie_all(x, r.output(node));
    for (const char* name : {"weight", "bias"})
        if (const Value* value = argument(node, name)) r.tie_broadcast(r.tensor(value), x);
    for (int64_t back = 1; back <= static_cast<int64_t>(shape->size()); ++back) r.statistic(node, x, -back);
}

void edit_layer_norm(Cutter& cut, const Node* before, Node* after) {
    const TensorId x = cut.input(before, 0);
    const auto index = argument_index(before, "normalized_shape");
    const auto shape = cut.relations().integers(before->inputs()[index]);
    auto required = *shape;
    for (size_t i = 0; i < required.size(); ++i)
        required[i] = cut.new_size(x, static_cast<int64_t>(i) - static_cast<int64_t>(required.size()));
    cut.set_sizes(before, after, index, required);
}

// w = g * v / |v|, the norm over all dimensions but `dim`.
void weight_norm(Relations& r, const Node* node) {
    const TensorId v = r.input(node, 0), g = r.input(node, 1), y = r.output(node);
    r.tie_all(v, y);
    r.tie_broadcast(g, y);
    for (int64_t dim = 0; dim < r.rank(v); ++dim)
        if (r.size(g, dim) == 1) r.freeze(v, dim, "is normalised by " + r.name_of(node));
}

}  // namespace

const RuleTable& normalization_rules() {
    static const RuleTable kTable = {
        {"aten::_weight_norm", {weight_norm}},
        {"aten::batch_norm", {batch_norm}},
        {"aten::group_norm", {group_norm, edit_group_norm}},
        {"aten::instance_norm", {instance_norm}},
        {"aten::layer_norm", {layer_norm, edit_layer_norm}},
        {"aten::rms_norm", {layer_norm, edit_layer_norm}},
    };
    return kTable;
}

}  // namespace coppice::prune
