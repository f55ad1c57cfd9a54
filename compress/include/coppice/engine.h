/// The engines that LibTorch runs int8 operators on.
#pragma once

#include <c10/core/QEngine.h>

#include <string>

namespace coppice {

/// The name that recipes and reports use: "fbgemm", "onednn", "qnnpack", "x86", or "none".
std::string engine_name(at::QEngine engine);

}  // namespace coppice
