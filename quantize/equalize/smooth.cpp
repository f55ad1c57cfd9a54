// SmoothQuant (Xiao et al., arXiv 2211.10438).
//
//     before  y = W norm(x),           norm(x) = g * normalised(x) + h
//     after   y = (W S) norm'(x),      norm'(x) = g / s * normalised(x) + h / s
//
// with s_j = max|x_j|^a / max|W[:, j]|^(1-a). It fires where a layer norm or rms norm with a weight of its own feeds
// linear layers with weights of their own. Where something else reads it too (the residual sum of a post-norm
// transformer, the model's output), that gets norm'(x) * s, one multiplication for all such readers: the weight of the
// norm moves behind it, as in Outlier Suppression (Wei et al., arXiv 2209.13325, "gamma migration", there with s = g).
// The multiplication is by a parameter, so int8 plans leave it in float: what follows it, an int8 addition included,
// reads the numbers that the norm gave before.
//
// Whether it helps is measured by SmoothOptions::norms "gain": noise of the linear layers with inputs and weights
// rounded, on rows of the calibration data, before and after. At few bits the weights' new range can cost more than
// the inputs' saves.
#include <torch/csrc/jit/ir/alias_analysis.h>

#include <algorithm>
#include <cmath>

#include <coppice/error.h>
#include <coppice/quantize.h>

#include "calibration/calibration.h"
#include "equalize/pairs.h"
#include "layers/layers.h"
#include "plan/plan.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

constexpr const char* kWhere = "quantize.smooth";
constexpr int64_t kRows = 256;  // of a norm's output, on which noise is measured

/// Noise must fall by so much, in dB, to be worth a multiplication of everything the norm gives.
constexpr double kWorthMultiplying = 1;

/// A norm that is or might be smoothed.
struct Candidate {
    Node* norm;
    std::vector<Node*> linear;
    bool read_elsewhere = false;
    // Of what the norm gives, [C] and [rows, C].
    at::Tensor largest;
    std::vector<at::Tensor> rows;
};

std::string why_not(const Model& model, const NormView& view, const SoleReaders& sole, const AliasDb& aliases,
                    const SmoothOptions& options, Candidate& site) {
    if (!view.has_weight || !sole.alone(model, view.weight)) return "it has no weight of its own";
    if (parameter_of(model, view.weight)->scalar_type() != at::kFloat) return "its weight is not float32";
    if (view.has_bias && !sole.alone(model, view.bias)) return "its bias is read elsewhere too";
    const auto* output = view.node->output();
    for (const auto& use : output->uses()) {
        if (reads_no_values(use.user)) continue;
        const auto linear = as_linear(use.user);
        if (linear && linear->input == output && sole.alone(model, linear->weight))
            site.linear.push_back(use.user);
        else
            site.read_elsewhere = true;
    }
    if (site.linear.empty()) return "no linear layer with a weight of its own reads it";
    if (site.read_elsewhere && options.norms == "free") return "not only linear layers read it";
    if (site.read_elsewhere && aliases.hasWriters(output)) return "another operator writes into it in place";
    return "";
}

/// s, float64 [C]; 1 where the input or the weights are zero.
at::Tensor factors(const Model& model, const Candidate& site, double alpha) {
    auto w = at::zeros_like(site.largest);
    for (Node* node : site.linear) w = at::maximum(w, anchor_weight(model, node).abs().amax(0).to(at::kDouble));
    const auto& x = site.largest;
    const auto factor = x.pow(alpha) / w.pow(1 - alpha);
    return at::where((x > 0) & (w > 0) & factor.isfinite(), factor, at::ones_like(factor));
}

/// Power of the rounding noise over that of the output, summed over the linear layers behind a norm.
double noise_ratio(const Model& model, const Candidate& site, const at::Tensor& s, const SmoothOptions& options) {
    const auto x = at::cat(site.rows).to(at::kDouble) / s;
    const auto observer = (options.observer ? *options.observer : *histogram()).fresh();
    observer->observe(x.to(at::kFloat));
    const auto rounded = fake_quantize(x.to(at::kFloat), affine(observer->range(kActivationLevels), kActivationLevels));
    GridOptions grid;
    grid.bits = options.weight_bits;
    grid.one_scale = !options.per_channel;
    grid.least_error = options.fit_weights;
    double sum = 0;
    for (Node* node : site.linear) {
        const auto w = anchor_weight(model, node).to(at::kDouble) * s;
        const auto rounded_w = nearest()->round(w.to(at::kFloat).contiguous(), grid, nullptr).values();
        const auto exact = x.mm(w.t()), noise = exact - rounded.to(at::kDouble).mm(rounded_w.to(at::kDouble).t());
        const double signal = exact.square().sum().item<double>();
        if (signal > 0) sum += noise.square().sum().item<double>() / signal;
    }
    return sum;
}

std::string changes_by(double gain_db) {
    return (gain_db < 0 ? "grow by " : "fall by ") + formatted("%.1f dB", std::abs(gain_db));
}

void scale(Model& model, const Candidate& site, const at::Tensor& s) {
    const auto view = *as_norm(site.norm);
    const auto set = [&](const Value* value, const at::Tensor& content) {
        set_tensor(model, *attribute_name(value), content.to(at::kFloat));
    };
    set(view.weight, parameter_of(model, view.weight)->detach() / s);
    if (view.has_bias) set(view.bias, parameter_of(model, view.bias)->detach() / s);
    for (Node* node : site.linear) {
        const auto linear = *as_linear(node);
        set(linear.weight, parameter_of(model, linear.weight)->detach() *
                               (linear.weight_transposed ? s.unsqueeze(1) : s.unsqueeze(0)));
    }
    if (!site.read_elsewhere) return;
    Value* output = site.norm->output();
    const auto uses = output->uses();
    auto graph = model.graph();
    Node* behind = site.norm->next();
    Value* factor = store(model, s.to(at::kFloat), *attribute_name(view.weight), "smoothing", behind, Role::kBuffer);
    WithInsertPoint guard(behind);
    Value* product = graph->insert(aten::mul, {output, factor});
    product->setType(output->type());
    for (const auto& use : uses)
        if (!reads_no_values(use.user) &&
            std::find(site.linear.begin(), site.linear.end(), use.user) == site.linear.end())
            use.user->replaceInput(use.offset, product);
}

}  // namespace

int smooth(Model& model, const Inputs&, const std::vector<Inputs>& calibration, const SmoothOptions& options,
           std::vector<LayerChange>* changes) {
    return smooth(model, Calibration(calibration), options, changes).norms;
}

int smooth(Model& model, const Inputs&, const Calibration& calibration, const SmoothOptions& options,
           std::vector<LayerChange>* changes) {
    return smooth(model, calibration, options, changes).norms;
}

Smoothed smooth(Model& model, const Calibration& calibration, const SmoothOptions& options,
                std::vector<LayerChange>* changes) {
    if (!(options.alpha > 0 && options.alpha <= 1))
        throw InvalidArgument(kWhere, "alpha is " + std::to_string(options.alpha) + ", must be in (0, 1]", "Use 0.5.");
    check_smooth_norms(kWhere, options.norms);
    if (calibration.size() == 0)
        throw InvalidArgument(kWhere, "there is no calibration data", "Give at least one batch.");
    torch::NoGradGuard no_grad;
    const SoleReaders sole(model);
    const LayerNames names(model);
    const AliasDb aliases(model.graph());
    std::vector<Candidate> sites;
    Smoothed result;
    const auto keep = [&](const Node* norm, const std::string& reason) {
        if (changes) changes->push_back({names.of(norm), "kept", "", "", "smooth: " + reason});
    };
    for (Node* node : all_nodes(*model.graph())) {
        const auto view = as_norm(node);
        if (!view || (view->kind != NormView::Kind::kLayer && view->kind != NormView::Kind::kRms)) continue;
        if (view->normalized_shape.size() != 1) continue;
        ++result.of;
        Candidate site{node, {}, false, {}, {}};
        const auto reason = why_not(model, *view, sole, aliases, options, site);
        if (reason.empty())
            sites.push_back(std::move(site));
        else
            keep(node, reason);
    }
    std::unordered_map<const Node*, Candidate*> site_of;
    for (auto& site : sites) site_of[site.norm] = &site;
    const int64_t rows_of_batch = (kRows + calibration.size() - 1) / calibration.size();
    NodeHooks hooks;
    hooks.after = [&](const Node* node, std::vector<c10::IValue>& outputs) {
        const auto found = site_of.find(node);
        if (found == site_of.end()) return;
        auto& site = *found->second;
        const auto rows = outputs[0].toTensor().reshape({-1, outputs[0].toTensor().size(-1)});
        if (rows.size(0) == 0) return;
        const auto seen = rows.abs().amax(0).to(at::kDouble);
        site.largest = site.largest.defined() ? at::maximum(site.largest, seen) : seen;
        const int64_t step = (rows.size(0) + rows_of_batch - 1) / rows_of_batch;
        site.rows.push_back(rows.slice(0, 0, rows.size(0), step).clone());
    };
    run_batches(model, calibration, hooks, "smoothing", options.progress);
    for (const auto& site : sites) {
        if (!site.largest.defined()) {
            keep(site.norm, "no calibration batch reaches it");
            continue;
        }
        const auto s = factors(model, site, options.alpha);
        const double before = noise_ratio(model, site, at::ones_like(s), options);
        const double gain = sqnr_db(before, noise_ratio(model, site, s, options));
        if (options.norms == "gain" && gain < (site.read_elsewhere ? kWorthMultiplying : 0)) {
            keep(site.norm, "noise of the layers behind it would " + changes_by(gain) +
                                (site.read_elsewhere ? ", not worth a multiplication for what else reads it" : ""));
            continue;
        }
        scale(model, site, s);
        ++result.norms;
        result.multiplied += site.read_elsewhere;
        if (changes)
            changes->push_back({names.of(site.norm), "smoothed", "", "",
                                "noise of the layers behind it should " + changes_by(gain) +
                                    (site.read_elsewhere ? "; what else reads it is multiplied back" : "")});
    }
    if (result.multiplied > 0) model.refresh();
    return result;
}

void check_smooth_norms(const char* where, const std::string& norms) {
    require_known(where, "smooth_norms", norms, {"all", "free", "gain"});
}

}  // namespace coppice::quantize
