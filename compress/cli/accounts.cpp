#include "accounts.h"

#include <cmath>
#include <cstdlib>

namespace coppice::cli {
namespace {

using eval::Figure;

constexpr double kSecondsPerYear = 365.25 * 86400;
constexpr double kMillion = 1e6;

eval::Grid grid_from(const Json& carbon) {
    eval::Grid grid;
    grid.zone = carbon.value("grid", std::string());
    grid.g_per_kwh = carbon.value("grid_g_per_kwh", 0.0);
    if (carbon.contains("year") && carbon["year"].is_number()) grid.year = carbon["year"].get<int>();
    grid.basis = carbon.value("basis", std::string());
    grid.attribution = carbon.value("attribution", std::string());
    return grid;
}

// The row that energy per inference was taken from: the first that ran.
const Json* timed_row(const Json& measurement) {
    if (!measurement.contains("latency") || !measurement["latency"].is_array()) return nullptr;
    for (const auto& row : measurement["latency"])
        if (row.contains("/p50_s/value"_json_pointer) && row.at("/p50_s/value"_json_pointer).is_number()) return &row;
    return nullptr;
}

}  // namespace

Figure figure_at(const Json& json, const char* pointer, const char* unit) {
    const Json::json_pointer place(pointer);
    return json.contains(place) ? Figure::from_json(json.at(place)) : Figure::unavailable(unit, "not recorded");
}

double number_option(const CommandLine& line, const std::string& name) {
    const auto text = line.text(name);
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (text.empty() || *end != '\0' || !(value >= 0) || !std::isfinite(value))
        line.fail("--" + name + " is \"" + text + "\", must be a number of at least 0");
    return value;
}

std::string energy_text(double joules) {
    return joules < 1e4 ? formatted("%.3g J", joules) : formatted("%.4g Wh", joules / 3600);
}

std::string carbon_text(double grams) {
    return grams < 1      ? formatted("%.3g mg", 1000 * grams)
           : grams < 1000 ? formatted("%.3g g", grams)
                          : formatted("%.4g kg", grams / 1000);
}

std::string figure_text(const Figure& figure, const std::function<std::string(double)>& text) {
    if (!figure.value) return "unavailable: " + figure.reason;
    const auto bounds = figure.bounds();
    return text(*figure.value) +
           (bounds && bounds->low < bounds->high ? " (" + text(bounds->low) + " to " + text(bounds->high) + ")" : "") +
           ", " + eval::name_of(figure.provenance);
}

void Accounts::add_options(CommandLine& line, bool job) {
    const auto text = [](const char* value = nullptr) {
        auto option = cxxopts::value<std::string>();
        return value ? option->default_value(value) : option;
    };
    line.add()("price", "of a kWh, for the cost", text(), "PRICE")(
        "carbon-price", "of a tonne of CO2e", text("0"), "PRICE")("currency", "of the prices", text("EUR"), "NAME")(
        "embodied-kg", "CO2e of making the machine; gives the SCI of ISO/IEC 21031", text(), "KG")(
        "lifetime-years", "of the machine, over which that is spread", text("4"), "YEARS")(
        "machine-share", "of the machine that was reserved, for its embodied carbon", text("1"), "X")(
        "green-algorithms", "also the estimate of the calculator of that name, from what was reserved")(
        "memory-gb", "reserved, for Green Algorithms (default: the machine's)", text(), "GB")(
        "psf", "pragmatic scaling factor of Green Algorithms: how often it was run", text("1"), "X");
    if (job)
        line.add()("units", "functional units that the command makes; gives the SCI per unit", text(), "N")(
            "unit", "their name", text("run"), "NAME");
}

Accounts::Accounts(const CommandLine& line, bool job) {
    const auto needs = [&](const char* name, const char* other) {
        if (line.given(name) && !line.given(other))
            line.fail("--" + std::string(name) + " says nothing without --" + other,
                      "Add --" + std::string(other) + ".");
    };
    needs("carbon-price", "price");
    needs("currency", "price");
    needs("lifetime-years", "embodied-kg");
    needs("machine-share", "embodied-kg");
    needs("memory-gb", "green-algorithms");
    needs("psf", "green-algorithms");
    if (line.given("price")) price_ = number_option(line, "price");
    carbon_price_ = number_option(line, "carbon-price");
    currency_ = line.text("currency");
    if (line.given("embodied-kg")) embodied_g_ = 1000 * number_option(line, "embodied-kg");
    lifetime_s_ = kSecondsPerYear * number_option(line, "lifetime-years");
    if (!(lifetime_s_ > 0)) line.fail("--lifetime-years must be above 0");
    machine_share_ = number_option(line, "machine-share");
    if (!(machine_share_ > 0 && machine_share_ <= 1)) line.fail("--machine-share must be in (0, 1]");
    green_algorithms_ = line.given("green-algorithms");
    if (line.given("memory-gb")) memory_gb_ = number_option(line, "memory-gb");
    psf_ = number_option(line, "psf");
    if (psf_ < 1) line.fail("--psf must be at least 1");
    if (!job) return;
    needs("unit", "units");
    if (line.given("units")) units_ = number_option(line, "units");
    if (units_ && !(*units_ > 0)) line.fail("--units must be above 0");
    unit_ = line.text("unit");
}

Json Accounts::of(Work work) const {
    if (units_) work.units = *units_, work.unit = unit_;
    Json accounts = Json::object();
    if (price_)
        accounts["cost"] =
            eval::cost(work.energy_j, work.pue, *price_, work.carbon_g, carbon_price_, currency_).to_json();
    if (embodied_g_ || units_) {
        auto embodied = Figure::unavailable("g", "the machine's embodied carbon is not declared");
        if (embodied_g_)
            embodied = work.seconds.available()
                           ? eval::embodied_share_g(*embodied_g_, *work.seconds.value, lifetime_s_, machine_share_)
                           : Figure::unavailable("g", work.seconds.reason);
        // A declared share that cannot be computed must not turn into one that is not declared.
        accounts["sci_g"] = (embodied_g_ && !embodied.available()
                                 ? embodied
                                 : eval::sci_g(work.energy_j, work.grid, work.pue, embodied, work.units, work.unit))
                                .to_json();
    }
    if (!green_algorithms_) return accounts;
    if (!work.seconds.available()) {
        accounts["green_algorithms"] = {{"energy_j", Figure::unavailable("J", work.seconds.reason).to_json()},
                                        {"carbon_g", Figure::unavailable("g", work.seconds.reason).to_json()}};
        return accounts;
    }
    eval::GreenAlgorithms job;
    job.hours = *work.seconds.value / 3600;
    job.cores = work.cores;
    job.watts_per_core = eval::cpu_power(work.environment.cpu).watts_per_core;
    job.core_usage = std::clamp(work.core_usage, 0.0, 1.0);
    job.memory_gb = memory_gb_.value_or(1e-9 * static_cast<double>(work.environment.memory_bytes));
    if (work.pue_given) job.pue = work.pue;
    job.psf = psf_;
    job.g_per_kwh = work.grid.g_per_kwh;
    accounts["green_algorithms"] = {{"energy_j", job.energy_j().to_json()}, {"carbon_g", job.carbon_g().to_json()}};
    return accounts;
}

Accounts::Work Accounts::inference(const Json& measurement) {
    Work work;
    work.energy_j = figure_at(measurement, "/figures/energy_per_inference_j", "J");
    work.carbon_g = figure_at(measurement, "/figures/carbon_per_inference_g", "g");
    if (measurement.contains("carbon") && measurement["carbon"].is_object()) {
        work.grid = grid_from(measurement["carbon"]);
        work.pue = measurement["carbon"].value("pue", 1.0);
        work.pue_given = work.pue != 1;
    }
    work.unit = "inference";
    work.environment.cpu = measurement.value("/environment/cpu"_json_pointer, std::string());
    if (measurement.contains("/environment/memory_bytes"_json_pointer) &&
        measurement.at("/environment/memory_bytes"_json_pointer).is_number())
        work.environment.memory_bytes = measurement.at("/environment/memory_bytes"_json_pointer).get<int64_t>();
    work.seconds = Figure::unavailable("s", "no run time was measured");
    if (const auto* row = timed_row(measurement)) {
        work.seconds = eval::quotient(Figure::measured(1, "1", "one inference"),
                                      figure_at(*row, "/throughput_per_s", "1/s"), "s", "1 / throughput");
        work.cores = row->value("threads", 1.0);
        work.core_usage = row->value("cpu_share", 1.0);
    }
    return work;
}

Json Accounts::of_measurement(const Json& measurement) const {
    Json accounts = of(inference(measurement));
    const auto million = [&](Json& figure, const char* unit) {
        const auto one = Figure::from_json(figure);
        figure = eval::product(one, Figure::measured(kMillion, "1", "inferences"), one.unit.empty() ? unit : one.unit,
                               one.method + "; for a million inferences")
                     .to_json();
    };
    if (accounts.contains("cost")) million(accounts["cost"], currency_.c_str());
    if (accounts.contains("green_algorithms")) {
        million(accounts["green_algorithms"]["energy_j"], "J");
        million(accounts["green_algorithms"]["carbon_g"], "g");
    }
    return accounts;
}

std::vector<std::pair<std::string, std::string>> Accounts::lines(const Json& accounts) const {
    std::vector<std::pair<std::string, std::string>> result;
    const auto figure = [](const Json& json) { return Figure::from_json(json); };
    if (accounts.contains("cost"))
        result.emplace_back("cost", figure_text(figure(accounts["cost"]),
                                                [&](double money) { return formatted("%.3g ", money) + currency_; }));
    if (accounts.contains("sci_g")) {
        const auto sci = figure(accounts["sci_g"]);
        result.emplace_back("SCI", figure_text(sci, carbon_text) + (sci.available() ? "; " + sci.method : ""));
    }
    if (accounts.contains("green_algorithms")) {
        const auto& green = accounts["green_algorithms"];
        const auto energy = figure(green["energy_j"]);
        result.emplace_back("Green Algorithms", figure_text(figure(green["carbon_g"]), carbon_text) + ", " +
                                                    figure_text(energy, energy_text) +
                                                    (energy.available() ? "; " + energy.method : ""));
    }
    return result;
}

}  // namespace coppice::cli
