#include <coppice/error.h>
#include <coppice/graph.h>
#include <coppice/train.h>
#include <torch/csrc/jit/runtime/interpreter.h>

#include <regex>

namespace coppice {
namespace {

/// Runs `forward` by LibTorch's interpreter directly: operator by operator as in eager mode, with eager autocast and
/// autograd. The profiling executor behind Module::forward makes the first training steps slow and the later ones no
/// faster, and can only be switched off for the whole process.
class ModelTrainable final : public Trainable {
public:
    explicit ModelTrainable(Model model) : model_(std::move(model)), code_(model_.graph(), "forward") {
        // Files saved for inference, and layers made by other stages, come without it.
        for (const auto& parameter : model_.module().named_parameters()) {
            if (parameter.value.layout() != at::kStrided)
                throw InvalidArgument("train", parameter.name + " is stored sparse, and does not train",
                                      "Put prune.csr behind the last training.");
            if (parameter.value.is_floating_point() && parameter.value.is_leaf())
                parameter.value.set_requires_grad(true);
        }
    }

    at::Tensor forward(const Inputs& inputs) override {
        if (!places_.empty()) return forward_watched(inputs);
        torch::jit::Stack stack = {model_.module()._ivalue()};
        stack.insert(stack.end(), inputs.begin(), inputs.end());
        model_.module().get_method("forward").function().getSchema().checkAndNormalizeInputs(stack);
        torch::jit::InterpreterState(code_).run(stack);
        return first_tensor(stack.front());
    }

    std::vector<std::string> watch(const std::vector<std::string>& layers) override {
        const LayerNames names(model_);
        const std::vector<std::regex> patterns(layers.begin(), layers.end());
        std::vector<bool> used(layers.size(), false);
        std::vector<std::string> found;
        places_.clear();
        for (const auto* node : model_.graph()->nodes()) {
            if (node->outputs().size() != 1 || !node->output()->type()->isSubtypeOf(*c10::TensorType::get())) continue;
            const auto& name = names.of(node);
            bool chosen = layers.empty() && is_sum(node);
            for (size_t i = 0; i < layers.size(); ++i)
                if (std::regex_search(name, patterns[i])) chosen = used[i] = true;
            if (!chosen) continue;
            places_[node] = found.size();
            found.push_back(name);
        }
        for (size_t i = 0; i < layers.size(); ++i)
            if (!used[i])
                throw InvalidArgument("train", "no layer is called \"" + layers[i] + "\"",
                                      "coppice inspect --all MODEL lists their names.");
        if (found.empty())
            throw InvalidArgument("train", "the model has no sum of two computed tensors to watch",
                                  "Name the layers; coppice inspect --all MODEL lists them.");
        return found;
    }

    std::vector<at::Tensor> watched() const override { return watched_; }

    void train(bool on) override { model_.train(on); }

    std::vector<std::pair<std::string, at::Tensor>> parameters() override {
        std::vector<std::pair<std::string, at::Tensor>> list;
        for (const auto& parameter : model_.module().named_parameters())
            if (parameter.value.requires_grad()) list.emplace_back(parameter.name, parameter.value);
        return list;
    }

    std::vector<std::pair<std::string, at::Tensor>> buffers() override {
        std::vector<std::pair<std::string, at::Tensor>> list;
        for (const auto& buffer : model_.module().named_buffers()) list.emplace_back(buffer.name, buffer.value);
        return list;
    }

private:
    // Neither operand is a parameter or a constant.
    static bool is_sum(const torch::jit::Node* node) {
        if (node->kind() != c10::Symbol::aten("add") && node->kind() != c10::Symbol::aten("add_")) return false;
        for (size_t i = 0; i < 2; ++i) {
            const auto* operand = node->input(i);
            if (!operand->type()->isSubtypeOf(*c10::TensorType::get())) return false;
            if (operand->node()->kind() == c10::prim::GetAttr || operand->node()->kind() == c10::prim::Constant)
                return false;
        }
        return true;
    }

    // The interpreter cannot be observed.
    at::Tensor forward_watched(const Inputs& inputs) {
        watched_.resize(places_.size());
        NodeHooks hooks;
        hooks.after = [this](const torch::jit::Node* node, std::vector<c10::IValue>& outputs) {
            if (const auto place = places_.find(node); place != places_.end())
                watched_[place->second] = outputs[0].toTensor();
        };
        return first_tensor(run_nodes(model_, inputs, hooks));
    }

    Model model_;
    torch::jit::Code code_;
    std::unordered_map<const torch::jit::Node*, size_t> places_;  // in watched_
    std::vector<at::Tensor> watched_;
};

class ModuleTrainable final : public Trainable {
public:
    ModuleTrainable(std::shared_ptr<torch::nn::Module> module, std::function<at::Tensor(const Inputs&)> forward)
        : module_(std::move(module)), forward_(std::move(forward)) {}

    at::Tensor forward(const Inputs& inputs) override { return forward_(inputs); }
    void train(bool on) override { module_->train(on); }

    std::vector<std::pair<std::string, at::Tensor>> parameters() override {
        std::vector<std::pair<std::string, at::Tensor>> list;
        for (const auto& parameter : module_->named_parameters())
            if (parameter.value().requires_grad()) list.emplace_back(parameter.key(), parameter.value());
        return list;
    }

    std::vector<std::pair<std::string, at::Tensor>> buffers() override {
        std::vector<std::pair<std::string, at::Tensor>> list;
        for (const auto& buffer : module_->named_buffers()) list.emplace_back(buffer.key(), buffer.value());
        return list;
    }

private:
    const std::shared_ptr<torch::nn::Module> module_;
    const std::function<at::Tensor(const Inputs&)> forward_;
};

}  // namespace

std::vector<std::string> Trainable::watch(const std::vector<std::string>&) {
    throw UnsupportedModel("train", "what is trained here does not give the outputs of its layers",
                           "Use a loss on the outputs alone, for example distill.logits.");
}

std::unique_ptr<Trainable> trainable(Model model) {
    return std::make_unique<ModelTrainable>(std::move(model));
}

std::unique_ptr<Trainable> trainable(std::shared_ptr<torch::nn::Module> module,
                                     std::function<at::Tensor(const Inputs&)> forward) {
    if (!module || !forward) throw InvalidArgument("trainable", "module or forward is empty", "Give both.");
    return std::make_unique<ModuleTrainable>(std::move(module), std::move(forward));
}

}  // namespace coppice
