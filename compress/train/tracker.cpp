// What a training costs, epoch by epoch. Carbontracker (arXiv 2007.03051) predicts the total as epochs x the mean of
// the first ones; here the prediction has an interval from their scatter, and is judged when the total is known.
#include "train/tracker.h"

#include <coppice/error.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace coppice {
namespace {

using Value = std::optional<double>;

struct Measure {
    const char *name, *budget_name, *unit;
    double TrainOptions::*budget;
    Value (*of)(const EpochInfo&);
};

const Measure kMeasures[] = {
    {"seconds", "max_time_s", "s", &TrainOptions::max_time_s,
     [](const EpochInfo& info) -> Value { return info.seconds + info.evaluate_seconds; }},
    {"energy_j", "max_energy_j", "J", &TrainOptions::max_energy_j, [](const EpochInfo& info) { return info.energy_j; }},
    {"carbon_g", "max_carbon_g", "g CO2e", &TrainOptions::max_carbon_g,
     [](const EpochInfo& info) { return info.carbon_g; }},
};

std::string short_text(double value, const char* unit) {
    char text[48];
    std::snprintf(text, sizeof text, "%.3g %s", value, unit);
    return text;
}

// One value per epoch; nothing where it is not known of all.
std::optional<std::vector<double>> series(const std::vector<EpochInfo>& epochs, const Measure& measure) {
    std::vector<double> values;
    for (const auto& info : epochs) {
        const auto value = measure.of(info);
        if (!value) return std::nullopt;
        values.push_back(*value);
    }
    return values;
}

double sum_of(const std::vector<double>& values) {
    double sum = 0;
    for (const double value : values) sum += value;
    return sum;
}

Json to_json(const Prediction& prediction, const Measure& measure) {
    return {{"value", prediction.total},
            {"unit", std::string(measure.unit).substr(0, 1)},
            {"provenance", "modelled"},
            {"method", "mean of the first epochs x epochs; interval from their scatter"},
            {"interval",
             prediction.interval ? Json{prediction.interval->first, prediction.interval->second} : Json(nullptr)}};
}

Value less(const Value& later, const Value& earlier) {
    return later && earlier ? Value(*later - *earlier) : std::nullopt;
}

// 0.975 quantile of Student's distribution, to 0.2 %.
double student_t(size_t degrees) {
    static constexpr double kFew[] = {12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281};
    if (degrees <= 10) return kFew[degrees - 1];
    // Expansion in 1 / degrees around the normal quantile (Abramowitz and Stegun 26.7.5), its first three terms.
    const double z = 1.959964, n = static_cast<double>(degrees);
    return z + (std::pow(z, 3) + z) / (4 * n) + (5 * std::pow(z, 5) + 16 * std::pow(z, 3) + 3 * z) / (96 * n * n);
}

}  // namespace

Prediction predict_total(const std::vector<double>& values, int64_t epochs) {
    const auto count = static_cast<double>(values.size());
    const double spent = sum_of(values), mean = spent / count;
    const double left = static_cast<double>(epochs) - count;
    Prediction prediction;
    prediction.total = spent + left * mean;
    if (values.size() < 2) return prediction;
    double squares = 0;
    for (const double value : values) squares += (value - mean) * (value - mean);
    const double deviation = std::sqrt(squares / (count - 1));
    const double half = student_t(values.size() - 1) * deviation * std::sqrt(left + left * left / count);
    prediction.interval = {std::max(spent, prediction.total - half), prediction.total + half};
    return prediction;
}

Tracker::Tracker(const TrainOptions& options, std::function<Spent()> spent, const std::vector<EpochInfo>& earlier)
    : options_(options), spent_(std::move(spent)), start_(std::chrono::steady_clock::now()) {
    for (const auto& info : earlier) {
        earlier_s_ += info.seconds + info.evaluate_seconds;
        earlier_j_ += info.energy_j.value_or(0);
        earlier_g_ += info.carbon_g.value_or(0);
    }
    if (spent_) first_ = last_epoch_ = spent_();
    require(first_);
}

void Tracker::require(const Spent& now) const {
    const auto refuse = [&](const std::string& name) {
        throw MeasurementError(
            "train",
            name + " is set, and " +
                (spent_ ? "it is not known what was spent: " + now.reason : std::string("nothing tells what is spent")),
            "Choose a source that coppice doctor calls usable, or set max_time_s instead.");
    };
    if (options_.max_energy_j > 0 && !now.energy_j) refuse("max_energy_j");
    if (options_.max_carbon_g > 0 && !now.carbon_g) refuse("max_carbon_g");
}

std::string Tracker::look() {
    const double seconds =
        earlier_s_ + std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    if (options_.max_time_s > 0 && seconds >= options_.max_time_s) return "max_time_s";
    if (!spent_) return {};
    const auto now = spent_();
    require(now);
    const auto energy = less(now.energy_j, first_.energy_j), carbon = less(now.carbon_g, first_.carbon_g);
    text_.clear();
    if (energy) text_ = short_text(earlier_j_ + *energy, "J");
    if (carbon) {
        const double grams = earlier_g_ + *carbon;
        text_ += (text_.empty() ? "" : ", ") + (grams < 1 ? short_text(1000 * grams, "mg") : short_text(grams, "g")) +
                 " CO2e";
    }
    if (options_.max_energy_j > 0 && earlier_j_ + *energy >= options_.max_energy_j) return "max_energy_j";
    if (options_.max_carbon_g > 0 && earlier_g_ + *carbon >= options_.max_carbon_g) return "max_carbon_g";
    return {};
}

void Tracker::end_epoch(EpochInfo& info) {
    if (!spent_) return;
    const auto now = spent_();
    info.energy_j = less(now.energy_j, last_epoch_.energy_j);
    info.carbon_g = less(now.carbon_g, last_epoch_.carbon_g);
    info.provenance = now.provenance;
    last_epoch_ = now;
}

Json Tracker::prediction(const std::vector<EpochInfo>& epochs) const {
    const auto done = static_cast<int64_t>(epochs.size());
    if (done < 2 || done >= options_.epochs) return nullptr;
    Json json = {{"event", "prediction"}, {"after_epochs", done}, {"epochs", options_.epochs}};
    for (const auto& measure : kMeasures)
        if (const auto values = series(epochs, measure))
            json[measure.name] = to_json(predict_total(*values, options_.epochs), measure);
    return json;
}

Json Tracker::total(const std::vector<EpochInfo>& epochs, const std::string& stopped_by) const {
    Json json = {{"event", "total"},
                 {"epochs", epochs.size()},
                 {"stopped_by", stopped_by.empty() ? Json(nullptr) : Json(stopped_by)}};
    const bool all = static_cast<int64_t>(epochs.size()) == options_.epochs && stopped_by.empty();
    Json predicted = {{"after_epochs", kFirstEpochs}};
    for (const auto& measure : kMeasures) {
        const auto values = series(epochs, measure);
        json[measure.name] = values ? Json(sum_of(*values)) : Json(nullptr);
        if (!values || !all || values->size() <= kFirstEpochs) continue;
        const auto early = predict_total({values->begin(), values->begin() + kFirstEpochs}, options_.epochs);
        const double spent = sum_of(*values);
        predicted[measure.name] = to_json(early, measure);
        predicted[measure.name]["error_ratio"] = spent > 0 ? Json(early.total / spent - 1) : Json(nullptr);
    }
    json["predicted"] = predicted.size() > 1 ? predicted : Json(nullptr);
    return json;
}

std::string Tracker::prediction_text(const std::vector<EpochInfo>& epochs) const {
    if (epochs.size() != kFirstEpochs || options_.epochs <= static_cast<int64_t>(kFirstEpochs)) return {};
    std::string text = "prediction after " + std::to_string(epochs.size()) + " of " + std::to_string(options_.epochs) +
                       " epochs: all take";
    const char* separator = " ";
    for (const auto& measure : kMeasures) {
        const auto values = series(epochs, measure);
        if (!values) continue;
        const auto prediction = predict_total(*values, options_.epochs);
        text += separator + short_text(prediction.total, measure.unit) + " (" +
                short_text(prediction.interval->first, "to ") + short_text(prediction.interval->second, measure.unit) +
                ")";
        separator = ", ";
    }
    return text;
}

std::string Tracker::shortage_text(const std::vector<EpochInfo>& epochs) const {
    if (epochs.size() != kFirstEpochs) return {};
    std::string text;
    for (const auto& measure : kMeasures) {
        const double budget = options_.*measure.budget;
        const auto values = series(epochs, measure);
        if (!(budget > 0) || !values || predict_total(*values, options_.epochs).total <= budget) continue;
        const double spent = sum_of(*values), mean = spent / static_cast<double>(values->size());
        const double last = std::ceil(static_cast<double>(values->size()) + std::max(0.0, budget - spent) / mean);
        text += (text.empty() ? "" : "; ") + std::string(measure.budget_name) + " will be used up in epoch " +
                std::to_string(static_cast<int64_t>(last)) + " of " + std::to_string(options_.epochs);
    }
    return text;
}

}  // namespace coppice
