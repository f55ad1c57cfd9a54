/// Private to train/: settings that hold while a training runs and go back when it ends, also by an exception.
#pragma once

#include <torch/types.h>

#include <string>
#include <vector>

namespace coppice {

/// Denormal numbers count as zero, in the calling thread and in LibTorch's worker threads: arithmetic on them is up to
/// a hundred times slower on some CPUs, and small gradients are full of them.
class FlushDenormals {
public:
    FlushDenormals();
    ~FlushDenormals();
    FlushDenormals(const FlushDenormals&) = delete;

private:
    bool before_;
};

/// The default CPU generator, put back to where it was at the end. Dropout draws from it.
class DefaultGenerator {
public:
    DefaultGenerator();
    ~DefaultGenerator();
    DefaultGenerator(const DefaultGenerator&) = delete;
    void seed(uint64_t seed);

private:
    at::Generator generator_;
    at::Tensor state_;
};

/// Weights of four dimensions in channels-last order, in place; contiguous again at the end, because a weight in that
/// order makes LibTorch run the whole convolution in it, whatever the input.
class ChannelsLastWeights {
public:
    ChannelsLastWeights(bool on, const std::vector<std::pair<std::string, at::Tensor>>& parameters);
    ~ChannelsLastWeights();
    ChannelsLastWeights(const ChannelsLastWeights&) = delete;

private:
    std::vector<at::Tensor> changed_;
};

/// bf16 autocast on `device`; off: whatever holds already.
class Autocast {
public:
    Autocast(bool on, at::DeviceType device);
    ~Autocast();
    Autocast(const Autocast&) = delete;

private:
    bool on_, enabled_before_ = false;
    at::DeviceType device_;
    at::ScalarType dtype_before_ = at::kFloat;
};

/// Does "off", "bf16" or "auto" mean bf16 on this machine? auto: yes on a GPU, and on CPUs with AVX512-BF16 or
/// AMX-BF16.
bool autocast_to_bf16(const std::string& option, at::DeviceType device);

}  // namespace coppice
