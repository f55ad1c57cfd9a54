// The picture as SVG, drawn without a browser: numbers on axes, error bars, the front as a line, the baseline as a
// star, names where there is room for them.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include <coppice/report.h>

#include "report/picture.h"

namespace coppice::eval {
namespace report {
namespace {

constexpr double kWidth = 720, kHeight = 400, kLeft = 62, kRight = 16, kTop = 30, kBottom = 52;

// A font's true widths are not known here: an average of sans-serif faces, a little too wide rather than too narrow.
constexpr double kLetter = 6.9;

constexpr const char* kStyle =
    "svg{background:#fff;font-family:system-ui,\"Helvetica Neue\",Arial,\"DejaVu Sans\",sans-serif;"
    "font-variant-numeric:tabular-nums}text{fill:#5f686d;font-size:12.5px}.grid{stroke:#e4e2dc;stroke-width:1}"
    ".frontline{fill:none;stroke:#1d6b4c;stroke-width:1.75;stroke-linejoin:round}.err{stroke:#8b9398;stroke-width:1;"
    "opacity:.75}.mark{fill:#1d6b4c;fill-opacity:.82;stroke:#fff;stroke-width:1.25}.tied "
    ".mark{fill:#fff;stroke:#1d6b4c;"
    "stroke-width:1.75}.dominated .mark{fill:#8b9398;fill-opacity:.45;stroke:none}.dominated .err{opacity:.35}.undone "
    ".mark{stroke:#1c2226;stroke-width:1.25;stroke-dasharray:2.5 2.5}.name{fill:#1c2226;stroke:#fff;stroke-width:3px;"
    "stroke-linejoin:round;paint-order:stroke}.name.dominated{fill:#5f686d}.knee{fill:none;stroke:#1d6b4c;"
    "stroke-width:1.25}";

std::string px(double value) {
    return fixed(value, 1);
}

std::vector<double> even_ticks(double low, double high, double count) {
    const double raw = (high - low) / count, power = std::pow(10.0, std::floor(std::log10(raw)));
    double step = 10 * power;
    for (const double m : {5.0, 2.0, 1.0})
        if (m * power >= raw) step = m * power;
    std::vector<double> ticks;
    for (double i = std::ceil(low / step - 1e-9); i * step <= high + step * 1e-9; ++i) ticks.push_back(i * step);
    return ticks;
}

std::vector<double> log_ticks(double low, double high, size_t room) {
    static const std::vector<std::vector<double>> sets = {
        {1}, {1, 2, 5}, {1, 2, 3, 5, 7}, {1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9}};
    std::vector<double> best;
    for (const auto& set : sets) {
        std::vector<double> ticks;
        for (double e = std::floor(std::log10(low)); e <= std::ceil(std::log10(high)); ++e)
            for (const double m : set)
                if (const double t = m * std::pow(10.0, e); t >= low && t <= high) ticks.push_back(t);
        if (ticks.size() <= room || best.empty()) best = ticks;
    }
    return best.size() >= 2 ? best : even_ticks(low, high, 4);
}

std::string without_zeros(std::string text) {  // "20.0 mJ" -> "20 mJ"
    const size_t space = std::min(text.find(' '), text.size()), point = text.find('.');
    if (point == std::string::npos || point > space) return text;
    size_t last = space;
    while (last > point + 1 && text[last - 1] == '0') --last;
    if (last == point + 1) last = point;
    return text.erase(last, space - last);
}

// One axis: what it spans, where a value lies on it, what its ticks are called.
struct Scale {
    const Axis& axis;
    double low, high, from, to;  // values; pixels at them
    bool log;

    double at(double value) const {
        const auto f = [this](double v) { return log ? std::log10(v) : v; };
        return from + (f(value) - f(low)) / (f(high) - f(low)) * (to - from);
    }
    std::vector<double> ticks() const {
        const double pixels = std::abs(to - from), apart = std::abs(to - from) > 500 ? 78 : 55;
        return log ? log_ticks(low, high, static_cast<size_t>(pixels / apart)) : even_ticks(low, high, pixels / apart);
    }
    std::string name(double value) const {
        if (axis.measure) return without_zeros(quantity(value, axis.unit));
        return without_zeros(axis.unit == "%" ? fixed(value, 2) + " %" : number(axis.loss ? -value : value, 4));
    }
};

Scale scale_of(const Picture& picture, bool across) {
    const Axis& axis = across ? picture.x : picture.y;
    double low = std::numeric_limits<double>::infinity(), high = -low;
    for (const auto& point : picture.points) {
        const Uncertain& value = across ? point.x : point.y;
        low = std::min(low, value.low);
        high = std::max(high, value.high);
    }
    const bool log = axis.measure && low > 0;
    const auto f = [log](double v) { return log ? std::log10(v) : v; };
    const auto g = [log](double v) { return log ? std::pow(10.0, v) : v; };
    const double span = f(high) - f(low);
    double padding = span > 0 ? 0.09 * span : log ? 0.15 : std::max(0.02 * std::abs(low), 1e-9);
    if (log && span + 2 * padding < 0.12) padding = (0.12 - span) / 2;
    low = g(f(low) - padding), high = g(f(high) + padding);
    if (!axis.measure && axis.unit == "%") high = std::min(high, 100 + 0.4 * padding);
    return across ? Scale{axis, low, high, kLeft, kWidth - kRight, log}
                  : Scale{axis, low, high, kHeight - kBottom, kTop, log};
}

std::string star(double x, double y, double radius) {
    std::string path;
    for (int i = 0; i < 10; ++i) {
        const double angle = std::acos(-1.0) * (i / 5.0 - 0.5), r = i % 2 ? 0.45 * radius : radius;
        path += (i ? "L" : "M") + px(x + r * std::cos(angle)) + " " + px(y + r * std::sin(angle));
    }
    return path + "Z";
}

struct Box {
    double x0, y0, x1, y1;
    bool overlaps(const Box& o) const { return x0 < o.x1 && o.x0 < x1 && y0 < o.y1 && o.y0 < y1; }
};

const char* class_of(ParetoStatus status) {
    return status == ParetoStatus::kFront ? "front" : status == ParetoStatus::kTied ? "tied" : "dominated";
}

// The first free place around a point that takes its name; the names of the front come first.
std::string names(const Picture& picture, const std::vector<Box>& marks, const std::vector<Box>& line) {
    std::vector<size_t> order(picture.points.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&picture](size_t a, size_t b) { return picture.points[a].status < picture.points[b].status; });
    std::vector<Box> taken = marks;
    taken.insert(taken.end(), line.begin(), line.end());
    std::string out;
    for (const size_t i : order) {
        const Point& point = picture.points[i];
        const double x = (marks[i].x0 + marks[i].x1) / 2, y = (marks[i].y0 + marks[i].y1) / 2;
        const double d = (marks[i].x1 - marks[i].x0) / 2 + (picture.knee == i ? 10 : 5), q = 0.72 * d;
        const struct {
            double x, y;
            const char* anchor;
        } places[] = {{d, 4.5, "start"}, {-d, 4.5, "end"},    {0, -d - 2, "middle"}, {0, d + 11, "middle"},
                      {q, -q, "start"},  {q, q + 9, "start"}, {-q, -q, "end"},       {-q, q + 9, "end"}};
        std::vector<std::string> texts;
        if (picture.knee == i) texts.push_back(point.stage->label + " (knee)");
        texts.push_back(point.stage->label);
        if (!point.stage->is_baseline) texts.push_back(point.stage->position);
        bool done = false;
        for (const auto& text : texts)
            for (const auto& place : places) {
                if (done || text.empty()) break;
                const double width = kLetter * static_cast<double>(columns(text));
                const double left = x + place.x - (*place.anchor == 's' ? 0 : *place.anchor == 'e' ? width : width / 2);
                const Box box = {left - 2, y + place.y - 11.5, left + width + 2, y + place.y + 3.5};
                if (box.x0 < kLeft || box.x1 > kWidth || box.y0 < kTop - 14 || box.y1 > kHeight - kBottom) continue;
                if (std::any_of(taken.begin(), taken.end(), [&box](const Box& o) { return o.overlaps(box); })) continue;
                taken.push_back(box);
                out += std::string("<text class=\"name ") + class_of(point.status) + "\" x=\"" + px(x + place.x) +
                       "\" y=\"" + px(y + place.y) + "\" text-anchor=\"" + place.anchor + "\">" + escape_html(text) +
                       "</text>";
                done = true;
            }
    }
    return out;
}

std::string axes(const Scale& x, const Scale& y) {
    std::string out;
    const auto line = [&out](double x1, double y1, double x2, double y2) {
        out += "<line class=\"grid\" x1=\"" + px(x1) + "\" y1=\"" + px(y1) + "\" x2=\"" + px(x2) + "\" y2=\"" + px(y2) +
               "\"/>";
    };
    const auto text = [&out](double at_x, double at_y, const char* anchor, const std::string& words) {
        out += "<text x=\"" + px(at_x) + "\" y=\"" + px(at_y) + "\" text-anchor=\"" + anchor + "\">" +
               escape_html(words) + "</text>";
    };
    for (const double t : y.ticks()) {
        line(kLeft, y.at(t), kWidth - kRight, y.at(t));
        text(kLeft - 8, y.at(t) + 4, "end", y.name(t));
    }
    for (const double t : x.ticks()) {
        line(x.at(t), kTop, x.at(t), kHeight - kBottom);
        const std::string words = x.name(t);
        const bool fits = x.at(t) + kLetter / 2 * static_cast<double>(columns(words)) < kWidth;
        text(fits ? x.at(t) : kWidth - 2, kHeight - kBottom + 18, fits ? "middle" : "end", words);
    }
    const auto title = [](const Scale& scale, const char* better, const char* worse) {
        return std::string(scale.axis.higher_is_better() ? better : worse) + " " + scale.axis.name +
               (scale.axis.loss ? ", lower is better"
                : scale.log     ? ", log scale"
                                : "");
    };
    text(2, 13, "start", title(y, "↑", "↓"));
    text(kWidth - kRight, kHeight - 10, "end", title(x, "→", "←"));
    return out;
}

}  // namespace

std::string drawn(const View& view, const Picture& picture, bool standalone) {
    const std::string size = fixed(kWidth, 0) + " " + fixed(kHeight, 0);
    const std::string title = picture.y.name + " against " + picture.x.name;
    std::string out = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + size + "\" role=\"img\"";
    if (standalone) {
        out += " width=\"" + fixed(kWidth, 0) + "\" height=\"" + fixed(kHeight, 0) + "\"><title>" + escape_html(title) +
               "</title><desc>" + escape_html(view.title + ". " + text_member(*view.report, "summary")) +
               "</desc><style>" + kStyle + "</style><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>";
    } else {
        out += " aria-label=\"" + escape_html(title) + "\">";
    }
    if (picture.points.empty())
        return out + "<text x=\"360\" y=\"200\" text-anchor=\"middle\">There is nothing to draw.</text></svg>";
    const Scale x = scale_of(picture, true), y = scale_of(picture, false);
    out += axes(x, y);

    double most = 1;
    for (const auto& point : picture.points) most = std::max(most, point.stage->figure("file_bytes").value.value_or(0));
    const auto radius = [most](const Point& point) {  // the area says the file's size
        if (point.stage->is_baseline) return 10.0;
        const auto bytes = point.stage->figure("file_bytes").value;
        return bytes ? std::max(4.5, 15 * std::sqrt(std::max(0.0, *bytes) / most)) : 6.0;
    };
    std::vector<Box> marks, line;
    for (const auto& point : picture.points) {
        const double r = radius(point) + 1, a = x.at(point.x.value), b = y.at(point.y.value);
        marks.push_back({a - r, b - r, a + r, b + r});
    }
    if (picture.front.size() > 1) {
        std::string path;
        for (size_t k = 0; k < picture.front.size(); ++k) {
            const Point& point = picture.points[picture.front[k]];
            const double a = x.at(point.x.value), b = y.at(point.y.value);
            path += (k ? " " : "") + px(a) + "," + px(b);
            if (k == 0) continue;
            const Point& before = picture.points[picture.front[k - 1]];
            const double c = x.at(before.x.value), d = y.at(before.y.value),
                         steps = std::ceil(std::hypot(a - c, b - d) / 8);
            for (double s = 1; s < steps; ++s) {  // the line is kept clear of names by boxes along it
                const double u = c + (a - c) * s / steps, v = d + (b - d) * s / steps;
                line.push_back({u - 2, v - 2, u + 2, v + 2});
            }
        }
        out += "<polyline class=\"frontline\" points=\"" + path + "\"/>";
    }
    // Large and dominated ones first, so that nothing hides a small one on the front.
    std::vector<size_t> order(picture.points.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
        const Point &p = picture.points[a], &q = picture.points[b];
        return std::pair(static_cast<int>(q.status), radius(q)) < std::pair(static_cast<int>(p.status), radius(p));
    });
    for (const size_t i : order) {
        const Point& point = picture.points[i];
        const double a = x.at(point.x.value), b = y.at(point.y.value), r = radius(point);
        out += std::string("<g class=\"") + class_of(point.status) + (point.stage->kept ? "" : " undone") +
               "\"><title>" + escape_html(point.stage->label) + "</title>";
        const auto bar = [&out](double x1, double y1, double x2, double y2) {
            out += "<line class=\"err\" x1=\"" + px(x1) + "\" y1=\"" + px(y1) + "\" x2=\"" + px(x2) + "\" y2=\"" +
                   px(y2) + "\"/>";
        };
        if (point.x.high > point.x.low) bar(x.at(point.x.low), b, x.at(point.x.high), b);
        if (point.y.high > point.y.low) bar(a, y.at(point.y.low), a, y.at(point.y.high));
        if (picture.knee == i)
            out += "<circle class=\"knee\" cx=\"" + px(a) + "\" cy=\"" + px(b) + "\" r=\"" + px(r + 5) + "\"/>";
        out += point.stage->is_baseline
                   ? "<path class=\"mark\" d=\"" + star(a, b, r + 1) + "\"/>"
                   : "<circle class=\"mark\" cx=\"" + px(a) + "\" cy=\"" + px(b) + "\" r=\"" + px(r) + "\"/>";
        out += "</g>";
    }
    return out + names(picture, marks, line) + "</svg>";
}

}  // namespace report

std::string svg(const Json& json) {
    const report::View view = report::make_view(json);
    return report::drawn(view, report::chosen_picture(view), true) + "\n";
}

}  // namespace coppice::eval
