#include <coppice/eval.h>

#include <array>
#include <cmath>

namespace coppice::eval {
namespace {

constexpr std::array<const char*, 5> kNames = {"measured", "derived", "modelled", "assumed", "unavailable"};

Figure make(double value, std::string unit, Provenance provenance, std::string method,
            std::optional<Interval> interval) {
    if (!std::isfinite(value))  // a ratio by zero or an overflow is no figure
        return Figure::unavailable(std::move(unit), "the result is not a finite number (" + method + ")");
    Figure figure;
    figure.value = value;
    figure.unit = std::move(unit);
    figure.provenance = provenance;
    figure.method = std::move(method);
    figure.interval = interval;
    return figure;
}

Json to_json(const std::optional<Interval>& interval) {
    return interval ? Json::array({interval->low, interval->high}) : Json(nullptr);
}

std::optional<Interval> interval_from(const Json& json, const char* name) {
    if (!json.contains(name) || json[name].is_null()) return std::nullopt;
    const auto& pair = json[name];
    if (!pair.is_array() || pair.size() != 2 || !pair[0].is_number() || !pair[1].is_number())
        throw IoError("figure", std::string(name) + " is " + pair.dump() + ", must be two numbers", "");
    return Interval{pair[0].get<double>(), pair[1].get<double>()};
}

// Sides of an interval as relative errors in the log domain, (log v - log low, log high - log v); 0 for exact figures.
std::pair<double, double> log_sides(const Figure& figure) {
    if (!figure.interval) return {0, 0};
    const double value = *figure.value;
    // A bound at or below zero has no logarithm: the relative error itself is the closest that stays finite.
    const double low =
        figure.interval->low > 0 ? std::log(value / figure.interval->low) : (value - figure.interval->low) / value;
    return {low, std::log(figure.interval->high / value)};
}

std::optional<Interval> combined_interval(const Figure& a, const Figure& b, bool divide, double value) {
    if (!a.interval && !b.interval) return std::nullopt;
    if (*a.value <= 0 || *b.value <= 0) {
        // Zero or negative: no relative error. With one side exact the other's interval is only scaled.
        if (a.interval && !b.interval && !divide)
            return Interval{a.interval->low * *b.value, a.interval->high * *b.value};
        if (b.interval && !a.interval && !divide)
            return Interval{b.interval->low * *a.value, b.interval->high * *a.value};
        if (a.interval && !b.interval && *b.value > 0)
            return Interval{a.interval->low / *b.value, a.interval->high / *b.value};
        return std::nullopt;
    }
    const auto [a_low, a_high] = log_sides(a);
    auto [b_low, b_high] = log_sides(b);
    if (divide) std::swap(b_low, b_high);
    return Interval{value * std::exp(-std::hypot(a_low, b_low)), value * std::exp(std::hypot(a_high, b_high))};
}

std::optional<Interval> combined_ratio(const Figure& a, const Figure& b, bool divide) {
    if (!a.systematic_ratio && !b.systematic_ratio) return std::nullopt;
    const auto of_a = a.systematic_ratio.value_or(Interval{1, 1});
    const auto of_b = b.systematic_ratio.value_or(Interval{1, 1});
    return divide ? Interval{of_a.low / of_b.high, of_a.high / of_b.low}
                  : Interval{of_a.low * of_b.low, of_a.high * of_b.high};
}

}  // namespace

const char* name_of(Provenance provenance) {
    return kNames[static_cast<size_t>(provenance)];
}

Provenance combined(Provenance a, Provenance b) {
    return std::max({a, b, Provenance::kDerived});
}

Figure Figure::measured(double value, std::string unit, std::string method, std::optional<Interval> interval) {
    return make(value, std::move(unit), Provenance::kMeasured, std::move(method), interval);
}

Figure Figure::derived(double value, std::string unit, std::string method, std::optional<Interval> interval) {
    return make(value, std::move(unit), Provenance::kDerived, std::move(method), interval);
}

Figure Figure::modelled(double value, std::string unit, std::string method, std::optional<Interval> interval,
                        std::optional<Interval> systematic_ratio) {
    auto figure = make(value, std::move(unit), Provenance::kModelled, std::move(method), interval);
    if (figure.available()) figure.systematic_ratio = systematic_ratio;
    return figure;
}

Figure Figure::assumed(double value, std::string unit, std::string method) {
    return make(value, std::move(unit), Provenance::kAssumed, std::move(method), std::nullopt);
}

Figure Figure::unavailable(std::string unit, std::string reason) {
    Figure figure;
    figure.unit = std::move(unit);
    figure.reason = std::move(reason);
    return figure;
}

std::optional<Interval> Figure::bounds() const {
    if (!value || (!interval && !systematic_ratio)) return std::nullopt;
    auto result = interval.value_or(Interval{*value, *value});
    if (systematic_ratio) {
        result.low *= systematic_ratio->low;
        result.high *= systematic_ratio->high;
    }
    return result;
}

Json Figure::to_json() const {
    Json json = {{"value", value ? Json(*value) : Json(nullptr)},
                 {"unit", unit},
                 {"provenance", name_of(provenance)},
                 {"method", method},
                 {"interval", eval::to_json(interval)}};
    if (value && *value == std::floor(*value) && std::abs(*value) < 9.0e15 && (unit == "1" || unit == "B"))
        json["value"] = static_cast<int64_t>(*value);  // counts are written as counts
    if (!value) json["reason"] = reason;
    if (systematic_ratio) json["systematic_ratio"] = eval::to_json(systematic_ratio);
    return json;
}

Figure Figure::from_json(const Json& json) {
    if (!json.is_object() || !json.contains("value") || !json.contains("provenance") || !json["provenance"].is_string())
        throw IoError("figure", json.dump() + " has no value or no provenance", "");
    Figure figure;
    const auto& value = json["value"];
    if (!value.is_null() && !value.is_number())
        throw IoError("figure", "value is " + value.dump() + ", must be a number or null", "");
    if (value.is_number()) figure.value = value.get<double>();
    const auto name = json["provenance"].get<std::string>();
    size_t index = 0;
    while (index < kNames.size() && name != kNames[index]) ++index;
    if (index == kNames.size()) throw IoError("figure", "unknown provenance \"" + name + "\"", "");
    figure.provenance = static_cast<Provenance>(index);
    if (figure.available() == (figure.provenance == Provenance::kUnavailable))
        throw IoError("figure", "value " + value.dump() + " cannot be " + name,
                      "A value is null exactly when it is unavailable.");
    figure.unit = json.value("unit", "1");
    figure.method = json.value("method", "");
    figure.reason = json.value("reason", "");
    figure.interval = interval_from(json, "interval");
    figure.systematic_ratio = interval_from(json, "systematic_ratio");
    return figure;
}

Figure product(const Figure& a, const Figure& b, const std::string& unit, const std::string& method) {
    if (!a.available()) return Figure::unavailable(unit, a.reason);
    if (!b.available()) return Figure::unavailable(unit, b.reason);
    const double value = *a.value * *b.value;
    auto figure = make(value, unit, combined(a.provenance, b.provenance), method,
                       combined_interval(a, b, /*divide=*/false, value));
    figure.systematic_ratio = combined_ratio(a, b, /*divide=*/false);
    return figure;
}

Figure quotient(const Figure& a, const Figure& b, const std::string& unit, const std::string& method) {
    if (!a.available()) return Figure::unavailable(unit, a.reason);
    if (!b.available()) return Figure::unavailable(unit, b.reason);
    if (*b.value == 0) return Figure::unavailable(unit, "the divisor is 0 (" + method + ")");
    const double value = *a.value / *b.value;
    auto figure = make(value, unit, combined(a.provenance, b.provenance), method,
                       combined_interval(a, b, /*divide=*/true, value));
    figure.systematic_ratio = combined_ratio(a, b, /*divide=*/true);
    return figure;
}

Figure sum(const Figure& a, const Figure& b, const std::string& method) {
    if (a.unit != b.unit) throw InternalError("eval::sum", "adds " + a.unit + " to " + b.unit, "Report this as a bug.");
    if (!a.available()) return Figure::unavailable(a.unit, a.reason);
    if (!b.available()) return Figure::unavailable(b.unit, b.reason);
    const double value = *a.value + *b.value;
    std::optional<Interval> interval;
    if (a.interval || b.interval) {
        const auto of_a = a.interval.value_or(Interval{*a.value, *a.value});
        const auto of_b = b.interval.value_or(Interval{*b.value, *b.value});
        interval = Interval{value - std::hypot(*a.value - of_a.low, *b.value - of_b.low),
                            value + std::hypot(of_a.high - *a.value, of_b.high - *b.value)};
    }
    auto figure = make(value, a.unit, combined(a.provenance, b.provenance), method, interval);
    if ((a.systematic_ratio || b.systematic_ratio) && value > 0) {
        const auto of_a = a.systematic_ratio.value_or(Interval{1, 1});
        const auto of_b = b.systematic_ratio.value_or(Interval{1, 1});
        figure.systematic_ratio = Interval{(*a.value * of_a.low + *b.value * of_b.low) / value,
                                           (*a.value * of_a.high + *b.value * of_b.high) / value};
    }
    return figure;
}

}  // namespace coppice::eval
