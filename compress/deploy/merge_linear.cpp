// Linear layers of one input become one: the weights below one another, the output cut into what each gave.
#include <coppice/deploy.h>
#include <coppice/graph.h>
#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>

#include <map>

namespace coppice {
namespace {

using namespace torch::jit;

struct Member {
    LinearView layer;
    at::Tensor weight;  // [out, in]
    std::optional<at::Tensor> bias;
};

// What can be merged: aten::linear with a weight that nothing else reads, on an input that nothing changes in place.
std::optional<Member> member(const Model& model, const AliasDb& aliases, const std::map<std::string, int>& reads,
                             Node* node) {
    const auto layer = as_linear(node);
    if (!layer || node->kind() != aten::linear || layer->weight_transposed) return std::nullopt;
    const auto weight = parameter_of(model, layer->weight);
    if (!weight || !attribute_name(layer->weight) || weight->dim() != 2 || !weight->is_floating_point() ||
        weight->layout() != at::kStrided || reads.at(*attribute_name(layer->weight)) > 1)
        return std::nullopt;
    Member result{*layer, *weight, std::nullopt};
    if (layer->has_bias) {
        result.bias = parameter_of(model, layer->bias);
        if (!result.bias) return std::nullopt;
    }
    // Changed in place under any name, the input would not be the same for all.
    if (aliases.hasWriters(layer->input)) return std::nullopt;
    return result;
}

void merge(Model& model, const std::vector<Member>& members) {
    std::vector<at::Tensor> weights, biases;
    std::vector<int64_t> sizes;
    bool biased = false;
    for (const auto& one : members) {
        weights.push_back(one.weight);
        sizes.push_back(one.weight.size(0));
        biases.push_back(one.bias ? *one.bias : at::zeros({one.weight.size(0)}, one.weight.options()));
        biased = biased || one.bias;
    }
    Node* first = members.front().layer.node;
    const auto stored = [&](const std::string& kind, const std::vector<at::Tensor>& parts) {
        torch::NoGradGuard no_grad;
        const auto name = *attribute_name(members.front().layer.weight);
        const auto owner = name.substr(0, name.rfind('.') + 1);
        const bool trains = members.front().weight.requires_grad();
        auto whole = at::cat(parts).detach().set_requires_grad(trains);
        return read_attribute(model, add_attribute(model, owner + "merged_" + kind, whole, Role::kParameter), first);
    };
    auto& graph = *model.graph();
    Value* weight = stored("weight", weights);
    const WithInsertPoint before(first);
    Value* bias = biased ? stored("bias", biases) : graph.insertConstant(c10::IValue());
    Value* whole = graph.insert(aten::linear, {members.front().layer.input, weight, bias});
    whole->node()->setScope(first->scope());
    whole->node()->setSourceRange(first->sourceRange());
    Value* parts = graph.insert(c10::Symbol::aten("split_with_sizes"),
                                {whole, graph.insertConstant(sizes), graph.insertConstant(int64_t{-1})});
    Node* unpack = graph.insertNode(graph.createListUnpack(parts, members.size()));
    for (size_t i = 0; i < members.size(); ++i) {
        Value* old = members[i].layer.node->output();
        unpack->output(i)->setType(old->type());
        old->replaceAllUsesWith(unpack->output(i));
        members[i].layer.node->destroy();
    }
}

}  // namespace

int merge_linear(Model& model, const Inputs& example) {
    const AliasDb aliases(model.graph());
    std::map<std::string, int> reads;  // a weight that several layers share stays shared
    for (Node* node : all_nodes(*model.graph()))
        for (const Value* value : node->inputs())
            if (const auto name = attribute_name(value)) ++reads[*name];
    std::vector<std::vector<Member>> groups;  // of one input, block and kind of weight, in the order of the graph
    const auto together = [](const Member& a, const Member& b) {
        return a.layer.input == b.layer.input && a.layer.node->owningBlock() == b.layer.node->owningBlock() &&
               a.weight.scalar_type() == b.weight.scalar_type() && a.weight.requires_grad() == b.weight.requires_grad();
    };
    for (Node* node : all_nodes(*model.graph()))
        if (auto found = member(model, aliases, reads, node)) {
            auto group =
                std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return together(g[0], *found); });
            if (group == groups.end()) group = groups.emplace(groups.end());
            group->push_back(std::move(*found));
        }
    int merged = 0;
    for (const auto& members : groups) {
        if (members.size() < 2) continue;
        merge(model, members);
        merged += static_cast<int>(members.size());
    }
    if (merged) {
        EliminateDeadCode(model.graph());  // reads of the separate weights
        remove_unused_attributes(model);
        model.refresh();
        verify(model, example, "deploy.merge_linear");
    }
    return merged;
}

}  // namespace coppice
