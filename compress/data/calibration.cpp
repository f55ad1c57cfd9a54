// Calibration subsets.
#include "data/formats.h"

#include <algorithm>

#include <coppice/error.h>

namespace coppice {

std::shared_ptr<Dataset> calibration_subset(std::shared_ptr<const Dataset> base, int64_t count, uint64_t seed) {
    if (count < 1) throw InvalidArgument("calibration", "count is " + std::to_string(count), "It must be at least 1.");
    auto order = formats::shuffled(base->size(), seed, 0);
    if (count < base->size()) order.resize(static_cast<size_t>(count));
    std::sort(order.begin(), order.end());  // reading forward is kinder to memory; the set is the same
    return subset(std::move(base), std::move(order));
}

}  // namespace coppice
