#include <coppice/dataflow.h>
#include <coppice/graph.h>

#include <algorithm>
#include <functional>

namespace coppice {

using namespace torch::jit;

std::set<const Value*> dependent_values(const Graph& graph) {
    std::set<const Value*> dependent;
    for (size_t i = 1; i < graph.inputs().size(); ++i) dependent.insert(graph.inputs()[i]);
    const std::function<bool(const torch::jit::Block*)> reads = [&](const torch::jit::Block* block) {
        for (const Node* node : block->nodes()) {
            for (const Value* input : node->inputs())
                if (dependent.count(input)) return true;
            for (const auto* inner : node->blocks())
                if (reads(inner)) return true;
        }
        return false;
    };
    for (const Node* node : graph.nodes()) {
        bool any = std::any_of(node->inputs().begin(), node->inputs().end(),
                               [&](const Value* input) { return dependent.count(input) > 0; });
        for (const auto* inner : node->blocks()) any = any || reads(inner);
        if (any) dependent.insert(node->outputs().begin(), node->outputs().end());
    }
    return dependent;
}

namespace {

void collect_places(Node* user, std::vector<Use>& places) {
    for (size_t i = 0; i < user->inputs().size(); ++i) {
        Value* const value = user->input(i);
        const auto kind = value->node()->kind();
        const bool built_for_this =
            (kind == prim::TupleConstruct || kind == prim::ListConstruct || kind == prim::DictConstruct) &&
            value->uses().size() == 1;
        if (built_for_this)
            collect_places(value->node(), places);
        else if (value->type()->isSubtypeOf(*c10::TensorType::get()))
            places.emplace_back(user, i);
    }
}

}  // namespace

std::vector<Use> output_places(Graph& graph) {
    std::vector<Use> places;
    collect_places(graph.return_node(), places);
    return places;
}

bool views_shape(const Node* node) {
    if (node->kind() == aten::view_as) return true;
    return (node->kind() == aten::view || node->kind() == aten::_unsafe_view) && node->inputs().size() == 2 &&
           node->input(1)->type()->isSubtypeOf(*c10::ListType::ofInts());
}

void relax_view(Graph& graph, Node* view) {
    WithInsertPoint guard(view);
    Value* const sizes = view->kind() == aten::view_as ? graph.insert(aten::size, {view->input(1)}) : view->input(1);
    Value* const reshaped = graph.insert(aten::reshape, {view->input(0), sizes});
    reshaped->copyMetadata(view->output());
    view->output()->replaceAllUsesWith(reshaped);
    view->destroy();
}

void relax_views(Graph& graph) {
    for (Node* node : all_nodes(graph))
        if (views_shape(node)) relax_view(graph, node);
}

Value* insert_contiguous(Graph& graph, Value* value, at::MemoryFormat format) {
    return graph.insert(aten::contiguous, {value}, {NamedValue("memory_format", static_cast<int64_t>(format))});
}

void give_contiguous(Graph& graph, const Use& place) {
    WithInsertPoint guard(place.user);
    place.user->replaceInput(place.offset, insert_contiguous(graph, place.user->input(place.offset)));
}

}  // namespace coppice
