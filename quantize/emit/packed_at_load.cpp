// Weights that oneDNN's operators read in a layout of their own, which no file can hold. In memory both are there, an
// int8 byte each per weight.
//
//     class PackedLinear(Module):                         PackedConvolution likewise
//       weight : Tensor     int8 [out, in], what the file holds
//       packed : Tensor     oneDNN's
//       def __getstate__(self): return self.weight
//       def __setstate__(self, state): self.weight = state; self.packed = ops.onednn.qlinear_prepack(state, None)
#include <coppice/graph.h>

#include "emit/operators.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

/// The operator that packs, and its arguments behind the weights. Of scales it wants to know how many there are.
struct Packing {
    const char* op = "onednn::qlinear_prepack";
    int64_t scales = 0;  ///< a vector of ones so long comes first; 0: none
    std::vector<c10::IValue> arguments{c10::IValue()};

    at::Tensor apply(const at::Tensor& weight) const {
        std::vector<c10::IValue> stack{weight};
        if (scales) stack.emplace_back(at::ones({scales}));
        stack.insert(stack.end(), arguments.begin(), arguments.end());
        return call_operator(op, stack).toTensor();
    }
    Value* insert(Graph& graph, Value* weight) const {
        std::vector<NamedValue> values{weight};
        if (scales) values.emplace_back(graph.insert(aten::ones, {std::vector<int64_t>{scales}}));
        for (const auto& argument : arguments) values.emplace_back(argument);
        return graph.insert(Symbol::fromQualString(op), values);
    }
};

Packing packing_of(const at::Tensor& weight, const ConvGeometry* geometry, const std::vector<int64_t>& shape) {
    if (!geometry) return {};
    return {"onednn::qconv_prepack",
            weight.size(0),
            {1.0, int64_t{0}, geometry->stride, geometry->padding, geometry->dilation, geometry->groups, shape}};
}

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

Value* store_packed_at_load(Model& model, const at::Tensor& weight, const std::string& beside, Node* before,
                            const ConvGeometry* geometry, const std::vector<int64_t>& shape) {
    const auto packing = packing_of(weight, geometry, shape);
    Module root = model.module();
    Module packed_layer(geometry ? "__torch__.PackedConvolution" : "__torch__.PackedLinear",
                        root._ivalue()->compilation_unit(), /*shouldMangle=*/true);
    packed_layer.register_buffer("weight", weight);
    packed_layer.register_attribute("packed", c10::TensorType::get(), packing.apply(weight));
    add_method(packed_layer, "__getstate__", [](Graph& graph, Value* self) {
        graph.registerOutput(graph.insertNode(graph.createGetAttr(self, "weight"))->output());
    });
    add_method(packed_layer, "__setstate__", [&](Graph& graph, Value* self) {
        Value* state = graph.addInput("state");
        graph.insertNode(graph.createSetAttr(self, "weight", state));
        Value* packed = packing.insert(graph, state);
        graph.insertNode(graph.createSetAttr(self, "packed", packed));
        graph.registerOutput(graph.insertConstant(c10::IValue()));
    });
    const auto dot = beside.rfind('.');
    const auto prefix = dot == std::string::npos ? std::string() : beside.substr(0, dot + 1);
    Module owner = prefix.empty() ? root : Module(get_attribute(model, beside.substr(0, dot)).toObject());
    std::string name = "packed";
    for (int number = 2; owner.hasattr(name); ++number) name = "packed_" + std::to_string(number);
    owner.register_module(name, packed_layer);
    return read_attribute(model, prefix + name + ".packed", before);
}

}  // namespace coppice::quantize
