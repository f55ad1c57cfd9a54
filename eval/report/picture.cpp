#include "report/picture.h"

#include <algorithm>
#include <cmath>

#include <coppice/error.h>

namespace coppice::eval::report {
namespace {

// Where a stage stands on a measure. Times and energies of different stages were taken minutes apart; each one's ratio
// to the baseline was taken in interleaved pairs. So within a run the ratio, scaled by the baseline's figure, places
// the point, and drift cancels.
std::optional<std::pair<Uncertain, Figure>> place(const Stage& stage, const Measure& measure, bool single_run) {
    Figure x = stage.on(measure);
    if (!x.value) return std::nullopt;
    if (stage.baseline) {
        const Figure base = stage.baseline->on(measure), ratio = paired_ratio(stage, measure);
        if (measure.batch != 0 && stage.is_baseline && single_run) x.interval.reset();  // the reference of all ratios
        if (!stage.is_baseline && base.value && ratio.value) {
            x.value = *ratio.value * *base.value;
            x.provenance = weakest(weakest(ratio.provenance, base.provenance), "derived");
            x.method = "paired ratio to the baseline × the baseline's figure";
            x.interval = ratio.interval;
            if (x.interval) x.interval = std::pair(x.interval->first * *base.value, x.interval->second * *base.value);
        }
    }
    Uncertain number(*x.value);
    if (x.interval)
        number = Uncertain(*x.value, std::min(x.interval->first, *x.value), std::max(x.interval->second, *x.value));
    return std::pair(number, x);
}

std::optional<std::pair<Uncertain, Figure>> place(const Stage& stage, const Axis& axis, bool single_run) {
    if (axis.measure) return place(stage, *axis.measure, single_run);
    if (!stage.quality.available) return std::nullopt;
    Figure figure;
    figure.provenance = stage.quality.provenance;
    figure.method = stage.quality.method;
    return std::pair(stage.placed, figure);
}

// Lower is better.
Uncertain cost_of(const Uncertain& value, const Axis& axis) {
    return axis.higher_is_better() ? Uncertain(-value.value, -value.high, -value.low) : value;
}

}  // namespace

const Stage* first_with_quality(const View& view) {
    for (const auto& stage : view.stages)
        if (stage.quality.available) return &stage;
    return nullptr;
}

Axis axis_of(const View& view, const std::string& key, const std::string& where) {
    Axis axis;
    axis.key = key;
    if (key == "quality") {
        const Stage* first = first_with_quality(view);
        axis.name = first ? first->quality.name : "Quality";
        axis.unit = first ? first->quality.unit : "";
        axis.loss = first && first->quality.loss;
        return axis;
    }
    if (const Measure* measure = view.measure(key)) {
        axis.name = measure->name;
        axis.unit = measure->unit;
        axis.measure = measure;
        return axis;
    }
    std::vector<std::string> known = {"quality"};
    for (const auto& measure : view.measures) known.push_back(measure.key);
    throw_unknown(where, "axis", key, known);
}

Picture picture_of(const View& view, const Axis& x, const Axis& y) {
    Picture picture{x, y, {}, {}, std::nullopt, 0, 0, 0};
    const Stage* first = first_with_quality(view);
    const bool with_quality = !x.measure || !y.measure, single_run = view.runs.size() == 1;
    std::vector<ParetoPoint> costs;
    for (const auto& stage : view.stages) {
        if (with_quality && (!first || !comparable_quality(*first, stage))) continue;
        const auto across = place(stage, x, single_run), up = place(stage, y, single_run);
        if (!across || !up) continue;
        picture.points.push_back(
            {&stage, across->first, up->first, across->second, up->second, ParetoStatus::kFront, {}});
        costs.push_back({cost_of(across->first, x), cost_of(up->first, y)});
    }
    auto& points = picture.points;
    if (points.empty()) return picture;
    const auto status = pareto_status(costs);
    for (size_t i = 0; i < points.size(); ++i) {
        points[i].status = status[i];
        if (status[i] == ParetoStatus::kFront) picture.front.push_back(i);
        if (status[i] != ParetoStatus::kDominated) continue;
        for (size_t a = 0; a < points.size() && points[i].dominated_by.size() < kDominators; ++a)
            if (dominates(costs[a], costs[i])) points[i].dominated_by.push_back(a);
    }
    std::stable_sort(picture.front.begin(), picture.front.end(),
                     [&points](size_t a, size_t b) { return points[a].x.value < points[b].x.value; });

    // As the knee is seen: the axis of a measure is logarithmic.
    const auto seen = [&](const Axis& axis, size_t coordinate, size_t i) {
        const double cost = costs[i][coordinate].value;
        const bool log = axis.measure && std::all_of(costs.begin(), costs.end(), [coordinate](const ParetoPoint& c) {
                             return c[coordinate].value > 0;
                         });
        return log ? std::log10(cost) : cost;
    };
    std::vector<std::pair<double, double>> front;
    for (const size_t i : picture.front) front.emplace_back(seen(x, 0, i), seen(y, 1, i));
    if (const auto at = knee(front)) picture.knee = picture.front[*at];

    // Measures as shares of the baseline, 1.1 times the largest as reference; quality in points, the worst less a tenth
    // of the range.
    double scale[2] = {1, 1}, reference[2] = {0, 0};
    for (size_t c = 0; c < 2; ++c) {
        const bool measure = (c == 0 ? x : y).measure != nullptr;
        double unit = 0, worst = costs[0][c].value, best = worst;
        for (size_t i = 0; i < points.size(); ++i) {
            if (unit == 0 && points[i].stage->is_baseline) unit = costs[i][c].value;
            worst = std::max(worst, costs[i][c].value);
            best = std::min(best, costs[i][c].value);
        }
        if (measure) scale[c] = unit > 0 ? unit : worst > 0 ? worst : 1;
        reference[c] = measure ? 1.1 * worst / scale[c] : worst + (worst > best ? 0.1 * (worst - best) : 1.0);
    }
    std::vector<std::vector<double>> scaled;
    for (const size_t i : picture.front)  // what is behind the front adds nothing
        scaled.push_back({costs[i][0].value / scale[0], costs[i][1].value / scale[1]});
    for (size_t i = 0; i < points.size(); ++i)
        if (points[i].status == ParetoStatus::kTied)
            scaled.push_back({costs[i][0].value / scale[0], costs[i][1].value / scale[1]});
    picture.hypervolume = hypervolume(scaled, {reference[0], reference[1]});
    picture.reference_x = x.measure ? reference[0] : -reference[0];
    picture.reference_y = y.measure ? reference[1] : -reference[1];
    return picture;
}

Picture chosen_picture(const View& view) {
    const Json& pareto = member(*view.report, "pareto");
    const auto key = [&](const char* name, const std::string& otherwise) {
        const std::string text = text_member(pareto, name);
        return text == "quality" || view.measure(text) ? text : otherwise;
    };
    const std::string x = key("default", view.measures.empty() ? "quality" : view.measures.front().key);
    return picture_of(view, axis_of(view, x, "report"), axis_of(view, key("default_y", "quality"), "report"));
}

}  // namespace coppice::eval::report
