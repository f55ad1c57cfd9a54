// LSTM, GRU and plain recurrent layers on padded input: the features that enter can shrink, the hidden state stays.
// w_ih is [gates * hidden, in], one per direction in the first layer.
#include "groups/relations.h"

namespace coppice::prune {
namespace {

void relate(Relations& r, const Node* node) {
    const auto view = as_recurrent(const_cast<Node*>(node));
    const TensorId x = view ? r.tensor(view->input) : kNoTensor;
    if (!view || x == kNoTensor) return r.refuse(node, "has settings that are computed at run time");
    const std::string why = "is a hidden state of " + r.name_of(node);
    const size_t directions = view->bidirectional ? 2 : 1;
    const size_t per_cell = view->weights.size() / (directions * static_cast<size_t>(view->layers));
    for (size_t i = 0; i < view->weights.size(); ++i) {
        const TensorId w = r.tensor(view->weights[i]);
        if (w == kNoTensor) return r.refuse(node, "has computed weights");
        const bool reads_input = i % per_cell == 0 && i / per_cell < directions;
        if (!reads_input) {
            r.freeze_all(w, why);
            continue;
        }
        r.freeze(w, 0, why);
        r.tie(w, 1, x, -1);
        r.produces(view->weights[i], 0, node);
    }
    for (int64_t dim = 0; dim + 1 < r.rank(x); ++dim)
        r.freeze(x, dim, "is a batch or time dimension of " + r.name_of(node));
    for (size_t i = 0; i < node->outputs().size(); ++i) r.freeze_all(r.output(node, i), why);
    const auto states = r.list(node->inputs()[1]);
    if (states)
        for (const TensorId id : *states) r.freeze_all(id, why);
    r.freeze_all(r.input(node, 1), why);
}

}  // namespace

const RuleTable& recurrent_rules() {
    static const RuleTable kTable = {
        {"aten::gru", {relate}}, {"aten::lstm", {relate}}, {"aten::rnn_relu", {relate}}, {"aten::rnn_tanh", {relate}}};
    return kTable;
}

}  // namespace coppice::prune
