#include <coppice/deploy.h>
#include <coppice/error.h>
#include <coppice/graph.h>

namespace coppice {
namespace {

using namespace torch::jit;

/// How many operators read each attribute, and which tensors sit in more than one attribute.
class Readers {
public:
    explicit Readers(const Model& model) {
        for (const Node* node : all_nodes(*model.graph()))
            if (node->kind() == prim::GetAttr)
                if (const auto name = attribute_name(node->output())) uses_[*name] += node->output()->uses().size();
        std::map<const at::TensorImpl*, int> owners;
        const auto tensors = named_tensors(model);
        for (const auto& entry : tensors) ++owners[entry.tensor.unsafeGetTensorImpl()];
        for (const auto& entry : tensors)
            if (owners[entry.tensor.unsafeGetTensorImpl()] > 1) shared_.insert(entry.name);
    }

    /// One more attribute, that one operator reads.
    void add(const std::string& name) { uses_[name] = 1; }

    bool only_one(const std::string& name) const {
        const auto found = uses_.find(name);
        return found != uses_.end() && found->second == 1 && !shared_.count(name);
    }

private:
    std::map<std::string, size_t> uses_;
    std::set<std::string> shared_;
};

/// The layer a batch norm can be folded into.
struct Target {
    Node* node = nullptr;
    Value *weight = nullptr, *bias = nullptr;
    bool has_bias = false, transposed = false;
    int64_t groups = 1, rank = 2;  ///< rank: dimensions of its output when batched
};

std::optional<Target> target_of(Node* node) {
    if (const auto conv = as_conv(node))
        return Target{node, conv->weight, conv->bias, conv->has_bias, conv->transposed, conv->groups, conv->dims + 2};
    if (node->kind() == aten::linear) {
        const auto linear = as_linear(node);
        return Target{node, linear->weight, linear->bias, linear->has_bias, false, 1, 2};
    }
    return std::nullopt;
}

/// Scripted batch norms ask for the size of their input, which folding does not change.
bool asks_shape(const Node* node) {
    return node->kind() == aten::size || node->kind() == aten::dim;
}

/// Why `norm` is not a fixed scale and shift; empty when it is.
std::string not_fixed(const Model& model, const BatchNormView& norm) {
    if (!norm.tracks_statistics) return "it keeps no running statistics and normalises by each batch";
    bool training = true;
    if (const auto constant = constant_of(norm.training))
        training = constant->toBool();
    else if (const auto name = attribute_name(norm.training))
        training = get_attribute(model, *name).toBool();
    else
        return "whether it trains is computed while running";
    if (training) return "it is in training mode";
    for (const Value* value : {norm.running_mean, norm.running_var})
        if (!parameter_of(model, value)) return "its statistics are computed while running";
    if (norm.affine && (!parameter_of(model, norm.weight) || !parameter_of(model, norm.bias)))
        return "its scale or shift is computed while running";
    return {};
}

std::string cannot_fold(const Model& model, const BatchNormView& norm, const Facts& facts, const Readers& readers,
                        std::optional<Target>& target) {
    if (auto reason = not_fixed(model, norm); !reason.empty()) return reason;
    Node* source = norm.input->node();
    target = target_of(source);
    if (!target) return std::string("its input comes from ") + source->kind().toQualString();
    for (const auto& use : norm.input->uses())
        if (use.user != norm.node && !asks_shape(use.user))
            return "the output of the layer before it is used elsewhere too";
    if (source->owningBlock() != norm.node->owningBlock())
        return "it runs under another condition than the layer before it";
    if (!facts.has_shape(norm.input)) return "the example input does not reach it";
    if (static_cast<int64_t>(facts.shape(norm.input).size()) != target->rank)
        return "it does not normalise the output channels of the layer before it";
    const auto weight = attribute_name(target->weight);
    if (!weight || !parameter_of(model, target->weight))
        return "the weight of the layer before it is computed while running";
    if (!readers.only_one(*weight)) return "the weight \"" + *weight + "\" of the layer before it is shared";
    if (target->has_bias) {
        const auto bias = attribute_name(target->bias);
        if (!bias || !parameter_of(model, target->bias))
            return "the bias of the layer before it is computed while running";
        if (!readers.only_one(*bias)) return "the bias \"" + *bias + "\" of the layer before it is shared";
    }
    return {};
}

void fold(Model& model, const BatchNormView& norm, const Target& target, Readers& readers) {
    const auto get = [&](const Value* value) { return parameter_of(model, value)->detach().to(at::kDouble); };
    const auto weight = get(target.weight);  // [out, in/groups, k...], transposed: [in, out/groups, k...]
    const auto mean = get(norm.running_mean), variance = get(norm.running_var);
    const auto gamma = norm.affine ? get(norm.weight) : at::ones_like(mean);
    const auto beta = norm.affine ? get(norm.bias) : at::zeros_like(mean);
    const auto scale = gamma / (variance + norm.eps).sqrt();  // [out]
    at::Tensor scaled;
    if (target.transposed) {
        auto shape = weight.sizes().vec();
        const int64_t out_per_group = shape[1];
        std::vector<int64_t> grouped{target.groups, shape[0] / target.groups, out_per_group};
        std::vector<int64_t> factor{target.groups, 1, out_per_group};
        for (size_t i = 2; i < shape.size(); ++i) {
            grouped.push_back(shape[i]);
            factor.push_back(1);
        }
        scaled = (weight.reshape(grouped) * scale.reshape(factor)).reshape(shape);
    } else {
        std::vector<int64_t> factor(static_cast<size_t>(weight.dim()), 1);
        factor[0] = weight.size(0);
        scaled = weight * scale.reshape(factor);
    }
    const auto old_bias = target.has_bias ? get(target.bias) : at::zeros_like(mean);
    const auto bias = (old_bias - mean) * scale + beta;
    const auto name = *attribute_name(target.weight);
    const auto dtype = parameter_of(model, target.weight)->scalar_type();
    set_tensor(model, name, scaled.to(dtype));
    if (target.has_bias) {
        set_tensor(model, *attribute_name(target.bias), bias.to(dtype));
    } else {
        const auto dot = name.rfind('.');
        const auto owner = dot == std::string::npos ? std::string() : name.substr(0, dot + 1);
        const auto added = add_attribute(model, owner + "bias", bias.to(dtype), Role::kParameter);
        readers.add(added);
        const auto index = target.node->schema().argumentIndexWithName("bias");
        target.node->replaceInput(static_cast<size_t>(*index), read_attribute(model, added, target.node));
    }
    norm.node->output()->replaceAllUsesWith(target.node->output());
    norm.node->destroy();
}

}  // namespace

int fold_batch_norm(Model& model, const Inputs& example, std::vector<LayerChange>* changes) {
    std::vector<Node*> norms;
    for (Node* node : all_nodes(*model.graph()))
        if (as_batch_norm(node)) norms.push_back(node);
    if (norms.empty()) return 0;
    const LayerNames names(model);
    Readers readers(model);
    const auto facts = Facts::observe(model, example);
    int folded = 0;
    for (Node* node : norms) {
        // Looked at now: a norm in front of it that was folded took its output with it.
        const auto norm = *as_batch_norm(node);
        const auto name = names.of(node);
        std::optional<Target> target;
        const auto reason = cannot_fold(model, norm, facts, readers, target);
        if (reason.empty()) {
            if (folded++ == 0) refuse_other_methods(model, "folding batch norms");
            const auto layer = names.of(target->node);
            fold(model, norm, *target, readers);
            if (changes) changes->push_back({name, "folded", "batch norm", "part of " + layer, ""});
        } else if (changes) {
            changes->push_back({name, "kept", "batch norm", "batch norm", reason});
        }
    }
    if (folded > 0) {
        model.refresh();
        remove_unused_attributes(model);
    }
    return folded;
}

}  // namespace coppice
