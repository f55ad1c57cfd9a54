#include <coppice/error.h>
#include <coppice/graph.h>

namespace coppice {

void verify(const Model& model, const Inputs& example, const std::string& who,
            const std::vector<std::vector<int64_t>>& expected_shapes) {
    std::vector<at::Tensor> outputs;
    try {
        model.graph()->lint();
        torch::NoGradGuard no_grad;
        outputs = all_tensors(model.forward(example));
    } catch (const Error&) {
        throw;
    } catch (const std::exception& error) {
        throw InternalError(who, "left a model that does not run (" + message_of(error) + ")",
                            "Please report it with the model's architecture.");
    }
    if (expected_shapes.empty()) return;
    if (outputs.size() != expected_shapes.size())
        throw InternalError(who, "changed the number of outputs", "Please report it with the model's architecture.");
    for (size_t i = 0; i < outputs.size(); ++i)
        if (outputs[i].sizes().vec() != expected_shapes[i])
            throw InternalError(who,
                                "changed the shape of output " + std::to_string(i) + " from " +
                                    c10::str(at::IntArrayRef(expected_shapes[i])) + " to " +
                                    c10::str(outputs[i].sizes()),
                                "Please report it with the model's architecture.");
}

void refuse_other_methods(const Model& model, const std::string& who) {
    for (const auto& name : model.other_methods()) {
        for (const auto* node : all_nodes(*model.module().get_method(name).graph())) {
            if (node->kind() != torch::jit::prim::GetAttr) continue;
            const auto path = attribute_name(node->output());
            if (!path || !has_attribute(model, *path) || !get_attribute(model, *path).isTensor()) continue;
            throw UnsupportedModel(who, "the model also exports method \"" + name + "\", which reads \"" + *path + "\"",
                                   "A change made for forward would break it. Export the model with forward only.");
        }
    }
}

}  // namespace coppice
