// A run directory as the pipeline writes it: ResNet-20 through ten stages, numbers in closed form. What the tests read,
// and what the golden files were made from.
#pragma once

#include <filesystem>

#include <coppice/registry.h>

namespace coppice::testing {

/// One figure of measurement.json. `interval` is relative: 0.02 gives value * [0.98, 1.02]; 0 gives none.
Json sample_figure(double value, const std::string& unit, const std::string& provenance, const std::string& method,
                   double interval = 0);
Json sample_unavailable(const std::string& unit, const std::string& reason);

/// Writes manifest.json, recipe.yaml and 00-baseline .. 09-deploy into `folder`. One layer is named
/// "<script>alert(1)</script>".
void write_sample_run(const std::filesystem::path& folder);

}  // namespace coppice::testing
