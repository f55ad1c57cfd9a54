#include "rounding/grid.h"

#include <limits>

#include <coppice/error.h>

namespace coppice::quantize {
namespace {

constexpr double kTiny = std::numeric_limits<float>::min();

at::Tensor as_half(const at::Tensor& values) {
    return values.to(at::kHalf).to(at::kFloat);
}

}  // namespace

RoundedWeight grid_for(const at::Tensor& weight, const GridOptions& options) {
    const auto fail = [](const std::string& problem, const char* fix) {
        throw InvalidArgument("quantize.rounding", problem, fix);
    };
    if (weight.dim() != 2 || weight.scalar_type() != at::kFloat || weight.size(1) == 0)
        fail("the weight is no float32 matrix", "Reshape it to [rows, n].");
    if (options.bits < 2 || options.bits > 8)
        fail("bits is " + std::to_string(options.bits) + ", must be in [2, 8]", "Use 8 or 4.");
    const int64_t group = options.group > 0 ? options.group : weight.size(1);
    if (weight.size(1) % group != 0)
        fail("rows of " + std::to_string(weight.size(1)) + " weights cannot be cut into groups of " +
                 std::to_string(group),
             "Use a group that divides the row, or 0.");
    if (options.one_scale && (options.group > 0 || !options.symmetric))
        fail("one scale for all rows goes with whole rows and a symmetric grid", "Leave group and symmetric alone.");
    if (!weight.isfinite().all().item<bool>())
        throw UnsupportedModel("quantize.weight", "it holds NaN or infinity", "Check the checkpoint.");
    RoundedWeight rounded;
    rounded.group = group;
    const auto grouped = weight.detach().reshape({weight.size(0), -1, group});  // [rows, groups, group]
    const auto fix = [&](const at::Tensor& scale) {
        // float16's smallest normal number is the floor where scales are stored in half precision.
        const double least = options.half ? 6.2e-5 : kTiny;
        const auto usable = at::where(scale > kTiny, scale.clamp_min(least), at::ones_like(scale));
        return options.half ? as_half(usable) : usable.to(at::kFloat);
    };
    if (options.symmetric) {
        rounded.highest = (int64_t{1} << (options.bits - 1)) - 1;
        rounded.lowest = -rounded.highest;
        auto largest = grouped.abs().amax(2).to(at::kDouble);
        if (options.one_scale) largest = largest.max().expand_as(largest);
        rounded.scale = fix(largest / static_cast<double>(rounded.highest)).contiguous();
        rounded.offset = at::zeros_like(rounded.scale);
    } else {
        rounded.lowest = 0;
        rounded.highest = (int64_t{1} << options.bits) - 1;
        const auto low = grouped.amin(2).to(at::kDouble), high = grouped.amax(2).to(at::kDouble);
        rounded.scale = fix((high - low) / static_cast<double>(rounded.highest)).contiguous();
        rounded.offset = low.to(at::kFloat).contiguous();
        if (options.half) rounded.offset = as_half(rounded.offset);
    }
    return rounded;
}

at::Tensor expand_groups(const at::Tensor& per_group, int64_t group) {
    return per_group.unsqueeze(2).expand({-1, -1, group}).reshape({per_group.size(0), -1});
}

void round_to_nearest(RoundedWeight& rounded, const at::Tensor& weight) {
    const auto scale = expand_groups(rounded.scale, rounded.group),
               offset = expand_groups(rounded.offset, rounded.group);
    rounded.integers =
        ((weight - offset) / scale).round().clamp(rounded.lowest, rounded.highest).to(at::kLong).contiguous();
}

at::Tensor RoundedWeight::values() const {
    auto values = integers.to(at::kFloat) * expand_groups(scale, group) + expand_groups(offset, group);
    return input_factor.defined() ? values * input_factor : values;
}

at::Tensor output_error(const at::Tensor& weight, const at::Tensor& values, const InputMoments& moments) {
    const auto difference = weight.to(at::kDouble) - values.to(at::kDouble);
    return difference.mm(moments.second).mul_(difference).sum(1);
}

const InputMoments& required(const InputMoments* moments, const at::Tensor& weight, const char* where) {
    if (!moments || !moments->second.defined())
        throw InvalidArgument(where, "it needs the second moments of the layer's input", "Give calibration data.");
    if (moments->second.size(0) != weight.size(1))
        throw InvalidArgument(where,
                              "moments of " + std::to_string(moments->second.size(0)) + " inputs for rows of " +
                                  std::to_string(weight.size(1)),
                              "Give those of this layer.");
    return *moments;
}

namespace {

class Nearest final : public Rounding {
public:
    RoundedWeight round(const at::Tensor& weight, const GridOptions& grid, const InputMoments*) const override {
        auto rounded = grid_for(weight, grid);
        round_to_nearest(rounded, weight);
        return rounded;
    }
};

}  // namespace

std::unique_ptr<Rounding> nearest() {
    return std::make_unique<Nearest>();
}

}  // namespace coppice::quantize
