// What every training stage of a recipe shares: which loss, which teacher, what is measured, where checkpoints go.
#include <coppice/error.h>
#include <coppice/judging.h>
#include <coppice/training_task.h>

#include "train/options.h"
#include "train/tracker.h"

namespace coppice {
namespace {

/// Layers that behave differently in training, but whose switch is a constant of the graph: traced models.
std::vector<std::string> fixed_layers(const Model& model) {
    std::vector<std::string> layers;
    const LayerNames names(model);
    for (auto* node : all_nodes(*model.graph())) {
        const auto* schema = node->maybeSchema();
        if (!schema) continue;
        for (size_t i = 0; i < schema->arguments().size() && i < node->inputs().size(); ++i) {
            const auto& argument = schema->arguments()[i].name();
            if (argument != "training" && argument != "train") continue;
            const auto constant = constant_of(node->input(i));
            if (constant && constant->isBool() && !constant->toBool()) layers.push_back(names.of(node));
        }
    }
    return layers;
}

void warn_of_fixed_layers(const Model& model, const std::string& where, Context& context) {
    const auto layers = fixed_layers(model);
    if (layers.empty()) return;
    const std::string reason = "its training switch is a constant: the model was traced, or frozen, in eval mode";
    context.log->warning(where + ": " + std::to_string(layers.size()) + " layers (" + layers.front() +
                         (layers.size() > 1 ? ", ..." : "") + ") behave as in eval mode while training: " + reason +
                         ". Script the model to train them as well.");
    for (const auto& layer : layers)
        context.record({layer, "kept", "statistics and dropout as in eval mode", "the same", reason});
    context.facts["layers_in_eval_mode"] = layers;
}

// A feature loss as the trainer knows losses: reads what both models kept in the forward passes just made.
class WatchingLoss final : public Loss {
public:
    WatchingLoss(const FeatureLoss& loss, Trainable& student, Trainable& teacher)
        : loss_(loss), student_(student), teacher_(teacher), names_(student.watch(loss.layers())) {
        const auto others = teacher.watch(loss.layers());
        for (size_t i = 0; i < std::max(names_.size(), others.size()); ++i)
            if (i >= names_.size() || i >= others.size() || names_[i] != others[i]) {
                const bool student_lacks = i >= names_.size();
                throw InvalidArgument("train",
                                      std::string(student_lacks ? "the student" : "the teacher") + " lacks layer \"" +
                                          (student_lacks ? others[i] : names_[i]) + "\" of the other",
                                      "Name layers that both have.");
            }
    }

    Needs needs() const override {
        auto needs = loss_.needs();
        needs.teacher = true;
        return needs;
    }

    const std::vector<std::string>& names() const { return names_; }

    at::Tensor operator()(const at::Tensor& output, const at::Tensor& teacher, const Batch& batch) const override {
        return loss_(output, teacher, batch) + loss_.of_features(names_, student_.watched(), teacher_.watched());
    }

private:
    const FeatureLoss& loss_;
    Trainable &student_, &teacher_;
    const std::vector<std::string> names_;
};

void report(const TrainResult& result, Context& context) {
    double seconds = 0;
    std::optional<double> energy, carbon;
    const auto add = [](std::optional<double>& sum, const std::optional<double>& value) {
        if (value) sum = sum.value_or(0) + *value;
    };
    Json losses = Json::array(), metrics = Json::array(), rates = Json::array();
    for (const auto& epoch : result.epochs) {
        seconds += epoch.seconds;
        add(energy, epoch.energy_j);
        add(carbon, epoch.carbon_g);
        losses.push_back(epoch.train_loss);
        rates.push_back(epoch.lr);
        metrics.push_back(epoch.metric ? Json(*epoch.metric) : Json());
    }
    context.facts["epochs"] = result.epochs.size();
    context.facts["train_loss"] = losses;
    context.facts["metric"] = metrics;
    context.facts["last_lr"] = rates;
    context.facts["train_seconds"] = seconds;
    context.facts["train_energy_j"] = energy ? Json(*energy) : Json();
    context.facts["train_carbon_g"] = carbon ? Json(*carbon) : Json();
    if (energy) context.facts["train_energy_provenance"] = result.epochs.back().provenance;
    context.facts["stopped_by"] = result.stopped_by.empty() ? Json() : Json(result.stopped_by);
    context.facts["kept_epoch"] = result.kept_epoch;
    context.facts["resumed"] = result.resumed;
}

}  // namespace

std::unique_ptr<Loss> default_loss(Task task) {
    switch (task) {
        case Task::kRegression:
            return mean_squared_error();
        case Task::kSimilarity:
            return pair_similarity();
        case Task::kClassification:
            break;
    }
    return cross_entropy();
}

TrainingTask::TrainingTask(Options& o, const std::vector<Entry<Loss>>& losses, const TrainOptions& defaults)
    : where_(o.owner()), options_(read(o, defaults)) {
    const auto* loss = o.raw("loss", "auto: what the task has; or one of coppice list losses");
    if (!loss || (loss->kind == Setting::Kind::kScalar && loss->text == "auto")) {
        o.remember({"loss", "name", "auto", ""});
        o.resolve("loss", "auto");
    } else {
        loss_ = make<Loss>(o, "loss", "auto", losses);
    }
    teacher_ = o.text("teacher", "baseline", "baseline, or a TorchScript file; used when the loss needs one");
    evaluate_ = o.boolean("evaluate", true, "measure the metric after every epoch");
}

TrainingTask::TrainingTask(std::string where, TrainOptions options, std::shared_ptr<const Loss> loss,
                           std::string teacher, bool evaluate)
    : where_(std::move(where)),
      options_(std::move(options)),
      loss_(std::move(loss)),
      teacher_(std::move(teacher)),
      evaluate_(evaluate) {}

Needs TrainingTask::needs() const {
    auto needs = loss_ ? loss_->needs() : Needs{};
    needs.training_data = true;
    needs.labels |= !loss_;
    needs.teacher = needs.teacher && teacher_ == "baseline";  // a file is looked for by check()
    return needs;
}

void TrainingTask::check(const Model& model, const Context& context) const {
    if (loss_ && loss_->needs().teacher && teacher_ != "baseline" &&
        !std::filesystem::exists(context.base_dir / teacher_))
        throw InvalidArgument(where_, "teacher " + (context.base_dir / teacher_).string() + " is not there",
                              "Give a TorchScript file, or baseline.");
    Tracker(options_, context.spent, {});  // a budget that cannot be watched is refused before anything runs
    if (model.module().named_parameters().size() == 0)
        throw InvalidArgument(where_, "the model has no parameter that trains", "Put it before quantization.");
}

TrainResult TrainingTask::run(Model& model, Trainable& module, Context& context,
                              const TrainCallbacks& callbacks) const {
    if (!context.data.train) throw InvalidArgument(where_, "there is no training data", "Give data a train split.");
    warn_of_fixed_layers(model, where_, context);
    const auto own_loss = loss_ ? nullptr : default_loss(context.task);
    const Loss& loss = loss_ ? *loss_ : *own_loss;

    const auto* features = dynamic_cast<const FeatureLoss*>(&loss);
    std::unique_ptr<Trainable> teacher;
    std::function<at::Tensor(const Inputs&)> ask_teacher;
    if (loss.needs().teacher || features) {
        if (teacher_ == "baseline" && !context.baseline)
            throw InvalidArgument(where_, "there is no baseline to learn from", "Give teacher: FILE.");
        teacher =
            trainable(teacher_ == "baseline" ? context.baseline->clone() : Model::load(context.base_dir / teacher_));
        teacher->train(false);
        ask_teacher = [&teacher](const Inputs& inputs) { return teacher->forward(inputs); };
    }
    std::unique_ptr<WatchingLoss> watching;
    if (features) {
        watching = std::make_unique<WatchingLoss>(*features, module, *teacher);
        context.facts["feature_layers"] = watching->names();
    }
    std::function<double()> evaluate;
    if (evaluate_ && context.evaluate) evaluate = [&] { return context.evaluate(model); };

    auto options = options_;
    if (options.seed == 0) options.seed = context.seed;
    const auto checkpoint = context.work_dir.empty() ? std::filesystem::path() : context.work_dir / "checkpoint.pt";
    auto with_meter = callbacks;
    if (!with_meter.spent) with_meter.spent = context.spent;
    const auto result = Trainer(options).fit(module, *context.data.train, watching ? *watching : loss, ask_teacher,
                                             with_meter, checkpoint, *context.log, evaluate, context.interrupted);
    report(result, context);
    const bool chosen = options.keep == "best" || (options.keep == "auto" && !result.stopped_by.empty());
    if (chosen && evaluate && !callbacks.only_last) note_choice_by_evaluation(where_, "the epoch", context);
    model.eval();
    return result;
}

}  // namespace coppice
