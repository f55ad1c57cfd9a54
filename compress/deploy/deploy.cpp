// The stage deploy: makes the forms, compares and times them, keeps the fastest.
#include <ATen/Parallel.h>

#include <coppice/deploy.h>
#include <coppice/error.h>
#include <coppice/graph.h>

#include <cmath>

#include "deploy/timing.h"

namespace coppice {
namespace {

using namespace torch::jit;

const char* const kWhere = "deploy";
// A form must gain at least this much: more operators in the file for less is not worth it.
const double kLeastGain = 0.01;

struct Form {
    std::string name;
    bool fold = false, fuse = false, channels_last = false, bf16 = false, attention = false, merge = false;
};

// From simple to complex; "auto" moves on only for a gain.
const std::vector<Form> kForms = {
    {.name = "as_is"},
    {.name = "folded", .fold = true},
    {.name = "fused", .fold = true, .fuse = true},
    {.name = "attention", .fold = true, .fuse = true, .attention = true},
    {.name = "merged", .fold = true, .fuse = true, .attention = true, .merge = true},
    {.name = "channels_last", .fold = true, .channels_last = true},
    {.name = "fused_channels_last", .fold = true, .fuse = true, .channels_last = true},
    {.name = "bf16", .fold = true, .fuse = true, .channels_last = true, .bf16 = true},
};

struct Candidate {
    std::string name;
    Model model;
    Module stock;                      // saved and loaded, as a user will run it
    std::vector<LayerChange> changes;  // of fold_batch_norm
    int folded = 0, fused = 0, channels_last = 0, bf16 = 0, attention = 0, merged = 0;
    bool failed = false;   // it could not be made
    std::string rejected;  // why it is not measured
    double error = 0;      // largest relative difference of an output

    std::vector<int> rewrites() const { return {folded, fused, channels_last, bf16, attention, merged}; }
};

Module reloaded(const Model& model) {
    std::stringstream archive;
    model.module().save(archive);
    auto module = torch::jit::load(archive, at::kCPU);
    module.eval();
    return module;
}

/// A form that cannot be made is rejected with the reason: the others are none the worse for it.
Candidate make_candidate(const Model& base, const Form& form, const Inputs& example) {
    Candidate candidate;
    candidate.name = form.name;
    candidate.model = base.clone();
    try {
        if (form.fold) candidate.folded = fold_batch_norm(candidate.model, example, &candidate.changes);
        if (form.attention) candidate.attention = fuse_attention(candidate.model, example);
        if (form.merge) candidate.merged = merge_linear(candidate.model, example);
        if (form.fuse) candidate.fused = fuse_elementwise(candidate.model, example);
        if (form.channels_last) candidate.channels_last = to_channels_last(candidate.model, example);
        if (form.bf16) candidate.bf16 = to_bfloat16(candidate.model, example);
    } catch (const std::exception& error) {
        candidate.failed = true;
        candidate.rejected = "it cannot be made: " + message_of(error);
    }
    candidate.model.eval();
    return candidate;
}

/// Largest difference between two outputs relative to the largest magnitude of the expected tensor; infinity when
/// kinds, shapes or whole numbers differ.
double relative_difference(const std::vector<at::Tensor>& expected, const std::vector<at::Tensor>& actual) {
    const double different = std::numeric_limits<double>::infinity();
    if (expected.size() != actual.size()) return different;
    double largest = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        auto a = expected[i], b = actual[i];
        if (a.sizes() != b.sizes() || a.scalar_type() != b.scalar_type()) return different;
        if (a.is_quantized()) a = a.dequantize(), b = b.dequantize();
        if (a.numel() == 0) continue;
        if (!a.is_floating_point()) {
            if (!at::equal(a, b)) return different;
            continue;
        }
        a = a.to(at::kDouble), b = b.to(at::kDouble);
        // Infinity and NaN must stand in the same places; attention masks are a case.
        const auto finite = a.isfinite();
        if (!at::equal(finite, b.isfinite())) return different;
        const auto difference = (a - b).masked_fill(finite.logical_not(), 0).abs().max().item<double>();
        const auto magnitude = a.masked_fill(finite.logical_not(), 0).abs().max().item<double>();
        largest = std::max(largest, difference / std::max(magnitude, 1e-6));
    }
    return largest;
}

std::vector<at::Tensor> outputs(Module module, const Inputs& inputs, uint64_t seed) {
    torch::NoGradGuard no_grad;
    torch::manual_seed(seed);  // a model may draw random numbers in eval mode too
    return all_tensors(module.forward(inputs));
}

/// The inputs cut or repeated to `size` along the first dimension; nullopt when the tensors do not share one.
std::optional<Inputs> with_batch(const Inputs& inputs, int64_t size) {
    std::optional<int64_t> batch;
    Inputs result;
    for (const auto& input : inputs) {
        if (!input.isTensor()) {
            if (input.isInt() || input.isDouble() || input.isBool() || input.isNone() || input.isString()) {
                result.push_back(input);
                continue;
            }
            return std::nullopt;
        }
        const auto tensor = input.toTensor();
        if (tensor.dim() == 0 || tensor.size(0) == 0 || (batch && *batch != tensor.size(0))) return std::nullopt;
        batch = tensor.size(0);
        result.emplace_back(tensor.index_select(0, at::arange(size).remainder(tensor.size(0))));
    }
    return batch ? std::optional<Inputs>(result) : std::nullopt;
}

Json rounded(double value) {
    std::ostringstream text;
    text.precision(5);
    text << value;
    return Json(std::stod(text.str()));
}

struct InputSet {
    int64_t batch;
    Inputs inputs;
};

class Deploy final : public Stage {
public:
    explicit Deploy(DeployOptions options) : options_(std::move(options)) {}

    Model apply(const Model& model, Context& context) const override {
        if (context.example.empty())
            throw InvalidArgument(kWhere, "there is no example input", "Give the model's input shape.");
        refuse_other_methods(model, kWhere);
        auto base = model.clone();
        base.eval();
        const auto subnormal = zero_subnormals(base);
        context.facts["subnormal_weights"] = subnormal;
        if (subnormal)
            context.record({"model", "zeroed", std::to_string(subnormal) + " sub-normal weights", "0",
                            "arithmetic on them is slow"});

        std::vector<Candidate> candidates;
        for (const auto& form : kForms) {
            const bool wanted = options_.form == "auto" ? !form.bf16 || options_.bf16
                                                        : form.name == "as_is" || form.name == options_.form;
            if (wanted) candidates.push_back(make_candidate(base, form, context.example));
        }
        const auto sets = input_sets(base, context);
        compare(candidates, sets, context);
        auto& chosen = options_.form == "auto" ? fastest(candidates, sets, context) : named(candidates, context);
        context.facts["form"] = chosen.name;
        for (auto& change : chosen.changes) context.record(std::move(change));
        remove_unused_attributes(chosen.model);
        chosen.model.refresh();
        verify(chosen.model, context.example, kWhere);
        return chosen.model;
    }

private:
    std::vector<InputSet> input_sets(const Model& base, Context& context) const {
        auto inputs = context.example;
        // Real activations where there are some: zeros and ones of an example run at other speeds and hide differences.
        if (context.data.calibration && context.data.calibration->size() > 0) {
            const int64_t count = std::min<int64_t>(context.data.calibration->size(), 32);
            std::vector<int64_t> rows;
            for (int64_t i = 0; i < count; ++i) rows.push_back(i);
            auto batch = context.data.calibration->batch(rows).inputs;
            if (batch.size() == inputs.size()) inputs = std::move(batch);
        }
        const int64_t own = context.example[0].isTensor() && context.example[0].toTensor().dim() > 0
                                ? context.example[0].toTensor().size(0)
                                : 1;
        std::vector<InputSet> sets;
        const auto same_batch = with_batch(inputs, own);
        sets.push_back({own, same_batch && works(base, *same_batch).empty() ? *same_batch : context.example});
        for (const int64_t size : options_.batch) {
            if (size == own) continue;
            const auto repeated = with_batch(inputs, size);
            const auto problem = repeated ? works(base, *repeated) : std::string("the inputs share no first dimension");
            if (problem.empty())
                sets.push_back({size, *repeated});
            else
                context.log->write(
                    "debug", std::string(kWhere) + ": batch " + std::to_string(size) + " is not measured: " + problem);
        }
        return sets;
    }

    static std::string works(const Model& model, const Inputs& inputs) {
        try {
            torch::NoGradGuard no_grad;
            model.forward(inputs);
            return {};
        } catch (const std::exception& error) {
            return message_of(error);
        }
    }

    /// Loads every candidate as a user would, compares it with the first, and rejects what is the same as a simpler
    /// one.
    void compare(std::vector<Candidate>& candidates, const std::vector<InputSet>& sets, Context& context) const {
        std::vector<std::vector<at::Tensor>> expected;
        std::set<std::vector<int>> seen;
        for (size_t c = 0; c < candidates.size(); ++c) {
            auto& candidate = candidates[c];
            if (candidate.failed) continue;
            if (!seen.insert(candidate.rewrites()).second) {
                candidate.rejected = "nothing to rewrite that a simpler form does not";
                continue;
            }
            try {
                candidate.stock = reloaded(candidate.model);
                for (size_t set = 0; set < sets.size(); ++set) {
                    auto result = outputs(candidate.stock, sets[set].inputs, context.seed);
                    if (c == 0) {
                        expected.push_back(std::move(result));
                        // A model that does not agree with itself cannot be compared; running twice shows it.
                        if (!(relative_difference(expected[set], outputs(candidate.stock, sets[set].inputs,
                                                                         context.seed)) <= options_.tolerance))
                            throw UnsupportedModel(kWhere, "two runs on the same input differ",
                                                   "Leave the stage out with \"deploy: off\".");
                        continue;
                    }
                    candidate.error = std::max(candidate.error, relative_difference(expected[set], result));
                }
            } catch (const Error&) {
                throw;
            } catch (const std::exception& error) {
                if (c == 0) throw UnsupportedModel(kWhere, message_of(error), "");
                candidate.rejected = "it does not run: " + message_of(error);
                continue;
            }
            const double tolerance = candidate.bf16 ? options_.bf16_tolerance : options_.tolerance;
            if (!(candidate.error <= tolerance))
                candidate.rejected = "outputs differ by " + rounded(candidate.error).dump() +
                                     " of their largest magnitude, more than " + rounded(tolerance).dump();
        }
    }

    Candidate& named(std::vector<Candidate>& candidates, Context& context) const {
        auto& chosen = candidates.back();
        const bool same = !chosen.failed && chosen.name != "as_is" && chosen.rewrites() == candidates[0].rewrites();
        if (same) {
            already_fastest(context);
            return candidates[0];
        }
        if (!chosen.rejected.empty())
            throw UnsupportedModel(kWhere + std::string(" form ") + chosen.name, chosen.rejected,
                                   "Use \"form: auto\", which leaves such a form out.");
        context.facts["forms"] =
            Json::array({{{"name", chosen.name}, {"error_ratio", rounded(chosen.error)}, {"kept", true}}});
        return chosen;
    }

    static void already_fastest(Context& context) {
        context.record(
            {"model", "kept", "", "", "already in its fastest known form: nothing to fold, fuse or reorder"});
    }

    Candidate& fastest(std::vector<Candidate>& candidates, const std::vector<InputSet>& all_sets,
                       Context& context) const {
        std::vector<size_t> measured;
        for (size_t c = 0; c < candidates.size(); ++c)
            if (candidates[c].rejected.empty()) measured.push_back(c);
        Json rows = Json::array();
        const auto row_of = [&](const Candidate& candidate) {
            Json row = {{"name", candidate.name},
                        {"folded", candidate.folded},
                        {"fused", candidate.fused},
                        {"attention", candidate.attention},
                        {"merged", candidate.merged},
                        {"channels_last", candidate.channels_last},
                        {"error_ratio", rounded(candidate.error)}};
            return row;
        };
        if (measured.size() == 1) {
            for (const auto& candidate : candidates) {
                auto row = row_of(candidate);
                row["kept"] = &candidate == &candidates[0];
                if (!candidate.rejected.empty()) row["reason"] = candidate.rejected;
                rows.push_back(row);
            }
            context.facts["forms"] = rows;
            already_fastest(context);
            return candidates[0];
        }

        std::vector<Module> modules;
        for (const size_t c : measured) modules.push_back(candidates[c].stock);
        // A batch size that eats the whole budget in six rounds is left out, unless it is the only one.
        std::vector<InputSet> sets;
        for (const auto& set : all_sets) {
            if (!sets.empty() &&
                seconds_of_call(modules[0], set.inputs) * 6 * double(modules.size()) > options_.seconds) {
                context.log->write(
                    "debug", std::string(kWhere) + ": batch " + std::to_string(set.batch) + " is too slow to measure");
                continue;
            }
            sets.push_back(set);
        }
        std::vector<Inputs> inputs;
        for (const auto& set : sets) inputs.push_back(set.inputs);
        const auto times = interleaved_times(modules, inputs, options_.seconds, context.seed, context.interrupted);
        if (context.interrupted()) throw Interrupted(kWhere, "stopped by request", "");
        const size_t rounds = times[0][0].size();

        const auto choice = choose_fastest(times, kLeastGain);
        const auto reason = [&](size_t m) {
            return choice.reasons[m] + " " + candidates[measured[choice.rivals[m]]].name;
        };
        size_t m = 0;
        for (size_t c = 0; c < candidates.size(); ++c) {
            auto row = row_of(candidates[c]);
            row["kept"] = c == measured[choice.best];
            if (m < measured.size() && measured[m] == c) {
                for (size_t set = 0; set < sets.size(); ++set)
                    row["seconds"][std::to_string(sets[set].batch)] = rounded(median_interval(times[m][set]).median);
                const auto& ratio = choice.ratio[m];
                row["time_ratio"] = rounded(ratio.median);
                row["time_ratio_interval"] = {rounded(ratio.low), rounded(ratio.high)};
                row["provenance"] = "measured";
                if (m != choice.best) row["reason"] = reason(m);
                if (c > 0)
                    context.record({"model as " + candidates[c].name, m == choice.best ? "kept" : "rejected", "1",
                                    row["time_ratio"].dump() + " of the time",
                                    m == choice.best ? "fastest measured" : reason(m)});
                ++m;
            } else {
                row["reason"] = candidates[c].rejected;
            }
            rows.push_back(row);
        }
        if (choice.best == 0) context.record({"model", "kept", "", "", "no other form was faster beyond noise"});
        context.facts["forms"] = rows;
        context.facts["rounds"] = rounds;
        context.facts["threads"] = at::get_num_threads();
        return candidates[measured[choice.best]];
    }

    const DeployOptions options_;
};

std::vector<std::string> form_names() {
    std::vector<std::string> names = {"auto"};
    for (const auto& form : kForms) names.push_back(form.name);
    return names;
}

}  // namespace

std::unique_ptr<Stage> deploy(DeployOptions options) {
    require_known(kWhere, "form", options.form, form_names());
    if (!(options.tolerance >= 0) || !(options.bf16_tolerance >= 0) || !(options.seconds >= 0))
        throw InvalidArgument(kWhere, "a tolerance or the time is negative or NaN", "");
    for (const int64_t size : options.batch)
        if (size < 1) throw InvalidArgument(kWhere, "batch holds " + std::to_string(size) + ", must be at least 1", "");
    return std::make_unique<Deploy>(std::move(options));
}

const std::vector<Entry<Stage>>& deploy_stages() {
    static const std::vector<Entry<Stage>> table = {
        {"deploy", "the same function in the form that stock LibTorch runs fastest here, by measuring", [](Options& o) {
             DeployOptions options;
             options.form =
                 o.choice("form", options.form, form_names(), "auto measures; a name applies that form unmeasured");
             options.bf16 = o.boolean("bf16", options.bf16, "let auto try bfloat16, which changes values");
             options.tolerance =
                 o.number_in("tolerance", options.tolerance, 0, 1, "largest relative difference of an output");
             options.bf16_tolerance =
                 o.number_in("bf16_tolerance", options.bf16_tolerance, 0, 1, "the same for bfloat16");
             options.seconds = o.number_in("seconds", options.seconds, 0, 3600, "budget of measuring");
             options.batch = o.integers("batch", options.batch, "batch sizes to measure beside the example's");
             return deploy(std::move(options));
         }}};
    return table;
}

}  // namespace coppice
