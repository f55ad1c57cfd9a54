// BRECQ's row among the roundings (Li et al., arXiv 2102.05426). A layer by itself is AdaRound's case; blocks, which
// need the model, are rounded by plan/blocks.cpp.
#include <coppice/error.h>
#include <coppice/quantize.h>

namespace coppice::quantize {
namespace {

constexpr const char* kWhere = "quantize.brecq";

class Brecq final : public Rounding {
public:
    explicit Brecq(BlockOptions options) : options_(std::move(options)), layer_(adaround()) {}

    bool needs_moments() const override { return layer_->needs_moments(); }
    const BlockOptions* blocks() const override { return &options_; }

    RoundedWeight round(const at::Tensor& weight, const GridOptions& grid, const InputMoments* moments) const override {
        return layer_->round(weight, grid, moments);
    }

private:
    const BlockOptions options_;
    const std::unique_ptr<Rounding> layer_;
};

}  // namespace

std::unique_ptr<Rounding> brecq(BlockOptions options) {
    if (options.steps < 1 || options.batch_size < 1)
        throw InvalidArgument(kWhere, "steps and batch_size must be at least 1", "");
    require_known(kWhere, "loss", options.loss, {"fisher", "mse"});
    return std::make_unique<Brecq>(std::move(options));
}

}  // namespace coppice::quantize
