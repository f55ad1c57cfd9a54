// Asymmetric reconstruction: a layer's rounded weight W' reads x', what the int8 layers before it give, and shall come
// close to what the float weight W makes of the float model's x (Nagel et al., arXiv 2004.10568, section 3.3; for GPTQ
// Li et al., arXiv 2504.02692):
//
//     least over W' of  E |W x - W' x'|^2
//
// That is  const + tr (W' - V) M' (W' - V)^T  with M' = E[x' x'^T] and V = W + W E[(x - x') x'^T] (M' + l)^-1, the best
// real weight. So any rounding serves, given V for the weight and M' for the moments; AdaRound's and GPTQ's code stays
// as it is. l keeps V near W where inputs hardly vary. AdaRound's paper puts the activation function into the loss too,
// which is then not quadratic and is left out here.
#include "plan/in_turn.h"

#include <coppice/run_part.h>

#include "layers/layers.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

constexpr double kDamping = 0.01;  // share of the mean of the moments' diagonal, GPTQ's

/// Sums over rows of one group, float64.
struct Sums {
    InputMoments rounded;  ///< of x'
    at::Tensor cross;      ///< (x - x') x'^T, [n, n]
    at::Tensor mean;       ///< of x, [n]
};

class InTurn {
public:
    InTurn(StaticPlan::Impl& plan, const std::vector<Inputs>& calibration, const RoundWeight& round)
        : plan_(plan), round_(round), names_(plan.model) {
        for (const auto& unit : plan.units)
            if (unit.anchor() && plan.weights.count(unit.node)) anchors_[unit.node] = &unit;
        const auto graph = plan.model.graph();
        for (const auto& inputs : calibration) {
            Values exact, rounded;
            exact[graph->inputs()[0]] = rounded[graph->inputs()[0]] = plan.model.module()._ivalue();
            for (size_t i = 0; i < inputs.size(); ++i)  // clones: what could not be made pure works in place
                for (auto* values : {&exact, &rounded})
                    (*values)[graph->inputs()[i + 1]] =
                        inputs[i].isTensor() ? c10::IValue(inputs[i].toTensor().clone()) : inputs[i];
            batches_.push_back({std::move(exact), std::move(rounded)});
        }
    }

    void run() {
        torch::NoGradGuard no_grad;
        const auto graph = plan_.model.graph();
        const std::vector<Node*> nodes(graph->nodes().begin(), graph->nodes().end());
        const auto dead = last_uses(nodes);
        NodeHooks hooks;
        hooks.before = [this](const Node* node, std::vector<c10::IValue>& stack) {
            if (const auto found = anchors_.find(node); found != anchors_.end())
                round_anchor(plan_, *found->second, stack);
        };
        hooks.after = [this](const Node* node, std::vector<c10::IValue>& outputs) {
            if (const auto bias = bias_behind(plan_, node); bias.defined()) outputs[0] = outputs[0].toTensor() + bias;
        };
        for (size_t i = 0; i < nodes.size(); ++i) {
            if (anchors_.count(nodes[i])) round(nodes[i]);
            for (auto& [exact, rounded] : batches_) {
                run_part(plan_.model, {nodes[i]}, exact);
                run_part(plan_.model, {nodes[i]}, rounded, hooks);
                for (const auto* value : dead[i]) {
                    exact.erase(value);
                    rounded.erase(value);
                }
            }
            if (plan_.options.progress && anchors_.count(nodes[i]))
                plan_.options.progress("rounding layers in turn", static_cast<double>(i),
                                       static_cast<double>(nodes.size()), names_.of(nodes[i]));
        }
    }

private:
    /// Values whose last reader is each node, blocks inside of nodes included.
    static std::vector<std::vector<const Value*>> last_uses(const std::vector<Node*>& nodes) {
        std::unordered_map<const Value*, size_t> last;
        const std::function<void(const Node*, size_t)> read = [&](const Node* node, size_t place) {
            for (const auto* input : node->inputs()) last[input] = place;
            for (const auto* block : node->blocks()) {
                for (const Node* inner : block->nodes()) read(inner, place);
                for (const auto* output : block->outputs()) last[output] = place;
            }
        };
        for (size_t i = 0; i < nodes.size(); ++i) {
            for (const auto* output : nodes[i]->outputs()) last[output] = i;
            read(nodes[i], i);
        }
        std::vector<std::vector<const Value*>> dead(nodes.size());
        for (const auto& [value, place] : last) dead[place].push_back(value);
        return dead;
    }

    std::vector<Sums> sums(const Node* node) const {
        const auto* input = node->input(anchor_inputs(node).tensor);
        const auto& parameters = plan_.parameters.at(anchors_.at(node)->inputs[0]);
        std::vector<Sums> all;
        for (const auto& [exact, rounded] : batches_) {
            const auto x = rows_of(plan_.model, node, exact.at(input).toTensor());
            const auto y = rows_of(plan_.model, node, fake_quantize(rounded.at(input).toTensor(), parameters));
            if (all.empty()) all.resize(x.size());
            for (size_t g = 0; g < x.size(); ++g) {
                const auto add = [first = !all[g].mean.defined()](at::Tensor& sum, const at::Tensor& part) {
                    sum = first ? part.to(at::kDouble) : sum + part;
                };
                auto& sum = all[g];
                add(sum.rounded.second, y[g].t().mm(y[g]));
                add(sum.rounded.mean, y[g].sum(0, false, at::kDouble));
                add(sum.rounded.magnitude, y[g].abs().sum(0, false, at::kDouble));
                add(sum.cross, (x[g] - y[g]).t().mm(y[g]));
                add(sum.mean, x[g].sum(0, false, at::kDouble));
                sum.rounded.rows += x[g].size(0);
            }
        }
        for (auto& sum : all) {
            const auto rows = static_cast<double>(std::max<int64_t>(sum.rounded.rows, 1));
            for (auto* tensor : {&sum.rounded.second, &sum.rounded.mean, &sum.rounded.magnitude, &sum.cross, &sum.mean})
                *tensor /= rows;
        }
        return all;
    }

    /// V of one group, [out, n].
    static at::Tensor best_real(const at::Tensor& weight, const Sums& sums) {
        auto damped = sums.rounded.second.clone();
        auto diagonal = damped.diagonal();
        diagonal.add_(std::max(kDamping * diagonal.mean().item<double>(), 1e-12));
        const auto [lower, info] = at::linalg_cholesky_ex(damped);
        if (info.item<int>() != 0) return weight;  // NaN or infinity, which observers refuse
        return weight + at::cholesky_solve(weight.mm(sums.cross).t(), lower).t();
    }

    void round(Node* node) {
        const auto weight = anchor_weight(plan_.model, node).to(at::kFloat);
        const auto all = sums(node);
        const auto parts =
            weight.reshape({weight.size(0), -1}).to(at::kDouble).chunk(static_cast<int64_t>(all.size()), 0);
        std::vector<at::Tensor> targets, means;
        std::vector<InputMoments> moments;
        for (size_t g = 0; g < all.size(); ++g) {
            targets.push_back(best_real(parts[g], all[g]));
            means.push_back(parts[g].mv(all[g].mean));
            moments.push_back(all[g].rounded);
        }
        plan_.weights[node] = round_(node, at::cat(targets).to(at::kFloat).reshape(weight.sizes()), moments);
        if (!plan_.options.bias_correction) return;
        // b' = b + W E[x] - W' E[x']
        const auto rounded = plan_.weights.at(node).dequantize().reshape({weight.size(0), -1}).to(at::kDouble);
        const auto rounded_parts = rounded.chunk(static_cast<int64_t>(all.size()), 0);
        for (size_t g = 0; g < all.size(); ++g) means[g] -= rounded_parts[g].mv(all[g].rounded.mean);
        set_bias(plan_, node, at::cat(means));
    }

    StaticPlan::Impl& plan_;
    const RoundWeight& round_;
    const LayerNames names_;
    std::unordered_map<const Node*, const Unit*> anchors_;
    std::vector<std::pair<Values, Values>> batches_;  ///< of the float model, and with int8 layers as they are rounded
};

}  // namespace

void round_in_turn(StaticPlan::Impl& plan, const std::vector<Inputs>& calibration, const RoundWeight& round) {
    InTurn(plan, calibration, round).run();
}

}  // namespace coppice::quantize
