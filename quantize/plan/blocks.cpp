// Block reconstruction (Li et al., arXiv 2102.05426): what AdaRound does for a layer, for all layers of a block by the
// block's output z:
//
//     least over V of  E sum F (z' - z)^2 / E0  +  10/n sum (1 - |2 h(V) - 1|^beta)       (n weights; see soft.h)
//
// z is of the float model, z' of the block with soft-rounded weights on what the rounded blocks before it give, E0 the
// error of the rounding that was there. F weighs elements. The paper's F is the squared gradient of the task's loss at
// each example's z; a plan knows neither task nor labels, so the squared error of the model's output y takes the loss's
// place: F = E (e^T dy/dz)^2 over examples, with random signs e for each, which is the mean over examples of the sum of
// squares of dy/dz. Activations are not rounded meanwhile, as in the paper. In the end h becomes 0 or 1, and a block
// that did not get better keeps the rounding that it had.
#include "plan/blocks.h"

#include <ATen/CPUGeneratorImpl.h>
#include <coppice/dataflow.h>
#include <coppice/run_part.h>
#include <torch/autograd.h>
#include <torch/optim/adam.h>

#include <coppice/error.h>

#include <cstdio>

#include "rounding/grid.h"
#include "rounding/soft.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

constexpr uint64_t kSeed = 0;
constexpr double kRegulariser = 10;  // with 1, h ends between 0 and 1, and making it either undoes what was learned

/// Numbers, and lists of them: they say how large something is and carry no activations.
bool is_number(const Value* value) {
    const auto kind = value->type()->kind();
    if (kind == c10::TypeKind::ListType) {
        const auto element = value->type()->expect<c10::ListType>()->getElementType()->kind();
        return element != c10::TypeKind::TensorType;
    }
    return kind == c10::TypeKind::IntType || kind == c10::TypeKind::FloatType || kind == c10::TypeKind::BoolType ||
           kind == c10::TypeKind::NumberType || kind == c10::TypeKind::NoneType || kind == c10::TypeKind::DeviceObjType;
}

/// Depends on the input and carries activations.
bool carries(const std::set<const Value*>& dependent, const Value* value) {
    return dependent.count(value) > 0 && !is_number(value);
}

class Reconstruction {
public:
    Reconstruction(StaticPlan::Impl& plan, const std::vector<Inputs>& calibration, const BlockOptions& options)
        : plan_(plan),
          calibration_(calibration),
          options_(options),
          blocks_(find_blocks(plan.model, plan.facts, plan.units)),
          generator_(at::make_generator<at::CPUGeneratorImpl>(kSeed)) {}

    void run() {
        if (blocks_.empty()) return;
        begin();
        const LayerNames names(plan_.model);
        std::vector<at::Tensor> importance(blocks_.size());
        if (options_.loss == "fisher") importance = importances();
        torch::NoGradGuard no_grad;
        for (size_t i = 0; i < blocks_.size(); ++i) {
            const auto& block = blocks_[i];
            std::vector<Node*> anchors;
            for (Node* node : block.nodes)
                if (plan_.weights.count(node)) anchors.push_back(node);
            if (!anchors.empty()) {
                std::vector<at::Tensor> targets;
                for (auto& batch : batches_) targets.push_back(forward(block, batch, batch.exact, {}));
                reconstruct(block, anchors, targets, importance[i], names.of(anchors.front()),
                            static_cast<double>(i) / static_cast<double>(blocks_.size()));
                for (size_t b = 0; b < batches_.size(); ++b) batches_[b].exact = targets[b];
            } else {
                for (auto& batch : batches_) batch.exact = forward(block, batch, batch.exact, {});
            }
            const auto weights = rounded_weights();
            for (auto& batch : batches_) batch.rounded = forward(block, batch, batch.rounded, weights);
        }
    }

private:
    /// By anchor, as its operator reads it.
    using Weights = std::unordered_map<const Node*, at::Tensor>;

    struct BatchState {
        int64_t examples = 0;
        Values numbers;             ///< what the float model computed on the way that is no activation
        at::Tensor exact, rounded;  ///< at the border that was reached: of the float model, of the rounded one
    };

    /// Weights and constants are read once, every batch goes to the first block.
    void begin() {
        torch::NoGradGuard no_grad;
        const auto graph = plan_.model.graph();
        dependent_ = dependent_values(*graph);
        std::vector<Node*> head, independent;
        std::set<const Node*> inside;
        for (const auto& block : blocks_) inside.insert(block.nodes.begin(), block.nodes.end());
        bool before = blocks_.front().input->node()->kind() != prim::Param;
        for (Node* node : graph->nodes()) {
            const bool depends = std::any_of(node->outputs().begin(), node->outputs().end(),
                                             [&](const Value* output) { return dependent_.count(output) > 0; });
            if (inside.count(node)) before = false;
            if (!depends)
                independent.push_back(node);
            else if (before)
                head.push_back(node);
        }
        fixed_[graph->inputs()[0]] = plan_.model.module()._ivalue();
        run_part(plan_.model, independent, fixed_);
        for (const auto& inputs : calibration_) {
            BatchState batch;
            batch.examples = first_tensor(inputs[0]).size(0);
            for (const bool rounded : {false, true}) {
                auto values = fixed_;
                for (size_t i = 0; i < inputs.size(); ++i) values[graph->inputs()[i + 1]] = inputs[i];
                run_part(plan_.model, head, values, weight_hooks(rounded ? rounded_weights() : Weights()));
                (rounded ? batch.rounded : batch.exact) = values.at(blocks_.front().input).toTensor();
                keep_numbers(values, batch);
            }
            batches_.push_back(std::move(batch));
        }
    }

    void keep_numbers(const Values& values, BatchState& batch) const {
        for (const auto& [value, content] : values)
            if (dependent_.count(value) && is_number(value)) batch.numbers[value] = content;
    }

    NodeHooks weight_hooks(const Weights& weights) const {
        NodeHooks hooks;
        if (!weights.empty())
            hooks.before = [weights](const Node* node, std::vector<c10::IValue>& stack) {
                if (const auto found = weights.find(node); found != weights.end())
                    stack[anchor_inputs(node).weight] = found->second;
            };
        return hooks;
    }

    Weights rounded_weights() const {
        Weights weights;
        for (const auto& unit : plan_.units)
            if (const auto found = plan_.weights.find(unit.node); found != plan_.weights.end())
                weights[unit.node] = rounded_weight(unit, found->second);
        return weights;
    }

    at::Tensor forward(const Block& block, BatchState& batch, const at::Tensor& input, const Weights& weights) const {
        auto values = fixed_;
        for (const auto& [value, content] : batch.numbers) values[value] = content;
        values[block.input] = block_mutates(block) ? input.clone() : input;
        run_part(plan_.model, block.nodes, values, weight_hooks(weights));
        keep_numbers(values, batch);
        return values.at(block.output).toTensor();
    }

    static bool block_mutates(const Block& block) {
        return std::any_of(block.nodes.begin(), block.nodes.end(), [](const Node* node) {
            const auto* schema = node->maybeSchema();
            return schema && schema->is_mutable();
        });
    }

    /// E (e^T dy/dz)^2 over examples for every block's output z, [1, ...]; undefined where dimension 0 is not the
    /// examples.
    std::vector<at::Tensor> importances() {
        std::unordered_map<const Node*, size_t> maker;
        for (size_t i = 0; i < blocks_.size(); ++i) maker[blocks_[i].output->node()] = i;
        std::vector<at::Tensor> sums(blocks_.size());
        int64_t examples = 0;
        for (size_t b = 0; b < calibration_.size(); ++b) {
            at::AutoGradMode gradients(true);
            std::vector<at::Tensor> outputs(blocks_.size());
            NodeHooks hooks;
            hooks.after = [&](const Node* node, std::vector<c10::IValue>& results) {
                const auto found = maker.find(node);
                if (found == maker.end()) return;
                auto& result = results[blocks_[found->second].output->offset()];
                // Integer arguments and fixed weights have no gradient to pass on: it begins here.
                if (!result.toTensor().requires_grad()) result = result.toTensor().detach().requires_grad_();
                outputs[found->second] = result.toTensor();
            };
            const auto y = first_tensor(run_nodes(plan_.model, calibration_[b], hooks));
            if (!y.requires_grad())
                throw UnsupportedModel("quantize.brecq", "the model's output has no gradient", "Use loss mse.");
            const auto signs = at::randint(0, 2, y.sizes(), generator_).mul_(2).sub_(1).to(y.scalar_type());
            const auto gradients_of = torch::autograd::grad({(y * signs).sum()}, outputs, {}, /*retain_graph=*/false,
                                                            /*create_graph=*/false, /*allow_unused=*/true);
            torch::NoGradGuard no_grad;
            examples += batches_[b].examples;
            for (size_t i = 0; i < blocks_.size(); ++i) {
                const auto& gradient = gradients_of[i];
                if (!gradient.defined() || gradient.dim() == 0 || gradient.size(0) != batches_[b].examples) continue;
                const auto sum = gradient.square().sum(0, /*keepdim=*/true);
                if (!sums[i].defined())
                    sums[i] = sum;
                else if (sums[i].sizes() == sum.sizes())
                    sums[i] += sum;
            }
            report("weighing errors", static_cast<double>(b) / static_cast<double>(calibration_.size()));
        }
        for (auto& sum : sums)
            if (sum.defined()) sum /= examples;
        return sums;
    }

    void report(const std::string& block, double done) const {
        if (plan_.options.progress) plan_.options.progress("reconstructing blocks", done, 1, block);
    }

    /// Sum over examples of the weighed squared error.
    static at::Tensor error_of(const at::Tensor& output, const at::Tensor& target, const at::Tensor& importance) {
        auto error = (output - target).square();
        if (importance.defined()) error = error * importance;
        return error.sum();
    }

    double whole_error(const Block& block, const std::vector<at::Tensor>& targets, const at::Tensor& importance,
                       const Weights& weights) {
        double sum = 0;
        for (size_t b = 0; b < batches_.size(); ++b)
            sum += error_of(forward(block, batches_[b], batches_[b].rounded, weights), targets[b], importance)
                       .item<double>();
        return sum;
    }

    /// One layer under learning.
    struct Soft {
        Node* node;
        at::Tensor floor, scale, v;           ///< [out, in, ...], scale [out, 1, ...]
        std::pair<int64_t, int64_t> integer;  ///< smallest and largest
        at::Tensor weight(const at::Tensor& h) const {
            const auto values = (floor + h).clamp(integer.first, integer.second) * scale;
            return anchor_inputs(node).weight_transposed ? values.t() : values;
        }
        at::Tensor integers() const {
            return (floor + (v.detach() >= 0)).clamp(integer.first, integer.second).to(at::kChar).contiguous();
        }
    };

    Soft soft(Node* node) const {
        const auto weight = anchor_weight(plan_.model, node).to(at::kFloat);
        std::vector<int64_t> shape(static_cast<size_t>(weight.dim()), 1);
        shape[0] = weight.size(0);
        const auto scale = plan_.weights.at(node).q_per_channel_scales().to(at::kFloat).reshape(shape);
        const auto steps = weight / scale;
        Soft layer{node, steps.floor(), scale, soft_start(steps - steps.floor()),
                   symmetric_ends(weight_bits_of(plan_, node), plan_.options.fit_weights)};
        layer.v.requires_grad_();
        return layer;
    }

    /// Mini-batches of mixed examples need values whose dimension 0 is the examples, and nothing else from outside.
    bool mixes(const Block& block, const std::vector<at::Tensor>& targets) const {
        std::set<const Value*> made{block.input};
        for (const Node* node : block.nodes) made.insert(node->outputs().begin(), node->outputs().end());
        for (const Node* node : block.nodes)
            for (const Value* input : node->inputs())
                if (dependent_.count(input) && !made.count(input)) return false;
        const auto fits = [](const at::Tensor& values, const at::Tensor& like, int64_t examples) {
            return values.dim() > 0 && values.size(0) == examples && values.dim() == like.dim() &&
                   values.sizes().slice(1) == like.sizes().slice(1);
        };
        for (size_t b = 0; b < batches_.size(); ++b)
            if (!fits(batches_[b].rounded, batches_[0].rounded, batches_[b].examples) ||
                !fits(targets[b], targets[0], batches_[b].examples))
                return false;
        return true;
    }

    void reconstruct(const Block& block, const std::vector<Node*>& anchors, const std::vector<at::Tensor>& targets,
                     const at::Tensor& importance, const std::string& name, double done) {
        auto weights = rounded_weights();
        const double before = whole_error(block, targets, importance, weights);
        if (!(before > 0)) return;
        int64_t examples = 0, count = 0;
        for (const auto& batch : batches_) examples += batch.examples;
        std::vector<Soft> layers;
        std::vector<at::Tensor> leaves;
        for (Node* node : anchors) {
            layers.push_back(soft(node));
            leaves.push_back(layers.back().v);
            count += layers.back().v.numel();
        }
        const bool mixed = mixes(block, targets);
        at::Tensor all_inputs, all_targets;
        if (mixed) {
            std::vector<at::Tensor> inputs;
            for (const auto& batch : batches_) inputs.push_back(batch.rounded);
            all_inputs = at::cat(inputs);
            all_targets = at::cat(targets);
        }
        {
            at::AutoGradMode gradients(true);
            torch::optim::Adam adam(leaves, torch::optim::AdamOptions(kSoftRate));
            for (int64_t step = 0; step < options_.steps; ++step) {
                if (step % 10 == 0)
                    report(name, done + static_cast<double>(step) / static_cast<double>(options_.steps) /
                                            static_cast<double>(blocks_.size()));
                at::Tensor regulariser = at::zeros({});
                const auto beta = sharpness(step, options_.steps);
                for (const auto& layer : layers) {
                    const auto h = soft_rounding(layer.v);
                    weights[layer.node] = layer.weight(h);
                    if (beta) regulariser = regulariser + (1 - (h * 2 - 1).abs().pow(*beta)).sum();
                }
                at::Tensor error;
                double share = 0;  // of all examples
                if (mixed) {
                    BatchState batch;
                    batch.examples = std::min(options_.batch_size, examples);
                    const auto index = at::randint(examples, {batch.examples}, generator_, at::kLong);
                    error = error_of(forward(block, batch, all_inputs.index_select(0, index), weights),
                                     all_targets.index_select(0, index), importance);
                    share = static_cast<double>(batch.examples) / static_cast<double>(examples);
                } else {
                    const auto b = static_cast<size_t>(step) % batches_.size();
                    error = error_of(forward(block, batches_[b], batches_[b].rounded, weights), targets[b], importance);
                    share = static_cast<double>(batches_[b].examples) / static_cast<double>(examples);
                }
                adam.zero_grad();
                (error / (before * share) + kRegulariser * regulariser / count)
                    .backward({}, std::nullopt, false, leaves);
                adam.step();
            }
        }
        for (const auto& layer : layers)
            weights[layer.node] = (layer.integers().to(at::kFloat) * layer.scale).contiguous();
        for (const auto& layer : layers)
            if (anchor_inputs(layer.node).weight_transposed) weights[layer.node] = weights[layer.node].t();
        const double after = whole_error(block, targets, importance, weights);
        char text[96];
        std::snprintf(text, sizeof text, "error of the block's output %.3g of that by layers", after / before);
        const bool better = after < before;
        plan_.folded.push_back({name, better ? "reconstructed" : "kept", "layer by layer",
                                std::to_string(layers.size()) + (layers.size() == 1 ? " layer" : " layers together"),
                                text});
        if (!better) return;
        for (const auto& layer : layers) {
            const auto old = plan_.weights.at(layer.node);
            plan_.weights[layer.node] = at::_make_per_channel_quantized_tensor(
                layer.integers(), old.q_per_channel_scales(), old.q_per_channel_zero_points(), 0);
        }
    }

    StaticPlan::Impl& plan_;
    const std::vector<Inputs>& calibration_;
    const BlockOptions options_;
    const std::vector<Block> blocks_;
    at::Generator generator_;
    std::set<const Value*> dependent_;
    Values fixed_;
    std::vector<BatchState> batches_;
};

}  // namespace

std::vector<Block> find_blocks(const Model& model, const Facts& facts, const std::vector<Unit>& units) {
    const auto graph = model.graph();
    const auto dependent = dependent_values(*graph);
    std::vector<Node*> nodes(graph->nodes().begin(), graph->nodes().end());
    std::unordered_map<const Node*, size_t> place;  // from 1: arguments are made at 0
    for (size_t i = 0; i < nodes.size(); ++i) place[nodes[i]] = i + 1;
    const size_t end = nodes.size() + 1;
    std::set<const Value*> inside_unit;
    for (const auto& unit : units)
        for (const auto* node : unit.nodes)
            for (const auto* output : node->outputs())
                if (std::find(unit.outputs.begin(), unit.outputs.end(), output) == unit.outputs.end())
                    inside_unit.insert(output);

    // How many values are alive behind each node, and the one where it is one.
    std::vector<std::vector<const Value*>> born(end + 1), dead(end + 1);
    const auto consider = [&](const Value* value, size_t made) {
        if (!carries(dependent, value)) return;
        size_t last = made;
        for (const auto& use : value->uses()) {
            Node* user = use.user;
            while (user->owningBlock() && user->owningBlock() != graph->block())
                user = user->owningBlock()->owningNode();
            last = std::max(last, user == graph->return_node() ? end : place.at(user));
        }
        if (last == made) return;
        born[made].push_back(value);
        dead[last].push_back(value);
    };
    for (size_t i = 1; i < graph->inputs().size(); ++i) consider(graph->inputs()[i], 0);
    for (size_t i = 0; i < nodes.size(); ++i)
        for (const Value* output : nodes[i]->outputs()) consider(output, i + 1);

    const auto is_border = [&](const Value* value) {
        const auto* fact = facts.find(value);
        return value->type()->kind() == c10::TypeKind::TensorType && fact && fact->is_tensor &&
               fact->dtype == at::kFloat && !inside_unit.count(value);
    };
    std::vector<Block> blocks;
    std::set<const Value*> alive;
    const Value* border = nullptr;
    std::vector<Node*> since;
    for (size_t i = 0; i < end; ++i) {
        for (const auto* value : dead[i]) alive.erase(value);
        for (const auto* value : born[i]) alive.insert(value);
        if (i > 0) {
            Node* node = nodes[i - 1];
            if (std::any_of(node->outputs().begin(), node->outputs().end(),
                            [&](const Value* output) { return dependent.count(output) > 0; }))
                since.push_back(node);
        }
        if (alive.size() != 1 || *alive.begin() == border || !is_border(*alive.begin())) continue;
        if (border) blocks.push_back({since, border, *alive.begin()});
        border = *alive.begin();
        since.clear();
    }
    return blocks;
}

void reconstruct_blocks(StaticPlan::Impl& plan, const std::vector<Inputs>& calibration, const BlockOptions& options) {
    Reconstruction(plan, calibration, options).run();
}

}  // namespace coppice::quantize
