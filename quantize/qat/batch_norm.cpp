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

std::vector<std::shared_ptr<LiveNorm>> live_norms(const Model& model, const StaticPlan& plan) {
    std::map<std::string, const Unit*> anchors;  // by their weight's name
    for (const auto& unit : plan.impl().units) {
        if (!unit.anchor() || !(unit.int8 || unit.island)) continue;
        const auto conv = as_conv(unit.node);
        const auto linear = as_linear(unit.node);
        if (const auto name = attribute_name(conv ? conv->weight : linear->weight)) anchors[*name] = &unit;
    }
    std::vector<std::shared_ptr<LiveNorm>> norms;
    for (Node* node : all_nodes(*model.graph())) {
        const auto norm = as_batch_norm(node);
        if (!norm || !norm->tracks_statistics) continue;
        Node* source = norm->input->node();
        const auto conv = as_conv(source);
        const auto linear = as_linear(source);
        if (!conv && !linear) continue;
        const auto weight = attribute_name(conv ? conv->weight : linear->weight);
        const auto mean = attribute_name(norm->running_mean), variance = attribute_name(norm->running_var);
        // Folding a batch norm takes its statistics out of the model.
        if (!weight || !mean || !variance || !anchors.count(*weight) || has_attribute(plan.model(), *mean)) continue;
        const auto& unit = *anchors.at(*weight);
        auto live = std::make_shared<LiveNorm>();
        const auto take = [&](const std::string& name, bool trains) {
            auto tensor = get_attribute(model, name).toTensor().detach().to(at::kFloat).clone();
            if (trains) tensor.requires_grad_();
            (trains ? live->parameters : live->buffers).emplace_back(name, tensor);
            return tensor;
        };
        live->weight_ = take(*weight, true);
        if (conv ? conv->has_bias : linear->has_bias)
            live->own_bias_ = take(*attribute_name(conv ? conv->bias : linear->bias), true);
        live->mean_ = take(*mean, false);
        live->variance_ = take(*variance, false);
        live->gamma_ = norm->affine ? take(*attribute_name(norm->weight), true) : at::ones_like(live->mean_);
        live->beta_ = norm->affine ? take(*attribute_name(norm->bias), true) : at::zeros_like(live->mean_);
        live->eps_ = norm->eps;
        live->momentum_ = norm->momentum;
        live->folded_weight = *weight;
        live->folded_bias = *attribute_name(unit.node->input(*anchor_inputs(unit.node).bias));
        live->anchor = unit.node;
        norms.push_back(std::move(live));
    }
    return norms;
}

}  // namespace coppice::quantize
