#include <ATen/Context.h>
#include <ATen/cpu/Utils.h>

#include <coppice/error.h>
#include <coppice/quantize.h>

namespace coppice::quantize {
namespace {

std::string name_of(at::QEngine engine) {
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

}  // namespace

std::vector<std::string> engines() {
    std::vector<std::string> names;
    for (const auto engine : at::globalContext().supportedQEngines())
        if (engine != at::QEngine::NoQEngine) names.push_back(name_of(engine));
    std::sort(names.begin(), names.end());
    return names;
}

std::string engine() {
    return name_of(at::globalContext().qEngine());
}

void set_engine(const std::string& name) {
    for (const auto engine : at::globalContext().supportedQEngines())
        if (engine != at::QEngine::NoQEngine && name_of(engine) == name) {
            if (at::globalContext().qEngine() != engine) at::globalContext().setQEngine(engine);
            return;
        }
    throw_unknown("quantize", "engine", name, engines());
}

bool exact_int8_products() {
    return at::cpu::is_avx512_vnni_supported();
}

}  // namespace coppice::quantize
