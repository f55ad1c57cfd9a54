// Inputs without data (ZeroQ, Cai et al., arXiv 2001.00281, section 3.1). A batch norm remembers mean m and variance v
// of every channel that it saw in training. Inputs are learned, from noise, that give what enters it the same:
//
//     least mean over batch norms and channels of  (m' - m)^2 / (v + eps)  +  (sqrt((v' + eps) / (v + eps)) - 1)^2
//
// with m' and v' over the made batch. The paper's distances are not divided by v: here every channel counts alike, and
// the loss has no unit (0.01: means are off by a tenth of a deviation). Inputs are x = e^l (z + t) with noise z, and l
// and t per channel of the input, because Adam's steps are of one size and inputs may be of any.
#include <ATen/CPUGeneratorImpl.h>
#include <torch/optim/adam.h>

#include <cmath>

#include <coppice/error.h>

#include "calibration/calibration.h"
#include "layers/layers.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

constexpr int64_t kBatchSize = 32;  // made at once: enough for the statistics, little enough for memory
constexpr const char* kNoNorm =
    "there is no calibration data, and the model has no batch norm whose statistics could stand for it";
constexpr const char* kGiveData = "Give `data:` a `calibration` or `train` split.";

struct Statistics {
    at::Tensor mean, variance;  ///< [C]
    double eps;
};

/// Of the batch norms with running statistics, by node.
std::unordered_map<const Node*, Statistics> statistics_of(const Model& model) {
    std::unordered_map<const Node*, Statistics> found;
    for (Node* node : all_nodes(*model.graph())) {
        const auto norm = as_batch_norm(node);
        if (!norm || !norm->tracks_statistics) continue;
        const auto mean = parameter_of(model, norm->running_mean), variance = parameter_of(model, norm->running_var);
        if (mean && variance)
            found[node] = {mean->detach().to(at::kFloat), variance->detach().to(at::kFloat), norm->eps};
    }
    return found;
}

bool is_learned(const c10::IValue& input) {
    return input.isTensor() && input.toTensor().is_floating_point() && input.toTensor().dim() > 0;
}

/// The example with `count` rows: again and again the same ones.
Inputs repeated(const Inputs& example, int64_t count) {
    Inputs inputs = example;
    const auto rows = first_tensor(example[0]).size(0);
    const auto index = at::arange(count).remainder(rows);
    for (auto& input : inputs)
        if (input.isTensor() && input.toTensor().dim() > 0 && input.toTensor().size(0) == rows)
            input = input.toTensor().index_select(0, index);
    return inputs;
}

/// One input of the model under learning.
struct Learned {
    size_t place;
    at::Tensor noise, scale, shift;  ///< z, l, t
    at::Tensor value() const { return scale.exp() * (noise + shift); }
};

Learned learned(const at::Tensor& example, size_t place, at::Generator& generator) {
    std::vector<int64_t> shape(static_cast<size_t>(example.dim()), 1);
    if (example.dim() > 2) shape[1] = example.size(1);
    const double deviation = example.numel() > 1 ? example.std().item<double>() : 0;
    Learned input{place, at::randn(example.sizes(), generator),
                  at::full(shape, std::log(deviation > 0 ? deviation : 1.0)), at::zeros(shape)};
    for (auto* tensor : {&input.noise, &input.scale, &input.shift}) tensor->requires_grad_();
    return input;
}

class Maker {
public:
    Maker(const Model& model, const SyntheticOptions& options) : model_(model.clone()), options_(options) {
        model_.eval();
        for (const auto& tensor : named_tensors(model_))
            if (tensor.tensor.is_floating_point()) tensor.tensor.set_requires_grad(false);
        statistics_ = statistics_of(model_);
        if (statistics_.empty()) throw UnsupportedModel("synthetic inputs", kNoNorm, kGiveData);
    }

    /// Learns one batch in the shape of `inputs`. @return it, with its distance before and after
    Inputs make(Inputs inputs, at::Generator& generator, double& before, double& after,
                const std::function<void(int64_t, double)>& progress) const {
        std::vector<Learned> all;
        std::vector<at::Tensor> leaves;
        for (size_t i = 0; i < inputs.size(); ++i) {
            if (!is_learned(inputs[i])) continue;
            all.push_back(learned(inputs[i].toTensor().to(at::kFloat), i, generator));
            for (const auto& leaf : {all.back().noise, all.back().scale, all.back().shift}) leaves.push_back(leaf);
        }
        if (all.empty())
            throw UnsupportedModel("synthetic inputs", "the model takes no tensor of real numbers to learn", kGiveData);
        at::AutoGradMode gradients(true);
        // Forgets the first steps' gradients, which are large, within a few more.
        torch::optim::Adam adam(leaves, torch::optim::AdamOptions(options_.lr).betas(std::make_tuple(0.5, 0.9)));
        for (int64_t step = 0;; ++step) {
            for (const auto& input : all) inputs[input.place] = input.value();
            const auto loss = distance(inputs);
            after = loss.item<double>();
            if (step == 0) before = after;
            if (!std::isfinite(after))
                throw UnsupportedModel(
                    "synthetic inputs",
                    "their distance from the batch norms is not finite in step " + std::to_string(step),
                    "Check the model's running statistics, or give data.");
            if (step == options_.steps) break;
            const double done = static_cast<double>(step) / static_cast<double>(options_.steps);
            adam.param_groups()[0].options().set_lr(options_.lr * 0.5 * (1 + std::cos(M_PI * done)));
            adam.zero_grad();
            loss.backward();
            adam.step();
            progress(step, after);
        }
        for (const auto& input : all) inputs[input.place] = input.value().detach();
        return inputs;
    }

    size_t norms() const { return statistics_.size(); }

private:
    at::Tensor distance(const Inputs& inputs) const {
        at::Tensor sum;
        int64_t norms = 0;
        NodeHooks hooks;
        hooks.before = [&](const Node* node, std::vector<c10::IValue>& stack) {
            const auto found = statistics_.find(node);
            if (found == statistics_.end() || !stack[0].toTensor().requires_grad()) return;
            const auto& [mean, variance, eps] = found->second;
            auto x = stack[0].toTensor().to(at::kFloat);
            x = x.transpose(0, 1).reshape({x.size(1), -1});  // [C, values]
            const auto target = variance + eps;
            const auto by_mean = (x.mean(1) - mean).square() / target;
            const auto by_deviation = (((x.var(1, false) + eps) / target).sqrt() - 1).square();
            const auto part = (by_mean + by_deviation).mean();
            sum = sum.defined() ? sum + part : part;
            ++norms;
        };
        run_nodes(model_, inputs, hooks);
        if (norms == 0)
            throw UnsupportedModel("synthetic inputs", "no batch norm depends on the model's inputs", kGiveData);
        return sum / norms;
    }

    Model model_;
    const SyntheticOptions options_;
    std::unordered_map<const Node*, Statistics> statistics_;
};

/// Whether the model takes more rows than its example has; traced ones may have their number fixed.
bool takes(const Model& model, const Inputs& inputs) {
    torch::NoGradGuard no_grad;
    try {
        run_nodes(model, inputs);
        return true;
    } catch (const UnsupportedModel&) {
        return false;
    }
}

}  // namespace

SyntheticInputs synthetic_inputs(const Model& model, const Inputs& example, const SyntheticOptions& options,
                                 uint64_t seed, Log& log, const std::function<bool()>& interrupted) {
    if (options.examples < 1 || options.steps < 1 || !(options.lr > 0))
        throw InvalidArgument("synthetic inputs", "examples and steps must be at least 1, lr above 0",
                              "Leave them at their defaults.");
    const Maker maker(model, options);
    auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
    int64_t size = std::min(kBatchSize, options.examples);
    if (!takes(model, repeated(example, size))) size = first_tensor(example[0]).size(0);
    SyntheticInputs made;
    made.batch_norms = static_cast<int64_t>(maker.norms());
    const int64_t batches = (options.examples + size - 1) / size;
    for (int64_t batch = 0; batch < batches; ++batch) {
        double before = 0, after = 0;
        const auto progress = [&](int64_t step, double distance) {
            char text[48];
            std::snprintf(text, sizeof text, "distance %.3g", distance);
            log.progress("making inputs", static_cast<double>(batch * options.steps + step),
                         static_cast<double>(batches * options.steps), text);
            if (interrupted && interrupted())
                throw Interrupted("synthetic inputs", "stopped while making calibration inputs", "");
        };
        made.batches.push_back(maker.make(repeated(example, size), generator, before, after, progress));
        made.examples += size;
        made.distance_before += before / static_cast<double>(batches);
        made.distance_after += after / static_cast<double>(batches);
    }
    return made;
}

void check_calibration(const Model& model, const Context& context, const char* where) {
    if (context.data.calibration || context.data.train) return;
    if (statistics_of(model).empty()) throw InvalidArgument(where, kNoNorm, kGiveData);
}

Calibration calibration_of(const Model& model, Context& context, int64_t batches, int64_t batch_size,
                           const SyntheticOptions& synthetic, const char* where) {
    if (const auto data = context.data.calibration ? context.data.calibration : context.data.train) {
        Calibration calibration(data, batches, batch_size, context.seed);
        if (calibration.size() == 0) throw InvalidArgument(where, "the calibration data is empty", kGiveData);
        return calibration;
    }
    check_calibration(model, context, where);
    context.log->warning(std::string(where) +
                         ": there is no calibration data; ranges come from inputs made from the statistics of the "
                         "model's batch norms, which is no better than these describe the data");
    auto made = synthetic_inputs(model, context.example, synthetic, context.seed, *context.log, context.interrupted);
    context.facts["synthetic_inputs"] = {{"examples", made.examples},
                                         {"steps", synthetic.steps},
                                         {"batch_norms", made.batch_norms},
                                         {"distance_before", made.distance_before},
                                         {"distance", made.distance_after}};
    context.record({"calibration", "synthetic", "no data", std::to_string(made.examples) + " made inputs",
                    "batch statistics match those of " + std::to_string(made.batch_norms) + " batch norms"});
    return std::move(made.batches);
}

}  // namespace coppice::quantize
