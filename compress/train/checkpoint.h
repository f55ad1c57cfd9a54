/// Private to train/: what is needed to go on after the last finished epoch.
#pragma once

#include <coppice/train.h>

#include "train/optimizer.h"

namespace coppice {

struct Checkpoint {
    Json options;                   ///< see to_json(TrainOptions)
    std::string data;               ///< fingerprint of the training data
    std::vector<EpochInfo> epochs;  ///< those finished
    bool stopped = false;           ///< a callback or budget ended the training: nothing is left to do
    std::string stopped_by;         ///< the budget
};

/// Writes `checkpoint` and `tensors` by a temporary file, fsync and rename. @throws IoError
void write_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint, const NamedTensors& tensors);

/// Reads it and copies the stored values into `tensors`. @throws IoError when it is no checkpoint; InvalidArgument
/// naming what differs when it is one of other options, other data or another model, before any tensor was changed
Checkpoint read_checkpoint(const std::filesystem::path& path, const Json& options, const std::string& data,
                           const NamedTensors& tensors);

}  // namespace coppice
