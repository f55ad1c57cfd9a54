// LSTM, GRU and plain recurrent layers on padded input. Features that enter, hidden channels and, in an LSTM with
// projection, projected channels can shrink.
//
// A cell has w_ih [gates * H, in], w_hh [gates * H, P], b_ih and b_hh [gates * H] and, with projection, w_hr [P, H];
// without projection P = H. Layer l + 1 reads the outputs of all directions of layer l side by side. LibTorch keeps the
// states of all layers and directions in one tensor, so all of them have the same widths: channel j goes everywhere or
// nowhere. A channel whose rows are zero stays at zero when it starts there (g = tanh(0) = 0 is all that is ever added
// to its state), so that a cut equals masking.
#include "groups/relations.h"

namespace coppice::prune {
namespace {

int64_t gates_of(const std::string& cell) {
    return cell == "lstm" ? 4 : cell == "gru" ? 3 : 1;
}

void relate(Relations& r, const Node* node) {
    const auto view = as_recurrent(const_cast<Node*>(node));
    const TensorId x = view ? r.tensor(view->input) : kNoTensor;
    if (!view || x == kNoTensor ||
        node->inputs()[1]->type()->isSubtypeOf(*c10::TensorType::get()) != (view->cell != "lstm"))
        return r.refuse(node, "has settings that are computed at run time");
    const auto directions = static_cast<size_t>(view->bidirectional ? 2 : 1);
    const size_t cells = directions * static_cast<size_t>(view->layers);
    const size_t per_cell = view->weights.size() / cells;
    const bool projects = per_cell == (view->has_biases ? 5u : 3u);
    std::vector<TensorId> weights;
    for (const Value* weight : view->weights) {
        weights.push_back(r.tensor(weight));
        if (weights.back() == kNoTensor) return r.refuse(node, "has computed weights");
    }
    const int64_t gates = gates_of(view->cell), hidden = r.size(weights[0], 0) / gates, width = r.size(weights[1], 1);

    // One tensor stands for the hidden channels of all cells, one for what they put out.
    const TensorId state = r.make_tensor({hidden}), out = projects ? r.make_tensor({width}) : state;
    for (size_t cell = 0; cell < cells; ++cell) {
        const auto weight = [&](size_t i) { return weights[cell * per_cell + i]; };
        const size_t vectors = view->has_biases ? 4 : 2;
        for (size_t i = 0; i < vectors; ++i)
            for (int64_t row = 0; row < gates * hidden; ++row) r.tie(weight(i), 0, row, state, 0, row % hidden);
        r.tie(weight(1), 1, out, 0);
        if (projects) {
            r.tie(weight(per_cell - 1), 0, out, 0);
            r.tie(weight(per_cell - 1), 1, state, 0);
        }
        if (cell < directions) {
            r.tie(weight(0), 1, x, -1);
            continue;
        }
        for (int64_t i = 0; i < r.size(weight(0), 1); ++i) r.tie(weight(0), 1, i, out, 0, i % width);
    }
    r.produces(view->weights[0], 0, node);
    if (projects) r.produces(view->weights[per_cell - 1], 0, node);

    const TensorId y = r.output(node);
    const std::string why = "is a batch or time dimension of " + r.name_of(node);
    for (const TensorId sequence : {x, y}) {
        if (sequence == kNoTensor) continue;
        for (int64_t dim = 0; dim + 1 < r.rank(sequence); ++dim) r.freeze(sequence, dim, why);
    }
    if (y != kNoTensor)
        for (int64_t i = 0; i < r.size(y, -1); ++i) r.tie(y, -1, i, out, 0, i % width);
    // States [layers * directions, N, width]: of what is put out and, in an LSTM, of the cell.
    const auto tie_state = [&](TensorId id, TensorId to) {
        if (id == kNoTensor) return;
        for (int64_t dim = 0; dim + 1 < r.rank(id); ++dim) r.freeze(id, dim, why);
        r.tie(id, -1, to, 0);
    };
    tie_state(r.output(node, 1), out);
    tie_state(r.output(node, 2), state);
    if (view->cell != "lstm") return tie_state(r.input(node, 1), out);
    const auto states = r.list(node->inputs()[1]);
    if (!states || states->size() != 2) return r.refuse(node, "starts from states that are not known");
    tie_state((*states)[0], out);
    tie_state((*states)[1], state);
}

}  // namespace

const RuleTable& recurrent_rules() {
    static const RuleTable kTable = {
        {"aten::gru", {relate}}, {"aten::lstm", {relate}}, {"aten::rnn_relu", {relate}}, {"aten::rnn_tanh", {relate}}};
    return kTable;
}

}  // namespace coppice::prune
