// Operators that take a part: slices, splits, selections, indexing.
//
// A cut rewrites what encodes a place along a dimension that got narrower: slice bounds, split sizes, constant lists of
// places. chunk and split by one size become split_with_sizes, as the parts may lose different numbers of channels.
#include "groups/relations.h"

namespace coppice::prune {

using namespace torch::jit;

namespace {

// ------------------------------------------------------------------------------------------------------------- slices

/// Ties y = x[begin : begin + size(y)] along `dim`, all other dimensions one to one.
void tie_part(Relations& r, TensorId x, TensorId y, int64_t dim, int64_t begin, int64_t step = 1) {
    for (int64_t d = 0; d < r.rank(x); ++d) {
        if (d != dim) {
            r.tie(x, d, y, d);
            continue;
        }
        for (int64_t i = 0; i < r.size(y, d); ++i) r.tie(x, d, begin + i * step, y, d, i);
        if (r.size(y, d) < r.size(x, d)) r.part(y, d);
    }
}

int64_t clamp_bound(int64_t bound, int64_t size) {
    return std::clamp<int64_t>(bound < 0 ? bound + size : bound, 0, size);
}

void slice(Relations& r, const Node* node) {
    if (!node->output()->type()->isSubtypeOf(*c10::TensorType::get())) {  // of a list
        const auto tensors = r.list(node->inputs()[0]);
        if (!tensors) return r.refuse(node, "slices a list that is not known");
        const auto size = static_cast<int64_t>(tensors->size());
        const auto step = r.integer(node->inputs()[3]).value_or(1);
        const auto begin = clamp_bound(r.integer(node->inputs()[1]).value_or(0), size);
        const auto end = clamp_bound(r.integer(node->inputs()[2]).value_or(size), size);
        auto part = std::make_shared<std::vector<TensorId>>();
        for (int64_t i = begin; i < end; i += std::max<int64_t>(step, 1)) part->push_back((*tensors)[i]);
        r.set_list(node->output(), part);
        return;
    }
    const TensorId x = r.input(node, 0), y = r.output(node);
    const auto given = r.integer(node->inputs()[1]), step = r.integer(node->inputs()[4]);
    if (x == kNoTensor || y == kNoTensor || !given || !step) return r.refuse(node, "has bounds that are not known");
    const int64_t dim = r.wrap(x, *given);
    const auto begin = r.is_none(node->inputs()[2]) ? std::optional<int64_t>(0) : r.integer(node->inputs()[2]);
    if (!begin) return r.refuse(node, "has bounds that are not known");
    if (*step != 1) r.freeze(x, dim, "is read in steps by " + r.name_of(node));
    tie_part(r, x, y, dim, clamp_bound(*begin, r.size(x, dim)), *step);
}

void edit_slice(Cutter& cut, const Node* before, Node* after) {
    const TensorId x = cut.input(before, 0), y = cut.output(before);
    if (x == kNoTensor || y == kNoTensor) return;
    const auto& r = cut.relations();
    const int64_t dim = r.wrap(x, *r.integer(before->inputs()[1]));
    const auto index_of = [&](size_t input, int64_t otherwise) -> int64_t {
        const auto value = cut.evaluate(before->inputs()[input], true);
        return value && value->isInt() ? value->toInt() : otherwise;
    };
    // Bounds as they were, and as they would come out in the copy if nothing is done.
    const int64_t size = cut.old_size(x, dim), new_size = cut.new_size(x, dim);
    const int64_t begin = clamp_bound(r.integer(before->inputs()[2]).value_or(0), size);
    const int64_t end = begin + r.size(y, dim) * *r.integer(before->inputs()[4]);
    const int64_t new_begin = cut.kept_between(x, dim, 0, begin);
    const int64_t new_end = new_begin + cut.kept_between(x, dim, begin, std::min(end, size));
    if (!cut.touched(x, dim) && new_begin == begin) {
        // Bounds may be computed from a width although this dimension keeps its own: then they must not follow.
        for (const size_t input : {2, 3}) {
            const auto was = cut.evaluate(before->inputs()[input], false),
                       now = cut.evaluate(before->inputs()[input], true);
            if (was && now && was->isInt() && now->isInt() && was->toInt() != now->toInt())
                cut.set_constant(after, input, *was);
        }
        return;
    }
    const bool begin_none = r.is_none(before->inputs()[2]), end_none = r.is_none(before->inputs()[3]);
    if (clamp_bound(begin_none ? 0 : index_of(2, -1), new_size) != new_begin || (!begin_none && index_of(2, -1) < 0))
        cut.set_constant(after, 2, new_begin);
    const int64_t seen_end = end_none ? new_size : clamp_bound(index_of(3, 0), new_size);
    if (seen_end != new_end || (!end_none && index_of(3, 0) < 0)) cut.set_constant(after, 3, new_end);
}

/// narrow(x, dim, start, length)
void narrow(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0), y = r.output(node);
    const auto given = r.integer(node->inputs()[1]), begin = r.integer(node->inputs()[2]);
    if (x == kNoTensor || y == kNoTensor || !given || !begin) return r.refuse(node, "has bounds that are not known");
    const int64_t dim = r.wrap(x, *given);
    tie_part(r, x, y, dim, clamp_bound(*begin, r.size(x, dim)));
}

void edit_narrow(Cutter& cut, const Node* before, Node* after) {
    const TensorId x = cut.input(before, 0), y = cut.output(before);
    const auto& r = cut.relations();
    const int64_t dim = r.wrap(x, *r.integer(before->inputs()[1]));
    const int64_t begin = clamp_bound(*r.integer(before->inputs()[2]), r.size(x, dim));
    const int64_t new_begin = cut.kept_between(x, dim, 0, begin);
    const int64_t new_length = cut.kept_between(x, dim, begin, begin + r.size(y, dim));
    for (const auto& [input, needed] : {std::pair<size_t, int64_t>{2, new_begin}, {3, new_length}}) {
        const auto now = cut.evaluate(before->inputs()[input], true);
        if (!now || !now->isInt() || now->toInt() != needed) cut.set_constant(after, input, needed);
    }
}

/// select(x, dim, index): one index of `dim`
void select(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0), y = r.output(node);
    const auto given = r.integer(node->inputs()[1]);
    if (x == kNoTensor || y == kNoTensor || !given) return r.refuse(node, "selects from a dimension that is not known");
    const int64_t selected = r.wrap(x, *given);
    r.freeze(x, selected, "is selected from by " + r.name_of(node));
    for (int64_t dim = 0; dim < r.rank(x); ++dim)
        if (dim != selected) r.tie(x, dim, y, dim < selected ? dim : dim - 1);
}

/// Ties y = x[places] along `dim`, a permutation of channels, say: each index of y to where it comes from.
void tie_places(Relations& r, TensorId x, TensorId y, int64_t dim, const std::vector<int64_t>& places) {
    for (int64_t d = 0; d < r.rank(x); ++d)
        if (d != dim) r.tie(x, d, y, d);
    for (size_t i = 0; i < places.size(); ++i) r.tie(x, dim, places[i], y, dim, static_cast<int64_t>(i));
    const std::set<int64_t> read(places.begin(), places.end());
    if (static_cast<int64_t>(read.size()) < r.size(x, dim)) r.part(y, dim);
}

/// Where those of `places` that stay are in what is left of x.
at::Tensor places_left(const Cutter& cut, TensorId x, int64_t dim, const std::vector<int64_t>& places) {
    std::vector<int64_t> before = {0};  // of each index: how many in front of it stay
    for (int64_t i = 0; i < cut.old_size(x, dim); ++i)
        before.push_back(before.back() + cut.kept_between(x, dim, i, i + 1));
    std::vector<int64_t> left;
    for (const int64_t place : places)
        if (before[place + 1] > before[place]) left.push_back(before[place]);
    return at::tensor(left, at::kLong);
}

/// The places that `by` picks from `dim` of an activation; nullopt where they may change. Tables that are looked up by
/// constants (relative positions) keep their entries.
std::optional<std::vector<int64_t>> constant_places(const Relations& r, const Node* node, TensorId x, int64_t dim,
                                                    const Value* by) {
    if (node->inputs()[0]->node()->kind() == prim::GetAttr) return std::nullopt;
    return r.constant_places(by, r.size(x, dim));
}

/// index_select(x, dim, indices)
void index_select(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0), y = r.output(node);
    const auto given = r.integer(node->inputs()[1]);
    if (x == kNoTensor || y == kNoTensor || !given) return r.refuse(node, "selects from a dimension that is not known");
    const int64_t selected = r.wrap(x, *given);
    if (const auto places = constant_places(r, node, x, selected, node->inputs()[2]))
        return tie_places(r, x, y, selected, *places);
    r.freeze(x, selected, "is selected from by " + r.name_of(node));
    r.freeze(y, selected, "is selected by " + r.name_of(node));
    r.freeze_all(r.input(node, 2), "indexes in " + r.name_of(node));
    for (int64_t dim = 0; dim < r.rank(x); ++dim)
        if (dim != selected) r.tie(x, dim, y, dim);
}

// before  index_select(x, 1, [3, 0, 2, 1])
// after   index_select(x, 1, [2, 0, 1]), without channel 2 of x; fires when the dimension got narrower
void edit_index_select(Cutter& cut, const Node* before, Node* after) {
    const auto& r = cut.relations();
    const TensorId x = cut.input(before, 0);
    const auto given = r.integer(before->inputs()[1]);
    if (x == kNoTensor || !given || !cut.touched(x, *given)) return;
    const int64_t dim = r.wrap(x, *given);
    const Value* by = before->inputs()[2];
    const auto places = constant_places(r, before, x, dim, by);
    if (!places) cut.fail(before, "selects from a dimension that got narrower");
    const auto left = places_left(cut, x, dim, *places);
    if (!cut.set_attribute(by, left)) cut.set_constant(after, 2, left);
}

/// The position of the only tensor of an index, -1 where there are several or none.
int64_t only_index(const Node* list) {
    int64_t only = -1;
    for (size_t i = 0; i < list->inputs().size(); ++i) {
        if (list->inputs()[i]->mustBeNone()) continue;
        if (only >= 0) return -1;
        only = static_cast<int64_t>(i);
    }
    return only;
}

/// x[:, i, j]: index tensors side by side replace their dimensions by their own
void index(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0), y = r.output(node);
    const Node* list = node->inputs()[1]->node();
    if (x == kNoTensor || y == kNoTensor || list->kind() != prim::ListConstruct)
        return r.refuse(node, "indexes by a list that is not known");
    if (const int64_t dim = only_index(list); dim >= 0)
        if (const auto places = constant_places(r, node, x, dim, list->inputs()[dim]))
            return tie_places(r, x, y, dim, *places);
    std::vector<int64_t> indexed;
    for (size_t i = 0; i < list->inputs().size(); ++i) {
        const TensorId by = r.tensor(list->inputs()[i]);
        if (by == kNoTensor) continue;
        r.freeze_all(by, "indexes in " + r.name_of(node));
        indexed.push_back(static_cast<int64_t>(i));
    }
    if (indexed.empty()) return r.tie_all(x, y);
    const auto count = static_cast<int64_t>(indexed.size());
    if (indexed.back() - indexed.front() + 1 != count)
        return r.refuse(node, "indexes dimensions that are not neighbours");
    for (const int64_t dim : indexed) r.freeze(x, dim, "is indexed by " + r.name_of(node));
    // A mask takes as many dimensions of x as it has itself; then the ranks do not add up as below.
    const int64_t added = r.rank(y) - (r.rank(x) - count);
    for (const int64_t dim : indexed)
        if (r.rank(r.tensor(list->inputs()[dim])) > added) return r.refuse(node, "indexes by a mask");
    for (int64_t i = 0; i < added; ++i) r.freeze(y, indexed.front() + i, "is indexed by " + r.name_of(node));
    for (int64_t dim = 0; dim < r.rank(x); ++dim) {
        if (dim < indexed.front()) r.tie(x, dim, y, dim);
        if (dim > indexed.back()) r.tie(x, dim, y, dim - count + added);
    }
}

// before  index(x, [None, [3, 0, 2, 1]])
// after   index(x, [None, [2, 0, 1]]), without channel 2 of x; fires when the dimension got narrower
void edit_index(Cutter& cut, const Node* before, Node* after) {
    const auto& r = cut.relations();
    const TensorId x = cut.input(before, 0);
    const Node* list = before->inputs()[1]->node();
    const int64_t dim = list->kind() == prim::ListConstruct ? only_index(list) : -1;
    if (x == kNoTensor || dim < 0 || !cut.touched(x, dim)) return;
    const Value* by = list->inputs()[dim];
    const auto places = constant_places(r, before, x, dim, by);
    if (!places) cut.fail(before, "indexes a dimension that got narrower");
    const auto left = places_left(cut, x, dim, *places);
    if (cut.set_attribute(by, left)) return;
    auto& graph = *after->owningGraph();
    WithInsertPoint guard(after);
    std::vector<Value*> entries = after->inputs()[1]->node()->inputs().vec();
    entries[dim] = graph.insertConstant(left);
    Node* fresh = graph.insertNode(graph.create(prim::ListConstruct, entries, 1));
    fresh->output()->setType(after->inputs()[1]->type());
    after->replaceInput(1, fresh->output());
}

/// gather(x, dim, index): picks along one dimension, the shape is the index's
void gather(Relations& r, const Node* node) {
    r.freeze_node(node, "is gathered by " + r.name_of(node));
}

/// index_add(x, dim, indices, source): rows of `source` are added to rows of `x`
void index_add(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0), source = r.input(node, 3), y = r.output(node);
    const auto given = r.integer(node->inputs()[1]);
    if (x == kNoTensor || source == kNoTensor || y == kNoTensor || !given || r.rank(x) != r.rank(source))
        return r.refuse(node, "adds to a dimension that is not known");
    const int64_t indexed = r.wrap(x, *given);
    r.tie_all(x, y);
    r.freeze(x, indexed, "is indexed by " + r.name_of(node));
    r.freeze(source, indexed, "is indexed by " + r.name_of(node));
    r.freeze_all(r.input(node, 2), "indexes in " + r.name_of(node));
    for (int64_t dim = 0; dim < r.rank(x); ++dim)
        if (dim != indexed) r.tie(x, dim, source, dim);
}

/// embedding(weight [entries, width], indices)
void embedding(Relations& r, const Node* node) {
    const TensorId w = r.input(node, 0), indices = r.input(node, 1), y = r.output(node);
    if (w == kNoTensor || y == kNoTensor || indices == kNoTensor) return r.refuse(node, "was not reached");
    r.freeze(w, 0, "holds the entries of " + r.name_of(node));
    r.tie(w, 1, y, -1);
    for (int64_t dim = 0; dim < r.rank(indices); ++dim) r.tie(indices, dim, y, dim);
    r.produces(node->inputs()[0], 1, node);
}

// ------------------------------------------------------------------------------------------------------------- splits

struct Parts {
    TensorId x = kNoTensor;
    int64_t dim = 0;
    std::vector<int64_t> sizes;
};

/// What a split of any form does, from the shapes seen.
std::optional<Parts> parts_of(const Relations& r, const Node* node, TensorId x) {
    if (x == kNoTensor) return std::nullopt;
    Parts parts;
    parts.x = x;
    if (node->kind() == prim::ConstantChunk) {
        parts.dim = r.wrap(x, node->i(attr::dim));
        const int64_t size = r.size(x, parts.dim), each = (size + node->i(attr::chunks) - 1) / node->i(attr::chunks);
        for (int64_t begin = 0; begin < size; begin += each) parts.sizes.push_back(std::min(each, size - begin));
        return parts;
    }
    const auto dim = r.integer(node->inputs()[2]);
    if (!dim) return std::nullopt;
    parts.dim = r.wrap(x, *dim);
    const int64_t size = r.size(x, parts.dim);
    const bool chunks = node->kind() == aten::chunk || node->kind() == aten::unsafe_chunk;
    const bool by_list = node->inputs()[1]->type()->kind() == c10::TypeKind::ListType;
    if (by_list) {
        const auto sizes = r.integers(node->inputs()[1]);
        if (!sizes) return std::nullopt;
        parts.sizes = *sizes;
        return parts;
    }
    const auto number = r.integer(node->inputs()[1]);
    if (!number || *number <= 0) return std::nullopt;
    const int64_t each = chunks ? (size + *number - 1) / *number : *number;
    for (int64_t begin = 0; begin < size; begin += each) parts.sizes.push_back(std::min(each, size - begin));
    return parts;
}

void split(Relations& r, const Node* node) {
    const auto parts = parts_of(r, node, r.input(node, 0));
    if (!parts) return r.refuse(node, "splits at places that are not known");
    auto tensors = std::make_shared<std::vector<TensorId>>();
    int64_t begin = 0;
    for (size_t i = 0; i < parts->sizes.size(); ++i) {
        auto shape = r.shape(parts->x);
        shape[parts->dim] = parts->sizes[i];
        // prim::ConstantChunk has the parts as outputs of its own.
        const bool direct = node->kind() == prim::ConstantChunk;
        const TensorId part = direct ? r.output(node, i) : r.make_tensor(shape);
        if (part == kNoTensor) return r.refuse(node, "was not reached");
        tie_part(r, parts->x, part, parts->dim, begin);
        tensors->push_back(part);
        begin += parts->sizes[i];
    }
    if (node->kind() != prim::ConstantChunk) r.set_list(node->output(), tensors);
}

// before  chunk(x, 2, 1) or split(x, 32, 1) or split_with_sizes(x, [32, 32], 1)
// after   split_with_sizes(x, [20, 28], 1); fires when the dimension got narrower
void edit_split(Cutter& cut, const Node* before, Node* after) {
    const auto& r = cut.relations();
    const auto parts = parts_of(r, before, cut.input(before, 0));
    if (!parts) return;
    std::vector<int64_t> sizes;
    int64_t begin = 0;
    for (const int64_t size : parts->sizes) {
        sizes.push_back(cut.kept_between(parts->x, parts->dim, begin, begin + size));
        begin += size;
    }
    if (before->kind() != prim::ConstantChunk) {
        // Sizes may follow by themselves (split(x, x.size(1) // 2)) or be as they were.
        const auto now = cut.evaluate(before->inputs()[1], true);
        if (now && now->isIntList() && now->toIntVector() == sizes) return;
        if (now && now->isInt()) {
            const int64_t size = cut.new_size(parts->x, parts->dim);
            const bool chunks = before->kind() == aten::chunk || before->kind() == aten::unsafe_chunk;
            const int64_t each = std::max<int64_t>(chunks ? (size + now->toInt() - 1) / now->toInt() : now->toInt(), 1);
            std::vector<int64_t> found;
            for (int64_t at = 0; at < size; at += each) found.push_back(std::min(each, size - at));
            if (found == sizes) return;
        }
        if (now && now->isIntList()) return cut.set_sizes(before, after, 1, sizes);
    } else {
        bool same = true;
        const int64_t size = cut.new_size(parts->x, parts->dim);
        const int64_t each = (size + before->i(attr::chunks) - 1) / before->i(attr::chunks);
        for (size_t i = 0; i < sizes.size(); ++i)
            same &= sizes[i] == std::min(each, size - static_cast<int64_t>(i) * each);
        if (same) return;
    }
    auto* graph = after->owningGraph();
    WithInsertPoint guard(after);
    Value* list = graph->insertConstant(c10::IValue(sizes));
    Value* dim = graph->insertConstant(parts->dim);
    Node* replacement = graph->insertNode(graph->create(aten::split_with_sizes, {after->input(0), list, dim}, 1));
    replacement->copyMetadata(after);
    replacement->output()->setType(c10::ListType::ofTensors());
    if (before->kind() == prim::ConstantChunk) {
        Node* unpacked = graph->insertNode(graph->createListUnpack(replacement->output(), sizes.size()));
        for (size_t i = 0; i < sizes.size(); ++i) after->outputs()[i]->replaceAllUsesWith(unpacked->outputs()[i]);
    } else {
        after->output()->replaceAllUsesWith(replacement->output());
    }
}

/// unbind(x, dim): a list of x[..., i, ...]
void unbind(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0);
    const auto given = r.integer(node->inputs()[1]);
    if (x == kNoTensor || !given) return r.refuse(node, "splits a dimension that is not known");
    const int64_t dim = r.wrap(x, *given);
    r.freeze(x, dim, "is selected from by " + r.name_of(node));
    auto shape = r.shape(x);
    shape.erase(shape.begin() + dim);
    auto tensors = std::make_shared<std::vector<TensorId>>();
    for (int64_t i = 0; i < r.size(x, dim); ++i) {
        const TensorId part = r.make_tensor(shape);
        for (int64_t d = 0; d < r.rank(x); ++d)
            if (d != dim) r.tie(x, d, part, d < dim ? d : d - 1);
        tensors->push_back(part);
    }
    r.set_list(node->output(), tensors);
}

}  // namespace

const RuleTable& split_rules() {
    static const RuleTable kTable = {
        {"aten::chunk", {split, edit_split}},
        {"aten::embedding", {embedding}},
        {"aten::gather", {gather}},
        {"aten::index", {index, edit_index}},
        {"aten::index_add", {index_add}},
        {"aten::index_copy", {index_add}},
        {"aten::index_select", {index_select, edit_index_select}},
        {"aten::narrow", {narrow, edit_narrow}},
        {"aten::select", {select}},
        {"aten::slice", {slice, edit_slice}},
        {"aten::split", {split, edit_split}},
        {"aten::split_with_sizes", {split, edit_split}},
        {"aten::unbind", {unbind}},
        {"aten::unsafe_chunk", {split, edit_split}},
        {"aten::unsafe_split", {split, edit_split}},
        {"aten::unsafe_split_with_sizes", {split, edit_split}},
        {"prim::ConstantChunk", {split, edit_split}},
    };
    return kTable;
}

}  // namespace coppice::prune
