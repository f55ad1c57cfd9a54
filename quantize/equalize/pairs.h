// Helpers of the rewrites that scale channels of neighbouring layers.
#pragma once

#include <coppice/graph.h>
#include <coppice/quantize.h>

namespace coppice::quantize {

/// What equalize() did.
struct Equalized {
    int pairs = 0;            ///< of layers treated
    int bounded = 0;          ///< pairs around a clamp such as ReLU6: of these, or with relu6: keep besides these
    double beyond_ratio = 0;  ///< largest share of the calibration values of such a clamp that exceed its bound
};
Equalized equalize(Model& model, const Calibration& calibration, const EqualizeOptions& options,
                   std::vector<LayerChange>* changes);

/// @throws InvalidArgument when `relu6` is none of EqualizeOptions::relu6; `option` is what the caller calls it
void check_relu6(const char* where, const char* option, const std::string& relu6);

/// What smooth() did with layer norms and rms norms over the last dimension.
struct Smoothed {
    int norms = 0;       ///< smoothed
    int multiplied = 0;  ///< of these: with a multiplication for what else reads them
    int of = 0;          ///< all that there are
};
Smoothed smooth(Model& model, const Calibration& calibration, const SmoothOptions& options,
                std::vector<LayerChange>* changes);

/// @throws InvalidArgument when `norms` is none of SmoothOptions::norms
void check_smooth_norms(const char* where, const std::string& norms);

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
