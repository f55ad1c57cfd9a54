// What removing a share of one group alone does to the quality: small multiples, one chart per group.
#pragma once

#include "report/view.h"

namespace coppice::eval::report {

// HTML with one figure per group of the fact `sensitivity`, [{group, ratio, quality}], all on the same axes; at most
// `limit` figures, those that lose most. Empty where the fact is missing or holds anything else.
std::string sensitivity_curves(const Json& facts, const Quality& quality, size_t limit);

}  // namespace coppice::eval::report
