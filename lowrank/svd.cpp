// lowrank.svd: before  y = conv(x, W, b, stride, padding, dilation)        [C_out, C_in, kH, kW], or linear(x, W, b)
//              after   channel  conv(conv(x, V, stride, padding, dilation), U, b)                     k x k, then 1 x 1
//                      spatial  conv(conv(x, V, [1, sW], [0, pW], [1, dW]), U, b, [sH, 1], [pH, 0], [dH, 1])
// It fires where the rank asked for needs fewer multiply-adds. Zero padding commutes with the split because the first
// factor has no bias: what it computes over padding alone is zero.
#include <coppice/error.h>
#include <coppice/lowrank.h>

#include <regex>

#include "layers.h"

namespace coppice::lowrank {

using namespace torch::jit;

namespace {

const char* const kWhere = "lowrank.svd";

std::string shape_text(const at::Tensor& tensor) {
    std::ostringstream text;
    text << tensor.sizes();
    return text.str();
}

std::string short_number(double value) {
    std::ostringstream text;
    text.precision(4);
    text << value;
    return text.str();
}

// What one form offers for a weight: its decomposition, the rule's rank, and the cost over all layers that share the
// weight.
struct Offer {
    Form form;
    std::shared_ptr<Decomposition> decomposition;
    double macs_per_rank = 0;
    int64_t rank = 0;
};

class Svd final : public Stage {
public:
    explicit Svd(SvdOptions options) : options_(std::move(options)) {
        for (const auto& pattern : options_.ignore) ignore_.emplace_back(pattern, std::regex::ECMAScript);
    }

    void check(const Model& model, const Context& context) const override {
        if (!context.example.empty()) require_layers(find_layers(model, context.example));
    }

    Model apply(const Model& model, Context& context) const override {
        torch::NoGradGuard no_grad;
        refuse_other_methods(model, kWhere);
        auto result = model.clone();
        const auto layers = find_layers(result, context.example);
        require_layers(layers);
        const auto before = cost(result, context.example);
        std::vector<std::vector<int64_t>> shapes;
        for (const auto& tensor : all_tensors(result.forward(context.example))) shapes.push_back(tensor.sizes().vec());

        for (const auto& layer : layers)
            if (!layer.reason.empty())
                context.record({layer.name, "kept", layer.weight.defined() ? shape_text(layer.weight) : layer.op, "",
                                layer.reason});
        int factorised = 0;
        double done = 0;
        const auto groups = groups_by_weight(layers, result);
        for (const auto& group : groups) {
            if (context.interrupted()) throw Interrupted(kWhere, "stopped by request", "");
            context.log->progress(kWhere, done++, static_cast<double>(groups.size()), layers[group[0]].name);
            factorised += treat(result, layers, group, context);
        }
        // Dead reads of the old weights go first; then nothing refers to the attributes, and no compiled plan may be
        // kept.
        result.refresh();
        remove_unused_attributes(result);
        result.refresh();
        verify(result, context.example, kWhere, shapes);

        const auto after = cost(result, context.example);
        context.facts["layers_factorised"] = factorised;
        context.facts["macs_before"] = before.macs;
        context.facts["macs_after"] = after.macs;
        context.facts["parameters_before"] = before.parameters;
        context.facts["parameters_after"] = after.parameters;
        if (!factorised)
            context.log->warning(std::string(kWhere) + ": no layer was replaced; see the reasons per layer");
        return result;
    }

private:
    static void require_layers(const std::vector<Layer>& layers) {
        for (const auto& layer : layers)
            if (layer.reason.empty()) return;
        std::string problem = "the model has no layer that can be factorised";
        if (!layers.empty()) problem += " (" + layers[0].name + ": " + layers[0].reason + ")";
        throw UnsupportedModel(kWhere, problem, "It treats linear layers and ungrouped convolutions.");
    }

    // Replaces the layers of one weight, or records why not. Returns the number of layers replaced.
    int treat(Model& model, const std::vector<Layer>& layers, const std::vector<size_t>& group,
              Context& context) const {
        const Layer& first = layers[group[0]];
        const auto keep = [&](const std::string& reason) {
            for (const size_t i : group)
                context.record({layers[i].name, "kept", shape_text(layers[i].weight), "", reason});
            return 0;
        };
        for (const size_t i : group) {
            for (size_t p = 0; p < ignore_.size(); ++p)
                if (std::regex_match(layers[i].name, ignore_[p]))
                    return keep("matches \"" + options_.ignore[p] + "\" in ignore");
            if (layers[i].weight.sizes() != first.weight.sizes() ||
                layers[i].transposed_weight() != first.transposed_weight() ||
                layers[i].conv.has_value() != first.conv.has_value())
                return keep("its weight is shared by layers of different kinds");
        }
        if (first.weight.numel() < options_.min_size)
            return keep(std::to_string(first.weight.numel()) + " weights, below min_size " +
                        std::to_string(options_.min_size));

        double macs = 0;
        for (const size_t i : group) macs += layers[i].macs();
        std::vector<Offer> offers;
        std::string refusal;
        for (const Form form : forms(first)) {
            Offer offer{form, decompose(first, form), 0, 0};
            for (const size_t i : group) offer.macs_per_rank += layers[i].macs_per_rank(form);
            RankQuestion question{offer.decomposition->singular_values(), macs, offer.macs_per_rank,
                                  static_cast<double>(first.weight.numel()), first.parameters_per_rank(form)};
            offer.rank = rounded(options_.rank->rank(question), offer.decomposition->full_rank());
            if (static_cast<double>(offer.rank) * offer.macs_per_rank < macs)
                offers.push_back(offer);
            else if (refusal.empty())
                refusal = "rank " + std::to_string(offer.rank) + " of " +
                          std::to_string(offer.decomposition->full_rank()) + " would need " +
                          short_number(static_cast<double>(offer.rank) * offer.macs_per_rank / macs) +
                          " of the multiply-adds";
        }
        if (offers.empty()) return keep(refusal);

        const Offer& best = least_error_at_equal_macs(offers);
        const auto factors = best.decomposition->factors(best.rank);
        const double total = best.decomposition->squared_error(0), error = best.decomposition->squared_error(best.rank);
        const auto [v, u] = add_factors(model, first, factors);
        for (const size_t i : group) {
            const Layer& layer = layers[i];
            replace(model, layer, best.form, v, u);
            context.record({layer.name, "factorised", shape_text(layer.weight),
                            shape_text(factors.first) + " " + shape_text(factors.second),
                            "rank " + std::to_string(best.rank) + " of " +
                                std::to_string(best.decomposition->full_rank()) + " keeps " +
                                short_number(total > 0 ? 1 - error / total : 1) + " of the squared singular values"});
        }
        return static_cast<int>(group.size());
    }

    std::vector<Form> forms(const Layer& layer) const {
        if (!layer.has_form(Form::kSpatial) || options_.method == "channel") return {Form::kChannel};
        if (options_.method == "spatial") return {Form::kSpatial};
        return {Form::kChannel, Form::kSpatial};
    }

    static std::shared_ptr<Decomposition> decompose(const Layer& layer, Form form) {
        try {
            return std::make_shared<Decomposition>(layer.weight, form);
        } catch (const UnsupportedModel& error) {
            throw UnsupportedModel(std::string(kWhere) + " at " + layer.name, error.problem(), error.fix());
        }
    }

    int64_t rounded(int64_t rank, int64_t full) const {
        const int64_t step = options_.round_to;
        return std::min(full, (rank + step - 1) / step * step);
    }

    // Rules may ask each form for another cost (energy does), so the errors are compared at the cost of the cheapest.
    static const Offer& least_error_at_equal_macs(const std::vector<Offer>& offers) {
        double budget = std::numeric_limits<double>::infinity();
        for (const auto& offer : offers)
            budget = std::min(budget, static_cast<double>(offer.rank) * offer.macs_per_rank);
        const Offer* best = nullptr;
        double least = 0;
        for (const auto& offer : offers) {
            // 1e-9: the budget may be this offer's own cost, and must give back its rank.
            const auto rank = std::min(offer.decomposition->full_rank(),
                                       static_cast<int64_t>(budget / offer.macs_per_rank * (1 + 1e-9)));
            const double error = offer.decomposition->squared_error(rank);
            if (best && error >= least) continue;
            best = &offer;
            least = error;
        }
        return *best;
    }

    // Names of the two new parameters, beside the old one.
    static std::pair<std::string, std::string> add_factors(Model& model, const Layer& layer, const Factors& factors) {
        Role role = Role::kParameter;
        for (const auto& known : named_tensors(model))
            if (known.name == layer.weight_name) role = known.role;
        if (role == Role::kAttribute) role = Role::kParameter;
        const bool trains = get_attribute(model, layer.weight_name).toTensor().requires_grad();
        const auto add = [&](const at::Tensor& tensor, const char* suffix) {
            return add_attribute(model, layer.weight_name + suffix, tensor.detach().set_requires_grad(trains), role);
        };
        const auto v = add(factors.first, "_v");
        return {v, add(factors.second, "_u")};
    }

    static void replace(Model& model, const Layer& layer, Form form, const std::string& v_name,
                        const std::string& u_name) {
        Node* const node = layer.node;
        auto& graph = *node->owningGraph();
        Value* const v = read_attribute(model, v_name, node);
        Value* const u = read_attribute(model, u_name, node);
        WithInsertPoint guard(node);
        const NamedValue none = graph.insertConstant(c10::IValue());
        const bool has_bias = layer.conv ? layer.conv->has_bias : layer.linear->has_bias;
        const NamedValue bias = has_bias ? NamedValue(layer.conv ? layer.conv->bias : layer.linear->bias) : none;
        Value *middle = nullptr, *output = nullptr;
        if (layer.linear) {
            middle = graph.insert(aten::linear, {layer.linear->input, v, none});
            output = graph.insert(aten::linear, {middle, u, bias});
        } else {
            const ConvView& conv = *layer.conv;
            const auto dims = static_cast<size_t>(conv.dims);
            const Symbol op = Symbol::fromQualString("aten::conv" + std::to_string(dims) + "d");
            const std::vector<int64_t> ones(dims, 1), zeros(dims, 0);
            // The part of a setting that one factor takes over: all or nothing per side.
            const auto part = [&](const std::vector<int64_t>& values, int64_t neutral, bool row, bool column) {
                return std::vector<int64_t>{row ? values[0] : neutral, column ? values[1] : neutral};
            };
            const auto insert = [&](Value* input, Value* weight, const NamedValue& of_bias,
                                    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                    const std::vector<int64_t>& dilation) {
                const NamedValue pad = conv.padding_mode.empty() ? NamedValue(padding) : NamedValue(conv.padding_mode);
                return graph.insert(op, {input, weight, of_bias, stride, pad, dilation, int64_t{1}});
            };
            if (form == Form::kSpatial) {
                middle = insert(conv.input, v, none, part(conv.stride, 1, false, true),
                                part(conv.padding, 0, false, true), part(conv.dilation, 1, false, true));
                output = insert(middle, u, bias, part(conv.stride, 1, true, false), part(conv.padding, 0, true, false),
                                part(conv.dilation, 1, true, false));
            } else {
                middle = insert(conv.input, v, none, conv.stride, conv.padding, conv.dilation);
                output = insert(middle, u, bias, ones, zeros, ones);
            }
        }
        for (Value* value : {middle, output}) {
            value->node()->setSourceRange(node->sourceRange());
            value->node()->setScope(node->scope());
            if (node->callstack()) value->node()->setCallStack(*node->callstack());
        }
        output->setType(node->output()->type());
        node->output()->replaceAllUsesWith(output);
        node->destroy();
    }

    SvdOptions options_;
    std::vector<std::regex> ignore_;
};

}  // namespace

std::unique_ptr<Stage> svd(SvdOptions options) {
    if (!options.rank) options.rank = energy();
    if (options.method != "auto" && options.method != "channel" && options.method != "spatial")
        throw InvalidArgument(kWhere, "method is \"" + options.method + "\", must be auto, channel or spatial", "");
    if (options.min_size < 0)
        throw InvalidArgument(kWhere, "min_size is " + std::to_string(options.min_size) + ", must be at least 0", "");
    if (options.round_to < 1)
        throw InvalidArgument(kWhere, "round_to is " + std::to_string(options.round_to) + ", must be at least 1",
                              "Use 8 or 16 to fill vector units.");
    for (const auto& pattern : options.ignore) {
        try {
            std::regex(pattern, std::regex::ECMAScript);
        } catch (const std::regex_error& error) {
            throw InvalidArgument(kWhere, "ignore holds \"" + pattern + "\", which is no regular expression",
                                  "For example \"fc\" or \"layer[12][.].*\".");
        }
    }
    return std::make_unique<Svd>(std::move(options));
}

}  // namespace coppice::lowrank
