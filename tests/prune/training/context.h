/// What the tests of training stages train on.
#pragma once

#include "support/support.h"

namespace coppice::testing {

/// `count` smooth images of ten classes, for training and for calibration.
inline Context context_of(int64_t count) {
    Context context;
    context.example = {sine({2, 3, 8, 8})};
    context.data.train = tensor_dataset(
        {(at::arange(count * 3 * 8 * 8, at::kDouble) * 0.7).sin().to(at::kFloat).reshape({count, 3, 8, 8})},
        at::arange(count).remainder(10), "smooth images");
    context.data.calibration = context.data.train;
    return context;
}

}  // namespace coppice::testing
