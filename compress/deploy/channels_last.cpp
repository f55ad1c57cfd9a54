#include <coppice/dataflow.h>
#include <coppice/deploy.h>
#include <coppice/graph.h>

namespace coppice {

using namespace torch::jit;

int to_channels_last(Model& model, const Inputs& example) {
    torch::NoGradGuard no_grad;
    const auto graph = model.graph();
    const auto facts = Facts::observe(model, example);
    std::set<std::string> weights;
    for (Node* node : all_nodes(*graph)) {
        const auto conv = as_conv(node);
        if (!conv || conv->dims != 2) continue;
        const auto name = attribute_name(conv->weight);
        const auto weight = parameter_of(model, conv->weight);
        if (name && weight && weight->dim() == 4 && weight->is_floating_point()) weights.insert(*name);
    }
    std::vector<Value*> images;
    for (Value* input : graph->inputs()) {
        const auto* fact = facts.find(input);
        if (fact && fact->is_tensor && fact->shape.size() == 4 && at::isFloatingType(fact->dtype) && input->hasUses())
            images.push_back(input);
    }
    if (weights.empty() || images.empty()) return 0;

    for (const auto& name : weights)
        set_tensor(model, name, get_attribute(model, name).toTensor().contiguous(at::MemoryFormat::ChannelsLast));
    // Before any insertion: the facts know only the values of the graph as it was.
    for (const auto& place : output_places(*graph)) {
        const auto* value = place.user->input(place.offset);
        if (facts.has_shape(value) && facts.shape(value).size() == 4) give_contiguous(*graph, place);
    }
    for (Value* image : images) {
        const auto uses = image->uses();
        WithInsertPoint guard(*graph->nodes().begin());
        Value* const ordered = insert_contiguous(*graph, image, at::MemoryFormat::ChannelsLast);
        for (const auto& use : uses) use.user->replaceInput(use.offset, ordered);
    }
    relax_views(*graph);
    model.refresh();
    return static_cast<int>(weights.size());
}

}  // namespace coppice
