// Stage quantize.dynamic: int8 weights, activations rounded in each call by the range they have then.
#include <coppice/error.h>
#include <coppice/quantize.h>

#include "layers/layers.h"

namespace coppice::quantize {
namespace {

constexpr const char* kWhere = "quantize.dynamic";

class DynamicInt8 final : public Stage {
public:
    explicit DynamicInt8(DynamicOptions options) : options_(std::move(options)) {}

    void check(const Model& model, const Context& context) const override {
        check_layers(model, context, options_.fallback, kWhere);
    }

    Model apply(const Model& model, Context& context) const override {
        const auto form = dynamic_form(options_);
        auto result = apply_form(
            model, context, *form,
            {kWhere, options_.ignore, options_.min_sqnr_db, options_.batches, options_.batch_size, options_.fallback});
        context.facts["exact_int8_products"] = exact_int8_products();
        return result;
    }

private:
    const DynamicOptions options_;
};

}  // namespace

std::unique_ptr<Stage> dynamic_int8(DynamicOptions options) {
    require_known(kWhere, "embedding", options.embedding, {"float", "int4", "int8"});
    if (options.batches < 1 || options.batch_size < 1)
        throw InvalidArgument(kWhere, "batches and batch_size must be at least 1", "");
    return std::make_unique<DynamicInt8>(std::move(options));
}

}  // namespace coppice::quantize
