// FakeQuantize: a quantizer with its state, as a module.
#include <cmath>

#include <coppice/error.h>

#include "qat/rounding.h"

namespace coppice::quantize {
namespace {

constexpr const char* kWhere = "quantize.FakeQuantize";

/// A scale that training drives towards zero, or past it, would leave nearly nothing of its tensor, and no gradient to
/// come back by. No start is too wide by as much: LSQ's by the paper, on bell-shaped values in 8 bits, is by a factor
/// of 5.
constexpr double kLeastShare = 1.0 / 16;

enum Count : int64_t { kLowest, kHighest, kWatched, kFrozen, kCounts };

}  // namespace

FakeQuantizeOptions weights_of(int64_t bits, int64_t channels) {
    FakeQuantizeOptions options;
    options.bits = bits;
    options.weight = true;
    if (channels > 0) {
        options.channel = 0;
        options.channels = channels;
    }
    return options;
}

FakeQuantizeImpl::FakeQuantizeImpl(FakeQuantizeOptions options) : options_(std::move(options)) {
    if (options_.bits < 2 || options_.bits > 8)
        throw InvalidArgument(kWhere, "bits is " + std::to_string(options_.bits) + ", must be in [2, 8]",
                              "Use 8, 4, 3 or 2.");
    if (options_.channels < 1 || (options_.channel < 0 && options_.channels != 1))
        throw InvalidArgument(kWhere, "channels is " + std::to_string(options_.channels),
                              "Give the size of dimension `channel`, or 1 for one scale.");
    if (options_.watch_batches < 0)
        throw InvalidArgument(kWhere, "watch_batches is " + std::to_string(options_.watch_batches), "0 means all.");
    if (options_.observer && (options_.weight || options_.channel >= 0))
        throw InvalidArgument(kWhere, "an observer sees activations with one scale",
                              "Weights have their range at hand: leave observer out.");
    if (!options_.quantizer) options_.quantizer = lsq();
    if (options_.weight && !options_.quantizer->for_weights()) options_.quantizer = minmax_range();
    if (options_.watch_batches > 0 && options_.quantizer->learns())
        throw InvalidArgument(kWhere, "watch_batches has no range to end: this quantizer learns its scale",
                              "Use minmax_range(), or leave watch_batches at 0.");
    const auto make = [&](const char* name, bool learned) {
        const auto values = at::ones({options_.channels});
        return learned ? register_parameter(name, values) : register_buffer(name, values);
    };
    learned_ = make("learned", options_.quantizer->learns());
    offset_ = make("offset", options_.quantizer->learns() && !options_.symmetric);
    least_ = register_buffer("least", at::zeros({options_.channels}));
    counts_ = register_buffer("counts", at::zeros({kCounts}, at::kLong));
    if (options_.observer) observed_ = register_buffer("observed", options_.observer->fresh()->state());
}

bool FakeQuantizeImpl::started() const {
    return counts_[kHighest].item<int64_t>() > 0;
}

void FakeQuantizeImpl::start(const at::Tensor& values) {
    if (options_.channel >= 0 &&
        (options_.channel >= values.dim() || values.size(options_.channel) != options_.channels))
        throw InvalidArgument(
            kWhere,
            "dimension " + std::to_string(options_.channel) + " is not of size " + std::to_string(options_.channels),
            "Give channel and channels of the values.");
    // What starts a scale stays in it: one NaN would make every later output NaN.
    if (values.numel() == 0) throw InvalidArgument(kWhere, "it cannot start with an empty tensor", "Give it values.");
    if (!values.isfinite().all().item<bool>())
        throw InvalidArgument(kWhere, "the first values hold NaN or infinity", "Check the data and the weights.");
    torch::NoGradGuard no_grad;
    if (options_.observer) {
        observed_.copy_(options_.observer->fresh()->state());
        start(observe(values.detach()));
        return;
    }
    set_integers(options_.symmetric && values.min().item<double>() < 0);
    auto now = state();
    options_.quantizer->start(now, values.detach());
    const auto [low, high] = ends(values, options_.channel);
    keep_from_vanishing(high > low);
}

void FakeQuantizeImpl::start(Range range) {
    if (options_.weight || options_.channel >= 0)
        throw InvalidArgument(kWhere, "a range is for activations with one scale", "Start weights with their values.");
    if (!std::isfinite(range.low) || !std::isfinite(range.high))
        throw InvalidArgument(kWhere, "the range is not finite", "Check the data.");
    torch::NoGradGuard no_grad;
    set_integers(range.low < 0);
    auto now = state();
    options_.quantizer->start_at(now, range);
    keep_from_vanishing(at::full({1}, std::max(range.high, 0.0) > std::min(range.low, 0.0)));
}

void FakeQuantizeImpl::set_integers(bool below_zero) {
    const int64_t half = int64_t{1} << (options_.bits - 1);
    int64_t lowest = 0, highest = 2 * half - 1;
    if (options_.symmetric && options_.weight) {
        lowest = 1 - half;
        highest = half - 1;
    } else if (options_.symmetric && options_.negative.value_or(below_zero)) {
        // With 8 bits convert() makes int8 of it, whose kernels have all 256 integers.
        lowest = options_.quantizer->mirrors() && options_.bits < 8 ? 1 - half : -half;
        highest = half - 1;
    }
    counts_[kLowest] = lowest;
    counts_[kHighest] = highest;
}

void FakeQuantizeImpl::keep_from_vanishing(const at::Tensor& has_width) {
    least_.zero_();
    if (options_.quantizer->learns())
        least_.copy_(at::where(has_width, options_.quantizer->scale(state()) * kLeastShare, least_));
}

Range FakeQuantizeImpl::observe(const at::Tensor& values) {
    // The buffer is all there is of it between batches: whoever reads a checkpoint into it moves the observer, too.
    const auto observer = options_.observer->fresh();
    observer->set_state(observed_);
    observer->observe(values.to(at::kFloat));
    observed_.copy_(observer->state());
    return observer->range(int64_t{1} << options_.bits);
}

QuantizerState FakeQuantizeImpl::state() const {
    QuantizerState state;
    const auto* counts = counts_.const_data_ptr<int64_t>();
    state.lowest = counts[kLowest];
    state.highest = counts[kHighest];
    state.channel = options_.channel;
    state.weight = options_.weight;
    state.affine = !options_.symmetric;
    state.least = least_;
    state.learned = learned_;
    state.offset = offset_;
    return state;
}

at::Tensor FakeQuantizeImpl::forward(const at::Tensor& given) {
    if (!given.is_cpu())
        throw InvalidArgument(kWhere, "the values are on " + given.device().str(), "Train on the CPU.");
    const auto values = given.to(at::kFloat);  // autocast gives bfloat16
    const bool first = !started();
    if (values.numel() == 0) return values;  // no value to round or to learn from
    if (first) start(values);
    auto now = state();
    auto* counts = counts_.mutable_data_ptr<int64_t>();
    // Weights are those of now in any mode: the last step of training moved them, too.
    if (counts[kFrozen] == 0 && (is_training() || (options_.weight && !options_.quantizer->learns()))) {
        torch::NoGradGuard no_grad;
        if (!options_.observer)
            options_.quantizer->watch(now, values.detach());
        else if (!options_.quantizer->learns() && !first)
            options_.quantizer->start_at(now, observe(values.detach()));
        if (is_training() && ++counts[kWatched] == options_.watch_batches) counts[kFrozen] = 1;
    }
    return options_.quantizer->apply(now, values);
}

void FakeQuantizeImpl::freeze() {
    counts_[kFrozen] = 1;
}

void FakeQuantizeImpl::require_start() const {
    if (!started())
        throw InvalidArgument(kWhere, "it has seen no values yet", "Run forward() once, or start() it with some.");
}

at::Tensor FakeQuantizeImpl::scale() const {
    require_start();
    return options_.quantizer->scale(state());
}

int64_t FakeQuantizeImpl::levels() const {
    require_start();
    const auto now = state();
    return now.highest - now.lowest + 1;
}

Affine FakeQuantizeImpl::affine() const {
    require_start();
    if (options_.channel >= 0) throw InvalidArgument(kWhere, "there is a scale per channel", "Use scale().");
    const auto now = state();
    const auto factor = options_.quantizer->scale(now);
    return {factor.item<double>(), zero_point(now, factor).item<int64_t>() - now.lowest};
}

at::Tensor FakeQuantizeImpl::integers(const at::Tensor& values) const {
    require_start();
    const auto now = state();
    if (now.affine || !now.weight)
        throw InvalidArgument(kWhere, "only integers of symmetric weights are int8", "Use weights_of().");
    torch::NoGradGuard no_grad;
    const auto factor = options_.quantizer->scale(now);
    const auto rounded = rounded_values(now, factor, zero_point(now, factor), values.detach());
    return (rounded / beside(factor, values, now.channel)).round().to(at::kChar);
}

}  // namespace coppice::quantize
