/// Clocks of this process.
#pragma once

namespace coppice {

/// Seconds of a clock that never goes back, from an arbitrary start.
double wall_seconds();

/// CPU time of this process so far, all threads; with those of children that were waited for.
double cpu_seconds(bool with_children = true);

}  // namespace coppice
