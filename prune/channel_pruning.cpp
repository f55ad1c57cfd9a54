// Stage prune.channel: groups, scores, allocation, cut.
#include <coppice/error.h>
#include <coppice/prune.h>

#include <regex>

#include "allocation/allocation.h"

namespace coppice::prune {
namespace {

constexpr const char* kWhere = "prune.channel";

class ChannelPruning final : public Stage {
public:
    ChannelPruning(std::unique_ptr<Criterion> criterion, std::unique_ptr<Allocation> allocation,
                   ChannelPruningOptions options)
        : criterion_(std::move(criterion)), allocation_(std::move(allocation)), options_(std::move(options)) {
        for (const auto& pattern : options_.ignore) {
            try {
                ignore_.emplace_back(pattern);
            } catch (const std::regex_error&) {
                throw InvalidArgument(kWhere, "ignore holds \"" + pattern + "\", which is no regular expression",
                                      "Write \"layer4\\\\..*\" for all layers below layer4.");
            }
        }
    }

    Needs needs() const override {
        Needs needs = criterion_->needs();
        needs.calibration_data |= options_.bn_batches > 0;
        return needs;
    }

    void check(const Model& model, const Context& context) const override {
        refuse_other_methods(model, kWhere);
        const auto groups = find_groups(model, Facts::observe(model, context.example));
        const auto ignored = match(groups);
        if (std::find(ignored.begin(), ignored.end(), false) == ignored.end()) refuse(groups);
    }

    Model apply(const Model& model, Context& context) const override {
        refuse_other_methods(model, kWhere);
        const auto facts = Facts::observe(model, context.example);
        const auto groups = find_groups(model, facts);
        Target target = options_.target;
        target.ignored = match(groups);
        if (std::find(target.ignored.begin(), target.ignored.end(), false) == target.ignored.end()) refuse(groups);
        for (const auto& unknown : groups.unknown_operators())
            context.log->info(unknown + " has no pruning rule: what it touches keeps its channels");

        const auto scores = criterion_->scores(model, groups, context);
        const CostModel cost(model, context.example, groups);
        const auto removal = allocation_->allocate(groups, scores, cost, target);
        Model smaller = cut(model, facts, groups, removal);
        if (options_.bn_batches > 0) {
            if (!context.data.calibration)
                throw InvalidArgument(kWhere, "bn_batches needs calibration data",
                                      "Give `calibration`, or bn_batches: 0.");
            reestimate_batch_norm(smaller, *context.data.calibration, options_.bn_batches, options_.bn_batch_size,
                                  context.seed);
        }
        report(model, smaller, groups, removal, context);
        return smaller;
    }

private:
    std::vector<bool> match(const Groups& groups) const {
        std::vector<bool> ignored;
        std::vector<char> used(ignore_.size(), 0);
        for (const auto& group : groups.all()) {
            bool hit = false;
            for (size_t i = 0; i < ignore_.size(); ++i)
                for (const auto& layer : group.layers)
                    if (std::regex_search(layer, ignore_[i])) {
                        hit = true;
                        used[i] = 1;
                    }
            ignored.push_back(hit);
        }
        for (size_t i = 0; i < ignore_.size(); ++i) {
            if (used[i]) continue;
            std::vector<std::string> names;
            for (const auto& layer : groups.layers()) {
                if (std::regex_search(layer.layer, ignore_[i])) used[i] = true;
                names.push_back(layer.layer);
            }
            if (used[i]) continue;  // matches a layer that cannot be pruned anyway
            const auto nearest = nearest_name(options_.ignore[i], names);
            throw InvalidArgument(
                kWhere, "ignore \"" + options_.ignore[i] + "\" matches no layer",
                nearest ? "Did you mean \"" + *nearest + "\"?" : "See `coppice inspect` for the names.");
        }
        return ignored;
    }

    [[noreturn]] void refuse(const Groups& groups) const {
        std::string reasons;
        size_t named = 0;
        for (const auto& layer : groups.layers()) {
            if (layer.reason.empty() || named == 3) continue;
            reasons += (named++ ? "; " : ": ") + layer.layer + " " + layer.reason;
        }
        if (!groups.all().empty()) reasons = ": every group matches `ignore`";
        if (groups.layers().empty()) reasons = ": the model has no convolution, linear layer or embedding";
        throw UnsupportedModel(kWhere, "no channel can be removed" + reasons, "See `coppice inspect` for all layers.");
    }

    static void report(const Model& before, const Model& after, const Groups& groups, const Removal& removal,
                       Context& context) {
        std::map<std::string, int64_t> removed;  // indices per producing layer
        int64_t removed_channels = 0, channels = 0;
        for (size_t g = 0; g < groups.all().size(); ++g) {
            const auto& group = groups.all()[g];
            std::set<int64_t> gone(removal[g].begin(), removal[g].end());
            std::set<std::pair<std::string, int64_t>> counted;  // a shared weight is one
            for (const auto& slice : group.slices) {
                if (!slice.produces || !counted.emplace(slice.name, slice.dim).second) continue;
                for (const int64_t channel : slice.channel_of)
                    if (gone.count(channel)) ++removed[slice.layer];
            }
            removed_channels += static_cast<int64_t>(removal[g].size());
            channels += group.channels;
        }
        for (const auto& layer : groups.layers()) {
            const auto found = removed.find(layer.layer);
            const int64_t gone = found == removed.end() ? 0 : found->second;
            LayerChange change;
            change.layer = layer.layer;
            change.before = std::to_string(layer.channels) + " channels";
            change.after = std::to_string(layer.channels - gone) + " channels";
            change.action = gone > 0 ? "pruned" : "kept";
            if (gone == 0) change.reason = !layer.reason.empty() ? layer.reason : "the target leaves it as it is";
            context.record(std::move(change));
        }
        const auto cost_before = cost(before, context.example), cost_after = cost(after, context.example);
        context.facts["macs_before"] = cost_before.macs;
        context.facts["macs_after"] = cost_after.macs;
        context.facts["parameters_before"] = cost_before.parameters;
        context.facts["parameters_after"] = cost_after.parameters;
        context.facts["channels_before"] = channels;
        context.facts["channels_after"] = channels - removed_channels;
        context.facts["groups"] = groups.all().size();
        if (!groups.unknown_operators().empty()) context.facts["operators_without_rule"] = groups.unknown_operators();
    }

    std::unique_ptr<Criterion> criterion_;
    std::unique_ptr<Allocation> allocation_;
    ChannelPruningOptions options_;
    std::vector<std::regex> ignore_;
};

}  // namespace

std::unique_ptr<Stage> channel_pruning(std::unique_ptr<Criterion> criterion, std::unique_ptr<Allocation> allocation,
                                       ChannelPruningOptions options) {
    check_target(options.target);
    return std::make_unique<ChannelPruning>(std::move(criterion), std::move(allocation), std::move(options));
}

}  // namespace coppice::prune
