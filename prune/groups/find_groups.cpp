#include "groups/relations.h"
#include "messages.h"

namespace coppice::prune {

namespace {

/// Freezes what the layers that match one of `ignore` put out. @return the patterns that match no layer
std::vector<std::string> freeze_ignored(Relations& relations, const std::vector<std::string>& ignore) {
    const auto expressions = ignore_patterns("prune.groups", ignore);
    std::vector<std::string> unused;
    for (size_t i = 0; i < ignore.size(); ++i) {
        bool used = false;
        for (const auto& [id, dim, layer] : relations.productions()) {
            if (!std::regex_search(relations.name_of(layer), expressions[i])) continue;
            relations.freeze(id, dim, "matches `ignore`");
            used = true;
        }
        if (!used) unused.push_back(ignore[i]);
    }
    return unused;
}

/// One dimension of one parameter, and its first element's class per index.
struct Slot {
    size_t parameter;
    int64_t dim;
};

std::string owner_of(const std::string& parameter) {
    const auto dot = parameter.rfind('.');
    return dot == std::string::npos ? parameter : parameter.substr(0, dot);
}

}  // namespace

std::vector<Groups::Place> Groups::places(const torch::jit::Value* value, int64_t dim) const {
    if (!relations_) return {};
    const TensorId id = relations_->find_tensor(value);
    if (id == kNoTensor || dim >= relations_->rank(id)) return {};
    std::vector<Place> result;
    for (int64_t i = 0; i < relations_->size(id, dim); ++i) {
        const auto place = relations_->places.find(relations_->class_of(id, dim, i));
        result.push_back(place == relations_->places.end() ? Place{} : place->second);
    }
    return result;
}

bool Groups::has_statistic(const torch::jit::Node* node) const {
    return relations_ && relations_->has_statistic(node);
}

Groups find_groups(const Model& model, const Facts& facts, const GroupOptions& options) {
    auto relations = std::make_shared<Relations>(model, facts, options);
    relations->build();
    const auto unused = freeze_ignored(*relations, options.ignore);
    const auto& r = *relations;
    Groups groups;
    groups.unknown_ = r.unknown_operators();

    // What each class of elements looks like from the parameters: which slots it touches, how often.
    std::vector<Slot> slots;
    std::unordered_map<int64_t, size_t> slot_of;  // by tensor and dimension
    const auto key = [](TensorId id, int64_t dim) { return static_cast<int64_t>(id) * 64 + dim; };
    std::unordered_map<TensorId, size_t> parameter_of;
    for (size_t p = 0; p < r.parameters().size(); ++p) {
        const auto& parameter = r.parameters()[p];
        parameter_of[parameter.id] = p;
        for (int64_t dim = 0; dim < r.rank(parameter.id); ++dim) {
            slot_of[key(parameter.id, dim)] = slots.size();
            slots.push_back({p, dim});
        }
    }
    std::map<size_t, const Node*> producer;  // slot -> the first layer whose output it is
    for (const auto& production : r.productions())
        producer.emplace(slot_of.at(key(production.id, production.dim)), production.layer);

    // Models have 10^4 to 10^5 classes: each has a number, the slots it touches in ascending order, and how many
    // indices of each.
    using Touches = std::vector<std::pair<size_t, int64_t>>;
    std::vector<int32_t> number_of(r.elements(), -1);
    std::vector<Touches> classes;
    for (size_t s = 0; s < slots.size(); ++s) {
        const TensorId id = r.parameters()[slots[s].parameter].id;
        for (int64_t i = 0; i < r.size(id, slots[s].dim); ++i) {
            const auto c = r.class_of(id, slots[s].dim, i);
            if (r.frozen(c)) continue;
            if (number_of[c] < 0) {
                number_of[c] = static_cast<int32_t>(classes.size());
                classes.emplace_back();
            }
            auto& touches = classes[number_of[c]];
            if (touches.empty() || touches.back().first != s)
                touches.emplace_back(s, 1);
            else
                ++touches.back().second;
        }
    }

    // Pieces of a dimension that was split are groups of their own, so that no allocation can take all of one.
    std::map<int32_t, std::set<size_t>> pieces;
    for (size_t p = 0; p < r.parts().size(); ++p) {
        const auto& [id, dim] = r.parts()[p];
        for (int64_t i = 0; i < r.size(id, dim); ++i)
            if (const auto c = r.class_of(id, dim, i); number_of[c] >= 0) pieces[c].insert(p);
    }

    // Groups in the order of the layers that produce them, channels in the order of the first such layer's outputs.
    std::map<std::pair<Touches, std::set<size_t>>, size_t> group_of;
    std::vector<std::vector<int32_t>> members;
    std::vector<const Touches*> signatures;
    for (const auto& production : r.productions()) {
        for (int64_t i = 0; i < r.size(production.id, production.dim); ++i) {
            const auto c = r.class_of(production.id, production.dim, i);
            if (number_of[c] < 0 || relations->places.count(c)) continue;
            const auto [group, added] = group_of.emplace(
                std::pair(classes[number_of[c]], pieces.count(c) ? pieces[c] : std::set<size_t>{}), members.size());
            if (added) {
                members.emplace_back();
                signatures.push_back(&group->first.first);
            }
            relations->places[c] = {static_cast<int64_t>(group->second),
                                    static_cast<int64_t>(members[group->second].size())};
            members[group->second].push_back(c);
        }
    }

    // A single channel cannot go: the layer would be empty. Number what is left.
    std::vector<int64_t> number(members.size(), -1);
    for (size_t g = 0; g < members.size(); ++g) {
        if (members[g].size() < 2) {
            for (const auto c : members[g]) relations->places.erase(c);
            continue;
        }
        number[g] = static_cast<int64_t>(groups.groups_.size());
        ChannelGroup group;
        group.channels = static_cast<int64_t>(members[g].size());
        for (const auto& [s, count] : *signatures[g]) {
            const auto& parameter = r.parameters()[slots[s].parameter];
            Slice slice;
            slice.name = parameter.name;
            slice.tensor = parameter.tensor;
            slice.dim = slots[s].dim;
            slice.channel_of.assign(static_cast<size_t>(r.size(parameter.id, slice.dim)), -1);
            slice.produces = producer.count(s) > 0;
            slice.layer = slice.produces ? r.name_of(producer.at(s)) : owner_of(parameter.name);
            if (slice.produces) group.multiplicity = std::max(group.multiplicity, count);
            group.slices.push_back(std::move(slice));
        }
        for (const auto c : members[g]) {
            relations->places[c].group = number[g];
            group.exact &= !r.inexact(c);
        }
        groups.groups_.push_back(std::move(group));
    }
    for (size_t g = 0; g < members.size(); ++g) {
        if (number[g] < 0) continue;
        auto& group = groups.groups_[static_cast<size_t>(number[g])];
        size_t at = 0;
        for (const auto& [s, count] : *signatures[g]) {
            auto& slice = group.slices[at++];
            const TensorId id = r.parameters()[slots[s].parameter].id;
            for (int64_t i = 0; i < r.size(id, slice.dim); ++i) {
                const auto place = r.places.find(r.class_of(id, slice.dim, i));
                if (place != r.places.end() && place->second.group == number[g])
                    slice.channel_of[i] = place->second.channel;
            }
        }
    }
    // Buffers are what the model names so; anything else that holds a tensor counts as a parameter.
    std::unordered_set<std::string> buffers;
    for (const auto& named : named_tensors(model))
        if (named.role == Role::kBuffer) buffers.insert(named.name);
    for (auto& group : groups.groups_)
        for (auto& slice : group.slices) slice.parameter = !buffers.count(slice.name);
    for (const auto& production : r.productions()) {
        PrunableInfo info;
        info.layer = r.name_of(production.layer);
        info.op = production.layer->kind().toQualString();
        info.channels = r.size(production.id, production.dim);
        int64_t last = -1;  // neighbours are mostly of one group
        for (int64_t i = 0; i < info.channels; ++i) {
            const auto c = r.class_of(production.id, production.dim, i);
            const auto place = r.places.find(c);
            if (place != r.places.end()) {
                ++info.prunable;
                if (place->second.group == last) continue;
                last = place->second.group;
                auto& group = groups.groups_[static_cast<size_t>(place->second.group)];
                if (std::find(group.layers.begin(), group.layers.end(), info.layer) == group.layers.end())
                    group.layers.push_back(info.layer);
                if (group.name.empty()) group.name = info.layer;
                if (info.group.empty()) info.group = group.name;
            } else if (info.reason.empty()) {
                info.reason = r.frozen(c)          ? r.reason(c)
                              : info.channels == 1 ? "has a single channel"
                                                   : "its channels can only vanish all together";
            }
        }
        groups.layers_.push_back(std::move(info));
    }
    if (!unused.empty()) no_match("prune.groups", "ignore", unused.front(), groups.layers_);
    // Several groups may begin at one layer (its outputs go different ways).
    std::unordered_map<std::string, int> named;
    for (auto& group : groups.groups_)
        if (const int count = ++named[group.name]; count > 1) group.name += " (part " + std::to_string(count) + ")";
    groups.relations_ = relations;
    return groups;
}

std::vector<PrunableInfo> explain(const Model& model, const Inputs& example) {
    const auto unfused = unfuse_attention(model);
    return find_groups(unfused, Facts::observe(unfused, example)).layers();
}

}  // namespace coppice::prune
