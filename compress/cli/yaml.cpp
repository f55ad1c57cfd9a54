// YAML <-> Setting. The event interface of yaml-cpp is used rather than its nodes: nodes forget where a key stands, and
// keep the first of two equal keys in silence.
#include "recipe.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <cctype>
#include <set>
#include <sstream>

namespace coppice::cli {
namespace {

class Builder final : public YAML::EventHandler {
public:
    explicit Builder(std::string name) : name_(std::move(name)) {}

    void OnDocumentStart(const YAML::Mark&) override {}
    void OnDocumentEnd() override {}

    void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
        Setting setting;
        setting.where = place(mark);
        add(std::move(setting), mark, anchor);
    }

    void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
        const auto found = anchors_.find(anchor);
        // An alias inside the node that it names would make that node contain itself.
        if (found == anchors_.end())
            throw InvalidArgument(place(mark), "the alias refers to a node that it lies in", "Write the values out.");
        add(found->second, mark, 0);
    }

    void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  const std::string& value) override {
        Setting setting = Setting::scalar(value, place(mark));
        setting.quoted = tag == "!";
        add(std::move(setting), mark, anchor);
    }

    void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                         YAML::EmitterStyle::value) override {
        begin(Setting::Kind::kList, mark, anchor);
    }
    void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                    YAML::EmitterStyle::value) override {
        begin(Setting::Kind::kMap, mark, anchor);
    }
    void OnSequenceEnd() override { end(); }
    void OnMapEnd() override { end(); }

    Setting root;
    bool any = false;

private:
    struct Frame {
        Setting setting;
        YAML::Mark mark;
        YAML::anchor_t anchor;
        bool has_key = false;
        std::string key, key_where;
        std::map<std::string, std::string> keys;  // name -> place
    };

    std::string place(const YAML::Mark& mark) const {
        return name_ + " line " + std::to_string(mark.line + 1) + ", column " + std::to_string(mark.column + 1);
    }

    void begin(Setting::Kind kind, const YAML::Mark& mark, YAML::anchor_t anchor) {
        if (!frames_.empty() && frames_.back().setting.kind == Setting::Kind::kMap && !frames_.back().has_key)
            throw InvalidArgument(place(mark), "a key must be a text", "Write \"key: value\".");
        Frame frame;
        frame.setting.kind = kind;
        frame.setting.where = place(mark);
        frame.mark = mark;
        frame.anchor = anchor;
        frames_.push_back(std::move(frame));
    }

    void end() {
        Frame frame = std::move(frames_.back());
        frames_.pop_back();
        add(std::move(frame.setting), frame.mark, frame.anchor);
    }

    static size_t count(const Setting& setting) {
        size_t total = 1;
        for (const auto& item : setting.items) total += count(item);
        for (const auto& [key, value] : setting.members) total += count(value);
        return total;
    }

    void add(Setting setting, const YAML::Mark& mark, YAML::anchor_t anchor) {
        // Aliases of aliases can stand for billions of values (the "billion laughs"); no recipe comes near this.
        if ((nodes_ += anchor == 0 && setting.kind != Setting::Kind::kScalar ? count(setting) : 1) > 100000)
            throw InvalidArgument(place(mark), "the file stands for more than 100,000 values", "Use fewer aliases.");
        if (anchor) anchors_[anchor] = setting;
        if (frames_.empty()) {
            root = std::move(setting);
            any = true;
            return;
        }
        Frame& frame = frames_.back();
        if (frame.setting.kind == Setting::Kind::kList) {
            frame.setting.items.push_back(std::move(setting));
            return;
        }
        if (!frame.has_key) {
            if (setting.kind != Setting::Kind::kScalar)
                throw InvalidArgument(place(mark), "a key must be a text", "Write \"key: value\".");
            frame.key = setting.text;
            frame.key_where = place(mark);
            frame.has_key = true;
            const auto [other, fresh] = frame.keys.emplace(frame.key, frame.key_where);
            if (!fresh)
                throw InvalidArgument(
                    frame.key_where,
                    "\"" + frame.key + "\" is given twice, first at" + other->second.substr(name_.size()),
                    "Remove one of them.");
            return;
        }
        setting.where = frame.key_where;
        frame.setting.members.emplace_back(frame.key, std::move(setting));
        frame.has_key = false;
    }

    std::string name_;
    std::vector<Frame> frames_;
    std::map<YAML::anchor_t, Setting> anchors_;
    size_t nodes_ = 0;
};

bool looks_plain(const std::string& text) {
    if (text.empty() || text.front() == ' ' || text.back() == ' ') return false;
    for (const char c : text)
        if (!(std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '.' || c == '/' || c == '-' || c == '+' ||
              c == ' ' || c == '(' || c == ')' || c == '=' || c == ':' || c == '$' || c == '{' || c == '}'))
            return false;
    // Indicators that mean something at the beginning, ": " and " #" inside, and the flow brackets.
    if (std::string("-:{}.").find(text.front()) != std::string::npos && text.size() < 2) return false;
    if (text.front() == '-' || text.front() == ':' || text.front() == '{' || text.front() == '}' || text.front() == '=')
        return false;
    if (text.find(": ") != std::string::npos || text.back() == ':' || text.find_first_of("{}") != std::string::npos)
        return false;
    static const std::set<std::string> kSpecial = {"null",  "Null", "NULL", "~",  "true",
                                                   "false", "yes",  "no",   "on", "off"};
    return kSpecial.count(text) == 0;
}

std::string scalar_text(const Json& value) {
    if (value.is_string()) {
        const auto text = value.get<std::string>();
        return looks_plain(text) ? text : value.dump();  // a JSON string is a valid double-quoted YAML scalar
    }
    return value.dump();
}

bool is_flow(const Json& value) {
    if (value.empty()) return true;
    if (!value.is_array()) return false;
    for (const auto& item : value)
        if (item.is_structured() && !(item.is_array() && is_flow(item))) return false;
    return true;
}

std::string flow_text(const Json& value) {
    if (value.is_object()) return "{}";
    if (!value.is_array()) {
        const auto text = scalar_text(value);
        return value.is_string() && text.find(',') == std::string::npos && text.find_first_of("[]") == std::string::npos
                   ? text
                   : value.dump();
    }
    std::string text = "[";
    for (size_t i = 0; i < value.size(); ++i) text += (i ? ", " : "") + flow_text(value[i]);
    return text + "]";
}

void write_yaml(const Json& value, size_t indent, std::string& out) {
    const std::string pad(indent, ' ');
    if (value.is_object()) {
        for (const auto& [key, member] : value.items()) {
            out += pad + scalar_text(key) + ":";
            if (!member.is_structured()) {
                out += " " + scalar_text(member) + "\n";
            } else if (is_flow(member)) {
                out += " " + flow_text(member) + "\n";
            } else {
                out += "\n";
                write_yaml(member, indent + 2, out);
            }
        }
    } else {
        for (const auto& item : value) {
            if (!item.is_structured() || is_flow(item)) {
                out += pad + "- " + (item.is_structured() ? flow_text(item) : scalar_text(item)) + "\n";
                continue;
            }
            std::string inner;
            write_yaml(item, indent + 2, inner);
            out += pad + "- " + inner.substr(indent + 2);
        }
    }
}

}  // namespace

Setting parse_yaml(const std::string& text, const std::string& name) {
    if (text.find('\0') != std::string::npos || text.rfind("PK\x03\x04", 0) == 0)
        throw InvalidArgument(name, "is a binary file, expected a recipe in YAML", "See coppice compress --help.");
    std::istringstream stream(text);
    try {
        YAML::Parser parser(stream);
        Builder first(name), second(name);
        parser.HandleNextDocument(first);
        if (parser.HandleNextDocument(second) && second.root.kind != Setting::Kind::kNull)
            throw InvalidArgument(second.root.where, "a second document begins", "Keep one document in the file.");
        return std::move(first.root);
    } catch (const YAML::Exception& error) {
        std::string where = name;
        if (!error.mark.is_null())
            where +=
                " line " + std::to_string(error.mark.line + 1) + ", column " + std::to_string(error.mark.column + 1);
        const bool tab = error.msg.find("tab") != std::string::npos;
        throw InvalidArgument(
            where, "not valid YAML: " + error.msg,
            tab ? "Indent with spaces." : "Check brackets, quotes and indentation there and in the line before.");
    }
}

void apply_override(Setting& root, const std::string& assignment) {
    const std::string where = "--set " + assignment.substr(0, assignment.find('='));
    const auto equals = assignment.find('=');
    if (equals == std::string::npos || equals == 0)
        throw InvalidArgument("--set " + assignment, "is no assignment", "Write --set stages.0.ratio=0.3.");
    Setting value;
    try {
        value = parse_yaml(assignment.substr(equals + 1), where);
    } catch (const InvalidArgument&) {
        throw InvalidArgument(where, "\"" + assignment.substr(equals + 1) + "\" is not valid YAML",
                              "Mind the shell: --set 'measure.batch=[1, 32]'.");
    }
    std::function<void(Setting&)> place = [&](Setting& setting) {
        setting.where = where;
        for (auto& item : setting.items) place(item);
        for (auto& [key, member] : setting.members) place(member);
    };
    place(value);

    std::vector<std::string> parts;
    std::istringstream path(assignment.substr(0, equals));
    for (std::string part; std::getline(path, part, '.');) parts.push_back(part);
    Setting* target = &root;
    for (size_t i = 0; i < parts.size(); ++i) {
        if (target->kind == Setting::Kind::kList) {
            const bool digits = !parts[i].empty() && parts[i].size() < 7 &&
                                parts[i].find_first_not_of("0123456789") == std::string::npos;
            const size_t index = digits ? std::stoul(parts[i]) : SIZE_MAX;
            if (index >= target->items.size())
                throw InvalidArgument(
                    where, "\"" + parts[i] + "\" is no position in a list of " + std::to_string(target->items.size()),
                    target->items.empty() ? "" : "Use 0 to " + std::to_string(target->items.size() - 1) + ".");
            target = &target->items[index];
            // A stage is a name, or a map with the name as its only key: the path goes on with the options.
            if (i + 1 < parts.size() && parts[0] == "stages" && i == 1) {
                if (target->kind == Setting::Kind::kScalar)
                    *target = Setting::map({{target->text, Setting::map({}, target->where)}}, target->where);
                if (target->kind == Setting::Kind::kMap && target->members.size() == 1) {
                    const std::string name = target->members[0].first;
                    size_t used = 0;  // how many parts spell out the name: "prune", "channel"
                    std::string spelled;
                    for (size_t j = i + 1; j < parts.size() && spelled.size() < name.size(); ++j) {
                        spelled += (spelled.empty() ? "" : ".") + parts[j];
                        if (spelled == name) used = j - i;
                    }
                    i += used;
                    target = &target->members[0].second;
                }
            }
            continue;
        }
        if (target->kind == Setting::Kind::kNull) {
            target->kind = Setting::Kind::kMap;
        } else if (target->kind == Setting::Kind::kScalar) {
            throw InvalidArgument(where, "\"" + parts[i] + "\" is inside a value that is a text", "");
        }
        Setting* member = nullptr;
        for (auto& [key, candidate] : target->members)
            if (key == parts[i]) member = &candidate;
        if (!member) {
            target->members.emplace_back(parts[i], Setting{});
            member = &target->members.back().second;
            member->where = where;
        }
        target = member;
    }
    *target = std::move(value);
    target->where = where;
}

std::string to_yaml(const Json& value) {
    std::string out;
    if (!value.is_structured()) return scalar_text(value) + "\n";
    if (is_flow(value)) return flow_text(value) + "\n";
    write_yaml(value, 0, out);
    return out;
}

Json to_json(const Setting& setting) {
    switch (setting.kind) {
        case Setting::Kind::kNull:
            return nullptr;
        case Setting::Kind::kScalar:
            return setting.text;
        case Setting::Kind::kList: {
            Json list = Json::array();
            for (const auto& item : setting.items) list.push_back(to_json(item));
            return list;
        }
        case Setting::Kind::kMap: {
            Json map = Json::object();
            for (const auto& [key, value] : setting.members) map[key] = to_json(value);
            return map;
        }
    }
    return nullptr;
}

}  // namespace coppice::cli
