// Stage prune.depth: finds residual blocks, scores them, removes the one that matters least, until enough is gone.
// Scores are taken anew after each removal, because a block may matter once its neighbour is gone.

#include "depth/depth.h"
#include "groups/unfuse.h"
#include "messages.h"

namespace coppice::prune {
namespace {

constexpr const char* kWhere = "prune.depth";

/// Names that blocks had in the original model: "layer.0#2" would be "layer.0" once its namesake is gone.
class Names {
public:
    explicit Names(const std::vector<ResidualBlock>& blocks) {
        for (const auto& block : blocks) names_.emplace(block.parameters.front(), block.name);
    }
    const std::string& of(const ResidualBlock& block) const {
        const auto found = names_.find(block.parameters.front());
        return found == names_.end() ? block.name : found->second;
    }

private:
    std::map<std::string, std::string> names_;  // by first parameter
};

class DepthPruning final : public Stage {
public:
    DepthPruning(std::unique_ptr<BlockCriterion> criterion, DepthPruningOptions options)
        : criterion_(std::move(criterion)), options_(std::move(options)) {
        ignore_ = ignore_patterns(kWhere, options_.ignore, "all blocks of layer4");
    }

    Needs needs() const override { return criterion_->needs(); }

    void check(const Model& original, const Context& context) const override {
        refuse_other_methods(original, kWhere);
        const auto model = unfuse_attention(original);
        const auto blocks = find_residual_blocks(model, Facts::observe(model, context.example));
        check_ignore(blocks);
        const auto open = candidates(blocks, Names(blocks));
        if (open.empty()) refuse(blocks);
        if (!options_.macs_ratio && options_.blocks > static_cast<int64_t>(open.size())) too_many(open.size(), 0);
    }

    Model apply(const Model& model, Context& context) const override {
        check(model, context);
        Model result = unfused(model, context).clone();
        result.eval();
        const auto whole = cost(result, context.example);
        const auto enough = [&](size_t removed) {
            if (!options_.macs_ratio) return static_cast<int64_t>(removed) >= options_.blocks;
            return cost(result, context.example).macs <= *options_.macs_ratio * whole.macs * (1 + 1e-9);
        };
        const Names names(find_residual_blocks(result, Facts::observe(result, context.example)));
        std::vector<std::string> removed;
        Json steps = Json::array();
        while (!enough(removed.size())) {
            const auto blocks = find_residual_blocks(result, Facts::observe(result, context.example));
            const auto open = candidates(blocks, names);
            if (open.empty()) too_many(0, removed.size());
            const auto scores = criterion_->scores(result, open, context);
            const auto least = std::min_element(scores.begin(), scores.end()) - scores.begin();
            const auto& block = open[static_cast<size_t>(least)];
            Json step = Json::object();
            for (size_t i = 0; i < open.size(); ++i) step[names.of(open[i])] = scores[i];
            const auto name = names.of(block);
            steps.push_back({{"removed", name}, {"scores", step}});
            context.record({name, "removed", std::to_string(block.nodes.size()) + " operators", "0 operators",
                            "score " + text_of(scores[static_cast<size_t>(least)], 4) + ", the lowest of " +
                                std::to_string(open.size()) + " blocks"});
            context.log->info(std::string(kWhere) + ": " + name + " is removed, score " +
                              text_of(scores[static_cast<size_t>(least)], 4));
            removed.push_back(name);
            result = remove_block(result, context.example, block.name);
        }
        for (const auto& block : find_residual_blocks(result, Facts::observe(result, context.example)))
            context.record({names.of(block), "kept", std::to_string(block.nodes.size()) + " operators",
                            std::to_string(block.nodes.size()) + " operators",
                            ignored(names.of(block)) ? "matches `ignore`" : "matters more than those that went"});
        verify(result, context.example, kWhere);
        const auto left = cost(result, context.example);
        context.facts["blocks_removed"] = removed.size();
        context.facts["steps"] = steps;
        context.facts["macs_before"] = whole.macs;
        context.facts["macs_after"] = left.macs;
        context.facts["parameters_before"] = whole.parameters;
        context.facts["parameters_after"] = left.parameters;
        return result;
    }

private:
    bool ignored(const std::string& name) const {
        for (const auto& expression : ignore_)
            if (std::regex_search(name, expression)) return true;
        return false;
    }

    std::vector<ResidualBlock> candidates(std::vector<ResidualBlock> blocks, const Names& names) const {
        std::vector<ResidualBlock> open;
        for (auto& block : blocks)
            if (!ignored(names.of(block))) open.push_back(std::move(block));
        return open;
    }

    void check_ignore(const std::vector<ResidualBlock>& blocks) const {
        for (size_t i = 0; i < ignore_.size(); ++i) {
            std::vector<std::string> names;
            bool used = false;
            for (const auto& block : blocks) {
                names.push_back(block.name);
                used |= std::regex_search(block.name, ignore_[i]);
            }
            if (used || blocks.empty()) continue;
            const auto nearest = nearest_name(options_.ignore[i], names);
            throw InvalidArgument(kWhere, "ignore \"" + options_.ignore[i] + "\" matches no residual block",
                                  nearest ? "Did you mean \"" + *nearest + "\"?" : "The first is " + names[0] + ".");
        }
    }

    [[noreturn]] void refuse(const std::vector<ResidualBlock>& blocks) const {
        throw UnsupportedModel(kWhere,
                               blocks.empty()
                                   ? "the model has no residual block: no sum x + f(x) of equal shapes whose "
                                     "branch f reads x and a parameter, and is read by the sum alone"
                                   : "every residual block matches `ignore`",
                               "Use prune.channel.");
    }

    [[noreturn]] void too_many(size_t open, size_t removed) const {
        if (options_.macs_ratio)
            throw InvalidArgument(kWhere,
                                  "macs_ratio " + text_of(*options_.macs_ratio, 4) + " cannot be reached: all " +
                                      std::to_string(removed) + " residual blocks are gone",
                                  "Raise it, or use prune.channel for the rest.");
        throw InvalidArgument(kWhere,
                              "blocks is " + std::to_string(options_.blocks) + ", the model has " +
                                  std::to_string(open + removed) + " that can go",
                              "Lower it.");
    }

    std::unique_ptr<BlockCriterion> criterion_;
    DepthPruningOptions options_;
    std::vector<std::regex> ignore_;
};

}  // namespace

std::unique_ptr<Stage> depth_pruning(std::unique_ptr<BlockCriterion> criterion, DepthPruningOptions options) {
    if (options.blocks < 0)
        throw InvalidArgument(kWhere, "blocks is " + std::to_string(options.blocks) + ", must be at least 0", "");
    if (options.macs_ratio && !(*options.macs_ratio > 0 && *options.macs_ratio <= 1))
        throw InvalidArgument(kWhere, "macs_ratio is " + text_of(*options.macs_ratio, 4) + ", must be in (0, 1]",
                              "Use 0.8 to keep 80 % of the multiply-adds.");
    return std::make_unique<DepthPruning>(std::move(criterion), std::move(options));
}

}  // namespace coppice::prune
