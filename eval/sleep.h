/// Private to eval.
#pragma once

namespace coppice::eval {

/// Sleeps for so long, signals or not.
void sleep_for(double seconds);

}  // namespace coppice::eval
