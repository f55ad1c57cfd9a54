// Pareto front with uncertainty, hypervolume and knee. All axes: lower is better.
#include <algorithm>
#include <cmath>
#include <limits>

#include <coppice/error.h>
#include <coppice/report.h>

namespace coppice::eval {
namespace {

void check_axes(size_t a, size_t b) {
    if (a != b)
        throw InvalidArgument("eval.pareto", "points have " + std::to_string(a) + " and " + std::to_string(b) + " axes",
                              "Give every point the same measures.");
}

// Volume dominated by `points` up to `reference` over the first `axes` axes. Cuts space into slabs along the last of
// them, between neighbouring coordinates; within a slab the points at or below it span a volume of one axis less.
double sliced_volume(std::vector<std::vector<double>> points, const std::vector<double>& reference, size_t axes) {
    if (points.empty()) return 0;
    if (axes == 1) {
        double best = reference[0];
        for (const auto& point : points) best = std::min(best, point[0]);
        return reference[0] - best;
    }
    const size_t last = axes - 1;
    std::sort(points.begin(), points.end(),
              [last](const std::vector<double>& a, const std::vector<double>& b) { return a[last] < b[last]; });
    double volume = 0;
    for (size_t i = 0; i < points.size(); ++i) {
        const double top = i + 1 < points.size() ? points[i + 1][last] : reference[last];
        const double thickness = top - points[i][last];
        if (thickness <= 0) continue;
        volume += thickness *
                  sliced_volume({points.begin(), points.begin() + static_cast<std::ptrdiff_t>(i) + 1}, reference, last);
    }
    return volume;
}

}  // namespace

bool dominates(const ParetoPoint& a, const ParetoPoint& b) {
    check_axes(a.size(), b.size());
    bool better = false;
    for (size_t i = 0; i < a.size(); ++i) {
        if (!(a[i].high <= b[i].low)) return false;
        better |= a[i].high < b[i].low;
    }
    return better;
}

bool dominates_in_value(const ParetoPoint& a, const ParetoPoint& b) {
    check_axes(a.size(), b.size());
    bool better = false;
    for (size_t i = 0; i < a.size(); ++i) {
        if (!(a[i].value <= b[i].value)) return false;
        better |= a[i].value < b[i].value;
    }
    return better;
}

std::vector<ParetoStatus> pareto_status(const std::vector<ParetoPoint>& points) {
    for (const auto& point : points)
        for (const auto& axis : point)
            if (!(axis.low <= axis.value && axis.value <= axis.high))  // in this form NaN is rejected too
                throw InvalidArgument("eval.pareto",
                                      "a point has the value " + std::to_string(axis.value) + " with the interval " +
                                          std::to_string(axis.low) + " to " + std::to_string(axis.high),
                                      "Leave out points that are not known.");
    std::vector<ParetoStatus> status(points.size(), ParetoStatus::kFront);
    for (size_t b = 0; b < points.size(); ++b)
        for (const auto& a : points) {
            if (dominates(a, points[b])) {
                status[b] = ParetoStatus::kDominated;
                break;
            }
            if (dominates_in_value(a, points[b])) status[b] = ParetoStatus::kTied;
        }
    return status;
}

double hypervolume(const std::vector<std::vector<double>>& points, const std::vector<double>& reference) {
    std::vector<std::vector<double>> inside;
    for (const auto& point : points) {
        check_axes(point.size(), reference.size());
        bool better = true;
        for (size_t i = 0; i < point.size(); ++i) better &= point[i] < reference[i];
        if (better) inside.push_back(point);
    }
    return reference.empty() ? 0 : sliced_volume(std::move(inside), reference, reference.size());
}

std::optional<size_t> knee(const std::vector<std::pair<double, double>>& front) {
    if (front.size() < 3) return std::nullopt;
    size_t left = 0, low = 0;  // the two ends: best on x, best on y
    for (size_t i = 1; i < front.size(); ++i) {
        if (front[i] < front[left]) left = i;
        if (std::pair(front[i].second, front[i].first) < std::pair(front[low].second, front[low].first)) low = i;
    }
    const double width = front[low].first - front[left].first, height = front[left].second - front[low].second;
    if (!(width > 0 && height > 0)) return std::nullopt;
    std::optional<size_t> best;
    double depth = 1e-9;  // scaled; what rounding of a point on the line can reach
    for (size_t i = 0; i < front.size(); ++i) {
        // The line runs from (0, 1) to (1, 0): 1 - x - y is sqrt(2) times the distance below it.
        const double below =
            1 - (front[i].first - front[left].first) / width - (front[i].second - front[low].second) / height;
        if (below > depth) {
            depth = below;
            best = i;
        }
    }
    return best;
}

}  // namespace coppice::eval
