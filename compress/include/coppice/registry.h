/// Options as read from a recipe, and the tables ("registries") that make algorithms from them by name.
#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <coppice/error.h>

namespace coppice {

using Json = nlohmann::ordered_json;

/// A value of a recipe with the place it was read from: null, a scalar (kept as text), a list or an ordered map.
struct Setting {
    enum class Kind { kNull, kScalar, kList, kMap };
    Kind kind = Kind::kNull;
    std::string where;                                     ///< "recipe.yaml line 4, column 7"; empty when made in C++
    std::string text;                                      ///< kScalar
    bool quoted = false;                                   ///< kScalar: written in quotes, so never null
    std::vector<Setting> items;                            ///< kList
    std::vector<std::pair<std::string, Setting>> members;  ///< kMap, in the order written

    // Out of line: inside the class, Setting is incomplete and a pair of it cannot be copied or destroyed yet.
    Setting();
    Setting(const Setting&);
    Setting(Setting&&) noexcept;
    Setting& operator=(const Setting&);
    Setting& operator=(Setting&&) noexcept;
    ~Setting();

    static Setting scalar(std::string text, std::string where = {});
    static Setting map(std::vector<std::pair<std::string, Setting>> members, std::string where = {});
    const Setting* find(const std::string& name) const;  ///< member of a map, or null
};

/// The name in `known` closest to `name` by edit distance, if any is close enough to be a typing error.
std::optional<std::string> nearest_name(const std::string& name, const std::vector<std::string>& known);

/// Typed access to the settings of one stage or algorithm. Each getter names an option, its default and (for `coppice
/// list`) one line of documentation; what was asked for is remembered, so that done() can reject everything else. All
/// getters throw InvalidArgument with the place, the option and what is allowed.
class Options {
public:
    struct Asked {
        std::string name, kind, default_text, help;
    };

    Options() = default;
    /// @param owner  what the options belong to, for messages: "prune.channel"
    explicit Options(std::string owner, Setting settings = {});
    /// For C++ and tests: Options("prune.channel", {{"ratio", "0.5"}}).
    Options(std::string owner, std::vector<std::pair<std::string, std::string>> scalars);

    double number(const std::string& name, double default_value, const std::string& help = {});
    double number_in(const std::string& name, double default_value, double low, double high,
                     const std::string& help = {});
    std::optional<double> optional_number(const std::string& name, const std::string& help = {});
    int64_t integer(const std::string& name, int64_t default_value, int64_t low = INT64_MIN, int64_t high = INT64_MAX,
                    const std::string& help = {});
    bool boolean(const std::string& name, bool default_value, const std::string& help = {});
    std::string text(const std::string& name, const std::string& default_value, const std::string& help = {});
    /// One of `allowed`; an unknown one is an error that names the nearest.
    std::string choice(const std::string& name, const std::string& default_value,
                       const std::vector<std::string>& allowed, const std::string& help = {});
    std::vector<int64_t> integers(const std::string& name, std::vector<int64_t> default_value,
                                  const std::string& help = {});
    std::vector<double> numbers(const std::string& name, std::vector<double> default_value,
                                const std::string& help = {});
    std::vector<std::string> texts(const std::string& name, std::vector<std::string> default_value,
                                   const std::string& help = {});
    /// The raw setting; null when absent. Marks the option as known.
    const Setting* raw(const std::string& name, const std::string& help = {});
    bool has(const std::string& name) const;

    /// Throws InvalidArgument naming the first option that no getter asked for, and the nearest known one.
    void done() const;

    /// An InvalidArgument placed at option `name` (its recipe line when known).
    InvalidArgument error(const std::string& name, const std::string& problem, const std::string& fix) const;

    const std::string& owner() const { return owner_; }
    const std::string& where() const { return settings_.where; }
    const std::vector<Asked>& asked() const { return asked_; }
    /// Every option with its value in force, defaults spelled out.
    const Json& resolved() const { return resolved_; }
    /// Records a value that a nested maker resolved (see make()).
    void resolve(const std::string& name, Json value) { resolved_[name] = std::move(value); }
    void remember(Asked asked);

private:
    const Setting* find(const std::string& name) const;
    std::string owner_;
    Setting settings_;
    std::vector<Asked> asked_;
    Json resolved_ = Json::object();
};

/// One row of a table: name in recipes, line in `coppice list`, factory. Tables are plain sorted vectors.
template <typename T>
struct Entry {
    std::string name;
    std::string summary;
    std::function<std::unique_ptr<T>(Options&)> make;
};

template <typename T>
std::vector<std::string> names_of(const std::vector<Entry<T>>& table) {
    std::vector<std::string> names;
    for (const auto& row : table) names.push_back(row.name);
    return names;
}

/// Throws InvalidArgument 'unknown <what> "<name>". Did you mean "<nearest>"?'.
[[noreturn]] void throw_unknown(const std::string& where, const std::string& what, const std::string& name,
                                const std::vector<std::string>& known);

/// The same unless `name` is one of those known.
void require_known(const std::string& where, const std::string& what, const std::string& name,
                   const std::vector<std::string>& known);

/// The row called `name`. @param what  the family, for the message: "stage", "criterion"
template <typename T>
const Entry<T>& find_entry(const std::vector<Entry<T>>& table, const std::string& what, const std::string& name,
                           const std::string& where) {
    for (const auto& row : table)
        if (row.name == name) return row;
    throw_unknown(where, what, name, names_of(table));
}

/// Splits `name` or `{name: {options}}` into a name and its options. Throws InvalidArgument on any other form.
std::pair<std::string, Setting> name_and_options(const Setting& setting, const std::string& what);

/// Makes the algorithm that option `name` asks for, written `name: taylor` or `name: {taylor: {batches: 4}}`.
template <typename T>
std::unique_ptr<T> make(Options& options, const std::string& name, const std::string& default_name,
                        const std::vector<Entry<T>>& table, const std::string& help = {}) {
    const Setting* setting = options.raw(name, help);
    options.remember({name, "name", default_name, help});
    auto [key, inner] =
        setting ? name_and_options(*setting, name) : std::pair<std::string, Setting>{default_name, Setting{}};
    const auto& row =
        find_entry(table, name, key, setting && !setting->where.empty() ? setting->where : options.owner());
    Options inner_options(options.owner() + "." + key, inner);
    auto made = row.make(inner_options);
    inner_options.done();
    options.resolve(name, inner_options.resolved().empty() ? Json(key) : Json{{key, inner_options.resolved()}});
    return made;
}

}  // namespace coppice
