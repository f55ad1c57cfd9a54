// Linear layers of one input become one: the weights below one another, the output cut into what each gave. Layers of
// quantize.dynamic too, whose input is then rounded once.
#include <coppice/dataflow.h>
#include <coppice/deploy.h>
#include <coppice/graph.h>
#include <coppice/run_operator.h>
#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>

#include <map>

namespace coppice {
namespace {

using namespace torch::jit;

struct Member {
    Node* node;
    at::Tensor weight;  // [out, in], floating-point or qint8
    std::optional<at::Tensor> bias;

    bool is_int8() const { return node->kind() != aten::linear; }
};

bool is_dynamic(const Node* node) {
    const std::string op = node->kind().toQualString();
    return op == "quantized::linear_dynamic" || op == "quantized::linear_relu_dynamic";
}

std::optional<Member> float_member(const Model& model, Node* node) {
    const auto layer = as_linear(node);
    if (!layer || node->kind() != aten::linear || layer->weight_transposed) return std::nullopt;
    const auto weight = parameter_of(model, layer->weight);
    if (!weight || weight->dim() != 2 || !weight->is_floating_point() || weight->layout() != at::kStrided)
        return std::nullopt;
    Member result{node, *weight, std::nullopt};
    if (layer->has_bias) {
        result.bias = parameter_of(model, layer->bias);
        if (!result.bias) return std::nullopt;
    }
    return result;
}

std::optional<Member> int8_member(const Model& model, Node* node) {
    const auto name = attribute_name(node->input(1));
    if (!name || !constant_of(node->input(2))) return std::nullopt;
    const auto parts = run_operator("quantized::linear_unpack", {get_attribute(model, *name)});
    Member result{node, parts.at(0).toTensor(), std::nullopt};
    if (result.weight.qscheme() != at::kPerChannelAffine) return std::nullopt;
    if (!parts.at(1).isNone()) result.bias = parts.at(1).toTensor();
    return result;
}

// What can be merged: a layer with a weight that nothing else reads, on an input that nothing changes in place.
std::optional<Member> member(const Model& model, const AliasDb& aliases, const std::map<std::string, int>& reads,
                             Node* node) {
    const bool int8 = is_dynamic(node);
    if (!int8 && node->kind() != aten::linear) return std::nullopt;
    const auto weight = attribute_name(node->input(1));
    // Changed in place under any name, the input would not be the same for all.
    if (!weight || reads.at(*weight) > 1 || aliases.hasWriters(node->input(0))) return std::nullopt;
    return int8 ? int8_member(model, node) : float_member(model, node);
}

bool together(const Member& a, const Member& b) {
    if (a.node->kind() != b.node->kind() || a.node->input(0) != b.node->input(0) ||
        a.node->owningBlock() != b.node->owningBlock())
        return false;
    if (a.is_int8()) return *constant_of(a.node->input(2)) == *constant_of(b.node->input(2));
    return a.weight.scalar_type() == b.weight.scalar_type() && a.weight.requires_grad() == b.weight.requires_grad();
}

at::Tensor joined(const std::vector<at::Tensor>& weights) {
    if (!weights[0].is_quantized()) return at::cat(weights);
    std::vector<at::Tensor> integers, scales, zeros;
    for (const auto& weight : weights) {
        integers.push_back(weight.int_repr());
        scales.push_back(weight.q_per_channel_scales());
        zeros.push_back(weight.q_per_channel_zero_points());
    }
    return at::_make_per_channel_quantized_tensor(at::cat(integers), at::cat(scales), at::cat(zeros), 0);
}

// The parts of a merged output are views with the strides of the whole, where each layer gave a tensor of its own.
class Outputs {
public:
    Outputs(const Graph& graph, const AliasDb& aliases) : graph_(graph), aliases_(aliases) {
        static const std::set<std::string> kReadStrides = {
            "aten::_reshape_alias", "aten::as_strided",      "aten::as_strided_",
            "aten::data_ptr",       "aten::is_contiguous",   "aten::resize_",
            "aten::set_",           "aten::storage_offset",  "aten::stride",
            "aten::view",           "aten::view_as_complex", "aten::view_as_real"};
        for (Node* node : all_nodes(graph)) {
            if (views_shape(node))
                views_.push_back(node);
            else if (kReadStrides.count(node->kind().toQualString()))
                readers_.push_back(node);
        }
    }

    /// Whether a copy has to take the part's place: it is handed out, its strides are read, or it is written into.
    bool needs_memory(Value* part) const {
        const auto outputs = graph_.outputs();
        return aliases_.hasWriters(part) ||
               std::any_of(
                   outputs.begin(), outputs.end(),
                   [&](const Value* output) { return aliases_.mayContainAlias(const_cast<Value*>(output), part); }) ||
               std::any_of(readers_.begin(), readers_.end(),
                           [&](const Node* node) { return aliases_.mayAlias(node->input(0), part); });
    }

    /// The views of it, which need not exist of a part.
    std::vector<Node*> views(const Value* part) const {
        std::vector<Node*> found;
        for (Node* node : views_)
            if (aliases_.mayAlias(node->input(0), part)) found.push_back(node);
        return found;
    }

private:
    const Graph& graph_;
    const AliasDb& aliases_;
    std::vector<Node*> views_, readers_;
};

// Before anything is edited: the alias analysis is of the graph as it is.
struct Group {
    std::vector<Member> members;
    std::vector<bool> copied;
};

void merge(Model& model, const Group& group) {
    const auto& members = group.members;
    std::vector<at::Tensor> weights, biases;
    std::vector<int64_t> sizes;
    bool biased = false;
    for (const auto& one : members) {
        weights.push_back(one.weight);
        sizes.push_back(one.weight.size(0));
        const auto options = one.is_int8() ? at::TensorOptions(at::kFloat) : one.weight.options();
        biases.push_back(one.bias ? *one.bias : at::zeros({one.weight.size(0)}, options));
        biased = biased || one.bias;
    }
    Node* first = members.front().node;
    const auto name = *attribute_name(first->input(1));
    const auto owner = name.substr(0, name.rfind('.') + 1);
    auto& graph = *model.graph();
    Value* whole = nullptr;
    torch::NoGradGuard no_grad;
    const WithInsertPoint before(first);
    if (members.front().is_int8()) {
        const auto content = run_operator("quantized::linear_prepack",
                                          {joined(weights), biased ? c10::IValue(at::cat(biases)) : c10::IValue()})
                                 .at(0);
        Value* packed =
            read_attribute(model, add_attribute(model, owner + "merged_packed", content, Role::kAttribute), first);
        // The inputs are read now: a layer that was merged gives another value than it did.
        whole = graph.insert(first->kind(), {first->input(0), packed, first->input(2)});
    } else {
        const bool trains = members.front().weight.requires_grad();
        const auto stored = [&](const std::string& kind, const std::vector<at::Tensor>& parts) {
            auto content = joined(parts).detach().set_requires_grad(trains);
            return read_attribute(model, add_attribute(model, owner + "merged_" + kind, content, Role::kParameter),
                                  first);
        };
        Value* weight = stored("weight", weights);
        Value* bias = biased ? stored("bias", biases) : graph.insertConstant(c10::IValue());
        whole = graph.insert(aten::linear, {first->input(0), weight, bias});
    }
    whole->node()->setScope(first->scope());
    whole->node()->setSourceRange(first->sourceRange());
    Value* parts = graph.insert(c10::Symbol::aten("split_with_sizes"),
                                {whole, graph.insertConstant(sizes), graph.insertConstant(int64_t{-1})});
    Node* unpack = graph.insertNode(graph.createListUnpack(parts, members.size()));
    for (size_t i = 0; i < members.size(); ++i) {
        Value* old = members[i].node->output();
        Value* part = unpack->output(i);
        part->setType(old->type());
        if (group.copied[i])
            part =
                graph.insert(aten::clone, {part}, {NamedValue("memory_format", int64_t(at::MemoryFormat::Contiguous))});
        old->replaceAllUsesWith(part);
    }
    for (const auto& one : members) one.node->destroy();
}

}  // namespace

int merge_linear(Model& model, const Inputs& example) {
    std::vector<Group> groups;  // of one input, block and kind of weight, in the order of the graph
    std::set<Node*> views;
    {
        const AliasDb aliases(model.graph());
        std::map<std::string, int> reads;  // a weight that several layers share stays shared
        for (Node* node : all_nodes(*model.graph()))
            for (const Value* value : node->inputs())
                if (const auto name = attribute_name(value)) ++reads[*name];
        for (Node* node : all_nodes(*model.graph()))
            if (auto found = member(model, aliases, reads, node)) {
                auto group = std::find_if(groups.begin(), groups.end(),
                                          [&](const auto& g) { return together(g.members[0], *found); });
                if (group == groups.end()) group = groups.emplace(groups.end());
                group->members.push_back(std::move(*found));
            }
        groups.erase(std::remove_if(groups.begin(), groups.end(), [](const auto& g) { return g.members.size() < 2; }),
                     groups.end());
        const Outputs outputs(*model.graph(), aliases);
        for (auto& group : groups)
            for (const auto& one : group.members) {
                group.copied.push_back(outputs.needs_memory(one.node->output()));
                if (group.copied.back()) continue;
                for (Node* view : outputs.views(one.node->output())) views.insert(view);
            }
    }
    int merged = 0;
    for (const auto& group : groups) {
        merge(model, group);
        merged += static_cast<int>(group.members.size());
    }
    for (Node* view : views) relax_view(*model.graph(), view);
    if (merged) {
        EliminateDeadCode(model.graph());  // reads of the separate weights
        remove_unused_attributes(model);
        model.refresh();
        verify(model, example, "deploy.merge_linear");
    }
    return merged;
}

}  // namespace coppice
