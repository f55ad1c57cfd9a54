// A layer's weights as few shared values (Deep Compression, Han et al., arXiv 1510.00149).
//
// weights   the parameter keeps its place and type and holds at most 2^bits distinct values: nothing changes at run
// time,
//           and deflate finds the repetitions.
// indices   w' = reshape_as(index_select(table, 0, reshape(int(bytes), [-1])), bytes), then the layer's own operator on
//           w': a byte per weight in memory, of which deflate leaves about the entropy; expanded in every call. Rows of
//           embeddings are looked up as bytes and expanded afterwards.
#include "codebook/form.h"

#include <algorithm>
#include <cmath>

#include <coppice/error.h>

#include "equalize/pairs.h"
#include "plan/plan.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

class CodebookForm final : public Form {
public:
    CodebookForm(const CodebookOptions& options, uint64_t seed) : options_(options), seed_(seed) {}

    std::string name() const override { return std::to_string(options_.bits) + "-bit codebook"; }

    std::string refuse(const Site& site) const override {
        const auto values = weight_values(site.node);
        if (values.empty()) return "it has no weight of its own";
        if (options_.storage == "indices" && as_recurrent(site.node))
            return "recurrent cells take their weights as parameters; storage weights treats them";
        for (const auto* value : values) {
            const auto weight = parameter_of(site.model, value);
            if (!weight || !attribute_name(value)) return "its weight is computed, or a constant of the graph";
            if (weight->scalar_type() != at::kFloat) return "its weight is not float32";
            if (weight->numel() <= int64_t{1} << options_.bits)
                return "it has no more weights than the codebook has entries";
        }
        return {};
    }

    std::string emit(Model& model, Node* node, const LayerFacts& layer) const override {
        std::string detail;
        const auto values = weight_values(node);
        for (size_t i = 0; i < values.size(); ++i) {
            const auto& book = codebook(model, values[i], layer, i);
            if (options_.storage == "weights")
                emit_weights(model, node, values[i], book.weights());
            else
                emit_indices(model, node, values[i], book);
            char text[96];
            std::snprintf(text, sizeof text, "%s%lld values, %.2f bits per weight", i ? "; " : "",
                          static_cast<long long>(book.values.numel()), entropy_bits(book));
            detail += text;
        }
        return detail + (options_.storage == "weights" ? ", stored as float32" : ", stored as bytes");
    }

    int64_t product_bits(const Site&) const override { return 32; }

    std::vector<at::Tensor> weights(const Model& model, Node* node, const LayerFacts& layer) const override {
        std::vector<at::Tensor> all;
        const auto values = weight_values(node);
        for (size_t i = 0; i < values.size(); ++i) all.push_back(codebook(model, values[i], layer, i).weights());
        return all;
    }

private:
    const Codebook& codebook(const Model& model, const Value* value, const LayerFacts& layer, size_t i) const {
        auto& known = cache_[{layer.name, i}];
        if (!known)
            known = cluster(*parameter_of(model, value), int64_t{1} << options_.bits, *options_.init,
                            options_.iterations, seed_);
        return *known;
    }

    /// Bits per index that an ideal entropy coder needs.
    static double entropy_bits(const Codebook& book) {
        const auto counts = at::bincount(book.indices.view({-1}).to(at::kLong)).to(at::kDouble);
        const auto shares = counts / counts.sum();
        return -at::xlogy(shares, shares).sum().item<double>() / std::log(2.0);
    }

    /// In place where this layer alone reads the parameter. Else the layer gets one of its own: what else reads it, an
    /// embedding that stays in float say, keeps its values; layers that share it go on sharing.
    static void emit_weights(Model& model, Node* node, Value* weight, const at::Tensor& values) {
        const auto name = *attribute_name(weight);
        const auto dot = name.rfind('.');
        const auto base = (dot == std::string::npos ? std::string() : name.substr(0, dot + 1)) + "codebook_weight";
        // Of the operator: the parameter itself, or a transpose or list of it.
        const auto reads = [&](const Value* input) {
            const Node* maker = input->node();
            const bool passes = maker->kind() == aten::t || maker->kind() == aten::transpose ||
                                maker->kind() == aten::permute || maker->kind() == prim::ListConstruct;
            const auto inputs = maker->inputs();
            return input == weight || (passes && std::find(inputs.begin(), inputs.end(), weight) != inputs.end());
        };
        size_t place = 0;
        while (place < node->inputs().size() && !reads(node->input(place))) ++place;
        if (place == node->inputs().size()) throw InternalError("quantize.codebook at " + name, "nothing reads it", "");
        Value* input = node->input(place);
        std::string own = base;
        for (int number = 2; has_attribute(model, own); ++number) {
            if (same_content(get_attribute(model, own), values)) break;
            own = base + "_" + std::to_string(number);
        }
        if (!has_attribute(model, own)) {
            if (SoleReaders(model).alone(model, weight) && input->uses().size() == 1) {
                set_tensor(model, name, values);
                return;
            }
            own = add_attribute(model, own, values, Role::kParameter);
        }
        Value* stored = read_attribute(model, own, node);
        if (input == weight) {
            node->replaceInput(place, stored);
            return;
        }
        auto& graph = *model.graph();
        WithInsertPoint guard(node);
        Node* between = graph.insertNode(
            graph.createClone(input->node(), [&](Value* value) { return value == weight ? stored : value; }));
        node->replaceInput(place, between->output());
    }

    static void emit_indices(Model& model, Node* node, const Value* weight, const Codebook& book) {
        const auto name = *attribute_name(weight);
        Value* bytes = store(model, book.indices, name, "indices", node, Role::kBuffer);
        Value* table = store(model, book.values, name, "codebook", node, Role::kBuffer);
        auto& graph = *model.graph();
        const auto expand = [&](Value* indices) {
            Value* flat = graph.insert(
                aten::reshape,
                {graph.insert(aten::to, {indices, static_cast<int64_t>(at::kInt), false, false, c10::IValue()}),
                 std::vector<int64_t>{-1}});
            return graph.insert(aten::reshape_as,
                                {graph.insert(aten::index_select, {table, int64_t{0}, flat}), indices});
        };
        if (as_embedding(node)) {
            node->replaceInput(0, bytes);
            WithInsertPoint guard(node->next());
            Value* rows = expand(node->output());
            node->output()->replaceAllUsesAfterNodeWith(rows->node(), rows);
        } else {
            WithInsertPoint guard(node);
            const auto place = anchor_inputs(node).weight;
            Value* expanded = expand(bytes);
            // A product with w.t() reads the parameter through the transpose.
            if (node->input(place) != weight) expanded = graph.insert(aten::t, {expanded});
            node->replaceInput(place, expanded);
        }
    }

    const CodebookOptions options_;
    const uint64_t seed_;
    mutable std::map<std::pair<std::string, size_t>, std::optional<Codebook>> cache_;  // emitted several times
};

}  // namespace

std::unique_ptr<Form> codebook_form(const CodebookOptions& options, uint64_t seed) {
    return std::make_unique<CodebookForm>(options, seed);
}

}  // namespace coppice::quantize
