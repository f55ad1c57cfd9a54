#include "support/schema.h"

#include <algorithm>

namespace coppice::testing {
namespace {

std::vector<std::string> violations(const Json& value, const Json& schema, const Json& root, const std::string& where) {
    std::vector<std::string> wrong;
    const auto add = [&wrong](std::vector<std::string> more) { wrong.insert(wrong.end(), more.begin(), more.end()); };
    const auto is = [&value](const std::string& type) {
        if (type == "object") return value.is_object();
        if (type == "array") return value.is_array();
        if (type == "string") return value.is_string();
        if (type == "integer") return value.is_number_integer();
        if (type == "number") return value.is_number();
        if (type == "boolean") return value.is_boolean();
        return type == "null" && value.is_null();
    };
    for (const auto& [key, rule] : schema.items()) {
        if (key == "$ref") {
            add(violations(value, root.at(Json::json_pointer(rule.get<std::string>().substr(1))), root, where));
        } else if (key == "type") {
            bool any = false;
            for (const auto& type : rule.is_array() ? rule : Json::array({rule})) any |= is(type);
            if (!any) wrong.push_back(where + " is not of type " + rule.dump());
        } else if (key == "const") {
            if (value != rule) wrong.push_back(where + " is not " + rule.dump());
        } else if (key == "enum") {
            if (std::find(rule.begin(), rule.end(), value) == rule.end())
                wrong.push_back(where + " is none of " + rule.dump());
        } else if (key == "required") {
            for (const auto& name : rule)
                if (!value.contains(name.get<std::string>())) wrong.push_back(where + " lacks " + name.dump());
        } else if (key == "properties") {
            for (const auto& [name, inner] : rule.items())
                if (value.is_object() && value.contains(name))
                    add(violations(value[name], inner, root, where + "/" + name));
        } else if (key == "additionalProperties") {
            for (const auto& [name, inner] : value.items()) add(violations(inner, rule, root, where + "/" + name));
        } else if (key == "items") {
            for (size_t i = 0; i < value.size(); ++i)
                add(violations(value[i], rule, root, where + "/" + std::to_string(i)));
        } else if (key == "minItems") {
            if (value.size() < rule.get<size_t>()) wrong.push_back(where + " is too short");
        } else if (key == "maxItems") {
            if (value.size() > rule.get<size_t>()) wrong.push_back(where + " is too long");
        } else if (key == "anyOf") {
            bool any = false;
            for (const auto& choice : rule) any |= violations(value, choice, root, where).empty();
            if (!any) wrong.push_back(where + " fits no choice");
        } else if (key != "$schema" && key != "title" && key != "description" && key != "$defs") {
            wrong.push_back("the schema uses " + key + ", which this test does not know");
        }
    }
    return wrong;
}

}  // namespace

std::vector<std::string> schema_violations(const Json& value, const Json& schema) {
    return violations(value, schema, schema, "");
}

}  // namespace coppice::testing
