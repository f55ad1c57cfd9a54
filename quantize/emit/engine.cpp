#include <ATen/Context.h>
#include <ATen/cpu/Utils.h>

#include <coppice/engine.h>
#include <coppice/error.h>
#include <coppice/quantize.h>

namespace coppice::quantize {

std::vector<std::string> engines() {
    std::vector<std::string> names;
    for (const auto engine : at::globalContext().supportedQEngines())
        if (engine != at::QEngine::NoQEngine) names.push_back(engine_name(engine));
    std::sort(names.begin(), names.end());
    return names;
}

std::string engine() {
    return engine_name(at::globalContext().qEngine());
}

void set_engine(const std::string& name) {
    for (const auto engine : at::globalContext().supportedQEngines())
        if (engine != at::QEngine::NoQEngine && engine_name(engine) == name) {
            if (at::globalContext().qEngine() != engine) at::globalContext().setQEngine(engine);
            return;
        }
    throw_unknown("quantize", "engine", name, engines());
}

bool exact_int8_products() {
#if defined(__x86_64__) || defined(__i386__)
    return at::cpu::is_avx512_vnni_supported();
#else
    return true;
#endif
}

}  // namespace coppice::quantize
