// Lists of tensors that grow (DenseNet-like blocks: outputs.append(x), cat(outputs, 1)) become a list per reader, so
// that each tensor has a producer and readers that are seen.
#include <coppice/graph.h>

#include "plan/plan.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

/// Index of a constant `list[i]`; nullopt when it is computed or lies outside.
std::optional<size_t> element_of(const Node* node, size_t size) {
    const auto index = constant_of(node->input(1));
    if (!index || !index->isInt()) return std::nullopt;
    const int64_t i = index->toInt() < 0 ? index->toInt() + static_cast<int64_t>(size) : index->toInt();
    if (i < 0 || i >= static_cast<int64_t>(size)) return std::nullopt;
    return static_cast<size_t>(i);
}

/// Readers of a list in order; empty unless all are known and in the list's own block.
std::vector<Node*> readers_of(Node* list) {
    static const std::set<Symbol> known = {aten::append, aten::__getitem__, aten::cat,
                                           aten::stack,  aten::len,         prim::ListUnpack};
    std::vector<Node*> readers;
    for (const auto& use : list->output()->uses()) {
        const bool first = use.offset == 0 && use.user->owningBlock() == list->owningBlock();
        if (!first || !known.count(use.user->kind())) return {};
        if (use.user->kind() == aten::append && use.user->output()->hasUses()) return {};
        readers.push_back(use.user);
    }
    std::sort(readers.begin(), readers.end(), [](const Node* a, const Node* b) { return a->isBefore(b); });
    size_t size = list->inputs().size();
    bool grows = false;
    for (const Node* reader : readers) {
        if (reader->kind() == aten::append) {
            ++size;
            grows = true;
        } else if (reader->kind() == aten::__getitem__ && !element_of(reader, size)) {
            return {};
        }
    }
    return grows ? readers : std::vector<Node*>();
}

}  // namespace

void settle_lists(Model& model) {
    auto graph = model.graph();
    std::vector<Node*> lists;  // readers go on the way
    for (Node* node : all_nodes(*graph))
        if (node->kind() == prim::ListConstruct && node->output()->type()->isSubtypeOf(*ListType::ofTensors()))
            lists.push_back(node);
    for (Node* list : lists) {
        auto elements = list->inputs().vec();
        for (Node* reader : readers_of(list)) {
            WithInsertPoint guard(reader);
            if (reader->kind() == aten::append) {
                elements.push_back(reader->input(1));
                reader->destroy();
            } else if (reader->kind() == aten::__getitem__) {
                reader->output()->replaceAllUsesWith(elements[*element_of(reader, elements.size())]);
                reader->destroy();
            } else if (reader->kind() == aten::len) {
                reader->output()->replaceAllUsesWith(graph->insertConstant(static_cast<int64_t>(elements.size())));
                reader->destroy();
            } else {
                Node* snapshot = graph->insertNode(graph->createList(c10::TensorType::get(), elements));
                reader->replaceInput(0, snapshot->output());
            }
        }
        if (!list->output()->hasUses()) list->destroy();
    }
    model.refresh();
}

}  // namespace coppice::quantize
