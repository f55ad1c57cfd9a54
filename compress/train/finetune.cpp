#include "train/finetune.h"

#include <coppice/training_task.h>

namespace coppice {
namespace {

class FineTune final : public Stage {
public:
    FineTune(Options& options, const std::vector<Entry<Loss>>& losses) : task_(options, losses) {}

    Needs needs() const override { return task_.needs(); }
    void check(const Model& model, const Context& context) const override { task_.check(model, context); }

    Model apply(const Model& model, Context& context) const override {
        Model trained = model.clone();
        task_.run(trained, *trainable(trained), context);
        return trained;
    }

private:
    const TrainingTask task_;
};

}  // namespace

std::unique_ptr<Stage> finetune(Options& options, const std::vector<Entry<Loss>>& losses) {
    return std::make_unique<FineTune>(options, losses);
}

}  // namespace coppice
