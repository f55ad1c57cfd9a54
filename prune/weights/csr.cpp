// Stage prune.csr: linear layers whose weight is sparse enough for LibTorch's sparse product to be faster, by
// measuring.
//
//   before  y = linear(x, W, b)                                          x [..., in], W [out, in] with many zeros
//   after   y = view(contiguous(t(addmm(unsqueeze(b, 1), C, t(x')))), [..., out])   x' = reshape(x, [-1, in]), C =
//   csr(W)
//
// MKL multiplies a compressed-sparse-row matrix from the left by a dense one; linear() with such a weight would
// multiply from the right, which is several times slower, hence the transposes. C is saved in the file as a sparse
// tensor.

#include <ATen/Parallel.h>

#include "messages.h"
#include "weights/weights.h"

namespace coppice::prune {

using namespace torch::jit;

namespace {

constexpr const char* kWhere = "prune.csr";
// The upper end of the interval of the ratio of times must lie below: a form that only inference can use should pay.
constexpr double kLeastGain = 0.05;

/// Replaces the linear layers that read `attribute`, the only ones who do.
void convert(Model& model, const std::string& attribute, const at::Tensor& csr, const Facts& facts) {
    const auto graph = model.graph();
    const auto name = add_attribute(model, attribute + "_csr", csr, Role::kParameter);
    std::vector<std::pair<Node*, size_t>> nodes;  // with the dimensions of its input: one layer may feed the next
    for (Node* node : all_nodes(*graph))
        if (node->kind() == aten::linear && attribute_name(node->input(1)) == attribute)
            nodes.emplace_back(node, facts.shape(node->input(0)).size());
    for (const auto& [node, dims] : nodes) {
        const auto linear = as_linear(node);
        Value* weight = read_attribute(model, name, node);
        WithInsertPoint guard(node);
        Value* rows = linear->input;  // [N, in]
        if (dims != 2) rows = graph->insert(aten::reshape, {rows, std::vector<int64_t>{-1, csr.size(1)}});
        Value* columns = graph->insert(aten::t, {rows});
        Value* product =
            linear->has_bias
                ? graph->insert(aten::addmm, {graph->insert(aten::unsqueeze, {linear->bias, 1}), weight, columns})
                : graph->insert(aten::mm, {weight, columns});
        // The next operators read row after row.
        Value* result = graph->insert(aten::contiguous, {graph->insert(aten::t, {product})});
        if (dims != 2) {
            std::vector<Value*> sizes;
            for (size_t d = 0; d + 1 < dims; ++d)
                sizes.push_back(graph->insert(aten::size, {linear->input, static_cast<int64_t>(d)}));
            sizes.push_back(graph->insertConstant(csr.size(0)));
            Value* list = graph->insertNode(graph->createList(c10::IntType::get(), sizes))->output();
            result = graph->insert(aten::view, {result, list});
        }
        result->setType(node->output()->type());
        node->output()->replaceAllUsesWith(result);
        node->destroy();
    }
    model.refresh();
    remove_unused_attributes(model);
    model.refresh();
}

/// A model of this one layer.
Model single(const at::Tensor& weight, const at::Tensor& bias) {
    Module module(c10::QualifiedName("__torch__.Linear"), std::make_shared<CompilationUnit>());
    module.register_parameter("weight", weight, /*is_buffer=*/false);
    if (bias.defined()) module.register_parameter("bias", bias, false);
    module.define(std::string("def forward(self, x):\n    return torch.linear(x, self.weight, ") +
                  (bias.defined() ? "self.bias" : "None") + ")\n");
    return Model::from_module(module, "linear");
}

struct Candidate {
    std::string layer, attribute, reason;  // reason: why it stays dense
    at::Tensor weight, bias, input;        // input: on the example
    double sparsity = 0;
};

class Csr final : public Stage {
public:
    explicit Csr(CsrOptions options) : options_(std::move(options)) {
        ignore_ = ignore_patterns(kWhere, options_.ignore);
    }

    Model apply(const Model& model, Context& context) const override {
        torch::NoGradGuard no_grad;
        refuse_other_methods(model, kWhere);
        auto result = model.clone();
        result.eval();
        const auto stopwatch = options_.stopwatch ? options_.stopwatch : wall_clock(context.interrupted);
        int replaced = 0;
        Json rows = Json::array();
        for (const auto& candidate : candidates(result, context.example)) {
            const std::string before = "sparsity " + text_of(candidate.sparsity);
            if (!candidate.reason.empty()) {
                context.record({candidate.layer, "kept", before, before, candidate.reason});
                continue;
            }
            if (context.interrupted()) throw Interrupted(kWhere, "stopped by request", "");
            const auto csr = candidate.weight.to_sparse_csr();
            const auto dense = single(candidate.weight, candidate.bias);
            const Inputs input = {candidate.input};
            auto sparse = dense.clone();
            convert(sparse, "weight", csr, Facts::observe(sparse, input));
            const auto ratio = stopwatch->ratio(dense, sparse, input);
            const bool faster = ratio.high < 1 - kLeastGain;
            rows.push_back({{"layer", candidate.layer},
                            {"sparsity", candidate.sparsity},
                            {"time_ratio", ratio.median},
                            {"interval", {ratio.low, ratio.high}},
                            {"dense_ms", ratio.before_ms},
                            {"sparse_ms", ratio.after_ms},
                            {"kept", faster}});
            const std::string measured = text_of(ratio.median) + " of the dense time (" + text_of(ratio.low) + " to " +
                                         text_of(ratio.high) + ")";
            context.record({candidate.layer, faster ? "csr" : "kept", before,
                            faster ? "compressed sparse rows" : before,
                            measured + (faster ? "" : ": not faster beyond noise")});
            if (!faster) continue;
            convert(result, candidate.attribute, csr, Facts::observe(result, context.example));
            ++replaced;
        }
        verify(result, context.example, kWhere);
        context.facts["layers_sparse"] = replaced;
        context.facts["layers_measured"] = rows;
        context.facts["threads"] = at::get_num_threads();
        context.log->info(std::string(kWhere) + ": " + std::to_string(replaced) + " of " + std::to_string(rows.size()) +
                          " sparse layers run faster as compressed sparse rows");
        return result;
    }

private:
    /// One per weight of a linear layer, with its bias and the input it has on the example.
    std::vector<Candidate> candidates(const Model& model, const Inputs& example) const {
        const LayerNames names(model);
        std::map<const Node*, size_t> readers;
        std::set<const Node*> reached;
        std::map<std::string, size_t> known;  // by attribute
        std::vector<Candidate> list;
        for (Node* node : all_nodes(*model.graph())) {
            const auto linear = as_linear(node);
            if (!linear) continue;
            const auto attribute = attribute_name(linear->weight);
            if (attribute && known.count(*attribute)) {
                readers[node] = known.at(*attribute);
                continue;
            }
            Candidate candidate;
            candidate.layer = names.of(node);
            for (const auto& expression : ignore_)
                if (std::regex_search(candidate.layer, expression)) candidate.reason = "matches `ignore`";
            const auto weight = parameter_of(model, linear->weight);
            if (!attribute || attribute->empty() || !weight) {
                candidate.reason = "the weight is computed or a constant, not a parameter";
                list.push_back(std::move(candidate));
                continue;
            }
            candidate.attribute = *attribute;
            candidate.weight = weight->detach();
            candidate.sparsity = 1 - static_cast<double>(weight->count_nonzero().item<int64_t>()) /
                                         static_cast<double>(std::max<int64_t>(weight->numel(), 1));
            if (const auto bias = linear->has_bias ? parameter_of(model, linear->bias) : std::nullopt)
                candidate.bias = bias->detach();
            if (candidate.reason.empty()) {
                if (candidate.sparsity < options_.least_sparsity)
                    candidate.reason = "sparsity is below " + text_of(options_.least_sparsity);
                else if (weight->scalar_type() != at::kFloat || weight->dim() != 2)
                    candidate.reason = "the weight is no float32 matrix";
                else
                    candidate.reason = other_readers(model, *attribute, linear->has_bias && !candidate.bias.defined());
            }
            known[*attribute] = list.size();
            readers[node] = list.size();
            list.push_back(std::move(candidate));
        }
        NodeHooks hooks;
        hooks.before = [&](const Node* node, std::vector<c10::IValue>& inputs) {
            const auto found = readers.find(node);
            if (found == readers.end() || !reached.insert(node).second) return;
            auto& candidate = list[found->second];
            if (candidate.reason.empty() && !candidate.input.defined()) candidate.input = inputs[0].toTensor().clone();
        };
        run_nodes(model, example, hooks);
        for (const auto& [node, index] : readers)
            if (!reached.count(node) && list[index].reason.empty())
                list[index].reason = "the example input does not reach it";
        return list;
    }

    static std::string other_readers(const Model& model, const std::string& attribute, bool computed_bias) {
        if (computed_bias) return "its bias is computed";
        const auto weight = get_attribute(model, attribute).toTensor();
        for (Node* node : all_nodes(*model.graph()))
            for (const Value* input : node->inputs()) {
                const auto tensor = parameter_of(model, input);
                if (!tensor || !tensor->is_same(weight)) continue;
                if (node->kind() != aten::linear || node->input(1) != input || attribute_name(input) != attribute)
                    return std::string("its weight is also read by ") + node->kind().toQualString();
            }
        return {};
    }

    CsrOptions options_;
    std::vector<std::regex> ignore_;
};

}  // namespace

std::unique_ptr<Stage> sparse_rows(CsrOptions options) {
    if (!(options.least_sparsity >= 0 && options.least_sparsity <= 1))
        throw InvalidArgument(kWhere, "least_sparsity must be in [0, 1]", "The default is 0.7.");
    return std::make_unique<Csr>(std::move(options));
}

std::unique_ptr<Stage> make_sparse_rows(Options& o) {
    CsrOptions options;
    options.least_sparsity =
        o.number_in("least_sparsity", options.least_sparsity, 0, 1, "share of zeros from which a layer is measured");
    options.ignore = o.texts("ignore", {}, "regular expressions on layer names that stay dense");
    return sparse_rows(std::move(options));
}

}  // namespace coppice::prune
