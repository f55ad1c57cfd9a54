#include "prune/masking.h"

#include <random>
#include <set>

namespace coppice::testing {

using prune::Groups;
using prune::Removal;

namespace {

/// Indices along `dim` of a value that are removed; empty when none.
std::vector<int64_t> removed_indices(const Groups& groups, const std::vector<std::set<int64_t>>& gone,
                                     const torch::jit::Value* value, int64_t dim) {
    std::vector<int64_t> indices;
    const auto places = groups.places(value, dim);
    for (size_t i = 0; i < places.size(); ++i)
        if (places[i].group >= 0 && gone[places[i].group].count(places[i].channel))
            indices.push_back(static_cast<int64_t>(i));
    return indices;
}

at::Tensor without(const at::Tensor& x, const std::vector<int64_t>& removed, int64_t dim) {
    std::vector<int64_t> kept;
    const std::set<int64_t> gone(removed.begin(), removed.end());
    for (int64_t i = 0; i < x.size(dim); ++i)
        if (!gone.count(i)) kept.push_back(i);
    return x.index_select(dim, at::tensor(kept, at::kLong));
}

bool reduces(const torch::jit::Node* node) {
    const std::string op = node->kind().toQualString();
    return op == "aten::mean" || op == "aten::var" || op == "aten::std";
}

/// Normalises over the elements that stay; the others become zero.
at::Tensor norm_of_kept(const torch::jit::Node* node, const std::vector<c10::IValue>& inputs,
                        const std::vector<int64_t>& removed, int64_t dim) {
    const auto x = inputs[0].toTensor();
    std::vector<int64_t> kept;
    const std::set<int64_t> gone(removed.begin(), removed.end());
    for (int64_t i = 0; i < x.size(dim); ++i)
        if (!gone.count(i)) kept.push_back(i);
    const auto index = at::tensor(kept, at::kLong);
    const auto part = x.index_select(dim, index);
    const auto parameter = [&](const c10::IValue& value) -> std::optional<at::Tensor> {
        if (!value.isTensor() || !value.toTensor().defined()) return std::nullopt;
        return value.toTensor().index_select(0, index);
    };
    at::Tensor result;
    const std::string op = node->kind().toQualString();
    if (op == "aten::layer_norm")
        result =
            at::layer_norm(part, {part.size(dim)}, parameter(inputs[2]), parameter(inputs[3]), inputs[4].toDouble());
    else if (op == "aten::group_norm")
        result = at::group_norm(part, 1, parameter(inputs[2]), parameter(inputs[3]), inputs[4].toDouble());
    else if (op == "aten::rms_norm") {
        result = part / (part.square().mean(-1, /*keepdim=*/true) + inputs[3].toDouble()).sqrt();
        if (const auto weight = parameter(inputs[2]); weight && weight->defined()) result = result * *weight;
    } else
        throw InternalError("masking", "no reference for " + op, "");
    return at::zeros_like(x).index_copy(dim, index, result);
}

}  // namespace

c10::IValue run_masked(const Model& model, const Inputs& inputs, const Groups& groups, const Removal& removal) {
    torch::NoGradGuard no_grad;
    std::vector<std::set<int64_t>> gone;
    for (const auto& channels : removal) gone.emplace_back(channels.begin(), channels.end());
    std::set<const void*> parameters;
    for (const auto& named : named_tensors(model)) parameters.insert(named.tensor.storage().data());
    std::vector<c10::IValue> seen;
    NodeHooks hooks;
    hooks.before = [&](const torch::jit::Node* node, std::vector<c10::IValue>& values) {
        // Hidden channels live inside of the operator: zero rows of the weights keep them at zero from the start.
        if (const auto view = as_recurrent(const_cast<torch::jit::Node*>(node))) {
            auto weights = values[2].toTensorVector();
            for (size_t i = 0; i < weights.size(); ++i)
                for (int64_t dim = 0; dim < weights[i].dim(); ++dim) {
                    const auto removed = removed_indices(groups, gone, view->weights[i], dim);
                    if (!removed.empty()) weights[i] = weights[i].index_fill(dim, at::tensor(removed, at::kLong), 0);
                }
            values[2] = weights;
        }
        if (!groups.has_statistic(node)) return;
        seen = values;
        if (!reduces(node)) return;
        // A mean over channels is taken over those that stay. Input 1 lists the dimensions; without them all are
        // reduced.
        auto x = values[0].toTensor();
        std::set<int64_t> dims;
        if (values.size() > 1 && values[1].isIntList())
            for (const int64_t dim : values[1].toIntVector()) dims.insert(dim < 0 ? dim + x.dim() : dim);
        for (int64_t dim = 0; dim < x.dim(); ++dim) {
            if (!dims.empty() && !dims.count(dim)) continue;
            const auto removed = removed_indices(groups, gone, node->inputs()[0], dim);
            if (!removed.empty()) x = without(x, removed, dim);
        }
        values[0] = x;
    };
    hooks.after = [&](const torch::jit::Node* node, std::vector<c10::IValue>& outputs) {
        for (size_t o = 0; o < outputs.size(); ++o) {
            if (!outputs[o].isTensor() || !outputs[o].toTensor().defined()) continue;
            auto tensor = outputs[o].toTensor();
            for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
                const auto removed = removed_indices(groups, gone, node->outputs()[o], dim);
                if (removed.empty()) continue;
                if (groups.has_statistic(node) && !reduces(node)) {
                    tensor = norm_of_kept(node, seen, removed, dim);
                    outputs[o] = tensor;
                    continue;
                }
                const auto index = at::tensor(removed, at::kLong);
                // In place, so that what an operator changed in place is masked too; but a view of a parameter must not
                // change it, and an expanded tensor cannot be written.
                bool overlaps = parameters.count(tensor.storage().data()) > 0;
                for (int64_t d = 0; d < tensor.dim(); ++d) overlaps |= tensor.stride(d) == 0 && tensor.size(d) > 1;
                if (overlaps) tensor = tensor.clone();
                tensor.index_fill_(dim, index, 0);
                outputs[o] = tensor;
            }
        }
    };
    Inputs copies;
    for (const auto& input : inputs) copies.push_back(input.isTensor() ? c10::IValue(input.toTensor().clone()) : input);
    return run_nodes(model, copies, hooks);
}

Removal random_removal(const Groups& groups, double share, uint64_t seed) {
    std::mt19937_64 random(seed);
    Removal removal;
    for (const auto& group : groups.all()) {
        std::vector<int64_t> channels;
        for (int64_t c = 0; c < group.channels; ++c) channels.push_back(c);
        std::shuffle(channels.begin(), channels.end(), random);
        const auto count = std::clamp<int64_t>(static_cast<int64_t>(share * static_cast<double>(group.channels)), 1,
                                               group.channels - 1);
        channels.resize(static_cast<size_t>(count));
        std::sort(channels.begin(), channels.end());
        removal.push_back(std::move(channels));
    }
    return removal;
}

CutCheck check_cut(const Model& original, const Inputs& example, double share, uint64_t seed,
                   const prune::GroupOptions& options) {
    torch::NoGradGuard no_grad;
    const auto model = prune::unfuse_attention(original);
    const auto facts = Facts::observe(model, example);
    CutCheck check;
    check.groups = prune::find_groups(model, facts, options);
    const auto removal = random_removal(check.groups, share, seed);
    for (size_t g = 0; g < removal.size(); ++g) {
        check.channels += check.groups.all()[g].channels;
        check.removed += static_cast<int64_t>(removal[g].size());
    }
    const auto masked = all_tensors(run_masked(model, example, check.groups, removal));
    check.smaller = prune::cut(model, facts, check.groups, removal);
    Inputs copies;
    for (const auto& input : example)
        copies.push_back(input.isTensor() ? c10::IValue(input.toTensor().clone()) : input);
    const auto cut = all_tensors(check.smaller.forward(copies));
    if (masked.size() != cut.size()) {
        check.difference = std::numeric_limits<double>::infinity();
        return check;
    }
    for (size_t i = 0; i < cut.size(); ++i) {
        const double scale = std::max(masked[i].abs().max().to(at::kDouble).item<double>(), 1e-30);
        const double difference = max_difference(masked[i], cut[i]) / scale;
        // The comparison also turns NaN into a difference.
        if (!(difference <= check.difference)) check.difference = difference;
    }
    return check;
}

void expect_cut_equals_masked(const Model& model, const Inputs& example, double tolerance) {
    std::vector<std::pair<std::string, at::Tensor>> weights;
    for (const auto& named : named_tensors(model)) weights.emplace_back(named.name, named.tensor.clone());
    for (const uint64_t seed : {1, 2, 3}) {
        const auto check = check_cut(model, example, 0.4, seed);
        ASSERT_GT(check.removed, 0) << "nothing to prune";
        EXPECT_LE(check.difference, tolerance) << "seed " << seed;
        int64_t before = 0, after = 0;
        for (const auto& named : named_tensors(model)) before += named.tensor.numel();
        for (const auto& named : named_tensors(check.smaller)) after += named.tensor.numel();
        EXPECT_LT(after, before);
    }
    for (const auto& [name, before] : weights)
        EXPECT_TRUE(at::equal(before, get_attribute(model, name).toTensor())) << name << " of the original changed";
}

const prune::PrunableInfo& info_of(const Groups& groups, const std::string& layer) {
    for (const auto& info : groups.layers())
        if (info.layer == layer) return info;
    std::string known;
    for (const auto& info : groups.layers()) known += " " + info.layer;
    throw std::runtime_error("no layer " + layer + " among" + known);
}

const prune::ChannelGroup& group_of(const Groups& groups, const std::string& layer) {
    for (const auto& group : groups.all())
        if (std::find(group.layers.begin(), group.layers.end(), layer) != group.layers.end()) return group;
    throw std::runtime_error("no group of " + layer + ": " + info_of(groups, layer).reason);
}

Model fused_encoder(int layers) {
    std::vector<std::pair<std::string, at::Tensor>> tensors = {{"embed.weight", sine({12, 6}, 0.5)},
                                                               {"head.weight", sine({5, 12}, 0.3)}};
    std::string source = "def forward(self, x):\n    x = torch.linear(x, self.embed.weight)\n";
    for (int layer = 0; layer < layers; ++layer) {
        const std::string name(1, static_cast<char>('a' + layer));
        const double scale = 1 + 0.2 * layer;
        const auto add = [&](const std::string& part, const at::Tensor& tensor) {
            tensors.emplace_back(name + "." + part, tensor);
        };
        add("qkv.weight", sine({36, 12}, 0.4 * scale));
        add("qkv.bias", sine({36}, 0.1));
        add("out.weight", sine({12, 12}, 0.3 * scale));
        add("out.bias", sine({12}, 0.1));
        add("n1.weight", 1 + sine({12}, 0.2));
        add("n1.bias", sine({12}, 0.1));
        add("n2.weight", 1 + sine({12}, 0.3));
        add("n2.bias", sine({12}, 0.2));
        add("f1.weight", sine({20, 12}, 0.3));
        add("f1.bias", sine({20}, 0.1));
        add("f2.weight", sine({12, 20}, 0.2));
        add("f2.bias", sine({12}, 0.1));
        std::string read;
        for (const char* part :
             {"n1.weight", "n1.bias", "n2.weight", "n2.bias", "f1.weight", "f1.bias", "f2.weight", "f2.bias"})
            read += ", self." + name + "." + part;
        source += "    x = torch._transformer_encoder_layer_fwd(x, 12, 3, self." + name + ".qkv.weight, self." + name +
                  ".qkv.bias, self." + name + ".out.weight, self." + name + ".out.bias, True, True, 1e-5" + read +
                  ")\n";
    }
    return build_model(tensors, source + "    return torch.linear(torch.mean(x, [1]), self.head.weight)\n");
}

std::unique_ptr<Stage> make_stage(std::vector<std::pair<std::string, std::string>> settings) {
    Options options("prune.channel", std::move(settings));
    auto stage = find_entry(prune::stages(), "stage", "prune.channel", "test").make(options);
    options.done();
    return stage;
}

}  // namespace coppice::testing
