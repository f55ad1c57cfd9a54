// Operators that work on each element by itself, with broadcasting.
#include "groups/relations.h"

namespace coppice::prune {
namespace {

/// All tensor arguments take part: add, where, addcmul.
void broadcast(Relations& r, const Node* node) {
    const TensorId y = r.output(node);
    for (size_t i = 0; i < node->inputs().size(); ++i) r.tie_broadcast(r.input(node, i), y);
}

/// Only the first argument does: type_as(x, other).
void first(Relations& r, const Node* node) {
    r.tie_all(r.input(node, 0), r.output(node));
}

/// Normalised along `dim`: softmax.
void softmax(Relations& r, const Node* node) {
    first(r, node);
    const TensorId x = r.input(node, 0);
    const auto dim = r.integer(node->inputs()[1]);
    if (!dim) return r.refuse(node, "has a dimension that is computed at run time");
    if (r.rank(x) > 0) r.freeze(x, *dim, "is normalised by " + r.name_of(node));
}

/// Each element moves along `dim`: flip, roll, cumsum.
void along(Relations& r, const Node* node) {
    first(r, node);
    const TensorId x = r.input(node, 0);
    const Value* argument_of = argument(node, "dim") ? argument(node, "dim") : argument(node, "dims");
    const auto dims = argument_of ? r.integers(argument_of) : std::nullopt;
    if (!dims || dims->empty()) return r.refuse(node, "moves elements along dimensions that are not known");
    for (const int64_t dim : *dims)
        if (r.rank(x) > 0) r.freeze(x, dim, "is moved along by " + r.name_of(node));
}

/// x[:, c] where c > 0, else weight[c] * x[:, c]; a single weight serves all channels.
void prelu(Relations& r, const Node* node) {
    first(r, node);
    const TensorId x = r.input(node, 0), w = r.input(node, 1);
    if (w == kNoTensor || r.rank(w) == 0 || r.size(w, 0) == 1) return;
    r.tie(w, 0, x, r.rank(x) > 1 ? 1 : 0);
}

/// y[c] = x[c] * sigmoid(x[c + n/2])
void glu(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0), y = r.output(node);
    const auto given = r.integer(node->inputs()[1]);
    if (!given) return r.refuse(node, "has a dimension that is computed at run time");
    const int64_t halved = r.wrap(x, *given);
    for (int64_t dim = 0; dim < r.rank(x); ++dim) {
        if (dim != halved) {
            r.tie(x, dim, y, dim);
            continue;
        }
        const int64_t half = r.size(y, dim);
        for (int64_t i = 0; i < half; ++i) {
            r.tie(x, dim, i, y, dim, i);
            r.tie(x, dim, i + half, y, dim, i);
        }
    }
}

RuleTable make_table() {
    RuleTable table = {
        {"aten::_log_softmax", {softmax}}, {"aten::_softmax", {softmax}}, {"aten::cumsum", {along}},
        {"aten::flip", {along}},           {"aten::glu", {glu}},          {"aten::log_softmax", {softmax}},
        {"aten::prelu", {prelu}},          {"aten::roll", {along}},       {"aten::softmax", {softmax}},
    };
    for (const char* name :
         {"aten::abs",         "aten::add",         "aten::addcdiv",      "aten::addcmul",     "aten::atan2",
          "aten::bitwise_and", "aten::bitwise_not", "aten::bitwise_or",   "aten::celu",        "aten::ceil",
          "aten::clamp",       "aten::clamp_max",   "aten::clamp_min",    "aten::copy_",       "aten::cos",
          "aten::div",         "aten::elu",         "aten::eq",           "aten::erf",         "aten::exp",
          "aten::expm1",       "aten::floor",       "aten::floor_divide", "aten::fmod",        "aten::ge",
          "aten::gelu",        "aten::gt",          "aten::hardshrink",   "aten::hardsigmoid", "aten::hardswish",
          "aten::hardtanh",    "aten::isinf",       "aten::isnan",        "aten::le",          "aten::leaky_relu",
          "aten::lerp",        "aten::log",         "aten::log1p",        "aten::log_sigmoid", "aten::logical_and",
          "aten::logical_not", "aten::logical_or",  "aten::lt",           "aten::masked_fill", "aten::maximum",
          "aten::minimum",     "aten::mish",        "aten::mul",          "aten::ne",          "aten::neg",
          "aten::pow",         "aten::reciprocal",  "aten::relu",         "aten::relu6",       "aten::remainder",
          "aten::round",       "aten::rrelu",       "aten::rsqrt",        "aten::rsub",        "aten::selu",
          "aten::sigmoid",     "aten::sign",        "aten::silu",         "aten::sin",         "aten::softplus",
          "aten::softshrink",  "aten::sqrt",        "aten::square",       "aten::sub",         "aten::tan",
          "aten::tanh",        "aten::threshold",   "aten::true_divide",  "aten::where",       "aten::__and__",
          "aten::__or__",      "aten::xlogy"})
        table.push_back({name, {broadcast}});
    for (const char* name : {"aten::alias",
                             "aten::alpha_dropout",
                             "aten::bernoulli",
                             "aten::clone",
                             "aten::contiguous",
                             "aten::cpu",
                             "aten::detach",
                             "aten::dropout",
                             "aten::feature_alpha_dropout",
                             "aten::feature_dropout",
                             "aten::fill_",
                             "aten::float",
                             "aten::half",
                             "aten::native_dropout",
                             "aten::normal_",
                             "aten::nan_to_num",
                             "aten::to",
                             "aten::type_as",
                             "aten::uniform_",
                             "aten::zero_",
                             "prim::unchecked_cast",
                             "prim::unchecked_unwrap_optional",
                             "aten::_unwrap_optional"})
        table.push_back({name, {first}});
    return table;
}

}  // namespace

const RuleTable& elementwise_rules() {
    static const RuleTable kTable = make_table();
    return kTable;
}

}  // namespace coppice::prune
