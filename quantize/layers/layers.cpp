#include "layers/layers.h"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <regex>

#include <coppice/error.h>
#include <coppice/judging.h>

#include "calibration/calibration.h"
#include "emit/operators.h"
#include "layers/blame.h"
#include "plan/plan.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

constexpr const char* kInput = "layer_input";
constexpr const char* kNothingToJudgeBy = "max_drop needs labelled validation data to judge by";
constexpr const char* kGiveLabels = "Give `data:` a `validation` or `test` split, or leave max_drop out.";

/// Attribute names below a value that is made of parameters alone: an attribute, its transpose, a list of such.
bool made_of_parameters(const Value* value) {
    if (value->mustBeNone()) return true;
    if (const auto name = attribute_name(value)) return !name->empty();
    const Node* node = value->node();
    const auto kind = node->kind();
    if (kind != prim::ListConstruct && kind != aten::t && kind != aten::transpose) return toIValue(value).has_value();
    return !node->inputs().empty() && std::all_of(node->inputs().begin(), node->inputs().end(), made_of_parameters);
}

/// Copies a node and the constants and parameters that it reads into a graph of its own.
class Extractor {
public:
    explicit Extractor(const Model& model) : model_(model), module_("Layer"), graph_(std::make_shared<Graph>()) {
        module_.register_attribute("training", c10::BoolType::get(), false);
        self_ = graph_->addInput("self");
        self_->setType(module_.type());
    }

    Model run(const Node* node, const std::vector<c10::IValue>& inputs) {
        std::unordered_map<const Value*, Value*> made;
        for (size_t i = 0; i < node->inputs().size(); ++i) {
            const auto* value = node->input(i);
            if (made.count(value)) continue;
            made[value] = made_of_parameters(value) ? copy(value) : attribute(kInput, inputs[i], value->type());
        }
        // Inputs without a fixed shape: the same operator as in the model, whatever the example was.
        Node* twin = graph_->createClone(const_cast<Node*>(node), [&](Value* value) { return made.at(value); });
        graph_->insertNode(twin);
        for (Value* output : twin->outputs())
            if (output->type()->isSubtypeOf(*c10::TensorType::get())) output->setType(c10::TensorType::get());
        graph_->registerOutput(twin->output(0));
        auto* function = module_._ivalue()->compilation_unit()->create_function(
            c10::QualifiedName(*module_.type()->name(), "forward"), graph_);
        module_.type()->addMethod(function);
        return Model::from_module(module_, "layer");
    }

private:
    Value* attribute(const std::string& base, const c10::IValue& content, const c10::TypePtr& type) {
        std::string name = base;
        for (int number = 2; module_.hasattr(name); ++number) name = base + "_" + std::to_string(number);
        const bool tensor = content.isTensor();
        module_.register_attribute(name, tensor ? c10::TypePtr(c10::TensorType::get()) : type, content);
        return graph_->insertNode(graph_->createGetAttr(self_, name))->output();
    }

    Value* copy(const Value* value) {
        if (value->mustBeNone()) return graph_->insertConstant(c10::IValue());
        if (const auto name = attribute_name(value)) {
            const auto content = get_attribute(model_, *name);
            if (!content.isTensor()) return attribute("switch", content, value->type());
            const auto dot = name->rfind('.');
            std::string last = dot == std::string::npos ? *name : name->substr(dot + 1);
            for (int number = 2; module_.hasattr(last); ++number) last += "_" + std::to_string(number);
            module_.register_parameter(last, content.toTensor().detach(), false);
            return graph_->insertNode(graph_->createGetAttr(self_, last))->output();
        }
        if (const auto constant = toIValue(value)) return graph_->insertConstant(*constant);
        Node* twin = graph_->createClone(const_cast<Node*>(value->node()), [&](Value* input) { return copy(input); });
        return graph_->insertNode(twin)->output();
    }

    const Model& model_;
    Module module_;
    std::shared_ptr<Graph> graph_;
    Value* self_;
};

at::Tensor weight_of(const Model& model, const Node* node) {
    auto* mutable_node = const_cast<Node*>(node);
    const Value* value = nullptr;
    if (const auto conv = as_conv(mutable_node)) value = conv->weight;
    if (const auto linear = as_linear(mutable_node)) value = linear->weight;
    if (const auto embedding = as_lookup(mutable_node)) value = embedding->weight;
    if (!value) return {};
    return parameter_of(model, value).value_or(at::Tensor());
}

/// JSON has no infinity.
Json number_or_null(double value) {
    return std::isfinite(value) ? Json(value) : Json();
}

double seconds_since(const std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

std::vector<at::Tensor> rows_of(const Model& model, const Node* node, const at::Tensor& input) {
    auto* mutable_node = const_cast<Node*>(node);
    if (as_linear(mutable_node)) return {input.reshape({-1, input.size(-1)})};
    const auto conv = as_conv(mutable_node);
    const auto weight = weight_of(model, node);
    const auto geometry = geometry_of(*conv, weight.sizes().vec());
    auto padded = input;
    std::vector<int64_t> pads;
    for (int64_t i = conv->dims - 1; i >= 0; --i)
        for (int side = 0; side < 2; ++side) pads.push_back(geometry->padding[static_cast<size_t>(i)]);
    padded = at::constant_pad_nd(padded, pads);
    std::vector<at::Tensor> all;
    for (const auto& part : padded.chunk(conv->groups, 1)) {  // [N, C / groups, ...]
        auto windows = part;
        for (int64_t i = 0; i < conv->dims; ++i) {
            const auto k = weight.size(i + 2), dilation = geometry->dilation[static_cast<size_t>(i)];
            windows = windows.unfold(2 + i, dilation * (k - 1) + 1, geometry->stride[static_cast<size_t>(i)]);
            windows = windows.slice(windows.dim() - 1, 0, windows.size(-1), dilation);
        }
        // [N, C, positions..., kernel...] -> [N, positions..., C, kernel...]
        std::vector<int64_t> order{0};
        for (int64_t i = 0; i < conv->dims; ++i) order.push_back(2 + i);
        order.push_back(1);
        for (int64_t i = 0; i < conv->dims; ++i) order.push_back(2 + conv->dims + i);
        windows = windows.permute(order);
        int64_t n = weight.size(1);
        for (int64_t i = 0; i < conv->dims; ++i) n *= weight.size(i + 2);
        all.push_back(windows.reshape({-1, n}));
    }
    return all;
}

double sqnr_db(double signal, double noise) {
    if (!std::isfinite(noise)) return -200;
    return noise > 0 ? 10 * std::log10(std::max(signal, 1e-300) / noise) : 200;
}

double sqnr_db(const at::Tensor& exact, const at::Tensor& rounded) {
    return sqnr_db(power(exact), power(exact - rounded));
}

double power(const at::Tensor& values) {
    return values.pow(2).sum(at::kDouble).item<double>();
}

std::string formatted(const char* format, double value) {
    char buffer[96];
    std::snprintf(buffer, sizeof buffer, format, value);
    return buffer;
}

double fastest_seconds(const Model& model, const Inputs& inputs) {
    constexpr int kRounds = 7;
    constexpr double kRoundSeconds = 2e-3;
    torch::NoGradGuard no_grad;
    // The executor profiles its first two runs and compiles in the third.
    for (int i = 0; i < 3; ++i) model.forward(inputs);
    const auto once = std::chrono::steady_clock::now();
    model.forward(inputs);
    const int calls = static_cast<int>(std::clamp(kRoundSeconds / std::max(seconds_since(once), 1e-7), 1.0, 500.0));
    double least = std::numeric_limits<double>::infinity();
    for (int round = 0; round < kRounds; ++round) {
        const auto start = std::chrono::steady_clock::now();
        for (int i = 0; i < calls; ++i) model.forward(inputs);
        least = std::min(least, seconds_since(start) / calls);
    }
    return least;
}

Range input_range(const Node* node, const std::vector<c10::IValue>& stack) {
    auto* mutable_node = const_cast<Node*>(node);
    if (as_lookup(mutable_node)) return {};
    const auto place = as_conv(mutable_node) || as_linear(mutable_node) ? anchor_inputs(node).tensor : size_t{0};
    if (!stack[place].isTensor()) return {};
    const auto input = stack[place].toTensor();
    if (!input.is_floating_point() || input.numel() == 0) return {};
    const auto [low, high] = at::aminmax(input);
    return {low.item<double>(), high.item<double>()};
}

WrittenParameters::WrittenParameters(const Model& model) : model_(model) {
    // The attribute behind views of it and operators in place.
    const auto attribute_behind = [](const Value* value) {
        for (;;) {
            if (auto name = attribute_name(value)) return name;
            const Node* node = value->node();
            const auto* schema = node->maybeSchema();
            const bool hands_on = schema && !node->inputs().empty() && schema->arguments()[0].alias_info();
            if (node->kind() != prim::ListUnpack && !hands_on) return std::optional<std::string>();
            value = node->input(0);
        }
    };
    for (const Node* node : all_nodes(*model.graph())) {
        const auto* schema = node->maybeSchema();
        if (!schema || !schema->is_mutable()) continue;
        for (size_t i = 0; i < schema->arguments().size() && i < node->inputs().size(); ++i) {
            const auto* alias = schema->arguments()[i].alias_info();
            if (!alias || !alias->isWrite()) continue;
            const auto name = attribute_behind(node->input(i));
            if (!name || !has_attribute(model, *name)) continue;
            const auto content = get_attribute(model, *name);
            if (content.isTensor() && content.toTensor().has_storage())
                written_.insert(content.toTensor().storage().unsafeGetStorageImpl());
        }
    }
}

bool WrittenParameters::reach(Node* layer) const {
    if (written_.empty()) return false;
    auto values = weight_values(layer);
    if (const auto conv = as_conv(layer); conv && conv->has_bias) values.push_back(conv->bias);
    if (const auto linear = as_linear(layer); linear && linear->has_bias) values.push_back(linear->bias);
    if (const auto recurrent = as_recurrent(layer)) values = recurrent->weights;
    return std::any_of(values.begin(), values.end(), [&](const Value* value) {
        const auto tensor = parameter_of(model_, value);
        return tensor && tensor->has_storage() && written_.count(tensor->storage().unsafeGetStorageImpl());
    });
}

Range union_of(const Range& a, const Range& b) {
    return {std::min(a.low, b.low), std::max(a.high, b.high)};
}

std::vector<Layer> layers_of(const Model& model, const Facts& facts, bool attention) {
    const LayerNames names(model);
    const WrittenParameters written(model);
    std::vector<Layer> layers;
    for (Node* node : all_nodes(*model.graph())) {
        Layer layer;
        const auto conv = as_conv(node);
        const auto linear = as_linear(node);
        const auto recurrent = as_recurrent(node);
        const bool weightless = attention && as_attention(node);
        if (!conv && !linear && !recurrent && !as_lookup(node) && !weightless) continue;
        if (recurrent) {
            for (const auto* value : recurrent->weights)
                if (const auto weight = parameter_of(model, value)) layer.parameters += weight->numel();
        } else if (const auto weight = weight_of(model, node); weight.defined()) {
            layer.parameters = weight.numel();
        }
        if (layer.parameters == 0 && !weightless) continue;
        layer.node = node;
        layer.op = node->kind().toQualString();
        layer.facts.name = names.of(node);
        if (linear && facts.has_shape(linear->input)) {
            const auto& shape = facts.shape(linear->input);
            layer.facts.rows = 1;
            for (size_t i = 0; i + 1 < shape.size(); ++i) layer.facts.rows *= shape[i];
        }
        if (facts.runs(node) == 0)
            layer.reason = "the example input does not reach it";
        else if (written.reach(node))
            layer.reason = kWeightIsWritten;
        layers.push_back(std::move(layer));
    }
    return layers;
}

Model isolated(const Model& model, const Node* node, const std::vector<c10::IValue>& inputs) {
    return Extractor(model).run(node, inputs);
}

Model isolated(const Model& model, const Node* node, const std::vector<c10::IValue>& inputs, const Form& form,
               const LayerFacts& layer) {
    auto alone = isolated(model, node, inputs);
    form.emit(alone, layer_node(alone), layer);
    alone.refresh();
    return alone;
}

std::optional<EmbeddingView> as_lookup(Node* node) {
    if (std::string(node->kind().toQualString()) == "aten::embedding_bag")
        return EmbeddingView{node, node->input(0), node->input(1)};
    return as_embedding(node);
}

std::vector<Value*> weight_values(Node* node) {
    if (const auto conv = as_conv(node)) return {conv->weight};
    if (const auto linear = as_linear(node)) return {linear->weight};
    if (const auto embedding = as_lookup(node)) return {embedding->weight};
    const auto recurrent = as_recurrent(node);
    if (!recurrent) return {};
    const size_t parts = recurrent->has_biases ? 4 : 2;
    std::vector<Value*> values;
    for (size_t i = 0; i + 1 < recurrent->weights.size(); i += parts)
        values.insert(values.end(), {recurrent->weights[i], recurrent->weights[i + 1]});
    return values;
}

Node* layer_node(const Model& isolated) {
    for (Node* node : all_nodes(*isolated.graph()))
        if (as_conv(node) || as_linear(node) || as_recurrent(node) || as_lookup(node) || as_attention(node))
            return node;
    throw InternalError("quantize", "an isolated layer holds no layer", "");
}

at::Tensor run_isolated(const Model& isolated) {
    return first_tensor(isolated.forward({}));
}

int64_t stored_bytes(const c10::IValue& value) {
    const auto bytes = [](const at::Tensor& tensor) { return tensor.numel() * int64_t(tensor.element_size()); };
    if (value.isTensor()) {
        const auto tensor = value.toTensor();
        if (!tensor.defined()) return 0;
        if (!tensor.is_quantized() || tensor.qscheme() == at::kPerTensorAffine) return bytes(tensor);
        return bytes(tensor) + bytes(tensor.q_per_channel_scales()) + bytes(tensor.q_per_channel_zero_points());
    }
    int64_t sum = 0;
    if (value.isTuple())
        for (const auto& part : value.toTupleRef().elements()) sum += stored_bytes(part);
    if (value.isList())
        for (const auto& part : value.toListRef()) sum += stored_bytes(part);
    if (value.isCustomClass())
        sum += stored_bytes(value.toObjectRef().type()->getMethod("__getstate__")(std::vector<c10::IValue>{value}));
    return sum;
}

int64_t stored_bytes(const Model& isolated) {
    auto model = isolated.clone();
    remove_unused_attributes(model);
    int64_t sum = 0;
    for (const auto& attribute : model.module().named_attributes())
        if (attribute.name.rfind(kInput, 0) != 0) sum += stored_bytes(attribute.value);
    return sum;
}

bool same_content(const c10::IValue& a, const c10::IValue& b) {
    if (a.tagKind() != b.tagKind()) return false;
    const auto all = [](const auto& left, const auto& right) {
        return left.size() == right.size() && std::equal(left.begin(), left.end(), right.begin(), same_content);
    };
    if (a.isTensor()) {
        const auto left = a.toTensor(), right = b.toTensor();
        if (!left.defined() || !right.defined()) return left.defined() == right.defined();
        return left.scalar_type() == right.scalar_type() && left.layout() == right.layout() &&
               left.sizes() == right.sizes() && at::equal(left, right);
    }
    if (a.isTuple()) return all(a.toTupleRef().elements(), b.toTupleRef().elements());
    if (a.isList()) return all(a.toListRef(), b.toListRef());
    if (a.isCustomClass()) {
        const auto type = a.toObjectRef().type();
        if (type != b.toObjectRef().type()) return false;
        const auto state = [&](const c10::IValue& value) { return type->getMethod("__getstate__")({value}); };
        return same_content(state(a), state(b));
    }
    return a == b;
}

Value* store(Model& model, const c10::IValue& content, const std::string& beside, const std::string& name, Node* before,
             Role role) {
    const auto dot = beside.rfind('.');
    const auto prefix = dot == std::string::npos ? std::string() : beside.substr(0, dot + 1);
    // A layer that runs several times is stored once. Parameters may train apart, and do not share.
    if (role != Role::kParameter && !prefix.empty()) {
        std::string known = prefix + name;
        for (int number = 2; has_attribute(model, known); ++number) {
            if (same_content(get_attribute(model, known), content)) return read_attribute(model, known, before);
            known = prefix + name + "_" + std::to_string(number);
        }
    }
    return read_attribute(model, add_attribute(model, prefix + name, content, role), before);
}

std::unordered_map<const Node*, std::vector<InputMoments>> collect_moments(
    const Model& model, const Calibration& batches, const std::function<bool(const Node*)>& wanted,
    const Progress& progress) {
    std::unordered_map<const Node*, std::vector<InputMoments>> moments;
    NodeHooks hooks;
    hooks.before = [&](const Node* node, std::vector<c10::IValue>& stack) {
        auto* mutable_node = const_cast<Node*>(node);
        if ((!as_conv(mutable_node) && !as_linear(mutable_node)) || !wanted(node)) return;
        auto& all = moments[node];
        const auto rows = rows_of(model, node, stack[anchor_inputs(node).tensor].toTensor());
        all.resize(rows.size());
        for (size_t i = 0; i < rows.size(); ++i) {
            auto& sum = all[i];
            const auto& x = rows[i];
            const auto second = x.t().mm(x).to(at::kDouble);
            const auto mean = x.sum(0, false, at::kDouble), magnitude = x.abs().sum(0, false, at::kDouble);
            sum.second = sum.rows ? sum.second + second : second;
            sum.mean = sum.rows ? sum.mean + mean : mean;
            sum.magnitude = sum.rows ? sum.magnitude + magnitude : magnitude;
            sum.rows += x.size(0);
        }
    };
    run_batches(model, batches, hooks, "collecting moments", progress);
    for (const Node* node : all_nodes(*model.graph())) {
        const auto found = moments.find(node);
        if (found == moments.end()) continue;
        for (const auto& sum : found->second)
            if (!sum.second.isfinite().all().item<bool>())
                throw UnsupportedModel("quantize at the input of " + LayerNames(model).of(node),
                                       "it is NaN or infinite, or its square is, on the calibration data",
                                       "Check the calibration data, or use rounding: nearest.");
    }
    for (auto& [node, all] : moments)
        for (auto& sum : all) {
            const auto rows = static_cast<double>(std::max<int64_t>(sum.rows, 1));
            sum.second /= rows;
            sum.mean /= rows;
            sum.magnitude /= rows;
        }
    return moments;
}

void refuse_unusable(const Model& model, const std::string& where) {
    if (!model.defined()) throw InvalidArgument(where, "the model is empty", "Load one by Model::load(), or trace().");
    refuse_other_methods(model, where);
    for (Node* node : all_nodes(*model.graph())) {
        std::vector<const Value*> values;
        for (const auto* value : weight_values(node)) values.push_back(value);
        if (const auto conv = as_conv(node); conv && conv->has_bias) values.push_back(conv->bias);
        if (const auto linear = as_linear(node); linear && linear->has_bias) values.push_back(linear->bias);
        if (const auto recurrent = as_recurrent(node)) values = {recurrent->weights.begin(), recurrent->weights.end()};
        for (const auto* value : values) {
            const auto tensor = parameter_of(model, value);
            if (!tensor || !tensor->is_floating_point() || tensor->isfinite().all().item<bool>()) continue;
            throw UnsupportedModel(where + " at " + attribute_name(value).value_or(LayerNames(model).of(node)),
                                   "it holds NaN or infinity", "Check the checkpoint.");
        }
    }
}

void check_layers(const Model& model, const Context& context, const Fallback& fallback, const std::string& where) {
    check_fallback(fallback, where);
    refuse_unusable(model, where);
    if (fallback.on() && !context.evaluate) throw InvalidArgument(where, kNothingToJudgeBy, kGiveLabels);
}

std::pair<std::string, std::string> why_no_layer(const Model& model) {
    int64_t quantized = 0;
    std::string name;
    std::optional<at::ScalarType> other;
    for (Node* node : all_nodes(*model.graph())) {
        const std::string op = node->kind().toQualString();
        if (op.rfind("quantized::", 0) == 0 || op.rfind("onednn::", 0) == 0) {
            if (quantized++ == 0) name = op;
            continue;
        }
        for (const auto* value : weight_values(node))
            if (const auto weight = parameter_of(model, value); weight && weight->scalar_type() != at::kFloat)
                other = weight->scalar_type();
    }
    if (quantized)
        return {"; the model is quantized already: operators such as " + name, "Begin with the model before that."};
    if (other)
        return {std::string("; weights are of type ") + c10::toString(*other),
                "Save the model in float32 (model.float()) first."};
    return {"", ""};
}

std::vector<Inputs> batches_of(const Context& context, int64_t batches, int64_t batch_size, const char* where) {
    const auto& data = context.data.calibration ? context.data.calibration : context.data.train;
    std::vector<Inputs> all;
    if (!data) return all;
    BatchIterator iterator(*data, batch_size, /*shuffle=*/true, context.seed);
    while (static_cast<int64_t>(all.size()) < batches) {
        auto batch = iterator.next();
        if (!batch) break;
        all.push_back(std::move(batch->inputs));
        if (context.interrupted()) throw Interrupted(where, "stopped while reading calibration data", "");
    }
    return all;
}

std::string exactly(const std::string& name) {
    std::string pattern;
    for (const char c : name) {
        if (!std::isalnum(static_cast<unsigned char>(c)) && c != '_') pattern += '\\';
        pattern += c;
    }
    return pattern;
}

void apply_ignore(std::vector<Layer>& layers, const std::vector<std::string>& patterns, const char* where,
                  bool all_match) {
    for (const auto& pattern : patterns) {
        std::regex expression;
        try {
            expression = std::regex(pattern);
        } catch (const std::regex_error&) {
            throw InvalidArgument(where, "ignore: \"" + pattern + "\" is no regular expression",
                                  "Write a layer's name, or an ECMAScript pattern such as layer1\\..*");
        }
        bool any = false;
        for (auto& layer : layers) {
            if (!std::regex_match(layer.facts.name, expression)) continue;
            any = true;
            if (layer.reason.empty()) layer.reason = "ignore: " + pattern;
        }
        if (!any && all_match)
            throw InvalidArgument(where, "ignore: \"" + pattern + "\" matches no layer",
                                  "`coppice inspect` lists the names; the pattern must match a whole name.");
    }
}

Model emit_forms(const Model& prepared, const std::vector<Layer>& layers, std::vector<std::string>* details) {
    Model model = prepared.clone();
    const auto old_nodes = all_nodes(*prepared.graph()), new_nodes = all_nodes(*model.graph());
    if (old_nodes.size() != new_nodes.size()) throw InternalError("quantize", "a copy has other nodes", "");
    std::unordered_map<const Node*, Node*> twin;
    for (size_t i = 0; i < old_nodes.size(); ++i) twin[old_nodes[i]] = new_nodes[i];
    for (const auto& layer : layers) {
        const auto detail = layer.form ? layer.form->emit(model, twin.at(layer.node), layer.facts) : std::string();
        if (details) details->push_back(detail);
    }
    model.refresh();
    remove_unused_attributes(model);
    return model;
}

void check_fallback(const Fallback& fallback, const std::string& where) {
    if (!(fallback.max_drop >= 0 || fallback.max_drop == -1))
        throw InvalidArgument(where, "max_drop is " + formatted("%g", fallback.max_drop) + ", must be at least 0",
                              "Use 0.5 to allow half a point, or -1 for no fallback.");
    if (!(fallback.seconds > 0))
        throw InvalidArgument(where, "fallback_seconds is " + formatted("%g", fallback.seconds) + ", must be positive",
                              "Use 600.");
}

Model restore_transposed(const Model& model, const Inputs& example, const Model& prepared, std::vector<Layer>& layers) {
    const LayerNames names(model);
    std::set<std::string> restored;
    for (const auto& layer : layers) {
        Node* before = layer.form || !as_conv(layer.node) ? nullptr : names.find(layer.facts.name);
        const auto conv = before ? as_conv(before) : std::nullopt;
        if (conv && conv->transposed && !as_conv(layer.node)->transposed) restored.insert(layer.facts.name);
    }
    if (restored.empty()) return prepared;
    std::map<std::string, const Layer*> known;
    for (const auto& layer : layers) known[layer.facts.name] = &layer;
    const auto split = [&](const std::string& name) {
        const auto layer = known.find(name);
        return layer != known.end() && layer->second->form;
    };
    auto result = prepare(model, example, nullptr, split);
    auto all = layers_of(result, Facts::observe(result, example), /*attention=*/true);
    std::map<std::string, const Layer*> made;
    for (const auto& layer : all) made[layer.facts.name] = &layer;
    for (const auto& [name, layer] : known)
        if (!made.count(name)) return prepared;
    for (auto& layer : layers) {
        const auto* now = made.at(layer.facts.name);
        layer.node = now->node;
        layer.op = now->op;
        layer.parameters = now->parameters;
    }
    return result;
}

std::pair<Model, size_t> fall_back(const Model& baseline, size_t most, const std::function<Model(size_t floats)>& build,
                                   const Fallback& fallback, Context& context, const char* where, const char* counted) {
    check_fallback(fallback, where);
    if (!fallback.on()) return {build(0), 0};
    if (!context.evaluate) throw InvalidArgument(where, kNothingToJudgeBy, kGiveLabels);
    note_choice_by_evaluation(where, "the layers' precisions", context);
    const auto start = std::chrono::steady_clock::now();
    const double before = context.evaluate(baseline);
    if (!std::isfinite(before))
        throw MeasurementError(
            where, "the metric of the model before it is " + formatted("%g", before),
            "Nothing can be compared with that: check the data and the model, or leave max_drop out.");
    double longest = seconds_since(start);  // of a try
    Json history = Json::array();
    size_t best_floats = 0;
    std::optional<Model> best;
    double best_quality = 0;
    bool held = false;
    // Steps double, so that a model of n layers takes about log n evaluations; then the last step is halved back.
    size_t low = 0, high = 0;  // low: known to miss (+1), high: the next to try
    const auto judge = [&](size_t floats) {
        if (context.interrupted()) throw Interrupted(where, "stopped while layers went back to float", "");
        const auto begin = std::chrono::steady_clock::now();
        Model candidate = build(floats);
        double quality = context.evaluate(candidate);
        longest = std::max(longest, seconds_since(begin));
        // No number is worse than any.
        if (std::isnan(quality)) quality = -std::numeric_limits<double>::infinity();
        const bool holds = quality >= before - fallback.max_drop;
        history.push_back({{counted, floats}, {"quality", number_or_null(quality)}, {"holds", holds}});
        context.log->info(std::string(where) + ": " + counted + " " + std::to_string(floats) + ", metric " +
                          std::to_string(quality));
        const bool better = !best || (holds && !held) || (holds && held && floats < best_floats) ||
                            (!holds && !held && quality > best_quality);
        if (better) {
            best = candidate;
            best_floats = floats;
            best_quality = quality;
            held = holds;
        }
        return holds;
    };
    bool holds = judge(0);
    size_t step = 1;
    bool out_of_time = false;
    // A try that would end too late is not begun.
    const auto time_left = [&] {
        out_of_time = seconds_since(start) + longest > fallback.seconds;
        return !out_of_time;
    };
    while (!holds && high < most && time_left()) {
        low = high;
        high = std::min(most, high + step);
        step *= 2;
        holds = judge(high);
    }
    while (holds && high > low + 1 && time_left()) {
        const size_t middle = (low + high) / 2;
        (judge(middle) ? high : low) = middle;
    }
    context.facts["fallback"] = {{"metric_before", before},
                                 {"metric", number_or_null(best_quality)},
                                 {"max_drop", fallback.max_drop},
                                 {"holds", held},
                                 {counted, best_floats},
                                 {"tried", history},
                                 {"stopped_by", out_of_time ? "seconds"
                                                : held      ? "max_drop"
                                                            : "candidates"}};
    if (!held)
        context.log->warning(std::string(where) + ": no choice of layers held the metric within " +
                             std::to_string(fallback.max_drop) + "; the best one found loses " +
                             std::to_string(before - best_quality) +
                             (out_of_time ? ". fallback_seconds left no time for more" : ""));
    return {*best, best_floats};
}

Model emit_within(const Model& baseline, const Model& prepared, std::vector<Layer>& layers, std::vector<size_t> order,
                  const Fallback& fallback, Context& context, const char* where, std::vector<std::string>& details) {
    details.clear();
    if (!fallback.on()) return emit_forms(prepared, layers, &details);
    std::optional<bool> by_output;  // known when the order was needed
    const auto blame = [&] {
        Suspects suspects;
        suspects.count = order.size();
        suspects.sqnr_db = [&](size_t i) { return layers[order[i]].sqnr_db; };
        suspects.alone = [&](size_t i) {
            const auto& layer = layers[order[i]];
            const auto output = std::make_shared<at::Tensor>();
            NodeHooks hooks;
            hooks.before = [&prepared, &layer, output](const Node* node, std::vector<c10::IValue>& stack) {
                if (node == layer.node)
                    *output = run_isolated(isolated(prepared, node, stack, *layer.form, layer.facts));
            };
            hooks.after = [&layer, output](const Node* node, std::vector<c10::IValue>& outputs) {
                if (node == layer.node) outputs[0] = *output;
            };
            return hooks;
        };
        auto sorted = order;
        bool decided = false;
        const auto places =
            by_blame(prepared, suspects, context.example, fallback.seconds / 4, context, where, &decided);
        for (size_t i = 0; i < places.size(); ++i) sorted[i] = order[places[i]];
        order = std::move(sorted);
        by_output = decided;
    };
    const auto with_floats = [&](size_t floats) {
        if (floats > 0 && !by_output) blame();
        auto some = layers;
        for (size_t i = 0; i < floats; ++i) {
            some[order[i]].form = nullptr;
            some[order[i]].reason = "fallback: the metric needs it in float";
        }
        return some;
    };
    // With every layer back in float nothing is left of the stage: the last one keeps its form.
    const auto floats =
        fall_back(
            baseline, order.empty() ? 0 : order.size() - 1,
            [&](size_t count) { return emit_forms(prepared, with_floats(count)); }, fallback, context, where)
            .second;
    if (by_output) context.facts["fallback"]["order"] = *by_output ? "noise of the output" : "noise of the layer";
    layers = with_floats(floats);
    return emit_forms(prepared, layers, &details);
}

void record_layers(Context& context, const std::vector<Layer>& layers, const std::vector<std::string>& details) {
    Json rows = Json::array();
    int64_t treated = 0, kept = 0, treated_weights = 0, kept_weights = 0;
    double worst = 200;
    for (size_t i = 0; i < layers.size(); ++i) {
        const auto& layer = layers[i];
        Json row = {{"layer", layer.facts.name}, {"op", layer.op}, {"parameters", layer.parameters}};
        if (layer.form) {
            ++treated;
            treated_weights += layer.parameters;
            worst = std::min(worst, layer.sqnr_db);
            char text[160];
            const bool by_each_call = layer.form->rounds_by_each_call();
            std::snprintf(text, sizeof text, "SQNR %.1f dB, input %.4g ... %.4g%s", layer.sqnr_db, layer.range.low,
                          layer.range.high, by_each_call ? ", none of it clipped: each call has its range" : "");
            const bool ranged = layer.range.low != 0 || layer.range.high != 0;
            std::string reason = ranged ? text : std::string(text).substr(0, std::string(text).find(','));
            if (!layer.reason.empty()) reason += "; " + layer.reason;
            context.record({layer.facts.name, layer.form->name(), "float32", details[i], reason});
            row["precision"] = layer.form->name();
            row["detail"] = details[i];
            row["sqnr_db"] = layer.sqnr_db;
            if (ranged) row["input_range"] = {layer.range.low, layer.range.high};
            if (ranged && by_each_call) row["clipped_ratio"] = 0.0;
        } else {
            ++kept;
            kept_weights += layer.parameters;
            context.record({layer.facts.name, "kept", "float32", "float32", layer.reason});
            row["precision"] = "float32";
            if (layer.sqnr_db != 0) row["sqnr_db"] = layer.sqnr_db;
        }
        if (!layer.reason.empty()) row["reason"] = layer.reason;
        rows.push_back(row);
    }
    auto& facts = context.facts;
    facts["quantized_layers"] = treated;
    facts["float_layers"] = kept;
    facts["quantized_weights"] = treated_weights;
    facts["float_weights"] = kept_weights;
    if (treated) facts["worst_layer_sqnr_db"] = worst;
    facts["layers"] = rows;
}

Model apply_form(const Model& model, Context& context, const Form& form, const LayerStageOptions& options) {
    torch::NoGradGuard no_grad;
    refuse_unusable(model, options.where);
    std::vector<LayerChange> folded;
    auto prepared =
        prepare(model, context.example, &folded, [&](const std::string&) { return form.takes_convolutions(); });
    const auto facts = Facts::observe(prepared, context.example);
    auto layers = layers_of(prepared, facts);
    apply_ignore(layers, options.ignore, options.where);
    for (auto& layer : layers)
        if (layer.reason.empty()) layer.reason = form.refuse(Site{prepared, facts, layer.node});
    const auto candidates = [&] {
        std::unordered_map<const Node*, Layer*> open;
        for (auto& layer : layers)
            if (layer.reason.empty()) open[layer.node] = &layer;
        return open;
    };
    auto open = candidates();
    const auto require_one = [&] {
        if (!open.empty()) return;
        std::string reasons;
        size_t shown = 0;
        for (const auto& layer : layers)
            if (++shown <= 5) reasons += "; " + layer.facts.name + ": " + layer.reason;
        if (shown > 5) reasons += "; and " + std::to_string(shown - 5) + " more";
        const auto [hint, fix] = why_no_layer(prepared);
        if (!shown && hint.empty()) reasons = "; the model has no layer with weights of its own";
        throw UnsupportedModel(options.where, "nothing can be treated" + reasons + hint, fix);
    };
    require_one();
    const auto batches =
        form.needs_moments()
            ? calibration_of(model, context, options.batches, options.batch_size, {}, options.where).read()
            : batches_of(context, options.batches, options.batch_size, options.where);
    context.facts["measured_on"] = batches.empty()                              ? "the example input"
                                   : context.facts.contains("synthetic_inputs") ? "synthetic inputs"
                                                                                : "calibration data";
    if (form.needs_moments()) {
        auto moments = collect_moments(
            prepared, batches, [&](const Node* node) { return open.count(node) > 0; },
            progress_of(context, options.where));
        for (auto& [node, layer] : open) layer->facts.moments = std::move(moments[node]);
    }
    struct Sums {
        double signal = 0, noise = 0;
    };
    std::unordered_map<const Layer*, Sums> sums;
    const auto measured_on = context.facts["measured_on"].get<std::string>();
    const auto measure = [&](const Inputs& inputs, size_t batch, size_t count) {
        std::set<const Node*> seen;  // the first run of each is looked at
        NodeHooks hooks;
        hooks.before = [&](const Node* node, std::vector<c10::IValue>& stack) {
            const auto found = open.find(node);
            if (found == open.end() || !seen.insert(node).second) return;
            auto& layer = *found->second;
            const auto range = input_range(node, stack);
            layer.range = sums.count(&layer) ? union_of(layer.range, range) : range;
            if (!std::isfinite(range.low) || !std::isfinite(range.high)) {
                layer.reason = "its input is NaN or infinite on " + measured_on;
                open.erase(found);
                return;
            }
            auto copy = stack;
            node->getOperation()(copy);
            const auto exact = first_tensor(copy[0]);
            const auto rounded = run_isolated(isolated(prepared, node, stack, form, layer.facts));
            auto& sum = sums[&layer];
            sum.signal += power(exact);
            sum.noise += power(exact - rounded);
            context.log->progress(
                options.where,
                static_cast<double>(batch * layers.size()) + static_cast<double>(found->second - layers.data()),
                static_cast<double>(count * layers.size()), layer.facts.name);
            if (context.interrupted()) throw Interrupted(options.where, "stopped while measuring layers", "");
        };
        run_nodes(prepared, inputs, hooks);
    };
    if (batches.empty()) measure(context.example, 0, 1);
    for (size_t i = 0; i < batches.size(); ++i) measure(batches[i], i, batches.size());
    for (auto& [node, layer] : open) {
        const auto found = sums.find(layer);
        if (found == sums.end()) {
            layer->reason = "no run on " + measured_on + " reaches it";
            continue;
        }
        layer->sqnr_db = sqnr_db(found->second.signal, found->second.noise);
        if (layer->sqnr_db >= options.min_sqnr_db) continue;
        char text[128];
        std::snprintf(text, sizeof text, "its signal-to-noise ratio in %s is %.1f dB, min_sqnr_db is %g",
                      form.name().c_str(), layer->sqnr_db, options.min_sqnr_db);
        layer->reason = text;
    }
    open = candidates();
    require_one();
    for (auto& layer : layers) layer.form = layer.reason.empty() ? &form : nullptr;
    std::vector<size_t> order;
    for (size_t i = 0; i < layers.size(); ++i)
        if (layers[i].form) order.push_back(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return layers[a].sqnr_db < layers[b].sqnr_db; });
    std::vector<std::string> details;
    auto result = emit_within(model, prepared, layers, order, options.fallback, context, options.where, details);
    if (auto restored = restore_transposed(model, context.example, prepared, layers);
        restored.graph() != prepared.graph()) {
        prepared = std::move(restored);
        details.clear();
        result = emit_forms(prepared, layers, &details);
    }
    for (const auto& change : folded) context.record(change);
    record_layers(context, layers, details);
    keep_outputs_contiguous(result, model, context.example);
    add_layer_seconds(context, prepared, result);
    tell_output_noise(context, model, result, options.where);
    return result;
}

}  // namespace coppice::quantize
