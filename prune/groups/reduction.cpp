// Reductions. A sum loses what is removed, as masking would. A mean, variance or standard deviation is taken over what
// stays, as in a layer norm by hand (the group is then not exact). A maximum or norm would change its meaning: those
// dimensions stay.
#include "groups/relations.h"

namespace coppice::prune {
namespace {

enum class Kind { kSum, kStatistic, kOther };

template <Kind kKind>
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
            if (kKind == Kind::kStatistic) r.statistic(node, x, dim);
            if (kKind == Kind::kOther) r.freeze(x, dim, "is compared by " + r.name_of(node));
            out += keeps ? 1 : 0;
            continue;
        }
        for (size_t i = 0; i < node->outputs().size(); ++i) r.tie(x, dim, r.output(node, i), out);
        ++out;
    }
}

}  // namespace

const RuleTable& reduction_rules() {
    constexpr auto kSum = reduce<Kind::kSum>, kStatistic = reduce<Kind::kStatistic>, kOther = reduce<Kind::kOther>;
    static const RuleTable kTable = {
        {"aten::all", {kOther}},       {"aten::amax", {kOther}},   {"aten::amin", {kOther}},
        {"aten::any", {kOther}},       {"aten::argmax", {kOther}}, {"aten::argmin", {kOther}},
        {"aten::logsumexp", {kOther}}, {"aten::max", {kOther}},    {"aten::mean", {kStatistic}},
        {"aten::min", {kOther}},       {"aten::norm", {kOther}},   {"aten::prod", {kOther}},
        {"aten::std", {kStatistic}},   {"aten::sum", {kSum}},      {"aten::var", {kStatistic}},
        {"aten::var_mean", {kOther}},
    };
    return kTable;
}

}  // namespace coppice::prune
