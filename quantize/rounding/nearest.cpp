// Rounding to the nearest integer: the parameters of a range, and what they do to a tensor.
#include <ATen/ops/quantize_per_channel.h>

#include <cmath>
#include <limits>

#include <coppice/error.h>
#include <coppice/quantize.h>

namespace coppice::quantize {

Affine affine(Range range, int64_t levels) {
    if (levels < 2 || levels > 256)
        throw InvalidArgument("quantize.affine", "levels is " + std::to_string(levels) + ", must be in [2, 256]",
                              "Use 256.");
    if (!std::isfinite(range.low) || !std::isfinite(range.high))
        throw InvalidArgument("quantize.affine", "the range is not finite", "Give it numbers.");
    const double low = std::min(range.low, 0.0), high = std::max(range.high, 0.0);
    Affine parameters;
    // Scales pass through float32 in LibTorch's kernels; below its normal numbers a quotient overflows.
    const double scale = (high - low) / static_cast<double>(levels - 1);
    if (!(scale > std::numeric_limits<float>::min())) return parameters;
    parameters.scale = scale;
    parameters.zero_point = std::clamp<int64_t>(static_cast<int64_t>(std::nearbyint(-low / scale)), 0, levels - 1);
    return parameters;
}

at::Tensor fake_quantize(const at::Tensor& values, const Affine& parameters) {
    // As at::quantize_per_tensor: multiplied by the inverse in float32, rounded to even, then shifted.
    const auto inverse = static_cast<double>(1.0f / static_cast<float>(parameters.scale));
    const auto zero_point = static_cast<double>(parameters.zero_point);
    return values.mul(inverse).round_().clamp_(-zero_point, 255 - zero_point).mul_(parameters.scale);
}

at::Tensor quantize_weight(const at::Tensor& weight, bool per_channel) {
    if (weight.dim() < 1 || weight.scalar_type() != at::kFloat)
        throw InvalidArgument("quantize.weight", "the weight is no float32 tensor with channels",
                              "Convert it to float32.");
    if (weight.numel() == 0)
        throw InvalidArgument("quantize.weight", "the weight has no elements", "Leave the layer in float.");
    if (!weight.isfinite().all().item<bool>())
        throw UnsupportedModel("quantize.weight", "it holds NaN or infinity", "Check the checkpoint.");
    const auto plain = weight.detach().contiguous();
    const int64_t channels = plain.size(0);
    auto largest = plain.reshape({channels, -1}).abs().amax(1).to(at::kDouble);  // [channels]
    if (!per_channel) largest = largest.max().expand({channels});
    auto scales = largest / 127;
    scales = at::where(scales > std::numeric_limits<float>::min(), scales, at::ones_like(scales)).contiguous();
    return at::quantize_per_channel(plain, scales, at::zeros({channels}, at::kLong), 0, at::kQInt8);
}

}  // namespace coppice::quantize
