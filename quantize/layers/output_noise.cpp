// What no layer's own noise tells: how far the outputs of the whole model are from those before.
#include <algorithm>
#include <optional>

#include "layers/layers.h"

namespace coppice::quantize {
namespace {

constexpr double kNoisyDb = 10;  // a tenth of the power is noise
constexpr int64_t kExamples = 16;

// The least of the outputs with numbers in them; nothing where they cannot be compared one by one, as boxes of a
// detector whose number depends on the values.
std::optional<double> least_sqnr_db(const std::vector<at::Tensor>& exact, const std::vector<at::Tensor>& rounded) {
    std::optional<double> least;
    if (exact.size() != rounded.size()) return least;
    for (size_t i = 0; i < exact.size(); ++i) {
        if (!exact[i].is_floating_point() || !rounded[i].is_floating_point() || exact[i].numel() == 0) continue;
        if (exact[i].sizes() != rounded[i].sizes()) return std::nullopt;
        const auto finite = exact[i].isfinite();  // masks may leave infinities
        const double db =
            sqnr_db(exact[i].masked_select(finite).to(at::kDouble), rounded[i].masked_select(finite).to(at::kDouble));
        least = std::min(least.value_or(db), db);
    }
    return least;
}

}  // namespace

void tell_output_noise(Context& context, const Model& before, const Model& after, const char* where) {
    torch::NoGradGuard no_grad;
    const auto batches = batches_of(context, 1, kExamples, where);
    const auto& inputs = batches.empty() ? context.example : batches.front();
    const auto run = [&](const Model& model) {
        torch::manual_seed(context.seed);  // a model may draw random numbers in eval mode, too
        return all_tensors(model.forward(inputs));
    };
    const auto least = least_sqnr_db(run(before), run(after));
    if (!least) return;
    context.facts["output_sqnr_db"] = *least;
    const auto text = std::string(where) + ": the model's outputs have a signal-to-noise ratio of " +
                      formatted("%.1f", *least) + " dB on " +
                      (batches.empty() ? "the example input" : "calibration data");
    if (*least >= kNoisyDb)
        context.log->info(text);
    else
        context.log->warning(text +
                             ". See what that costs in quality; max_drop or a higher min_sqnr_db leaves the noisiest "
                             "layers as they were.");
}

}  // namespace coppice::quantize
