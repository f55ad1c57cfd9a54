#include "report/curves.h"

#include <algorithm>
#include <cmath>

namespace coppice::eval::report {
namespace {

// In the units of the SVG's view box.
constexpr double kWidth = 168, kHeight = 84, kLeft = 6, kRight = 162, kTop = 8, kBottom = 66;

struct Curve {
    std::string group;
    std::vector<std::pair<double, double>> points;  // share removed, quality

    double lowest() const {
        return std::min_element(points.begin(), points.end(),
                                [](const auto& a, const auto& b) { return a.second < b.second; })
            ->second;
    }
};

std::vector<Curve> curves_of(const Json& fact) {
    std::vector<Curve> curves;
    if (!fact.is_array()) return curves;
    for (const auto& point : fact) {
        const std::string group = text_member(point, "group");
        const auto ratio = number_member(point, "ratio"), quality = number_member(point, "quality");
        if (group.empty() || !ratio || !quality || *ratio < 0 || *ratio > 1) return {};
        if (curves.empty() || curves.back().group != group) curves.push_back({group, {}});
        curves.back().points.emplace_back(*ratio, *quality);
    }
    for (auto& curve : curves) std::sort(curve.points.begin(), curve.points.end());
    return curves;
}

std::string percent(double share) {
    return fixed(100 * share, std::abs(100 * share - std::round(100 * share)) < 0.05 ? 0 : 1) + " %";
}

std::string figure(const Curve& curve, const Quality& quality, double low, double high) {
    const auto x = [](double share) { return fixed(kLeft + share * (kRight - kLeft), 1); };
    const auto y = [&](double value) {
        return fixed(high > low ? kBottom - (value - low) / (high - low) * (kBottom - kTop) : kTop, 1);
    };
    std::string line, dots, said;
    for (const auto& [share, value] : curve.points) {
        line += (line.empty() ? "" : " ") + x(share) + "," + y(value);
        const std::string text = percent(share) + " removed: " + shown_points(quality, value);
        said += (said.empty() ? "" : "; ") + text;
        dots +=
            "<circle cx=" + x(share) + " cy=" + y(value) + " r=2.6><title>" + escape_html(text) + "</title></circle>";
    }
    const std::string width = fixed(kWidth, 0), height = fixed(kHeight, 0), bottom = fixed(kBottom, 0);
    return "<figure><figcaption>" + escape_html(curve.group) + "</figcaption><svg viewBox=\"0 0 " + width + " " +
           height + "\" role=img aria-label=\"" + escape_html(curve.group + ": " + said) + "\"><path class=grid d=\"M" +
           fixed(kLeft, 0) + " " + bottom + "H" + fixed(kRight, 0) + "M" + fixed(kLeft, 0) + " " + fixed(kTop, 0) +
           "H" + fixed(kRight, 0) + "\"/><polyline points=\"" + line + "\"/>" + dots + "<text x=" + fixed(kLeft, 0) +
           " y=80>0</text><text x=" + fixed(kRight, 0) + " y=80 text-anchor=end>100 % removed</text></svg></figure>";
}

}  // namespace

std::string sensitivity_curves(const Json& facts, const Quality& quality, size_t limit) {
    auto curves = curves_of(member(facts, "sensitivity"));
    if (curves.empty() || limit == 0) return {};
    double low = curves[0].points[0].second, high = low;
    for (const auto& curve : curves)
        for (const auto& [share, value] : curve.points) low = std::min(low, value), high = std::max(high, value);
    const size_t all = curves.size();
    if (all > limit) {
        std::vector<double> lowest;
        for (const auto& curve : curves) lowest.push_back(curve.lowest());
        std::nth_element(lowest.begin(), lowest.begin() + static_cast<std::ptrdiff_t>(limit - 1), lowest.end());
        const double bound = lowest[limit - 1];
        curves.erase(std::remove_if(curves.begin(), curves.end(),
                                    [bound](const Curve& curve) { return curve.lowest() > bound; }),
                     curves.end());
        curves.resize(std::min(curves.size(), limit));
    }
    std::string out =
        "<h3>Sensitivity</h3><p class=note>" + escape_html(quality.name) +
        " when one group of channels alone loses a share of them, before any repair; every chart reaches from " +
        escape_html(shown_points(quality, low) + " to " + shown_points(quality, high)) + ".";
    if (curves.size() < all)
        out += " Shown are the " + std::to_string(curves.size()) + " of " + std::to_string(all) +
               " groups that lose most; the others are in report.json.";
    out += "</p><div class=curves>";
    for (const auto& curve : curves) out += figure(curve, quality, low, high);
    return out + "</div>";
}

}  // namespace coppice::eval::report
