/// Numbers in sentences. Private to eval.
#pragma once

#include <string>

namespace coppice::eval {

/// "0.125", "1.2e+09": three significant digits.
std::string number_text(double value);

}  // namespace coppice::eval
