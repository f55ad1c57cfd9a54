// Stage quantize.weight_only: weights in fewer bits, activations in float.
#include <coppice/error.h>
#include <coppice/quantize.h>

#include "calibration/calibration.h"
#include "layers/layers.h"

namespace coppice::quantize {
namespace {

constexpr const char* kWhere = "quantize.weight_only";

class WeightOnly final : public Stage {
public:
    explicit WeightOnly(WeightOnlyOptions options) : options_(std::move(options)) {}

    void check(const Model& model, const Context& context) const override {
        check_layers(model, context, options_.fallback, kWhere);
        if (options_.rounding && options_.rounding->needs_moments()) check_calibration(model, context, kWhere);
    }

    Model apply(const Model& model, Context& context) const override {
        const auto form = weight_form(options_);
        return apply_form(
            model, context, *form,
            {kWhere, options_.ignore, options_.min_sqnr_db, options_.batches, options_.batch_size, options_.fallback});
    }

private:
    const WeightOnlyOptions options_;
};

}  // namespace

namespace {

/// What bf16 and fp16 have no use for.
void refuse_of_half(const WeightOnlyOptions& options) {
    const auto refuse = [&](const std::string& option, const std::string& fix) {
        throw InvalidArgument(kWhere, option + " means nothing for type " + options.type + ", which has no integers",
                              fix);
    };
    const auto& rounding = options.rounding;
    if (rounding && (rounding->needs_moments() || rounding->moves_offsets() || rounding->blocks()))
        refuse("rounding", "Leave it out: weights are rounded to the nearest number. Or use type int8 or int4.");
    if (options.group != 0) refuse("group", "Leave it out, or use type int8 or int4.");
    if (options.symmetric) refuse("symmetric", "Leave it out, or use type int8 or int4.");
    if (options.kernel != "unpacked") refuse("kernel", "Leave it out: there is one kernel. Or use type int8 or int4.");
}

/// Options under which no layer would be packed, whatever its shape.
void refuse_unpackable(const WeightOnlyOptions& options) {
    if (!options.symmetric)
        throw InvalidArgument(kWhere, "kernel: packed of int8 weights has no place for the offsets of symmetric: false",
                              "Use symmetric: true, or kernel: unpacked.");
    if (options.group != 0)
        throw InvalidArgument(kWhere,
                              "kernel: packed of int8 weights has one scale per row, not one per group of " +
                                  std::to_string(options.group),
                              "Leave group out, or use kernel: unpacked or type int4.");
}

}  // namespace

std::unique_ptr<Stage> weight_only(WeightOnlyOptions options) {
    require_known(kWhere, "type", options.type, {"bf16", "fp16", "int4", "int8"});
    require_known(kWhere, "kernel", options.kernel, {"auto", "packed", "unpacked"});
    if (options.group != 0 && options.group != 32 && options.group != 64 && options.group != 128)
        throw InvalidArgument(kWhere, "group is " + std::to_string(options.group) + ", must be 32, 64, 128 or 0",
                              "Use 64.");
    if (options.rounding && options.rounding->blocks())
        throw InvalidArgument(kWhere, "rounding brecq treats layers together, this stage one by one",
                              "Use adaround or gptq, or brecq in quantize.static.");
    if (options.rounding && options.rounding->moves_offsets() && options.symmetric)
        throw InvalidArgument(kWhere, "rounding hqq moves offsets, which a symmetric grid does not have",
                              "Use symmetric: false, or another rounding.");
    if (options.type == "bf16" || options.type == "fp16") refuse_of_half(options);
    if (options.type == "int8" && options.kernel == "packed") refuse_unpackable(options);
    if (options.batches < 1 || options.batch_size < 1)
        throw InvalidArgument(kWhere, "batches and batch_size must be at least 1", "");
    return std::make_unique<WeightOnly>(std::move(options));
}

}  // namespace coppice::quantize
