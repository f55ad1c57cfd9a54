// Quality against the share removed of one group at a time, and the allocation that goes by it. The drops of several
// groups are taken to add up, which is what a sweep over single groups can say; the sum is kept low under the target.
#include "allocation/allocation.h"

#include <coppice/judging.h>

#include <cmath>

namespace coppice::prune {
namespace {

constexpr const char* kWhere = "prune.sensitivity";

void check_ratios(const std::vector<double>& ratios) {
    double last = 0;
    for (const double ratio : ratios) {
        if (!(ratio > last && ratio < 1))
            throw InvalidArgument(kWhere, "the ratios do not rise within (0, 1)", "The default is [0.25, 0.5, 0.75].");
        last = ratio;
    }
    if (ratios.empty()) throw InvalidArgument(kWhere, "there are no ratios", "The default is [0.25, 0.5, 0.75].");
}

/// Drop in quality against the share removed.
class Curve {
public:
    void add(double ratio, double drop) { points_[ratio] = drop; }

    /// More channels gone are never taken to be better: a gain is noise, and a drop that was measured stays.
    void finish() {
        double worst = 0;
        for (auto& [ratio, drop] : points_) worst = drop = std::max(worst, drop);
    }

    double at(double ratio) const {
        auto right = points_.lower_bound(ratio);
        if (right == points_.begin()) return right->second;
        if (right == points_.end()) --right;
        const auto left = std::prev(right);
        const double slope = (right->second - left->second) / (right->first - left->first);
        return left->second + slope * (ratio - left->first);
    }
    size_t size() const { return points_.size(); }

private:
    std::map<double, double> points_;
};

class Sensitivity final : public Allocation {
public:
    explicit Sensitivity(std::vector<double> ratios) : ratios_(std::move(ratios)) {}

    std::vector<double> sensitivity_ratios() const override { return ratios_; }

    Removal allocate(const Groups& groups, const std::vector<at::Tensor>& scores, const CostModel& cost,
                     const Target& target) const override {
        check_scores(groups, scores);
        std::map<size_t, double> whole;
        for (const auto& point : target.sensitivity)
            if (point.ratio == 0) whole[point.group] = point.quality;
        std::vector<Curve> curves(groups.all().size());
        for (const auto& point : target.sensitivity)
            if (point.group < curves.size() && whole.count(point.group))
                curves[point.group].add(point.ratio, whole[point.group] - point.quality);
        const auto widths = allowed_widths(groups, target);
        for (size_t g = 0; g < curves.size(); ++g) {
            if (widths[g].free() && curves[g].size() < 2)
                throw InvalidArgument(std::string(kWhere) + " at " + groups.all()[g].name,
                                      "the quality of cutting this group has not been measured",
                                      "Fill Target::sensitivity with sensitivity_curves().");
            curves[g].finish();
        }
        const auto kept = descend(groups, cost, target, [&](size_t g, int64_t width) {
            const auto channels = static_cast<double>(groups.all()[g].channels);
            return widths[g].free() ? curves[g].at(1 - static_cast<double>(width) / channels) : 0.0;
        });
        return lowest(groups, scores, kept);
    }

private:
    const std::vector<double> ratios_;
};

}  // namespace

std::vector<SensitivityPoint> sensitivity_curves(const Model& model, const Facts& facts, const Groups& groups,
                                                 const std::vector<at::Tensor>& scores, const Target& target,
                                                 const std::vector<double>& ratios, Context& context) {
    check_ratios(ratios);
    check_scores(groups, scores);
    if (!context.evaluate)
        throw InvalidArgument(kWhere, "there is nothing to evaluate the model by",
                              "Give `data` with labels and a `task`, or set Context::evaluate.");
    note_choice_by_evaluation(kWhere, "the channels", context);
    const double whole = context.evaluate(model);
    const auto widths = allowed_widths(groups, target);
    std::vector<SensitivityPoint> points;
    for (size_t g = 0; g < widths.size(); ++g) {
        context.log->progress("sensitivity", static_cast<double>(g), static_cast<double>(widths.size()),
                              groups.all()[g].name);
        if (context.interrupted()) throw Interrupted(kWhere, "stopped by request", "");
        if (!widths[g].free()) continue;
        const int64_t channels = widths[g].channels;
        const auto measure = [&](int64_t width) {
            std::vector<int64_t> kept;
            for (const auto& group : groups.all()) kept.push_back(group.channels);
            kept[g] = width;
            points.push_back({g, 1 - static_cast<double>(width) / static_cast<double>(channels),
                              context.evaluate(cut(model, facts, groups, lowest(groups, scores, kept)))});
        };
        points.push_back({g, 0, whole});
        int64_t last = channels;
        for (const double ratio : ratios) {
            const int64_t width = widths[g].nearest((1 - ratio) * static_cast<double>(channels));
            if (width == last) continue;  // two ratios that are rounded to one width
            measure(width);
            last = width;
        }
        if (last == channels) measure(widths[g].below(channels));  // every ratio was rounded to the whole group
    }
    return points;
}

std::unique_ptr<Allocation> sensitivity(std::vector<double> ratios) {
    check_ratios(ratios);
    return std::make_unique<Sensitivity>(std::move(ratios));
}

}  // namespace coppice::prune
