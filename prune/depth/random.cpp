#include <ATen/CPUGeneratorImpl.h>

#include "depth/depth.h"

namespace coppice::prune {
namespace {

class RandomBlocks final : public BlockCriterion {
public:
    explicit RandomBlocks(uint64_t seed) : seed_(seed) {}

    std::vector<double> scores(const Model&, const std::vector<ResidualBlock>& blocks,
                               Context& context) const override {
        auto generator = at::make_generator<at::CPUGeneratorImpl>(seed_ ? seed_ : context.seed);
        const auto drawn = at::rand({static_cast<int64_t>(blocks.size())}, generator, at::kDouble);
        return {drawn.data_ptr<double>(), drawn.data_ptr<double>() + drawn.numel()};
    }

private:
    const uint64_t seed_;
};

}  // namespace

std::unique_ptr<BlockCriterion> random_blocks(uint64_t seed) {
    return std::make_unique<RandomBlocks>(seed);
}

}  // namespace coppice::prune
