// Stage prune.channel: groups, scores, allocation, cut.
#include <ATen/Parallel.h>

#include <coppice/clock.h>
#include <coppice/error.h>
#include <coppice/prune.h>

#include <cmath>

#include "allocation/allocation.h"
#include "groups/unfuse.h"
#include "messages.h"
#include "schedule/rescore.h"

namespace coppice::prune {
namespace {

constexpr const char* kWhere = "prune.channel";
// Of the operators around a cut, for only_faster: less drowns in the noise of a second measurement.
constexpr double kLeastSpeedUp = 1.05;
// How far a measured time may lie from its target before the allocation is repeated, and how often that is tried.
constexpr double kMost = 1.02, kLeast = 0.93;
constexpr int kCorrections = 3;
// Of one processor: with less, waiting is most of the time that a clock shows.
constexpr double kBusy = 0.5;

std::string figure(double value, const char* format = "%.3g") {
    char text[32];
    std::snprintf(text, sizeof text, format, value);
    return text;
}

/// "0-3,7" for 0, 1, 2, 3, 7.
std::string as_ranges(const std::vector<int64_t>& sorted) {
    std::string text;
    for (size_t first = 0, i = 1; i <= sorted.size(); ++i) {
        if (i < sorted.size() && sorted[i] == sorted[i - 1] + 1) continue;
        text += (text.empty() ? "" : ",") + std::to_string(sorted[first]);
        if (i - 1 > first) text += "-" + std::to_string(sorted[i - 1]);
        first = i;
    }
    return text;
}

class ChannelPruning final : public Stage {
public:
    ChannelPruning(std::unique_ptr<Criterion> criterion, std::unique_ptr<Allocation> allocation,
                   ChannelPruningOptions options)
        : criterion_(std::move(criterion)), allocation_(std::move(allocation)), options_(std::move(options)) {
        ignore_ = ignore_patterns(kWhere, options_.ignore);
        for (const auto& layer : options_.layers) layers_.push_back(regex_of(kWhere, "layers", layer.pattern));
    }

    Needs needs() const override {
        Needs needs = criterion_->needs();
        needs.calibration_data |= options_.bn_batches > 0 || options_.refit;
        return needs;
    }

    void check(const Model& original, const Context& context) const override {
        refuse_other_methods(original, kWhere);
        const auto model = unfuse_attention(original);
        const auto groups = find_groups(model, Facts::observe(model, context.example), options_.groups);
        const auto target = target_for(groups);
        if (!options_.rewind_to.empty() && !std::filesystem::exists(context.base_dir / options_.rewind_to))
            throw InvalidArgument(kWhere,
                                  "rewind_to " + (context.base_dir / options_.rewind_to).string() + " is not there",
                                  "Give a TorchScript file of the model, saved earlier in its training.");
        if (!allocation_->sensitivity_ratios().empty() && !context.evaluate)
            throw InvalidArgument(kWhere, "there is nothing to evaluate the model by, which `scope` asks for",
                                  "Give `data` with labels and a `task`, or set Context::evaluate.");
    }

    Model apply(const Model& original, Context& context) const override {
        refuse_other_methods(original, kWhere);
        const auto model = unfused(original, context);
        const auto facts = Facts::observe(model, context.example);
        const auto groups = find_groups(model, facts, options_.groups);
        auto target = target_for(groups);
        for (const auto& unknown : groups.unknown_operators())
            context.log->info(unknown + " has no pruning rule: what it touches keeps its channels");

        std::function<void(Model&)> reestimate;
        if (options_.bn_batches > 0) {
            if (!context.data.calibration)
                throw InvalidArgument(kWhere, "bn_batches needs calibration data",
                                      "Give `calibration`, or bn_batches: 0.");
            reestimate = [&](Model& m) {
                reestimate_batch_norm(m, *context.data.calibration, options_.bn_batches, options_.bn_batch_size,
                                      context.seed);
            };
        }
        CostModel cost(model, context.example, groups);
        std::optional<Timing> timing;
        if (is_timed(target) || options_.only_faster || options_.round_to_measured)
            timing = time(model, groups, cost, target, context);
        const auto scores = scores_in_steps(model, facts, groups, *criterion_, *allocation_, cost, target,
                                            *options_.schedule, options_.steps, reestimate, context, options_.groups);
        if (const auto ratios = allocation_->sensitivity_ratios(); !ratios.empty()) {
            target.sensitivity = sensitivity_curves(model, facts, groups, scores, target, ratios, context);
            for (const auto& point : target.sensitivity)
                context.facts["sensitivity"].push_back(
                    {{"group", groups.all()[point.group].name}, {"ratio", point.ratio}, {"quality", point.quality}});
        }
        std::map<size_t, std::string> kept_for_speed;
        Model smaller;
        Removal removal;
        if (is_timed(target)) {
            std::tie(removal, smaller) =
                cut_to_time(model, facts, groups, scores, cost, *timing, target, kept_for_speed, context);
        } else {
            removal = allocate(groups, scores, cost, timing, target, kept_for_speed, context);
            smaller = cut(model, facts, groups, removal);
        }
        if (options_.refit) refit(smaller, model, groups, removal, *options_.refit, context);
        if (!options_.rewind_to.empty())
            smaller = rewind(model, unfuse_attention(Model::load(context.base_dir / options_.rewind_to)),
                             context.example, removal, options_.groups);
        if (reestimate) reestimate(smaller);
        report(model, smaller, groups, removal, kept_for_speed, context);
        return smaller;
    }

private:
    /// Options as they apply to these groups.
    Target target_for(const Groups& groups) const {
        Target target = options_.target;
        target.ignored = match(groups);
        if (!layers_.empty()) target.fixed = fixed(groups);
        if (std::find(target.ignored.begin(), target.ignored.end(), false) == target.ignored.end()) refuse(groups);
        return target;
    }

    struct Timing {
        std::shared_ptr<const Stopwatch> stopwatch;
        LatencyModel latency;
    };

    /// Times what the target and the widths need: the steps of the kernels, and the table behind a timed target.
    Timing time(const Model& model, const Groups& groups, CostModel& cost, Target& target, Context& context) const {
        const auto stopwatch = options_.stopwatch    ? options_.stopwatch
                               : target.energy_ratio ? cpu_clock(context.interrupted)
                                                     : wall_clock(context.interrupted);
        LatencyModel latency(model, context.example, groups, stopwatch);
        if (options_.round_to_measured) {
            target.steps = measured_steps(groups, latency);
            for (size_t g = 0; g < groups.all().size(); ++g)
                context.facts["round_to"][groups.all()[g].name] = target.steps[g] * groups.all()[g].multiplicity;
        }
        if (is_timed(target)) {
            latency.tabulate(target);
            cost.set_latency(latency);
        }
        return {stopwatch, latency};
    }

    /// Allocates for a target in time, cuts, times the result, and corrects the target for what the sum over operators
    /// does not know.
    std::pair<Removal, Model> cut_to_time(const Model& model, const Facts& facts, const Groups& groups,
                                          const std::vector<at::Tensor>& scores, const CostModel& cost,
                                          const Timing& timing, Target target,
                                          std::map<size_t, std::string>& kept_for_speed, Context& context) const {
        auto& share = target.energy_ratio ? target.energy_ratio : target.latency_ratio;
        const double wanted = *share;
        std::vector<int64_t> all;
        for (const auto& group : groups.all()) all.push_back(group.channels);
        const double whole = cost.seconds(all);
        std::pair<Removal, Model> best;
        Json best_row, rows = Json::array();
        double best_ratio = std::numeric_limits<double>::infinity();
        for (int round = 0; round <= kCorrections; ++round) {
            std::map<size_t, std::string> kept;
            Removal removal;
            try {
                removal = allocate(groups, scores, cost, timing, target, kept, context);
            } catch (const InvalidArgument&) {
                if (round == 0) throw;
                break;  // the bounds end here: the best so far is the result
            }
            auto smaller = cut(model, facts, groups, removal);
            const double wall = wall_seconds(), cpu = cpu_seconds(/*with_children=*/false);
            const auto measured = timing.stopwatch->ratio(model, smaller, context.example);
            // Below one, others had the processors: a model's time is then mostly waiting.
            const double cpus = (cpu_seconds(/*with_children=*/false) - cpu) / std::max(wall_seconds() - wall, 1e-9);
            const double predicted = cost.seconds(kept_of(groups, removal)) / whole;
            Json row = {{"target", *share},
                        {"predicted_ratio", predicted},
                        {"measured_ratio", measured.median},
                        {"measured_interval", {measured.low, measured.high}},
                        {"before_ms", measured.before_ms},
                        {"after_ms", measured.after_ms},
                        {"pairs", measured.pairs},
                        {"cpus", cpus}};
            rows.push_back(row);
            // Within the target the larger model is better, else the faster one.
            const bool reached = measured.median <= kMost * wanted;
            if (best_ratio <= kMost * wanted ? reached && measured.median > best_ratio : measured.median < best_ratio) {
                best = {removal, std::move(smaller)};
                best_row = std::move(row);
                best_ratio = measured.median;
                kept_for_speed = std::move(kept);
            }
            if (reached && measured.median >= kLeast * wanted) break;
            // Time that no operator shows stays: the measured ratio is taken to be linear in the predicted one, through
            // this point and that of the whole model.
            const double slope = std::max((1 - measured.median) / std::max(1 - predicted, 1e-6), 1e-6);
            const double corrected = std::clamp(1 - (1 - wanted) / slope, 0.5 * *share, 1.0);
            if (std::abs(corrected - *share) < 1e-3) break;
            share = corrected;
        }
        const bool reached = best_ratio <= kMost * wanted;
        best_row["target"] = wanted;
        best_row["reached"] = reached;
        best_row["provenance"] = "measured";
        best_row["threads"] = at::get_num_threads();
        best_row["operators"] = timing.latency.operators();
        best_row["not_timed"] = timing.latency.not_timed();
        best_row["rounds"] = std::move(rows);
        // CPU seconds are measured; that energy follows them is a model.
        const auto cpus = best_row["cpus"].get<double>();
        context.facts[target.energy_ratio ? "cpu_time" : "latency"] = std::move(best_row);
        if (target.latency_ratio && cpus < kBusy)
            context.log->warning(std::string(kWhere) + ": while times were taken, the process had " + figure(cpus) +
                                 " of a processor: on a machine as busy as this they say little. Use energy_ratio, "
                                 "which counts CPU seconds, or an idle machine");
        if (!reached)
            context.log->warning(std::string(kWhere) + ": the model was to take " + figure(wanted) +
                                 " of its time and takes " + figure(best_ratio) +
                                 ", measured: the widths within the bounds give no more, or the clock is not steady");
        return best;
    }

    /// Allocates; with only_faster, takes back the cuts that bring no speed and allocates what they leave to the other
    /// groups.
    Removal allocate(const Groups& groups, const std::vector<at::Tensor>& scores, const CostModel& cost,
                     const std::optional<Timing>& timing, Target target, std::map<size_t, std::string>& kept_for_speed,
                     Context& context) const {
        for (;;) {
            if (!kept_for_speed.empty()) target.fixed.resize(groups.all().size());
            for (const auto& [g, reason] : kept_for_speed) target.fixed[g] = 0.0;
            Removal removal;
            try {
                removal = allocation_->allocate(groups, scores, cost, target);
            } catch (const InvalidArgument& error) {
                if (kept_for_speed.empty()) throw;
                throw InvalidArgument(kWhere,
                                      std::to_string(kept_for_speed.size()) +
                                          " groups whose cut brings no speed keep their channels, and then " +
                                          error.what(),
                                      "Use only_faster: false, or ask for less.");
            }
            if (!options_.only_faster) return removal;
            const auto kept = kept_of(groups, removal);
            std::vector<size_t> asked;
            std::vector<LatencyModel::Question> questions;
            for (size_t g = 0; g < kept.size(); ++g) {
                const bool demanded = !target.fixed.empty() && target.fixed[g].has_value();  // by `layers`
                if (kept[g] == groups.all()[g].channels || demanded) continue;
                asked.push_back(g);
                questions.push_back({g, kept});
                questions.back().kept[g] = groups.all()[g].channels;
                questions.push_back({g, kept});
            }
            const auto seconds = timing->latency.measure(questions);
            bool changed = false;
            for (size_t i = 0; i < asked.size(); ++i) {
                // No time at all: none of the operators around it could be timed, and nothing speaks against the cut.
                if (seconds[2 * i + 1] <= 0) continue;
                const double speed_up = seconds[2 * i] / seconds[2 * i + 1];
                if (speed_up >= kLeastSpeedUp) continue;
                changed = true;
                kept_for_speed[asked[i]] = "the cut brings no speed: the operators around it took " +
                                           figure(1 / speed_up, "%.2f") + " of their time";
                context.log->info(groups.all()[asked[i]].name + ": " + kept_for_speed[asked[i]]);
            }
            if (!changed) return removal;
        }
    }

    /// The share that `layers` asks for, per group.
    std::vector<std::optional<double>> fixed(const Groups& groups) const {
        std::vector<std::optional<double>> ratios(groups.all().size());
        std::vector<char> used(layers_.size(), 0);
        for (size_t g = 0; g < ratios.size(); ++g)
            for (const auto& layer : groups.all()[g].layers) {
                std::optional<double> own;
                for (size_t i = 0; i < layers_.size(); ++i) {
                    if (!std::regex_search(layer, layers_[i])) continue;
                    own = options_.layers[i].ratio;
                    used[i] = 1;
                }
                if (own && (!ratios[g] || *own < *ratios[g])) ratios[g] = own;
            }
        for (size_t i = 0; i < layers_.size(); ++i) {
            if (used[i]) continue;
            const auto& [pattern, ratio] = options_.layers[i];
            for (const auto& layer : groups.layers()) {
                if (!std::regex_search(layer.layer, layers_[i])) continue;
                if (ratio > 0)
                    throw InvalidArgument(kWhere,
                                          "layers \"" + pattern + "\" matches no layer that can be pruned: " +
                                              layer.layer + " " + layer.reason,
                                          "See `coppice inspect` for the layers that can.");
                used[i] = 1;
            }
            if (!used[i]) no_match(kWhere, "layers", pattern, groups.layers());
        }
        return ratios;
    }

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
            for (const auto& layer : groups.layers())
                if (std::regex_search(layer.layer, ignore_[i])) used[i] = 1;
            // A layer that cannot be pruned anyway is a match, too.
            if (!used[i]) no_match(kWhere, "ignore", options_.ignore[i], groups.layers());
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
                       const std::map<size_t, std::string>& kept_for_speed, Context& context) {
        std::map<std::string, int64_t> removed;   // indices per producing layer
        std::map<std::string, std::string> slow;  // layer -> why a cut was not made
        for (const auto& [g, reason] : kept_for_speed)
            for (const auto& layer : groups.all()[g].layers) slow[layer] = reason;
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
            if (gone == 0)
                change.reason = !layer.reason.empty()     ? layer.reason
                                : slow.count(layer.layer) ? slow.at(layer.layer)
                                                          : "the target leaves it as it is";
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
        for (size_t g = 0; g < groups.all().size(); ++g)
            if (!removal[g].empty()) context.facts["removed"][groups.all()[g].name] = as_ranges(removal[g]);
        if (!groups.unknown_operators().empty()) context.facts["operators_without_rule"] = groups.unknown_operators();
    }

    std::unique_ptr<Criterion> criterion_;
    std::unique_ptr<Allocation> allocation_;
    ChannelPruningOptions options_;
    std::vector<std::regex> ignore_, layers_;
};

}  // namespace

std::unique_ptr<Stage> channel_pruning(std::unique_ptr<Criterion> criterion, std::unique_ptr<Allocation> allocation,
                                       ChannelPruningOptions options) {
    check_target(options.target);
    if (!options.schedule) options.schedule = one_shot();
    check_steps(*options.schedule, options.steps);
    if (options.refit && !options.rewind_to.empty())
        throw InvalidArgument(kWhere, "refit and rewind_to are both given: rewinding undoes the fit",
                              "Give one of them.");
    if (options.steps > 1 && is_timed(options.target))
        throw InvalidArgument(kWhere, "steps cannot lead to a time, which is measured on the last model only",
                              "Use macs_ratio with steps, or steps: 1.");
    for (const auto& layer : options.layers)
        if (!(layer.ratio >= 0 && layer.ratio < 1))
            throw InvalidArgument(kWhere,
                                  "layers \"" + layer.pattern + "\" is " + figure(layer.ratio) + ", must be in [0, 1)",
                                  "Use 0.5 to remove half of the channels, 0 to keep them.");
    return std::make_unique<ChannelPruning>(std::move(criterion), std::move(allocation), std::move(options));
}

}  // namespace coppice::prune
