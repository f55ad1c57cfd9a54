#include <coppice/run_operator.h>

#include <ATen/core/dispatch/Dispatcher.h>

#include <coppice/error.h>

namespace coppice {

std::vector<c10::IValue> run_operator(const char* name, std::vector<c10::IValue> arguments, const char* overload) {
    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, overload);
    // The dispatcher reads as many as the schema has, whatever there are.
    if (op.schema().arguments().size() != arguments.size())
        throw InternalError(name, "called with " + std::to_string(arguments.size()) + " arguments", "");
    op.callBoxed(&arguments);
    return arguments;
}

}  // namespace coppice
