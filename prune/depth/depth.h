/// What the stage and the criteria of depth share. Private to prune.
#pragma once

#include <coppice/error.h>
#include <coppice/prune.h>

namespace coppice::prune {

/// Reads the options of stage prune.depth.
std::unique_ptr<Stage> make_depth_pruning(Options& options);

}  // namespace coppice::prune
