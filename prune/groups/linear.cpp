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

// einsum("bhid,bhjd->bhij", [q, k]): a letter is one dimension, in whichever operands it stands. Letters that the
// output lacks are summed over, which loses what is removed as masking does.
void einsum(Relations& r, const Node* node) {
    const auto equation = r.text(node->inputs()[0]);
    const auto operands = r.list(node->inputs()[1]);
    const TensorId y = r.output(node);
    const auto arrow = equation ? equation->find("->") : std::string::npos;
    if (!equation || !operands || y == kNoTensor || arrow == std::string::npos ||
        equation->find('.') != std::string::npos)
        return r.refuse(node, "has an equation that is not followed");
    std::vector<std::string> terms(1);
    for (const char c : equation->substr(0, arrow)) {
        if (c == ',')
            terms.emplace_back();
        else if (c != ' ')
            terms.back() += c;
    }
    std::string result;
    for (const char c : equation->substr(arrow + 2))
        if (c != ' ') result += c;
    if (terms.size() != operands->size()) return r.refuse(node, "has an equation that does not fit its operands");
    std::map<char, int64_t> sizes;
    for (size_t i = 0; i < terms.size(); ++i) {
        const TensorId x = (*operands)[i];
        if (x == kNoTensor || r.rank(x) != static_cast<int64_t>(terms[i].size()))
            return r.refuse(node, "has an equation that does not fit its operands");
        for (size_t d = 0; d < terms[i].size(); ++d)
            sizes[terms[i][d]] = std::max(sizes[terms[i][d]], r.size(x, static_cast<int64_t>(d)));
    }
    std::map<char, TensorId> letters;
    for (const auto& [letter, size] : sizes) letters[letter] = r.make_tensor({size});
    const auto relate = [&](TensorId x, const std::string& term) {
        for (size_t d = 0; d < term.size(); ++d) {
            const auto dim = static_cast<int64_t>(d);
            if (r.size(x, dim) == sizes[term[d]])
                r.tie(x, dim, letters[term[d]], 0);
            else
                r.freeze(x, dim, "serves all indices of a dimension");
        }
    };
    for (size_t i = 0; i < terms.size(); ++i) relate((*operands)[i], terms[i]);
    relate(y, result);
    // With two computed operands, a letter of both that is not summed counts independent products, as heads do.
    const Node* list = node->inputs()[1]->node();
    for (size_t i = 0; i < terms.size() && list->kind() == torch::jit::prim::ListConstruct; ++i)
        for (size_t d = 0; d < terms[i].size(); ++d) {
            const char letter = terms[i][d];
            size_t in_operands = 0;
            for (const auto& term : terms) in_operands += term.find(letter) != std::string::npos;
            const bool in_output = result.find(letter) != std::string::npos;
            const bool weight = attribute_name(list->inputs()[i]).has_value();
            if (weight && in_output && in_operands == 1) r.produces(list->inputs()[i], static_cast<int64_t>(d), node);
            if (!weight && in_output && in_operands == terms.size() && terms.size() > 1 && sizes[letter] > 1)
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
