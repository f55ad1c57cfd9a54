// Time as a function of the channels kept: operators timed by themselves at a grid of widths.
//
// An operator's time hangs on the sizes of its tensors, each of which is a Width: fixed plus kept channels. Widths that
// are the same function are one axis (input and weight of a depthwise convolution), so a convolution has two, an
// activation one. Between grid points the time is linear in each axis. Operators with equal arguments are timed once.
#include <cmath>

#include "allocation/allocation.h"
#include "groups/relations.h"

namespace coppice::prune {

namespace {

using namespace torch::jit;

constexpr const char* kWhere = "prune.latency";
constexpr size_t kGridPoints = 5;

/// Operators that compute nothing: views, and copies that are mostly views.
bool is_free(const Node* node) {
    static const std::set<std::string> kFree = {"aten::__getitem__",
                                                "aten::alias",
                                                "aten::chunk",
                                                "aten::contiguous",
                                                "aten::detach",
                                                "aten::dim",
                                                "aten::dropout",
                                                "aten::expand",
                                                "aten::flatten",
                                                "aten::permute",
                                                "aten::feature_dropout",
                                                "aten::reshape",
                                                "aten::select",
                                                "aten::size",
                                                "aten::slice",
                                                "aten::split",
                                                "aten::squeeze",
                                                "aten::t",
                                                "aten::transpose",
                                                "aten::unbind",
                                                "aten::view",
                                                "aten::unflatten",
                                                "aten::unsqueeze",
                                                "aten::view_as",
                                                "aten::split_with_sizes",
                                                "aten::dropout_"};
    const auto kind = node->kind();
    return !kind.is_aten() || kFree.count(kind.toQualString());
}

/// The only operator that reads the elements of a value, and not just its size; null when there are several or none.
Node* only_reader(const Value* value) {
    Node* reader = nullptr;
    for (const auto& use : value->uses()) {
        const auto kind = use.user->kind();
        if (kind == aten::size || kind == aten::dim || kind == prim::dtype || kind == prim::device) continue;
        if (reader && reader != use.user) return nullptr;
        reader = use.user;
    }
    return reader;
}

/// Operators that fuse_elementwise() lets work in place.
bool works_in_place(const Node* node) {
    static const std::set<std::string> kInPlace = {"aten::elu",        "aten::hardswish", "aten::hardtanh",
                                                   "aten::leaky_relu", "aten::relu",      "aten::sigmoid",
                                                   "aten::silu",       "aten::tanh"};
    return kInPlace.count(node->kind().toQualString()) && only_reader(node->input(0)) == node;
}

bool is_tensor_add(const Node* node) {
    return (node->kind() == aten::add || node->kind() == aten::add_) && node->inputs().size() == 3 &&
           node->input(1)->type()->isSubtypeOf(*c10::TensorType::get());
}

/// relu(a + b), which fuse_elementwise() makes one operator.
bool is_relu_of_sum(const Node* node) {
    return (node->kind() == aten::relu || node->kind() == aten::relu_) && is_tensor_add(node->input(0)->node()) &&
           only_reader(node->input(0)) == node;
}

/// Batch norm that deploy folds into the layer before it.
bool is_folded(Node* node) {
    if (!as_batch_norm(node)) return false;
    Node* const before = node->input(0)->node();
    return only_reader(node->input(0)) == node && (as_conv(before) || as_linear(before));
}

struct Dimension {
    int axis = -1;     // -1: the size is fixed
    int64_t size = 1;  // of the model as it is
};
using Shape = std::vector<Dimension>;

struct Argument {
    bool tensor = false, list = false;  // list: of tensors
    c10::IValue constant;
    at::ScalarType dtype = at::kFloat;
    std::vector<Shape> shapes;  // one per tensor
};

struct Operator {
    Node* node = nullptr;
    std::string name;
    double runs = 1;
    std::vector<Argument> arguments;
    std::vector<bool> weight;
    bool depthwise = false;
    std::vector<Width> axes;
    std::vector<size_t> groups;  // whose channels pass through, sorted
    double seconds = 0;          // of one run in the model as it is
    // Filled by tabulate():
    std::vector<std::vector<double>> grid;  // per axis: sizes, rising
    std::vector<double> table;              // seconds, the last axis fastest

    std::vector<double> sizes(const std::vector<int64_t>& kept) const {
        std::vector<double> sizes;
        for (const auto& axis : axes) sizes.push_back(axis.at(kept));
        return sizes;
    }

    std::vector<double> grid_sizes(size_t entry) const {
        std::vector<double> sizes(grid.size());
        for (size_t axis = grid.size(); axis-- > 0; entry /= grid[axis].size())
            sizes[axis] = grid[axis][entry % grid[axis].size()];
        return sizes;
    }

    // Linear in every axis; beyond the grid, as at its edge.
    double interpolated(const std::vector<double>& sizes) const {
        size_t entry = 0;                           // of the corner with the smaller sizes
        std::vector<std::pair<size_t, double>> up;  // per axis: how far the next corner is, and its weight
        size_t stride = table.size();
        for (size_t axis = 0; axis < grid.size(); ++axis) {
            const auto& points = grid[axis];
            stride /= points.size();
            const auto above = std::upper_bound(points.begin(), points.end(), sizes[axis]);
            const size_t left = above == points.begin() ? 0 : static_cast<size_t>(above - points.begin()) - 1;
            entry += left * stride;
            if (left + 1 == points.size())
                up.emplace_back(0, 0);
            else
                up.emplace_back(stride,
                                std::clamp((sizes[axis] - points[left]) / (points[left + 1] - points[left]), 0.0, 1.0));
        }
        double seconds = 0;
        for (size_t corner = 0; corner < size_t{1} << grid.size(); ++corner) {
            double weight = 1;
            size_t at = entry;
            for (size_t axis = 0; axis < grid.size() && weight > 0; ++axis) {
                const bool higher = corner >> axis & 1;
                weight *= higher ? up[axis].second : 1 - up[axis].second;
                at += higher ? up[axis].first : 0;
            }
            if (weight > 0) seconds += weight * table[at];
        }
        return seconds;
    }
};

}  // namespace

std::string OperatorRun::op() const {
    return node->kind().toQualString();
}

std::vector<std::vector<int64_t>> OperatorRun::shapes() const {
    std::vector<std::vector<int64_t>> shapes;
    for (const auto& argument : arguments)
        if (argument.isTensor() || argument.isTensorList())
            for (const auto& tensor : all_tensors(argument))
                if (tensor.defined()) shapes.push_back(tensor.sizes().vec());
    return shapes;
}

struct LatencyModel::State {
    std::shared_ptr<const Stopwatch> stopwatch;
    std::shared_ptr<Graph> scratch = std::make_shared<Graph>();  // owns the nodes that stand for fused operators
    Model model;                                                 // owns the others
    std::vector<Operator> operators;
    std::vector<std::string> not_timed;
    Groups groups;
    std::vector<int64_t> all;  // channels per group
    int64_t weight_bytes = 0;
    bool channels_last = false, tabulated = false;

    at::Tensor meta(const Argument& argument, const Shape& shape, const std::vector<double>& axes) const {
        std::vector<int64_t> sizes;
        for (const auto& dimension : shape)
            sizes.push_back(dimension.axis < 0 ? dimension.size
                                               : std::llround(axes[static_cast<size_t>(dimension.axis)]));
        auto options = at::TensorOptions().dtype(argument.dtype).device(at::kMeta);
        if (channels_last && sizes.size() == 4 && at::isFloatingType(argument.dtype))
            options = options.memory_format(at::MemoryFormat::ChannelsLast);
        return at::empty(sizes, options);
    }

    OperatorRun run(const Operator& op, const std::vector<double>& axes) const {
        OperatorRun run;
        run.node = op.node;
        run.weight = op.weight;
        std::ostringstream key;
        key << op.node->schema();
        for (size_t i = 0; i < op.arguments.size(); ++i) {
            const auto& argument = op.arguments[i];
            if (!argument.tensor) {
                run.arguments.push_back(argument.constant);
            } else if (argument.list) {
                c10::List<at::Tensor> tensors;
                for (const auto& shape : argument.shapes) tensors.push_back(meta(argument, shape, axes));
                run.arguments.emplace_back(tensors);
            } else {
                run.arguments.emplace_back(meta(argument, argument.shapes[0], axes));
            }
        }
        // Numbers that say a width again.
        if (op.depthwise)
            run.arguments[static_cast<size_t>(argument_index(op.node, "groups"))] = run.arguments[0].toTensor().size(1);
        if (const int64_t shape = argument_index(op.node, "normalized_shape"); shape >= 0) {
            const auto input = run.arguments[0].toTensor();
            const auto dims = run.arguments[static_cast<size_t>(shape)].toIntList().size();
            run.arguments[static_cast<size_t>(shape)] =
                input.sizes().slice(static_cast<size_t>(input.dim()) - dims).vec();
        }
        for (const auto& argument : run.arguments) {
            if (argument.isTensor() || argument.isTensorList()) {
                for (const auto& tensor : all_tensors(argument))
                    key << tensor.dtype() << tensor.sizes() << tensor.strides();
            } else {
                key << ' ' << argument;
            }
            key << ';';
        }
        run.key = key.str();
        return run;
    }

    void time(std::vector<OperatorRun> runs, const std::function<void(size_t, double)>& take) const {
        const auto seconds = stopwatch->seconds(runs, weight_bytes);
        if (seconds.size() != runs.size())
            throw MeasurementError(kWhere,
                                   "the stopwatch gave " + std::to_string(seconds.size()) + " times for " +
                                       std::to_string(runs.size()) + " runs",
                                   "");
        for (size_t i = 0; i < runs.size(); ++i) take(i, seconds[i]);
    }
};

LatencyModel::LatencyModel(const Model& model, const Inputs& example, const Groups& groups,
                           std::shared_ptr<const Stopwatch> stopwatch)
    : state_(std::make_shared<State>()) {
    const auto& relations = groups.relations();
    if (!relations) throw InvalidArgument(kWhere, "the groups were made by hand", "Use find_groups().");
    if (!stopwatch) throw InvalidArgument(kWhere, "there is no stopwatch", "Use wall_clock().");
    auto& state = *state_;
    state.stopwatch = std::move(stopwatch);
    state.model = model;
    state.groups = groups;
    for (const auto& group : groups.all()) state.all.push_back(group.channels);
    for (const auto& named : named_tensors(model)) state.weight_bytes += static_cast<int64_t>(named.tensor.nbytes());
    const auto facts = Facts::observe(model, example);
    const LayerNames names(model);
    const auto graph = model.graph();
    const auto nodes = all_nodes(*graph);
    for (Node* node : nodes)
        if (const auto conv = as_conv(node); conv && conv->dims == 2) state.channels_last = true;

    const auto shape_of = [&](Operator& op, const Value* value) {
        Shape shape;
        const auto& sizes = facts.shape(value);
        const TensorId id = relations->find_tensor(value);
        const bool related = id != kNoTensor && relations->rank(id) == static_cast<int64_t>(sizes.size());
        for (int64_t dim = 0; dim < static_cast<int64_t>(sizes.size()); ++dim) {
            Dimension dimension{-1, sizes[static_cast<size_t>(dim)]};
            const auto width = related ? width_of(*relations, groups, id, dim) : Width{};
            if (!width.terms.empty()) {
                const auto known = std::find_if(op.axes.begin(), op.axes.end(), [&](const Width& axis) {
                    return axis.fixed == width.fixed && axis.terms == width.terms;
                });
                dimension.axis = static_cast<int>(known - op.axes.begin());
                if (known == op.axes.end()) op.axes.push_back(width);
            }
            shape.push_back(dimension);
        }
        return shape;
    };
    /// nullopt: not known without running the model.
    const auto argument_of = [&](Operator& op, const Value* value) -> std::optional<Argument> {
        Argument argument;
        const auto* fact = facts.find(value);
        if (fact && fact->is_tensor) {
            argument.tensor = true;
            argument.dtype = fact->dtype;
            argument.shapes.push_back(shape_of(op, value));
            return argument;
        }
        if (value->node()->kind() == prim::ListConstruct && !value->node()->inputs().empty() &&
            value->node()->input(0)->type()->isSubtypeOf(*c10::TensorType::get())) {
            argument.tensor = argument.list = true;
            for (const Value* entry : value->node()->inputs()) {
                if (!facts.has_shape(entry)) return std::nullopt;
                argument.dtype = facts.find(entry)->dtype;
                argument.shapes.push_back(shape_of(op, entry));
            }
            return argument;
        }
        if (const auto constant = constant_of(value))
            argument.constant = *constant;
        else if (fact && fact->constant)
            argument.constant = *fact->constant;
        else if (value->mustBeNone())
            argument.constant = c10::IValue();
        else
            return std::nullopt;
        return argument;
    };
    for (Node* node : nodes) {
        if (facts.runs(node) == 0 || is_free(node) || is_folded(node)) continue;
        const bool makes_tensor = std::any_of(node->outputs().begin(), node->outputs().end(),
                                              [&](const Value* value) { return facts.has_shape(value); });
        if (!makes_tensor) continue;
        if (is_relu_of_sum(node)) continue;  // is part of the addition
        Operator op;
        op.name = names.of(node);
        op.runs = static_cast<double>(facts.runs(node));
        bool known = true;
        for (const Value* value : node->inputs()) {
            const auto argument = argument_of(op, value);
            known &= argument.has_value();
            op.arguments.push_back(argument.value_or(Argument{}));
            op.weight.push_back(attribute_name(value).has_value());
        }
        if (!known) {
            state.not_timed.push_back(op.name);
            continue;
        }
        if (auto conv = as_conv(node)) {
            // A depthwise convolution has as many groups as channels; other group counts stay.
            op.depthwise =
                argument_index(node, "groups") >= 0 && conv->groups > 1 && conv->groups == facts.shape(conv->input)[1];
            Node* const reader = only_reader(node->output());
            const auto bias = static_cast<size_t>(argument_index(node, "bias"));
            if (!conv->has_bias && reader && is_folded(reader)) {
                // Folding a batch norm leaves a bias.
                op.arguments[bias] = Argument{};
                op.arguments[bias].tensor = true;
                op.arguments[bias].shapes = {{shape_of(op, node->output())[1]}};
            }
        }
        op.node = node;
        std::string fused;
        if (is_tensor_add(node)) {
            const auto& shape = facts.shape(node->output());
            Node* const reader = only_reader(node->output());
            if (facts.shape(node->input(0)) == shape && facts.shape(node->input(1)) == shape)
                fused = reader && is_relu_of_sum(reader) ? "aten::_add_relu_" : "aten::add_";
        } else if (works_in_place(node)) {
            fused = std::string(node->kind().toQualString()) + "_";
        }
        if (!fused.empty()) {
            std::vector<Value*> inputs;
            for (const Value* value : node->inputs()) {
                Value* const copy = state.scratch->addInput();
                copy->setType(value->type());
                inputs.push_back(copy);
            }
            Node* const twin =
                state.scratch->create(c10::Symbol::fromQualString(fused), inputs, node->outputs().size());
            state.scratch->insertNode(twin);
            if (twin->maybeOperator()) op.node = twin;
        }
        if (!op.node->maybeOperator()) {
            state.not_timed.push_back(op.name);
            continue;
        }
        std::set<size_t> touched;
        for (const auto& axis : op.axes)
            for (const auto& [group, per_channel] : axis.terms) touched.insert(group);
        op.groups.assign(touched.begin(), touched.end());
        state.operators.push_back(std::move(op));
    }
    // What does not run at all is known now, and named.
    std::vector<OperatorRun> runs;
    for (const auto& op : state.operators) runs.push_back(state.run(op, op.sizes(state.all)));
    std::vector<Operator> timed;
    state.time(std::move(runs), [&](size_t i, double seconds) {
        auto& op = state.operators[i];
        op.seconds = seconds;
        if (std::isnan(seconds))
            state.not_timed.push_back(op.name);
        else
            timed.push_back(std::move(op));
    });
    state.operators = std::move(timed);
    if (state.operators.empty())
        throw UnsupportedModel(kWhere, "no operator of the model can be timed by itself", "Use another target.");
}

void LatencyModel::tabulate(const Target& target) {
    auto& state = *state_;
    // Each group at equal distances between its narrowest and its full width, so that a width that joins several
    // groups has grid points that those can reach.
    std::vector<std::vector<int64_t>> levels(kGridPoints);
    for (auto& width : allowed_widths(state.groups, target)) {
        width.high = width.channels;
        for (size_t level = 0; level < kGridPoints; ++level)
            levels[level].push_back(
                width.nearest(static_cast<double>(width.low) + static_cast<double>(width.channels - width.low) *
                                                                   static_cast<double>(level) / (kGridPoints - 1)));
    }
    std::vector<OperatorRun> runs;
    std::vector<std::pair<Operator*, size_t>> cells;
    for (auto& op : state.operators) {
        op.grid.clear();
        size_t entries = 1;
        // Three axes or more (attention: heads, widths of keys and values) get the ends and the middle only.
        const size_t stride = op.axes.size() > 2 ? 2 : 1;
        for (const auto& axis : op.axes) {
            std::set<double> sizes;
            for (size_t level = 0; level < kGridPoints; level += stride) sizes.insert(axis.at(levels[level]));
            op.grid.emplace_back(sizes.begin(), sizes.end());
            entries *= sizes.size();
        }
        op.table.assign(entries, op.seconds);
        for (size_t entry = 0; entry + 1 < entries; ++entry) {  // the last one is the model as it is
            cells.emplace_back(&op, entry);
            runs.push_back(state.run(op, op.grid_sizes(entry)));
        }
    }
    state.time(std::move(runs), [&](size_t i, double seconds) {
        // A number in the arguments says the width again: nothing is known but the time of the whole.
        if (!std::isnan(seconds)) cells[i].first->table[cells[i].second] = seconds;
    });
    state.tabulated = true;
}

double LatencyModel::seconds(const std::vector<int64_t>& kept) const {
    if (!state_->tabulated) throw InternalError(kWhere, "seconds() before tabulate()", "");
    double seconds = 0;
    for (const auto& op : state_->operators) seconds += op.runs * op.interpolated(op.sizes(kept));
    return seconds;
}

std::vector<double> LatencyModel::measure(const std::vector<Question>& questions) const {
    std::vector<OperatorRun> runs;
    std::vector<std::pair<const Operator*, size_t>> asked;
    for (size_t q = 0; q < questions.size(); ++q)
        for (const auto& op : state_->operators) {
            if (!std::binary_search(op.groups.begin(), op.groups.end(), questions[q].group)) continue;
            asked.emplace_back(&op, q);
            runs.push_back(state_->run(op, op.sizes(questions[q].kept)));
        }
    std::vector<double> seconds(questions.size(), 0);
    state_->time(std::move(runs), [&](size_t i, double measured) {
        const auto& [op, question] = asked[i];
        seconds[question] += op->runs * (std::isnan(measured) ? op->seconds : measured);
    });
    return seconds;
}

size_t LatencyModel::operators() const {
    return state_->operators.size();
}

const std::vector<std::string>& LatencyModel::not_timed() const {
    return state_->not_timed;
}

}  // namespace coppice::prune
