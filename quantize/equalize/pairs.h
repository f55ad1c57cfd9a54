// Helpers of the rewrites that scale channels of neighbouring layers.
#pragma once

#include <coppice/graph.h>
#include <coppice/quantize.h>

namespace coppice::quantize {

/// smooth() that tells how far it is.
int smooth(Model& model, const Calibration& calibration, double alpha, std::vector<LayerChange>* changes,
           const Progress& progress);

/// Names of attributes that exactly one operator reads: scaling one for a layer changes no other.
class SoleReaders {
public:
    explicit SoleReaders(const Model& model) {
        for (const auto* node : all_nodes(*model.graph()))
            for (const auto* input : node->inputs())
                if (const auto name = attribute_name(input); name && node->kind() != torch::jit::prim::GetAttr)
                    ++readers_[get_attribute(model, *name).isTensor() ? address(model, *name) : nullptr];
    }
    bool alone(const Model& model, const torch::jit::Value* value) const {
        const auto name = attribute_name(value);
        if (!name || !has_attribute(model, *name) || !get_attribute(model, *name).isTensor()) return false;
        const auto found = readers_.find(address(model, *name));
        return found != readers_.end() && found->second == 1;
    }

private:
    static const void* address(const Model& model, const std::string& name) {
        return get_attribute(model, name).toTensor().unsafeGetTensorImpl();
    }
    std::unordered_map<const void*, int> readers_;
};

}  // namespace coppice::quantize
