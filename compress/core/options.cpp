#include <coppice/registry.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace coppice {
namespace {

std::string text_of(double value) {
    return Json(value).dump();
}

template <typename T>
std::string joined(const std::vector<T>& items) {
    std::string text = "[";
    for (size_t i = 0; i < items.size(); ++i) text += (i ? ", " : "") + Json(items[i]).dump();
    return text + "]";
}

std::string one_of(const std::vector<std::string>& allowed) {
    std::string text;
    for (size_t i = 0; i < allowed.size(); ++i)
        text += (i == 0 ? "" : i + 1 == allowed.size() ? " or " : ", ") + allowed[i];
    return text;
}

std::optional<double> parse_number(const std::string& text) {
    if (text.empty()) return std::nullopt;
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    // strtod also takes "nan", "inf" and hexadecimal; a recipe has no use for them.
    if (*end != '\0' || !std::isfinite(value) || text.find_first_of("xX") != std::string::npos) return std::nullopt;
    return value;
}

std::optional<int64_t> parse_integer(const std::string& text) {
    const auto value = parse_number(text);
    if (!value || *value != std::floor(*value) || std::abs(*value) > 9.0e15) return std::nullopt;
    return static_cast<int64_t>(*value);
}

}  // namespace

Setting::Setting() = default;
Setting::Setting(const Setting&) = default;
Setting::Setting(Setting&&) noexcept = default;
Setting& Setting::operator=(const Setting&) = default;
Setting& Setting::operator=(Setting&&) noexcept = default;
Setting::~Setting() = default;

Setting Setting::scalar(std::string text, std::string where) {
    Setting setting;
    setting.kind = Kind::kScalar;
    setting.text = std::move(text);
    setting.where = std::move(where);
    return setting;
}

Setting Setting::map(std::vector<std::pair<std::string, Setting>> members, std::string where) {
    Setting setting;
    setting.kind = Kind::kMap;
    setting.members = std::move(members);
    setting.where = std::move(where);
    return setting;
}

const Setting* Setting::find(const std::string& name) const {
    for (const auto& [key, value] : members)
        if (key == name) return &value;
    return nullptr;
}

std::optional<std::string> nearest_name(const std::string& name, const std::vector<std::string>& known) {
    std::optional<std::string> best;
    size_t best_distance =
        std::max<size_t>(2, name.size() / 3) + 1;  // further away is another word, not a typing error
    for (const auto& candidate : known) {
        std::vector<size_t> row(candidate.size() + 1);
        for (size_t j = 0; j <= candidate.size(); ++j) row[j] = j;
        for (size_t i = 1; i <= name.size(); ++i) {
            size_t diagonal = row[0];
            row[0] = i;
            for (size_t j = 1; j <= candidate.size(); ++j) {
                const size_t above = row[j];
                row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (name[i - 1] != candidate[j - 1])});
                diagonal = above;
            }
        }
        size_t distance = row.back();
        // "quantise" or "static" for "quantize.static": a whole part of the name is a good hint too.
        if (name.size() >= 4 &&
            (candidate.rfind(name, 0) == 0 ||
             (candidate.size() > name.size() &&
              candidate.compare(candidate.size() - name.size() - 1, std::string::npos, "." + name) == 0)))
            distance = std::min<size_t>(distance, 1);
        if (distance < best_distance) {
            best_distance = distance;
            best = candidate;
        }
    }
    return best;
}

void throw_unknown(const std::string& where, const std::string& what, const std::string& name,
                   const std::vector<std::string>& known) {
    const auto nearest = nearest_name(name, known);
    throw InvalidArgument(where, "unknown " + what + " \"" + name + "\"",
                          nearest ? "Did you mean \"" + *nearest + "\"?" : "Known: " + one_of(known) + ".");
}

void require_known(const std::string& where, const std::string& what, const std::string& name,
                   const std::vector<std::string>& known) {
    if (std::find(known.begin(), known.end(), name) == known.end()) throw_unknown(where, what, name, known);
}

std::pair<std::string, Setting> name_and_options(const Setting& setting, const std::string& what) {
    if (setting.kind == Setting::Kind::kScalar && !setting.text.empty()) {
        Setting none;
        none.where = setting.where;
        return {setting.text, none};
    }
    if (setting.kind == Setting::Kind::kMap && setting.members.size() == 1) {
        auto inner = setting.members.front().second;
        if (inner.kind == Setting::Kind::kMap || inner.kind == Setting::Kind::kNull) {
            if (inner.where.empty()) inner.where = setting.where;
            return {setting.members.front().first, inner};
        }
    }
    throw InvalidArgument(setting.where, what + " must be a name, or one name with its options",
                          "Write \"name\" or \"name: {option: value}\".");
}

Options::Options(std::string owner, Setting settings) : owner_(std::move(owner)), settings_(std::move(settings)) {
    if (settings_.kind != Setting::Kind::kMap && settings_.kind != Setting::Kind::kNull)
        throw InvalidArgument(settings_.where.empty() ? owner_ : settings_.where + ", " + owner_,
                              "options must be a map", "Write \"" + owner_ + ": {option: value}\".");
}

Options::Options(std::string owner, std::vector<std::pair<std::string, std::string>> scalars)
    : owner_(std::move(owner)) {
    settings_.kind = Setting::Kind::kMap;
    for (auto& [name, text] : scalars) settings_.members.emplace_back(name, Setting::scalar(text));
}

const Setting* Options::find(const std::string& name) const {
    return settings_.find(name);
}

bool Options::has(const std::string& name) const {
    const auto* setting = find(name);
    return setting && setting->kind != Setting::Kind::kNull;
}

void Options::remember(Asked asked) {
    for (auto& known : asked_)
        if (known.name == asked.name) {
            if (known.kind == "any") known = std::move(asked);  // raw() knows less than who reads what it returned
            return;
        }
    asked_.push_back(std::move(asked));
}

InvalidArgument Options::error(const std::string& name, const std::string& problem, const std::string& fix) const {
    const auto* setting = find(name);
    const std::string place = setting && !setting->where.empty() ? setting->where
                              : !settings_.where.empty()         ? settings_.where
                                                                 : std::string();
    return InvalidArgument((place.empty() ? "" : place + ", ") + owner_, name + " " + problem, fix);
}

double Options::number(const std::string& name, double default_value, const std::string& help) {
    remember({name, "number", text_of(default_value), help});
    double value = default_value;
    if (const auto* setting = find(name); setting && setting->kind != Setting::Kind::kNull) {
        const auto parsed =
            setting->kind == Setting::Kind::kScalar ? parse_number(setting->text) : std::optional<double>();
        if (!parsed)
            throw error(name, "is \"" + setting->text + "\", must be a number",
                        "The default is " + text_of(default_value) + ".");
        value = *parsed;
    }
    resolved_[name] = value;
    return value;
}

double Options::number_in(const std::string& name, double default_value, double low, double high,
                          const std::string& help) {
    const double value = number(name, default_value, help);
    if (!(value >= low && value <= high))
        throw error(name, "is " + text_of(value) + ", must be in [" + text_of(low) + ", " + text_of(high) + "]",
                    "The default is " + text_of(default_value) + ".");
    return value;
}

std::optional<double> Options::optional_number(const std::string& name, const std::string& help) {
    if (!has(name)) {
        remember({name, "number", "none", help});
        resolved_[name] = nullptr;
        return std::nullopt;
    }
    const double value = number(name, 0, help);
    for (auto& asked : asked_)
        if (asked.name == name) asked.default_text = "none";
    return value;
}

int64_t Options::integer(const std::string& name, int64_t default_value, int64_t low, int64_t high,
                         const std::string& help) {
    remember({name, "integer", std::to_string(default_value), help});
    int64_t value = default_value;
    if (const auto* setting = find(name); setting && setting->kind != Setting::Kind::kNull) {
        const auto parsed =
            setting->kind == Setting::Kind::kScalar ? parse_integer(setting->text) : std::optional<int64_t>();
        if (!parsed)
            throw error(name, "is \"" + setting->text + "\", must be a whole number",
                        "The default is " + std::to_string(default_value) + ".");
        value = *parsed;
    }
    if (value < low || value > high) {
        const std::string range = high == INT64_MAX  ? "at least " + std::to_string(low)
                                  : low == INT64_MIN ? "at most " + std::to_string(high)
                                                     : "in [" + std::to_string(low) + ", " + std::to_string(high) + "]";
        throw error(name, "is " + std::to_string(value) + ", must be " + range,
                    "The default is " + std::to_string(default_value) + ".");
    }
    resolved_[name] = value;
    return value;
}

bool Options::boolean(const std::string& name, bool default_value, const std::string& help) {
    remember({name, "true/false", default_value ? "true" : "false", help});
    bool value = default_value;
    if (const auto* setting = find(name); setting && setting->kind != Setting::Kind::kNull) {
        const std::string& text = setting->text;
        if (text == "true" || text == "yes" || text == "on")
            value = true;
        else if (text == "false" || text == "no" || text == "off")
            value = false;
        else
            throw error(name, "is \"" + text + "\", must be true or false", "");
    }
    resolved_[name] = value;
    return value;
}

std::string Options::text(const std::string& name, const std::string& default_value, const std::string& help) {
    remember({name, "text", default_value, help});
    std::string value = default_value;
    if (const auto* setting = find(name); setting && setting->kind != Setting::Kind::kNull) {
        if (setting->kind != Setting::Kind::kScalar) throw error(name, "must be a text", "");
        value = setting->text;
    }
    resolved_[name] = value;
    return value;
}

std::string Options::choice(const std::string& name, const std::string& default_value,
                            const std::vector<std::string>& allowed, const std::string& help) {
    std::string value = text(name, default_value, help);
    for (auto& asked : asked_)
        if (asked.name == name) asked.kind = one_of(allowed);
    if (std::find(allowed.begin(), allowed.end(), value) == allowed.end()) {
        const auto nearest = nearest_name(value, allowed);
        throw error(name, "is \"" + value + "\", must be " + one_of(allowed),
                    nearest ? "Did you mean \"" + *nearest + "\"?" : "");
    }
    return value;
}

std::vector<int64_t> Options::integers(const std::string& name, std::vector<int64_t> default_value,
                                       const std::string& help) {
    remember({name, "list of integers", joined(default_value), help});
    if (const auto* setting = find(name); setting && setting->kind != Setting::Kind::kNull) {
        default_value.clear();
        const auto items = setting->kind == Setting::Kind::kScalar ? std::vector<Setting>{*setting} : setting->items;
        for (const auto& item : items) {
            const auto parsed = parse_integer(item.text);
            if (!parsed) throw error(name, "holds \"" + item.text + "\", must be whole numbers", "");
            default_value.push_back(*parsed);
        }
    }
    resolved_[name] = default_value;
    return default_value;
}

std::vector<double> Options::numbers(const std::string& name, std::vector<double> default_value,
                                     const std::string& help) {
    remember({name, "list of numbers", joined(default_value), help});
    if (const auto* setting = find(name); setting && setting->kind != Setting::Kind::kNull) {
        default_value.clear();
        const auto items = setting->kind == Setting::Kind::kScalar ? std::vector<Setting>{*setting} : setting->items;
        for (const auto& item : items) {
            const auto parsed = parse_number(item.text);
            if (!parsed) throw error(name, "holds \"" + item.text + "\", must be numbers", "");
            default_value.push_back(*parsed);
        }
    }
    resolved_[name] = default_value;
    return default_value;
}

std::vector<std::string> Options::texts(const std::string& name, std::vector<std::string> default_value,
                                        const std::string& help) {
    remember({name, "list of texts", joined(default_value), help});
    if (const auto* setting = find(name); setting && setting->kind != Setting::Kind::kNull) {
        default_value.clear();
        const auto items = setting->kind == Setting::Kind::kScalar ? std::vector<Setting>{*setting} : setting->items;
        for (const auto& item : items) {
            if (item.kind != Setting::Kind::kScalar) throw error(name, "must be a list of texts", "");
            default_value.push_back(item.text);
        }
    }
    resolved_[name] = default_value;
    return default_value;
}

const Setting* Options::raw(const std::string& name, const std::string& help) {
    remember({name, "any", "", help});
    const auto* setting = find(name);
    return setting && setting->kind != Setting::Kind::kNull ? setting : nullptr;
}

void Options::done() const {
    std::vector<std::string> known;
    for (const auto& asked : asked_) known.push_back(asked.name);
    for (const auto& [name, setting] : settings_.members) {
        const std::string place = setting.where.empty() ? owner_ : setting.where + ", " + owner_;
        require_known(place, "option", name, known);
    }
}

}  // namespace coppice
