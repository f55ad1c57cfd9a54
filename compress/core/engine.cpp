#include <coppice/engine.h>

namespace coppice {

std::string engine_name(at::QEngine engine) {
    switch (engine) {
        case at::QEngine::FBGEMM:
            return "fbgemm";
        case at::QEngine::QNNPACK:
            return "qnnpack";
        case at::QEngine::ONEDNN:
            return "onednn";
        case at::QEngine::X86:
            return "x86";
        default:
            return "none";
    }
}

}  // namespace coppice
