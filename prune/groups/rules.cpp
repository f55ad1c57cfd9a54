#include "groups/relations.h"

namespace coppice::prune {

const Rule* find_rule(const Node* node) {
    static const auto* const kRules = [] {
        auto* rules = new std::unordered_map<std::string, Rule>;
        for (const RuleTable* table :
             {&attention_rules(), &convolution_rules(), &creation_rules(), &elementwise_rules(), &join_rules(),
              &linear_rules(), &normalization_rules(), &pad_rules(), &recurrent_rules(), &reduction_rules(),
              &reshape_rules(), &spatial_rules(), &split_rules()})
            for (const auto& [name, rule] : *table) rules->emplace(name, rule);
        return rules;
    }();
    std::string name = node->kind().toQualString();
    auto found = kRules->find(name);
    if (found == kRules->end() && name.size() > 1 && name.back() == '_' && name[name.size() - 2] != '_') {
        name.pop_back();  // the in-place form relates its elements in the same way
        found = kRules->find(name);
    }
    return found == kRules->end() ? nullptr : &found->second;
}

int64_t argument_index(const Node* node, const char* name) {
    const auto* schema = node->maybeSchema();
    if (!schema) return -1;
    const auto index = schema->argumentIndexWithName(name);
    return index && static_cast<size_t>(*index) < node->inputs().size() ? *index : -1;
}

const Value* argument(const Node* node, const char* name) {
    const auto index = argument_index(node, name);
    return index < 0 ? nullptr : node->inputs()[index];
}

}  // namespace coppice::prune
