#include <coppice/error.h>
#include <coppice/graph.h>

namespace coppice {

using namespace torch::jit;

namespace {

struct Slot {
    Module owner;
    std::string name;
};

/// The module that holds attribute `name`; nullopt when a part of the path is missing.
std::optional<Slot> find_slot(const Model& model, const std::string& name) {
    Module owner = model.module();
    size_t begin = 0;
    for (size_t dot; (dot = name.find('.', begin)) != std::string::npos; begin = dot + 1) {
        const auto part = name.substr(begin, dot - begin);
        if (!owner.hasattr(part)) return std::nullopt;
        const auto value = owner.attr(part);
        if (!value.isObject() || !value.toObject()->type()->is_module()) return std::nullopt;
        owner = Module(value.toObject());
    }
    const auto last = name.substr(begin);
    if (!owner.hasattr(last)) return std::nullopt;
    return Slot{owner, last};
}

Slot slot(const Model& model, const std::string& name) {
    if (auto found = find_slot(model, name)) return *found;
    throw InternalError("attribute " + name, "the model has none of this name", "");
}

void visit(const Module& module, const std::string& prefix,
           const std::function<void(const std::string&, const Module&, size_t)>& see, std::set<const void*>& seen) {
    if (!seen.insert(module._ivalue().get()).second) return;
    const auto type = module.type();
    for (size_t i = 0; i < type->numAttributes(); ++i) {
        const auto name = prefix + type->getAttributeName(i);
        const auto& value = module._ivalue()->getSlot(i);
        if (value.isObject() && value.toObject()->type()->is_module())
            visit(Module(value.toObject()), name + ".", see, seen);
        else
            see(name, module, i);
    }
}

void visit_all(const Model& model, const std::function<void(const std::string&, const Module&, size_t)>& see) {
    std::set<const void*> seen;
    visit(model.module(), "", see, seen);
}

}  // namespace

std::optional<std::string> attribute_name(const Value* value) {
    const Node* node = value->node();
    std::string path;
    while (node->kind() == prim::GetAttr) {
        path = path.empty() ? node->s(attr::name) : node->s(attr::name) + "." + path;
        value = node->input();
        node = value->node();
    }
    const bool is_self = node->kind() == prim::Param && node->owningBlock() == node->owningGraph()->block() &&
                         value == node->owningGraph()->inputs()[0];
    if (!is_self || (path.empty() && value->type()->kind() != c10::TypeKind::ClassType)) return std::nullopt;
    return path;
}

c10::IValue get_attribute(const Model& model, const std::string& name) {
    const auto place = slot(model, name);
    return place.owner.attr(place.name);
}

bool has_attribute(const Model& model, const std::string& name) {
    return find_slot(model, name).has_value();
}

std::optional<at::Tensor> parameter_of(const Model& model, const Value* value) {
    if (const auto name = attribute_name(value); name && !name->empty()) {
        const auto attribute = get_attribute(model, *name);
        if (attribute.isTensor()) return attribute.toTensor();
        return std::nullopt;
    }
    const auto constant = toIValue(value);
    if (constant && constant->isTensor()) return constant->toTensor();
    return std::nullopt;
}

void set_tensor(Model& model, const std::string& name, const at::Tensor& tensor) {
    const auto place = slot(model, name);
    const auto old = place.owner.attr(place.name);
    if (!old.isTensor()) throw InternalError("attribute " + name, "is no tensor", "");
    const auto old_tensor = old.toTensor();
    auto fresh = tensor.detach();
    if (fresh.is_floating_point()) fresh.set_requires_grad(old_tensor.requires_grad());
    std::vector<std::pair<Module, size_t>> sharers;
    visit_all(model, [&](const std::string&, const Module& owner, size_t index) {
        const auto& value = owner._ivalue()->getSlot(index);
        if (value.isTensor() && value.toTensor().is_same(old_tensor)) sharers.emplace_back(owner, index);
    });
    for (auto& [owner, index] : sharers) owner._ivalue()->setSlot(index, fresh);
}

std::string add_attribute(Model& model, const std::string& name, const c10::IValue& value, Role role,
                          const c10::TypePtr& type) {
    Module owner = model.module();
    const auto dot = name.rfind('.');
    const auto prefix = dot == std::string::npos ? std::string() : name.substr(0, dot + 1);
    if (dot != std::string::npos) {
        const auto place = slot(model, name.substr(0, dot));
        owner = Module(place.owner.attr(place.name).toObject());
    }
    const std::string base = name.substr(prefix.size());
    std::string last = base;
    for (int number = 2; owner.hasattr(last); ++number) last = base + "_" + std::to_string(number);
    if (role == Role::kAttribute)
        owner.register_attribute(last, type ? type : value.type(), value);
    else
        owner.register_parameter(last, value.toTensor(), role == Role::kBuffer);
    return prefix + last;
}

Value* read_attribute(Model& model, const std::string& name, Node* before) {
    const auto graph = model.graph();
    Value* value = graph->inputs()[0];
    Module owner = model.module();
    WithInsertPoint guard(before);
    size_t begin = 0;
    for (;;) {
        const auto dot = name.find('.', begin);
        const auto part = name.substr(begin, dot == std::string::npos ? dot : dot - begin);
        if (!owner.hasattr(part)) throw InternalError("attribute " + name, "the model has none of this name", "");
        // createGetAttr takes the type from the class of `value`, which register_attribute has extended.
        value = graph->insertNode(graph->createGetAttr(value, part))->output();
        if (dot == std::string::npos) return value;
        owner = Module(owner.attr(part).toObject());
        begin = dot + 1;
    }
}

std::vector<NamedTensor> named_tensors(const Model& model) {
    std::vector<NamedTensor> tensors;
    visit_all(model, [&](const std::string& name, const Module& owner, size_t index) {
        const auto& value = owner._ivalue()->getSlot(index);
        if (!value.isTensor() || !value.toTensor().defined()) return;
        const auto type = owner.type();
        const Role role = type->is_parameter(index) ? Role::kParameter
                          : type->is_buffer(index)  ? Role::kBuffer
                                                    : Role::kAttribute;
        tensors.push_back({name, value.toTensor(), role});
    });
    return tensors;
}

namespace {

/// Removes what is not in `used` below `module`; returns whether anything is left. Names in `used` are full paths.
bool prune_module(Module module, const std::string& prefix, const std::set<std::string>& used) {
    const auto type = module.type();
    if (!prefix.empty() && type->findMethod("__getstate__")) {  // it saves itself, and needs for that what it has
        const auto first = used.lower_bound(prefix);
        if (first != used.end() && first->rfind(prefix, 0) == 0) return true;
    }
    std::vector<std::string> names;
    for (size_t i = 0; i < type->numAttributes(); ++i) names.push_back(type->getAttributeName(i));
    bool anything = false;
    for (const auto& name : names) {
        const auto slot_index = type->getAttributeSlot(name);
        const auto value = module._ivalue()->getSlot(slot_index);
        const bool is_module = value.isObject() && value.toObject()->type()->is_module();
        const bool keep = is_module ? prune_module(Module(value.toObject()), prefix + name + ".", used)
                                    : used.count(prefix + name) > 0 || (prefix.empty() && name == "training");
        anything |= keep;
        if (keep) continue;
        type->unsafeRemoveAttribute(name);
        module._ivalue()->unsafeRemoveSlot(slot_index);
    }
    return anything;
}

/// Paths that reach one module object or attribute under several names keep all of them.
void add_paths(const Module& module, const std::string& prefix, std::map<const void*, std::vector<std::string>>& paths,
               int depth) {
    if (depth > 64) return;
    paths[module._ivalue().get()].push_back(prefix);
    const auto type = module.type();
    for (size_t i = 0; i < type->numAttributes(); ++i) {
        const auto& value = module._ivalue()->getSlot(i);
        if (value.isObject() && value.toObject()->type()->is_module())
            add_paths(Module(value.toObject()), prefix + type->getAttributeName(i) + ".", paths, depth + 1);
    }
}

}  // namespace

void remove_unused_attributes(Model& model) {
    std::set<std::string> used;
    for (const auto& method : model.module().get_methods())
        for (Node* node : all_nodes(*method.graph())) {
            if (node->kind() == prim::GetAttr)
                if (auto name = attribute_name(node->output())) used.insert(*name);
            if (node->kind() == prim::SetAttr)
                if (auto owner = attribute_name(node->inputs()[0]))
                    used.insert(owner->empty() ? node->s(attr::name) : *owner + "." + node->s(attr::name));
        }
    // A module shared under two names is one object: what one name reads, the other has too.
    std::map<const void*, std::vector<std::string>> paths;
    add_paths(model.module(), "", paths, 0);
    for (const auto& [object, names] : paths) {
        if (names.size() < 2) continue;
        std::set<std::string> tails;
        for (const auto& name : names)
            for (auto it = used.lower_bound(name); it != used.end() && it->rfind(name, 0) == 0; ++it)
                tails.insert(it->substr(name.size()));
        for (const auto& name : names)
            for (const auto& tail : tails) used.insert(name + tail);
    }
    prune_module(model.module(), "", used);
}

}  // namespace coppice
