// The picture: models as points over two axes, which of them are on the front, the knee, the hypervolume.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "report/view.h"

namespace coppice::eval::report {

// Quality (points, higher is better) or a measure (lower is better).
struct Axis {
    std::string key, name, unit;
    const Measure* measure = nullptr;  // null: quality
    bool loss = false;                 // quality: lower is better in the metric's own units
    bool higher_is_better() const { return measure == nullptr; }
};

struct Point {
    const Stage* stage;
    Uncertain x, y;  // as the axes show them
    Figure x_figure, y_figure;
    ParetoStatus status = ParetoStatus::kFront;
    std::vector<size_t> dominated_by;  // the first ones, at most kDominators
};
constexpr size_t kDominators = 4;  // more than a reader is told

struct Picture {
    Axis x, y;
    std::vector<Point> points;
    std::vector<size_t> front;  // from left to right
    std::optional<size_t> knee;
    double hypervolume = 0, reference_x = 0, reference_y = 0;  // see collect.cpp for their units
};

const Stage* first_with_quality(const View& view);

// "quality" or the key of a measure. @throws InvalidArgument naming what there is, placed at `where`
Axis axis_of(const View& view, const std::string& key, const std::string& where);

// Every stage that has both figures. Front, knee and hypervolume as measurement.md has them: an axis of a measure
// counts logarithmically for the knee, as it is drawn.
Picture picture_of(const View& view, const Axis& x, const Axis& y);

// The axes that the report was made for.
Picture chosen_picture(const View& view);

// SVG of 720 x 400 units: the content of the page's figure without script, and the file for papers.
// @param standalone  with its own style, title and description, else it relies on the page's style sheet
std::string drawn(const View& view, const Picture& picture, bool standalone);

}  // namespace coppice::eval::report
