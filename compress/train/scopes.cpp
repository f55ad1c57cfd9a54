#include "train/scopes.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/autocast_mode.h>
#include <ATen/cpu/Utils.h>

#include <limits>
#include <mutex>

namespace coppice {
namespace {

bool flushes_denormals() {
    volatile float smallest = std::numeric_limits<float>::min();
    volatile float half = smallest * 0.5f;
    return half == 0.0f;
}

/// The setting is one of each thread. LibTorch's workers are reached by a loop that LibTorch itself cuts into one piece
/// per thread; at::parallel_for in this file would not do, as it is serial in code compiled without OpenMP.
void set_flush_denormals(bool on) {
    at::globalContext().setFlushDenormal(on);
    auto each = at::empty({at::get_num_threads()}, at::kByte);
    auto iterator = at::TensorIteratorConfig()
                        .set_check_mem_overlap(false)
                        .check_all_same_dtype(false)
                        .resize_outputs(false)
                        .add_output(each)
                        .build();
    iterator.for_each([on](char**, const int64_t*, int64_t, int64_t) { at::globalContext().setFlushDenormal(on); },
                      /*grain_size=*/1);
}

}  // namespace

FlushDenormals::FlushDenormals() : before_(flushes_denormals()) {
    if (!before_) set_flush_denormals(true);
}

FlushDenormals::~FlushDenormals() {
    if (!before_) set_flush_denormals(false);
}

DefaultGenerator::DefaultGenerator() : generator_(at::detail::getDefaultCPUGenerator()) {
    std::lock_guard<std::mutex> lock(generator_.mutex());
    state_ = generator_.get_state();
}

DefaultGenerator::~DefaultGenerator() {
    std::lock_guard<std::mutex> lock(generator_.mutex());
    generator_.set_state(state_);
}

void DefaultGenerator::seed(uint64_t seed) {
    std::lock_guard<std::mutex> lock(generator_.mutex());
    generator_.set_current_seed(seed);
}

ChannelsLastWeights::ChannelsLastWeights(bool on, const std::vector<std::pair<std::string, at::Tensor>>& parameters) {
    if (!on) return;
    torch::NoGradGuard no_grad;
    for (const auto& [name, parameter] : parameters) {
        if (parameter.dim() != 4 || !parameter.is_contiguous()) continue;
        at::Tensor handle = parameter;
        // clone() makes the strides those of the order; contiguous() leaves them where a dimension of 1 allows both.
        handle.set_data(parameter.detach().clone(at::MemoryFormat::ChannelsLast));
        changed_.push_back(handle);
    }
}

ChannelsLastWeights::~ChannelsLastWeights() {
    torch::NoGradGuard no_grad;
    for (auto& parameter : changed_) {
        parameter.mutable_grad().reset();  // it has the strides that go
        parameter.set_data(parameter.detach().clone(at::MemoryFormat::Contiguous));
    }
}

Autocast::Autocast(bool on, at::DeviceType device) : on_(on), device_(device) {
    if (!on_) return;
    enabled_before_ = at::autocast::is_autocast_enabled(device_);
    dtype_before_ = at::autocast::get_autocast_dtype(device_);
    at::autocast::set_autocast_dtype(device_, at::kBFloat16);
    at::autocast::set_autocast_enabled(device_, true);
    at::autocast::increment_nesting();
}

Autocast::~Autocast() {
    if (!on_) return;
    if (at::autocast::decrement_nesting() == 0)
        at::autocast::clear_cache();  // casts of weights that the step will change
    at::autocast::set_autocast_enabled(device_, enabled_before_);
    at::autocast::set_autocast_dtype(device_, dtype_before_);
}

bool autocast_to_bf16(const std::string& option, at::DeviceType device) {
    if (option == "off") return false;
    if (option == "bf16" || device != at::kCPU) return true;
    const auto capabilities = at::cpu::get_cpu_capabilities();
    for (const char* name : {"avx512_bf16", "amx_bf16"})
        if (const auto found = capabilities.find(name);
            found != capabilities.end() && found->second.isBool() && found->second.toBool())
            return true;
    return false;
}

}  // namespace coppice
