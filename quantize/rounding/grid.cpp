#include "rounding/grid.h"

#include <limits>

#include <coppice/error.h>

namespace coppice::quantize {
namespace {

constexpr double kTiny = std::numeric_limits<float>::min();
constexpr int kCandidates = 80;     // of least_error
constexpr double kNarrowest = 0.2;  // share of the range that the last one covers

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
    const auto usable_scale = [&](const at::Tensor& scale) {
        // float16's smallest normal number is the floor where scales are stored in half precision.
        const double least = options.half ? 6.2e-5 : kTiny;
        const auto usable = at::where(scale > kTiny, scale.clamp_min(least), at::ones_like(scale));
        return options.half ? as_half(usable) : usable.to(at::kFloat);
    };
    // Widths of the range that are tried; the first one covers all weights.
    const int candidates = options.least_error ? kCandidates : 1;
    at::Tensor least;  // [rows, groups]
    for (int i = 0; i < candidates; ++i) {
        const double width = 1 - i / static_cast<double>(kCandidates) * (1 - kNarrowest);
        auto trial = rounded;
        if (options.symmetric) {
            std::tie(trial.lowest, trial.highest) = symmetric_ends(options.bits, options.least_error);
            auto largest = grouped.abs().amax(2).to(at::kDouble);
            if (options.one_scale) largest = largest.max().expand_as(largest);
            trial.scale = usable_scale(width * largest / static_cast<double>(trial.highest)).contiguous();
            trial.offset = at::zeros_like(trial.scale);
        } else {
            trial.lowest = 0;
            trial.highest = (int64_t{1} << options.bits) - 1;
            const auto low = width * grouped.amin(2).to(at::kDouble), high = width * grouped.amax(2).to(at::kDouble);
            trial.scale = usable_scale((high - low) / static_cast<double>(trial.highest)).contiguous();
            trial.offset = low.to(at::kFloat).contiguous();
            if (options.half) trial.offset = as_half(trial.offset);
        }
        if (!options.least_error) return trial;
        round_to_nearest(trial, weight.detach());
        auto error = (trial.values() - weight.detach()).reshape(grouped.sizes()).square().sum(2, false, at::kDouble);
        if (options.one_scale) error = error.sum().expand_as(error);
        if (i == 0) {
            rounded = trial;
            least = error;
            continue;
        }
        const auto better = error < least;
        least = at::where(better, error, least);
        rounded.scale = at::where(better, trial.scale, rounded.scale).contiguous();
        rounded.offset = at::where(better, trial.offset, rounded.offset).contiguous();
    }
    rounded.integers = at::Tensor();
    return rounded;
}

std::pair<int64_t, int64_t> symmetric_ends(int64_t bits, bool least_error) {
    const int64_t highest = (int64_t{1} << (bits - 1)) - 1;
    return {least_error ? -highest - 1 : -highest, highest};
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
