// Facts come from a run without the numbers where that is possible: LibTorch's meta tensors have a shape and a dtype
// but no memory. What needs numbers (a branch on a value, nonzero) fails on them, and then the example runs in earnest.
#include <coppice/error.h>

#include "graph/run_nodes.h"

namespace coppice {
namespace {

using namespace torch::jit;

ValueFact fact_of(const c10::IValue& value) {
    ValueFact fact;
    if (value.isTensor() && value.toTensor().defined() && value.toTensor().is_nested()) {
        // Rows of different lengths: there is no shape to know.
    } else if (value.isTensor() && value.toTensor().defined()) {
        fact.is_tensor = true;
        fact.shape = value.toTensor().sizes().vec();
        fact.dtype = value.toTensor().scalar_type();
    } else if (value.isInt() || value.isDouble() || value.isBool() || value.isNone() || value.isString() ||
               value.isIntList() || value.isDoubleList() || value.isBoolList()) {
        fact.constant = value.deepcopy();
    }
    return fact;
}

/// False for graphs in which shapes are not all that matters: forward writes attributes (a run on meta tensors would
/// leave them there), or asks where a tensor lies (meta is an answer that chooses another branch).
bool can_run_on_shapes(const Graph& graph) {
    for (Node* node : all_nodes(graph)) {
        if (node->kind() == prim::SetAttr) return false;
        if (!node->kind().is_aten() && !node->kind().is_prim()) return false;
        for (const Value* input : node->inputs())
            if (input->type()->kind() == c10::TypeKind::DeviceObjType)
                for (const Value* output : node->outputs())
                    if (!output->type()->isSubtypeOf(*c10::TensorType::get())) return false;
    }
    return true;
}

/// Operators without a meta kernel in C++ whose output shape depends on no value: they run on zeros.
const std::unordered_set<std::string> kRunOnZeros = {
    "aten::_native_multi_head_attention",
    "aten::adaptive_avg_pool1d",
    "aten::adaptive_avg_pool2d",
    "aten::adaptive_avg_pool3d",
    "aten::embedding",
    "aten::group_norm",
    "aten::gru",
    "aten::instance_norm",
    "aten::layer_norm",
    "aten::lstm",
    "aten::max_pool1d",
    "aten::rms_norm",
    "aten::rnn_relu",
    "aten::rnn_tanh",
    "aten::roll",
    "aten::scaled_dot_product_attention",
};

/// Such operators that give what is like their input.
const std::unordered_set<std::string> kLikeInput = {"aten::hardtanh", "aten::relu", "aten::relu6"};

/// Stands in for the operators of a run whose big tensors are meta tensors. Numbers in tensors without dimensions stay
/// real: traced models compute sizes with them.
class Shapes {
public:
    bool operator()(Node* node, std::vector<c10::IValue>& stack) {
        if (node->kind().is_prim()) return false;  // lists and tuples pass on what they hold, questions work on both
        const bool of_layers = as_conv(node) || as_batch_norm(node);
        if (!of_layers && std::none_of(stack.begin(), stack.end(), is_meta) &&
            kRunOnZeros.count(node->kind().toQualString()) == 0)
            return false;
        for (size_t i = 0; i < stack.size(); ++i)
            if (!stack[i].isTensor() && writes(node, i)) return false;  // append: the list itself is meant, not a copy
        for (auto& value : stack) value = on_meta(value);
        if (const auto conv = as_conv(node))
            stack = {after_conv(*conv, stack)};
        else if (as_batch_norm(node))
            stack = {after_batch_norm(stack)};
        else if (kLikeInput.count(node->kind().toQualString()) > 0)
            stack = {at::empty_like(stack[0].toTensor())};
        else if (kRunOnZeros.count(node->kind().toQualString()) > 0)
            run_on_zeros(node, stack);
        else
            execute_operator(node, stack);
        return true;
    }

private:
    static bool writes(const Node* node, size_t index) {
        const auto* schema = node->maybeSchema();
        const auto* alias =
            schema && index < schema->arguments().size() ? schema->arguments()[index].alias_info() : nullptr;
        return alias && alias->isWrite();
    }

    static bool is_meta(const c10::IValue& value) {
        if (value.isTensor()) return value.toTensor().defined() && value.toTensor().is_meta();
        if (!value.isTensorList() && !value.isOptionalTensorList()) return false;
        const auto items = value.toListRef();
        return std::any_of(items.begin(), items.end(), is_meta);
    }

    template <class Change>
    static c10::IValue each_tensor(const c10::IValue& value, const Change& change) {
        if (value.isTensor()) return change(value.toTensor());
        if (!value.isTensorList()) return value;
        c10::List<at::Tensor> list;
        for (const auto& tensor : value.toTensorVector()) list.push_back(change(tensor));
        return list;
    }

    static c10::IValue on_meta(const c10::IValue& value) {
        return each_tensor(value, [](const at::Tensor& tensor) {
            if (!tensor.defined() || tensor.is_meta() || tensor.dim() == 0) return tensor;
            return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(at::kMeta));
        });
    }

    void run_on_zeros(Node* node, std::vector<c10::IValue>& stack) {
        for (auto& value : stack)
            value = each_tensor(value, [](const at::Tensor& tensor) {
                if (!tensor.defined() || !tensor.is_meta()) return tensor;
                return at::zeros(tensor.sizes(), tensor.options().device(at::kCPU));
            });
        execute_operator(node, stack);
        for (auto& value : stack) value = on_meta(value);
    }

    /// @throws InternalError when the batch norm would fail, so that it does
    static at::Tensor after_batch_norm(const std::vector<c10::IValue>& stack) {
        const auto input = stack[0].toTensor();
        for (size_t i = 1; i < 5; ++i)
            if (stack[i].isTensor() && stack[i].toTensor().defined() &&
                (input.dim() < 2 || stack[i].toTensor().numel() != input.size(1)))
                throw InternalError("facts", "a batch norm does not fit its input", "");
        return at::empty_like(input, at::MemoryFormat::Contiguous);
    }

    /// Dumoulin and Visin, arXiv 1603.07285. @throws InternalError when the convolution would fail, so that it does
    static at::Tensor after_conv(const ConvView& conv, const std::vector<c10::IValue>& stack) {
        const auto input = stack[0].toTensor(), weight = stack[1].toTensor();
        const bool batched = input.dim() == conv.dims + 2;
        const int64_t channel_dim = batched ? 1 : 0;
        const int64_t in = conv.transposed ? weight.size(0) : weight.size(1) * conv.groups;
        if ((!batched && input.dim() != conv.dims + 1) || weight.dim() != conv.dims + 2 ||
            input.size(channel_dim) != in || input.scalar_type() != weight.scalar_type())
            throw InternalError("facts", "a convolution does not fit its input", "");
        auto shape = input.sizes().vec();
        shape[channel_dim] = conv.transposed ? weight.size(1) * conv.groups : weight.size(0);
        for (int64_t dim = 0; dim < conv.dims; ++dim) {
            auto& size = shape[channel_dim + 1 + dim];
            const int64_t reach = conv.dilation[dim] * (weight.size(2 + dim) - 1);
            if (conv.transposed)
                size = (size - 1) * conv.stride[dim] - 2 * conv.padding[dim] + reach + conv.output_padding[dim] + 1;
            else if (conv.padding_mode != "same")
                size = (size + 2 * conv.padding[dim] - reach - 1) / conv.stride[dim] + 1;
            if (size < 1) throw InternalError("facts", "a convolution does not fit its input", "");
        }
        return at::empty(shape, input.options());
    }
};

}  // namespace

Facts Facts::observe(const Model& model, const Inputs& example) {
    torch::NoGradGuard no_grad;
    Facts facts;
    const auto graph = model.graph();
    NodeHooks hooks;
    hooks.before = [&](const Node* node, std::vector<c10::IValue>& inputs) {
        for (size_t i = 0; i < inputs.size(); ++i) {
            const auto* value = node->inputs()[i];
            // Constants, parameters and parameters of blocks are not outputs that `after` sees.
            const auto kind = value->node()->kind();
            if (kind == prim::Constant || kind == prim::GetAttr || kind == prim::Param)
                facts.values_[value] = fact_of(inputs[i]);
        }
    };
    hooks.after = [&](const Node* node, std::vector<c10::IValue>& outputs) {
        ++facts.runs_[node];
        for (size_t i = 0; i < outputs.size(); ++i) facts.values_[node->outputs()[i]] = fact_of(outputs[i]);
    };
    const auto begin = [&] {
        facts = Facts();
        for (size_t i = 0; i < example.size() && i + 1 < graph->inputs().size(); ++i)
            facts.values_[graph->inputs()[i + 1]] = fact_of(example[i]);
    };
    begin();
    if (can_run_on_shapes(*graph)) {
        Shapes shapes;
        try {
            run_nodes(model, example, hooks, std::ref(shapes));
            return facts;
        } catch (const std::exception&) {
            begin();  // an operator that needs the numbers: the run below has them, or the better message
        }
    }
    run_nodes(model, example, hooks);
    return facts;
}

const ValueFact* Facts::find(const torch::jit::Value* value) const {
    const auto found = values_.find(value);
    return found == values_.end() ? nullptr : &found->second;
}

bool Facts::has_shape(const torch::jit::Value* value) const {
    const auto* fact = find(value);
    return fact && fact->is_tensor;
}

const std::vector<int64_t>& Facts::shape(const torch::jit::Value* value) const {
    const auto* fact = find(value);
    if (!fact || !fact->is_tensor)
        throw InternalError("facts", "value %" + value->debugName() + " was not reached or is no tensor", "");
    return fact->shape;
}

int64_t Facts::runs(const torch::jit::Node* node) const {
    const auto found = runs_.find(node);
    return found == runs_.end() ? 0 : found->second;
}

}  // namespace coppice
