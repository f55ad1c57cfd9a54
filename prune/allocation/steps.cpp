// The widths at which this machine's kernels step, per group.
//
// A step s (4, 8, 16 or 32 indices of the layer) is fine enough when widths that are multiples of s, but not of the
// largest step S, are no slower than the straight line between the two multiples of S around them. A kernel that pads
// to 16 lanes lies on the line at multiples of 16 and above it at others. The group's smallest step for which it and
// all larger ones lie on the line is taken. Measured are all operators that the group's channels pass through, near
// three quarters of its width, the other groups as they are.
#include <numeric>

#include "allocation/allocation.h"

namespace coppice::prune {

std::vector<int64_t> measured_steps(const Groups& groups, const LatencyModel& latency) {
    // Above the line by less than this share of the time is noise, or not worth a coarser width.
    constexpr double kTolerance = 0.04;
    struct Sample {
        int64_t step, width;
        size_t question;
    };
    struct Plan {
        std::vector<int64_t> steps;  // candidates in channels, rising
        int64_t low = 0, high = 0;
        size_t at_low = 0, at_high = 0;
        std::vector<Sample> samples;
    };
    std::vector<int64_t> all;
    for (const auto& group : groups.all()) all.push_back(group.channels);
    std::vector<LatencyModel::Question> questions;
    const auto ask = [&](size_t g, int64_t width) {
        questions.push_back({g, all});
        questions.back().kept[g] = width;
        return questions.size() - 1;
    };
    std::vector<Plan> plans;
    for (size_t g = 0; g < groups.all().size(); ++g) {
        const auto& group = groups.all()[g];
        Plan plan;
        std::set<int64_t> steps;
        for (const int64_t indices : {4, 8, 16, 32}) {
            const int64_t step = indices / std::gcd(indices, group.multiplicity);
            if (2 * step <= group.channels) steps.insert(step);
        }
        plan.steps.assign(steps.begin(), steps.end());
        if (plan.steps.size() > 1) {
            const int64_t largest = plan.steps.back();
            plan.high = std::max(2 * largest, (group.channels * 3 / 4 + largest / 2) / largest * largest);
            plan.low = plan.high - largest;
            plan.at_low = ask(g, plan.low);
            plan.at_high = ask(g, plan.high);
            for (const int64_t step : plan.steps) {
                if (step == largest) continue;
                for (const int64_t width : std::set<int64_t>{plan.low + step, plan.high - step})
                    plan.samples.push_back({step, width, ask(g, width)});
            }
        }
        plans.push_back(std::move(plan));
    }
    const auto seconds = latency.measure(questions);
    std::vector<int64_t> result;
    for (const auto& plan : plans) {
        int64_t chosen = plan.steps.empty() ? 1 : plan.steps.back();
        for (auto step = plan.steps.rbegin(); step != plan.steps.rend(); ++step) {
            const bool on_line = std::all_of(plan.samples.begin(), plan.samples.end(), [&](const Sample& sample) {
                if (sample.step != *step) return true;
                const double part =
                    static_cast<double>(sample.width - plan.low) / static_cast<double>(plan.high - plan.low);
                const double line = seconds[plan.at_low] + part * (seconds[plan.at_high] - seconds[plan.at_low]);
                return seconds[sample.question] <= line + kTolerance * seconds[plan.at_high];
            });
            if (!on_line) break;
            chosen = *step;
        }
        result.push_back(chosen);
    }
    return result;
}

}  // namespace coppice::prune
