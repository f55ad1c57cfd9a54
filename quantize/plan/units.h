// Units: the steps of an int8 model. A unit is one operator, or a few that one int8 operator replaces.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include <coppice/graph.h>
#include <coppice/quantize.h>

namespace coppice::quantize {

/// Where the parameters of a unit's output come from.
enum class OutputScale {
    kOwn,    ///< observed on the output
    kInput,  ///< those of the first input: the operator only moves, selects or averages values
};

/// What kind of work a unit is, which decides how it is emitted.
enum class UnitKind {
    kConv,
    kLinear,
    kAdd,
    kMul,
    kCat,
    kPointwise,    ///< an int8 operator of one tensor, with a scale of its own
    kSame,         ///< the operator itself, run on int8 tensors
    kPadChannels,  ///< strided slices and zero channels around the rest: a 1x1 convolution with a unit matrix
    kSplit,        ///< chunk or split with its ListUnpack
};

struct OperatorRow;

struct Unit {
    UnitKind kind;
    const OperatorRow* row = nullptr;
    torch::jit::Node* node = nullptr;        ///< the operator
    torch::jit::Node* activation = nullptr;  ///< relu or clamp behind it, done by the same int8 operator
    std::vector<torch::jit::Node*> nodes;    ///< all that the unit replaces, in order
    std::vector<torch::jit::Value*> inputs;  ///< tensors that enter as int8
    std::vector<torch::jit::Value*> outputs;
    std::string refusal;                   ///< why it must stay in float; empty when it may run in int8
    double int8_cost = 0, float_cost = 0;  ///< ns, a model: see costs in operators.cpp
    bool int8 = false;                     ///< chosen
    bool anchor() const { return kind == UnitKind::kConv || kind == UnitKind::kLinear; }
    /// A linear layer that takes and gives float and rounds its input inside (weights int8).
    bool island = false;
    double sqnr_db = 0;
    double clipped_ratio = 0;  ///< share of its input outside of the range that its integers cover
};

/// What the units of a model are told from.
struct Site {
    const Model& model;
    const Facts& facts;
    torch::jit::Node* node;

    const std::vector<int64_t>* shape(const torch::jit::Value* value) const {
        return facts.has_shape(value) ? &facts.shape(value) : nullptr;
    }
    bool is_float(const torch::jit::Value* value) const {
        const auto* fact = facts.find(value);
        return fact && fact->is_tensor && fact->dtype == at::kFloat;
    }
    /// The input called `name` in the operator's schema; null when it has none.
    torch::jit::Value* argument(const std::string& name) const;
    /// Its constant value, None included; nullopt when it is computed.
    std::optional<c10::IValue> constant(const std::string& name) const;
};

/// The units of the outermost block in order, with fusions and refusals; costs follow from the example's shapes.
std::vector<Unit> find_units(const Model& model, const Facts& facts);

/// The unit that each operator is part of, the list that a concatenation reads its parts from included; operators of no
/// unit are not in it.
std::unordered_map<const torch::jit::Node*, const Unit*> units_by_node(const std::vector<Unit>& units);

/// True for operators that read no values of a tensor (size, dim, ...): they may read an int8 tensor instead.
bool reads_no_values(const torch::jit::Node* node);

/// The one operator that reads the values of `value`; null when there are several or none.
torch::jit::Node* only_reader(const torch::jit::Value* value);

/// Sets Unit::int8 so that the modelled time of all units and of the conversions between int8 and float is smallest.
/// Units with a refusal stay float; convolutions without one are int8.
void choose_borders(std::vector<Unit>& units, const Facts& facts, bool islands);

}  // namespace coppice::quantize
