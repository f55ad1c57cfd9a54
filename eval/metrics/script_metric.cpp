// Any metric that a TorchScript file computes, and the lookup of metrics by name.
#include <torch/script.h>

#include <cmath>
#include <numeric>

#include "metrics/quality.h"

namespace coppice::eval {
namespace {

constexpr const char* kFile = "file:";
constexpr int kResamples = 200;  // each runs the file over all examples
constexpr int64_t kResampleLimit = 20000;

class ScriptMetric final : public Metric {
public:
    explicit ScriptMetric(const std::string& path) : name_("metric " + std::string(kFile) + path) {
        try {
            module_ = torch::jit::load(path);
            module_.eval();
        } catch (const c10::Error& error) {
            throw IoError(path, "torch::jit::load cannot read it (" + message_of(error) + ")",
                          "Give a file written by torch.jit.save whose forward takes output and target.");
        }
        if (module_.hasattr("higher_is_better") && module_.attr("higher_is_better").isBool())
            higher_ = module_.attr("higher_is_better").toBool();
    }
    bool higher_is_better() const override { return higher_; }

    void add(const at::Tensor& output, const Batch& batch) override {
        const auto scores = run(output, batch.target);
        if (scores.dim() == 1 && scores.size(0) == batch.target.size(0) && outputs_.empty()) {
            parts_.push_back(scores);
        } else if (scores.dim() == 0 && parts_.empty()) {
            outputs_.push_back(output);
            targets_.push_back(batch.target);
        } else {
            std::ostringstream problem;
            problem << "it gave " << scores.sizes() << " for " << batch.target.size(0) << " examples";
            throw InvalidArgument(name_, problem.str(), "Return one score per example, [N], or one number, always.");
        }
    }

    at::Tensor scores() const override { return parts_.empty() ? at::Tensor() : at::cat(parts_); }

    Figure result() const override {
        if (!parts_.empty()) {
            const auto values = scores();
            return Figure::measured(values.mean().item<double>(), "1",
                                    "mean over " + std::to_string(values.numel()) + " examples, " + name_,
                                    score_interval(values));
        }
        if (outputs_.empty()) throw InvalidArgument(name_, "there is no example", "Give a dataset that is not empty.");
        const auto output = at::cat(outputs_), target = at::cat(targets_);
        const double value = run(output, target).item<double>();
        std::optional<Interval> interval;
        const int64_t count = target.size(0);
        if (count <= kResampleLimit && output.size(0) == count)
            interval = block_bootstrap(
                count, static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(count)))),
                [&](const std::vector<int64_t>& indices) {
                    const auto drawn = at::tensor(indices, at::kLong);
                    return run(output.index_select(0, drawn), target.index_select(0, drawn)).item<double>();
                },
                kResamples);
        return Figure::measured(value, "1", "over " + std::to_string(count) + " examples at once, " + name_, interval);
    }

private:
    at::Tensor run(const at::Tensor& output, const at::Tensor& target) const {
        const torch::NoGradGuard no_grad;
        try {
            auto result = module_.get_method("forward")({output, target});
            if (result.isDouble()) return at::scalar_tensor(result.toDouble(), at::kDouble);
            if (result.isTensor()) return result.toTensor().to(at::kDouble);
            throw InvalidArgument(name_, "forward gave a " + result.tagKind(), "Return a tensor or a float.");
        } catch (const c10::Error& error) {
            throw InvalidArgument(name_, "forward(output, target) failed: " + message_of(error), "");
        }
    }

    const std::string name_;
    torch::jit::Module module_;
    bool higher_ = true;
    std::vector<at::Tensor> parts_, outputs_, targets_;
};

const char* task_name(Task task) {
    return task == Task::kClassification ? "classification" : task == Task::kRegression ? "regression" : "similarity";
}

}  // namespace

std::unique_ptr<Metric> make_metric(const std::string& name, Task task, const std::string& owner) {
    if (name.rfind(kFile, 0) == 0) return std::make_unique<ScriptMetric>(name.substr(std::string(kFile).size()));
    std::vector<std::pair<std::string, std::string>> settings;
    if (name == "loss") settings.emplace_back("task", task_name(task));
    Options options("metric " + name, settings);
    return find_entry(metrics(), "metric", name, owner).make(options);
}

}  // namespace coppice::eval
