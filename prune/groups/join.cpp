// Concatenation, and the lists and tuples that tensors travel in.
#include "groups/relations.h"

namespace coppice::prune {

using namespace torch::jit;

namespace {

void cat(Relations& r, const Node* node) {
    const auto parts = r.list(node->inputs()[0]);
    const TensorId y = r.output(node);
    const auto given = r.integer(node->inputs()[1]);
    if (!parts || y == kNoTensor || !given) return r.refuse(node, "joins a list that is not known");
    const int64_t joined = r.wrap(y, *given);
    int64_t offset = 0;
    for (const TensorId part : *parts) {
        if (part == kNoTensor) return r.refuse(node, "joins a tensor that is not known");
        if (r.rank(part) != r.rank(y)) continue;  // the empty tensor of shape [0] that cat ignores
        for (int64_t dim = 0; dim < r.rank(y); ++dim) {
            if (dim != joined) {
                r.tie(part, dim, y, dim);
                continue;
            }
            for (int64_t i = 0; i < r.size(part, dim); ++i) r.tie(part, dim, i, y, dim, offset + i);
        }
        offset += r.size(part, joined);
    }
}

void stack(Relations& r, const Node* node) {
    const auto parts = r.list(node->inputs()[0]);
    const TensorId y = r.output(node);
    const auto given = r.integer(node->inputs()[1]);
    if (!parts || y == kNoTensor || !given) return r.refuse(node, "joins a list that is not known");
    const int64_t joined = r.wrap(y, *given);
    r.freeze(y, joined, "is stacked by " + r.name_of(node));
    for (const TensorId part : *parts) {
        if (part == kNoTensor) return r.refuse(node, "joins a tensor that is not known");
        for (int64_t dim = 0; dim < r.rank(part); ++dim) r.tie(part, dim, y, dim < joined ? dim : dim + 1);
    }
}

/// A list or tuple made of values; nested ones are not followed.
void construct(Relations& r, const Node* node) {
    auto tensors = std::make_shared<std::vector<TensorId>>();
    for (const Value* value : node->inputs()) {
        tensors->push_back(r.tensor(value));
        if (r.list(value)) r.freeze_node(node, "travels in nested lists");
    }
    r.set_list(node->output(), tensors);
}

void unpack(Relations& r, const Node* node) {
    const auto tensors = r.list(node->inputs()[0]);
    if (!tensors || tensors->size() != node->outputs().size())
        return r.refuse(node, "unpacks a list that is not known");
    for (size_t i = 0; i < tensors->size(); ++i)
        if ((*tensors)[i] != kNoTensor) r.set_tensor(node->outputs()[i], (*tensors)[i]);
}

/// {"out": x, "aux": y}
void construct_dictionary(Relations& r, const Node* node) {
    auto keys = std::make_shared<std::vector<std::string>>();
    auto tensors = std::make_shared<std::vector<TensorId>>();
    for (size_t i = 0; i + 1 < node->inputs().size(); i += 2) {
        const auto key = r.text(node->inputs()[i]);
        if (!key) return r.refuse(node, "has keys that are not known");
        if (r.list(node->inputs()[i + 1])) r.freeze_node(node, "travels in nested lists");
        keys->push_back(*key);
        tensors->push_back(r.tensor(node->inputs()[i + 1]));
    }
    r.set_keys(node->output(), keys);
    r.set_list(node->output(), tensors);
}

/// The place of a key among those of a dictionary, or -1.
int64_t place_of(const Relations& r, const Value* dictionary, const Value* key) {
    const auto keys = r.keys(dictionary);
    const auto name = r.text(key);
    if (!keys || !name) return -1;
    const auto found = std::find(keys->begin(), keys->end(), *name);
    return found == keys->end() ? -1 : found - keys->begin();
}

/// x[key] = value
void set_item(Relations& r, const Node* node) {
    const auto tensors = r.list(node->inputs()[0]);
    if (!tensors || r.list(node->inputs()[2])) return r.refuse(node, "changes a list that is not known");
    if (const auto keys = r.keys(node->inputs()[0])) {
        const auto name = r.text(node->inputs()[1]);
        if (!name || keys->size() != tensors->size()) return r.refuse(node, "changes a dictionary that is not known");
        if (place_of(r, node->inputs()[0], node->inputs()[1]) < 0) {
            keys->push_back(*name);
            tensors->push_back(r.tensor(node->inputs()[2]));
            return;
        }
    }
    auto index = r.keys(node->inputs()[0]) ? place_of(r, node->inputs()[0], node->inputs()[1])
                                           : r.integer(node->inputs()[1]).value_or(-1);
    if (index < 0 || index >= static_cast<int64_t>(tensors->size()))
        return r.refuse(node, "changes a list at a place that is not known");
    (*tensors)[index] = r.tensor(node->inputs()[2]);
}

void item(Relations& r, const Node* node) {
    const auto tensors = r.list(node->inputs()[0]);
    if (r.keys(node->inputs()[0])) {
        const auto place = place_of(r, node->inputs()[0], node->inputs()[1]);
        if (place < 0 || r.keys(node->inputs()[0])->size() != tensors->size())
            return r.refuse(node, "reads a dictionary that is not known");
        if ((*tensors)[place] != kNoTensor) r.set_tensor(node->output(), (*tensors)[place]);
        return;
    }
    auto index = r.integer(node->inputs()[1]);
    if (tensors && index && *index < 0) *index += static_cast<int64_t>(tensors->size());
    if (!tensors || !index || *index < 0 || *index >= static_cast<int64_t>(tensors->size()))
        return r.refuse(node, "reads a list that is not known");
    if ((*tensors)[*index] != kNoTensor) r.set_tensor(node->output(), (*tensors)[*index]);
}

void append(Relations& r, const Node* node) {
    const auto tensors = r.list(node->inputs()[0]);
    if (!tensors) return r.refuse(node, "extends a list that is not known");
    tensors->push_back(r.tensor(node->inputs()[1]));
    if (!node->outputs().empty()) r.set_list(node->output(), tensors);
}

/// list(x): a copy
void copy(Relations& r, const Node* node) {
    const auto tensors = r.list(node->inputs()[0]);
    if (!tensors) return r.refuse(node, "copies a list that is not known");
    r.set_list(node->output(), std::make_shared<std::vector<TensorId>>(*tensors));
}

}  // namespace

const RuleTable& join_rules() {
    static const RuleTable kTable = {
        {"aten::__getitem__", {item}},
        {"aten::_set_item", {set_item}},
        {"aten::append", {append}},
        {"aten::cat", {cat}},
        {"aten::concat", {cat}},
        {"aten::dict", {construct_dictionary}},
        {"aten::list", {copy}},
        {"aten::stack", {stack}},
        {"prim::DictConstruct", {construct_dictionary}},
        {"prim::ListConstruct", {construct}},
        {"prim::ListUnpack", {unpack}},
        {"prim::TupleConstruct", {construct}},
        {"prim::TupleIndex", {item}},
        {"prim::TupleUnpack", {unpack}},
    };
    return kTable;
}

}  // namespace coppice::prune
