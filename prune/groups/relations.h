/// How the elements of all tensors of a graph hang together. Private to prune.
///
/// An element is one index along one dimension of one tensor ("channel 5 of conv1's output"). Rules tie elements that
/// can only vanish together, and freeze those that must stay. A class of tied elements that is not frozen, and that
/// some layer produces, is a channel in the sense of ChannelGroup (DepGraph, arXiv 2301.12900, but element by element,
/// so that concatenation, padding, flattening and grouped convolutions need no special treatment).
#pragma once

#include <coppice/error.h>
#include <coppice/prune.h>

#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace coppice::prune {

using torch::jit::Node;
using torch::jit::Value;

/// A tensor of the analysis: what a value holds, an entry of a list, or a parameter whatever the number of its reads.
using TensorId = int32_t;
constexpr TensorId kNoTensor = -1;

class Relations {
public:
    Relations(const Model& model, const Facts& facts, const GroupOptions& options);

    // ------------------------------------------------------------------------------------------------ used by rules

    /// The tensor of a value; kNoTensor when it holds none or was not reached.
    TensorId tensor(const Value* value);
    /// Input `index` of a node; kNoTensor as well when there are fewer.
    TensorId input(const Node* node, size_t index) {
        return index < node->inputs().size() ? tensor(node->inputs()[index]) : kNoTensor;
    }
    TensorId output(const Node* node, size_t index = 0) {
        return index < node->outputs().size() ? tensor(node->outputs()[index]) : kNoTensor;
    }
    TensorId make_tensor(const std::vector<int64_t>& shape);
    const std::vector<int64_t>& shape(TensorId id) const { return tensors_[id].shape; }
    int64_t rank(TensorId id) const { return static_cast<int64_t>(tensors_[id].shape.size()); }
    int64_t size(TensorId id, int64_t dim) const { return tensors_[id].shape[wrap(id, dim)]; }
    int64_t wrap(TensorId id, int64_t dim) const { return dim < 0 ? dim + rank(id) : dim; }

    /// Ties two dimensions of equal size index by index. A missing tensor is ignored.
    void tie(TensorId a, int64_t dim_a, TensorId b, int64_t dim_b);
    /// Ties single elements.
    void tie(TensorId a, int64_t dim_a, int64_t index_a, TensorId b, int64_t dim_b, int64_t index_b);
    /// Ties all dimensions of equal shapes.
    void tie_all(TensorId a, TensorId b);
    /// Ties `a` to `b`, aligned at the last dimension, where the sizes agree (broadcasting).
    void tie_broadcast(TensorId a, TensorId b);
    /// Ties `y`, which holds the elements of `x` in the same order under another shape.
    void tie_reshaped(TensorId x, TensorId y);

    void freeze(TensorId id, int64_t dim, const std::string& reason);
    void freeze_all(TensorId id, const std::string& reason);
    /// Freezes everything the node reads and writes, as `reason`.
    void freeze_node(const Node* node, const std::string& reason);
    /// Freezes like an operator that has no rule, and remembers its name.
    void refuse(const Node* node, const std::string& why = "has no pruning rule");

    /// `dim` of the parameter behind `weight` is what `layer` puts out.
    void produces(const Value* weight, int64_t dim, const Node* layer);
    /// The operator computes a statistic over the elements of `dim`.
    void statistic(const Node* node, TensorId id, int64_t dim);
    /// `dim` of a tensor is a piece of a longer dimension: something of it must stay, or operators would meet an empty
    /// tensor.
    void part(TensorId id, int64_t dim) { parts_.emplace_back(id, wrap(id, dim)); }
    /// `dim` counts independent problems, such as the heads of attention: preferred where a dimension is split.
    void independent(TensorId id, int64_t dim);
    /// `dim` holds the same thing again and again: where it is merged with others, these are preferred.
    void repeated(TensorId id, int64_t dim);

    /// The tensors of a list or tuple; null when they are not known.
    std::shared_ptr<std::vector<TensorId>> list(const Value* value);
    void set_list(const Value* value, std::shared_ptr<std::vector<TensorId>> tensors) {
        lists_[value] = std::move(tensors);
    }
    void set_tensor(const Value* value, TensorId id) { of_value_[value] = id; }
    /// A dictionary is a list of its values with the keys beside it; null for what is no dictionary, or not known.
    std::shared_ptr<std::vector<std::string>> keys(const Value* value) const;
    void set_keys(const Value* value, std::shared_ptr<std::vector<std::string>> keys) {
        keys_[value] = std::move(keys);
    }

    /// Observed integers, lists of them, numbers; nullopt when not known.
    std::optional<int64_t> integer(const Value* value) const;
    std::optional<std::vector<int64_t>> integers(const Value* value) const;
    std::optional<bool> boolean(const Value* value) const;
    std::optional<std::string> text(const Value* value) const;
    bool is_none(const Value* value) const;
    /// Places along a dimension of `size` that can never change: a one-dimensional constant of the graph, or a tensor
    /// of the model that is read once and never written. A mask counts as the places that it takes.
    std::optional<std::vector<int64_t>> constant_places(const Value* value, int64_t size) const;
    /// Layer name for messages.
    const std::string& name_of(const Node* node) const { return names_.of(node); }

    // --------------------------------------------------------------------------------- used once all rules have run

    /// Walks the graph and applies the rules.
    void build();

    struct Parameter {
        TensorId id;
        std::string name;
        at::Tensor tensor;
    };
    struct Production {
        TensorId id;
        int64_t dim;
        const Node* layer;
    };
    const std::vector<Parameter>& parameters() const { return parameters_; }
    const std::vector<Production>& productions() const { return productions_; }
    const std::vector<std::pair<TensorId, int64_t>>& parts() const { return parts_; }
    const std::vector<std::string>& unknown_operators() const { return unknown_; }
    bool has_statistic(const Node* node) const { return statistics_.count(node) > 0; }
    TensorId find_tensor(const Value* value) const;
    std::shared_ptr<std::vector<TensorId>> find_list(const Value* value) const;
    int32_t class_of(TensorId id, int64_t dim, int64_t index) const { return root(tensors_[id].first[dim] + index); }
    bool frozen(int32_t class_id) const { return reason_[class_id] >= 0; }
    std::string reason(int32_t class_id) const { return reason_[class_id] < 0 ? "" : reasons_[reason_[class_id]]; }
    bool inexact(int32_t class_id) const { return inexact_[class_id] != 0; }
    size_t elements() const { return parent_.size(); }
    /// The block of a prim::If that ran, or -1.
    int taken_block(const Node* node) const;
    /// True for blocks whose operators were related: those that ran, and others that could be tried.
    bool analysed(const torch::jit::Block* block) const { return analysed_.count(block) > 0; }
    /// Place of each class among the groups, filled by find_groups().
    std::unordered_map<int32_t, Groups::Place> places;

private:
    struct Tracked {
        std::vector<int64_t> shape;
        std::vector<int32_t> first;  ///< element of index 0, per dimension
    };
    struct Factor {
        TensorId id;
        int64_t dim;
    };
    /// `factors`, outermost first, are the mixed-radix digits of `flat`.
    struct Folding {
        std::vector<Factor> factors;
        Factor flat;
    };

    int32_t root(int32_t element) const;
    void unite(int32_t a, int32_t b);
    void freeze_element(int32_t element, int32_t reason);
    int32_t intern(const std::string& reason);
    bool all_frozen(const Factor& factor) const;
    void mark(std::vector<char>& marks, TensorId id, int64_t dim);
    bool all_marked(const std::vector<char>& marks, const Factor& factor) const;
    bool is_tied_by(const Folding& folding, size_t digit) const;
    void resolve(const Folding& folding);
    void walk(const torch::jit::Block* block);
    void walk_if(const Node* node);
    void tie_alternative(TensorId taken, TensorId other, const std::string& why);
    /// True when a value can never change; with `at_this_rank`, while tensors keep their numbers of dimensions.
    bool fixed(const Value* value, bool at_this_rank = false) const;
    static std::unordered_set<std::string> written_in(const torch::jit::Graph& graph);
    bool try_block(const torch::jit::Block* block);
    void try_nodes(const torch::jit::Block* block, std::unordered_map<const Value*, c10::IValue>& values);
    std::vector<c10::IValue> run_alone(Node* node, const std::unordered_map<const Value*, c10::IValue>& values) const;
    void spoil(const Node* node, const Value* value);
    c10::IValue stand_in(const Value* value, const std::unordered_map<const Value*, c10::IValue>& values) const;
    std::optional<c10::IValue> known(const Value* value) const;
    void freeze_reads(const torch::jit::Block* block, const std::string& reason);
    void freeze_value(const Value* value, const std::string& reason);

    const Model model_;  // handles: the groups may outlive what they were found on
    const Facts facts_;
    const GroupOptions options_;
    const std::unordered_set<std::string> written_;      ///< last names of attributes that forward changes
    std::unordered_map<const Value*, ValueFact> tried_;  ///< facts of branches that only try_block() entered
    std::unordered_set<const torch::jit::Block*> analysed_;
    LayerNames names_;
    std::vector<Tracked> tensors_;
    mutable std::vector<int32_t> parent_;
    std::vector<int32_t> reason_;
    std::vector<char> inexact_, independent_, repeated_, has_parameter_;
    std::vector<std::string> reasons_;
    std::unordered_map<std::string, int32_t> reason_ids_;
    std::unordered_map<const Value*, TensorId> of_value_;
    std::unordered_map<const at::TensorImpl*, size_t> parameter_of_impl_;
    std::vector<Parameter> parameters_;
    std::vector<Production> productions_;
    std::unordered_map<const Value*, std::shared_ptr<std::vector<TensorId>>> lists_;
    std::unordered_map<const Value*, std::shared_ptr<std::vector<std::string>>> keys_;
    std::vector<std::pair<TensorId, int64_t>> parts_;
    std::vector<Folding> foldings_;
    std::unordered_set<const Node*> statistics_;
    std::vector<std::string> unknown_;
    std::unordered_set<std::string> unknown_seen_;
};

/// The state of one cut, used by the rules that must rewrite constants. `before` is a node of the analysed model,
/// `after` its twin in the copy that is being cut.
class Cutter {
public:
    Cutter(const Model& original, const Relations& relations, const std::unordered_set<int32_t>& removed);
    /// The narrower copy.
    Model run();

    const Relations& relations() const { return relations_; }
    TensorId tensor(const Value* before) const { return relations_.find_tensor(before); }
    TensorId input(const Node* before, size_t index) const {
        return index < before->inputs().size() ? tensor(before->inputs()[index]) : kNoTensor;
    }
    TensorId output(const Node* before, size_t index = 0) const {
        return index < before->outputs().size() ? tensor(before->outputs()[index]) : kNoTensor;
    }
    int64_t old_size(TensorId id, int64_t dim) const { return relations_.size(id, dim); }
    int64_t new_size(TensorId id, int64_t dim) const { return kept_between(id, dim, 0, old_size(id, dim)); }
    std::vector<int64_t> new_shape(TensorId id) const;
    /// How many of the indices [begin, end) stay.
    int64_t kept_between(TensorId id, int64_t dim, int64_t begin, int64_t end) const;
    bool touched(TensorId id, int64_t dim) const { return new_size(id, dim) != old_size(id, dim); }
    bool touched(TensorId id) const;

    /// What a number, list or shape tensor will be in the copy (`cut`) or was; nullopt when it hangs on data.
    std::optional<c10::IValue> evaluate(const Value* before, bool cut);
    void set_constant(Node* after, size_t index, const c10::IValue& value);
    /// Replaces the tensor that the copy has for `before`; false when that is no attribute.
    bool set_attribute(const Value* before, const at::Tensor& tensor);
    /// Makes input `index`, a list of sizes, give `required`. Entries that already do so, and a literal -1, stay as
    /// they are.
    void set_sizes(const Node* before, Node* after, size_t index, const std::vector<int64_t>& required);
    [[noreturn]] void fail(const Node* before, const std::string& problem) const;

private:
    void keep_numbers(const Node* before, Node* after);

    const Model& original_;
    Model copy_;
    const Relations& relations_;
    const std::unordered_set<int32_t>& removed_;
    std::unordered_map<const Value*, std::optional<c10::IValue>> evaluated_[2];
};

/// What is known about one operator.
struct Rule {
    /// Ties and freezes.
    void (*relate)(Relations&, const Node*);
    /// Rewrites constants; null: the numbers it reads keep their values, whatever they are computed from.
    void (*edit)(Cutter&, const Node* before, Node* after) = nullptr;
};

using RuleTable = std::vector<std::pair<const char*, Rule>>;

/// One table per operator family; rules.cpp joins them.
const RuleTable& attention_rules();
const RuleTable& convolution_rules();
const RuleTable& creation_rules();
const RuleTable& elementwise_rules();
const RuleTable& join_rules();
const RuleTable& linear_rules();
const RuleTable& normalization_rules();
const RuleTable& pad_rules();
const RuleTable& recurrent_rules();
const RuleTable& reduction_rules();
const RuleTable& reshape_rules();
const RuleTable& spatial_rules();
const RuleTable& split_rules();

/// The rule of an operator ("aten::relu_" falls back to "aten::relu"), or null.
const Rule* find_rule(const Node* node);

/// Input by argument name; null when the schema has no such argument.
const Value* argument(const Node* node, const char* name);
/// Its position, or -1.
int64_t argument_index(const Node* node, const char* name);

}  // namespace coppice::prune
