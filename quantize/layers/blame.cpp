#include "layers/blame.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>

#include <coppice/error.h>

#include "layers/layers.h"

namespace coppice::quantize {

namespace {

constexpr int64_t kExamples = 8;  // orders layers; how much each loses is for the metric to say

/// Floating-point tensors of the output.
std::vector<at::Tensor> output_of(const Model& model, const Inputs& inputs, uint64_t seed,
                                  const NodeHooks& hooks = {}) {
    torch::manual_seed(seed);  // a model may draw random numbers in eval mode, too
    std::vector<at::Tensor> tensors;
    for (const auto& tensor : all_tensors(run_nodes(model, inputs, hooks)))
        if (tensor.is_floating_point()) tensors.push_back(tensor.to(at::kDouble));
    return tensors;
}

/// Infinite where it is no number, or where shapes depend on the values and came out different.
double noise_of(const std::vector<at::Tensor>& exact, const std::vector<at::Tensor>& rounded) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    if (exact.size() != rounded.size()) return kInfinity;
    double sum = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
        if (exact[i].sizes() != rounded[i].sizes()) return kInfinity;
        const auto same = exact[i] == rounded[i];  // infinite ones, too: their difference is no number
        const double noise = (exact[i] - rounded[i]).masked_fill(same, 0).square().sum().item<double>();
        const double signal = exact[i].masked_fill(exact[i].isfinite().logical_not(), 0).square().sum().item<double>();
        if (noise != 0) sum += noise / std::max(signal, 1e-300);
    }
    return std::isnan(sum) ? kInfinity : sum;
}

}  // namespace

std::vector<size_t> by_blame(const Model& model, const Suspects& suspects, const Inputs& otherwise, double most_seconds,
                             Context& context, const std::string& where, bool* by_output) {
    torch::NoGradGuard no_grad;
    std::vector<size_t> order(suspects.count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return suspects.sqnr_db(a) < suspects.sqnr_db(b); });
    if (by_output) *by_output = false;
    if (order.size() < 2) return order;
    const auto batches = batches_of(context, 1, kExamples, where.c_str());
    const auto& inputs = batches.empty() ? otherwise : batches.front();
    const auto start = std::chrono::steady_clock::now();
    const auto exact = output_of(model, inputs, context.seed);
    const auto seconds_so_far = [&] {
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    };
    std::vector<double> noise;
    for (size_t i = 0; i < suspects.count; ++i) {
        const double runs = static_cast<double>(i + 1), left = static_cast<double>(suspects.count - i);
        if (seconds_so_far() / runs * (runs + left) > most_seconds) {
            context.log->info(where +
                              ": layers go back to float by their own noise, what each does to the output would "
                              "take too long to measure");
            return order;
        }
        noise.push_back(noise_of(exact, output_of(model, inputs, context.seed, suspects.alone(i))));
        context.log->progress(where, runs, static_cast<double>(suspects.count), "what each layer does to the output");
        if (context.interrupted()) throw Interrupted(where, "stopped while measuring what each layer does", "");
    }
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return noise[a] > noise[b]; });
    if (by_output) *by_output = true;
    return order;
}

}  // namespace coppice::quantize
