// Dictionaries of tensors with keys that are known (torchvision's IntermediateLayerGetter: features[name] = x, then
// features["out"]) go, so that each tensor has a producer and readers that are seen. A tensor in a dictionary may be
// anything to LibTorch's alias analysis, and what writes to it in place then stays in place.
//
//     before  d = {}; d["a"] = x; y = f(d["a"]); d["b"] = y; return d
//     after   y = f(x); return {"a": x, "b": y}
//
// The readers get the very value that was put in, not a copy: what changes it in place, before or after, changes it for
// all of them as it did. It fires where every operator on the dictionary is one of those below, in the dictionary's own
// block, with a constant key. What comes last may be anything (a return, a tuple): it gets a dictionary made anew.
#include <torch/csrc/jit/passes/constant_propagation.h>

#include <algorithm>
#include <map>

#include <coppice/graph.h>

#include "plan/plan.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

const Symbol kSetItem = Symbol::fromQualString("aten::_set_item");
const Symbol kContains = Symbol::fromQualString("aten::__contains__");
const Symbol kDict = Symbol::fromQualString("aten::dict");
const Symbol kGet = Symbol::fromQualString("aten::get");
const Symbol kKeys = Symbol::fromQualString("aten::keys");
const Symbol kValues = Symbol::fromQualString("aten::values");
const Symbol kItems = Symbol::fromQualString("aten::items");

/// A constant key of text or an integer, as text that differs for all of them.
std::optional<std::string> key_of(const Value* value) {
    const auto key = constant_of(value);
    if (key && key->isString()) return "\"" + key->toStringRef();
    if (key && key->isInt()) return std::to_string(key->toInt());
    return std::nullopt;
}

/// What a dictionary holds, in the order in which keys came, which writing to one again does not change.
class Content {
public:
    struct Item {
        Value *key, *value;
    };
    void set(const std::string& name, Value* key, Value* value) {
        const auto [place, fresh] = places_.emplace(name, items_.size());
        if (fresh)
            items_.push_back({key, value});
        else
            items_[place->second].value = value;
    }
    Value* find(const std::string& name) const {
        const auto found = places_.find(name);
        return found == places_.end() ? nullptr : items_[found->second].value;
    }
    const std::vector<Item>& items() const { return items_; }

private:
    std::map<std::string, size_t> places_;
    std::vector<Item> items_;
};

std::optional<Content> start_of(Node* dictionary) {
    Content content;
    const auto inputs = dictionary->inputs();
    for (size_t i = 0; i + 1 < inputs.size(); i += 2) {
        const auto name = key_of(inputs[i]);
        if (!name) return std::nullopt;
        content.set(*name, inputs[i], inputs[i + 1]);
    }
    return content;
}

/// Operators on a dictionary that are seen through, which take it first.
bool known(const Node* node) {
    static const std::set<Symbol> kinds = {kSetItem, kContains, kGet,      kKeys,
                                           kValues,  kItems,    aten::len, aten::__getitem__};
    return kinds.count(node->kind()) > 0;
}

/// What uses a dictionary, in order; nullopt unless all but the last are known. The last may be anything, the block's
/// return or a tuple: it gets a dictionary of its own, which nothing else can tell from the one there was.
std::optional<std::vector<Node*>> users_of(Node* dictionary) {
    std::vector<Node*> users;
    const Node* unknown = nullptr;
    const Node* end = dictionary->owningBlock()->return_node();
    for (const auto& use : dictionary->output()->uses()) {
        Node* user = use.user;
        if (user->owningBlock() != dictionary->owningBlock() && user != end) return std::nullopt;
        if (use.offset != 0 || !known(user)) {
            if (unknown && unknown != user) return std::nullopt;
            unknown = user;
        }
        if (std::find(users.begin(), users.end(), user) == users.end()) users.push_back(user);
    }
    std::sort(users.begin(), users.end(),
              [&](const Node* a, const Node* b) { return a != end && (b == end || a->isBefore(b)); });
    if (unknown && unknown != users.back()) return std::nullopt;
    auto content = start_of(dictionary);
    if (!content) return std::nullopt;
    for (const Node* user : users) {
        const auto kind = user->kind();
        if (user == unknown || kind == aten::len || kind == kKeys || kind == kValues || kind == kItems) continue;
        const auto name = key_of(user->input(1));
        if (!name) return std::nullopt;
        if (kind == kSetItem)
            content->set(*name, user->input(1), user->input(2));
        else if (kind != kContains && !content->find(*name))
            return std::nullopt;  // an error, or a default, when it runs
    }
    return users;
}

void settle(Node* dictionary, const std::vector<Node*>& users) {
    Graph& graph = *dictionary->owningGraph();
    auto content = *start_of(dictionary);
    const auto list = [&](const c10::TypePtr& type, const std::function<Value*(const Content::Item&)>& of) {
        std::vector<Value*> elements;
        for (const auto& item : content.items()) elements.push_back(of(item));
        return graph.insertNode(graph.createList(type->expect<c10::ListType>()->getElementType(), elements))->output();
    };
    for (Node* user : users) {
        WithInsertPoint guard(user);
        const auto uses = dictionary->output()->uses();
        const bool plain = std::all_of(uses.begin(), uses.end(), [&](const Use& use) {
            return use.user != user || (use.offset == 0 && known(user));
        });
        if (!plain) {
            const auto type = dictionary->output()->type()->expect<c10::DictType>();
            std::vector<Value*> keys, values;
            for (const auto& item : content.items()) {
                keys.push_back(item.key);
                values.push_back(item.value);
            }
            Value* made =
                graph.insertNode(graph.createDict(type->getKeyType(), type->getValueType(), keys, values))->output();
            user->replaceInputWith(dictionary->output(), made);
            continue;
        }
        Value* result = nullptr;
        if (user->kind() == kSetItem) {
            content.set(*key_of(user->input(1)), user->input(1), user->input(2));
        } else if (user->kind() == aten::len) {
            result = graph.insertConstant(static_cast<int64_t>(content.items().size()));
        } else if (user->kind() == kContains) {
            result = graph.insertConstant(content.find(*key_of(user->input(1))) != nullptr);
        } else if (user->kind() == kKeys) {
            result = list(user->output()->type(), [](const auto& item) { return item.key; });
        } else if (user->kind() == kValues) {
            result = list(user->output()->type(), [](const auto& item) { return item.value; });
        } else if (user->kind() == kItems) {
            result = list(user->output()->type(), [&](const auto& item) {
                return graph.insertNode(graph.createTuple({item.key, item.value}))->output();
            });
        } else {
            result = content.find(*key_of(user->input(1)));
        }
        if (result) user->output()->replaceAllUsesWith(result);
        user->destroy();
    }
    if (!dictionary->output()->hasUses()) dictionary->destroy();
}

/// Dictionaries of text or numbers that a module holds and nothing writes to are constants: whether they hold a key,
/// and what.
void fold_attributes(Model& model) {
    auto graph = model.graph();
    std::map<std::string, std::vector<Node*>> questions;  // by attribute
    std::set<std::string> other;
    for (Node* node : all_nodes(*graph)) {
        if (node->kind() == prim::SetAttr)
            if (const auto owner = attribute_name(node->input(0)))
                other.insert((owner->empty() ? "" : *owner + ".") + node->s(attr::name));
        for (Value* input : node->inputs()) {
            if (input->type()->kind() != c10::TypeKind::DictType) continue;
            const auto name = attribute_name(input);
            if (!name) continue;
            const bool asks = input == node->input(0) && (node->kind() == kContains || node->kind() == aten::len ||
                                                          node->kind() == aten::__getitem__);
            if (asks)
                questions[*name].push_back(node);
            else
                other.insert(*name);
        }
    }
    for (const auto& [name, nodes] : questions) {
        if (other.count(name) || !has_attribute(model, name)) continue;
        const auto content = get_attribute(model, name);
        if (!content.isGenericDict()) continue;
        const auto dictionary = content.toGenericDict();
        for (Node* node : nodes) {
            c10::IValue answer;
            if (node->kind() == aten::len) {
                answer = static_cast<int64_t>(dictionary.size());
            } else {
                const auto key = constant_of(node->input(1));
                if (!key || !(key->isString() || key->isInt())) continue;
                const auto found = dictionary.find(*key);
                const bool there = found != dictionary.end();
                if (node->kind() == kContains)
                    answer = there;
                else if (there)
                    answer = found->value();
            }
            if (!(answer.isBool() || answer.isInt() || answer.isDouble() || answer.isString())) continue;
            WithInsertPoint guard(node);
            node->output()->replaceAllUsesWith(graph->insertConstant(answer));
            node->destroy();
        }
    }
}

}  // namespace

void settle_dictionaries(Model& model) {
    fold_attributes(model);
    auto graph = model.graph();
    ConstantPropagation(graph);  // branches that ask for a key
    std::vector<Node*> dictionaries;
    for (Node* node : all_nodes(*graph)) {
        if (node->kind() != prim::DictConstruct && !(node->kind() == kDict && node->inputs().empty())) continue;
        if (node->output()->type()->expect<c10::DictType>()->getValueType()->isSubtypeOf(*c10::TensorType::get()))
            dictionaries.push_back(node);
    }
    for (Node* dictionary : dictionaries) {
        const auto users = users_of(dictionary);
        // One that is made in one go and only given away is in that form already.
        const bool settled =
            dictionary->kind() == prim::DictConstruct && users && users->size() == 1 && !known(users->front());
        if (users && !settled) settle(dictionary, *users);
    }
    ConstantPropagation(graph);  // branches that ask what one held
    model.refresh();
}

}  // namespace coppice::quantize
