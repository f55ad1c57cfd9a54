// A residual block, on the canonical graph:
//
//   y = x + f(x)      add or add_, either order, alpha = 1; y, x and f(x) of one shape
//
// The branch is every operator between x and f(x): those that f(x) needs and that need x. It is a block when nothing
// else reads what the branch computes, when it writes into nothing that came from outside, and when it reads a
// parameter (without which x + f(x) is as likely a GELU written out). What else the branch reads (an attention mask, a
// position bias) may come from anywhere.
//
//   before  y = x + f(x)
//   after   y = x
#include "depth/depth.h"

namespace coppice::prune {

using namespace torch::jit;

namespace {

/// Values that a node reads, those that its blocks read from outside included.
void collect_reads(const Node* node, std::set<const Value*>& reads) {
    for (const Value* input : node->inputs()) reads.insert(input);
    for (const Block* block : node->blocks()) {
        for (const Node* inner : block->nodes()) collect_reads(inner, reads);
        for (const Value* output : block->outputs()) reads.insert(output);
    }
}

/// The node of the graph's outermost block that `node` is part of.
template <typename AnyNode>  // Node or const Node
AnyNode* outermost(AnyNode* node, const Graph& graph) {
    while (node->owningBlock() != graph.block()) node = node->owningBlock()->owningNode();
    return node;
}

bool has_uses(const Node* node) {
    for (const Value* output : node->outputs())
        if (output->hasUses()) return true;
    return false;
}

bool writes(const Node* node, size_t input) {
    const auto* schema = node->maybeSchema();
    if (!schema || input >= schema->arguments().size()) return false;
    const auto* alias = schema->arguments()[input].alias_info();
    return alias && alias->isWrite();
}

/// True for operators whose output may share memory with an input that they do not write.
bool is_view(const Node* node) {
    const auto* schema = node->maybeSchema();
    if (!schema) return false;
    // contiguous, to, reshape and dropout in eval mode return their input, which no schema says.
    for (const char* name : {"aten::contiguous", "aten::to", "aten::reshape", "aten::dropout", "aten::feature_dropout",
                             "aten::flatten", "aten::expand_as", "aten::type_as"})
        if (std::strcmp(node->kind().toQualString(), name) == 0) return true;
    return !schema->returns().empty() && schema->returns()[0].alias_info() &&
           !schema->returns()[0].alias_info()->isWrite();
}

/// True for operators that read facts of a tensor, not its values.
bool asks_shape(const Node* node) {
    for (const char* name : {"aten::size", "aten::dim", "aten::len", "prim::dtype", "prim::device", "prim::layout"})
        if (std::strcmp(node->kind().toQualString(), name) == 0) return true;
    return false;
}

/// True when somebody writes into the memory of `value`, through views too.
bool is_written(const Value* value) {
    for (const auto& use : value->uses()) {
        if (writes(use.user, use.offset)) return true;
        if (use.offset == 0 && is_view(use.user) && is_written(use.user->output())) return true;
    }
    return false;
}

class Finder {
public:
    Finder(const Model& model, const Facts& facts)
        : model_(model), facts_(facts), owner_(model.graph()), graph_(*owner_) {
        int64_t position = 0;
        for (const Node* node : graph_.block()->nodes()) {
            order_[node] = position++;
            std::set<const Value*> reads;
            collect_reads(node, reads);
            reads_[node].assign(reads.begin(), reads.end());
        }
    }

    std::vector<ResidualBlock> all() {
        std::vector<ResidualBlock> blocks;
        for (Node* node : graph_.block()->nodes()) {
            if (node->kind() != aten::add && node->kind() != aten::add_) continue;
            if (node->inputs().size() != 3) continue;
            const auto alpha = constant_of(node->input(2));
            if (!alpha || !alpha->isInt() || alpha->toInt() != 1) continue;
            if (!same_shape(node)) continue;
            for (const size_t entry : {0, 1})
                if (auto block = match(node, node->input(entry), node->input(1 - entry))) {
                    blocks.push_back(std::move(*block));
                    break;
                }
        }
        name(blocks);
        return blocks;
    }

private:
    bool same_shape(const Node* add) const {
        for (const Value* value : std::initializer_list<const Value*>{add->input(0), add->input(1), add->output()})
            if (!facts_.has_shape(value) || facts_.shape(value) != facts_.shape(add->output())) return false;
        return true;
    }

    std::optional<ResidualBlock> match(Node* add, Value* x, Value* end) const {
        // Operators between x and `end`, in order: reachable backwards from `end`, and depending on x.
        const int64_t first =
            x->node()->owningBlock() == graph_.block() && order_.count(x->node()) ? order_.at(x->node()) + 1 : 0;
        std::set<const Value*> needed = {end};
        std::vector<Node*> back;
        for (Node* node = add->prev(); node != graph_.block()->param_node() && order_.at(node) >= first;
             node = node->prev()) {
            bool wanted = false;
            for (const Value* output : node->outputs()) wanted |= needed.count(output) > 0;
            if (!wanted) continue;
            back.push_back(node);
            for (const Value* value : reads_.at(node)) needed.insert(value);
        }
        std::set<const Value*> depends = {x};
        ResidualBlock block;
        std::set<const Node*> inside;
        for (auto it = back.rbegin(); it != back.rend(); ++it) {
            bool on_path = false;
            for (const Value* value : reads_.at(*it)) on_path |= depends.count(value) > 0;
            // The shape of x is known without the branch, and others may use it.
            if (!on_path || (asks_shape(*it) && (*it)->input(0) == x)) continue;
            for (const Value* output : (*it)->outputs()) depends.insert(output);
            block.nodes.push_back(*it);
            inside.insert(*it);
        }
        if (x == end || depends.count(end) == 0) return std::nullopt;
        // What reads the branch and gives nothing: checks of a scripted batch norm in training, writes in place.
        for (size_t i = 0; i < block.nodes.size(); ++i)
            for (const Value* output : block.nodes[i]->outputs())
                for (const auto& use : output->uses()) {
                    Node* user = outermost(use.user, graph_);
                    if (user == add || user->kind() == prim::Return || has_uses(user) || !inside.insert(user).second)
                        continue;
                    block.nodes.push_back(user);
                }
        std::sort(block.nodes.begin(), block.nodes.end(),
                  [&](const Node* a, const Node* b) { return order_.at(a) < order_.at(b); });
        for (Node* node : block.nodes) {
            for (const Value* output : node->outputs())
                for (const auto& use : output->uses()) {
                    Node* user = outermost(use.user, graph_);
                    if (user->kind() == prim::Return || (user != add && !inside.count(user))) return std::nullopt;
                }
            if (changes_the_outside(node, inside)) return std::nullopt;
            collect_parameters(node, block);
        }
        if (block.parameters.empty()) return std::nullopt;
        block.add = add;
        block.input = x;
        return block;
    }

    bool changes_the_outside(const Node* node, const std::set<const Node*>& inside) const {
        if (node->kind() == prim::SetAttr) return true;
        for (size_t i = 0; i < node->inputs().size(); ++i) {
            if (!writes(node, i)) continue;
            const Value* value = node->input(i);
            // Back through views to who made the memory.
            while (inside.count(outermost(value->node(), graph_)) && value->node()->inputs().size() > 0 &&
                   (is_view(value->node()) || writes(value->node(), 0)))
                value = value->node()->input(0);
            if (!inside.count(outermost(value->node(), graph_))) return true;
        }
        for (const Block* inner : node->blocks())
            for (const Node* each : inner->nodes())
                if (changes_the_outside(each, inside)) return true;
        return false;
    }

    void collect_parameters(const Node* node, ResidualBlock& block) const {
        for (const Value* value : reads_.at(node)) {
            add_parameter(value, block);
            // Transposed weights, and the list that a recurrent layer reads.
            const auto kind = value->node()->kind();
            if (kind == aten::t || kind == aten::transpose || kind == prim::ListConstruct)
                for (const Value* input : value->node()->inputs()) add_parameter(input, block);
        }
    }

    void add_parameter(const Value* value, ResidualBlock& block) const {
        const auto name = attribute_name(value);
        if (name && !name->empty() && has_attribute(model_, *name) && get_attribute(model_, *name).isTensor())
            block.parameters.push_back(*name);
    }

    /// The module that all parameters of a block lie in; a number where two blocks share it.
    static void name(std::vector<ResidualBlock>& blocks) {
        std::map<std::string, int> taken;
        for (auto& block : blocks) {
            std::string common = block.parameters.front().substr(0, block.parameters.front().rfind('.') + 1);
            for (const auto& parameter : block.parameters)
                while (parameter.compare(0, common.size(), common) != 0)
                    common.resize(common.size() < 2 ? 0 : common.rfind('.', common.size() - 2) + 1);
            if (!common.empty()) common.pop_back();
            if (common.empty()) common = "block";
            const int number = ++taken[common];
            block.name = number == 1 ? common : common + "#" + std::to_string(number);
        }
    }

    const Model& model_;
    const Facts& facts_;
    const std::shared_ptr<Graph> owner_;
    Graph& graph_;
    std::unordered_map<const Node*, int64_t> order_;
    std::unordered_map<const Node*, std::vector<const Value*>> reads_;
};

}  // namespace

std::vector<ResidualBlock> find_residual_blocks(const Model& model, const Facts& facts) {
    return Finder(model, facts).all();
}

Model remove_block(const Model& model, const Inputs& example, const std::string& name) {
    auto result = model.clone();
    const auto graph = result.graph();
    std::optional<ResidualBlock> found;
    std::vector<std::string> names;
    for (auto& block : find_residual_blocks(result, Facts::observe(result, example))) {
        names.push_back(block.name);
        if (block.name == name) found = std::move(block);
    }
    if (!found) throw_unknown("prune.depth", "residual block", name, names);
    Value* x = found->input;
    Value* y = found->add->output();
    // Whoever writes into y would now write into x: x is copied where somebody else reads it, or owns it.
    const std::set<const Node*> inside(found->nodes.begin(), found->nodes.end());
    bool shared = x->node()->kind() == prim::Param || x->node()->kind() == prim::GetAttr || is_view(x->node()) ||
                  (writes(x->node(), 0) && x->node()->input(0)->uses().size() > 1);
    for (const auto& use : x->uses()) {
        Node* user = outermost(use.user, *graph);
        shared |= user != found->add && !inside.count(user);
    }
    if (shared && is_written(y)) {
        WithInsertPoint guard(found->add);
        x = graph->insert(aten::clone, {x});
    }
    y->replaceAllUsesWith(x);
    found->add->destroy();
    for (auto node = found->nodes.rbegin(); node != found->nodes.rend(); ++node) (*node)->destroy();
    result.refresh();
    remove_unused_attributes(result);
    result.refresh();
    return result;
}

}  // namespace coppice::prune
