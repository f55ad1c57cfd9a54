// The table of what runs in int8, and the only place that names the operators that a quantized model is made of.
#pragma once

#include "plan/units.h"

namespace coppice::quantize {

struct OperatorRow {
    const char* op;  ///< "aten::conv2d"
    UnitKind kind;
    OutputScale scale;
    bool fuses;  ///< a relu or clamp behind it can be done by the same int8 operator
    /// Why this one cannot run in int8; empty when it can.
    std::string (*refuse)(const Site& site);
    double int8_ns, float_ns;  ///< per element (of the larger of input and output), see operators.cpp
};

const std::vector<OperatorRow>& operator_rows();
const OperatorRow* find_row(const torch::jit::Node* node);

/// Bounds of relu, relu6, hardtanh or clamp with constant bounds that hold zero; nullopt for other operators.
std::optional<Range> clamp_of(const torch::jit::Node* node);

/// Geometry of a convolution as the int8 operators take it.
struct ConvGeometry {
    std::vector<int64_t> stride, padding, dilation;
    int64_t groups = 1;
};
/// nullopt when "same" padding is not the same on both sides.
std::optional<ConvGeometry> geometry_of(const ConvView& view, const std::vector<int64_t>& weight_shape);

/// Runs an operator that LibTorch's C++ interface does not declare, by name. @param arguments  all, defaults included
/// @return its first result
c10::IValue call_operator(const char* name, std::vector<c10::IValue> arguments, const char* overload = "");

/// Whether `engine` may take FBGEMM's kernel for depthwise convolutions for such weights, which adds two products in 16
/// bits whatever the CPU: x86 for more than 100 groups, fbgemm always (LibTorch 2.15). onednn counts as x86, for which
/// its files are loaded where nobody asks for it.
bool fbgemm_depthwise(at::IntArrayRef weight_shape, int64_t groups, const std::string& engine);

/// Packs weights for the engine in force. @param weight qint8 @param bias float32 or undefined
c10::IValue pack_conv(const at::Tensor& weight, const at::Tensor& bias, const ConvGeometry& geometry);
c10::IValue pack_linear(const at::Tensor& weight, const at::Tensor& bias);

/// Stores int8 weights beside attribute `beside` for Emitter::linear_fused() or conv_fused(): a submodule that saves
/// the plain integers and packs them for oneDNN whenever the file is loaded.
/// @param weight    int8 [out, in], of a convolution [out, in, h, w]
/// @param geometry  of a convolution
/// @param shape     of the images that its layout is made for
/// @return the packed weights
torch::jit::Value* store_packed_at_load(Model& model, const at::Tensor& weight, const std::string& beside,
                                        torch::jit::Node* before, const ConvGeometry* geometry = nullptr,
                                        const std::vector<int64_t>& shape = {});

/// An activation that oneDNN's int8 linear operator applies itself.
struct FusedActivation {
    std::string name = "none", algorithm = "none";
};
/// nullopt for operators that it cannot apply.
std::optional<FusedActivation> fused_activation(const torch::jit::Node* node);

/// Inserts int8 operators into a graph, at the graph's insertion point.
class Emitter {
public:
    explicit Emitter(torch::jit::Graph& graph) : graph_(graph) {}
    torch::jit::Value* quantize(torch::jit::Value* value, const Affine& parameters);
    /// [N, C, H, W]; the tensor itself where it has these strides
    torch::jit::Value* channels_last(torch::jit::Value* value);
    torch::jit::Value* dequantize(torch::jit::Value* value);
    /// @param packed  value that holds pack_conv()'s weights for `dims` dimensions
    torch::jit::Value* conv(int64_t dims, torch::jit::Value* input, torch::jit::Value* packed, const Affine& output,
                            bool relu);
    torch::jit::Value* linear(torch::jit::Value* input, torch::jit::Value* packed, const Affine& output, bool relu);
    /// Float in, float out: rounds the input by `input_parameters`, multiplies in int8.
    torch::jit::Value* linear_float(torch::jit::Value* input, torch::jit::Value* packed, const Affine& input_parameters,
                                    bool relu);
    /// The integers of an int8 tensor, as oneDNN's operators take them, in the same memory: LibTorch's own operators
    /// between the two, int_repr and _make_per_tensor_quantized_tensor, are copies, the first one an integer at a time.
    torch::jit::Value* integers(torch::jit::Value* int8);
    /// A quantized tensor of integers, in the same memory.
    torch::jit::Value* from_integers(torch::jit::Value* integers, const Affine& parameters);
    /// Weights of linear_fused() and conv_fused().
    struct FusedWeights {
        torch::jit::Value *packed, *scales, *zero_points;  ///< store_packed_at_load(), float32 [out], int64 [out]
        torch::jit::Value* bias;                           ///< float32 [out]; null: none
    };
    /// Multiplies integers() and applies the activation before it rounds.
    /// @param output  parameters of the integers that come out; nullopt: float32
    torch::jit::Value* linear_fused(torch::jit::Value* integers, const Affine& input, const FusedWeights& weights,
                                    const FusedActivation& activation, const std::optional<Affine>& output);
    /// What conv_fused() adds before it rounds. The operator writes its result over these integers.
    struct Residual {
        torch::jit::Value* integers;
        Affine parameters;
    };
    /// The same for two-dimensional convolutions, without activation, with "relu", or, where nothing is added, "swish"
    /// or "hardswish". @param residual  null: none
    torch::jit::Value* conv_fused(torch::jit::Value* integers, const Affine& input, const FusedWeights& weights,
                                  const ConvGeometry& geometry, const FusedActivation& activation,
                                  const Residual* residual, const std::optional<Affine>& output);
    torch::jit::Value* add(torch::jit::Value* left, torch::jit::Value* right, const Affine& output, bool relu);
    torch::jit::Value* mul(torch::jit::Value* left, torch::jit::Value* right, const Affine& output, bool relu);
    /// Any parameters; a slow kernel.
    torch::jit::Value* cat(const std::vector<torch::jit::Value*>& parts, int64_t dim, const Affine& output);
    /// All parts have the parameters of the result; a copy.
    torch::jit::Value* cat_same(const std::vector<torch::jit::Value*>& parts, int64_t dim);
    /// Activations and norms. @param site  the float operator in this graph @param dims  of the tensor
    /// @param relu  behind a batch norm
    torch::jit::Value* pointwise(const Site& site, int64_t dims, torch::jit::Value* input, const Affine& output,
                                 bool relu);
    /// The node's own operator with other inputs; pooling gets its lists in full length (LibTorch's int8 max_pool2d
    /// reads past the end of a shorter one), view becomes reshape (int8 convolutions give channels-last strides).
    std::vector<torch::jit::Value*> same(const Site& site,
                                         const std::function<torch::jit::Value*(torch::jit::Value*)>& input_of);
    torch::jit::Value* clamp(torch::jit::Value* value, Range bounds);

private:
    torch::jit::Value* call(const char* name, at::ArrayRef<torch::jit::NamedValue> arguments);
    /// Lets `empty` have the memory, sizes and strides of `tensor`, whose type may be another one of as many bytes.
    torch::jit::Value* over_memory_of(torch::jit::Value* tensor, torch::jit::Value* empty);
    torch::jit::Graph& graph_;
};

}  // namespace coppice::quantize
