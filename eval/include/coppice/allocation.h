/// Cost allocation: energy, carbon and money of many runs, by project, user or tag. Reads what runs and `coppice track`
/// wrote down; nothing is measured again.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <coppice/registry.h>

namespace coppice::eval {

struct AllocationOptions {
    std::string group_by = "project";     ///< "project", "user" or "tag"
    std::optional<double> price_per_kwh;  ///< in `currency`; none: no money
    double price_per_tonne = 0;           ///< of CO2e
    std::string currency = "EUR";
};

/// @param sources  run directories (their manifest's project, user and tags; what all stages took), records of
///                 `coppice track --json`, and emissions.csv of Coppice or CodeCarbon (a record per row)
/// @return format "coppice-allocation", version 1, see allocation_schema(): one group per name, largest energy first,
/// and
///         the total. A record with several tags counts in each of them, in the total once. Sums are of the records
///         that have the figure, whose number stands beside it; where none has, they are unavailable. A record that is
///         given twice (same run_id, or same folder) counts once and is named under "warnings".
/// @throws InvalidArgument without sources, for an unknown `group_by`, a negative price; IoError for what cannot be
/// read
Json allocate(const std::vector<std::filesystem::path>& sources, const AllocationOptions& options);
/// As a table of at most 100 columns.
std::string allocation_text(const Json& allocation);
const Json& allocation_schema();

}  // namespace coppice::eval
