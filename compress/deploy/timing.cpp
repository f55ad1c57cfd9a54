#include "deploy/timing.h"

#include <chrono>
#include <cmath>
#include <random>

#include <coppice/error.h>

namespace coppice {
namespace {

double seconds_of(const std::function<void()>& call) {
    const auto start = std::chrono::steady_clock::now();
    call();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Interval median_interval(std::vector<double> values) {
    if (values.size() < 6)
        throw InternalError("median_interval", std::to_string(values.size()) + " values have no 95 % interval", "");
    std::sort(values.begin(), values.end());
    const size_t n = values.size();
    // The largest k for which fewer than k values below the true median has a chance of at most 2.5 %: Binomial(n,
    // 1/2).
    double chance = std::pow(0.5, double(n)), sum = 0;
    size_t k = 0;
    while (sum + chance <= 0.025) {
        sum += chance;
        chance *= double(n - k) / double(k + 1);
        ++k;
    }
    const double median = n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
    return {median, values[k - 1], values[n - k]};
}

Choice choose_fastest(const RoundTimes& times, double least_gain) {
    const auto log_ratio = [&](size_t a, size_t b) {
        const size_t sets = times[a].size(), rounds = times[a][0].size();
        std::vector<double> logs(rounds, 0);
        for (size_t set = 0; set < sets; ++set)
            for (size_t round = 0; round < rounds; ++round)
                logs[round] += std::log(times[a][set][round] / times[b][set][round]) / double(sets);
        return median_interval(logs);
    };
    Choice choice;
    choice.reasons.resize(times.size());
    choice.rivals.resize(times.size());
    for (size_t model = 0; model < times.size(); ++model) {
        const auto log = log_ratio(model, 0);
        choice.ratio.push_back({std::exp(log.median), std::exp(log.low), std::exp(log.high)});
        if (model == 0) continue;
        const auto against_best = log_ratio(model, choice.best);
        const bool wins = against_best.high < std::log(1 - least_gain);
        const size_t loser = wins ? choice.best : model;
        choice.reasons[loser] = wins || against_best.low > 0 ? "slower than" : "not faster beyond noise than";
        choice.rivals[loser] = wins ? model : choice.best;
        if (wins) choice.best = model;
    }
    return choice;
}

double seconds_of_call(torch::jit::Module& model, const Inputs& inputs) {
    torch::NoGradGuard no_grad;
    model.forward(inputs);
    return seconds_of([&] { model.forward(inputs); });
}

RoundTimes interleaved_times(std::vector<torch::jit::Module>& models, const std::vector<Inputs>& input_sets,
                             double seconds, uint64_t seed, const std::function<bool()>& interrupted) {
    torch::NoGradGuard no_grad;
    RoundTimes times(models.size(), std::vector<std::vector<double>>(input_sets.size()));
    std::vector<int> calls(input_sets.size(), 1);
    for (size_t set = 0; set < input_sets.size(); ++set) {
        // The executor profiles its first two runs and compiles in the third.
        for (auto& model : models)
            for (int run = 0; run < 3; ++run) model.forward(input_sets[set]);
        const double once = seconds_of([&] { models[0].forward(input_sets[set]); });
        calls[set] = static_cast<int>(std::clamp(5e-3 / std::max(once, 1e-7), 1.0, 1000.0));
    }
    std::vector<std::pair<size_t, size_t>> samples;
    for (size_t model = 0; model < models.size(); ++model)
        for (size_t set = 0; set < input_sets.size(); ++set) samples.emplace_back(model, set);
    std::mt19937_64 random(seed);
    double spent = 0;
    for (int round = 0; round < 101 && (round < 6 || spent < seconds) && !interrupted(); ++round) {
        std::shuffle(samples.begin(), samples.end(), random);
        for (const auto& [model, set] : samples) {
            const double taken = seconds_of([&, model = model, set = set] {
                for (int call = 0; call < calls[set]; ++call) models[model].forward(input_sets[set]);
            });
            times[model][set].push_back(taken / calls[set]);
            spent += taken;
        }
    }
    return times;
}

}  // namespace coppice
