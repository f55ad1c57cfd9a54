// SmoothQuant (Xiao et al., arXiv 2211.10438).
//
//     before  y = W norm(x),           norm(x) = g * normalised(x) + h
//     after   y = (W S) norm'(x),      norm'(x) = g / s * normalised(x) + h / s,    s_j = max|x_j|^a / max|W[:,
//     j]|^(1-a)
//
// It fires where a layer norm or rms norm with a weight of its own feeds nothing but linear layers. Where something
// else reads it (the residual of a post-norm transformer), it is left, with that reason.
#include <coppice/error.h>
#include <coppice/quantize.h>

#include "calibration/calibration.h"
#include "equalize/pairs.h"
#include "plan/units.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

struct Treated {
    Node* norm;
    std::vector<Node*> readers;
};

std::string why_not(const Model& model, const NormView& view, const SoleReaders& sole, std::vector<Node*>& readers) {
    if (!view.has_weight || !sole.alone(model, view.weight)) return "it has no weight of its own";
    if (view.has_bias && !sole.alone(model, view.bias)) return "its bias is read elsewhere too";
    for (const auto& use : view.node->output()->uses()) {
        if (reads_no_values(use.user)) continue;
        const auto linear = as_linear(use.user);
        if (!linear || linear->input != view.node->output()) return "not only linear layers read it";
        if (!sole.alone(model, linear->weight)) return "the weight of a layer behind it is read elsewhere too";
        readers.push_back(use.user);
    }
    return readers.empty() ? "nothing reads it" : "";
}

}  // namespace

int smooth(Model& model, const Inputs& example, const std::vector<Inputs>& calibration, double alpha,
           std::vector<LayerChange>* changes) {
    return smooth(model, example, Calibration(calibration), alpha, changes);
}

int smooth(Model& model, const Inputs&, const Calibration& calibration, double alpha,
           std::vector<LayerChange>* changes) {
    return smooth(model, calibration, alpha, changes, {});
}

int smooth(Model& model, const Calibration& calibration, double alpha, std::vector<LayerChange>* changes,
           const Progress& progress) {
    if (!(alpha > 0 && alpha <= 1))
        throw InvalidArgument("quantize.smooth", "alpha is " + std::to_string(alpha) + ", must be in (0, 1]",
                              "Use 0.5.");
    if (calibration.size() == 0)
        throw InvalidArgument("quantize.smooth", "there is no calibration data", "Give at least one batch.");
    torch::NoGradGuard no_grad;
    const SoleReaders sole(model);
    const LayerNames names(model);
    std::vector<Treated> sites;
    for (Node* node : all_nodes(*model.graph())) {
        const auto view = as_norm(node);
        if (!view || (view->kind != NormView::Kind::kLayer && view->kind != NormView::Kind::kRms)) continue;
        if (view->normalized_shape.size() != 1) continue;
        std::vector<Node*> readers;
        const auto reason = why_not(model, *view, sole, readers);
        if (reason.empty())
            sites.push_back({node, readers});
        else if (changes)
            changes->push_back({names.of(node), "kept", "", "", "smooth: " + reason});
    }
    std::unordered_map<const Node*, at::Tensor> largest;  // max |x_j| of what the norm gives
    for (const auto& site : sites) largest[site.norm] = at::Tensor();
    NodeHooks hooks;
    hooks.after = [&](const Node* node, std::vector<c10::IValue>& outputs) {
        const auto found = largest.find(node);
        if (found == largest.end()) return;
        const auto values = outputs[0].toTensor();
        const auto seen = values.reshape({-1, values.size(-1)}).abs().amax(0).to(at::kDouble);
        found->second = found->second.defined() ? at::maximum(found->second, seen) : seen;
    };
    run_batches(model, calibration, hooks, "smoothing", progress);
    int treated = 0;
    for (const auto& site : sites) {
        const auto x = largest.at(site.norm);
        if (!x.defined()) continue;
        auto w = at::zeros_like(x);
        for (Node* node : site.readers) {
            const auto view = *as_linear(node);
            const auto weight = parameter_of(model, view.weight)->detach();
            w = at::maximum(w, weight.abs().amax(view.weight_transposed ? 1 : 0).to(at::kDouble));
        }
        const auto factor = x.pow(alpha) / w.pow(1 - alpha);
        const auto usable = at::where((x > 0) & (w > 0) & factor.isfinite(), factor, at::ones_like(factor));
        const auto view = *as_norm(site.norm);
        const auto divide = [&](const Value* value) {
            set_tensor(model, *attribute_name(value), (parameter_of(model, value)->detach() / usable).to(at::kFloat));
        };
        divide(view.weight);
        if (view.has_bias) divide(view.bias);
        for (Node* node : site.readers) {
            const auto linear = *as_linear(node);
            const auto weight = parameter_of(model, linear.weight)->detach();
            const auto columns = linear.weight_transposed ? usable.unsqueeze(1) : usable.unsqueeze(0);
            set_tensor(model, *attribute_name(linear.weight), (weight * columns).to(at::kFloat));
        }
        if (changes) changes->push_back({names.of(site.norm), "smoothed", "", "", ""});
        ++treated;
    }
    return treated;
}

}  // namespace coppice::quantize
