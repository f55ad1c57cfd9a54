// What a model holds: bytes on disk, parameters, bytes of weights, peak memory, operations.
#include <ATen/native/quantized/PackedParams.h>
#include <ATen/native/quantized/cpu/EmbeddingPackedParams.h>
#include <malloc.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>

#include <coppice/eval.h>
#include <coppice/graph.h>

#include <fstream>
#include <set>
#include <tuple>

#include "metrics/packed.h"
#include "number_text.h"

namespace coppice::eval {
namespace {

enum class Place { kParameter, kBuffer, kConstant, kPacked };

// Is this tensor a weight, rather than a statistic, a mask or a table of positions?
bool is_weight(const at::Tensor& tensor, Place place) {
    switch (place) {
        case Place::kParameter:
        case Place::kPacked:
            return true;
        case Place::kConstant:
            return tensor.is_quantized() || (tensor.is_floating_point() && tensor.numel() > 1);
        case Place::kBuffer: {
            // Weights that no longer train are buffers; statistics and biases of such layers have one dimension.
            const auto type = tensor.scalar_type();
            return tensor.is_quantized() || (tensor.dim() > 1 && (type == at::kChar || type == at::kByte ||
                                                                  type == at::kBFloat16 || type == at::kHalf));
        }
    }
    return false;
}

class Counter {
public:
    Weights result;

    void module(const torch::jit::Module& root) {
        visit(root._ivalue(), Place::kBuffer);
        for (const auto& part : root.modules())
            for (const auto& method : part.get_methods()) block(method.graph()->block());
    }

private:
    using Key = std::tuple<const void*, int64_t, std::vector<int64_t>>;

    void visit(const c10::IValue& value, Place place) {
        if (value.isTensor()) {
            tensor(value.toTensor(), place);
        } else if (value.isObject()) {
            object(value.toObject());
        } else if (value.isTuple()) {
            for (const auto& element : value.toTupleRef().elements()) visit(element, place);
        } else if (value.isList()) {
            for (const auto& element : value.toListRef()) visit(element, place);
        } else if (value.isGenericDict()) {
            for (const auto& entry : value.toGenericDict()) visit(entry.value(), place);
        }
    }

    void visit(const c10::intrusive_ptr<c10::ivalue::Object>& root, Place place) { visit(c10::IValue(root), place); }

    void object(const c10::intrusive_ptr<c10::ivalue::Object>& object) {
        if (!objects_.insert(object.get()).second) return;
        const auto type = object->type();
        const auto name = type->name() ? type->name()->qualifiedName() : "";
        if (name.rfind("__torch__.torch.classes.", 0) == 0) {
            packed(c10::IValue(object), name);
            return;
        }
        for (size_t i = 0; i < type->numAttributes(); ++i) {
            const auto& slot = object->getSlot(i);
            // Packed when the file was loaded, from the weight beside it.
            if (slot.isTensor() && slot.toTensor().defined() && slot.toTensor().is_mkldnn() &&
                type->hasAttribute("weight") && type->getAttributeName(i) != "weight")
                continue;
            visit(slot, type->is_parameter(i) ? Place::kParameter : Place::kBuffer);
        }
    }

    // Packed weights are opaque to everything but their own unpack(); other classes are seen through what they would
    // save.
    void packed(const c10::IValue& value, const std::string& name) {
        ++result.packed;
        try {
            std::optional<at::Tensor> bias;
            if (const auto weight = unpacked(value, &bias)) {
                tensor(*weight, Place::kPacked);
                if (bias) tensor(*bias, Place::kPacked);
            } else if (auto* get_state = value.type()->expect<c10::ClassType>()->findMethod("__getstate__")) {
                visit((*get_state)({value}), Place::kPacked);
            } else {
                result.uncounted.push_back(name);
            }
        } catch (const std::exception& error) {
            result.uncounted.push_back(name + " (" + message_of(error) + ")");
        }
    }

    void block(const torch::jit::Block* block_of) {
        for (const auto* node : block_of->nodes()) {
            for (const auto* inner : node->blocks()) block(inner);
            if (node->hasAttribute(c10::attr::Subgraph)) block(node->g(c10::attr::Subgraph)->block());
            if (node->kind() == c10::prim::Constant && !node->outputs().empty())
                if (const auto value = torch::jit::toIValue(node->output())) visit(*value, Place::kConstant);
        }
    }

    void tensor(const at::Tensor& tensor, Place place) {
        if (!tensor.defined()) return;
        const void* storage = tensor.has_storage() ? static_cast<const void*>(tensor.storage().unsafeGetStorageImpl())
                                                   : static_cast<const void*>(tensor.unsafeGetTensorImpl());
        // Tensors made by unpack() die at once and their addresses come again: each is new, and kept alive for the
        // count.
        const int64_t offset = tensor.has_storage() ? tensor.storage_offset() : 0;
        kept_.push_back(tensor);
        if (!seen_.insert(Key{storage, offset, tensor.sizes().vec()}).second) return;
        const bool csr = tensor.layout() == at::kSparseCsr;
        if (storages_.insert(storage).second)
            result.bytes += csr ? static_cast<int64_t>(tensor.values().nbytes() + tensor.crow_indices().nbytes() +
                                                       tensor.col_indices().nbytes())
                            : tensor.has_storage() ? static_cast<int64_t>(tensor.storage().nbytes())
                                                   : tensor.numel() * static_cast<int64_t>(tensor.element_size());
        if (tensor.is_quantized() && tensor.qscheme() != at::kPerTensorAffine)
            result.bytes += static_cast<int64_t>(tensor.q_per_channel_scales().nbytes()) +
                            static_cast<int64_t>(tensor.q_per_channel_zero_points().nbytes());
        if (!is_weight(tensor, place)) return;
        result.parameters += tensor.numel();
        const auto plain = csr ? tensor.values() : tensor.is_quantized() ? tensor.dequantize() : tensor;
        result.nonzero +=
            plain.is_sparse() || !plain.has_storage() ? plain.numel() : plain.count_nonzero().item<int64_t>();
    }

    std::set<const void*> objects_, storages_;
    std::set<Key> seen_;
    std::vector<at::Tensor> kept_;
};

// Value of a line "VmRSS:   123 kB" of /proc/self/status, in bytes.
std::optional<int64_t> status_bytes(const std::string& key) {
    std::ifstream file("/proc/self/status");
    for (std::string line; std::getline(file, line);)
        if (line.rfind(key + ":", 0) == 0) return std::strtoll(line.c_str() + key.size() + 1, nullptr, 10) * 1024;
    return std::nullopt;
}

}  // namespace

std::optional<at::Tensor> unpacked(const c10::IValue& value, std::optional<at::Tensor>* bias) {
    if (value.isTensor() && value.toTensor().defined() && value.toTensor().is_mkldnn())
        return value.toTensor().to_dense();
    if (!value.isCustomClass()) return std::nullopt;
    const auto name = value.type()->str();
    const auto ends_with = [&](const std::string& end) {
        return name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
    };
    const auto weight_of = [&](std::tuple<at::Tensor, std::optional<at::Tensor>> both) {
        if (bias) *bias = std::get<1>(both);
        return std::get<0>(both);
    };
    if (ends_with("quantized.Conv2dPackedParamsBase"))
        return weight_of(value.toCustomClass<ConvPackedParamsBase<2>>()->unpack());
    if (ends_with("quantized.Conv3dPackedParamsBase"))
        return weight_of(value.toCustomClass<ConvPackedParamsBase<3>>()->unpack());
    if (ends_with("quantized.LinearPackedParamsBase"))
        return weight_of(value.toCustomClass<LinearPackedParamsBase>()->unpack());
    if (ends_with("quantized.EmbeddingPackedParamsBase"))
        return value.toCustomClass<EmbeddingPackedParamsBase>()->unpack();
    return std::nullopt;
}

Weights weights_of(const torch::jit::Module& module) {
    Counter counter;
    const torch::NoGradGuard no_grad;
    counter.module(module);
    return counter.result;
}

Figure peak_memory(const std::filesystem::path& model_file, const Inputs& example) {
    const auto run = [&] {
        auto module = torch::jit::load(model_file.string());
        module.eval();
        const torch::NoGradGuard no_grad;
        module.forward(example);
    };
    try {
        run();  // LibTorch's own pages and caches, which later runs share
        malloc_trim(0);
        const auto before = status_bytes("VmRSS");
        std::ofstream reset("/proc/self/clear_refs");
        if (!before || !(reset << 5 << std::flush))
            return Figure::unavailable("B", "the kernel does not let the peak be reset (/proc/self/clear_refs)");
        run();
        const auto peak = status_bytes("VmHWM");
        if (!peak) return Figure::unavailable("B", "/proc/self/status shows no VmHWM");
        return Figure::measured(
            static_cast<double>(std::max<int64_t>(0, *peak - *before)), "B",
            "rise of resident memory while the file was loaded and ran once (VmHWM - VmRSS before)");
    } catch (const std::exception& error) {
        return Figure::unavailable("B", message_of(error));
    }
}

std::vector<std::pair<std::string, Figure>> size_figures(const std::filesystem::path& model_file, const Model& model,
                                                         const Inputs& example, const std::string& macs_reason) {
    std::error_code failure;
    const auto bytes = std::filesystem::file_size(model_file, failure);
    if (failure) throw IoError(model_file.string(), failure.message(), "");
    const auto weights = weights_of(torch::jit::load(model_file.string()));
    std::string from = "tensors of the file" + std::string(weights.packed ? ", packed weights unpacked" : "");
    for (const auto& name : weights.uncounted) from += "; without " + name;
    const auto count = [](int64_t value) { return static_cast<double>(value); };
    std::vector<std::pair<std::string, Figure>> figures = {
        {"file_bytes", Figure::measured(static_cast<double>(bytes), "B", "size of the file")},
        {"parameters", Figure::measured(count(weights.parameters), "1", "elements of weights and biases: " + from)},
        {"nonzero_parameters", Figure::measured(count(weights.nonzero), "1", "those that are not 0")},
        {"weight_bytes", Figure::measured(count(weights.bytes), "B", "all " + from + ", shared storage once")}};

    auto macs = Figure::unavailable("1", macs_reason.empty() ? "the model was not analysed" : macs_reason),
         flops = macs, nonzero = macs, bits = macs;
    if (model.defined()) {
        try {
            const auto costs = cost(model, example);
            std::string unknown, quantized;
            for (const auto& op : costs.unknown_operators) {
                unknown += (unknown.empty() ? "" : ", ") + op;
                if (op.rfind("quantized::", 0) == 0) quantized = op;
            }
            const std::string method = "counted from the shapes of a run on the example input" +
                                       (unknown.empty() ? "" : "; not counted: " + unknown);
            if (!quantized.empty()) {
                macs = flops = nonzero = bits = Figure::unavailable("1", "no rule for " + quantized);
            } else {
                macs = Figure::derived(costs.macs, "1", method);
                flops = Figure::derived(costs.flops, "1", method);
                const auto work = operations(model, example, costs);
                std::string precisions;
                for (const auto& [name, share] : work.by_precision)
                    precisions += (precisions.empty() ? "" : ", ") + number_text(share) + " " + name;
                nonzero = Figure::derived(work.nonzero_macs, "1",
                                          "multiply-adds x share of the weights that are not 0, by operator");
                bits = Figure::derived(
                    work.bit_operations, "1",
                    "multiply-adds x bits of both operands: " + (precisions.empty() ? "none" : precisions));
            }
        } catch (const std::exception& error) {
            macs = flops = nonzero = bits = Figure::unavailable("1", message_of(error));
        }
    }
    figures.emplace_back("macs", macs);
    figures.emplace_back("flops", flops);
    figures.emplace_back("nonzero_macs", nonzero);
    figures.emplace_back("bit_operations", bits);
    figures.emplace_back("peak_memory_bytes", peak_memory(model_file, example));
    return figures;
}

}  // namespace coppice::eval
