// What the stages calibrate on: data, or inputs made from the model's batch norms.
#pragma once

#include <coppice/quantize.h>
#include <coppice/stage.h>

namespace coppice::quantize {

/// Refuses, before anything runs, a context without data for a model that has no batch norm to make inputs from.
void check_calibration(const Model& model, const Context& context, const char* where);

/// At most `batches` calibration batches of the context. Where it has no data: inputs by synthetic_inputs(), of which
/// the log warns and facts["synthetic_inputs"] tells.
std::vector<Inputs> calibration_of(const Model& model, Context& context, int64_t batches, int64_t batch_size,
                                   const SyntheticOptions& synthetic, const char* where);

}  // namespace coppice::quantize
