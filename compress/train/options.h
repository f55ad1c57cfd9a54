/// Private to train/.
#pragma once

#include <coppice/train.h>

namespace coppice {

/// TrainOptions::read() with other defaults.
TrainOptions read(Options& options, TrainOptions defaults);

/// @throws InvalidArgument naming the first option out of its range
void check(const TrainOptions& options);

/// Every option that the result depends on: what a checkpoint must agree with.
Json to_json(const TrainOptions& options);

}  // namespace coppice
