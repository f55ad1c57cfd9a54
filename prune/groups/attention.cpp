// Fused attention: q [..., heads, L, E], k [..., heads, S, E], v [..., heads, S, Ev] -> [..., heads, L, Ev].
// Heads, the width of queries and keys, and the width of values can each shrink.
#include <cmath>

#include "groups/relations.h"

namespace coppice::prune {
namespace {

void relate(Relations& r, const Node* node) {
    const TensorId q = r.input(node, 0), k = r.input(node, 1), v = r.input(node, 2), y = r.output(node);
    if (q == kNoTensor || k == kNoTensor || v == kNoTensor || y == kNoTensor) return r.refuse(node, "was not reached");
    const Value* grouped = argument(node, "enable_gqa");
    const bool shares_heads = grouped && r.boolean(grouped).value_or(true);
    r.tie(q, -1, k, -1);
    r.tie(v, -1, y, -1);
    r.tie(q, -2, y, -2);
    r.tie(k, -2, v, -2);
    r.freeze(k, -2, "is normalised by the softmax of " + r.name_of(node));
    for (const TensorId id : {q, k, v}) {
        for (int64_t back = 3; back <= std::min(r.rank(id), r.rank(y)); ++back) {
            const int64_t own = r.size(id, -back), all = r.size(y, -back);
            if (own == all)
                r.tie(id, -back, y, -back);
            else if (shares_heads && back == 3)  // each serves all / own heads in a row
                for (int64_t i = 0; i < all; ++i) r.tie(y, -3, i, id, -3, i / (all / own));
        }
    }
    for (int64_t dim = 0; dim + 2 < r.rank(y); ++dim)
        if (r.size(y, dim) > 1) r.independent(y, dim);
    if (const TensorId mask = r.input(node, 3); mask != kNoTensor) {
        r.freeze(mask, -1, "is a mask of " + r.name_of(node));
        if (r.rank(mask) >= 2 && r.size(mask, -2) == r.size(q, -2)) r.tie(mask, -2, q, -2);
        for (int64_t back = 3; back <= std::min(r.rank(mask), r.rank(y)); ++back)
            if (r.size(mask, -back) == r.size(y, -back)) r.tie(mask, -back, y, -back);
    }
}

// The default scale is 1/sqrt(E) of the E it sees: it must stay that of the original width.
void edit(Cutter& cut, const Node* before, Node* after) {
    const auto index = argument_index(before, "scale");
    const TensorId q = cut.input(before, 0);
    if (index < 0 || !cut.touched(q, -1)) return;
    if (cut.relations().is_none(before->inputs()[index]))
        cut.set_constant(after, index, 1.0 / std::sqrt(static_cast<double>(cut.old_size(q, -1))));
}

}  // namespace

const RuleTable& attention_rules() {
    static const RuleTable kTable = {{"aten::scaled_dot_product_attention", {relate, edit}}};
    return kTable;
}

}  // namespace coppice::prune
