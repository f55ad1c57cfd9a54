#include <coppice/error.h>
#include <coppice/train.h>
#include <torch/csrc/jit/runtime/interpreter.h>

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
        torch::jit::Stack stack = {model_.module()._ivalue()};
        stack.insert(stack.end(), inputs.begin(), inputs.end());
        model_.module().get_method("forward").function().getSchema().checkAndNormalizeInputs(stack);
        torch::jit::InterpreterState(code_).run(stack);
        return first_tensor(stack.front());
    }

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
    Model model_;
    torch::jit::Code code_;
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

std::unique_ptr<Trainable> trainable(Model model) {
    return std::make_unique<ModelTrainable>(std::move(model));
}

std::unique_ptr<Trainable> trainable(std::shared_ptr<torch::nn::Module> module,
                                     std::function<at::Tensor(const Inputs&)> forward) {
    if (!module || !forward) throw InvalidArgument("trainable", "module or forward is empty", "Give both.");
    return std::make_unique<ModuleTrainable>(std::move(module), std::move(forward));
}

}  // namespace coppice
