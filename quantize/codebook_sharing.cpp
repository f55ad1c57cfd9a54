// Stage quantize.codebook: layers share few distinct weights, so that the deflated file is small. Batch norms are
// folded first: folding later would scale every channel and undo the sharing.
#include <coppice/error.h>
#include <coppice/quantize.h>

#include "codebook/form.h"

namespace coppice::quantize {
namespace {

constexpr const char* kWhere = "quantize.codebook";

class CodebookSharing final : public Stage {
public:
    explicit CodebookSharing(CodebookOptions options) : options_(std::move(options)) {
        if (!options_.init) options_.init = linear_init();
    }

    void check(const Model& model, const Context& context) const override {
        check_layers(model, context, options_.fallback, kWhere);
    }

    Model apply(const Model& model, Context& context) const override {
        const auto form = codebook_form(options_, context.seed);
        context.facts["bits"] = options_.bits;
        context.facts["storage"] = options_.storage;
        return apply_form(
            model, context, *form,
            {kWhere, options_.ignore, options_.min_sqnr_db, options_.batches, options_.batch_size, options_.fallback});
    }

private:
    CodebookOptions options_;
};

}  // namespace

std::unique_ptr<Stage> codebook_sharing(CodebookOptions options) {
    require_known(kWhere, "storage", options.storage, {"indices", "weights"});
    if (options.bits < 2 || options.bits > 8)
        throw InvalidArgument(kWhere, "bits is " + std::to_string(options.bits) + ", must be 2 to 8", "Use 4.");
    if (options.iterations < 0 || options.batches < 1 || options.batch_size < 1)
        throw InvalidArgument(kWhere, "iterations must not be negative, batches and batch_size must be at least 1", "");
    return std::make_unique<CodebookSharing>(std::move(options));
}

}  // namespace coppice::quantize
