// Weights that oneDNN's operators read in a layout of their own, which no file can hold. In memory both are there, an
// int8 byte each per weight.
//
//     class PackedLinear(Module):
//       weight : Tensor     int8 [out, in], what the file holds
//       packed : Tensor     oneDNN's
//       def __getstate__(self): return self.weight
//       def __setstate__(self, state): self.weight = state; self.packed = ops.onednn.qlinear_prepack(state, None)
#include <coppice/graph.h>

#include "emit/operators.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

constexpr const char* kPrepack = "onednn::qlinear_prepack";

void add_method(Module& module, const char* name, const std::function<void(Graph& graph, Value* self)>& body) {
    auto graph = std::make_shared<Graph>();
    Value* self = graph->addInput("self");
    self->setType(module.type());
    body(*graph, self);
    auto* function =
        module._ivalue()->compilation_unit()->create_function(c10::QualifiedName(*module.type()->name(), name), graph);
    module.type()->addMethod(function);
}

}  // namespace

Value* store_packed_at_load(Model& model, const at::Tensor& weight, const std::string& beside, Node* before) {
    Module root = model.module();
    Module packed_linear("__torch__.PackedLinear", root._ivalue()->compilation_unit(), /*shouldMangle=*/true);
    packed_linear.register_buffer("weight", weight);
    packed_linear.register_attribute("packed", c10::TensorType::get(),
                                     call_operator(kPrepack, {weight, c10::IValue()}));
    add_method(packed_linear, "__getstate__", [](Graph& graph, Value* self) {
        graph.registerOutput(graph.insertNode(graph.createGetAttr(self, "weight"))->output());
    });
    add_method(packed_linear, "__setstate__", [](Graph& graph, Value* self) {
        Value* state = graph.addInput("state");
        graph.insertNode(graph.createSetAttr(self, "weight", state));
        Value* packed = graph.insert(Symbol::fromQualString(kPrepack), {state, c10::IValue()});
        graph.insertNode(graph.createSetAttr(self, "packed", packed));
        graph.registerOutput(graph.insertConstant(c10::IValue()));
    });
    const auto dot = beside.rfind('.');
    const auto prefix = dot == std::string::npos ? std::string() : beside.substr(0, dot + 1);
    Module owner = prefix.empty() ? root : Module(get_attribute(model, beside.substr(0, dot)).toObject());
    std::string name = "packed";
    for (int number = 2; owner.hasattr(name); ++number) name = "packed_" + std::to_string(number);
    owner.register_module(name, packed_linear);
    return read_attribute(model, prefix + name + ".packed", before);
}

}  // namespace coppice::quantize
