#include "number_text.h"

#include <cstdio>

namespace coppice::eval {

std::string number_text(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.3g", value);
    return text;
}

}  // namespace coppice::eval
