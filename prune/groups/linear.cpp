// Matrix products: with a parameter (linear, addmm, mm, matmul) and of two computed tensors (attention by hand).
#include "groups/relations.h"

namespace coppice::prune {
namespace {

void produced_by(Relations& r, const Node* node) {
    if (const auto view = as_linear(const_cast<Node*>(node)))
        r.produces(view->weight, view->weight_transposed ? 1 : 0, node);
}

// y[..., o] = sum_i x[..., i] w[o, i] + b[o]
void linear(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0), w = r.input(node, 1), b = r.input(node, 2), y = r.output(node);
    if (x == kNoTensor || w == kNoTensor || y == kNoTensor || r.rank(w) != 2)
        return r.refuse(node, "has no two-dimensional weight");
    for (int64_t dim = 0; dim + 1 < r.rank(x); ++dim) r.tie(x, dim, y, dim);
    r.tie(x, -1, w, 1);
    r.tie(y, -1, w, 0);
    r.tie(b, 0, y, -1);
    produced_by(r, node);
}

// y[..., m, n] = sum_k a[..., m, k] b[..., k, n]; vectors lose their m or n.
void product(Relations& r, const Node* node, TensorId a, TensorId b) {
    const TensorId y = r.output(node);
    if (a == kNoTensor || b == kNoTensor || y == kNoTensor) return r.refuse(node, "was not reached");
    const bool left_matrix = r.rank(a) >= 2, right_matrix = r.rank(b) >= 2;
    r.tie(a, -1, b, right_matrix ? -2 : -1);
    if (left_matrix) r.tie(a, -2, y, right_matrix ? -2 : -1);
    if (right_matrix) r.tie(b, -1, y, -1);
    const int64_t inner = (left_matrix ? 1 : 0) + (right_matrix ? 1 : 0);
    for (const TensorId factor : {a, b}) {
        for (int64_t back = 3; back <= r.rank(factor); ++back) {
            const int64_t out = back - 2 + inner;  // distance from the end in the output
            if (out <= r.rank(y) && r.size(factor, -back) == r.size(y, -out))
                r.tie(factor, -back, y, -out);
            else
                r.freeze(factor, -back, "serves all indices of a dimension");
        }
    }
    if (r.rank(a) >= 3 && r.rank(b) >= 3)
        for (int64_t dim = 0; dim + 2 < r.rank(y); ++dim)
            if (r.size(y, dim) > 1) r.independent(y, dim);
}

// A bare matrix makes the rows or the columns of the product, as a layer's weight does.
void matmul(Relations& r, const Node* node) {
    product(r, node, r.input(node, 0), r.input(node, 1));
    if (as_linear(const_cast<Node*>(node))) return produced_by(r, node);
    for (const int side : {0, 1}) {
        const TensorId w = r.input(node, static_cast<size_t>(side));
        if (w != kNoTensor && r.rank(w) == 2) r.produces(node->inputs()[side], side, node);
    }
}

// beta * bias + alpha * a @ b
void addmm(Relations& r, const Node* node) {
    product(r, node, r.input(node, 1), r.input(node, 2));
    r.tie_broadcast(r.input(node, 0), r.output(node));
    produced_by(r, node);
}

/// One side of an equation of einsum, a symbol per dimension: letters, and for the dimensions of "..." numbers from -1
/// for the last of them, so that those of all operands meet as they broadcast.
using Symbols = std::vector<int>;

/// @param hidden  how many dimensions "..." stands for; ignored where there is none
Symbols symbols_of(const std::string& term, int64_t hidden) {
    Symbols symbols;
    for (size_t i = 0; i < term.size(); ++i) {
        if (term[i] != '.') {
            symbols.push_back(term[i]);
            continue;
        }
        for (int64_t back = hidden; back > 0; --back) symbols.push_back(static_cast<int>(-back));
        i += 2;
    }
    return symbols;
}

/// What einsum puts out where the equation does not say: the dimensions of "...", then the letters that stand once, in
/// the order of the alphabet, capitals first.
Symbols implicit_result(const std::vector<Symbols>& terms) {
    std::map<int, int> count;
    for (const auto& term : terms)
        for (const int symbol : term) ++count[symbol];
    Symbols result;
    for (const auto& [symbol, times] : count)  // numbers below zero, the farthest from the end first; then letters
        if (symbol < 0 || times == 1) result.push_back(symbol);
    return result;
}

bool contains(const Symbols& symbols, int symbol) {
    return std::find(symbols.begin(), symbols.end(), symbol) != symbols.end();
}

// einsum("bhid,bhjd->bhij", [q, k]): a letter is one dimension, in whichever operands it stands. Letters that the
// output lacks are summed over, which loses what is removed as masking does.
void einsum(Relations& r, const Node* node) {
    const auto equation = r.text(node->inputs()[0]);
    const auto operands = r.list(node->inputs()[1]);
    const TensorId y = r.output(node);
    if (!equation || !operands || y == kNoTensor) return r.refuse(node, "has an equation that is not followed");
    std::string text;
    for (const char c : *equation)
        if (c != ' ') text += c;
    const auto arrow = text.find("->");
    std::vector<std::string> written(1);
    for (const char c : text.substr(0, arrow)) {
        if (c == ',')
            written.emplace_back();
        else
            written.back() += c;
    }
    const auto misfit = [&] { r.refuse(node, "has an equation that does not fit its operands"); };
    if (written.size() != operands->size()) return misfit();
    std::vector<Symbols> terms;
    std::map<int, int64_t> sizes;
    int64_t most_hidden = 0;
    for (size_t i = 0; i < written.size(); ++i) {
        const TensorId x = (*operands)[i];
        if (x == kNoTensor) return misfit();
        const bool dots = written[i].find('.') != std::string::npos;
        const int64_t hidden = dots ? r.rank(x) - (static_cast<int64_t>(written[i].size()) - 3) : 0;
        if (hidden < 0) return misfit();
        most_hidden = std::max(most_hidden, hidden);
        terms.push_back(symbols_of(written[i], hidden));
        if (static_cast<int64_t>(terms[i].size()) != r.rank(x)) return misfit();
        for (size_t d = 0; d < terms[i].size(); ++d)
            sizes[terms[i][d]] = std::max(sizes[terms[i][d]], r.size(x, static_cast<int64_t>(d)));
    }
    const Symbols result =
        arrow == std::string::npos ? implicit_result(terms) : symbols_of(text.substr(arrow + 2), most_hidden);
    if (static_cast<int64_t>(result.size()) != r.rank(y)) return misfit();
    std::map<int, TensorId> dimensions;
    for (const auto& [symbol, size] : sizes) dimensions[symbol] = r.make_tensor({size});
    const auto relate = [&](TensorId x, const Symbols& term) {
        for (size_t d = 0; d < term.size(); ++d) {
            const auto dim = static_cast<int64_t>(d);
            if (r.size(x, dim) == sizes[term[d]])
                r.tie(x, dim, dimensions[term[d]], 0);
            else
                r.freeze(x, dim, "serves all indices of a dimension");
        }
    };
    for (size_t i = 0; i < terms.size(); ++i) relate((*operands)[i], terms[i]);
    relate(y, result);
    // Where computed operands are multiplied and summed, a letter of all that is not summed counts independent
    // products, as heads do.
    const Node* list = node->inputs()[1]->node();
    if (list->kind() != torch::jit::prim::ListConstruct) return;
    bool products = terms.size() > 1 && result.size() < sizes.size();
    for (const Value* operand : list->inputs()) products &= !attribute_name(operand).has_value();
    for (size_t i = 0; i < terms.size(); ++i)
        for (size_t d = 0; d < terms[i].size(); ++d) {
            const int symbol = terms[i][d];
            size_t in_operands = 0;
            for (const auto& term : terms) in_operands += contains(term, symbol);
            const bool in_output = contains(result, symbol);
            const bool weight = attribute_name(list->inputs()[i]).has_value();
            if (weight && in_output && in_operands == 1) r.produces(list->inputs()[i], static_cast<int64_t>(d), node);
            if (products && in_output && in_operands == terms.size() && sizes[symbol] > 1)
                r.independent((*operands)[i], static_cast<int64_t>(d));
        }
}

}  // namespace

const RuleTable& linear_rules() {
    static const RuleTable kTable = {
        {"aten::addmm", {addmm}},   {"aten::baddbmm", {addmm}}, {"aten::bmm", {matmul}}, {"aten::einsum", {einsum}},
        {"aten::linear", {linear}}, {"aten::matmul", {matmul}}, {"aten::mm", {matmul}},  {"aten::mv", {matmul}},
    };
    return kTable;
}

}  // namespace coppice::prune
