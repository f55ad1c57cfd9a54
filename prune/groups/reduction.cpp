// Reductions. A sum loses what is removed, as masking would; a mean or maximum would change, so its dimensions stay.
#include "groups/relations.h"

namespace coppice::prune {
namespace {

template <bool kSum>
void reduce(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0), y = r.output(node);
    if (x == kNoTensor || y == kNoTensor) return r.refuse(node, "was not reached");
    if (argument(node, "other")) {  // max(x, other) compares element by element
        r.tie_broadcast(x, y);
        r.tie_broadcast(r.input(node, 1), y);
        return;
    }
    const Value* given = argument(node, "dim");
    auto dims = given ? r.integers(given) : std::nullopt;
    if (given && !dims && !r.is_none(given)) return r.refuse(node, "has dimensions that are computed at run time");
    std::vector<bool> reduced(static_cast<size_t>(r.rank(x)), !dims || dims->empty());
    if (dims)
        for (const int64_t dim : *dims) reduced[r.wrap(x, dim)] = true;
    const bool keeps = r.rank(x) == r.rank(y);
    int64_t out = 0;
    for (int64_t dim = 0; dim < r.rank(x); ++dim) {
        if (reduced[dim]) {
            if (!kSum) r.freeze(x, dim, "is averaged or compared by " + r.name_of(node));
            out += keeps ? 1 : 0;
            continue;
        }
        for (size_t i = 0; i < node->outputs().size(); ++i) r.tie(x, dim, r.output(node, i), out);
        ++out;
    }
}

}  // namespace

const RuleTable& reduction_rules() {
    static const RuleTable kTable = {
        {"aten::all", {reduce<false>}},  {"aten::amax", {reduce<false>}},   {"aten::amin", {reduce<false>}},
        {"aten::any", {reduce<false>}},  {"aten::argmax", {reduce<false>}}, {"aten::logsumexp", {reduce<false>}},
        {"aten::max", {reduce<false>}},  {"aten::mean", {reduce<false>}},   {"aten::min", {reduce<false>}},
        {"aten::norm", {reduce<false>}}, {"aten::prod", {reduce<false>}},   {"aten::std", {reduce<false>}},
        {"aten::sum", {reduce<true>}},   {"aten::var", {reduce<false>}},    {"aten::var_mean", {reduce<false>}},
    };
    return kTable;
}

}  // namespace coppice::prune
