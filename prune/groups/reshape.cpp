// Operators that give the same elements another shape or order of dimensions.
#include "groups/relations.h"

namespace coppice::prune {
namespace {

void reshape(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0), y = r.output(node);
    if (x == kNoTensor || y == kNoTensor) return r.refuse(node, "was not reached");
    r.tie_reshaped(x, y);
}

/// view_as(x, other): takes the shape of `other`, whatever that is after the cut.
void reshape_as(Relations& r, const Node* node) {
    reshape(r, node);
    r.tie_all(r.input(node, 1), r.output(node));
}

/// view(x, sizes), reshape(x, sizes)
void edit_view(Cutter& cut, const Node* before, Node* after) {
    const auto index =
        argument_index(before, "size") >= 0 ? argument_index(before, "size") : argument_index(before, "shape");
    const TensorId y = cut.output(before);
    if (index < 0 || y == kNoTensor) return;  // view(x, dtype)
    cut.set_sizes(before, after, index, cut.new_shape(y));
}

/// unflatten(x, dim, sizes)
void edit_unflatten(Cutter& cut, const Node* before, Node* after) {
    const TensorId y = cut.output(before), x = cut.input(before, 0);
    const auto dim = cut.relations().integer(before->inputs()[1]);
    const auto sizes = cut.relations().integers(before->inputs()[2]);
    if (!dim || !sizes) cut.fail(before, "has sizes that are not known");
    auto required = *sizes;
    for (size_t i = 0; i < required.size(); ++i)
        required[i] = cut.new_size(y, cut.relations().wrap(x, *dim) + static_cast<int64_t>(i));
    cut.set_sizes(before, after, 2, required);
}

void permute(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0), y = r.output(node);
    const auto dims = r.integers(node->inputs()[1]);
    if (x == kNoTensor || y == kNoTensor || !dims || static_cast<int64_t>(dims->size()) != r.rank(x))
        return r.refuse(node, "has an order of dimensions that is computed at run time");
    for (size_t i = 0; i < dims->size(); ++i) r.tie(x, (*dims)[i], y, static_cast<int64_t>(i));
}

void swap(Relations& r, TensorId x, TensorId y, int64_t first, int64_t second) {
    first = r.wrap(x, first);
    second = r.wrap(x, second);
    for (int64_t dim = 0; dim < r.rank(x); ++dim) r.tie(x, dim == first ? second : dim == second ? first : dim, y, dim);
}

void transpose(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0), y = r.output(node);
    const auto first = r.integer(node->inputs()[1]), second = r.integer(node->inputs()[2]);
    if (x == kNoTensor || y == kNoTensor || !first || !second) return r.refuse(node, "was not reached");
    if (r.rank(x) > 0) swap(r, x, y, *first, *second);
}

void t(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0), y = r.output(node);
    if (x == kNoTensor || y == kNoTensor) return r.refuse(node, "was not reached");
    if (r.rank(x) == 2)
        swap(r, x, y, 0, 1);
    else
        r.tie_all(x, y);
}

/// squeeze and unsqueeze: dimensions of size 1 come and go, the others keep their order.
void squeeze(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0), y = r.output(node);
    if (x == kNoTensor || y == kNoTensor) return r.refuse(node, "was not reached");
    int64_t out = 0;
    for (int64_t dim = 0; dim < r.rank(x); ++dim) {
        if (r.size(x, dim) == 1) continue;
        while (r.size(y, out) == 1) ++out;
        r.tie(x, dim, y, out++);
    }
}

void expand(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0), y = r.output(node);
    r.tie_broadcast(x, y);
    if (x == kNoTensor || y == kNoTensor) return;
    for (int64_t back = 1; back <= r.rank(y); ++back)
        if (back > r.rank(x) || r.size(x, -back) == 1) r.repeated(y, -back);
}

void expand_as(Relations& r, const Node* node) {
    expand(r, node);
    r.tie_all(r.input(node, 1), r.output(node));
}

void edit_expand(Cutter& cut, const Node* before, Node* after) {
    const TensorId y = cut.output(before);
    if (y != kNoTensor) cut.set_sizes(before, after, argument_index(before, "size"), cut.new_shape(y));
}

/// repeat(x, times): y[i + k * n] = x[i]
void repeat(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0), y = r.output(node);
    if (x == kNoTensor || y == kNoTensor) return r.refuse(node, "was not reached");
    for (int64_t back = 1; back <= r.rank(y); ++back) {
        if (back > r.rank(x) || r.size(x, -back) == 1) {
            r.freeze(y, -back, "is repeated by " + r.name_of(node));
            continue;
        }
        for (int64_t i = 0; i < r.size(y, -back); ++i) r.tie(x, -back, i % r.size(x, -back), y, -back, i);
    }
}

/// repeat_interleave(x, times, dim): y[i] = x[i / times]
void repeat_interleave(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0), y = r.output(node);
    const auto times = r.integer(node->inputs()[1]), along = r.integer(node->inputs()[2]);
    const bool sized = node->inputs().size() > 3 && !r.is_none(node->inputs()[3]);  // a number that a cut makes wrong
    if (x == kNoTensor || y == kNoTensor || !times || !along || sized)
        return r.refuse(node, "repeats by numbers that are computed, over all dimensions, or to a given size");
    for (int64_t dim = 0; dim < r.rank(x); ++dim) {
        if (dim != r.wrap(x, *along)) {
            r.tie(x, dim, y, dim);
            continue;
        }
        for (int64_t i = 0; i < r.size(y, dim); ++i) r.tie(x, dim, i / *times, y, dim, i);
    }
}

}  // namespace

const RuleTable& reshape_rules() {
    static const RuleTable kTable = {
        {"aten::_unsafe_view", {reshape, edit_view}},
        {"aten::broadcast_to", {expand, edit_expand}},
        {"aten::expand", {expand, edit_expand}},
        {"aten::expand_as", {expand_as}},
        {"aten::flatten", {reshape}},
        {"aten::numpy_T", {t}},
        {"aten::permute", {permute}},
        {"aten::repeat", {repeat}},
        {"aten::repeat_interleave", {repeat_interleave}},
        {"aten::reshape", {reshape, edit_view}},
        {"aten::reshape_as", {reshape_as}},
        {"aten::squeeze", {squeeze}},
        {"aten::t", {t}},
        {"aten::transpose", {transpose}},
        {"aten::unflatten", {reshape, edit_unflatten}},
        {"aten::unsqueeze", {squeeze}},
        {"aten::view", {reshape, edit_view}},
        {"aten::view_as", {reshape_as}},
    };
    return kTable;
}

}  // namespace coppice::prune
