// Dynamic int8: weights are packed once, activations are rounded in every call to the range that they have then.
//
//     linear(x, w, b)                  ->  quantized::linear_dynamic(x, packed)       [relu: linear_relu_dynamic]
//     addmm, mm and matmul with a parameter likewise
//     lstm(x, hx, weights, ...)        ->  aten::quantized_lstm(x, hx, cells, ...)
//     gru(x, hx, weights, ...)         ->  aten::quantized_gru(x, hx, cells, ...)
//     embedding(w, indices)            ->  quantized::embedding_byte on flat indices, reshaped; 4 bits: the chosen
//     rows,
//                                          expanded by quantized::embedding_bag_4bit_unpack
//     embedding_bag(w, indices, offsets)   ->  embedding_bag(rows as above, [0, 1, 2, ...], offsets)
#include <limits>

#include <coppice/error.h>

#include "emit/operators.h"
#include "layers/layers.h"
#include "plan/plan.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

class Dynamic final : public Form {
public:
    explicit Dynamic(const DynamicOptions& options) : options_(options), reduce_range_(!exact_int8_products()) {}

    std::string name() const override { return "int8 dynamic"; }
    bool rounds_by_each_call() const override { return true; }
    bool takes_convolutions() const override { return false; }

    std::string refuse(const Site& site) const override {
        if (as_conv(site.node)) return "convolutions have no fast dynamic kernel; quantize.static treats them";
        if (as_linear(site.node)) {
            if (!options_.linear) return "linear: false";
            if (!site.is_float(as_linear(site.node)->input)) return "its input is no float32 tensor";
            return find_row(site.node)->refuse(site);
        }
        if (const auto recurrent = as_recurrent(site.node)) return refuse_recurrent(site, *recurrent);
        if (const auto embedding = as_lookup(site.node)) {
            if (options_.embedding == "float") return "embedding: float";
            const auto weight = parameter_of(site.model, embedding->weight);
            if (!weight || weight->scalar_type() != at::kFloat || weight->dim() != 2)
                return "its weight is no float32 matrix";
            if (options_.embedding == "int4" && weight->size(1) % 2 != 0) return "its rows have an odd length";
            return as_embedding(site.node) ? "" : refuse_bag(site, *embedding);
        }
        return "it has no dynamic kernel";
    }

    std::string emit(Model& model, Node* node, const LayerFacts&) const override {
        if (as_linear(node)) return emit_linear(model, node);
        if (as_lookup(node)) return emit_embedding(model, node);
        return emit_recurrent(model, node);
    }

    int64_t product_bits(const Site& site) const override { return as_lookup(site.node) ? 32 : 8; }

    std::vector<at::Tensor> weights(const Model& model, Node* node, const LayerFacts&) const override {
        std::vector<at::Tensor> all;
        const auto linear = as_linear(node);
        for (const auto* value : weight_values(node)) {
            const auto weight = parameter_of(model, value)->detach();
            if (as_lookup(node))
                all.push_back(rounded_rows(weight));
            else if (linear && linear->weight_transposed)
                all.push_back(quantize_weight(weight.t()).dequantize().t());
            else
                all.push_back(quantize_weight(weight).dequantize());
        }
        return all;
    }

private:
    static std::string refuse_bag(const Site& site, const EmbeddingView& view) {
        const auto padding = site.argument("padding_idx") ? site.constant("padding_idx") : std::optional(c10::IValue());
        if (!padding || !padding->isNone()) return "its padding index stands for a row of the table";
        const auto* shape = site.shape(view.indices);
        if (!shape || shape->size() != 1) return "its indices have another than one dimension";
        for (size_t i = 1; i < site.node->outputs().size(); ++i)
            if (site.node->output(i)->hasUses()) return "more than its sums is read, which tells of rows of the table";
        return {};
    }

    std::string refuse_recurrent(const Site& site, const RecurrentView& view) const {
        if (!options_.recurrent) return "recurrent: false";
        if (view.cell != "lstm" && view.cell != "gru") return "LibTorch has dynamic kernels for LSTM and GRU alone";
        if (!view.has_biases) return "LibTorch's dynamic cells need biases";
        if (site.node->inputs().size() != 9) return "its input is a packed sequence";
        const auto directions = view.bidirectional ? 2 : 1;
        if (static_cast<int64_t>(view.weights.size()) != view.layers * directions * 4)
            return "its output is projected, which LibTorch's dynamic cells do not do";
        for (const auto* value : view.weights) {
            const auto weight = parameter_of(site.model, value);
            if (!weight || weight->scalar_type() != at::kFloat) return "a weight is no float32 parameter";
        }
        return {};
    }

    std::string emit_linear(Model& model, Node* node) const {
        const auto view = *as_linear(node);
        auto weight = *parameter_of(model, view.weight);
        if (view.weight_transposed) weight = weight.t();
        at::Tensor bias;
        if (view.has_bias) bias = parameter_of(model, view.bias)->reshape({-1});
        Value* packed = store(model, pack_linear(quantize_weight(weight), bias),
                              attribute_name(view.weight).value_or(""), "packed", node);
        Value* output = node->output();
        Node* relu = output->uses().size() == 1 ? output->uses()[0].user : nullptr;
        if (relu && (relu->kind() != aten::relu || relu->owningBlock() != node->owningBlock())) relu = nullptr;
        WithInsertPoint guard(node);
        Value* result = model.graph()->insert(
            Symbol::fromQualString(relu ? "quantized::linear_relu_dynamic" : "quantized::linear_dynamic"),
            {view.input, packed, reduce_range_});
        if (relu) {
            relu->output()->replaceAllUsesWith(result);
            relu->destroy();
        } else {
            output->replaceAllUsesWith(result);
        }
        node->destroy();
        return "int8 per output channel";
    }

    /// LibTorch saves tensors of type quint4x2 but cannot load them: the rows are plain bytes.
    static at::Tensor four_bit_rows(const at::Tensor& weight) {
        return call_operator("quantized::embedding_bag_4bit_prepack", {weight, false, int64_t{200}, 0.16}).toTensor();
    }

    static at::Tensor byte_rows(const at::Tensor& weight) {
        const auto low = weight.amin(1).clamp_max(0), high = weight.amax(1).clamp_min(0);  // [entries]
        const auto scale = ((high - low) / 255).clamp_min(std::numeric_limits<float>::min() * 256);
        return at::quantize_per_channel(weight, scale, -low / scale, 0, at::kQUInt8);
    }

    at::Tensor rounded_rows(const at::Tensor& weight) const {
        if (options_.embedding == "int8") return byte_rows(weight.contiguous()).dequantize();
        return call_operator("quantized::embedding_bag_4bit_unpack", {four_bit_rows(weight.contiguous())}).toTensor();
    }

    std::string emit_embedding(Model& model, Node* node) const {
        const auto view = *as_lookup(node);
        const auto weight = parameter_of(model, view.weight)->detach().contiguous();
        const auto name = attribute_name(view.weight).value_or("");
        const bool four = options_.embedding == "int4";
        auto& graph = *model.graph();
        Value* packed = nullptr;
        if (four) {
            packed = store(model, four_bit_rows(weight), name, "packed", node, Role::kBuffer);
        } else {
            packed = store(model, call_operator("quantized::embedding_bag_prepack", {byte_rows(weight)}), name,
                           "packed", node);
        }
        WithInsertPoint guard(node);
        // The kernels take one dimension of indices.
        Value* flat = graph.insert(aten::reshape, {view.indices, std::vector<int64_t>{-1}});
        Value* rows = nullptr;
        if (four) {
            Value* chosen = graph.insert(aten::index_select, {packed, 0, flat});
            rows = graph.insert(Symbol::fromQualString("quantized::embedding_bag_4bit_unpack"), {chosen});
        } else {
            rows = graph.insert(Symbol::fromQualString("quantized::embedding_byte"), {packed, flat});
        }
        if (!as_embedding(node)) {
            // LibTorch's int8 bags know sums alone, and take longer than these.
            Value* count = graph.insert(aten::size, {flat, 0});
            node->replaceInput(0, rows);
            node->replaceInput(1, graph.insert(aten::arange, {count}));
            return four ? "4 bit per row" : "8 bit per row";
        }
        Value* shape = graph.insert(aten::size, {view.indices});
        Value* width =
            graph.insertNode(graph.createList(c10::IntType::get(), {graph.insertConstant(weight.size(1))}))->output();
        Value* result = graph.insert(aten::reshape, {rows, graph.insert(aten::add, {shape, width})});
        node->output()->replaceAllUsesWith(result);
        node->destroy();
        return four ? "4 bit per row" : "8 bit per row";
    }

    std::string emit_recurrent(Model& model, Node* node) const {
        const auto view = *as_recurrent(node);
        auto& graph = *model.graph();
        std::vector<Value*> cells;
        for (size_t i = 0; i + 3 < view.weights.size(); i += 4) {
            const auto tensor = [&](size_t k) {
                return parameter_of(model, view.weights[i + k])->detach().contiguous();
            };
            const auto input_bias = tensor(2), hidden_bias = tensor(3);
            const auto cell = call_operator(
                "quantized::make_quantized_cell_params_dynamic",
                {pack_linear(quantize_weight(tensor(0)), input_bias),
                 pack_linear(quantize_weight(tensor(1)), hidden_bias), input_bias, hidden_bias, reduce_range_});
            cells.push_back(store(model, cell, attribute_name(view.weights[i]).value_or(""), "packed", node));
        }
        WithInsertPoint guard(node);
        Value* list = graph.insertNode(graph.createList(cells[0]->type(), cells))->output();
        std::vector<NamedValue> arguments;
        for (size_t i = 0; i < node->inputs().size(); ++i) arguments.emplace_back(i == 2 ? list : node->input(i));
        const bool lstm = view.cell == "lstm";
        Node* made = graph.create(Symbol::fromQualString(lstm ? "aten::quantized_lstm" : "aten::quantized_gru"), {},
                                  node->outputs().size());
        for (const auto& argument : arguments) made->addInput(argument.value(graph));
        if (lstm) {
            made->addInput(graph.insertConstant(c10::IValue()));
            made->addInput(graph.insertConstant(true));
        }
        graph.insertNode(made);
        for (size_t i = 0; i < node->outputs().size(); ++i) {
            made->output(i)->setType(c10::TensorType::get());
            node->output(i)->replaceAllUsesWith(made->output(i));
        }
        node->destroy();
        return "int8 per gate channel";
    }

    const DynamicOptions options_;
    const bool reduce_range_;
};

}  // namespace

std::unique_ptr<Form> dynamic_form(const DynamicOptions& options) {
    return std::make_unique<Dynamic>(options);
}

}  // namespace coppice::quantize
