#include <coppice/deploy.h>
#include <coppice/graph.h>

namespace coppice {
namespace {

using namespace torch::jit;

Value* insert_cast(Graph& graph, Value* value, at::ScalarType dtype) {
    return graph.insert(aten::to, {value, static_cast<int64_t>(dtype), false, false, c10::IValue()});
}

// Casts float results back, looked for inside tuples and lists that are made at the end.
void widen_outputs(Graph& graph, Node* user, const Facts& facts) {
    for (size_t i = 0; i < user->inputs().size(); ++i) {
        Value* const value = user->input(i);
        const auto kind = value->node()->kind();
        if ((kind == prim::TupleConstruct || kind == prim::ListConstruct || kind == prim::DictConstruct) &&
            value->uses().size() == 1) {
            widen_outputs(graph, value->node(), facts);
            continue;
        }
        const auto* fact = facts.find(value);
        if (!fact || !fact->is_tensor || fact->dtype != at::kFloat) continue;
        WithInsertPoint guard(user);
        user->replaceInput(i, insert_cast(graph, value, at::kFloat));
    }
}

}  // namespace

int to_bfloat16(Model& model, const Inputs& example) {
    torch::NoGradGuard no_grad;
    const auto graph = model.graph();
    const auto facts = Facts::observe(model, example);
    int converted = 0;
    for (const auto& entry : named_tensors(model)) {
        // Read again: a shared tensor was replaced under all of its names at once.
        const auto tensor = get_attribute(model, entry.name).toTensor();
        if (tensor.scalar_type() != at::kFloat || tensor.layout() != at::kStrided) continue;
        set_tensor(model, entry.name, tensor.to(at::kBFloat16));
        ++converted;
    }
    if (!converted) return 0;
    widen_outputs(*graph, graph->return_node(), facts);
    for (Value* input : graph->inputs()) {
        const auto* fact = facts.find(input);
        if (!fact || !fact->is_tensor || fact->dtype != at::kFloat) continue;
        const auto uses = input->uses();
        WithInsertPoint guard(*graph->nodes().begin());
        Value* const narrow = insert_cast(*graph, input, at::kBFloat16);
        for (const auto& use : uses) use.user->replaceInput(use.offset, narrow);
    }
    model.refresh();
    return converted;
}

}  // namespace coppice
