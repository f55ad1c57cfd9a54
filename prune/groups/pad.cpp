// Padding, pairs of amounts from the last dimension backwards.
//
// Padding by a constant may widen channels (the shortcut of a CIFAR ResNet): the new elements have no source, and once
// some of them vanish with the channels they are added to, the amounts shrink.
#include "groups/relations.h"

namespace coppice::prune {
namespace {

bool constant_mode(const Relations& r, const Node* node) {
    if (node->kind() == torch::jit::aten::constant_pad_nd) return true;
    if (node->kind() != torch::jit::aten::pad) return false;
    const Value* mode = argument(node, "mode");
    const auto text = mode ? constant_of(mode) : std::nullopt;
    return text && text->isString() && text->toStringRef() == "constant";
}

void relate(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0), y = r.output(node);
    const auto amounts = r.integers(node->inputs()[1]);
    if (x == kNoTensor || y == kNoTensor || !amounts) return r.refuse(node, "has amounts that are not known");
    const bool constant = constant_mode(r, node);
    for (int64_t dim = 0; dim < r.rank(x); ++dim) {
        const size_t pair = static_cast<size_t>(r.rank(x) - 1 - dim);
        const int64_t left = 2 * pair < amounts->size() ? (*amounts)[2 * pair] : 0;
        const int64_t right = 2 * pair + 1 < amounts->size() ? (*amounts)[2 * pair + 1] : 0;
        if (left == 0 && right == 0) {
            r.tie(x, dim, y, dim);
            continue;
        }
        for (int64_t i = 0; i < r.size(x, dim); ++i)
            if (i + left >= 0 && i + left < r.size(y, dim)) r.tie(x, dim, i, y, dim, i + left);
        if (constant) continue;
        r.freeze(x, dim, "is mirrored or repeated by " + r.name_of(node));
        r.freeze(y, dim, "is mirrored or repeated by " + r.name_of(node));
    }
}

void edit(Cutter& cut, const Node* before, Node* after) {
    const TensorId x = cut.input(before, 0), y = cut.output(before);
    auto amounts = *cut.relations().integers(before->inputs()[1]);
    for (size_t pair = 0; 2 * pair + 1 < amounts.size(); ++pair) {
        const int64_t dim = cut.relations().rank(x) - 1 - static_cast<int64_t>(pair);
        int64_t &left = amounts[2 * pair], &right = amounts[2 * pair + 1];
        const int64_t in = cut.old_size(x, dim), out = cut.old_size(y, dim);
        // A negative amount cuts elements of the input away.
        const int64_t new_left = left >= 0 ? cut.kept_between(y, dim, 0, left) : -cut.kept_between(x, dim, 0, -left);
        right = right >= 0 ? cut.kept_between(y, dim, out - right, out) : -cut.kept_between(x, dim, in + right, in);
        left = new_left;
    }
    cut.set_sizes(before, after, 1, amounts);
}

}  // namespace

const RuleTable& pad_rules() {
    static const RuleTable kTable = {
        {"aten::constant_pad_nd", {relate, edit}},   {"aten::pad", {relate, edit}},
        {"aten::reflection_pad1d", {relate, edit}},  {"aten::reflection_pad2d", {relate, edit}},
        {"aten::reflection_pad3d", {relate, edit}},  {"aten::replication_pad1d", {relate, edit}},
        {"aten::replication_pad2d", {relate, edit}}, {"aten::replication_pad3d", {relate, edit}},
    };
    return kTable;
}

}  // namespace coppice::prune
