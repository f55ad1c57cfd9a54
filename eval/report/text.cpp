#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "report/text.h"

namespace coppice::eval::report {
namespace {

struct Prefix {
    double scale;
    const char* unit;
};

// Largest first. Bytes in powers of ten, as disks and networks count.
const std::vector<Prefix>& prefixes(const std::string& unit) {
    static const std::vector<Prefix> bytes = {{1e12, "TB"}, {1e9, "GB"}, {1e6, "MB"}, {1e3, "kB"}, {1, "B"}};
    static const std::vector<Prefix> seconds = {{1, "s"}, {1e-3, "ms"}, {1e-6, "µs"}, {1e-9, "ns"}};
    static const std::vector<Prefix> joules = {{1e6, "MJ"},  {1e3, "kJ"},  {1, "J"},
                                               {1e-3, "mJ"}, {1e-6, "µJ"}, {1e-9, "nJ"}};
    static const std::vector<Prefix> grams = {{1e6, "t"},   {1e3, "kg"},  {1, "g"},
                                              {1e-3, "mg"}, {1e-6, "µg"}, {1e-9, "ng"}};
    static const std::vector<Prefix> watts = {{1e3, "kW"}, {1, "W"}, {1e-3, "mW"}};
    static const std::vector<Prefix> counts = {{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}, {1, ""}};
    static const std::vector<Prefix> rates = {{1e6, "M/s"}, {1e3, "k/s"}, {1, "/s"}};
    static const std::vector<Prefix> none;
    if (unit == "B") return bytes;
    if (unit == "s") return seconds;
    if (unit == "J") return joules;
    if (unit == "g") return grams;
    if (unit == "W") return watts;
    if (unit == "1") return counts;
    if (unit == "1/s") return rates;
    return none;
}

const Json kNull;

}  // namespace

const Json& member(const Json& object, const std::string& key) {
    if (!object.is_object()) return kNull;
    const auto found = object.find(key);
    return found == object.end() ? kNull : *found;
}

std::string text_of(const Json& value) {
    if (value.is_null()) return {};
    if (value.is_string()) return value.get<std::string>();
    return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string text_member(const Json& object, const std::string& key, const std::string& fallback) {
    const Json& value = member(object, key);
    return value.is_null() ? fallback : text_of(value);
}

std::optional<double> number_member(const Json& object, const std::string& key) {
    const Json& value = member(object, key);
    if (!value.is_number() || !std::isfinite(value.get<double>())) return std::nullopt;
    return value.get<double>();
}

Figure figure_of(const Json& json) {
    Figure figure;
    figure.unit = text_member(json, "unit");
    figure.method = text_member(json, "method");
    figure.reason = text_member(json, "reason");
    const auto pair = [&json](const char* key) -> std::optional<std::pair<double, double>> {
        const Json& list = member(json, key);
        if (!list.is_array() || list.size() != 2 || !list[0].is_number() || !list[1].is_number()) return std::nullopt;
        return std::pair(list[0].get<double>(), list[1].get<double>());
    };
    const std::string provenance = text_member(json, "provenance");
    if (std::find(provenances().begin(), provenances().end(), provenance) == provenances().end()) return figure;
    figure.value = number_member(json, "value");
    if (!figure.value || provenance == "unavailable") {
        figure.value.reset();
        return figure;
    }
    figure.provenance = provenance;
    figure.interval = pair("interval");
    figure.systematic_ratio = pair("systematic_ratio");
    return figure;
}

Json to_json(const Figure& figure) {
    Json json = {{"value", figure.value ? Json(*figure.value) : Json()},
                 {"unit", figure.unit},
                 {"provenance", figure.provenance},
                 {"method", figure.method},
                 {"interval", Json()}};
    if (figure.interval) json["interval"] = {figure.interval->first, figure.interval->second};
    if (figure.systematic_ratio)
        json["systematic_ratio"] = {figure.systematic_ratio->first, figure.systematic_ratio->second};
    if (!figure.value) json["reason"] = figure.reason;
    return json;
}

const std::vector<std::string>& provenances() {
    static const std::vector<std::string> names = {"measured", "derived", "modelled", "assumed", "unavailable"};
    return names;
}

std::string weakest(const std::string& a, const std::string& b) {
    const auto rank = [](const std::string& name) {
        return std::find(provenances().begin(), provenances().end(), name);
    };
    return std::max(rank(a), rank(b)) == rank(a) ? a : b;
}

std::string provenance_mark(const std::string& provenance) {
    if (provenance == "measured") return "●";
    if (provenance == "derived") return "◐";
    if (provenance == "modelled") return "≈";
    if (provenance == "assumed") return "◇";
    return "×";
}

std::string provenance_meaning(const std::string& provenance) {
    if (provenance == "measured") return "read from an instrument, a clock or a file";
    if (provenance == "derived") return "computed from measured figures alone";
    if (provenance == "modelled") return "a model applied to measured activity";
    if (provenance == "assumed") return "a constant that the user or a table supplied";
    return "not known; the reason is given, and never a zero";
}

std::string fixed(double value, int decimals) {
    std::array<char, 400> buffer;  // the longest double has 309 digits before the point
    const auto end =
        std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::fixed, decimals).ptr;
    std::string text(buffer.data(), end);
    // "-0.00" says nothing that "0.00" does not.
    if (text.front() == '-' && text.find_first_of("123456789") == std::string::npos) text.erase(0, 1);
    return text;
}

std::string exact(double value) {
    std::array<char, 64> buffer;
    const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value).ptr;
    return {buffer.data(), end};
}

std::string number(double value, int significant) {
    if (value == 0) return "0";
    const double magnitude = std::abs(value);
    if (magnitude >= 1e9 || magnitude < 1e-5) {
        std::array<char, 64> buffer;
        const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                       std::chars_format::scientific, significant - 1)
                             .ptr;
        return {buffer.data(), end};
    }
    int decimals = std::max(0, significant - 1 - static_cast<int>(std::floor(std::log10(magnitude))));
    // 9.996 is 10.0 with three digits, not 10.00.
    if (decimals > 0 && std::abs(std::strtod(fixed(value, decimals).c_str(), nullptr)) >=
                            std::pow(10.0, significant - decimals) * (1 - 1e-12))
        --decimals;
    return fixed(value, decimals);
}

std::string quantity(double value, const std::string& unit) {
    if (unit == "ratio") return fixed(100 * value, 2) + " %";
    if (unit == "s" && std::abs(value) >= 600) {
        if (std::abs(value) >= 7200) return fixed(value / 3600, 1) + " h";
        return fixed(value / 60, 1) + " min";
    }
    const auto& table = prefixes(unit);
    if (table.empty()) return number(value) + (unit.empty() || unit == "1" ? "" : " " + unit);
    const double magnitude = std::abs(value);
    if (magnitude == 0) {
        const std::string name = unit == "1" ? "" : unit == "1/s" ? "/s" : unit;
        return name.empty() ? "0" : "0 " + name;
    }
    // The prefix under which the rounded number is at least 1: 999.6 kB is 1.00 MB.
    const auto* chosen = &table.back();
    for (const auto& prefix : table)
        if (magnitude / prefix.scale >= 0.9995) {
            chosen = &prefix;
            break;
        }
    const double scaled = value / chosen->scale;
    const bool whole = (unit == "B" || unit == "1") && chosen->scale == 1 && scaled == std::floor(scaled);
    const std::string text = whole ? fixed(scaled, 0) : number(scaled);
    return *chosen->unit ? text + " " + chosen->unit : text;
}

std::string quantity(const Figure& figure) {
    return figure.value ? quantity(*figure.value, figure.unit) : "–";
}

std::string factor(double ratio) {
    const double magnitude = std::abs(ratio);
    return fixed(ratio, magnitude >= 9.95 ? 0 : magnitude >= 1.995 ? 1 : 2) + "×";
}

std::string plural(size_t count, const std::string& one, const std::string& many) {
    return std::to_string(count) + " " + (count == 1 ? one : many);
}

std::string compared(double value, double baseline, const Words& words) {
    if (!(value > 0 && baseline > 0)) return {};
    if (std::abs(value / baseline - 1) < 0.005) return "the same";
    return value < baseline ? factor(baseline / value) + " " + words.better
                            : factor(value / baseline) + " " + words.worse;
}

std::string escape_html(const std::string& text) {
    std::string out;
    out.reserve(text.size() + text.size() / 8);
    for (const char c : text) switch (c) {
            case '&':
                out += "&amp;";
                break;
            case '<':
                out += "&lt;";
                break;
            case '>':
                out += "&gt;";
                break;
            case '"':
                out += "&quot;";
                break;
            case '\'':
                out += "&#39;";
                break;
            default:
                if (static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t')
                    out += ' ';
                else
                    out += c;
        }
    return out;
}

std::string escape_markdown(const std::string& text) {
    std::string out;
    for (const char c : text) {
        if (c == '\n' || c == '\r' || c == '\t') {
            out += ' ';
            continue;
        }
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) continue;
        if (c == '<') {
            out += "&lt;";
            continue;
        }
        if (c == '&') {
            out += "&amp;";
            continue;
        }
        // Underscores inside words are no emphasis and are left readable.
        if (c == '|' || c == '`' || c == '*' || c == '[' || c == ']' || c == '\\') out += '\\';
        out += c;
    }
    return out;
}

std::string printable(const std::string& text) {
    std::string out;
    for (const char c : text) out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
    return out;
}

size_t columns(const std::string& utf8) {
    return static_cast<size_t>(
        std::count_if(utf8.begin(), utf8.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

std::string shortened(const std::string& utf8, size_t width) {
    if (columns(utf8) <= width) return utf8;
    std::string out;
    size_t taken = 0;
    for (const char c : utf8) {
        if ((static_cast<unsigned char>(c) & 0xC0) != 0x80 && ++taken >= width) break;
        out += c;
    }
    return out + "…";
}

}  // namespace coppice::eval::report
