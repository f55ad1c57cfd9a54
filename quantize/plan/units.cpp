#include "plan/units.h"

#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <set>

#include "emit/operators.h"
#include "layers/layers.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

constexpr double kCallNs = 2000;  // of any operator, whatever its size

double elements(const Facts& facts, const Value* value) {
    double count = 1;
    for (const int64_t size : facts.shape(value)) count *= static_cast<double>(size);
    return count;
}

/// Strided slices over height and width, then zero channels: ResNet's parameter-free shortcut (option A of arXiv
/// 1512.03385). LibTorch's int8 pad writes element by element; a 1x1 convolution with a unit matrix gives the same
/// integers, bit for bit, in a quarter of the time.
std::optional<Unit> pad_channels(const Site& site) {
    constexpr int64_t kMostChannels = 512;  // beyond, multiplying by zeros costs more than the copy
    const auto pads = site.constant("pad");
    Value* value = site.node->input(0);
    const auto* shape = site.shape(site.node->output());
    if (!pads || !pads->isIntList() || !shape || shape->size() != 4 || (*shape)[1] > kMostChannels) return std::nullopt;
    auto list = pads->toIntVector();
    if (list.size() != 6 || list[0] != 0 || list[1] != 0 || list[2] != 0 || list[3] != 0 || list[4] < 0 || list[5] < 0)
        return std::nullopt;
    Unit unit;
    unit.kind = UnitKind::kPadChannels;
    unit.node = site.node;
    unit.nodes = {site.node};
    while (value->node()->kind() == aten::slice && value->uses().size() == 1 &&
           value->node()->owningBlock() == site.node->owningBlock()) {
        const Site slice{site.model, site.facts, value->node()};
        const auto dim = slice.constant("dim"), start = slice.constant("start"), end = slice.constant("end"),
                   step = slice.constant("step");
        const auto* before = slice.shape(value->node()->input(0));
        if (!dim || !start || !end || !step || !before || !dim->isInt() || !step->isInt()) break;
        if (!(start->isNone() || (start->isInt() && start->toInt() == 0))) break;
        const int64_t axis = dim->toInt() < 0 ? dim->toInt() + 4 : dim->toInt();
        if (axis < 2 && step->toInt() != 1) break;
        // To the end, however large the image is; only the number of channels is that of the example.
        const auto all = axis == 1 ? (*before)[1] : std::numeric_limits<int64_t>::max();
        if (!(end->isNone() || (end->isInt() && end->toInt() >= all))) break;
        unit.nodes.insert(unit.nodes.begin(), value->node());
        value = value->node()->input(0);
    }
    unit.inputs = {value};
    return unit;
}

std::vector<Value*> tensor_inputs(UnitKind kind, Node* node) {
    switch (kind) {
        case UnitKind::kConv:
            return {as_conv(node) ? as_conv(node)->input : node->input(0)};
        case UnitKind::kLinear:
            return {as_linear(node) ? as_linear(node)->input : node->input(0)};
        case UnitKind::kAdd:
        case UnitKind::kMul:
            return {node->input(0), node->input(1)};
        case UnitKind::kCat:
            return node->input(0)->node()->inputs().vec();
        default:
            return {node->input(0)};
    }
}

std::string refusal_of(const Unit& unit, const Site& site) {
    for (const auto* input : unit.inputs) {
        if (!site.is_float(input)) return "an input is no float32 tensor";
        if (attribute_name(input) || toIValue(input)) return "its input is a parameter";
    }
    return unit.row->refuse(site);
}

void add_costs(Unit& unit, const Facts& facts) {
    double count = 0;
    for (const auto* value : unit.inputs) count = std::max(count, elements(facts, value));
    for (const auto* value : unit.outputs) count = std::max(count, elements(facts, value));
    const double relu = unit.activation ? kCallNs + 0.05 * count : 0;
    switch (unit.kind) {
        case UnitKind::kConv:
            break;  // always int8 where possible
        case UnitKind::kLinear: {
            // Both multiply in int8. In the float domain rounding happens inside the operator and the output is not
            // rounded, which is more exact and costs little; 1.5 us are what that is worth.
            const double macs =
                elements(facts, unit.outputs[0]) * static_cast<double>(facts.shape(unit.inputs[0]).back());
            unit.int8_cost = kCallNs + 0.00148 * macs + 1500;
            unit.float_cost = kCallNs + 0.00174 * macs;
            break;
        }
        case UnitKind::kPadChannels:
            unit.int8_cost = kCallNs + 0.1 * count;
            unit.float_cost = 2 * kCallNs + 0.3 * count;
            break;
        default: {
            const bool moves = unit.row->int8_ns == 0;
            unit.int8_cost = (moves ? 1000 : kCallNs) + unit.row->int8_ns * count;
            unit.float_cost = (moves ? 1000 : kCallNs) + unit.row->float_ns * count + relu;
            const std::string op = unit.node->kind().toUnqualString();
            if (op == "silu") unit.int8_cost += kCallNs;  // a sigmoid and a product
            // LibTorch takes 32 channels at once, and the rest one by one: per element on 2 threads, like the table's.
            if (op == "max_pool2d" || op == "max_pool3d") {
                const auto channels = facts.shape(unit.inputs[0])[1];
                const double rest = static_cast<double>(channels % 32) / static_cast<double>(channels);
                unit.int8_cost += rest * (op == "max_pool2d" ? 0.8 : 1.6) * count;
            }
            // An average is narrower than what it averages, but gets its scale: worth 4 us to keep it exact.
            if (op == "mean" || op.find("avg_pool") != std::string::npos) unit.int8_cost += 4000;
        }
    }
}

/// Tensors that an operator changes after they were made. An int8 copy would not see the change.
class WrittenValues {
public:
    explicit WrittenValues(const std::shared_ptr<Graph>& graph) {
        for (const Node* node : all_nodes(*graph)) {
            const auto* schema = node->maybeSchema();
            if (!schema || !schema->is_mutable()) continue;
            // A container that is changed holds other tensors afterwards; the tensors are as they were.
            for (size_t i = 0; i < schema->arguments().size() && i < node->inputs().size(); ++i) {
                const auto* alias = schema->arguments()[i].alias_info();
                if (alias && alias->isWrite() && node->input(i)->type()->isSubtypeOf(*c10::TensorType::get()))
                    written_.push_back(node->input(i));
            }
        }
        if (!written_.empty()) aliases_ = std::make_unique<AliasDb>(graph);
    }
    bool contains(const Value* value) const {
        return std::any_of(written_.begin(), written_.end(),
                           [&](const Value* target) { return aliases_->mayAlias(value, target); });
    }

private:
    std::vector<const Value*> written_;
    std::unique_ptr<AliasDb> aliases_;
};

bool holds_tensors(const c10::Type& type) {
    const auto inside = type.containedTypes();
    return type.isSubtypeOf(*c10::TensorType::get()) ||
           std::any_of(inside.begin(), inside.end(), [](const auto& part) { return holds_tensors(*part); });
}

/// Tensors whose strides decide what an operator reads further on (as_strided, stride): their own or those of what is
/// computed from them. int8 convolutions give strides of channels last, which most operators hand on.
std::set<const Value*> read_by_strides(const Graph& graph) {
    static const std::set<std::string> readers = {
        "aten::_reshape_alias",     "aten::as_strided", "aten::as_strided_",     "aten::as_strided_copy",
        "aten::as_strided_scatter", "aten::stride",     "aten::view_as_complex",
    };
    // Whatever they read, what they give is contiguous.
    static const std::set<std::string> ends = {"aten::addmm",  "aten::bmm", "aten::embedding", "aten::linear",
                                               "aten::matmul", "aten::mm",  "aten::layer_norm"};
    std::set<const Value*> found;
    std::vector<const Value*> open;
    const auto reach = [&](const Value* value) {
        if (!holds_tensors(*value->type()) || toIValue(value) || attribute_name(value) ||
            ends.count(value->node()->kind().toQualString()))
            return;
        if (value->node()->kind() == aten::contiguous) {
            const auto format = constant_of(value->node()->input(1));
            if (format && format->isInt() && format->toInt() == static_cast<int64_t>(at::MemoryFormat::Contiguous))
                return;
        }
        if (found.insert(value).second) open.push_back(value);
    };
    for (Node* node : all_nodes(graph))
        if (readers.count(node->kind().toQualString())) reach(node->input(0));
    const std::function<void(const Node*)> reach_inputs = [&](const Node* node) {
        for (const auto* input : node->inputs()) reach(input);
        for (const auto* block : node->blocks()) {
            for (const Node* inner : block->nodes()) reach_inputs(inner);
            for (const auto* output : block->outputs()) reach(output);
        }
    };
    while (!open.empty()) {
        const Node* node = open.back()->node();
        open.pop_back();
        if (node->kind() != prim::Param)
            reach_inputs(node);
        else if (const Node* owner = node->owningBlock() ? node->owningBlock()->owningNode() : nullptr)
            reach_inputs(owner);  // what a loop carries
    }
    return found;
}

}  // namespace

std::unordered_map<const Node*, const Unit*> units_by_node(const std::vector<Unit>& units) {
    std::unordered_map<const Node*, const Unit*> all;
    for (const auto& unit : units) {
        for (const Node* node : unit.nodes) all[node] = &unit;
        if (unit.kind == UnitKind::kCat) all[unit.node->input(0)->node()] = &unit;
    }
    return all;
}

bool reads_no_values(const Node* node) {
    static const std::set<std::string> names = {"aten::size",   "aten::dim",     "aten::len",     "aten::numel",
                                                "prim::device", "prim::is_cuda", "aten::sym_size"};
    return names.count(node->kind().toQualString()) > 0;
}

Node* only_reader(const Value* value) {
    Node* reader = nullptr;
    for (const auto& use : value->uses()) {
        if (reads_no_values(use.user)) continue;
        if (reader) return nullptr;
        reader = use.user;
    }
    return reader;
}

std::vector<Unit> find_units(const Model& model, const Facts& facts) {
    std::vector<Unit> units;
    std::set<const Node*> taken;
    std::unordered_map<const Node*, Unit> padding;
    const auto graph = model.graph();
    const WrittenValues written(graph);
    const auto strided = read_by_strides(*graph);
    const WrittenParameters written_parameters(model);
    for (Node* node : graph->block()->nodes()) {
        const auto kind = std::string(node->kind().toQualString());
        if (kind != "aten::pad" && kind != "aten::constant_pad_nd") continue;
        const Site site{model, facts, node};
        if (!site.is_float(node->output()) || !find_row(node)->refuse(site).empty()) continue;
        if (auto unit = pad_channels(site)) {
            for (const Node* part : unit->nodes)
                if (part != node) taken.insert(part);
            padding.emplace(node, std::move(*unit));
        }
    }
    for (Node* node : graph->block()->nodes()) {
        const auto* row = find_row(node);
        if (!row || taken.count(node)) continue;
        const Site site{model, facts, node};
        Unit unit;
        if (const auto found = padding.find(node); found != padding.end()) {
            unit = found->second;
        } else {
            unit.kind = row->kind;
            unit.node = node;
            unit.nodes = {node};
        }
        unit.row = row;
        if (unit.kind == UnitKind::kSplit && node->kind() != prim::ConstantChunk) {
            if (!site.shape(node->input(0)) || !row->refuse(site).empty()) continue;
            Node* unpack = node->output()->uses()[0].user;
            unit.nodes.push_back(unpack);
            unit.outputs = unpack->outputs().vec();
        } else {
            unit.outputs = node->outputs().vec();
        }
        const bool tensors = std::all_of(unit.outputs.begin(), unit.outputs.end(),
                                         [&](const Value* value) { return site.is_float(value); });
        const bool weighty = as_conv(node) || as_linear(node);
        if (!tensors) {
            // Numbers, lists and index tensors use the same operator names; only layers are worth a word.
            if (!weighty) continue;
            unit.inputs = tensor_inputs(row->kind, node);
            unit.refusal = facts.runs(node) == 0 ? "the example input does not reach it" : "its output is not float32";
            units.push_back(std::move(unit));
            continue;
        }
        if (row->kind == UnitKind::kLinear && !as_linear(node)) continue;  // of two computed tensors
        if (row->kind == UnitKind::kCat && node->input(0)->node()->kind() != prim::ListConstruct) continue;
        if (unit.inputs.empty()) unit.inputs = tensor_inputs(row->kind, node);
        unit.refusal = refusal_of(unit, site);
        if (unit.refusal.empty() && weighty && written_parameters.reach(node)) unit.refusal = kWeightIsWritten;
        for (const auto* values : {&unit.inputs, &unit.outputs})
            for (const auto* value : *values)
                if (unit.refusal.empty() && written.contains(value))
                    unit.refusal = "another operator writes into its input or output in place";
        if (unit.refusal.empty() && std::any_of(unit.outputs.begin(), unit.outputs.end(),
                                                [&](const Value* value) { return strided.count(value) > 0; }))
            unit.refusal =
                "the strides of what it gives are read further on (as_strided, stride() or the like), and int8 has "
                "others";
        if (unit.refusal.empty() && row->fuses) {
            Node* user = only_reader(unit.outputs[0]);
            if (user && clamp_of(user) && user->owningBlock() == node->owningBlock() &&
                !written.contains(user->output())) {
                unit.activation = user;
                unit.nodes.push_back(user);
                unit.outputs = {user->output()};
                taken.insert(user);
            }
        }
        if (unit.refusal.empty()) add_costs(unit, facts);
        units.push_back(std::move(unit));
    }
    return units;
}

}  // namespace coppice::quantize
