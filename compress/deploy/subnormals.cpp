#include <coppice/deploy.h>
#include <coppice/graph.h>

#include <cfloat>

namespace coppice {

int64_t zero_subnormals(Model& model) {
    torch::NoGradGuard no_grad;
    int64_t zeroed = 0;
    std::set<const void*> seen;
    for (const auto& entry : named_tensors(model)) {
        const auto tensor = get_attribute(model, entry.name).toTensor();
        if (tensor.scalar_type() != at::kFloat || tensor.layout() != at::kStrided) continue;
        if (!seen.insert(tensor.unsafeGetTensorImpl()).second) continue;
        // By the bits: under flush-to-zero a comparison takes a sub-normal number for zero. Exponent 0 and a fraction.
        const auto bits = tensor.contiguous().view(at::kInt);
        const auto small = (bits.bitwise_and(0x7f800000) == 0).logical_and(bits.bitwise_and(0x007fffff) != 0);
        const auto count = small.sum().item<int64_t>();
        if (!count) continue;
        zeroed += count;
        set_tensor(model, entry.name, tensor.masked_fill(small, 0));
    }
    return zeroed;
}

}  // namespace coppice
