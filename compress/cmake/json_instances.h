/// Part of the precompiled header: what most sources do with JSON, so that the compiler instantiates it once with the
/// header and not in every source, where it would take a third of a second.
#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

inline bool coppice_json_instances(nlohmann::ordered_json& json) {
    using Json = nlohmann::ordered_json;
    json["flag"] = true;
    json["int"] = 1;
    json["integer"] = int64_t{1};
    json["size"] = size_t{1};
    json["number"] = 1.5;
    json["literal"] = "text";
    json["text"] = std::string("text");
    json["object"] = {{"name", "value"}, {"number", 1}};
    json["list"] = Json::array();
    json["list"].push_back(json);
    json["numbers"] = std::vector<double>{};
    json["integers"] = std::vector<int64_t>{};
    json["texts"] = std::vector<std::string>{};
    size_t count = 0;
    for (const auto& item : json) count += item.size();
    for (const auto& [name, item] : json.items()) count += name.size() + item.size();
    std::ostringstream out;
    out << json;
    std::istringstream in(out.str());
    return Json::parse(in) == Json::parse(out.str()) && json.contains("flag") && json.at("flag").get<bool>() &&
           json.at("int").get<int>() == 1 && json.at("integer").get<int64_t>() == 1 &&
           json.at("number").get<double>() > 1 && json.at("text").get<std::string>() == json.dump() &&
           json.value("int", 1) == 1 && json.value("text", std::string()).empty() && json.is_object() && count > 0;
}
