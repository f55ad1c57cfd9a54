// score = metric(model) - metric(model without the block): what one wants to know, at the price of one evaluation per
// block.
#include "depth/depth.h"

#include <coppice/judging.h>

namespace coppice::prune {
namespace {

class Evaluation final : public BlockCriterion {
public:
    std::vector<double> scores(const Model& model, const std::vector<ResidualBlock>& blocks,
                               Context& context) const override {
        if (!context.evaluate)
            throw InvalidArgument("prune.depth", "criterion evaluate needs labelled test or validation data",
                                  "Give it in `data:`, or use criterion similarity.");
        note_choice_by_evaluation("prune.depth", "the blocks", context);
        const double whole = context.evaluate(model);
        std::vector<double> scores;
        for (const auto& block : blocks) {
            if (context.interrupted()) throw Interrupted("prune.depth", "stopped by request", "");
            context.log->progress("prune.depth", static_cast<double>(scores.size()), static_cast<double>(blocks.size()),
                                  block.name);
            scores.push_back(whole - context.evaluate(remove_block(model, context.example, block.name)));
        }
        return scores;
    }
};

}  // namespace

std::unique_ptr<BlockCriterion> block_evaluation() {
    return std::make_unique<Evaluation>();
}

}  // namespace coppice::prune
