// Carbon is energy x PUE x grid factor (the operational part, E x I, of the SCI of ISO/IEC 21031). No network, no guess
// of where the machine stands: without a zone the world's average is used and named.
#include <coppice/eval.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "metrics/grid_table.h"
#include "metrics/time_series.h"
#include "number_text.h"

namespace coppice::eval {
namespace {

constexpr double kJoulesPerKwh = 3.6e6;
constexpr double kGramsPerTonne = 1e6;

std::string shortest(double value) {
    return Json(value).dump();
}

// Mean of a series in which each value holds until the next one; the last holds for as long as the one before it did.
double mean_of(const TimeSeries& series, double from, double to) {
    double sum = 0;
    for (size_t i = 0; i < series.size(); ++i) {
        const double end = i + 1 < series.size() ? series[i + 1].first : std::max(to, series[i].first);
        const double seconds = std::min(to, end) - std::max(from, series[i].first);
        if (seconds > 0) sum += seconds * series[i].second;
    }
    return sum / (to - from);
}

double last_step(const TimeSeries& series) {
    return series.size() > 1 ? series.back().first - series[series.size() - 2].first : 3600;
}

bool is_file(const std::string& text) {
    return text.size() > 4 && text.compare(text.size() - 4, 4, ".csv") == 0;
}

Grid grid_of_file(const std::string& path) {
    Grid grid;
    grid.series = read_time_series(path, "g_per_kwh", "grid");
    grid.zone = std::filesystem::path(path).filename().string();
    grid.basis = "time series given by the user, " + std::to_string(grid.series.size()) + " values";
    const double from = grid.series.front().first;
    grid.g_per_kwh = mean_of(grid.series, from, grid.series.back().first + last_step(grid.series));
    return grid;
}

std::string method_text(const Grid& grid, double pue, double g_per_kwh, const std::string& detail) {
    return "energy x PUE " + shortest(pue) + " x " + shortest(g_per_kwh) + " g/kWh (" + grid.zone +
           (grid.year ? " " + std::to_string(*grid.year) : "") + detail + ")";
}

[[noreturn]] void refuse(const std::string& where, const std::string& what, double value, const std::string& allowed) {
    throw InvalidArgument(where, what + " is " + shortest(value) + ", must be " + allowed, "");
}

}  // namespace

std::vector<std::string> grid_zones() {
    std::vector<std::string> zones;
    for (const auto& row : grid_rows()) zones.emplace_back(row.zone);
    return zones;
}

Grid grid_of(const std::string& text) {
    if (is_file(text)) return grid_of_file(text);
    Grid grid;
    grid.attribution = kGridAttribution;
    char* end = nullptr;
    const double number = std::strtod(text.c_str(), &end);
    if (!text.empty() && *end == '\0' && std::isfinite(number)) {
        if (number < 0)
            throw InvalidArgument("grid", "is " + text + " g/kWh, must not be negative", "The world's average is 458.");
        grid.zone = "custom";
        grid.g_per_kwh = number;
        grid.basis = "given by the user";
        return grid;
    }
    std::string zone = text;
    for (auto& c : zone) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    for (const auto& row : grid_rows()) {
        if (zone != row.zone) continue;
        grid.zone = row.zone;
        grid.g_per_kwh = row.g_per_kwh;
        grid.year = row.year;
        grid.basis = kGridBasis;
        return grid;
    }
    throw_unknown("grid", "zone", zone, grid_zones());
}

Json Grid::to_json(double pue) const {
    Json json = {{"grid", zone},   {"grid_g_per_kwh", g_per_kwh}, {"year", year ? Json(*year) : Json(nullptr)},
                 {"basis", basis}, {"attribution", attribution},  {"pue", pue}};
    if (!series.empty()) json["series"] = {{"from", series.front().first}, {"to", series.back().first}};
    return json;
}

double Grid::during(double from, double to) const {
    if (series.empty()) return g_per_kwh;
    const double end = series.back().first + last_step(series);
    if (from < series.front().first || to > end)
        throw InvalidArgument("grid",
                              zone + " reaches from " + std::to_string(static_cast<int64_t>(series.front().first)) +
                                  " to " + std::to_string(static_cast<int64_t>(end)) + ", asked for is " +
                                  std::to_string(static_cast<int64_t>(from)) + " to " +
                                  std::to_string(static_cast<int64_t>(to)) + " (seconds since 1970)",
                              "Give a series that covers the run, or a number.");
    if (!(to > from)) to = from + 1e-6;
    return mean_of(series, from, to);
}

Figure carbon_g(const Figure& energy_j, const Grid& grid, double pue) {
    const auto method = method_text(grid, pue, grid.g_per_kwh, grid.series.empty() ? "" : ", mean over the series");
    auto factor = Figure::assumed(pue * grid.g_per_kwh / kJoulesPerKwh, "g/J", method);
    if (!grid.series.empty() && grid.g_per_kwh > 0) {
        double low = grid.series.front().second, high = low;
        for (const auto& [time, value] : grid.series) low = std::min(low, value), high = std::max(high, value);
        factor.systematic_ratio = Interval{low / grid.g_per_kwh, high / grid.g_per_kwh};
    }
    return product(energy_j, factor, "g", method);
}

Figure carbon_g(const Figure& energy_j, const Grid& grid, double pue, double from, double to) {
    if (grid.series.empty()) return carbon_g(energy_j, grid, pue);
    try {
        const double intensity = grid.during(from, to);
        const auto method = method_text(grid, pue, intensity, ", mean while it ran");
        return product(energy_j, Figure::assumed(pue * intensity / kJoulesPerKwh, "g/J", method), "g", method);
    } catch (const InvalidArgument& error) {
        return Figure::unavailable("g", error.problem());
    }
}

std::vector<std::pair<Grid, Figure>> region_sweep(const Figure& energy_j, double pue) {
    std::vector<std::pair<Grid, Figure>> rows;
    for (const auto& zone : grid_zones()) {
        auto grid = grid_of(zone);
        auto carbon = carbon_g(energy_j, grid, pue);
        rows.emplace_back(std::move(grid), std::move(carbon));
    }
    std::stable_sort(rows.begin(), rows.end(),
                     [](const auto& a, const auto& b) { return a.first.g_per_kwh < b.first.g_per_kwh; });
    return rows;
}

Figure embodied_share_g(double total_g, double seconds, double lifetime_s, double resource_ratio) {
    if (!(total_g >= 0)) refuse("embodied carbon", "the machine's carbon", total_g, "0 g or more");
    if (!(seconds >= 0)) refuse("embodied carbon", "the time", seconds, "0 s or more");
    if (!(lifetime_s > 0)) refuse("embodied carbon", "the lifetime", lifetime_s, "above 0 s");
    if (!(resource_ratio > 0 && resource_ratio <= 1))
        refuse("embodied carbon", "the share of the machine", resource_ratio, "in (0, 1]");
    return Figure::assumed(total_g * seconds / lifetime_s * resource_ratio, "g",
                           shortest(total_g) + " g of the machine x " + shortest(seconds) + " s of " +
                               shortest(lifetime_s) + " s x share " + shortest(resource_ratio));
}

Figure sci_g(const Figure& energy_j, const Grid& grid, double pue, const Figure& embodied_g, double units,
             const std::string& unit_name) {
    if (!(units > 0)) refuse("SCI", "the number of functional units", units, "above 0");
    const auto operational = carbon_g(energy_j, grid, pue);
    const std::string method = std::string("SCI of ISO/IEC 21031: (E x I + M) / R, R = ") + shortest(units) + " " +
                               unit_name + (embodied_g.available() ? "" : "; M not declared") + "; " +
                               operational.method;
    const auto all = embodied_g.available() ? sum(operational, embodied_g, method) : operational;
    return quotient(all, Figure::assumed(units, "1", unit_name), "g", method);
}

Figure GreenAlgorithms::energy_j() const {
    const char* where = "Green Algorithms";
    for (const auto& [name, value] : std::vector<std::pair<const char*, double>>{{"hours", hours},
                                                                                 {"cores", cores},
                                                                                 {"watts_per_core", watts_per_core},
                                                                                 {"gpus", gpus},
                                                                                 {"watts_per_gpu", watts_per_gpu},
                                                                                 {"memory_gb", memory_gb},
                                                                                 {"g_per_kwh", g_per_kwh}})
        if (!(value >= 0)) refuse(where, name, value, "0 or more");
    for (const auto& [name, value] :
         std::vector<std::pair<const char*, double>>{{"core_usage", core_usage}, {"gpu_usage", gpu_usage}})
        if (!(value >= 0 && value <= 1)) refuse(where, name, value, "in [0, 1]");
    for (const auto& [name, value] : std::vector<std::pair<const char*, double>>{{"pue", pue}, {"psf", psf}})
        if (!(value >= 1)) refuse(where, name, value, "1 or more");
    const double watts =
        cores * watts_per_core * core_usage + gpus * watts_per_gpu * gpu_usage + memory_gb * kWattsPerGb;
    return Figure::assumed(3600 * hours * watts * pue * psf, "J",
                           "Green Algorithms: " + number_text(hours) + " h x (" + shortest(cores) + " cores x " +
                               shortest(watts_per_core) + " W x " + number_text(core_usage) + " + " + shortest(gpus) +
                               " GPUs x " + shortest(watts_per_gpu) + " W x " + number_text(gpu_usage) + " + " +
                               number_text(memory_gb) + " GB x " + shortest(kWattsPerGb) + " W) x PUE " +
                               shortest(pue) + " x PSF " + shortest(psf));
}

Figure GreenAlgorithms::carbon_g() const {
    const auto energy = energy_j();
    return product(energy, Figure::assumed(g_per_kwh / kJoulesPerKwh, "g/J", "grid"), "g",
                   energy.method + " x " + shortest(g_per_kwh) + " g/kWh");
}

Figure payback(const Figure& spent, const Figure& baseline, const Figure& candidate,
               const std::optional<Figure>& ratio) {
    for (const auto* figure : {&spent, &baseline, &candidate})
        if (!figure->available()) return Figure::unavailable("1", figure->reason);
    if (baseline.unit != spent.unit || candidate.unit != spent.unit)
        throw InternalError("eval::payback", "divides " + spent.unit + " by " + candidate.unit,
                            "Report this as a bug.");
    const bool paired = ratio && ratio->available();
    const double saving = paired ? *baseline.value * (1 - *ratio->value) : *baseline.value - *candidate.value;
    if (saving <= 0)
        return Figure::unavailable("1", "an inference of the candidate takes no less than one of the baseline");
    const auto& other = paired ? *ratio : candidate;
    std::string method = std::string("spent / ") +
                         (paired ? "(baseline x (1 - paired ratio))" : "(baseline - candidate)") + ", " + spent.unit;
    std::optional<Interval> interval;
    if (baseline.interval && other.interval) {
        // How far the saving moves with one unit of each term.
        const double with_baseline = paired ? 1 - *ratio->value : 1, with_other = paired ? *baseline.value : 1;
        const auto half = [&](double baseline_width, double other_width) {
            return std::hypot(with_baseline * baseline_width, with_other * other_width);
        };
        const double low = saving - half(*baseline.value - baseline.interval->low, other.interval->high - *other.value);
        const double high =
            saving + half(baseline.interval->high - *baseline.value, *other.value - other.interval->low);
        const auto of_spent = spent.interval.value_or(Interval{*spent.value, *spent.value});
        if (low > 0)
            interval = Interval{std::floor(std::max(0.0, of_spent.low) / high), std::ceil(of_spent.high / low)};
        else
            method += "; the saving's interval reaches 0, so it may never be earned back";
    }
    auto figure = Figure::derived(std::ceil(*spent.value / saving), "1", method, interval);
    // One source measured all three: what is systematic in it cancels. What is weaker stays weaker.
    figure.provenance = combined(combined(spent.provenance, baseline.provenance), candidate.provenance);
    if (paired) figure.provenance = combined(figure.provenance, ratio->provenance);
    return figure;
}

Figure payback_days(const Figure& inferences, double inferences_per_day) {
    if (!(inferences_per_day > 0)) refuse("payback", "the load", inferences_per_day, "above 0 inferences per day");
    return quotient(inferences, Figure::assumed(inferences_per_day, "1", "load"), "d",
                    inferences.method + "; at " + shortest(inferences_per_day) + " inferences a day");
}

Figure cost(const Figure& energy_j, double pue, double price_per_kwh, const Figure& carbon_g, double price_per_tonne,
            const std::string& currency) {
    if (!(price_per_kwh >= 0)) refuse("cost", "the price of a kWh", price_per_kwh, "0 or more");
    if (!(price_per_tonne >= 0)) refuse("cost", "the price of a tonne", price_per_tonne, "0 or more");
    const std::string method = "energy x PUE " + shortest(pue) + " x " + shortest(price_per_kwh) + " " + currency +
                               "/kWh + carbon x " + shortest(price_per_tonne) + " " + currency + "/t";
    const auto energy = product(energy_j, Figure::assumed(pue * price_per_kwh / kJoulesPerKwh, currency + "/J", method),
                                currency, method);
    if (price_per_tonne == 0) return energy;
    const auto carbon =
        product(carbon_g, Figure::assumed(price_per_tonne / kGramsPerTonne, currency + "/g", method), currency, method);
    return sum(energy, carbon, method);
}

}  // namespace coppice::eval
