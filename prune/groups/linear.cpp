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
            if (out <= r.rank(y) && r.size(factor, -back) == r.size(y, -out)) r.tie(factor, -back, y, -out);
        }
    }
    if (r.rank(a) >= 3 && r.rank(b) >= 3)
        for (int64_t dim = 0; dim + 2 < r.rank(y); ++dim)
            if (r.size(y, dim) > 1) r.independent(y, dim);
}

void matmul(Relations& r, const Node* node) {
    product(r, node, r.input(node, 0), r.input(node, 1));
    produced_by(r, node);
}

// beta * bias + alpha * a @ b
void addmm(Relations& r, const Node* node) {
    product(r, node, r.input(node, 1), r.input(node, 2));
    r.tie_broadcast(r.input(node, 0), r.output(node));
    produced_by(r, node);
}

}  // namespace

const RuleTable& linear_rules() {
    static const RuleTable kTable = {
        {"aten::addmm", {addmm}},   {"aten::baddbmm", {addmm}}, {"aten::bmm", {matmul}}, {"aten::linear", {linear}},
        {"aten::matmul", {matmul}}, {"aten::mm", {matmul}},     {"aten::mv", {matmul}},
    };
    return kTable;
}

}  // namespace coppice::prune
