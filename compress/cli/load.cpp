#include <coppice/error.h>

#include "commands.h"

namespace coppice::cli {

Model load_checked(const std::filesystem::path& path, const Inputs& inputs, const std::string& where) {
    auto model = Model::load(path);
    const auto& schema = model.module().get_method("forward").function().getSchema();
    std::vector<std::string> names;
    size_t required = 0;
    for (size_t i = 1; i < schema.arguments().size(); ++i) {  // 0 is self
        names.push_back(schema.arguments()[i].name());
        if (!schema.arguments()[i].default_value()) ++required;
    }
    std::string list;
    for (const auto& name : names) list += (list.empty() ? "" : ", ") + name;
    if (inputs.size() < required || inputs.size() > names.size())
        throw InvalidArgument(where,
                              "forward(" + list + ") of " + path.string() + " takes " + std::to_string(required) +
                                  (required == names.size() ? "" : " to " + std::to_string(names.size())) +
                                  " inputs, " + std::to_string(inputs.size()) + (inputs.size() == 1 ? " is" : " are") +
                                  " given",
                              "Give one shape per input.");
    torch::NoGradGuard no_grad;
    try {
        model.forward(inputs);
    } catch (const std::exception& error) {
        std::string shapes;
        for (const auto& input : inputs)
            if (input.isTensor())
                shapes += (shapes.empty() ? "" : " and ") + std::string(c10::toString(input.toTensor().scalar_type())) +
                          " " + shape_text(input.toTensor().sizes().vec());
        throw InvalidArgument(where,
                              path.string() + " does not run on an input of " + shapes + ": " + message_of(error),
                              "Give the shape and type that it was made for.");
    }
    return model;
}

}  // namespace coppice::cli
