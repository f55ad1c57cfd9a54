#include "qat/batch_norm.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

constexpr double kLeastFactor = 1e-8;  // a channel that gamma has switched off still divides by its factor

/// [out] beside a tensor with channels in dimension `dim`.
at::Tensor beside_channels(const at::Tensor& per_channel, const at::Tensor& values, int64_t dim) {
    std::vector<int64_t> shape(static_cast<size_t>(values.dim()), 1);
    shape[static_cast<size_t>(dim)] = per_channel.numel();
    return per_channel.reshape(shape);
}

}  // namespace

at::Tensor LiveNorm::scale() const {
    const auto s = gamma_ / (variance_ + eps_).sqrt();
    return at::where(s.abs() < kLeastFactor, at::full_like(s, kLeastFactor), s);
}

at::Tensor LiveNorm::scaled_weight() const {
    return weight_ * beside_channels(scale(), weight_, 0);
}

at::Tensor LiveNorm::bias() const {
    const auto shift = own_bias_.defined() ? own_bias_ - mean_ : -mean_;
    return beta_ + shift * scale();
}

at::Tensor LiveNorm::normalise(const at::Tensor& output) {
    auto y = output.to(at::kFloat) / beside_channels(scale(), output, 1);
    if (own_bias_.defined()) y = y + beside_channels(own_bias_, y, 1);
    return at::batch_norm(y, gamma_, beta_, mean_, variance_, /*training=*/true, momentum_, eps_, false);
}

bool LiveNorm::is_all_of(const at::Tensor& weight, const at::Tensor& bias) const {
    torch::NoGradGuard no_grad;
    constexpr double kFloat32 = 1e-4;  // folding computes in float64, here it is float32
    const auto largest = [](const at::Tensor& values) { return values.abs().max().item<double>(); };
    if (weight_.sizes() != weight.sizes() || bias.numel() != mean_.numel()) return false;
    const auto shift = own_bias_.defined() ? own_bias_ - mean_ : -mean_;
    // scale() keeps channels that gamma has switched off at kLeastFactor.
    const double of_weight = kFloat32 * largest(weight) + 2 * kLeastFactor * largest(weight_);
    const double of_bias =
        kFloat32 * std::max(largest(bias), largest(mean_ * scale())) + 2 * kLeastFactor * largest(shift);
    return largest(scaled_weight() - weight) <= of_weight && largest(this->bias() - bias) <= of_bias;
}

namespace {

/// What may be behind: the anchors of the plan by their weight's name.
std::map<std::string, const Unit*> anchors_by_weight(const StaticPlan& plan) {
    std::map<std::string, const Unit*> anchors;
    for (const auto& unit : plan.impl().units) {
        if (!unit.anchor() || !(unit.int8 || unit.island)) continue;
        const auto conv = as_conv(unit.node);
        const auto linear = as_linear(unit.node);
        if (const auto name = attribute_name(conv ? conv->weight : linear->weight)) anchors[*name] = &unit;
    }
    return anchors;
}

}  // namespace

LiveNorms live_norms(const Model& model, const StaticPlan& plan) {
    struct Candidate {
        BatchNormView norm;
        Node* layer;  ///< what it was folded into
        std::string name, mean;
    };
    std::vector<Candidate> candidates;
    std::map<const Node*, int> norms_of;
    for (Node* node : all_nodes(*model.graph())) {
        const auto norm = as_batch_norm(node);
        if (!norm || !norm->tracks_statistics) continue;
        // Folding a batch norm takes its statistics out of the model.
        const auto mean = attribute_name(norm->running_mean);
        if (!mean || has_attribute(plan.model(), *mean)) continue;
        Node* layer = norm->input->node();
        while (const auto before = as_batch_norm(layer)) layer = before->input->node();
        ++norms_of[layer];
        candidates.push_back({*norm, layer, mean->substr(0, mean->rfind('.')), *mean});
    }
    LiveNorms found;
    const auto anchors = anchors_by_weight(plan);
    const LayerNames names(model);
    for (const auto& [norm, layer, name, mean] : candidates) {
        const auto part = "part of " + names.of(layer);
        const auto stays_folded = [&, &name = name](const std::string& reason) {
            found.changes.push_back({name, "folded", "batch norm", part, reason});
        };
        if (norms_of.at(layer) > 1) {
            stays_folded("more than one batch norm is " + part);
            continue;
        }
        const auto conv = as_conv(layer);
        const auto linear = as_linear(layer);
        if (conv && conv->transposed) {
            stays_folded("a transposed convolution is computed by phases of its stride, with other weights");
            continue;
        }
        const auto weight = conv || linear ? attribute_name(conv ? conv->weight : linear->weight) : std::nullopt;
        const auto variance = attribute_name(norm.running_var);
        if (!weight || !variance) {
            stays_folded("its variance, or the weight of its layer, is no attribute of the model");
            continue;
        }
        const auto anchor = anchors.find(*weight);
        if (anchor == anchors.end()) {
            stays_folded("its layer stays in float");
            continue;
        }
        const auto& unit = *anchor->second;
        auto live = std::make_shared<LiveNorm>();
        const auto take = [&](const std::string& tensor_name, bool trains) {
            auto tensor = get_attribute(model, tensor_name).toTensor().detach().to(at::kFloat).clone();
            if (trains) tensor.requires_grad_();
            (trains ? live->parameters : live->buffers).emplace_back(tensor_name, tensor);
            return tensor;
        };
        live->weight_ = take(*weight, true);
        if (conv ? conv->has_bias : linear->has_bias)
            live->own_bias_ = take(*attribute_name(conv ? conv->bias : linear->bias), true);
        live->mean_ = take(mean, false);
        live->variance_ = take(*variance, false);
        live->gamma_ = norm.affine ? take(*attribute_name(norm.weight), true) : at::ones_like(live->mean_);
        live->beta_ = norm.affine ? take(*attribute_name(norm.bias), true) : at::zeros_like(live->mean_);
        live->eps_ = norm.eps;
        live->momentum_ = norm.momentum;
        live->anchor = unit.node;
        const auto bias_place = anchor_inputs(unit.node).bias;
        const auto bias = bias_place ? attribute_name(unit.node->input(*bias_place)) : std::nullopt;
        if (!bias || !live->is_all_of(get_attribute(plan.model(), *weight).toTensor(),
                                      get_attribute(plan.model(), *bias).toTensor())) {
            stays_folded("something else was put into its layer too, such as a hard sigmoid behind it");
            continue;
        }
        live->folded_weight = *weight;
        live->folded_bias = *bias;
        found.norms.push_back(std::move(live));
        found.changes.push_back({name, "trained", "batch norm", part, ""});
    }
    return found;
}

}  // namespace coppice::quantize
