// One pass of a model over a dataset, and the metrics that look at one example at a time.
#include "metrics/quality.h"

#include <cmath>
#include <cstring>

namespace coppice::eval {
namespace {

[[noreturn]] void throw_mismatch(const std::string& metric, const at::Tensor& output, const at::Tensor& target,
                                 const std::string& fix) {
    std::ostringstream problem;
    problem << "output " << output.sizes() << " and target " << target.sizes() << " (" << target.scalar_type()
            << ") do not fit";
    throw InvalidArgument("metric " + metric, problem.str(), fix);
}

// [N, ...] -> [N] means per example.
at::Tensor per_example(const at::Tensor& values) {
    return values.dim() > 1 ? values.flatten(1).mean(1) : values;
}

// Mean with its interval. Neighbours may overlap (windows of a series), so blocks of sqrt(N) neighbours are drawn
// together; for independent examples that costs nothing. Very long series are cut into batches whose means are nearly
// independent.
Interval mean_interval(const at::Tensor& scores) {
    const auto values = scores.to(at::kDouble).contiguous();
    const auto* data = values.const_data_ptr<double>();
    const int64_t count = values.numel();
    if (count <= 20000) {
        const auto block = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(count))));
        const auto mean_of = [&](const std::vector<int64_t>& indices) {
            double sum = 0;
            for (const auto index : indices) sum += data[index];
            return sum / static_cast<double>(indices.size());
        };
        if (const auto interval = block_bootstrap(count, block, mean_of)) return *interval;
    }
    const int64_t batches = std::min<int64_t>(count, 200), length = count / batches;
    const auto means = values.narrow(0, 0, batches * length).reshape({batches, length}).mean(1);
    const double mean = values.mean().item<double>();
    const double error = batches > 1 ? means.std().item<double>() / std::sqrt(static_cast<double>(batches)) : 0;
    return {mean - 1.96 * error, mean + 1.96 * error};
}

// Keeps one score per example; the metric is their mean.
class MeanMetric : public Metric {
public:
    at::Tensor scores() const override { return parts_.empty() ? at::Tensor() : at::cat(parts_); }
    Figure result() const override {
        if (parts_.empty()) throw InvalidArgument("metric", "there is no example", "Give a dataset that is not empty.");
        return figure_of(scores());
    }

protected:
    virtual Figure figure_of(const at::Tensor& scores) const = 0;
    void keep(const at::Tensor& scores) { parts_.push_back(scores.to(at::kDouble)); }

private:
    std::vector<at::Tensor> parts_;
};

class TopK final : public MeanMetric {
public:
    explicit TopK(int64_t k) : k_(k) {}
    bool higher_is_better() const override { return true; }
    double points(double value) const override { return 100 * value; }

    void add(const at::Tensor& output, const Batch& batch) override {
        const std::string name = "top" + std::to_string(k_);
        if (output.dim() < 2)
            throw_mismatch(name, output, batch.target, "Scores of the classes are expected in dimension 1.");
        auto target = batch.target;
        if (target.is_floating_point() && target.sizes() == output.sizes()) target = target.argmax(1);
        const auto scores = output.movedim(1, -1);  // [N, ..., C]
        if (target.is_floating_point() || target.sizes() != scores.sizes().slice(0, scores.dim() - 1))
            throw_mismatch(name, output, batch.target, "Class indices [N] or probabilities [N, C] are expected.");
        classes_ = output.size(1);
        if (target.numel() > 0 && (target.min().item<int64_t>() < 0 || target.max().item<int64_t>() >= classes_))
            throw InvalidArgument("metric " + name,
                                  "a target is outside [0, " + std::to_string(classes_) + "), the model's classes",
                                  "Check that data and model belong together.");
        const auto index = target.to(at::kLong).unsqueeze(-1);
        const auto own = scores.gather(-1, index);
        // The rank of the target, ties to the lower class as argmax does; a row with NaN is a miss.
        const auto ahead = (scores > own) | ((scores == own) & (at::arange(classes_) < index));
        const auto hit = (ahead.sum(-1) < k_) & ~scores.isnan().any(-1);
        dense_ = dense_ || hit.dim() > 1;
        keep(per_example(hit.to(at::kDouble)));
    }

    Json paired(const Metric& baseline) const override {
        auto json = Metric::paired(baseline);
        if (json.is_null() || dense_) return json;
        const auto change = scores() - baseline.scores();
        const auto gained = (change > 0.5).sum().item<int64_t>(), lost = (change < -0.5).sum().item<int64_t>();
        // Interval of a difference of paired proportions after Agresti & Min (Statistics in Medicine 24, 2005).
        const double count = static_cast<double>(change.numel()) + 2, more = gained + 0.5, less = lost + 0.5;
        const double centre = (more - less) / count;
        const double half = 1.96 * std::sqrt(more + less - (more - less) * (more - less) / count) / count;
        json["interval"] = {centre - half, centre + half};
        json["gained"] = gained;
        json["lost"] = lost;
        json["p_value"] = mcnemar_p_value(gained, lost);
        return json;
    }

protected:
    Figure figure_of(const at::Tensor& scores) const override {
        if (classes_ <= k_)
            return Figure::unavailable("ratio", "of " + std::to_string(classes_) +
                                                    " classes the target is always among " + std::to_string(k_));
        const double value = scores.mean().item<double>();
        if (dense_)
            return Figure::measured(value, "ratio", "share of positions that hit, bootstrap over examples",
                                    mean_interval(scores));
        const auto hits = static_cast<int64_t>(std::llround(scores.sum().item<double>()));
        return Figure::measured(
            value, "ratio",
            std::to_string(hits) + " hits of " + std::to_string(scores.numel()) + " examples, Wilson's interval",
            wilson_interval(hits, scores.numel()));
    }

private:
    const int64_t k_;
    int64_t classes_ = 0;
    bool dense_ =
        false;  // a prediction per position (segmentation): positions of one example are no independent trials
};

// Values of the output in the shape of the target: [N, 1] serves for [N].
at::Tensor aligned(const std::string& name, const at::Tensor& output, const Batch& batch) {
    if (batch.pairs)
        throw InvalidArgument("metric " + name, "the data holds pairs with a similarity, not values",
                              "Use spearman or loss.");
    if (output.sizes() == batch.target.sizes()) return output;
    if (output.dim() == batch.target.dim() + 1 && output.size(-1) == 1 && output.numel() == batch.target.numel())
        return output.squeeze(-1);
    throw_mismatch(name, output, batch.target, "Values of the output's shape are expected.");
}

class ErrorMetric : public MeanMetric {
public:
    bool higher_is_better() const override { return false; }

protected:
    Figure figure_of(const at::Tensor& scores) const override {
        return Figure::measured(
            scores.mean().item<double>(), "1",
            "mean over " + std::to_string(scores.numel()) + " examples, bootstrap over blocks of neighbours",
            mean_interval(scores));
    }
};

class MeanSquaredError final : public ErrorMetric {
public:
    void add(const at::Tensor& output, const Batch& batch) override {
        keep(per_example((aligned("mse", output, batch).to(at::kDouble) - batch.target.to(at::kDouble)).square()));
    }
};

class MeanAbsoluteError final : public ErrorMetric {
public:
    void add(const at::Tensor& output, const Batch& batch) override {
        keep(per_example((aligned("mae", output, batch).to(at::kDouble) - batch.target.to(at::kDouble)).abs()));
    }
};

class LossMetric final : public ErrorMetric {
public:
    explicit LossMetric(std::string task) : task_(std::move(task)) {}

    void add(const at::Tensor& output, const Batch& batch) override {
        std::string task = task_;
        if (task == "auto")
            task = batch.pairs ? "similarity" : !batch.target.is_floating_point() ? "classification" : "regression";
        if (task == "classification") {
            if (output.dim() < 2 || batch.target.size(0) != output.size(0))
                throw_mismatch("loss", output, batch.target, "Scores [N, C] and class indices [N] are expected.");
            const auto target =
                batch.target.is_floating_point() ? batch.target.to(at::kDouble) : batch.target.to(at::kLong);
            keep(per_example(at::cross_entropy_loss(output.to(at::kDouble), target, {}, at::Reduction::None)));
        } else if (task == "regression") {
            keep(per_example((aligned("loss", output, batch).to(at::kDouble) - batch.target.to(at::kDouble)).square()));
        } else {
            if (!batch.pairs || output.size(0) != 2 * batch.target.size(0))
                throw_mismatch("loss", output, batch.target, "Two rows of output for each target are expected.");
            const auto rows = output.to(at::kDouble).flatten(1);
            const auto pairs = rows.reshape({-1, 2, rows.size(1)});  // [N, 2, width]
            const auto cosine = at::cosine_similarity(pairs.select(1, 0), pairs.select(1, 1), 1);
            keep((cosine - batch.target.to(at::kDouble) / 5).square());  // targets run from 0 to 5
        }
    }

private:
    const std::string task_;
};

// Puts a module into eval mode and back, each submodule by itself: one may have been frozen in eval mode on purpose.
class EvalMode {
public:
    explicit EvalMode(const torch::jit::Module& module) {
        for (const auto& part : module.modules())
            if (part.hasattr("training") && part.attr("training").isBool() && part.attr("training").toBool()) {
                part._ivalue()->setAttr("training", false);
                switched_.push_back(part._ivalue());
            }
    }
    ~EvalMode() {
        for (const auto& object : switched_) object->setAttr("training", true);
    }
    EvalMode(const EvalMode&) = delete;

private:
    std::vector<c10::intrusive_ptr<c10::ivalue::Object>> switched_;
};

// Distance from the baseline's outputs, by task.
std::vector<MetricValue> agreement(const std::vector<at::Tensor>& outputs, const std::vector<at::Tensor>& baseline,
                                   Task task, bool pairs) {
    const auto value = [](const std::string& name, Figure figure, bool higher, double factor) {
        MetricValue metric;
        metric.name = name;
        metric.higher_is_better = higher;
        metric.points = figure.available() ? factor * *figure.value : 0;
        metric.figure = std::move(figure);
        return metric;
    };
    bool comparable = outputs.size() == baseline.size();
    for (size_t i = 0; comparable && i < outputs.size(); ++i) comparable = outputs[i].sizes() == baseline[i].sizes();
    const std::string reason = "its output has another shape than the baseline's";
    if (task == Task::kClassification) {
        if (!comparable)
            return {value("agreement", Figure::unavailable("ratio", reason), true, 100),
                    value("kl_to_baseline", Figure::unavailable("1", reason), false, -1)};
        int64_t same = 0, count = 0;
        bool dense = false;
        std::vector<at::Tensor> divergences;
        for (size_t i = 0; i < outputs.size(); ++i) {
            const auto equal = outputs[i].argmax(1) == baseline[i].argmax(1);
            const auto p = baseline[i].to(at::kDouble).log_softmax(1), q = outputs[i].to(at::kDouble).log_softmax(1);
            divergences.push_back(per_example((p.exp() * (p - q)).sum(1)));
            same += equal.sum().item<int64_t>();
            count += equal.numel();
            dense = dense || equal.dim() > 1;
        }
        const double share = static_cast<double>(same) / static_cast<double>(count);
        return {
            value("agreement",
                  Figure::measured(share, "ratio", "share of predictions equal to the baseline's",
                                   dense ? std::nullopt : std::optional<Interval>(wilson_interval(same, count))),
                  true, 100),
            value("kl_to_baseline",
                  Figure::measured(at::cat(divergences).mean().item<double>(), "1",
                                   "mean Kullback-Leibler divergence of the baseline's softmax from the model's, nats",
                                   mean_interval(at::cat(divergences))),
                  false, -1)};
    }
    if (pairs) {
        if (!comparable) return {value("baseline_correlation", Figure::unavailable("1", reason), true, 1)};
        std::vector<at::Tensor> own, other;
        for (size_t i = 0; i < outputs.size(); ++i) {
            own.push_back(pair_similarities(outputs[i]));
            other.push_back(pair_similarities(baseline[i]));
        }
        return {value("baseline_correlation",
                      Figure::measured(correlation_of(at::cat(own), at::cat(other)), "1",
                                       "Pearson's correlation of the similarities with the baseline's"),
                      true, 1)};
    }
    if (!comparable) return {value("mean_difference", Figure::unavailable("1", reason), false, -1)};
    double largest = 0, sum = 0, count = 0;
    for (size_t i = 0; i < outputs.size(); ++i) {
        const auto difference = (outputs[i].to(at::kDouble) - baseline[i].to(at::kDouble)).abs();
        largest = std::max(largest, difference.max().item<double>());
        sum += difference.sum().item<double>();
        count += static_cast<double>(difference.numel());
    }
    return {value("max_difference",
                  Figure::measured(largest, "1", "largest absolute difference to the baseline's output"), false, -1),
            value("mean_difference",
                  Figure::measured(sum / count, "1", "mean absolute difference to the baseline's output"), false, -1)};
}

}  // namespace

Json Metric::paired(const Metric& baseline) const {
    const auto own = scores(), other = baseline.scores();
    if (!own.defined() || !other.defined() || own.sizes() != other.sizes()) return nullptr;
    const auto difference = own - other;
    const auto interval = mean_interval(difference);
    return {{"difference", difference.mean().item<double>()}, {"interval", {interval.low, interval.high}}};
}

Interval score_interval(const at::Tensor& scores) {
    return mean_interval(scores);
}

std::unique_ptr<Metric> loss_metric(Options& options) {
    return std::make_unique<LossMetric>(options.choice("task", "auto",
                                                       {"auto", "classification", "regression", "similarity"},
                                                       "which loss; auto reads it off the targets"));
}
std::unique_ptr<Metric> log_loss() {
    return std::make_unique<LossMetric>("classification");
}
std::unique_ptr<Metric> mean_absolute_error() {
    return std::make_unique<MeanAbsoluteError>();
}
std::unique_ptr<Metric> mean_squared_error() {
    return std::make_unique<MeanSquaredError>();
}
std::unique_ptr<Metric> top_k(int64_t k) {
    return std::make_unique<TopK>(k);
}

std::vector<std::string> default_metrics(Task task) {
    switch (task) {
        case Task::kClassification:
            return {"top1", "top5", "loss"};
        case Task::kRegression:
            return {"mse", "mae"};
        case Task::kSimilarity:
            return {"spearman", "loss"};
    }
    return {};
}

Runner::Runner(const Model& model) : Runner(model.module()) {}
Runner::Runner(torch::jit::Module module)
    : function_([module](Inputs inputs) mutable {
          const EvalMode eval(module);
          return module.forward(std::move(inputs));
      }) {}
Runner::Runner(std::function<c10::IValue(Inputs)> function) : function_(std::move(function)) {}

c10::IValue Runner::operator()(const Inputs& inputs) const {
    const torch::NoGradGuard no_grad;
    return function_(inputs);
}

const MetricValue* Evaluation::find(const std::string& name) const {
    for (const auto& metric : metrics)
        if (metric.name == name) return &metric;
    return nullptr;
}

Evaluation evaluate(const Runner& model, const Dataset& data, const std::vector<std::string>& names, Task task,
                    int64_t batch_size, const Evaluation* baseline, const std::function<bool()>& interrupted) {
    const double start = wall_seconds();
    const int64_t size = data.size();
    if (size == 0) throw InvalidArgument("evaluate", data.description() + " holds no example", "");
    if (batch_size < 1)
        throw InvalidArgument("evaluate", "the batch size is " + std::to_string(batch_size), "Use 256.");
    Evaluation result;
    std::vector<std::shared_ptr<Metric>> accumulators;
    for (const auto& name : names) accumulators.push_back(make_metric(name, task, "evaluate"));

    bool pairs = false;
    for (int64_t first = 0; first < size; first += batch_size) {
        if (interrupted && interrupted()) throw Interrupted("evaluate", "stopped on request", "");
        std::vector<int64_t> indices;
        for (int64_t i = first; i < std::min(size, first + batch_size); ++i) indices.push_back(i);
        const auto batch = data.batch(indices);
        auto output = first_tensor(model(batch.inputs));
        if (output.is_quantized()) output = output.dequantize();
        output = selected(output, batch).detach().to(at::kCPU, at::kFloat);
        for (const auto& metric : accumulators) metric->add(output, batch);
        pairs = batch.pairs;
        result.examples += batch.examples();
        result.outputs.push_back(output.clone());
    }
    for (size_t i = 0; i < names.size(); ++i) {
        MetricValue value;
        value.name = names[i];
        value.figure = accumulators[i]->result();
        value.higher_is_better = accumulators[i]->higher_is_better();
        value.points = value.figure.available() ? accumulators[i]->points(*value.figure.value) : 0;
        if (baseline)
            for (size_t j = 0; j < baseline->accumulators.size(); ++j)
                if (baseline->metrics[j].name == names[i])
                    value.paired = accumulators[i]->paired(*baseline->accumulators[j]);
        result.metrics.push_back(std::move(value));
        result.accumulators.push_back(accumulators[i]);
    }
    if (baseline)
        for (auto& value : agreement(result.outputs, baseline->outputs, task, pairs))
            result.metrics.push_back(std::move(value));
    result.seconds = wall_seconds() - start;
    return result;
}

}  // namespace coppice::eval
