// Layers that multiply in half precision, float32 around them.
//
//     bf16   linear or convolution (bf16(x), w, b) -> float32; fast where the CPU multiplies bfloat16 (AVX512-BF16,
//            AMX). Attention, written out: softmax(scale q k^T + mask) v, both products in bfloat16
//     fp16   quantized::linear_dynamic_fp16(x, packed): weights in float16, arithmetic in float32 (FBGEMM)
#include <limits>

#include <coppice/error.h>

#include "emit/operators.h"
#include "layers/layers.h"
#include "plan/plan.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

bool native_bf16() {
    return call_operator("mkldnn::_is_mkldnn_bf16_supported", {}).toBool();
}

Value* cast(Graph& graph, Value* value, at::ScalarType type) {
    return graph.insert(aten::to, {value, static_cast<int64_t>(type), false, false, c10::IValue()});
}

class Half final : public Form {
public:
    Half(std::string type, bool convolutions) : type_(std::move(type)), convolutions_(convolutions) {}

    std::string name() const override { return type_; }
    bool takes_convolutions() const override { return convolutions_ && type_ == "bf16"; }

    std::string refuse(const Site& site) const override {
        if (as_lookup(site.node)) return "embeddings are not multiplied";
        if (as_recurrent(site.node)) return "recurrent cells lose accuracy step by step in half precision";
        if (type_ == "bf16" && !native_bf16()) return "this CPU has no instructions for bfloat16";
        if (const auto attention = as_attention(site.node)) return refuse_attention(site, *attention);
        const auto conv = as_conv(site.node);
        if (conv && !convolutions_) return "convolutions: false";
        if (conv && type_ == "fp16") return "LibTorch's float16 kernel is for linear layers";
        const auto* row = find_row(site.node);
        const auto refusal = row ? row->refuse(site) : "it has no known form";
        if (!refusal.empty()) return refusal;
        const auto* input = conv ? conv->input : as_linear(site.node)->input;
        if (!site.is_float(input)) return "its input is no float32 tensor";
        return {};
    }

    std::string emit(Model& model, Node* node, const LayerFacts&) const override {
        if (const auto attention = as_attention(node)) return emit_attention(model, *attention);
        return type_ == "fp16" ? emit_fp16(model, node) : emit_bf16(model, node);
    }

    /// FBGEMM expands float16 weights and multiplies in float32.
    int64_t product_bits(const Site&) const override { return type_ == "bf16" ? 16 : 32; }

    std::vector<at::Tensor> weights(const Model& model, Node* node, const LayerFacts&) const override {
        if (as_attention(node)) return {};
        const auto weight = parameter_of(model, weight_values(node).at(0))->detach();
        return {weight.to(type_ == "bf16" ? at::kBFloat16 : at::kHalf).to(at::kFloat)};
    }

private:
    std::string refuse_attention(const Site& site, const AttentionView& view) const {
        if (type_ == "fp16") return "LibTorch's float16 kernel is for linear layers";
        for (const auto* value : {view.query, view.key, view.value})
            if (!site.is_float(value)) return "its inputs are no float32 tensors";
        const auto is = [&](const char* name, bool wanted) {
            const auto flag = site.constant(name);
            return flag && flag->isBool() && flag->toBool() == wanted;
        };
        if (!is("is_causal", false)) return "it masks what comes later by itself";
        if (site.argument("enable_gqa") && !is("enable_gqa", false)) return "its heads share keys";
        const auto dropout = site.constant("dropout_p");
        if (!dropout || !dropout->isDouble() || dropout->toDouble() != 0) return "it drops probabilities";
        const auto scale = site.constant("scale");
        if (!scale || !(scale->isNone() || scale->isDouble())) return "its scale is computed while running";
        const auto mask = site.constant("attn_mask");
        if (!(mask && mask->isNone()) && !site.is_float(site.argument("attn_mask")))
            return "its mask is no float32 tensor";
        if (!site.shape(view.query)) return "its shape is not known";
        return {};
    }

    static std::string emit_attention(Model& model, const AttentionView& view) {
        auto& graph = *model.graph();
        Node* node = view.node;
        const auto& schema = node->schema();
        const auto input = [&](const char* name) {
            return node->input(static_cast<size_t>(*schema.argumentIndexWithName(name)));
        };
        WithInsertPoint guard(node);
        Value* scale = input("scale");
        if (const auto given = constant_of(scale); given && given->isNone()) {
            Value* width = graph.insert(aten::size, {view.query, int64_t{-1}});
            scale = graph.insert(aten::pow, {width, -0.5});
        }
        // Scaled in float32: a power of two or not, the query is rounded once.
        Value* query = cast(graph, graph.insert(aten::mul, {view.query, scale}), at::kBFloat16);
        Value* key = graph.insert(aten::transpose, {cast(graph, view.key, at::kBFloat16), int64_t{-2}, int64_t{-1}});
        Value* scores = graph.insert(aten::matmul, {query, key});
        Value* mask = input("attn_mask");
        const auto no_mask = constant_of(mask);
        const bool masked = !no_mask || !no_mask->isNone();
        if (masked) {
            // Finite, or a row that hides everything would be NaN; float32's least number is infinite in bfloat16.
            Value* finite = graph.insert(aten::clamp, {mask, -1e30, c10::IValue()});
            scores = graph.insert(aten::add, {scores, cast(graph, finite, at::kBFloat16)});
        }
        Value* shares = graph.insert(aten::softmax, {scores, int64_t{-1}});
        Value* mixed = graph.insert(aten::matmul, {shares, cast(graph, view.value, at::kBFloat16)});
        if (masked) {  // of a row that hides everything by -inf the operator makes zero
            constexpr double kInfinity = std::numeric_limits<double>::infinity();
            Value* seen = graph.insert(aten::any, {graph.insert(aten::gt, {mask, -kInfinity}), int64_t{-1}, true});
            mixed = graph.insert(aten::mul, {mixed, cast(graph, seen, at::kBFloat16)});
        }
        node->output()->replaceAllUsesWith(cast(graph, mixed, at::kFloat));
        node->destroy();
        return "products in bfloat16";
    }

    static std::string emit_fp16(Model& model, Node* node) {
        const auto view = *as_linear(node);
        auto weight = parameter_of(model, view.weight)->detach();
        if (view.weight_transposed) weight = weight.t();
        c10::IValue bias;
        if (view.has_bias) bias = parameter_of(model, view.bias)->detach().reshape({-1}).contiguous();
        const auto content = call_operator("quantized::linear_prepack_fp16", {weight.contiguous(), bias});
        Value* packed = store(model, content, attribute_name(view.weight).value_or(""), "packed", node);
        WithInsertPoint guard(node);
        node->output()->replaceAllUsesWith(
            model.graph()->insert(Symbol::fromQualString("quantized::linear_dynamic_fp16"), {view.input, packed}));
        node->destroy();
        return "float16 weights";
    }

    static std::string emit_bf16(Model& model, Node* node) {
        const auto conv = as_conv(node);
        const auto linear = as_linear(node);
        auto& graph = *model.graph();
        const auto place = anchor_inputs(node);
        const auto narrow = [&](const Value* value) {
            const auto name = attribute_name(value).value_or("");
            return store(model, parameter_of(model, value)->detach().to(at::kBFloat16), name,
                         name.substr(name.rfind('.') + 1) + "_bf16", node, Role::kBuffer);
        };
        const auto* weight = conv ? conv->weight : linear->weight;
        const auto* bias = conv ? conv->bias : linear->bias;
        const bool has_bias = conv ? conv->has_bias : linear->has_bias;
        Value* narrow_weight = narrow(weight);
        WithInsertPoint guard(node);
        if (node->input(place.weight) != weight) narrow_weight = graph.insert(aten::t, {narrow_weight});
        for (size_t i = 0; i < node->inputs().size(); ++i)
            if (has_bias && node->input(i) == bias) node->replaceInput(i, narrow(bias));
        node->replaceInput(place.weight, narrow_weight);
        node->replaceInput(place.tensor, cast(graph, node->input(place.tensor), at::kBFloat16));
        WithInsertPoint after(node->next());
        Value* old = node->output();
        Value* wide = cast(graph, old, at::kFloat);
        old->replaceAllUsesAfterNodeWith(wide->node(), wide);
        return "bfloat16 weights and products";
    }

    const std::string type_;
    const bool convolutions_;
};

}  // namespace

std::unique_ptr<Form> half_form(const std::string& type, bool convolutions) {
    return std::make_unique<Half>(type, convolutions);
}

}  // namespace coppice::quantize
