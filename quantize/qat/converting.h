/// Private to qat/: what convert() is made of.
#pragma once

#include <coppice/qat.h>

namespace coppice::quantize {

/// Scales from here on are refused. They are float32, and one above 2^24 is a whole number as the float64 constant that
/// a model has of it. LibTorch writes whole numbers from 1e10 to 1e17 without a decimal point
/// (aten/src/ATen/core/ivalue.cpp, 2.15) and reads them back as integers, so that the file does not load.
inline constexpr double kLargestScale = 1e10;

/// @throws Error naming the tensor when a trained one is not finite, or a scale is kLargestScale or more
void refuse_diverged(const QatModel& model);

/// convert() of whatever training has come to: to be judged, not to be saved.
Model converted(const QatModel& model);

}  // namespace coppice::quantize
