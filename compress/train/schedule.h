/// Private to train/: the learning rate of each step.
#pragma once

#include <coppice/train.h>

namespace coppice {

/// Learning rate of step `step` of the whole training (from 0), with `steps_per_epoch` steps in an epoch.
double learning_rate(const TrainOptions& options, int64_t step, int64_t steps_per_epoch);

}  // namespace coppice
