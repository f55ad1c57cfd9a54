// The picture as PNG.
#pragma once

#include <string>

#include <coppice/report.h>

namespace coppice::eval::report {

// The bytes of a PNG of 1440 x 800 pixels.
// @throws InvalidArgument as check_png(); Error when every program that is installed fails
std::string png(const Json& report);
// @throws InvalidArgument when no program is installed that turns SVG into PNG
void check_png(const std::string& where);

}  // namespace coppice::eval::report
