#include <coppice/deploy.h>
#include <coppice/graph.h>

namespace coppice {
namespace {

/// Bool like `values`, true for sub-normal numbers; undefined for types that have none, or for which they cost nothing:
/// float16 is computed in float32, where its sub-normal numbers, of up to 6e-5, are normal ones.
at::Tensor subnormal(const at::Tensor& values) {
    // By the bits: under flush-to-zero a comparison takes a sub-normal number for zero. Exponent 0 and a fraction.
    const auto among = [&](at::ScalarType bits_type, int64_t exponent, int64_t fraction) {
        const auto bits = values.contiguous().view(bits_type);
        return (bits.bitwise_and(exponent) == 0).logical_and(bits.bitwise_and(fraction) != 0);
    };
    switch (values.scalar_type()) {
        case at::kFloat:
            return among(at::kInt, 0x7f800000, 0x007fffff);
        case at::kBFloat16:
            return among(at::kShort, 0x7f80, 0x007f);
        case at::kDouble:
            return among(at::kLong, 0x7ff0000000000000, 0x000fffffffffffff);
        default:
            return {};
    }
}

}  // namespace

int64_t zero_subnormals(Model& model) {
    torch::NoGradGuard no_grad;
    int64_t zeroed = 0;
    std::set<const void*> seen;
    for (const auto& entry : named_tensors(model)) {
        const auto tensor = get_attribute(model, entry.name).toTensor();
        const bool rows = tensor.layout() == at::kSparseCsr;
        if ((tensor.layout() != at::kStrided && !rows) || !seen.insert(tensor.unsafeGetTensorImpl()).second) continue;
        const auto values = rows ? tensor.values() : tensor;
        const auto small = subnormal(values);
        const auto count = small.defined() ? small.sum().item<int64_t>() : 0;
        if (!count) continue;
        zeroed += count;
        const auto fresh = values.masked_fill(small, 0);
        set_tensor(model, entry.name,
                   rows ? at::sparse_csr_tensor(tensor.crow_indices(), tensor.col_indices(), fresh, tensor.sizes(),
                                                tensor.options())
                        : fresh);
    }
    return zeroed;
}

}  // namespace coppice
