/// CSV files of a quantity over time: what a meter logged, what a grid operator publishes.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace coppice::eval {

/// (seconds since 1970, value), ascending.
using TimeSeries = std::vector<std::pair<double, double>>;

/// Reads the columns `time` (ISO 8601 in UTC unless it names an offset, or seconds since 1970) and `column` of a CSV
/// file with a header; other columns are ignored. @param owner  for messages
/// @throws IoError when the file cannot be read; InvalidArgument with the line for what is no number, no time,
/// negative, not ascending, or when there is no row
TimeSeries read_time_series(const std::filesystem::path& path, const std::string& column, const std::string& owner);

}  // namespace coppice::eval
