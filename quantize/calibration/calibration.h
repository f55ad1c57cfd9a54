// What the stages calibrate on: data, or inputs made from the model's batch norms.
#pragma once

#include <coppice/quantize.h>
#include <coppice/stage.h>

namespace coppice::quantize {

/// Refuses, before anything runs, a context without data for a model that has no batch norm to make inputs from.
void check_calibration(const Model& model, const Context& context, const char* where);

/// At most `batches` calibration batches of the context. Where it has no data: inputs by synthetic_inputs(), of which
/// the log warns and facts["synthetic_inputs"] tells.
Calibration calibration_of(const Model& model, Context& context, int64_t batches, int64_t batch_size,
                           const SyntheticOptions& synthetic, const char* where);

/// Shows progress in the context's log. @throws Interrupted when the program is to stop
Progress progress_of(Context& context, const char* where);

/// Runs `model` on the first `most` batches, telling `progress` (which may be empty) after each operator.
/// @param begin  called with each batch before it runs
void run_batches(const Model& model, const Calibration& calibration, const NodeHooks& hooks, const char* task,
                 const Progress& progress, int64_t most = INT64_MAX,
                 const std::function<void(const Inputs& batch)>& begin = {});

}  // namespace coppice::quantize
