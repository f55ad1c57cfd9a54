// Weights in 8 or 4 bits, activations in float.
//
// unpacked   w' = reshape(quantized::embedding_bag_4bit_unpack(rows)), then the layer's own operator on w'. LibTorch's
//            format of embedding rows serves as a portable container of groups: [groups, group / 2 + 4 bytes] with
//            scale and offset in float16 behind the integers, or [groups, group + 8] with float32 for 8 bits. Expanding
//            costs about 0.08 ns a weight (AVX512, one thread).
// packed     _weight_int4pack_mm_for_cpu(bf16(x), packed, group, scales_and_zeros): w = scale (q - 8) + zero, layout by
//            _convert_weight_to_int4pack_for_cpu of the CPU at hand; _weight_int8pack_mm(bf16(x), int8, scales). Their
//            float32 paths are plain loops, a hundred times slower: bfloat16 it is.
#include <ATen/core/dispatch/Dispatcher.h>

#include <cstring>

#include <coppice/error.h>

#include "emit/operators.h"
#include "layers/layers.h"
#include "plan/plan.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

constexpr int64_t kFewRows = 4;      // up to which the packed kernels are faster than expanding the weight
constexpr int64_t kPackedRows = 16;  // _convert_weight_to_int4pack_for_cpu takes multiples of this many outputs
// _weight_int8pack_mm reads past the ends of rows of bfloat16 that are no multiple of this: NaN, or it crashes.
constexpr int64_t kPackedColumns = 16;
constexpr int64_t kDefaultGroup = 64;

Value* cast(Graph& graph, Value* value, at::ScalarType type) {
    return graph.insert(aten::to, {value, static_cast<int64_t>(type), false, false, c10::IValue()});
}

class WeightForm final : public Form {
public:
    explicit WeightForm(const WeightOnlyOptions& options)
        : options_(options), bits_(options.type == "int4" ? 4 : 8), rounding_(options.rounding) {
        if (!rounding_) rounding_ = nearest();
    }

    std::string name() const override { return options_.type + " weights"; }
    bool needs_moments() const override { return rounding_->needs_moments(); }
    bool takes_convolutions() const override { return options_.convolutions; }

    std::string refuse(const Site& site) const override {
        if (as_attention(site.node)) return "it has no weights";
        if (as_conv(site.node)) {
            if (!options_.convolutions) return "convolutions: false";
            if (rounding_->scales_inputs()) return "this rounding scales the inputs of linear layers";
            const auto refusal = find_row(site.node) ? find_row(site.node)->refuse(site) : "it has no known form";
            if (!refusal.empty()) return refusal;
        } else if (as_linear(site.node)) {
            const auto refusal = find_row(site.node)->refuse(site);
            if (!refusal.empty()) return refusal;
            if (!site.is_float(as_linear(site.node)->input)) return "its input is no float32 tensor";
        } else if (as_lookup(site.node)) {
            return options_.embeddings ? embedding_form()->refuse(site) : "embeddings: false";
        } else {
            return "recurrent cells have no kernel for rounded weights; quantize.dynamic treats them";
        }
        const auto weight = matrix_of(site.model, site.node);
        if (bits_ == 4 && weight.size(1) % 2 != 0 && !packs(site.node, weight, rows_at(site)))
            return "its rows have an odd length, two 4-bit weights share a byte";
        return {};
    }

    std::string emit(Model& model, Node* node, const LayerFacts& layer) const override {
        if (as_lookup(node)) return embedding_form()->emit(model, node, layer);
        const auto weight = matrix_of(model, node);
        if (packs(node, weight, layer.rows))
            return bits_ == 4 ? emit_packed4(model, node, layer) : emit_packed8(model, node, layer);
        return emit_unpacked(model, node, layer);
    }

    int64_t product_bits(const Site& site) const override {
        const bool multiplies = as_conv(site.node) || as_linear(site.node);
        return multiplies && packs(site.node, matrix_of(site.model, site.node), rows_at(site)) ? 16 : 32;
    }

    std::vector<at::Tensor> weights(const Model& model, Node* node, const LayerFacts& layer) const override {
        if (as_lookup(node)) return embedding_form()->weights(model, node, layer);
        const auto matrix = matrix_of(model, node);
        const auto shape = parameter_of(model, weight_value(node))->sizes();
        const auto values = rounded(matrix, layer, bits_ == 4 && !packs(node, matrix, layer.rows)).values();
        const auto linear = as_linear(node);
        return {linear && linear->weight_transposed ? values.t() : values.reshape(shape)};
    }

private:
    std::unique_ptr<Form> embedding_form() const {
        DynamicOptions options;
        options.embedding = options_.type;
        return dynamic_form(options);
    }

    static const Value* weight_value(const Node* node) {
        auto* mutable_node = const_cast<Node*>(node);
        const auto conv = as_conv(mutable_node);
        return conv ? conv->weight : as_linear(mutable_node)->weight;
    }

    /// [C_out, everything else]
    static at::Tensor matrix_of(const Model& model, const Node* node) {
        auto weight = parameter_of(model, weight_value(node))->detach();
        if (!as_conv(const_cast<Node*>(node)) && as_linear(const_cast<Node*>(node))->weight_transposed)
            weight = weight.t();
        return weight.reshape({weight.size(0), -1}).contiguous();
    }

    static int64_t rows_at(const Site& site) {
        const auto linear = as_linear(site.node);
        if (!linear) return 0;
        int64_t rows = 1;
        const auto* shape = site.shape(linear->input);
        for (size_t i = 0; shape && i + 1 < shape->size(); ++i) rows *= (*shape)[i];
        return rows;
    }

    /// The group asked for where it divides the row; whole rows elsewhere, and the report says so.
    int64_t group_of(int64_t columns) const {
        const int64_t asked = options_.group > 0 ? options_.group : (bits_ == 4 ? kDefaultGroup : columns);
        return columns % asked == 0 ? asked : columns;
    }

    bool packs(const Node* node, const at::Tensor& weight, int64_t rows) const {
        if (options_.kernel == "unpacked" || !as_linear(const_cast<Node*>(node))) return false;
        const int64_t group = group_of(weight.size(1));
        const bool fits = bits_ == 8
                              ? options_.symmetric && group == weight.size(1) && group % kPackedColumns == 0
                              : weight.size(0) % kPackedRows == 0 && (group == 32 || group == 64 || group == 128);
        return fits && (options_.kernel == "packed" || rows <= kFewRows);
    }

    RoundedWeight rounded(const at::Tensor& weight, const LayerFacts& layer, bool half) const {
        auto& known = cache_[layer.name];
        if (known) return *known;
        GridOptions grid;
        grid.bits = bits_;
        grid.group = group_of(weight.size(1));
        grid.symmetric = options_.symmetric;
        grid.half = half;
        const auto parts = weight.chunk(std::max<int64_t>(1, static_cast<int64_t>(layer.moments.size())), 0);
        std::vector<at::Tensor> integers, scales, offsets;
        RoundedWeight all;
        for (size_t i = 0; i < parts.size(); ++i) {
            all = rounding_->round(parts[i].contiguous(), grid, layer.moments.empty() ? nullptr : &layer.moments[i]);
            integers.push_back(all.integers);
            scales.push_back(all.scale);
            offsets.push_back(all.offset);
        }
        all.integers = at::cat(integers);
        all.scale = at::cat(scales);
        all.offset = at::cat(offsets);
        known = all;
        return all;
    }

    std::string detail(const RoundedWeight& w, int64_t columns, const char* kernel) const {
        return options_.type + (options_.symmetric ? " symmetric" : " affine") +
               (w.group == columns ? ", one scale per row" : ", groups of " + std::to_string(w.group)) + ", " + kernel;
    }

    static Value* scaled_input(Model& model, Node* node, Value* input, const at::Tensor& factor) {
        if (!factor.defined()) return input;
        Value* stored =
            store(model, factor, attribute_name(weight_value(node)).value_or(""), "input_factor", node, Role::kBuffer);
        WithInsertPoint guard(node);
        return model.graph()->insert(aten::mul, {input, stored});
    }

    /// Makes symmetric integers unsigned; the offset moves with them, exactly, because this is a power of two.
    int64_t shift() const { return options_.symmetric ? int64_t{1} << (bits_ - 1) : 0; }

    /// Bytes of LibTorch's embedding rows: [rows * groups, ...].
    at::Tensor container(const RoundedWeight& w) const {
        const int64_t count = w.scale.numel();
        const auto integers = (w.integers + shift()).reshape({count, w.group}).to(at::kByte);
        const auto scale = w.scale.reshape({-1});
        const auto offset = (w.offset - static_cast<double>(shift()) * w.scale).reshape({-1});
        const auto bytes_of = [&](const at::Tensor& values) {
            const auto plain = values.contiguous();
            return plain.view(at::kByte).reshape({count, -1});
        };
        if (bits_ == 4) {
            const auto low = integers.slice(1, 0, w.group, 2), high = integers.slice(1, 1, w.group, 2);
            const auto pairs = low.bitwise_or(high.bitwise_left_shift(at::Scalar(4)));
            return at::cat({pairs, bytes_of(at::stack({scale, offset}, 1).to(at::kHalf))}, 1).contiguous();
        }
        return at::cat({integers, bytes_of(at::stack({scale, offset}, 1))}, 1).contiguous();
    }

    std::string emit_unpacked(Model& model, Node* node, const LayerFacts& layer) const {
        const auto conv = as_conv(node);
        const auto matrix = matrix_of(model, node);
        const auto w = rounded(matrix, layer, bits_ == 4);
        const auto name = attribute_name(weight_value(node)).value_or("");
        const auto shape = conv ? parameter_of(model, weight_value(node))->sizes().vec() : matrix.sizes().vec();
        Value* bytes = store(model, container(w), name, "packed", node, Role::kBuffer);
        const auto place = anchor_inputs(node);
        Value* input = scaled_input(model, node, node->input(place.tensor), w.input_factor);
        WithInsertPoint guard(node);
        auto& graph = *model.graph();
        Value* rows = graph.insert(Symbol::fromQualString(bits_ == 4 ? "quantized::embedding_bag_4bit_unpack"
                                                                     : "quantized::embedding_bag_byte_unpack"),
                                   {bytes});
        Value* weight = graph.insert(aten::reshape, {rows, shape});
        if (place.weight_transposed) weight = graph.insert(aten::t, {weight});
        node->replaceInput(place.tensor, input);
        node->replaceInput(place.weight, weight);
        return detail(w, matrix.size(1), "expanded in each call");
    }

    /// y = cast(mm(bf16(x) as matrix)) with the input's other dimensions, plus bias.
    void finish_packed(Model& model, Node* node, const std::function<Value*(Value*)>& multiply, int64_t outputs,
                       const at::Tensor& factor) const {
        const auto view = *as_linear(node);
        Value* input = scaled_input(model, node, view.input, factor);
        auto& graph = *model.graph();
        WithInsertPoint guard(node);
        const int64_t columns = parameter_of(model, view.weight)->size(view.weight_transposed ? 0 : 1);
        Value* flat =
            graph.insert(aten::reshape, {cast(graph, input, at::kBFloat16), std::vector<int64_t>{-1, columns}});
        Value* product = cast(graph, multiply(flat), at::kFloat);
        Value* size = graph.insert(aten::size, {view.input});
        Value* head = graph.insert(aten::slice, {size, 0, -1, 1});
        Value* width =
            graph.insertNode(graph.createList(c10::IntType::get(), {graph.insertConstant(outputs)}))->output();
        Value* result = graph.insert(aten::reshape, {product, graph.insert(aten::add, {head, width})});
        if (view.has_bias) result = graph.insert(aten::add, {result, view.bias});
        node->output()->replaceAllUsesWith(result);
        node->destroy();
    }

    std::string emit_packed4(Model& model, Node* node, const LayerFacts& layer) const {
        const auto matrix = matrix_of(model, node);
        const auto w = rounded(matrix, layer, false);
        const auto unsigned_integers = (w.integers + shift()).to(at::kInt).contiguous();
        const auto packed = at::_convert_weight_to_int4pack_for_cpu(unsigned_integers, 1);
        // w = scale (q - 8) + zero
        const auto zero = w.offset + w.scale * static_cast<double>(8 - shift());
        const auto scales = at::stack({w.scale, zero}, 2).transpose(0, 1).contiguous().to(at::kBFloat16);
        const auto name = attribute_name(weight_value(node)).value_or("");
        Value* weight = store(model, packed, name, "packed", node, Role::kBuffer);
        Value* parameters = store(model, scales, name, "scales_and_zeros", node, Role::kBuffer);
        auto& graph = *model.graph();
        finish_packed(
            model, node,
            [&](Value* flat) {
                return graph.insert(Symbol::fromQualString("aten::_weight_int4pack_mm_for_cpu"),
                                    {flat, weight, w.group, parameters});
            },
            matrix.size(0), w.input_factor);
        return detail(w, matrix.size(1), "packed kernel in bfloat16");
    }

    std::string emit_packed8(Model& model, Node* node, const LayerFacts& layer) const {
        const auto matrix = matrix_of(model, node);
        const auto w = rounded(matrix, layer, false);
        const auto name = attribute_name(weight_value(node)).value_or("");
        Value* weight = store(model, w.integers.to(at::kChar).contiguous(), name, "packed", node, Role::kBuffer);
        Value* scales = store(model, w.scale.reshape({-1}).to(at::kBFloat16), name, "scales", node, Role::kBuffer);
        auto& graph = *model.graph();
        finish_packed(
            model, node,
            [&](Value* flat) {
                return graph.insert(Symbol::fromQualString("aten::_weight_int8pack_mm"), {flat, weight, scales});
            },
            matrix.size(0), w.input_factor);
        return detail(w, matrix.size(1), "packed kernel in bfloat16");
    }

    const WeightOnlyOptions options_;
    const int64_t bits_;
    std::shared_ptr<const Rounding> rounding_;
    mutable std::map<std::string, std::optional<RoundedWeight>>
        cache_;  // a layer is rounded once, emitted several times
};

}  // namespace

std::unique_ptr<Form> weight_form(const WeightOnlyOptions& options) {
    if (options.type == "bf16" || options.type == "fp16") return half_form(options.type, options.convolutions);
    return std::make_unique<WeightForm>(options);
}

}  // namespace coppice::quantize
